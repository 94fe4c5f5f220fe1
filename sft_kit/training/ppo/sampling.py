"""Completions drawn from the policy, the same ones however they are split over processes.

Shapes: B prompts of one decoding batch, P tokens of the longest prompt, C completion tokens, V
vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from sft_kit.models.roles import Role, activate, backbone_of, base_of, merged, output_layer_of
from sft_kit.training.ppo.atoms import ANY_TOKEN


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        max_new_tokens: Longest completion.
        stop_token_ids: Tokens that end one.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Draw from the k likeliest tokens only; 0 is off.
        top_p: Draw from the smallest set with this total probability; 1 is off.
        merge: Merge the policy's adapter for decoding.
    """

    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    merge: bool = False


@dataclass(frozen=True, slots=True)
class Drawn:
    """A completion: token ids up to and including the first stop token, and their logprobs."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


def uniforms(seed: int, rollout: int, num_episodes: int, num_tokens: int) -> torch.Tensor:
    """Numbers in [0, 1) that decide every draw of a rollout: a function of seed and rollout.

    Every process makes all of them and uses its own rows, so that the draws depend neither on the
    number of processes nor on the state of any global generator.

    Returns:
        (B, C) float64.
    """
    # Seeds side by side give CPU generators that start alike; the multiplier sets them apart.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + rollout * 7919 + 17) % (1 << 62))
    return torch.rand((num_episodes, num_tokens), generator=generator, dtype=torch.float64)


@torch.no_grad()
def draw_completions(
    policy: Role,
    prompts: Sequence[Sequence[int]],
    chances: torch.Tensor,
    sampling: Sampling,
    *,
    batch_size: int,
) -> list[Drawn]:
    """Complete every prompt.

    No generation settings of the checkpoint take part: no repetition penalty, no forced tokens.
    Prompts of similar length are decoded together; a batch ends with its longest completion, and
    rows that have ended are taken out of it.

    Args:
        policy: Is switched on.
        prompts: B lists of token ids.
        chances: (B, C) float64 in [0, 1), one number per draw.
        sampling: How to draw.
        batch_size: Prompts decoded together.
    """
    model = policy.model
    was_training = model.training
    model.eval()  # gradient checkpointing, which can't keep states, is off in evaluation mode
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    drawn: dict[int, Drawn] = {}
    how: AbstractContextManager[None] = merged(policy) if sampling.merge else nullcontext()
    activate(policy)
    with how:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            chosen = _decode(policy, [prompts[row] for row in rows], chances[rows], sampling)
            drawn |= dict(zip(rows, chosen, strict=True))
    model.train(was_training)
    return [drawn[row] for row in range(len(prompts))]


def _decode(
    policy: Role, prompts: Sequence[Sequence[int]], chances: torch.Tensor, sampling: Sampling
) -> list[Drawn]:
    base = base_of(policy.model)
    device = base.device
    backbone, output_layer = backbone_of(policy.model), output_layer_of(policy.model)
    ids, mask = _padded(prompts, device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=base.config)
    stop = torch.tensor(sampling.stop_token_ids, device=device)
    chances = chances.to(device)
    tokens = torch.zeros(len(prompts), sampling.max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(len(prompts), sampling.max_new_tokens, device=device)
    lengths = torch.full((len(prompts),), sampling.max_new_tokens, device=device)
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    alive = torch.arange(len(prompts), device=device)  # rows of the answer that are in the batch
    for step in range(sampling.max_new_tokens):
        output = backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        logits = output_layer(output.last_hidden_state[:, -1]).float()
        token, logprob = pick(logits, chances[alive, step], sampling)
        tokens[alive, step], logprobs[alive, step] = token, logprob
        is_stop = torch.isin(token, stop)
        stopped[alive] |= is_stop
        lengths[alive[is_stop]] = step + 1
        keep = ~is_stop
        if not bool(keep.any()):
            break
        if not bool(keep.all()):
            cache.batch_select_indices(keep.nonzero().squeeze(1))
            alive, mask, positions, token = alive[keep], mask[keep], positions[keep], token[keep]
        ids = token.unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return [
        Drawn(tuple(row_ids[:length]), tuple(row_logprobs[:length]), row_stopped)
        for row_ids, row_logprobs, length, row_stopped in zip(
            tokens.tolist(), logprobs.tolist(), lengths.tolist(), stopped.tolist(), strict=True
        )
    ]


def _padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), ANY_TOKEN, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def pick(
    logits: torch.Tensor, chances: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token per row by its cumulative distribution.

    Args:
        logits: (B, V) float32.
        chances: (B,) float64 in [0, 1): the token whose share of [0, 1) holds the number is drawn.
        sampling: Temperature and what the choice is limited to.

    Returns:
        (B,) token ids and (B,) float32 logprobs at the temperature, of the unlimited distribution.
    """
    if sampling.temperature == 0:
        token = logits.argmax(dim=-1)
        return token, _logprob(logits, token)
    logits = logits / sampling.temperature
    probabilities = _limited(logits, sampling).double().softmax(dim=-1)
    ends = probabilities.cumsum(dim=-1)
    # Scaled to the last end: rounding must not leave a gap in which no token lies.
    wanted = (chances * ends[:, -1]).unsqueeze(1)
    token = torch.searchsorted(ends, wanted, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
    return token, _logprob(logits, token)


def _logprob(logits: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, token.unsqueeze(1)).squeeze(1) - logits.logsumexp(dim=-1)


def _limited(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    if 0 < sampling.top_k < logits.shape[-1]:
        floor = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if sampling.top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        shares = ordered.softmax(dim=-1)
        before = shares.cumsum(dim=-1) - shares
        ordered = ordered.masked_fill(before >= sampling.top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter(1, places, ordered)
    return logits
