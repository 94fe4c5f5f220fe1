"""Losses of PPO. Shapes: B batch, C completion tokens, V vocabulary.

A mask is True where a token counts. What stands in the other slots, NaN included, never matters,
and no gradient goes there. Losses are sums over the mask divided by a number that the caller gives:
that of the whole minibatch, all micro-batches and processes, so that accumulating gradients over
unequal micro-batches equals one large batch.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch

_LARGEST_LOG_RATIO = 20.0
"""Where exp is cut off: far beyond any clip range, far below what overflows."""


class PolicyLoss(NamedTuple):
    """Loss of the policy, and what there is to watch.

    Attributes:
        loss: Scalar with gradient.
        ratio: (B, C) new to old probability, 1 outside the mask.
        clipped_low: (B, C) bool, the ratio is held at 1 - clip_low: no gradient.
        clipped_high: (B, C) bool, the same at 1 + clip_high. `dual_clip` is not counted.
        approx_kl_sum: Scalar, sum over the mask of (ratio - 1) - log ratio, nats: the divergence
            of the new policy from the one that drew the tokens.
    """

    loss: torch.Tensor
    ratio: torch.Tensor
    clipped_low: torch.Tensor
    clipped_high: torch.Tensor
    approx_kl_sum: torch.Tensor


class ValueLoss(NamedTuple):
    """Loss of the values.

    Attributes:
        loss: Scalar with gradient.
        clipped: (B, C) bool, the value is held at the edge of its range: no gradient.
    """

    loss: torch.Tensor
    clipped: torch.Tensor


def completion_mask(
    tokens: torch.Tensor, stop_token_ids: Collection[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find where each completion ends.

    No token is ever compared with the pad token, so that it may be a stop token or drawn as any
    other.

    Args:
        tokens: (B, C) int64, whatever follows the first stop token.
        stop_token_ids: Every token that ends a completion.

    Returns:
        (B, C) bool, True up to and including the first stop token, or throughout without one; and
        (B,) bool, True where there is one.
    """
    stops = torch.tensor(sorted(stop_token_ids), dtype=tokens.dtype, device=tokens.device)
    is_stop = torch.isin(tokens, stops)
    num_before = is_stop.cumsum(1) - is_stop.long()
    return num_before.eq(0), is_stop.any(dim=1)


def selected_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probabilities of given tokens, `logit / tau - logsumexp(logits / tau)`.

    Args:
        logits: (..., V), of the position before each token.
        tokens: (...) int64.
        temperature: Tau that the tokens were drawn with.

    Returns:
        (...) float32, nats.
    """
    scaled = logits.float() / temperature
    selected = scaled.gather(-1, tokens[..., None]).squeeze(-1)
    return selected - scaled.logsumexp(dim=-1)


def entropy(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Entropy of the distribution that tokens are drawn from.

    Args:
        logits: (..., V); -inf for what can't be drawn.
        temperature: Tau that the tokens are drawn with.

    Returns:
        (...) float32, nats.
    """
    logprobs = (logits.float() / temperature).log_softmax(dim=-1)
    # 0 * log 0 counts as 0, in the gradient too.
    return -(logprobs.exp() * logprobs.masked_fill(logprobs.isneginf(), 0.0)).sum(dim=-1)


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    num_tokens: torch.Tensor | float,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    weights: torch.Tensor | None = None,
) -> PolicyLoss:
    """Clipped surrogate objective: sum of max(-A ratio, -A clip(ratio, 1 - low, 1 + high)).

    Args:
        logprobs: (B, C) under the policy as it is now, nats.
        old_logprobs: (B, C) under the policy that drew the tokens, nats.
        advantages: (B, C).
        mask: (B, C) bool, True for the tokens to learn from.
        num_tokens: What the sum is divided by; below 1 counts as 1.
        clip_low: The ratio of new to old probability is clipped at 1 minus this.
        clip_high: And at 1 plus this.
        dual_clip: Bound of the ratio where the advantage is negative, above 1; None for none.
        weights: (B, C) factors of the terms: `sampler_weights`, `completion_weights`, or both.

    Returns:
        The loss in units of the advantage, and what there is to watch.

    Source:
        Schulman et al. 2017 (arXiv 1707.06347), equation 7; clip_low apart from clip_high, Yu et
        al. 2025 (arXiv 2503.14476); dual clip, Ye et al. 2020 (arXiv 1912.09729).
    """
    log_ratio = torch.where(mask, logprobs.float() - old_logprobs.detach().float(), 0.0)
    log_ratio = log_ratio.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    ratio = log_ratio.exp()
    advantages = torch.where(mask, advantages.detach().float(), 0.0)
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    terms = torch.maximum(free, held)
    if dual_clip is not None:
        bounded = torch.minimum(terms, -advantages * dual_clip)
        terms = torch.where(advantages < 0, bounded, terms)
    if weights is not None:
        terms = terms * torch.where(mask, weights.detach().float(), 0.0)
    with torch.no_grad():
        is_held = held > free
        # expm1, because ratio - 1 cancels where the policy has hardly moved.
        approx_kl = torch.expm1(log_ratio) - log_ratio
    return PolicyLoss(
        loss=_share(terms, mask, num_tokens),
        ratio=ratio.detach(),
        clipped_low=is_held & (ratio.detach() < 1 - clip_low),
        clipped_high=is_held & (ratio.detach() > 1 + clip_high),
        approx_kl_sum=approx_kl.sum(),
    )


def completion_weights(mask: torch.Tensor) -> torch.Tensor:
    """Weigh tokens so that every completion counts the same, however long.

    With `num_tokens` = the number of completions, `policy_loss` is then the mean over tokens and
    then over completions.

    Args:
        mask: (B, C) bool.

    Returns:
        (B, C) float32: one over the tokens of the row; 0 outside the mask.
    """
    return mask.float() / mask.sum(dim=1, keepdim=True).clamp(min=1)


def sampler_weights(
    logprobs: torch.Tensor, sampled_logprobs: torch.Tensor, cap: float
) -> torch.Tensor:
    """Correct for a sampler whose probabilities differ from those in training.

    Args:
        logprobs: (B, C) under the policy that drew the tokens, as training computes them.
        sampled_logprobs: (B, C) as the sampler saw them.
        cap: Largest weight.

    Returns:
        (B, C) float32 without gradient, min(p_training / p_sampler, cap).

    Source:
        Ionides 2008, "Truncated Importance Sampling".
    """
    return (logprobs.detach().float() - sampled_logprobs.detach().float()).exp().clamp(max=cap)


def value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    *,
    num_tokens: torch.Tensor | float,
    clip: float | None = None,
) -> ValueLoss:
    """Half the squared error of the values, or of the values held near the old ones if larger.

    Args:
        values: (B, C) as they are now.
        old_values: (B, C) as the rollout had them.
        returns: (B, C).
        mask: (B, C) bool.
        num_tokens: What the sum is divided by; below 1 counts as 1.
        clip: How far a value may move from the old one, in units of the returns; None for no limit.

    Returns:
        The loss in squared units of the returns, and where the limit holds.

    Source:
        openai/baselines, `ppo2/model.py`; Ziegler et al. 2019 (arXiv 1909.08593), their code.
    """
    values = torch.where(mask, values.float(), 0.0)
    returns = torch.where(mask, returns.detach().float(), 0.0)
    errors = (values - returns).square()
    if clip is None:
        return ValueLoss(_share(errors / 2, mask, num_tokens), torch.zeros_like(mask))
    old_values = torch.where(mask, old_values.detach().float(), 0.0)
    held = torch.clamp(values, min=old_values - clip, max=old_values + clip)
    held_errors = (held - returns).square()
    loss = _share(torch.maximum(errors, held_errors) / 2, mask, num_tokens)
    return ValueLoss(loss, (held_errors > errors).detach())


def kl_loss(
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    mask: torch.Tensor,
    *,
    num_tokens: torch.Tensor | float,
) -> torch.Tensor:
    """Divergence from the reference policy as a term of the loss: k2, half the squared log-ratio.

    On tokens that the policy drew, its gradient is that of the divergence on average; the gradient
    of k1 would be zero on average.

    Args:
        logprobs: (B, C) under the policy as it is now, nats.
        ref_logprobs: (B, C) under the reference policy, nats.
        mask: (B, C) bool.
        num_tokens: What the sum is divided by; below 1 counts as 1.

    Returns:
        Scalar float32 with gradient, nats.

    Source:
        Schulman 2020, "Approximating KL Divergence", k2; arXiv 2512.21852.
    """
    log_ratio = torch.where(mask, logprobs.float() - ref_logprobs.detach().float(), 0.0)
    return _share(log_ratio.square() / 2, mask, num_tokens)


def _share(
    terms: torch.Tensor, mask: torch.Tensor, num_tokens: torch.Tensor | float
) -> torch.Tensor:
    """Sum over the mask by the number; 0 with a graph where nothing counts."""
    if isinstance(num_tokens, torch.Tensor):
        return torch.where(mask, terms, 0.0).sum() / num_tokens.clamp(min=1)
    return torch.where(mask, terms, 0.0).sum() / max(num_tokens, 1)
