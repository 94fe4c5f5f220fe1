"""Dropout whose mask is drawn anew from a seed when it is needed again, instead of being kept.

torch draws one random number for each mask bit, which on a CPU costs as much as a matrix product.
"""

import torch

_LANES = 4
"""Random numbers of 15 bits that are cut from one of 64."""
_RANGE = 1 << 15


def draw_seed() -> int:
    """Draw from torch's random state, as dropout does."""
    return int(torch.randint(1 << 62, ()).item())


def draw_mask(rows: torch.Tensor, seed: int | None, probability: float) -> torch.Tensor | None:
    """Draw which numbers stay; the same ones for the same seed.

    Returns:
        Like `rows`, integers of as many bits: all ones where a number stays, else zeros. None:
        all stay. Fifteen random bits decide, so that the share is right to 1/32768.
    """
    if seed is None:
        return None
    size, device = rows.element_size(), rows.device
    count = rows.numel() if size == 2 else 2 * rows.numel()
    generator = torch.Generator(device).manual_seed(seed)
    drawn = torch.empty(-(-count // _LANES), dtype=torch.int64, device=device)
    lanes = drawn.random_(generator=generator).view(torch.int16)[:count]
    limit = round(probability * _RANGE)
    drops = lanes.bitwise_and_(_RANGE - 1).sub_(limit).bitwise_right_shift_(15)
    if size == 2:
        return drops.bitwise_not_().view(rows.shape)
    first = drops.view(*rows.shape, 2)[..., 0]
    return first.to(torch.int32 if size == 4 else torch.int64).bitwise_not_()


def keep_numbers(rows: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    """Set to 0 what does not stay, bit by bit: a third of what a multiplication by bool costs."""
    if keep is None:
        return rows
    return rows.contiguous().view(keep.dtype).bitwise_and(keep).view(rows.dtype)
