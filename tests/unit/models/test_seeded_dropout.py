"""A mask from a seed drops its share, everywhere alike, and is the same when drawn again."""

import itertools

import pytest
import torch

from sft_kit.models import seeded_dropout
from sft_kit.models.seeded_dropout import (
    clear_numbers,
    draw_bits,
    draw_seed,
    keep_numbers,
    read_mask,
)


def draw_mask(rows, seed, probability):
    """Draw which numbers of rows stay, and spread it over them."""
    return read_mask(draw_bits(rows, seed, probability), rows)


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


@pytest.mark.parametrize("probability", [1e-6, 1 / 4096, 0.999, 1.0])
def test_shares_at_the_ends_are_right_too(probability):
    rows = torch.ones(1024, 1024, dtype=torch.bfloat16)
    share = float(keep_numbers(rows, draw_mask(rows, 5, probability)).eq(0).float().mean())
    assert abs(share - probability) < 4e-5 + 0.05 * min(probability, 1 - probability)


@pytest.mark.parametrize("shape", [(4, 8), (5, 7), (1, 1), (33, 3)])
def test_a_mask_takes_one_bit_for_each_number_and_is_the_same_in_every_type(shape):
    rows = torch.ones(shape)
    bits = draw_bits(rows, 3, 0.4)
    assert bits.numel() == -(-rows.numel() // 8)
    # Written out: bit b of byte m is that of number b * M + m.
    expected = [
        bool(int(bits[place % len(bits)]) >> place // len(bits) & 1)
        for place in range(rows.numel())
    ]
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        keep = read_mask(bits, rows.to(dtype))
        assert keep.shape == shape
        assert keep.flatten().eq(-1).tolist() == expected
        assert keep.flatten().eq(0).tolist() == [not stays for stays in expected]
    assert read_mask(None, rows) is None


@pytest.mark.parametrize("probability", [0.01, 0.05, 0.1, 0.5, 0.9])
def test_the_eight_numbers_of_a_draw_go_each_by_itself(probability):
    """Over all 65,536 draws: how often each goes, and any two of them together."""
    table = seeded_dropout._table(probability, torch.device("cpu"))
    assert len(table) == 1 << 16
    goes = [(table >> bit & 1).eq(0) for bit in range(8)]
    for one in goes:
        assert abs(float(one.double().mean()) - probability) < 5e-4
    for one, other in itertools.combinations(goes, 2):
        share = float((one & other).double().mean())
        # Independent but for rounding to 1 of 65,536, a few times over.
        assert abs(share - probability**2) < 0.01 * probability**2 + 5 / 65_536


def test_seeds_follow_the_random_state_of_torch():
    torch.manual_seed(1)
    first = [draw_seed() for _ in range(3)]
    torch.manual_seed(1)
    assert [draw_seed() for _ in range(3)] == first
    assert len(set(first)) == 3
