"""Rows times a weight, cut where the library would leave cores idle."""

from collections.abc import Iterator

import torch

_LEAST_ROWS, _MOST_ROWS = 768, 1535
_IDLE_COLUMNS = 1024
"""oneDNN 3.12 gives so small a 16-bit product on a CPU with AMX to one of two threads (measured:
1,100 GFLOP/s, and 2,000 in two halves); without AMX halves cost nothing."""


def multiply(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute `rows @ weight + bias`.

    Args:
        rows: (T, I).
        weight: (I, O).
        bias: (O,), of the type of the others.

    Returns:
        (T, O).
    """
    result = rows.new_empty(len(rows), weight.shape[1])
    for some, place in _pieces(rows, weight, result):
        if bias is None:
            torch.mm(some, weight, out=place)
        else:
            torch.addmm(bias, some, weight, out=place)
    return result


def add_product(start: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Add `rows @ weight` to `start` (T, O) in place; shapes as in `multiply`."""
    for some, place in _pieces(rows, weight, start):
        place.addmm_(some, weight)
    return start


def _pieces(
    rows: torch.Tensor, weight: torch.Tensor, result: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Give rows and the place of their results, all at once or half of them at a time."""
    is_cut = (
        rows.device.type == "cpu"
        and rows.element_size() == 2
        and _LEAST_ROWS <= len(rows) <= _MOST_ROWS
        and weight.shape[1] <= _IDLE_COLUMNS
    )
    count = 2 if is_cut else 1
    yield from zip(rows.chunk(count), result.chunk(count), strict=True)
