"""What a batch is made of, as far as its cost goes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

Kind = tuple[int, int, int]
"""What a library tells batches apart by: rows, width, and padded tokens."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A micro-batch.

    Attributes:
        lengths: Tokens of each row, padding not included.
        width: Tokens of the longest row with its padding; of the encoder or the decoder, whichever
            is wider.
        padded: Tokens that are computed, decoder included, and padding where it is computed.
        labelled: Tokens or rows that have a label.
        is_flat: Padding is left out.
    """

    lengths: tuple[int, ...]
    width: int
    padded: int
    labelled: int
    is_flat: bool = False

    @property
    def real(self) -> int:
        """Tokens without padding."""
        return sum(self.lengths)

    @property
    def kind(self) -> Kind:
        """What is prepared for once and then kept."""
        if self.is_flat:
            return 1, self.padded, self.padded
        return len(self.lengths), self.width, self.padded


def split(shape: Shape, num_parts: int) -> list[Shape]:
    """Cut a micro-batch into smaller ones, row by row; each is as wide as its longest row."""
    size = max(1, -(-len(shape.lengths) // num_parts))
    starts = range(0, len(shape.lengths), size)
    return [_with_rows(shape, shape.lengths[start : start + size]) for start in starts]


def shorten(shape: Shape, max_length: int) -> Shape:
    """Cut the rows of a micro-batch to a number of tokens."""
    return _with_rows(shape, [min(length, max_length) for length in shape.lengths])


def _with_rows(shape: Shape, lengths: Sequence[int]) -> Shape:
    """Give a shape other rows; padding and labels go with them in proportion."""
    longest = max(max(shape.lengths), 1)
    stretch = max(lengths) / longest
    share = sum(lengths) / max(shape.real, 1)
    by_width = stretch * len(lengths) / len(shape.lengths)
    padded = shape.padded * (share if shape.is_flat else by_width)
    return replace(
        shape,
        lengths=tuple(lengths),
        width=max(1, round(shape.width * stretch)),
        padded=max(1, round(padded)),
        labelled=round(shape.labelled * share),
    )
