"""Texts to one stream of token ids, with flags where sentences and words begin."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from sft_kit.data.corpus.report import Text
from sft_kit.data.corpus.rows import Flags
from sft_kit.data.corpus.sentences import sentence_starts, starts_between
from sft_kit.data.corpus.words import word_starts
from sft_kit.data.rows import Where
from sft_kit.errors import DataError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

Item = TypeVar("Item")

CHUNK_CHARACTERS = 1 << 19
"""Characters encoded in one call; a text of more than twice as many is cut at a line end."""

_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")


@dataclass(frozen=True, slots=True)
class Stream:
    """Tokens of texts one behind another. N tokens, K texts.

    Attributes:
        ids: (N,) token ids.
        starts: (K + 1,) place of each text's first token, and N.
        sentences: (N,) True where a sentence begins; None where not asked.
        words: (N,) True where a word begins; None where not asked.
        num_spelled: Texts (or parts of long ones) that spell a special token which the tokenizer
            can't read as plain text; the part that `tail` gives has none, for they are counted.
        places: (K,) where each text stood; empty where not known.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    sentences: Flags | None = None
    words: Flags | None = None
    num_spelled: int = 0
    places: Sequence[Where] = ()

    def place(self, first: int, last: int) -> str:
        """Say where tokens stood: their text, or the first and the last of several.

        Args:
            first: Of the tokens.
            last: The one behind them.
        """
        if not self.places:
            return ""
        inside = (first, max(first, last - 1))
        begin, end = np.searchsorted(self.starts, inside, side="right").tolist()
        begun, ended = (self.places[min(index, len(self.places)) - 1] for index in (begin, end))
        return str(begun) if begun == ended else f"{begun} to {ended}"

    def tail(self, place: int) -> "Stream":
        """The part from a token on; a text that began before it begins with it."""
        first = int(np.searchsorted(self.starts, place, side="right")) - 1
        starts = np.maximum(self.starts[first:], place) - place
        sentences = None if self.sentences is None else self.sentences[place:].copy()
        words = None if self.words is None else self.words[place:].copy()
        for flags in (sentences, words):
            if flags is not None and len(flags):
                flags[0] = True
        return Stream(self.ids[place:].copy(), starts, sentences, words, places=self.places[first:])


@dataclass(frozen=True, slots=True)
class Marks:
    """What encoding adds to texts, and what it finds out about them.

    Attributes:
        before: Token ids in front of every text.
        after: Token ids behind every text.
        sentences: Flag where sentences begin.
        words: Flag where words begin.
        keep_empty: Keep texts without a single token.
        special: Token ids that a text should not give, whatever it spells.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    sentences: bool = False
    words: bool = False
    keep_empty: bool = False
    special: frozenset[int] = frozenset()


def encode(texts: Iterable[Text], tokenizer: "PreTrainedTokenizerBase", marks: Marks) -> Stream:
    """Encode texts, a chunk at a time.

    A special token that a text spells is read as plain text: `[MASK]` there is no blank, and the
    `<unk>` of WikiText is five characters. Only SentencePiece models such as T5's have special
    tokens among their pieces and can't: there the text gets the special token, `<unk>` the unknown
    one.

    Args:
        texts: In order.
        tokenizer: Fast where sentences or words are asked for.
        marks: What to add and to find out.

    Raises:
        DataError: The tokenizer can't say where tokens stand in the text.
    """
    if (marks.sentences or marks.words) and not tokenizer.is_fast:
        asked = "words" if marks.words else "sentences"
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path} can't say where its tokens stand in a text, "
            f"which whole {asked} need (use a fast tokenizer: one with a tokenizer.json)"
        )
    pieces = (piece for text in texts for piece in _cut(text))
    chunks = chunked(pieces, lambda piece: len(piece.text.text))
    return join([_encode_chunk(chunk, tokenizer, marks) for chunk in chunks], marks)


def chunked(items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Part texts into lists of about `CHUNK_CHARACTERS` characters.

    Args:
        items: In order.
        size_of: Number of characters of one of them.
    """
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += size_of(item)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def join(streams: Sequence[Stream], marks: Marks) -> Stream:
    """Put streams behind one another.

    Args:
        streams: In order.
        marks: What they were encoded with.
    """
    ends = np.cumsum([0, *(len(stream.ids) for stream in streams)])
    starts = [stream.starts[:-1] + end for stream, end in zip(streams, ends, strict=False)]
    sentences = [stream.sentences for stream in streams if stream.sentences is not None]
    words = [stream.words for stream in streams if stream.words is not None]
    return Stream(
        np.concatenate([np.zeros(0, np.int32), *(stream.ids for stream in streams)]),
        np.concatenate([*starts, ends[-1:]]).astype(np.int64),
        np.concatenate([np.zeros(0, np.bool_), *sentences]) if marks.sentences else None,
        np.concatenate([np.zeros(0, np.bool_), *words]) if marks.words else None,
        sum(stream.num_spelled for stream in streams),
        [place for stream in streams for place in stream.places],
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """A text, or a part of a long one; tells whether it begins and ends the text."""

    text: Text
    is_first: bool
    is_last: bool


def _cut(text: Text) -> Iterator[_Piece]:
    """Cut a long text: encoding one of 100 million characters at once would take gigabytes.

    The cut is behind a single line end, where GPT-2's and BERT's tokens are the same as uncut.
    """
    size = len(text.text)
    first = 0
    while size - first > 2 * CHUNK_CHARACTERS:
        found = _LINE_END.search(text.text, first + CHUNK_CHARACTERS, first + 2 * CHUNK_CHARACTERS)
        last = found.end() if found else first + CHUNK_CHARACTERS
        yield _Piece(_part(text, first, last), first == 0, is_last=False)
        first = last
    yield _Piece(_part(text, first, size) if first else text, first == 0, is_last=True)


def _part(text: Text, first: int, last: int) -> Text:
    starts = None if text.sentences is None else starts_between(text.sentences, first, last)
    return Text(text.text[first:last], text.where, starts)


def _encode_chunk(
    pieces: Sequence[_Piece], tokenizer: "PreTrainedTokenizerBase", marks: Marks
) -> Stream:
    encoded = tokenizer(
        [piece.text.text for piece in pieces],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=marks.sentences or marks.words,
        split_special_tokens=True,
        verbose=False,
    )
    num_spelled = 0
    ids: list[int] = []
    starts: list[int] = []
    places: list[Where] = []
    sentences: list[Flags] = []
    words: list[Flags] = []
    for index, piece in enumerate(pieces):
        own = cast("list[list[int]]", encoded["input_ids"])[index]
        if not own and piece.is_first and piece.is_last and not marks.keep_empty:
            continue
        num_spelled += not marks.special.isdisjoint(own)
        before = marks.before if piece.is_first else ()
        after = marks.after if piece.is_last else ()
        if piece.is_first:
            starts.append(len(ids))
            places.append(piece.text.where)
        ids += (*before, *own, *after)
        if marks.sentences:
            flags = _framed(_sentence_flags(piece.text, encoded, index), before, after, False)
            if before:  # they belong to the first sentence
                flags[0], flags[len(before)] = True, False
            sentences.append(flags)
        if marks.words:
            flags = _word_flags(piece.text, encoded, index)
            words.append(_framed(flags, before, after, True))
    return Stream(
        np.array(ids, dtype=np.int32),
        np.array([*starts, len(ids)], dtype=np.int64),
        np.concatenate([np.zeros(0, np.bool_), *sentences]) if marks.sentences else None,
        np.concatenate([np.zeros(0, np.bool_), *words]) if marks.words else None,
        num_spelled,
        places,
    )


def _framed(flags: Flags, before: Sequence[int], after: Sequence[int], value: bool) -> Flags:
    return np.concatenate([np.full(len(before), value), flags, np.full(len(after), value)])


def _sentence_flags(text: Text, encoded: "BatchEncoding", index: int) -> Flags:
    ends = _offsets(encoded, index)[:, 1]
    starts = sentence_starts(text.text) if text.sentences is None else text.sentences
    # The first token that reaches beyond a sentence's beginning: " The" begins with the blank.
    tokens = np.searchsorted(ends, np.array(starts), side="right")
    flags = np.zeros(len(ends), dtype=np.bool_)
    flags[tokens[tokens < len(ends)]] = True
    flags[:1] = True
    return flags


def _word_flags(text: Text, encoded: "BatchEncoding", index: int) -> Flags:
    ids = [-1 if id_ is None else id_ for id_ in encoded.word_ids(index)]
    return word_starts(text.text, _offsets(encoded, index), np.array(ids))


def _offsets(encoded: "BatchEncoding", index: int) -> NDArray[np.int64]:
    """(T, 2) first character of each token, and the one behind its last."""
    offsets = cast("list[list[tuple[int, int]]]", encoded["offset_mapping"])[index]
    return np.array(offsets, dtype=np.int64).reshape(-1, 2)
