"""The order of prompts: every one as often as the others, and a function of the cursor alone."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_kit.training.ppo.order import prompt_batch

BATCH = 8


@pytest.mark.parametrize("num_prompts", [1, BATCH - 1, BATCH, BATCH + 1, 4 * BATCH])
def test_every_prompt_is_seen_equally_often_or_once_more(num_prompts: int):
    seen: Counter[int] = Counter(dict.fromkeys(range(num_prompts), 0))
    for cursor in range(0, 11 * BATCH, BATCH):
        seen.update(prompt_batch(num_prompts, cursor, BATCH, seed=3))
        assert max(seen.values()) - min(seen.values()) <= 1
    assert sum(seen.values()) == 11 * BATCH
    assert set(seen) == set(range(num_prompts))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.lists(st.integers(0, 40), max_size=6), st.integers(0, 2**40))
def test_batches_of_any_sizes_are_pieces_of_one_stream(num_prompts, counts, seed):
    pieces: list[int] = []
    for count in counts:
        pieces += prompt_batch(num_prompts, len(pieces), count, seed)
    assert pieces == prompt_batch(num_prompts, 0, sum(counts), seed)
    for start in range(0, len(pieces) - num_prompts + 1, num_prompts):
        assert sorted(pieces[start : start + num_prompts]) == list(range(num_prompts))


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    orders = [
        tuple(prompt_batch(50, epoch * 50, 50, seed)) for seed in range(5) for epoch in range(5)
    ]
    assert len(set(orders)) == 25


def test_a_prompt_stands_at_every_place_of_an_epoch_equally_often():
    num_prompts, num_epochs = 5, 4000
    stream = prompt_batch(num_prompts, 0, num_prompts * num_epochs, seed=0)
    places = Counter((index % num_prompts, prompt) for index, prompt in enumerate(stream))
    expected = num_epochs / num_prompts
    chi_square = sum((count - expected) ** 2 / expected for count in places.values())
    assert len(places) == num_prompts**2
    assert chi_square < 45  # 16 degrees of freedom, p = 1.4e-4
