"""ChatGLM's rowwise integers: quantize, pack two to a byte, and turn them back into weights.

Shapes: O output features (rows), I input features (columns). A row has one scale and no zero point;
a weight is `integer * scale`. 4-bit integers lie in [-7, 7] and are packed along the columns, two
to a byte: the even column is the high nibble, the odd column the low one, both two's complement.
8-bit integers lie in [-127, 127] and take a byte each.

Source: THUDM/chatglm2-6b-int4, quantization.py (`QuantizedLinear`, `W8A16Linear`).
"""

from typing import Literal

import torch
from torch import Tensor

from sft_kit.errors import CheckpointError, Problem

Bits = Literal[4, 8]
"""Width of the integers."""

_NIBBLE = 4
_PACKED_BITS = 4

_CPU_CHUNK = 1 << 18
"""Weights that go through all steps of `dequantize` together: 1 MiB of float32, for the cache.

27392 x 4096 to bfloat16 takes a sixth of the time that it takes in one piece.
"""


def check_bits(bits: object, where: str = "") -> Bits:
    """Return the width of the integers when it is one there is.

    Raises:
        CheckpointError: Neither 4 nor 8.
    """
    if bits != 4 and bits != 8:
        message = f"found {bits!r}; accepts 4 and 8"
        problem = Problem(where, "quantization_config.bits", message, "correct config.json")
        raise CheckpointError("these integers are not known", [problem])
    return bits


def packed_width(in_features: int, bits: Bits) -> int:
    """Bytes that one row of weights takes.

    Raises:
        CheckpointError: 4-bit rows with an odd number of columns can't be packed in pairs.
    """
    if bits != _PACKED_BITS:
        return in_features
    if in_features % 2:
        message = f"found {in_features} input features; int4 packs two to a byte and accepts even"
        problem = Problem("", "in_features", message, "quantize this model to 8 bits")
        raise CheckpointError("this layer can't be packed", [problem])
    return in_features // 2


def quantize_rows(weight: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """Round each row to integers times a scale, all in the weight's own dtype.

    The scale is `max|row| / 7` (127 for 8 bits) and halves round to even. Rows of zeros have scale
    0 and integers 0. The dtype matters: checkpoints were made in float16, and the same weights in
    float32 give other scales and, now and then, other integers.

    Args:
        weight: (O, I), floating.
        bits: Width of the integers.

    Returns:
        The integers, (O, I) int8, and the scales, (O,) in the weight's dtype.

    Source: THUDM/chatglm2-6b-int4, quantization.py (`QuantizedLinear`).
    """
    largest = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1) / largest
    # 0/0 is NaN. A scale among the smallest float16 numbers is too coarse to keep its row in range.
    quotient = torch.nan_to_num(weight / scale[:, None], nan=0.0, posinf=0.0, neginf=0.0)
    return quotient.round_().clamp_(-largest, largest).to(torch.int8), scale


def pack_int4(integers: Tensor) -> Tensor:
    """Pack two 4-bit integers to a byte: even columns high, odd columns low.

    Args:
        integers: (O, I) int8 within [-8, 7], I even.

    Returns:
        (O, I / 2) int8.

    Raises:
        CheckpointError: I is odd.
    """
    packed_width(integers.shape[1], 4)
    return (integers[:, 0::2] << _NIBBLE) | (integers[:, 1::2] & 15)


def unpack_int4(packed: Tensor) -> Tensor:
    """Undo `pack_int4`.

    Args:
        packed: (O, I / 2) int8.

    Returns:
        (O, I) int8 within [-8, 7].
    """
    out = packed.new_empty(packed.shape[0], packed.shape[1] * 2)
    _unpack_into(out, packed)
    return out


def pack(weight: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """Quantize a weight and pack it as checkpoints hold it.

    Args:
        weight: (O, I), floating.
        bits: Width of the integers.

    Returns:
        The packed integers, (O, I / 2 or I) int8, and the scales, (O,) in the weight's dtype.

    Raises:
        CheckpointError: 4-bit rows with an odd number of columns.
    """
    packed_width(weight.shape[1], bits)
    integers, scale = quantize_rows(weight, bits)
    return (pack_int4(integers) if bits == _PACKED_BITS else integers), scale


def dequantize(
    packed: Tensor,
    scale: Tensor,
    bits: Bits,
    dtype: torch.dtype,
    *,
    rows: slice = slice(None),
    columns: slice = slice(None),
    out: Tensor | None = None,
) -> Tensor:
    """Turn packed integers, or a block of them, back into weights.

    The product is taken in float32 (float64 for float64) and rounded once to `dtype`.

    Args:
        packed: (O, I / 2 or I) int8.
        scale: (O,) float32.
        bits: Width of the integers.
        dtype: Of the result.
        rows: Which of the O rows.
        columns: Which of the I columns; for 4 bits it starts and ends at even ones.
        out: Contiguous buffer of the block's shape and of `dtype` that is overwritten and returned.

    Returns:
        (rows, columns) in `dtype`.
    """
    per_byte = 8 // bits
    if columns != slice(None):
        start, stop, _ = columns.indices(per_byte * packed.shape[1])
        columns = slice(start // per_byte, stop // per_byte)
    block, scale = packed[rows, columns], scale[rows, None]
    width = block.shape[1] * per_byte
    if out is None:
        out = torch.empty(block.shape[0], width, dtype=dtype, device=packed.device)
    if packed.device.type != "cpu":
        return _fill(out, block, scale, bits)
    step = max(1, _CPU_CHUNK // width)
    exact = dtype in (torch.float32, torch.float64)
    scratch = None if exact else torch.empty(min(step, block.shape[0]), width)
    for first in range(0, block.shape[0], step):
        chunk = slice(first, first + step)
        target = out[chunk]
        if scratch is None:
            _fill(target, block[chunk], scale[chunk], bits)
        else:
            target.copy_(_fill(scratch[: len(target)], block[chunk], scale[chunk], bits))
    return out


def _fill(out: Tensor, packed: Tensor, scale: Tensor, bits: Bits) -> Tensor:
    if bits == _PACKED_BITS:
        _unpack_into(out, packed)
    else:
        out.copy_(packed)
    return torch.mul(out, scale, out=out)


def _unpack_into(out: Tensor, packed: Tensor) -> None:
    pairs = out.view(*packed.shape, 2)
    pairs[..., 0] = packed >> _NIBBLE
    pairs[..., 1] = (packed << _NIBBLE) >> _NIBBLE
