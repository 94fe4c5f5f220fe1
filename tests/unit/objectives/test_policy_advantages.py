import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_kit.objectives.advantages import (
    RunningMoments,
    explained_variance,
    gae,
    penalised_rewards,
    scale_advantages,
    whiten_rewards,
)

GARBAGE = [math.nan, 1e9, -math.inf]


def ragged(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


def spoil(tensor: torch.Tensor, mask: torch.Tensor, garbage: float) -> torch.Tensor:
    return tensor.masked_fill(~mask, garbage)


@pytest.fixture
def mask() -> torch.Tensor:
    """Rows of one token, of some, of all, and one without the tokens in its middle."""
    mask = ragged([1, 4, 7, 2, 6], 7)
    mask[4, 2:4] = False
    return mask


@pytest.fixture
def rewards(mask) -> torch.Tensor:
    return torch.randn(mask.shape)


@pytest.fixture
def values(mask) -> torch.Tensor:
    return torch.randn(mask.shape)


def double_sum(rewards, values, mask, gamma, gae_lambda) -> torch.Tensor:
    """A_t as the sum of all later deltas, each from its definition, in double precision."""
    result = torch.zeros(mask.shape, dtype=torch.float64)
    for row, places in enumerate(mask):
        at = [int(place) for place in places.nonzero()]
        r = [float(rewards[row, t]) for t in at]
        v = [float(values[row, t]) for t in at] + [0.0]
        for i, t in enumerate(at):
            result[row, t] = math.fsum(
                (gamma * gae_lambda) ** (j - i) * (r[j] + gamma * v[j + 1] - v[j])
                for j in range(i, len(at))
            )
    return result


# --- advantages and returns ----------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.7), (1.0, 0.0), (0.5, 1.0)])
def test_advantages_are_the_double_sum_of_later_errors(mask, rewards, values, gamma, gae_lambda):
    advantages, returns = gae(rewards, values, mask, gamma, gae_lambda)
    expected = double_sum(rewards, values, mask, gamma, gae_lambda)
    torch.testing.assert_close(advantages.double(), expected, rtol=1e-5, atol=1e-5)
    expected = torch.where(mask, expected + values.double(), 0.0)
    torch.testing.assert_close(returns.double(), expected, rtol=1e-5, atol=1e-5)
    assert advantages.dtype == returns.dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_advantages_are_the_double_sum_for_any_mask(data):
    rows, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    bits = st.lists(st.booleans(), min_size=rows * width, max_size=rows * width)
    numbers = st.lists(
        st.floats(-8, 8, width=32), min_size=rows * width, max_size=rows * width
    ).map(lambda drawn: torch.tensor(drawn).view(rows, width))
    mask = torch.tensor(data.draw(bits)).view(rows, width)
    rewards, values = data.draw(numbers), data.draw(numbers)
    found, _ = gae(spoil(rewards, mask, math.nan), spoil(values, mask, math.nan), mask, 0.97, 0.9)
    expected = double_sum(rewards, values, mask, 0.97, 0.9)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_lambda_one_without_discount_is_reward_to_go_minus_value(mask, rewards, values):
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    counted = np.where(mask, rewards.double(), 0.0)
    to_go = np.where(mask, counted[:, ::-1].cumsum(axis=1)[:, ::-1], 0.0)
    np.testing.assert_allclose(returns, to_go, atol=1e-5)
    np.testing.assert_allclose(advantages, np.where(mask, to_go - values.numpy(), 0), atol=1e-5)


def test_lambda_zero_is_the_error_of_one_step():
    rewards, values = torch.randn(2, 5), torch.randn(2, 5)
    advantages, _ = gae(rewards, values, torch.ones(2, 5, dtype=torch.bool), 0.9, 0.0)
    expected = rewards[:, :-1] + 0.9 * values[:, 1:] - values[:, :-1]
    torch.testing.assert_close(advantages[:, :-1], expected)


def test_nothing_is_expected_after_the_last_token(rewards, values):
    lengths = [1, 4, 7, 2, 6]
    mask = ragged(lengths, 7)
    advantages, returns = gae(rewards, values, mask)
    for row, length in enumerate(lengths):
        last = length - 1
        torch.testing.assert_close(returns[row, last], rewards[row, last])
        torch.testing.assert_close(
            advantages[row, last], rewards[row, last] - values[row, last], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_stands_in_masked_slots_changes_no_advantage(mask, rewards, values, garbage):
    clean = gae(rewards, values, mask)
    dirty = gae(spoil(rewards, mask, garbage), spoil(values, mask, garbage), mask)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other)
        assert bool((other[~mask] == 0).all())


def test_more_pad_columns_change_no_advantage(mask, rewards, values):
    def pad(tensor: torch.Tensor) -> torch.Tensor:
        junk = torch.full((5, 3), math.nan) if tensor.is_floating_point() else torch.zeros(5, 3)
        return torch.cat([tensor, junk.to(tensor.dtype)], dim=1)

    for narrow, wide in zip(
        gae(rewards, values, mask), gae(pad(rewards), pad(values), pad(mask)), strict=True
    ):
        assert torch.equal(narrow, wide[:, :7])
        assert bool((wide[:, 7:] == 0).all())


def test_tokens_the_policy_did_not_produce_are_as_if_left_out(rewards, values):
    mask = ragged([7, 6, 5, 7, 7], 7)
    mask[:, [1, 3]] = False
    kept = [0, 2, 4, 5, 6]
    whole = gae(rewards, values, mask, 0.9, 0.8)
    compact = gae(rewards[:, kept], values[:, kept], mask[:, kept], 0.9, 0.8)
    for one, other in zip(whole, compact, strict=True):
        assert torch.equal(one[:, kept], other)


# --- rewards -------------------------------------------------------------------------------------


def test_reward_is_minus_the_penalty_and_the_score_at_the_last_token():
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    kl = torch.tensor([[0.5, -1.0, math.nan], [0.0, 2.0, 4.0], [1.0, math.nan, math.nan]])
    found = penalised_rewards(torch.tensor([3.0, -1.0, 7.0]), kl, mask, 0.1)
    expected = torch.tensor([[-0.05, 3.1, 0.0], [0.0, -0.2, -1.4], [6.9, 0.0, 0.0]])
    torch.testing.assert_close(found, expected)


def test_rewards_of_an_episode_sum_to_score_minus_beta_times_kl(mask):
    kl, scores, dense = torch.randn(mask.shape), torch.randn(5), torch.randn(mask.shape)
    found = penalised_rewards(scores, kl, mask, 0.3, dense)
    for row in range(5):
        parts = [float(dense[row, t] - 0.3 * kl[row, t]) for t in mask[row].nonzero()]
        assert float(found[row].sum()) == pytest.approx(float(scores[row]) + math.fsum(parts), 1e-4)
    assert bool((found[~mask] == 0).all())


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_stands_in_masked_slots_changes_no_reward(mask, garbage):
    kl, dense, scores = torch.randn(mask.shape), torch.randn(mask.shape), torch.randn(5)
    clean = penalised_rewards(scores, kl, mask, 0.3, dense)
    dirty = penalised_rewards(
        scores, spoil(kl, mask, garbage), mask, 0.3, spoil(dense, mask, garbage)
    )
    assert torch.equal(clean, dirty)


def test_without_a_penalty_an_infinite_divergence_does_no_harm():
    mask = torch.ones(1, 2, dtype=torch.bool)
    found = penalised_rewards(torch.tensor([2.0]), torch.full((1, 2), math.inf), mask, 0.0)
    assert found.tolist() == [[0.0, 2.0]]


def test_completion_without_tokens_gets_no_reward_whatever_its_score():
    mask = torch.tensor([[False, False], [True, False]])
    found = penalised_rewards(torch.tensor([math.nan, 1.0]), torch.zeros(2, 2), mask, 0.1)
    assert found.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_no_gradient_flows_through_a_reward():
    kl = torch.randn(2, 3, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    rewards = penalised_rewards(torch.randn(2), kl, mask, 0.1)
    assert not rewards.requires_grad
    assert not any(part.requires_grad for part in gae(rewards, kl, mask))


# --- scaling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", GARBAGE)
def test_advantages_are_scaled_by_the_moments_of_what_counts(mask, garbage):
    advantages = torch.randn(mask.shape) * 5 + 2
    counted = advantages.double().numpy()[mask.numpy()]
    dirty = spoil(advantages, mask, garbage)
    std = np.sqrt(counted.var() + 0.5**2)
    for mode, expected in [
        ("std", (counted - counted.mean()) / std),
        ("mean", counted - counted.mean()),
        ("none", counted),
    ]:
        found = scale_advantages(dirty, mask, mode, 0.5)
        np.testing.assert_allclose(found[mask], expected, rtol=1e-5, atol=1e-6)
        assert bool((found[~mask] == 0).all())


@pytest.mark.parametrize("mode", ["std", "mean", "none"])
def test_scaling_one_token_or_none_stays_finite(mode):
    advantages = torch.full((1, 2), 3.0)
    for mask in (torch.tensor([[True, False]]), torch.zeros(1, 2, dtype=torch.bool)):
        found = scale_advantages(advantages, mask, mode)
        assert found.tolist() == [[3.0 if mode == "none" and bool(mask[0, 0]) else 0.0, 0.0]]


def test_whitened_rewards_have_spread_one_and_their_old_mean(mask):
    rewards = torch.randn(mask.shape) * 7 + 3
    found = whiten_rewards(spoil(rewards, mask, math.nan), mask)
    before, after = rewards[mask].double().numpy(), found[mask].double().numpy()
    assert after.mean() == pytest.approx(before.mean(), rel=1e-5)
    np.testing.assert_allclose(
        after - after.mean(), (before - before.mean()) / before.std(), rtol=1e-4, atol=1e-5
    )
    assert bool((found[~mask] == 0).all())


@settings(max_examples=30, deadline=None)
@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 300))
def test_equal_numbers_have_no_spread_to_divide_by(number, count):
    numbers = torch.full((1, count), number)
    mask = torch.ones(1, count, dtype=torch.bool)
    assert torch.equal(whiten_rewards(numbers, mask), numbers)
    assert bool((scale_advantages(numbers, mask, "std") == 0).all())
    assert explained_variance(torch.zeros(1, count), numbers, mask) == 0.0
    moments = RunningMoments()
    for part in numbers.split(7, dim=1):
        moments.update(part)
    assert moments.std == 1.0


# --- explained variance --------------------------------------------------------------------------


def test_explained_variance_is_its_definition_over_what_counts(mask, values):
    returns = values + torch.randn(mask.shape) * 0.5 + 3
    truth, guess = returns[mask].double().numpy(), values[mask].double().numpy()
    expected = 1 - np.var(truth - guess) / np.var(truth)
    found = explained_variance(spoil(values, mask, math.nan), spoil(returns, mask, 1e9), mask)
    assert found == pytest.approx(expected, rel=1e-5)


def test_explained_variance_of_no_token_is_zero():
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    assert explained_variance(torch.rand(2, 2), torch.rand(2, 2), nothing) == 0.0


# --- running moments -----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-1e4, 1e4), max_size=9), min_size=1, max_size=6))
def test_moments_do_not_depend_on_how_the_numbers_are_split(parts):
    moments = RunningMoments()
    for part in parts:
        moments.update(torch.tensor(part, dtype=torch.float64))
        moments = RunningMoments(**moments.state())
    numbers = np.concatenate([np.array(part, dtype=np.float64) for part in parts])
    assert moments.count == numbers.size
    if numbers.size:
        assert moments.mean == pytest.approx(numbers.mean(), rel=1e-9, abs=1e-9)
        expected = numbers.var() * numbers.size
        assert moments.m2 == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_std_of_the_moments_is_biased_and_far_from_zero_still_right():
    numbers = np.random.default_rng(0).normal(1e6, 0.5, 400)
    moments = RunningMoments()
    for part in np.array_split(numbers, 7):
        moments.update(torch.from_numpy(part))
    assert moments.std == pytest.approx(numbers.std(), rel=1e-7)


def test_std_before_anything_was_seen_is_one():
    assert RunningMoments().std == 1.0
