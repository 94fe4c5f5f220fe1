"""Packing against the original's outputs, numpy and integers written out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sft_kit.errors import CheckpointError
from sft_kit.models.chatglm.packing import (
    Bits,
    check_bits,
    dequantize,
    pack,
    pack_int4,
    packed_width,
    quantize_rows,
    unpack_int4,
)

BITS: tuple[Bits, ...] = (4, 8)


@pytest.fixture(scope="module")
def vectors(chatglm_fixtures: Path) -> dict[str, torch.Tensor]:
    return load_file(chatglm_fixtures / "quant_vectors.safetensors")


def test_integers_and_scales_are_the_originals_bit_for_bit(vectors):
    for bits, integers, scale in ((4, "q", "scale"), (8, "q8", "scale8")):
        found = quantize_rows(vectors["weight_fp16"], bits)
        assert torch.equal(found[0], vectors[integers])
        assert torch.equal(found[1], vectors[scale])


def test_packed_bytes_are_the_originals_bit_for_bit(vectors):
    assert torch.equal(pack_int4(vectors["q"]), vectors["packed"])
    assert torch.equal(unpack_int4(vectors["packed"]), vectors["q"])
    packed, scale = pack(vectors["weight_fp16"], 4)
    assert torch.equal(packed, vectors["packed"])
    assert torch.equal(scale, vectors["scale"])


def test_dequantized_weights_are_the_originals_bit_for_bit(vectors):
    scale = vectors["scale"].float()
    whole = dequantize(vectors["packed"], scale, 4, torch.float32)
    assert torch.equal(whole, vectors["dequant_fp32"])
    half = dequantize(vectors["packed"], scale, 4, torch.float16)
    assert torch.equal(half, vectors["dequant_fp16"])
    wide = dequantize(vectors["q8"], vectors["scale8"].float(), 8, torch.float32)
    assert torch.equal(wide, vectors["dequant8_fp32"])


def test_the_even_column_is_the_high_nibble():
    packed = pack_int4(torch.tensor([[1, 2, -1, 7, -7, -8]], dtype=torch.int8))
    assert [byte & 0xFF for byte in packed[0].tolist()] == [0x12, 0xF7, 0x98]


@given(st.lists(st.integers(-8, 7), min_size=2, max_size=64).filter(lambda q: len(q) % 2 == 0))
@settings(max_examples=60, deadline=None)
def test_unpacking_undoes_packing(integers):
    row = torch.tensor([integers], dtype=torch.int8)
    assert torch.equal(unpack_int4(pack_int4(row)), row)


@pytest.mark.parametrize("bits", BITS)
def test_halves_round_to_even(bits):
    largest = 2 ** (bits - 1) - 1
    row = torch.tensor([[largest, 0.5, 1.5, 2.5, -0.5, -1.5]], dtype=torch.float16)
    integers, scale = quantize_rows(row, bits)
    assert scale.tolist() == [1.0]
    assert integers.tolist() == [[largest, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize("bits", BITS)
def test_integers_are_those_of_numpy_in_the_same_dtype(bits):
    weight = torch.randn(64, 48).half()
    values = weight.numpy()
    scale = np.abs(values).max(axis=1) / np.float16(2 ** (bits - 1) - 1)
    integers = np.rint(values / scale[:, None]).astype(np.int8)
    found = quantize_rows(weight, bits)
    assert np.array_equal(found[0].numpy(), integers)
    assert np.array_equal(found[1].numpy(), scale)
    assert found[1].dtype == torch.float16


@pytest.mark.parametrize("bits", BITS)
def test_a_row_of_zeros_stays_zeros(bits):
    packed, scale = pack(torch.zeros(2, 6, dtype=torch.float16), bits)
    assert packed.count_nonzero() == 0
    assert scale.count_nonzero() == 0


@pytest.mark.parametrize("bits", BITS)
def test_rows_of_the_smallest_numbers_keep_their_sign(bits):
    # 10 * 2**-24 / 7 rounds to 2**-24, which would make the integer 10 and wrap to -6.
    smallest = 2.0**-24
    row = torch.tensor([[10 * smallest, -10 * smallest, 200 * smallest, 0.0]]).half()
    weights = dequantize(*_in_float32(pack(row[:, :2], bits)), bits, torch.float32)
    assert weights[0, 0] >= 0
    assert weights[0, 1] <= 0
    integers, _ = quantize_rows(row, bits)
    assert integers.abs().max() <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_block_is_that_part_of_the_whole(bits, dtype):
    packed, scale = _in_float32(pack(torch.randn(11, 14), bits))
    whole = dequantize(packed, scale, bits, torch.float64)
    rows, columns = slice(3, 9), slice(4, 10)
    block = dequantize(packed, scale, bits, dtype, rows=rows, columns=columns)
    assert block.dtype == dtype
    # A 7-bit integer times a 24-bit scale may need more than float32's 24 bits, so float32 first.
    product = whole[rows, columns]
    expected = product if dtype == torch.float64 else product.float().to(dtype)
    assert torch.equal(block, expected)


@pytest.mark.parametrize("bits", BITS)
def test_the_buffer_is_overwritten_and_returned(bits):
    packed, scale = _in_float32(pack(torch.randn(5, 8), bits))
    buffer = torch.full((5, 8), torch.nan)
    result = dequantize(packed, scale, bits, torch.float32, out=buffer)
    assert result.data_ptr() == buffer.data_ptr()
    assert torch.equal(buffer, dequantize(packed, scale, bits, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_many_chunks_are_those_of_the_plain_formula(dtype):
    # 300 x 2050 is more than two chunks, the last one ragged.
    integers = torch.randint(-7, 8, (300, 2050), dtype=torch.int8)
    scale = torch.rand(300) / 50
    weights = dequantize(pack_int4(integers), scale, 4, dtype)
    assert torch.equal(weights, (integers.float() * scale[:, None]).to(dtype))


@pytest.mark.parametrize("bits", BITS)
def test_rounding_is_off_by_half_a_scale_at_most(bits):
    weight = torch.randn(32, 64, dtype=torch.float64)
    packed, scale = pack(weight, bits)
    error = (dequantize(packed, scale, bits, torch.float64) - weight).abs()
    assert (error <= scale[:, None] * (0.5 + 1e-9)).all()
    assert error.max() > scale.min() * 0.4  # the bound is not slack


def test_rows_can_be_cut_before_or_after_packing():
    weight = torch.randn(24, 16).half()
    packed, scale = pack(weight, 4)
    for rows in (slice(0, 16), slice(16, 20), slice(20, 24)):
        part = pack(weight[rows], 4)
        assert torch.equal(part[0], packed[rows])
        assert torch.equal(part[1], scale[rows])


def test_an_odd_row_is_refused_for_int4_and_welcome_for_int8():
    assert packed_width(7, 8) == 7
    with pytest.raises(CheckpointError, match="found 7 input features; int4 packs two to a byte"):
        pack(torch.randn(2, 7), 4)


def test_other_widths_are_refused():
    assert [check_bits(bits) for bits in (4, 8)] == [4, 8]
    with pytest.raises(CheckpointError, match="found 3; accepts 4 and 8"):
        check_bits(3, "config.json")


def _in_float32(packed: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return packed[0], packed[1].float()
