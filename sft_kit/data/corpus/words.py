"""Where words begin: in English by the tokenizer's word ids, in Chinese by jieba's segments."""

import warnings
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sft_kit.data.corpus.rows import Flags

if TYPE_CHECKING:
    from jieba import Tokenizer as Segmenter

_HANZI = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


def word_starts(text: str, offsets: NDArray[np.int64], word_ids: NDArray[np.int64]) -> Flags:
    """Flag the tokens that begin a word.

    A hanzi begins a word where jieba begins a segment: a token in the middle of a segment belongs
    to the word before it, however the tokenizer cuts. Everything else goes by the word ids.

    Args:
        text: The text that was encoded.
        offsets: (T, 2) first character of each token, and the one behind its last.
        word_ids: (T,) number of the piece that the tokenizer cut the text into first.

    Returns:
        (T,) True where a word begins; the first is True.
    """
    starts = np.ones(len(offsets), dtype=np.bool_)
    if not len(offsets):
        return starts
    starts[1:] = word_ids[1:] != word_ids[:-1]
    characters = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    is_hanzi = _is_hanzi(characters)
    if not is_hanzi.any():
        return starts
    # A token such as " 今" holds the blank before its word.
    first = np.minimum(offsets[:, 0], len(text) - 1)
    is_blank = (characters[first] == ord(" ")) & (offsets[:, 1] - offsets[:, 0] > 1)
    first = first + is_blank
    hanzi = is_hanzi[first]
    starts[1:] |= hanzi[:-1]
    starts[hanzi] = _segment_starts(text)[first[hanzi]]
    # Bytes of one character may be in several tokens, which belong together.
    starts[1:] &= first[1:] >= offsets[:-1, 1]
    starts[0] = True
    return starts


def _is_hanzi(characters: NDArray[np.uint32]) -> Flags:
    found = np.zeros(len(characters), dtype=np.bool_)
    for low, high in _HANZI:
        found |= (characters >= low) & (characters <= high)
    return found


def _segment_starts(text: str) -> Flags:
    """(characters,) True where one of jieba's segments begins."""
    starts = np.zeros(len(text), dtype=np.bool_)
    place = 0
    for segment in _segmenter().cut(text):
        starts[place] = True
        place += len(segment)
    return starts


@cache
def _segmenter() -> "Segmenter":
    """Jieba with the dictionary that comes with it.

    Left alone, it would load a dump from the shared temporary folder that anyone may have put
    there, and tell of it on the error stream.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its source has escapes that Python warns of
        import jieba

        segmenter = jieba.Tokenizer()
        segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter
