"""Tokens put into a text in the place of others, and the text that tokens spell."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sft_kit.errors import DataError
from sft_kit.inference.text_pieces import decode_reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Quotes, dashes and dots that Chinese shares with English; CJK punctuation, kana and hanzi;
# full-width forms.
_CJK = "[\u2014\u2018-\u201d\u2026\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]"
_GAP = re.compile(f"(?<={_CJK}) (?={_CJK})")
_CONTINUES = "##"
"""How WordPiece marks a token that goes on with the word before it."""


@dataclass(frozen=True, slots=True)
class PlacedIds:
    """Token ids of a text, without special tokens around it.

    Attributes:
        text: The text itself.
        ids: Its token ids.
        spans: First character of each token, and the one behind its last.
    """

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Filling:
    """Tokens that take the place of a part of a text.

    Attributes:
        span: First character of that part, and the one behind its last.
        before: Token id in front of it; None where it is a special token or there is none.
        ids: The new token ids.
    """

    span: tuple[int, int]
    before: int | None
    ids: list[int]


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Encode a text, special tokens in it as such, without special tokens around it."""
    found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return cast("list[int]", found)


def place_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> PlacedIds:
    """Encode a text as `encode` does, and say where each token stands.

    Raises:
        DataError: The tokenizer can't tell.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path} can't say where its tokens stand in a text, "
            "so nothing can be filled in (use a fast tokenizer: one with a tokenizer.json)"
        )
    encoded = cast("Any", tokenizer)(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    spans = [(int(first), int(last)) for first, last in encoded["offset_mapping"]]
    return PlacedIds(text, list(encoded["input_ids"]), spans)


def fill_in(tokenizer: "PreTrainedTokenizerBase", text: str, fillings: Sequence[Filling]) -> str:
    """Replace parts of a text by what tokens spell; everything else stays as it was written.

    Args:
        tokenizer: Of the token ids.
        text: The text.
        fillings: In the order of the text, none over another.
    """
    filled, rest = "", 0
    for filling in fillings:
        first, rest_from = filling.span
        filled = _attach(tokenizer, filled + text[rest:first], filling)
        rest = rest_from
    return filled + text[rest:]


def spell_out(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Return the text of token ids, without special tokens and surrounding whitespace.

    WordPiece forgets where a text has blanks and puts one between any two tokens: those between
    Chinese characters are taken out again.
    """
    text = decode_reply(tokenizer, ids)
    return _GAP.sub("", text) if is_wordpiece(tokenizer) else text


def is_wordpiece(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer forgets blanks, as BERT's does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "decoder", None)).__name__ == "WordPiece"


def _attach(tokenizer: "PreTrainedTokenizerBase", left: str, filling: Filling) -> str:
    if not filling.ids:
        return left
    piece = _piece(tokenizer, filling)
    if not piece.startswith(" "):
        return (left.rstrip(" ") if _continues(tokenizer, filling.ids[0]) else left) + piece
    word = piece.lstrip(" ")
    return left + (" " if _is_letter(left[-1:]) and _is_letter(word[:1]) else "") + word


def _piece(tokenizer: "PreTrainedTokenizerBase", filling: Filling) -> str:
    """Spell tokens as they read behind the one before: alone, many would lose their blank."""
    text = _decode(tokenizer, filling.ids)
    if filling.before is not None:
        before = _decode(tokenizer, [filling.before])
        both = _decode(tokenizer, [filling.before, *filling.ids])
        text = both[len(before) :] if both.startswith(before) else text
    if is_wordpiece(tokenizer):
        text = _GAP.sub("", text).removeprefix(_CONTINUES)
    return text


def _continues(tokenizer: "PreTrainedTokenizerBase", token_id: int) -> bool:
    """Whether a token without a blank goes on with a word, whatever blank the mask token had.

    RoBERTa's mask token takes in the blank before it.
    """
    mask = getattr(tokenizer, "added_tokens_decoder", {}).get(tokenizer.mask_token_id)
    token = cast("str", tokenizer.convert_ids_to_tokens(token_id))
    return bool(getattr(mask, "lstrip", False)) or (
        is_wordpiece(tokenizer) and token.startswith(_CONTINUES)
    )


def _is_letter(character: str) -> bool:
    return character.isalnum() and re.match(_CJK, character) is None


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    return cast("str", text)
