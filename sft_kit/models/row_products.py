"""Rows times a weight, cut where the library would leave cores idle."""

import torch

_IDLE_ROWS = range(768, 1536)
_IDLE_COLUMNS = 1024
"""oneDNN 3.10 gives so small a 16-bit product on a CPU with AMX to one of two threads (measured:
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
    is_cut = (
        rows.device.type == "cpu"
        and rows.element_size() == 2
        and len(rows) in _IDLE_ROWS
        and weight.shape[1] <= _IDLE_COLUMNS
    )
    if not is_cut:
        return rows @ weight if bias is None else torch.addmm(bias, rows, weight)
    result = rows.new_empty(len(rows), weight.shape[1])
    for half, place in zip(rows.chunk(2), result.chunk(2), strict=True):
        if bias is None:
            torch.mm(half, weight, out=place)
        else:
            torch.addmm(bias, half, weight, out=place)
    return result
