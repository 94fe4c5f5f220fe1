"""Dropout whose mask is drawn from a seed, cheaply, and kept as one bit for each number.

torch draws one random number for each bit of a mask, which on a CPU costs as much as a matrix
product. Here one of 16 bits draws eight at once, from a table.
"""

from functools import lru_cache

import numpy as np
import torch

_EIGHT = 8
"""Bits of a mask that are drawn together, a byte."""
_RANGE = 1 << 16
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def draw_seed() -> int:
    """Draw from torch's random state, as dropout does."""
    return int(torch.randint(1 << 62, ()).item())


def draw_bits(rows: torch.Tensor, seed: int | None, probability: float) -> torch.Tensor | None:
    """Draw which numbers stay; the same ones for the same seed.

    Args:
        rows: (...), N numbers in all.
        seed: Of `draw_seed`; None: all stay.
        probability: Share that goes; it is right to 0.0005, and in the mean of eight to 0.0001.

    Returns:
        (M,) uint8, M an eighth of N, rounded up; bit b of byte m says whether number b * M + m
        stays. None: all stay.
    """
    if seed is None:
        return None
    count = -(-rows.numel() // _EIGHT)
    return _table(probability, rows.device).index_select(0, _draw(count, seed, rows.device))


@lru_cache(maxsize=8)
def _table(probability: float, device: torch.device) -> torch.Tensor:
    """List the byte that each random number of 16 bits draws: every byte as often as it is likely.

    Rounding the sums, not the shares, lets no error grow. Bytes less likely than 1 in 65,536 (at
    0.05 those with four zeros and more) stand for others of their kind, or not at all.
    """
    ones = np.array([one.bit_count() for one in range(1 << _EIGHT)])
    shares = (1 - probability) ** ones * probability ** (_EIGHT - ones)
    ends = np.rint(np.cumsum(shares) * _RANGE).astype(np.int64)
    table = np.repeat(np.arange(1 << _EIGHT, dtype=np.uint8), np.diff(ends, prepend=0))
    return torch.from_numpy(table).to(device)


def _draw(count: int, seed: int, device: torch.device) -> torch.Tensor:
    """Draw (count,) int32 below 65536; on a CPU by numpy's SFC64, faster than torch's generator."""
    if device.type == "cpu":
        raw = np.random.SFC64(seed).random_raw(-(-count // 4))
        return torch.from_numpy(raw.view(np.uint16)[:count].astype(np.int32))
    generator = torch.Generator(device).manual_seed(seed)
    drawn = torch.empty(count, dtype=torch.int32, device=device)
    return drawn.random_(0, _RANGE, generator=generator)


def read_mask(bits: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor | None:
    """Spread bits into a mask.

    Args:
        bits: Of `draw_bits`.
        rows: What they were drawn for, or anything of its shape, device and size of a number.

    Returns:
        Like `rows`, integers of as many bits: all ones where a number stays, else zeros. None:
        all stay.
    """
    if bits is None:
        return None
    dtype = _INTEGERS[rows.element_size()]
    top = 8 * rows.element_size() - 1
    # Each bit in turn becomes the sign, which the shift back spreads over all of the number.
    up = torch.arange(top, top - _EIGHT, -1, dtype=dtype, device=bits.device)
    keep = (bits.to(dtype) << up[:, None]).bitwise_right_shift_(top)
    return keep.view(-1)[: rows.numel()].view(rows.shape)


def keep_numbers(rows: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Set to 0 what does not stay, bit by bit: a third of what a multiplication by bool costs.

    Args:
        rows: Left as they are.
        keep: Of `read_mask`; overwritten, so that nothing of its size is made a second time.

    Returns:
        What stays, in the memory of `keep`; without a mask, `rows`.
    """
    if keep is None:
        return rows
    return keep.bitwise_and_(rows.contiguous().view(keep.dtype)).view(rows.dtype)


def clear_numbers(rows: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Set to 0 what does not stay, in contiguous `rows` themselves; the mask can be used again."""
    if keep is not None:
        rows.view(keep.dtype).bitwise_and_(keep)
    return rows
