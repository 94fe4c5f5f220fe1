"""What a rollout is: episodes, and the tensors that PPO derives from them.

Shapes: B episodes of the whole rollout, C completion tokens of the longest one. Every tensor lies
on the CPU, float32 unless said, and every process holds all of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True)
class Episode:
    """A prompt and the completion that the policy drew.

    Attributes:
        number: Number of the episode in its rollout, from 0.
        prompt: Index of the prompt in the data.
        prompt_ids: P token ids.
        completion_ids: C token ids exactly as drawn, up to and including the first stop token.
        sampled_logprobs: C log-probabilities under the sampler.
        stopped: The last token is a stop token.
    """

    number: int
    prompt: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampled_logprobs: tuple[float, ...]
    stopped: bool


@dataclass(slots=True)
class Rollout:
    """A scored rollout.

    Attributes:
        index: Number of the rollout, from 0.
        episodes: B, by number.
        mask: (B, C) bool, True for the tokens of the completion, stop token included.
        policy_mask: (B, C) bool, True for the tokens that enter the policy loss.
        logprobs: (B, C) under the policy that drew them, as training computes them.
        ref_logprobs: (B, C) under the reference policy.
        sampled_logprobs: (B, C) as the sampler saw them.
        entropies: (B, C) of the policy's distribution, nats.
        values: (B, C) before each token.
        scores: (B,) weighted sum of the sources, raw.
        score_parts: Source -> (B,) before its weight.
        final_scores: (B,) after the no-stop rule, normalisation and clipping.
        gold: (B,) of the function that is only watched, or None.
        token_scores: (B, C) dense rewards of functions that answer one number per token, or None.
        kl_coefficient: Beta of this rollout.
        rewards: (B, C).
        advantages: (B, C) after normalisation.
        returns: (B, C).
        return_std: Running standard deviation of the returns.
    """

    index: int
    episodes: list[Episode]
    mask: torch.Tensor
    policy_mask: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    sampled_logprobs: torch.Tensor
    entropies: torch.Tensor
    values: torch.Tensor
    scores: torch.Tensor
    final_scores: torch.Tensor
    score_parts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    gold: torch.Tensor | None = None
    token_scores: torch.Tensor | None = None
    kl_coefficient: float = 0.0
    rewards: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    returns: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    return_std: float = 1.0
