"""How far a policy is from its reference. Shapes: B batch, C completion tokens."""

from typing import NamedTuple

import torch

_LARGEST_ERROR = 0.2
"""Relative error of the KL divergence beyond which the controller reacts no harder."""


class KlEstimates(NamedTuple):
    """Estimates of KL(policy || reference) from single tokens that the policy drew, in nats.

    Attributes:
        k1: log p - log q. No bias, and negative for about as many tokens as not. The only one that
            may stand in a reward: its average there is the divergence, and so is its gradient.
        k2: k1^2 / 2. Biased, but its gradient is that of the divergence: the one for a loss.
        k3: q / p - 1 - log(q / p). No bias, never negative, for looking at.
    """

    k1: torch.Tensor
    k2: torch.Tensor
    k3: torch.Tensor


def kl_estimates(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> KlEstimates:
    """Estimate the divergence from the reference policy token by token, without any mask.

    Args:
        logprobs: (B, C) of the drawn tokens under the policy, nats.
        ref_logprobs: (B, C) of the same tokens under the reference policy, nats.

    Returns:
        Three float32 tensors of shape (B, C), nats.

    Source:
        Schulman 2020, "Approximating KL Divergence", joschu.net/blog/kl-approx.html.
    """
    k1 = logprobs.float() - ref_logprobs.float()
    # expm1, because exp(-k1) - 1 cancels where the policies nearly agree.
    return KlEstimates(k1, k1.square() / 2, torch.expm1(-k1) + k1)


def adapted_kl_coefficient(
    coefficient: float, kl: float, target: float, num_episodes: int, horizon: int
) -> float:
    """Steer the KL coefficient to a wanted divergence.

    beta * (1 + error * num_episodes / horizon), where the error is kl / target - 1, clipped at -0.2
    and 0.2.

    Args:
        coefficient: Beta of the rollout that was just learnt from.
        kl: Mean over its episodes of the sum over tokens of k1, nats per episode.
        target: Wanted `kl`, above 0.
        num_episodes: Episodes of the rollout, all processes together.
        horizon: Episodes in which the coefficient can change by the error.

    Returns:
        Beta of the next rollout. Not a number if `kl` is not.

    Raises:
        ValueError: The horizon is so short that the coefficient could turn negative.

    Source:
        Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.
    """
    share = num_episodes / horizon
    if share * _LARGEST_ERROR >= 1:
        raise ValueError(
            f"{num_episodes} episodes against a horizon of {horizon} could turn the KL coefficient"
            f" to 0 or below; the horizon must exceed {num_episodes * _LARGEST_ERROR:g} episodes"
        )
    # In this order min and max hand a NaN on, which must not pass for an error of 0.2.
    error = min(max(kl / target - 1, -_LARGEST_ERROR), _LARGEST_ERROR)
    return coefficient * (1 + error * share)
