"""Random numbers that depend on a seed and nothing else."""

from typing import Any, cast

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray

_MASK = 2**64 - 1


def row_seed(seed: int, epoch: int, row: int) -> int:
    """Mix the seed of a run, an epoch and the number of a row into one number.

    A row is corrupted anew in each epoch, and alike in whatever batch, process or resumed run it
    comes up.

    Returns:
        A whole number below 2**64.

    Source:
        The finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom
        Number Generators"), over the three numbers in turn.
    """
    state = 0
    for number in (seed, epoch, row):
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


class _Key(ISeedSequence):
    """A seed that is Philox's key as it stands.

    Given as `key=`, numpy 2 draws a seed from the operating system first and does not use it, which
    takes longer than all the rest.
    """

    def __init__(self, seed: int) -> None:
        self._words = np.array([seed, 0], dtype=np.uint64)

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint64) -> NDArray[np.uint64]:
        assert (n_words, dtype) == (2, np.uint64), "what Philox asks for"
        return self._words


def generator_of(seed: int) -> np.random.Generator:
    """Make a generator from a whole number below 2**64.

    Philox takes the seed as its key and needs no warming up: a few microseconds.
    """
    return np.random.Generator(np.random.Philox(cast("Any", _Key(seed))))


def round_at_random(number: float, generator: np.random.Generator) -> int:
    """Round up or down so that the mean of many roundings is the number itself."""
    return int(number + generator.random())
