import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical

from sft_kit.objectives.policy import (
    completion_mask,
    completion_weights,
    entropy,
    kl_loss,
    policy_loss,
    sampler_weights,
    selected_logprobs,
    value_loss,
)

GARBAGE = [math.nan, 1e9, -math.inf]
LENGTHS = [1, 5, 3, 8]
CLIP = {"clip_low": 0.2, "clip_high": 0.3}


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.arange(8)[None] < torch.tensor(LENGTHS)[:, None]
    mask[3, 2] = False
    return mask


@pytest.fixture
def batch(mask) -> dict[str, torch.Tensor]:
    """Log-probabilities so far apart that the ratio leaves any clip range on either side."""
    names = ("new", "old", "advantages", "values", "old_values", "returns", "weights")
    batch = {name: torch.randn(mask.shape) for name in names}
    batch["new"] = batch["old"] + torch.randn(mask.shape)
    return batch


def spoil(tensor: torch.Tensor, mask: torch.Tensor, garbage: float) -> torch.Tensor:
    return tensor.masked_fill(~mask, garbage).requires_grad_()


def all_masked() -> torch.Tensor:
    return torch.zeros(4, 8, dtype=torch.bool)


# --- where a completion ends ---------------------------------------------------------------------


def test_mask_ends_with_the_first_stop_token():
    tokens = torch.tensor(
        [
            [5, 6, 2, 7, 2],  # what follows the first stop token does not count, a second one too
            [2, 5, 5, 5, 5],  # stop token first
            [5, 6, 7, 8, 9],  # none
            [5, 6, 7, 8, 3],  # another stop token, last
            [0, 0, 0, 0, 2],  # tokens that elsewhere may be padding
        ]
    )
    mask, stopped = completion_mask(tokens, [3, 2])
    assert mask.sum(dim=1).tolist() == [3, 1, 5, 5, 5]
    assert bool((mask.int().diff(dim=1) <= 0).all())
    assert stopped.tolist() == [True, True, False, True, True]
    assert mask.dtype == stopped.dtype == torch.bool


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=4),
    st.sets(st.integers(0, 4), max_size=3),
)
def test_mask_is_what_a_loop_over_the_tokens_finds(rows, stop_token_ids):
    mask, stopped = completion_mask(torch.tensor(rows), stop_token_ids)
    for row, found, has_stop in zip(rows, mask.tolist(), stopped.tolist(), strict=True):
        places = [place for place, token in enumerate(row) if token in stop_token_ids]
        length = places[0] + 1 if places else len(row)
        assert found == [True] * length + [False] * (len(row) - length)
        assert has_stop == bool(places)


# --- distributions -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
def test_logprobs_and_entropy_are_those_of_the_tempered_distribution(temperature):
    logits, tokens = torch.randn(3, 4, 11) * 5, torch.randint(11, (3, 4))
    expected = Categorical(logits=logits.double() / temperature)
    found = selected_logprobs(logits, tokens, temperature)
    torch.testing.assert_close(found.double(), expected.log_prob(tokens), rtol=1e-5, atol=1e-5)
    found = entropy(logits, temperature)
    torch.testing.assert_close(found.double(), expected.entropy(), rtol=1e-5, atol=1e-5)


def test_half_precision_logits_are_reduced_in_float32():
    logits = (torch.randn(2, 3, 500) * 4).bfloat16()
    tokens = torch.randint(500, (2, 3))
    expected = Categorical(logits=logits.double())
    found = selected_logprobs(logits, tokens)
    assert found.dtype == entropy(logits).dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.log_prob(tokens), rtol=1e-5, atol=1e-5)


def test_tokens_that_cannot_be_drawn_add_nothing_to_the_entropy():
    logits = torch.tensor([[0.0, 1.0, 0.5, -math.inf]], requires_grad=True)
    shorter = logits.detach()[:, :3].clone().requires_grad_()
    found, expected = entropy(logits), entropy(shorter)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits.grad[:, :3], shorter.grad)
    assert logits.grad[0, 3].item() == 0.0


# --- policy loss ---------------------------------------------------------------------------------


def naive_policy_loss(new, batch, mask, num_tokens, dual_clip=None, weights=None) -> torch.Tensor:
    """Token by token in double precision, each case of the objective written out."""
    total = new.sum() * 0
    for row, column in mask.nonzero().tolist():
        ratio = (new[row, column] - batch["old"][row, column].double()).exp()
        advantage = float(batch["advantages"][row, column])
        if advantage >= 0:
            gain = advantage * (ratio if ratio <= 1.3 else 1.3)
        else:
            gain = advantage * (ratio if ratio >= 0.8 else 0.8)
            if dual_clip is not None and ratio > dual_clip:
                gain = advantage * dual_clip
        total = total - gain * (1.0 if weights is None else float(weights[row, column]))
    return total / num_tokens


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_policy_loss_and_gradient_are_the_naive_ones(batch, mask, dual_clip, weighted, garbage):
    weights = batch["weights"].abs() if weighted else None
    new = batch["new"].double().requires_grad_()
    expected = naive_policy_loss(new, batch, mask, 29, dual_clip, weights)
    (gradient,) = torch.autograd.grad(expected, new)
    logprobs = spoil(batch["new"], mask, garbage)
    found = policy_loss(
        logprobs,
        spoil(batch["old"], mask, garbage),
        spoil(batch["advantages"], mask, garbage),
        mask,
        num_tokens=torch.tensor(29),
        dual_clip=dual_clip,
        weights=None if weights is None else spoil(weights, mask, garbage),
        **CLIP,
    )
    torch.testing.assert_close(found.loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    found.loss.backward()
    torch.testing.assert_close(logprobs.grad.double(), gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "low", "high"),
    [
        (1.5, 2.0, -2.6, False, True),
        (0.5, 2.0, -1.0, False, False),
        (1.5, -2.0, 3.0, False, False),
        (0.5, -2.0, 1.6, True, False),
        (1.1, 2.0, -2.2, False, False),
        (0.9, -2.0, 1.8, False, False),
    ],
)
def test_the_pessimistic_side_of_the_clip_counts(ratio, advantage, loss, low, high):
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    found = policy_loss(
        logprobs,
        torch.zeros(1, 1),
        torch.tensor([[advantage]]),
        torch.tensor([[True]]),
        num_tokens=1,
        **CLIP,
    )
    assert found.loss.item() == pytest.approx(loss, rel=1e-6)
    assert (found.clipped_low.item(), found.clipped_high.item()) == (low, high)
    found.loss.backward()
    expected = 0.0 if low or high else -advantage * ratio
    assert logprobs.grad.item() == pytest.approx(expected, rel=1e-6)


def test_dual_clip_bounds_the_loss_of_negative_advantages_only():
    def loss(advantage: float) -> float:
        return policy_loss(
            torch.full((1, 1), math.log(10.0)),
            torch.zeros(1, 1),
            torch.tensor([[advantage]]),
            torch.tensor([[True]]),
            num_tokens=1,
            dual_clip=3.0,
            **CLIP,
        ).loss.item()

    assert loss(-2.0) == pytest.approx(6.0)
    assert loss(2.0) == pytest.approx(-2.6)


def test_what_there_is_to_watch_is_counted_over_the_mask(batch, mask):
    found = policy_loss(
        spoil(batch["new"], mask, math.nan),
        spoil(batch["old"], mask, math.nan),
        batch["advantages"],
        mask,
        num_tokens=16,
        **CLIP,
    )
    gaps = (batch["new"].double() - batch["old"].double())[mask]
    kl = math.fsum(math.exp(gap) - 1 - gap for gap in gaps.tolist())
    assert found.approx_kl_sum.item() == pytest.approx(kl, rel=1e-5)
    torch.testing.assert_close(found.ratio[mask].double(), gaps.exp(), rtol=1e-5, atol=0)
    assert bool((found.ratio[~mask] == 1).all())
    positive = batch["advantages"][mask] > 0
    assert torch.equal(found.clipped_high[mask], (gaps > math.log(1.3)) & positive)
    assert torch.equal(found.clipped_low[mask], (gaps < math.log(0.8)) & ~positive)
    assert not bool((found.clipped_low | found.clipped_high)[~mask].any())
    watched = (found.ratio, found.clipped_low, found.clipped_high, found.approx_kl_sum)
    assert not any(tensor.requires_grad for tensor in watched)


def test_policy_that_has_not_moved_has_ratio_one_and_the_plain_policy_gradient(batch, mask):
    logprobs = batch["old"].clone().requires_grad_()
    found = policy_loss(logprobs, batch["old"], batch["advantages"], mask, num_tokens=16, **CLIP)
    assert bool((found.ratio == 1).all())
    assert found.approx_kl_sum.item() == 0.0
    found.loss.backward()
    expected = torch.where(mask, -batch["advantages"] / 16, 0.0)
    torch.testing.assert_close(logprobs.grad, expected)


def test_absurd_log_ratios_stay_finite():
    logprobs = torch.tensor([[500.0, -500.0]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    found = policy_loss(logprobs, torch.zeros(1, 2), -torch.ones(1, 2), mask, num_tokens=2, **CLIP)
    found.loss.backward()
    assert bool(torch.isfinite(logprobs.grad).all())
    assert found.loss.item() == pytest.approx((math.exp(20) + 0.8) / 2, rel=1e-5)


def test_only_what_is_learnt_gets_a_gradient(batch, mask):
    new, old, advantages, values, old_values, returns, weights = (
        tensor.requires_grad_() for tensor in batch.values()
    )
    policy = policy_loss(new, old, advantages, mask, num_tokens=1, weights=weights, **CLIP)
    value = value_loss(values, old_values, returns, mask, num_tokens=1, clip=0.4)
    (policy.loss + value.loss + kl_loss(new, old, mask, num_tokens=1)).backward()
    assert {name for name, tensor in batch.items() if tensor.grad is not None} == {"new", "values"}


def test_losses_of_nothing_are_zero_and_have_a_graph(batch):
    nan = torch.full((4, 8), math.nan, requires_grad=True)
    policy = policy_loss(nan, nan, nan, all_masked(), num_tokens=0, weights=nan, **CLIP)
    empty = {"mask": all_masked(), "num_tokens": torch.tensor(0)}
    for loss in (
        policy.loss,
        value_loss(nan, nan, nan, **empty).loss,
        value_loss(nan, nan, nan, clip=0.2, **empty).loss,
        kl_loss(nan, nan, **empty),
    ):
        nan.grad = None
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(nan.grad, torch.zeros(4, 8))


def test_micro_batches_sum_to_the_whole_minibatch(batch, mask):
    def loss(rows: slice) -> torch.Tensor:
        found = policy_loss(
            batch["new"][rows],
            batch["old"][rows],
            batch["advantages"][rows],
            mask[rows],
            num_tokens=mask.sum(),
            **CLIP,
        )
        return found.loss

    torch.testing.assert_close(loss(slice(0, 1)) + loss(slice(1, 4)), loss(slice(0, 4)))


# --- weights -------------------------------------------------------------------------------------


def test_completion_weights_make_a_mean_over_tokens_and_then_completions(batch, mask):
    found = policy_loss(
        batch["new"],
        batch["old"],
        batch["advantages"],
        mask,
        num_tokens=4,
        weights=completion_weights(mask),
        **CLIP,
    )
    new = batch["new"].double()
    expected = 0.0
    for row in range(4):
        alone = mask & (torch.arange(4) == row)[:, None]
        expected += naive_policy_loss(new, batch, alone, int(alone.sum())).item() / 4
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)


def test_completion_without_tokens_weighs_nothing():
    weights = completion_weights(torch.tensor([[True, True], [False, False]]))
    assert weights.tolist() == [[0.5, 0.5], [0.0, 0.0]]


def test_sampler_weights_are_capped_probability_ratios():
    trained = torch.tensor([[0.2, 0.9, 0.5]]).log().requires_grad_()
    weights = sampler_weights(trained, torch.tensor([[0.4, 0.1, 0.5]]).log(), 2.0)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 2.0, 1.0]]))
    assert not weights.requires_grad


# --- value loss ----------------------------------------------------------------------------------


def naive_value_loss(values, batch, mask, num_tokens, clip=None) -> torch.Tensor:
    """Token by token in double precision."""
    total = values.sum() * 0
    for row, column in mask.nonzero().tolist():
        value, target = values[row, column], float(batch["returns"][row, column])
        error = (value - target) ** 2
        if clip is not None:
            old = float(batch["old_values"][row, column])
            if value > old + clip:
                error = max(error, error.new_tensor((old + clip - target) ** 2))
            elif value < old - clip:
                error = max(error, error.new_tensor((old - clip - target) ** 2))
        total = total + 0.5 * error
    return total / num_tokens


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_value_loss_and_gradient_are_the_naive_ones(batch, mask, clip, garbage):
    exact = batch["values"].double().requires_grad_()
    expected = naive_value_loss(exact, batch, mask, 29, clip)
    (gradient,) = torch.autograd.grad(expected, exact)
    values = spoil(batch["values"], mask, garbage)
    found = value_loss(
        values,
        spoil(batch["old_values"], mask, garbage),
        spoil(batch["returns"], mask, garbage),
        mask,
        num_tokens=29,
        clip=clip,
    )
    torch.testing.assert_close(found.loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    found.loss.backward()
    torch.testing.assert_close(values.grad.double(), gradient, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.clipped, (gradient == 0) & mask)
    assert bool(found.clipped.any()) == (clip is not None)


@pytest.mark.parametrize(
    ("value", "loss", "clipped"),
    [
        (1.5, 0.5 * 0.8**2, True),  # went past the return: 0.5 off, held at 0.2 it is 0.8 off
        (2.5, 0.5 * 1.5**2, False),  # further off than the held value
        (0.1, 0.5 * 0.9**2, False),
        (-1.0, 0.5 * 2.0**2, False),
        (0.9, 0.5 * 0.8**2, True),  # came too near to the return at once
    ],
)
def test_the_larger_of_free_and_held_value_error_counts(value, loss, clipped):
    one = torch.ones(1, 1)
    found = value_loss(one * value, one * 0, one, one.bool(), num_tokens=1, clip=0.2)
    assert found.loss.item() == pytest.approx(loss, rel=1e-6)
    assert found.clipped.item() is clipped


# --- divergence as a loss ------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", GARBAGE)
def test_kl_loss_is_half_the_squared_log_ratio_and_pulls_to_the_reference(batch, mask, garbage):
    logprobs = spoil(batch["new"], mask, garbage)
    found = kl_loss(logprobs, spoil(batch["old"], mask, garbage), mask, num_tokens=29)
    gap = torch.where(mask, batch["new"].double() - batch["old"].double(), 0.0)
    assert found.item() == pytest.approx(gap.square().sum().item() / 58, rel=1e-5)
    found.backward()
    torch.testing.assert_close(logprobs.grad.double(), gap / 29, rtol=1e-5, atol=1e-6)
