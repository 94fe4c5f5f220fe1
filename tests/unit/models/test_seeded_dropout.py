"""A mask from a seed drops its share, everywhere alike, and is the same when drawn again."""

import pytest
import torch

from sft_kit.models.seeded_dropout import draw_mask, draw_seed, keep_numbers


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


def test_seeds_follow_the_random_state_of_torch():
    torch.manual_seed(1)
    first = [draw_seed() for _ in range(3)]
    torch.manual_seed(1)
    assert [draw_seed() for _ in range(3)] == first
    assert len(set(first)) == 3
