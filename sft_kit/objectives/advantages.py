"""From scores to rewards, advantages and returns. Shapes: B batch, C completion tokens.

A mask is True where a token counts. What stands in the other slots, NaN included, never matters,
and results are 0 there. Nothing here carries a gradient.
"""

import math
from dataclasses import asdict, dataclass
from typing import Literal

import torch


def penalised_rewards(
    final_scores: torch.Tensor,
    kl: torch.Tensor,
    mask: torch.Tensor,
    kl_coefficient: float,
    token_scores: torch.Tensor | None = None,
) -> torch.Tensor:
    """Reward each token with minus its KL penalty, and the last one with the score as well.

    Args:
        final_scores: (B,) score of each completion.
        kl: (B, C) k1 = logprobs - ref_logprobs, nats. No other estimate will do: no gradient flows
            through a reward, and only for k1 is the missing part zero on average.
        mask: (B, C) bool, True for the tokens of the completion.
        kl_coefficient: Beta, score per nat. 0 leaves `kl` unread.
        token_scores: (B, C) dense scores, added token by token.

    Returns:
        (B, C) float32 in units of the score.

    Source:
        Ziegler et al. 2019 (arXiv 1909.08593), equation 2; on k1, arXiv 2512.21852.
    """
    rewards = torch.zeros(mask.shape, device=mask.device)
    if kl_coefficient:  # 0 times an infinite k1 would be NaN
        rewards = torch.where(mask, -kl_coefficient * kl.detach().float(), 0.0)
    if token_scores is not None:
        rewards = rewards + torch.where(mask, token_scores.detach().float(), 0.0)
    num_left = mask.long().flip(1).cumsum(1).flip(1)
    is_last = mask & num_left.eq(1)
    return rewards + torch.where(is_last, final_scores.detach().float()[:, None], 0.0)


def whiten_rewards(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Divide rewards by their standard deviation around their mean, which stays as it is.

    Args:
        rewards: (B, C).
        mask: (B, C) bool.

    Returns:
        (B, C) float32. Rewards that are all equal stay as they are.

    Source:
        openai/lm-human-preferences, `lm_human_preferences/utils/core.py`, `whiten`.
    """
    mean, variance = _masked_moments(rewards, mask)
    std = variance.sqrt() if variance > 0 else torch.ones_like(variance)
    return torch.where(mask, (rewards.detach().float() - mean) / std + mean, 0.0)


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation, and the returns that the values should predict.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1}. After the last
    token both V and A are 0: an episode ends there, stopped or not. Tokens inside a completion that
    the policy did not produce are skipped: t + 1 is the next token that counts.

    Args:
        rewards: (B, C).
        values: (B, C), of the state before each token.
        mask: (B, C) bool.
        gamma: Discount per token.
        gae_lambda: 0 trusts the values after one token, 1 the rewards to the end.

    Returns:
        Advantages, not normalised, and returns = advantages + values; (B, C) float32 each.

    Source:
        Schulman et al. 2016 (arXiv 1506.02438), equations 11 and 16.
    """
    rewards = torch.where(mask, rewards.detach().float(), 0.0)
    values = torch.where(mask, values.detach().float(), 0.0)
    advantages = torch.zeros_like(values)
    next_value, next_advantage = torch.zeros_like(values[:, :1]), torch.zeros_like(values[:, :1])
    for t in reversed(range(mask.shape[1])):
        at = slice(t, t + 1)
        delta = rewards[:, at] + gamma * next_value - values[:, at]
        advantage = delta + gamma * gae_lambda * next_advantage
        advantages[:, at] = torch.where(mask[:, at], advantage, 0.0)
        next_value = torch.where(mask[:, at], values[:, at], next_value)
        next_advantage = torch.where(mask[:, at], advantage, next_advantage)
    return advantages, advantages + values


def scale_advantages(
    advantages: torch.Tensor,
    mask: torch.Tensor,
    mode: Literal["std", "mean", "none"],
    epsilon: float = 1e-4,
) -> torch.Tensor:
    """Shift and scale advantages over all tokens that count.

    Give it the whole rollout of all processes: moments of a part would depend on how it is split.

    Args:
        advantages: (B, C).
        mask: (B, C) bool.
        mode: `std` is (A - mean) / sqrt(variance + epsilon^2), `mean` subtracts the mean only.
        epsilon: Floor of the standard deviation, in units of the advantage.

    Returns:
        (B, C) float32.
    """
    advantages = advantages.detach().float()
    if mode != "none":
        mean, variance = _masked_moments(advantages, mask)
        advantages = advantages - mean
        if mode == "std":
            advantages = advantages / (variance + epsilon**2).sqrt()
    return torch.where(mask, advantages, 0.0)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """Tell how well values predict returns: 1 - Var(returns - values) / Var(returns).

    Args:
        values: (B, C).
        returns: (B, C).
        mask: (B, C) bool.

    Returns:
        1 at best, 0 for a constant, below 0 for worse; 0 where all returns are equal.
    """
    _, variance = _masked_moments(returns, mask)
    if not variance > 0:
        return 0.0
    _, left = _masked_moments(returns.float() - values.float(), mask)
    return float(1 - left / variance)


@dataclass
class RunningMoments:
    """Mean and variance of all numbers seen so far, in double precision.

    Attributes:
        count: Numbers seen.
        mean: Their mean.
        m2: Sum of their squared distances from it.
    """

    count: float = 0.0
    mean: float = 0.0
    m2: float = 0.0

    def update(self, values: torch.Tensor) -> None:
        """Take in more numbers; the result does not depend on how they are split over calls.

        Args:
            values: Of any shape, all of them count. Give the numbers of all processes.

        Source:
            Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", eq. 2.1.
        """
        if values.numel() == 0:
            return
        variance, mean = torch.var_mean(values.detach().cpu().double(), correction=0)
        added, total = values.numel(), self.count + values.numel()
        shift = float(mean) - self.mean
        self.m2 += float(variance) * added + shift**2 * self.count * added / total
        self.mean += shift * added / total
        self.count = total

    @property
    def std(self) -> float:
        """Standard deviation, biased; 1 where there is none to divide by."""
        return (math.sqrt(self.m2 / self.count) if self.count else 0.0) or 1.0

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps: `RunningMoments(**state)` goes on from there."""
        return asdict(self)


def _masked_moments(values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of what counts: exactly 0 of equal numbers, 0 and 0 of nothing."""
    chosen = values.detach().float()[mask]
    if chosen.numel() == 0:
        return chosen.new_zeros(()), chosen.new_zeros(())
    variance, mean = torch.var_mean(chosen, correction=0)
    return mean, variance
