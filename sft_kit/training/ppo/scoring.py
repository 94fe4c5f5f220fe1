"""One forward of a role over an atom: what scoring reads, and what training learns through.

The logits and values of completion token c come from position P + c - 1. Shapes: B episodes of an
atom, P prompt and C completion tokens, N completion tokens that are no padding, V vocabulary, H
hidden.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sft_kit.models.roles import Role, Roles, apply_head, hidden_states, output_layer_of
from sft_kit.objectives.policy import entropy, selected_logprobs
from sft_kit.training.ppo.atoms import Atom, make_atom
from sft_kit.training.ppo.rollout import Episode

MAX_LOGITS = 1 << 24
"""Logits alive at once (64 MiB in float32); more are computed, used and dropped in pieces."""


@dataclass(frozen=True, slots=True)
class PolicyOutputs:
    """What the policy says of an atom.

    Attributes:
        logprobs: (B, C), 0 at padding.
        entropies: (B, C), 0 at padding; None where not asked for.
        values: (B, C), 0 at padding; None where values have a forward of their own.
    """

    logprobs: torch.Tensor
    entropies: torch.Tensor | None
    values: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Precision:
    """Autocast of a run: bfloat16, or none."""

    device_type: str
    bf16: bool

    def autocast(self) -> AbstractContextManager[object]:
        """Make the context that every forward of a run is in."""
        return torch.autocast(self.device_type, dtype=torch.bfloat16, enabled=self.bf16)


def policy_outputs(
    roles: Roles,
    atom: Atom,
    temperature: float,
    *,
    with_entropy: bool = False,
    policy_rests: bool = False,
) -> PolicyOutputs:
    """Run the policy over an atom; with a shared value head, the values too.

    Args:
        roles: The policy's is switched on.
        atom: Scored positions only meet the output layer: the prompt's logits are never made.
        temperature: Divides the logits.
        with_entropy: Answer the entropies too.
        policy_rests: Values leave no gradient in a shared policy.
    """
    hidden = hidden_states(roles.policy, atom.batch)[:, atom.scored_slice()]
    layer = output_layer_of(roles.policy.model)
    logprobs, entropies = token_logprobs(
        hidden[atom.mask], layer, atom.tokens[atom.mask], temperature, with_entropy=with_entropy
    )
    values = None
    if roles.shares_policy:
        values = apply_head(roles.value, hidden.detach() if policy_rests else hidden)
        values = torch.where(atom.mask, values, 0.0)
    return PolicyOutputs(
        _scattered(logprobs, atom.mask),
        None if entropies is None else _scattered(entropies, atom.mask),
        values,
    )


def reference_logprobs(roles: Roles, atom: Atom, temperature: float) -> torch.Tensor:
    """Run the reference policy over an atom.

    Returns:
        (B, C), 0 at padding.
    """
    hidden = hidden_states(roles.reference, atom.batch)[:, atom.scored_slice()][atom.mask]
    layer = output_layer_of(roles.reference.model)
    logprobs, _ = token_logprobs(hidden, layer, atom.tokens[atom.mask], temperature)
    return _scattered(logprobs, atom.mask)


def value_outputs(roles: Roles, atom: Atom) -> torch.Tensor:
    """Run the value role, which has a forward of its own, over an atom.

    Returns:
        (B, C) values of the states before each token, 0 at padding.
    """
    hidden = hidden_states(roles.value, atom.batch)[:, atom.scored_slice()]
    return torch.where(atom.mask, apply_head(roles.value, hidden), 0.0)


def reward_scores(
    reward: Role, episodes: Sequence[Episode], rows: Sequence[int], stop_token_id: int
) -> torch.Tensor:
    """Score completions by the reward role, on the same token ids that it was trained on.

    It was trained on answers that end in the template's stop token and reads its score there, so a
    completion without one, or with another, gets it for the reading. What it should cost not to
    stop is another setting's.

    Args:
        reward: Adapter and head on the shared base.
        episodes: Of the rollout, by number.
        rows: Numbers of those to score.
        stop_token_id: Of the template.

    Returns:
        (B,) float32.
    """
    ended: list[Episode] = []
    for number, row in enumerate(rows):
        one = episodes[row]
        said = one.completion_ids[:-1] if one.stopped else one.completion_ids
        ids = (*said, stop_token_id)
        ended.append(Episode(number, one.prompt, one.prompt_ids, ids, (), stopped=True))
    device = cast("nn.Linear", reward.head).weight.device
    atom = make_atom(ended, range(len(ended)), device)
    hidden = hidden_states(reward, atom.batch)
    last = atom.num_prompt_tokens - 1 + atom.mask.sum(dim=1)
    return apply_head(reward, hidden[torch.arange(len(ended), device=device), last])


def token_logprobs(
    hidden: torch.Tensor,
    layer: nn.Module,
    tokens: torch.Tensor,
    temperature: float,
    *,
    with_entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of tokens from hidden states; logits are alive in pieces only.

    Args:
        hidden: (N, H) states that predict the tokens.
        layer: The output layer.
        tokens: (N,) int64.
        temperature: Divides the logits.
        with_entropy: Answer the entropies too.

    Returns:
        (N,) float32 logprobs, and (N,) entropies or None, in nats.
    """

    def of_piece(
        states: torch.Tensor, wanted: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = layer(states).float()
        spread = entropy(logits, temperature) if with_entropy else None
        return selected_logprobs(logits, wanted, temperature), spread

    size = max(1, MAX_LOGITS // int(cast("nn.Linear", layer).weight.shape[0]))
    if len(tokens) <= size:
        return of_piece(hidden, tokens)
    pieces = [
        # Recomputed in the backward: what is kept is a piece of hidden states, not of logits.
        checkpoint(of_piece, states, wanted, use_reentrant=False)
        if torch.is_grad_enabled()
        else of_piece(states, wanted)
        for states, wanted in zip(torch.split(hidden, size), torch.split(tokens, size), strict=True)
    ]
    logprobs = torch.cat([logprobs for logprobs, _ in pieces])
    spreads = [spread for _, spread in pieces if spread is not None]
    return logprobs, torch.cat(spreads) if spreads else None


def _scattered(kept: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Put (N,) numbers at the True places of a mask (B, C)."""
    return torch.zeros(mask.shape, dtype=kept.dtype, device=kept.device).masked_scatter(mask, kept)
