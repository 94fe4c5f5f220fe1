import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_kit.objectives.advantages import RunningMoments
from sft_kit.objectives.kl import adapted_kl_coefficient, kl_estimates


@pytest.fixture
def distributions() -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a policy and its reference over all tokens."""
    both = torch.randn(2, 9, dtype=torch.float64).log_softmax(dim=1)
    return both[0], both[1]


def test_k1_and_k3_average_to_the_divergence(distributions):
    policy, reference = distributions
    divergence = float((policy.exp() * (policy - reference)).sum())
    estimates = kl_estimates(policy[None], reference[None])
    assert float((policy.exp() * estimates.k1).sum()) == pytest.approx(divergence, rel=1e-5)
    assert float((policy.exp() * estimates.k3).sum()) == pytest.approx(divergence, rel=1e-5)
    assert bool((estimates.k3 >= 0).all())


def test_gradient_of_k2_averages_to_that_of_the_divergence(distributions):
    logits = distributions[0].clone().requires_grad_()
    reference = distributions[1]

    def policy() -> torch.Tensor:
        return logits.log_softmax(dim=0)

    divergence = (policy().exp() * (policy() - reference)).sum()
    (expected,) = torch.autograd.grad(divergence, logits)
    k2 = (policy().detach().exp() * kl_estimates(policy(), reference).k2).sum()
    (found,) = torch.autograd.grad(k2, logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_estimates_of_hand_values():
    estimates = kl_estimates(torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]]))
    assert estimates.k1.item() == pytest.approx(math.log(2))
    assert estimates.k2.item() == pytest.approx(math.log(2) ** 2 / 2)
    assert estimates.k3.item() == pytest.approx(0.5 - 1 + math.log(2))


def test_k3_of_nearly_equal_policies_does_not_cancel():
    gap = 2.0**-12
    found = kl_estimates(torch.tensor([0.0]), torch.tensor([-gap])).k3.item()
    assert found == pytest.approx(gap**2 / 2, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_estimates_are_float32(dtype):
    estimates = kl_estimates(torch.zeros(1, 2, dtype=dtype), torch.ones(1, 2, dtype=dtype))
    assert {estimate.dtype for estimate in estimates} == {torch.float32}


# --- controller ----------------------------------------------------------------------------------

# Divergence in nats per episode, and the error it makes against a target of 6.
SERIES = [
    (6.0, 0.0),
    (6.6, 0.1),
    (7.2, 0.2),
    (90.0, 0.2),
    (5.7, -0.05),
    (0.0, -0.2),
    (-3.0, -0.2),
]


def test_coefficient_over_a_series_is_its_closed_form():
    coefficient = 0.05
    for kl, _ in SERIES:
        coefficient = adapted_kl_coefficient(coefficient, kl, 6.0, 64, 1000)
    expected = 0.05 * math.prod(1 + error * 0.064 for _, error in SERIES)
    assert coefficient == pytest.approx(expected, rel=1e-12)


def test_coefficient_and_moments_go_on_from_a_checkpoint_bit_by_bit():
    def run(coefficient, moments, series):
        for kl, _ in series:
            coefficient = adapted_kl_coefficient(coefficient, kl / moments.std, 6.0, 64, 1000)
            moments.update(torch.tensor([kl, kl / 3, 1.0]))
        return coefficient, moments

    straight = run(0.05, RunningMoments(), SERIES)
    coefficient, moments = run(0.05, RunningMoments(), SERIES[:3])
    saved = json.loads(json.dumps({"beta": coefficient, "moments": moments.state()}))
    resumed = run(saved["beta"], RunningMoments(**saved["moments"]), SERIES[3:])
    assert resumed == straight


@settings(max_examples=40, deadline=None)
@given(st.floats(-1e3, 1e3), st.integers(1, 4999))
def test_coefficient_stays_positive_and_moves_towards_the_target(kl, num_episodes):
    found = adapted_kl_coefficient(0.1, kl, 6.0, num_episodes, 1000)
    assert 0 < found <= 0.1 * (1 + 0.2 * num_episodes / 1000) + 1e-12
    assert (found >= 0.1) if kl >= 6 else (found <= 0.1)


def test_horizon_that_could_turn_the_coefficient_around_is_refused():
    with pytest.raises(ValueError, match=r"64 episodes .* horizon of 12 .* exceed 12\.8"):
        adapted_kl_coefficient(0.1, 6.0, 6.0, 64, 12)


def test_divergence_that_is_no_number_does_not_pass_for_a_large_one():
    assert math.isnan(adapted_kl_coefficient(0.1, math.nan, 6.0, 64, 1000))
