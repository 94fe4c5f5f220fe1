"""Examples as text, token by token, each token marked by whether it is learnt."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from sft_kit.data.rows import IGNORED, Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_TOKENS_PER_CHARACTER = 16
_VISIBLE = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True, slots=True)
class MarkedToken:
    """One token as a reader sees it.

    Attributes:
        text: What the token adds to the text. Where several tokens only together form a character,
            the first has all of the text and the others have none.
        id: Token id.
        supervised: Whether the model learns to write this token.
    """

    text: str
    id: int
    supervised: bool


def mark_tokens(example: Example, tokenizer: "PreTrainedTokenizerBase") -> list[MarkedToken]:
    """Decode an example token by token, each with whether it is learnt.

    Tokens that only together form a character are joined in the first of them. Bytes that form
    no character (an example cut inside one) are spelled in hex: ‹E4 BD›.
    """
    marked: list[MarkedToken] = []
    context: list[int] = []
    pairs = zip(example.input_ids, example.labels, strict=True)
    for supervised, run in groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        ids = [token_id for token_id, _ in run]
        texts, context = _decode_run(ids, context, tokenizer)
        marked += [
            MarkedToken(text, token_id, supervised)
            for text, token_id in zip(texts, ids, strict=True)
        ]
    return marked


def last_tokens(
    example: Example, tokenizer: "PreTrainedTokenizerBase", count: int = 5
) -> list[str]:
    """Decode the end of an example for a message: the last `count` pieces of text."""
    return [token.text for token in mark_tokens(example, tokenizer) if token.text][-count:]


def readable(text: str) -> str:
    r"""Make what can't be seen visible: line ends, tabs, control and format characters.

    Data decides what is printed here, so no escape sequence may reach the terminal.

    >>> readable("a\tb\x1b[2J")
    'a⇥\tb‹U+001B›[2J'
    """
    return "".join(_readable_character(character) for character in text)


def _readable_character(character: str) -> str:
    if character in _VISIBLE:
        return _VISIBLE[character]
    hidden = unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    if character == "\ufffd" or (hidden and character not in _JOINERS):
        return f"‹U+{ord(character):04X}›"
    return character


def _decode_run(
    ids: Sequence[int], context: list[int], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[str], list[int]]:
    """Decode ids piece by piece; returns one text per id and the context of what follows."""
    texts: list[str] = []
    while len(texts) < len(ids):
        rest = ids[len(texts) : len(texts) + _MAX_TOKENS_PER_CHARACTER]
        for size in range(1, len(rest) + 1):
            piece = _decode_after(context, rest[:size], tokenizer)
            if "\ufffd" not in piece:
                texts += [piece, *[""] * (size - 1)]
                context = list(rest[:size])
                break
        else:
            # The context stays: without one, some tokenizers drop the blank of the next token.
            texts.append(_spell_bytes(_token_bytes(rest[0], tokenizer)))
    return texts, context


def _decode_after(
    context: list[int], ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase"
) -> str:
    """Decode ids as they read behind `context`: some tokenizers drop the space of a first token."""
    before = _decode(context, tokenizer) if context else ""
    both = _decode([*context, *ids], tokenizer)
    return both[len(before) :] if both.startswith(before) else _decode(ids, tokenizer)


def _decode(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text)


def _token_bytes(token_id: int, tokenizer: "PreTrainedTokenizerBase") -> bytes:
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):  # sentencepiece's byte fallback
        return bytes([int(token[3:5], 16)])
    alphabet = _byte_level_alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.replace("▁", " ").encode("utf-8", "surrogatepass")


def _byte_level_alphabet() -> dict[str, int]:
    """Map the characters that stand for bytes in a byte-level vocabulary to these bytes.

    Printable Latin-1 stands for itself, the rest for U+0100 onwards.

    Source:
        openai/gpt-2, `bytes_to_unicode`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


def _spell_bytes(raw: bytes) -> str:
    """Decode what is UTF-8 and spell the other bytes in hex."""
    return re.sub(
        "[\udc80-\udcff]+",
        lambda match: f"‹{match[0].encode('utf-8', 'surrogateescape').hex(' ').upper()}›",
        raw.decode("utf-8", "surrogateescape"),
    )
