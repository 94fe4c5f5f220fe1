"""Segments of a chat to token ids, and the special tokens around them.

Some tokenizers put a blank before every text they are given (a *dummy prefix*, as SentencePiece
does: Llama 2, ChatGLM). Encoded bare, a text from the middle of a chat would begin with a blank
that isn't there. Such a tokenizer encodes every segment but the first behind a short context,
whose ids are then cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_PLAIN_CONTEXT = "\n"


@dataclass(frozen=True, slots=True)
class Segment:
    """Rendered text that is encoded on its own; `is_completion` when it is an answer."""

    text: str
    is_completion: bool


def encode_segments(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Sequence[Segment]]
) -> list[list[list[int]]]:
    """Encode segments, each with the ids it has within its row.

    Merges never cross a segment's border. No special token is added.

    Args:
        tokenizer: Encodes all segments in one call.
        rows: Segments of each row, in order; together they are the row's text.

    Returns:
        Token ids of each segment of each row.
    """
    texts = [segment.text for row in rows for segment in row]
    if has_dummy_prefix(tokenizer):
        ids = _encode_behind(tokenizer, texts, _contexts(tokenizer, rows))
    else:
        ids = _encode_all(tokenizer, texts)
    remaining = iter(ids)
    return [[next(remaining) for _ in row] for row in rows]


def has_dummy_prefix(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a text's beginning is encoded differently from the same text behind a line end."""
    first, context, both = _encode_all(tokenizer, ["a", _PLAIN_CONTEXT, f"{_PLAIN_CONTEXT}a"])
    return both[: len(context)] == context and both[len(context) :] != first


def leading_special_tokens(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Spell the tokens this tokenizer puts in front of every text, such as Llama's `<s>`.

    Those that it adds behind (BERT's `[SEP]`) don't count; "" where it adds none in front, or none
    that can be written as text.
    """
    bare = _encode_all(tokenizer, ["a"])[0]
    whole = cast("list[int]", tokenizer("a", verbose=False)["input_ids"])
    for size in range(len(whole) - len(bare) + 1):
        if whole[size : size + len(bare)] == bare:
            text = "".join(cast("list[str]", tokenizer.convert_ids_to_tokens(whole[:size])))
            return text if _encode_all(tokenizer, [text])[0] == whole[:size] else ""
    return ""


def find_special_token(
    tokenizer: "PreTrainedTokenizerBase", text: str, start: int
) -> tuple[int, str] | None:
    """Find the first special token that is spelled in a text.

    Args:
        tokenizer: Knows the special tokens.
        text: Rendered chat.
        start: First character to look at.

    Returns:
        Index of its first character, and the token; None where there is none.
    """
    places = [
        (place, -len(token), token)
        for token in tokenizer.all_special_tokens
        if token and (place := text.find(token, start)) >= 0
    ]
    if not places:
        return None
    place, _, token = min(places)
    return place, token


def _contexts(tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Sequence[Segment]]) -> list[str]:
    """Choose what each segment is encoded behind: nothing where it begins its row."""
    added = cast("dict[str, int]", tokenizer.get_added_vocab())
    special = sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True)
    contexts: list[str] = []
    for row in rows:
        context = ""
        for segment in row:
            contexts.append(context)
            if segment.text:
                ends = (token for token in special if segment.text.endswith(token))
                context = next(ends, _PLAIN_CONTEXT)
    return contexts


def _encode_behind(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], contexts: Sequence[str]
) -> list[list[int]]:
    """Encode each text as it reads behind its context."""
    different = sorted(set(contexts))
    joined = [context + text for context, text in zip(contexts, texts, strict=True)]
    encoded = _encode_all(tokenizer, [*different, *joined])
    context_ids = dict(zip(different, encoded[: len(different)], strict=True))
    ids: list[list[int]] = []
    merged: list[int] = []
    for index, whole in enumerate(encoded[len(different) :]):
        before = context_ids[contexts[index]]
        if whole[: len(before)] != before:
            merged.append(index)
        ids.append(whole[len(before) :])
    # A vocabulary with a token for "\n\n" merges the context into the text: take the bare text.
    bare = _encode_all(tokenizer, [texts[index] for index in merged])
    for index, text_ids in zip(merged, bare, strict=True):
        ids[index] = text_ids
    return ids


def _encode_all(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    if (backend := _bare_backend(tokenizer)) is not None:
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return cast("list[list[int]]", encoded["input_ids"])


def _bare_backend(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer | None":
    """The library behind a tokenizer, where a call would do no more than ask it.

    Asked directly it need not track which characters a token comes from: a quarter of the time.
    """
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    is_plain = (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.__call__ is PreTrainedTokenizerFast.__call__
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
        and not tokenizer.split_special_tokens
    )
    if not is_plain:
        return None
    backend = cast("Tokenizer", tokenizer.backend_tokenizer)
    is_cut = backend.truncation is not None or backend.padding is not None
    return None if is_cut or backend.encode_special_tokens else backend
