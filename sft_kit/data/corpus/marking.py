"""Corrupted rows as text, token by token: what happened to each, and what is learnt there."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sft_kit.data.corpus.rows import Corrupted, Ids
from sft_kit.data.rows import IGNORED, Example, Where
from sft_kit.data.token_text import MarkedToken, mark_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Fate = Literal["kept", "hidden", "changed", "special"]
"""What happened to a token: nothing, a mask token or sentinel stands in its place, another token
does, or it is a special token, to which nothing ever happens."""

_SENTINEL = re.compile(r"<extra_id_\d+>")
_WIDE = ("W", "F")


@dataclass(frozen=True, slots=True)
class CorruptedToken:
    """One position as the model sees it.

    Attributes:
        text: What the token adds to the text. Where several tokens only together form a character,
            the first has all of the text and the others have none.
        id: Token id.
        fate: What happened to the token.
        is_learnt: The model learns to say this very token: in its place, or as what follows.
        label: Text of another token that is learnt here; None where there is none.
        is_bound: A document, or the part that is written left to right, begins here.
    """

    text: str
    id: int
    fate: Fate
    is_learnt: bool = False
    label: str | None = None
    is_bound: bool = False


def mark_corrupted(
    corrupted: Corrupted, tokenizer: "PreTrainedTokenizerBase"
) -> list[CorruptedToken]:
    """Decode what the model reads, each token with what happened to it and what is learnt there.

    Labels of the part behind `prefix_length` name the next token, as in all that is written left to
    right; elsewhere they name the token in whose place they stand. What a decoder writes is not
    aligned with what is read: see `written_tokens`.

    Args:
        corrupted: From a corruption.
        tokenizer: Decodes it.
    """
    ids = corrupted["input_ids"]
    inside, after = _labels(corrupted)
    texts = _texts(ids, tokenizer)
    # Labels are decoded where they stood, because a token's text depends on the one before it.
    originals = _texts(np.where(inside == IGNORED, ids, inside), tokenizer)
    stand_ins = _stand_ins(tokenizer)
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    bounds = _bounds(corrupted)
    marked = []
    for place, id_ in enumerate(map(int, ids)):
        label, following = int(inside[place]), int(after[place])
        is_next = place > 0 and int(after[place - 1]) == id_
        told = originals[place] or "…" if label not in (IGNORED, id_) else None
        ends = place + 1 == len(ids) or following != int(ids[place + 1])
        if following != IGNORED and ends:
            told = token_text(following, tokenizer)
        fate = _fate(id_, label, stand_ins, special)
        text = texts[place]
        if fate == "special" or (label != IGNORED and not originals[place].startswith(" ")):
            text = text.lstrip(" ")  # WordPiece puts one before every special token
        is_learnt = is_next or label == id_
        marked.append(CorruptedToken(text, id_, fate, is_learnt, told, place in bounds))
    return marked


def written_tokens(
    corrupted: Corrupted, tokenizer: "PreTrainedTokenizerBase"
) -> list[MarkedToken] | None:
    """Decode what a decoder learns to write; None where one Transformer reads and writes.

    A decoder learns its whole text, from the first token on; one Transformer never learns its first
    token, since nothing stands before it.
    """
    if "prefix_length" in corrupted or int(corrupted["labels"][0]) == IGNORED:
        return None
    labels = [int(label) for label in corrupted["labels"]]
    texts = _texts(corrupted["labels"], tokenizer)
    return [MarkedToken(text, id_, True) for text, id_ in zip(texts, labels, strict=True)]


def token_text(id_: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Decode one token that stands alone."""
    return _texts(np.array([id_]), tokenizer)[0]


def describe_corrupted(corrupted: Corrupted) -> list[str]:
    """Say of a row what its tokens don't: its parts, and whether one follows the other."""
    told = [f"{len(corrupted['input_ids']):,} tokens"]
    if corrupted.get("prefix_length"):
        told.append(f"the first {corrupted['prefix_length']:,} see each other both ways")
    elif "prefix_length" in corrupted:
        told.append("left to right")
    if "documents" in corrupted:
        count = len(np.unique(corrupted["documents"]))
        told.append(f"{count:,} document{'s' if count > 1 else ''} apart")
    if "next_sentence_label" in corrupted:
        words = {0: "follows the first", 1: "is from elsewhere"}
        label = int(corrupted["next_sentence_label"])
        told.append(f"the second part {words[label]}" if label in words else "one part only")
    return told


def _labels(corrupted: Corrupted) -> tuple[Ids, Ids]:
    """Split labels into those of the token in their place and those of the next one: both (T,)."""
    ids = corrupted["input_ids"]
    nothing = np.full(len(ids), IGNORED, dtype=np.int64)
    labels = corrupted["labels"]
    if "prefix_length" not in corrupted:
        is_aligned = len(labels) == len(ids) and int(labels[0]) == IGNORED
        return (labels if is_aligned else nothing), nothing
    first = max(corrupted["prefix_length"] - 1, 0)
    places = np.arange(len(ids))
    return np.where(places < first, labels, IGNORED), np.where(places < first, IGNORED, labels)


def _bounds(corrupted: Corrupted) -> set[int]:
    """Places where something begins that does not belong to what stands before it."""
    bounds = {corrupted["prefix_length"]} if corrupted.get("prefix_length") else set()
    if "documents" in corrupted:
        documents = corrupted["documents"]
        bounds |= {int(place) + 1 for place in np.flatnonzero(documents[1:] != documents[:-1])}
    return bounds


def _fate(id_: int, label: int, stand_ins: set[int], special: set[int]) -> Fate:
    if id_ in stand_ins:
        return "hidden"
    if label not in (IGNORED, id_):
        return "changed"
    return "special" if id_ in special else "kept"


def _stand_ins(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids of the tokens that stand for what is hidden."""
    sentinels = {id_ for token, id_ in tokenizer.get_vocab().items() if _SENTINEL.fullmatch(token)}
    mask = tokenizer.mask_token_id
    return sentinels if mask is None else {mask, *sentinels}


def _texts(ids: Ids, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Decode tokens one by one, each as it reads behind the one before it."""
    plain = [int(id_) for id_ in ids]
    example = Example(plain, plain, was_cut=False, where=Where("", 0))
    tokens: Sequence[str] = tokenizer.convert_ids_to_tokens(plain)
    texts = [marked.text for marked in mark_tokens(example, tokenizer)]
    return [_without_blank(text, token) for text, token in zip(texts, tokens, strict=True)]


def _without_blank(text: str, token: str) -> str:
    """Drop the blank that WordPiece puts before every character of Chinese."""
    is_wide = len(token) == 1 and unicodedata.east_asian_width(token) in _WIDE
    return token if is_wide and text == f" {token}" else text
