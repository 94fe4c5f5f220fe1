"""Rows that are corrupted as they are asked for: anew in each epoch, the same in any process."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

from sft_kit.data.corpus.encoding import Stream
from sft_kit.data.corpus.rows import Corrupted, Row
from sft_kit.data.corruption.draws import row_seed

Corrupt: TypeAlias = Callable[[Row, int], Corrupted]
"""A pure function of a row and a seed below 2**64."""


class Rows(Protocol):
    """Rows of tokens by number, and the stream they are cut from."""

    @property
    def stream(self) -> Stream:
        """Tokens of all texts."""

    def __len__(self) -> int:
        """Number of rows."""

    def row(self, index: int, seed: int) -> Row:
        """Make a row, a pure function of its number and a seed below 2**64.

        Args:
            index: From 0.
            seed: Decides what is drawn, such as the second part of a pair.
        """

    def place(self, index: int) -> str:
        """Say where a row's tokens stood in the data; empty where it is not known."""


class CorruptedRows:
    """Rows as a map-style data set; each comes out anew in each epoch.

    Args:
        rows: Rows of tokens.
        corrupt: Hides or changes tokens.
        seed: Seed of the run.
        fixed: Corrupt alike in every epoch, for evaluation.

    Attributes:
        epoch: Set by who trains, before each epoch.
    """

    def __init__(self, rows: Rows, corrupt: Corrupt, *, seed: int, fixed: bool = False) -> None:
        self.rows = rows
        self.corrupt = corrupt
        self.seed = seed
        self.fixed = fixed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Corrupted:
        if not 0 <= index < len(self.rows):
            raise IndexError(index)
        seed = row_seed(self.seed, 0 if self.fixed else self.epoch, index)
        return self.corrupt(self.rows.row(index, pairing_seed(seed)), seed)

    def place(self, index: int) -> str:
        """Say where a row's tokens stood in the data; empty where it is not known."""
        return self.rows.place(index)


def pairing_seed(seed: int) -> int:
    """Seed of what is drawn for a row before it is corrupted, apart from `seed` itself.

    Args:
        seed: Seed of its corruption.
    """
    return row_seed(seed, 0, 0)
