"""Rows cut from a stream of tokens. R rows, N tokens of a stream, T tokens of a row."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sft_kit.data.corpus.encoding import Stream
from sft_kit.data.corpus.rows import Flags, Ids, Row, Vocabulary

Bounds: TypeAlias = NDArray[np.int64]
"""(R, 2) first token of each row in the stream, and the one behind its last."""


@dataclass(frozen=True, slots=True)
class TokenizedTexts:
    """Rows cut from a stream of tokens.

    Attributes:
        stream: Tokens of all texts.
        bounds: (R, 2) first token of each row, and the one behind its last.
        is_special: (vocabulary size,) True for special tokens.
        before: Token ids in front of every row.
        after: Token ids behind every row.
    """

    stream: Stream
    bounds: Bounds
    is_special: Flags
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.bounds)

    def row(self, index: int, seed: int) -> Row:
        """Cut a row from the stream.

        Args:
            index: From 0.
            seed: Not used: nothing is drawn.
        """
        del seed
        first, last = self.bounds[index].tolist()
        inner = slice(len(self.before), len(self.before) + last - first)
        ids = np.empty(inner.stop + len(self.after), dtype=np.int64)
        ids[: inner.start] = self.before
        ids[inner] = self.stream.ids[first:last]
        ids[inner.stop :] = self.after
        documents = self._documents(first, last, inner, len(ids))
        words = np.arange(len(ids)) if self.stream.words is None else self._words(first, last, ids)
        sentences = documents - 1
        if self.stream.sentences is not None:
            begins = np.zeros(len(ids), dtype=np.bool_)
            begins[inner] = self.stream.sentences[first:last]
            begins[: inner.start + 1] = False
            sentences = np.cumsum(begins)
        return Row(ids, self.is_special[ids], words, sentences, documents)

    def place(self, index: int) -> str:
        """Say where a row's tokens stood in the data; empty where it is not known."""
        first, last = self.bounds[index].tolist()
        return self.stream.place(first, last)

    def _documents(self, first: int, last: int, inner: slice, size: int) -> Ids:
        starts = self.stream.starts
        begin, end = np.searchsorted(starts, (first + 1, last))
        if begin == end:
            return np.ones(size, dtype=np.int64)
        begins = np.zeros(size, dtype=np.int64)
        begins[0] = 1
        begins[starts[begin:end] - first + inner.start] = 1
        return np.cumsum(begins)

    def _words(self, first: int, last: int, ids: Ids) -> Ids:
        begins = np.ones(len(ids), dtype=np.bool_)
        if self.stream.words is not None:
            begins[len(self.before) : len(self.before) + last - first] = self.stream.words[
                first:last
            ]
        return number_words(begins, self.is_special[ids])


def number_words(begins: Flags, is_special: Flags) -> Ids:
    """Number the words of a row from 0; a special token is a word of its own.

    Args:
        begins: (T,) True where a word begins.
        is_special: (T,) True where a special token stands.
    """
    begins = begins | is_special
    begins[0] = True
    begins[1:] |= is_special[:-1]
    return np.cumsum(begins) - 1


def special_flags(vocabulary: Vocabulary) -> Flags:
    """(vocabulary size,) True for the tokens that are special."""
    flags = np.ones(vocabulary.size, dtype=np.bool_)
    flags[vocabulary.ordinary] = False
    return flags


def plain_bounds(stream: Stream, size: int) -> tuple[Bounds, int]:
    """Cut a stream into rows of `size` tokens.

    Returns:
        The full rows, and the place of the rest.
    """
    firsts = np.arange(0, len(stream.ids) - size + 1, size, dtype=np.int64)
    return np.stack([firsts, firsts + size], axis=1), len(firsts) * size


def framed_bounds(stream: Stream, size: int) -> tuple[Bounds, int]:
    """Cut a stream whose texts end in an end token into rows that get one of their own behind.

    A row neither begins with such a token nor ends with it; it is one token shorter where it would.

    Returns:
        The full rows, and the place of the rest.
    """
    num_tokens = len(stream.ids)
    is_end = np.zeros(num_tokens + 1, dtype=np.bool_)
    is_end[stream.starts[1:] - 1] = True
    bounds: list[tuple[int, int]] = []
    first = 0
    while first + size <= num_tokens:
        if is_end[first]:
            first += 1
            continue
        last = first + size
        bounds.append((first, last - int(is_end[last - 1])))
        first = last
    first += int(is_end[first])
    return np.array(bounds, dtype=np.int64).reshape(-1, 2), min(first, num_tokens)


def text_bounds(stream: Stream, size: int, num_after: int, smallest: int) -> Bounds:
    """Cut each text into rows of its own.

    Args:
        stream: Tokens of texts.
        size: Tokens per row.
        num_after: Tokens behind each text in the stream that don't belong to its rows.
        smallest: Tokens below which the last part of a text is left out.
    """
    bounds = [
        (first, min(first + size, end - num_after))
        for start, end in zip(stream.starts.tolist(), stream.starts[1:].tolist(), strict=False)
        for first in range(start, end - num_after - smallest + 1, size)
    ]
    return np.array(bounds, dtype=np.int64).reshape(-1, 2)
