"""A mask from a seed drops its share, everywhere alike, and is the same when drawn again."""

import pytest
import torch

from sft_kit.models.seeded_dropout import (
    clear_numbers,
    draw_mask,
    draw_seed,
    keep_numbers,
    pack_mask,
    unpack_mask,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dropout_drops_its_share_and_the_same_numbers_for_the_same_seed(dtype):
    rows = torch.ones(500, 400, dtype=dtype)
    keep = draw_mask(rows, 11, 0.1)
    dropped = keep_numbers(rows, keep)
    assert set(dropped.unique().tolist()) == {0.0, 1.0}
    share = 1 - float(dropped.double().mean())
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / rows.numel()) ** 0.5
    by_row = 1 - dropped.double().mean(1)  # no stripes: rows and columns differ as drawn
    by_column = 1 - dropped.double().mean(0)
    assert abs(float(by_row.std()) - (0.09 / 400) ** 0.5) < 0.003
    assert abs(float(by_column.std()) - (0.09 / 500) ** 0.5) < 0.003
    assert torch.equal(dropped, keep_numbers(rows, draw_mask(rows, 11, 0.1)))
    assert not torch.equal(dropped, keep_numbers(rows, draw_mask(rows, 12, 0.1)))


def test_without_a_seed_everything_stays():
    rows = torch.randn(3, 4)
    assert draw_mask(rows, None, 0.5) is None
    assert keep_numbers(rows, None) is rows


def test_what_stays_is_left_as_it_is_also_where_memory_is_not_in_order():
    rows = torch.randn(40, 30).t()
    kept = keep_numbers(rows, draw_mask(rows, 5, 0.5))
    assert bool((kept.eq(rows) | kept.eq(0)).all())
    assert 0.4 < float(kept.eq(0).float().mean()) < 0.6


def test_numbers_cleared_in_place_are_those_that_do_not_stay():
    rows = torch.randn(40, 30, dtype=torch.bfloat16)
    kept = keep_numbers(rows, draw_mask(rows, 5, 0.5))
    assert clear_numbers(rows, draw_mask(rows, 5, 0.5)) is rows
    assert torch.equal(rows, kept)
    assert clear_numbers(rows, None) is rows


@pytest.mark.parametrize("probability", [1e-6, 1 / 32768, 0.999, 1.0])
def test_shares_at_the_ends_are_right_too(probability):
    rows = torch.ones(1024, 1024, dtype=torch.bfloat16)
    share = float(keep_numbers(rows, draw_mask(rows, 5, probability)).eq(0).float().mean())
    assert abs(share - probability) < 4e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(4, 8), (5, 7), (1, 1), (33, 3)])
def test_a_mask_is_the_same_after_it_was_packed_into_bits(dtype, shape):
    rows = torch.ones(shape, dtype=dtype)
    keep = draw_mask(rows, 3, 0.4)
    bits = pack_mask(keep)
    assert bits.numel() == -(-rows.numel() // 16)
    assert torch.equal(unpack_mask(bits, rows), keep)
    assert unpack_mask(pack_mask(None), rows) is None


def test_seeds_follow_the_random_state_of_torch():
    torch.manual_seed(1)
    first = [draw_seed() for _ in range(3)]
    torch.manual_seed(1)
    assert [draw_seed() for _ in range(3)] == first
    assert len(set(first)) == 3
