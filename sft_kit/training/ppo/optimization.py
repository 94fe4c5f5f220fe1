"""The updates made from one rollout.

An update is a minibatch: a set of whole atoms of all processes. Every loss is divided by the tokens
of the whole minibatch, known before the first backward, so that neither the size of the atoms nor
the number of processes changes it. In an atom the policy's backward comes before the value's
forward: the roles share layers, and two graphs must never be alive. Shapes: B episodes of an atom,
C completion tokens.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sft_kit.data.collators import pad_batch
from sft_kit.data.rows import IGNORED, Example
from sft_kit.models.roles import Roles, hidden_states, output_layer_of
from sft_kit.objectives.policy import (
    completion_weights,
    kl_loss,
    policy_loss,
    sampler_weights,
    value_loss,
)
from sft_kit.settings import PpoSettings
from sft_kit.training.ppo.atoms import Atom, deal, minibatches
from sft_kit.training.ppo.learner import Learner
from sft_kit.training.ppo.metrics import UpdateSums
from sft_kit.training.ppo.processes import (
    flat_gradient,
    largest_over_processes,
    set_gradient,
    sum_over_processes,
)
from sft_kit.training.ppo.ptx import ptx_batch
from sft_kit.training.ppo.rollout import Rollout
from sft_kit.training.ppo.scoring import (
    PolicyOutputs,
    Precision,
    policy_outputs,
    token_logprobs,
    value_outputs,
)

KL_STOP_FACTOR = 1.5
_SUMS = (
    "policy_loss",
    "approx_kl",
    "clipped_low",
    "clipped_high",
    "entropy",
    "value_loss",
    "value_clipped",
    "ptx_loss",
)


@dataclass(frozen=True, slots=True)
class _Counts:
    """What the sums of a minibatch are divided by, over all processes."""

    policy_tokens: int
    policy_terms: int
    value_tokens: int


def optimize(
    learner: Learner,
    rollout: Rollout,
    rows: Sequence[Sequence[int]],
    atom_of: Callable[[int], Atom],
) -> UpdateSums:
    """Go through a rollout `num_epochs` times in `num_minibatches` updates each.

    Args:
        learner: Its parameters and optimizer are changed.
        rollout: With advantages and returns.
        rows: Episode numbers of every atom.
        atom_of: Index of an atom -> the atom that was scored.

    Returns:
        What to log.
    """
    settings, watched = learner.settings, UpdateSums()
    policy_rests = rollout.index < settings.value_warmup_rollouts
    learner.roles.policy.model.train()
    learner.roles.value.model.train()
    for epoch in range(settings.num_epochs):
        parts = minibatches(
            len(rows), settings.num_minibatches, seed=learner.seed, rollout=rollout.index,
            epoch=epoch,
        )  # fmt: skip
        for part in parts:
            counts = _count(rollout, [row for index in part for row in rows[index]], settings)
            own = deal(len(part), learner.num_processes)[learner.process]
            atoms = (atom_of(part[place]) for place in own)
            learner.optimizer.zero_grad(set_to_none=True)
            sums, error = _backward(learner, rollout, atoms, counts, policy_rests=policy_rests)
            is_first = watched.first_ratio_error is None and not policy_rests
            watched.add_minibatch(
                epoch=epoch,
                sums={name: sums[name] for name in _known(learner, policy_rests=policy_rests)},
                num_policy_tokens=counts.policy_tokens,
                num_policy_terms=counts.policy_terms,
                num_value_tokens=counts.value_tokens,
                ratio_error=float(largest_over_processes(error)) if is_first else None,
            )
            moved = sums["approx_kl"] / max(1, counts.policy_tokens)
            if settings.kl_stop is not None and moved > KL_STOP_FACTOR * settings.kl_stop:
                watched.stopped_early = True
                learner.optimizer.zero_grad(set_to_none=True)
                return watched
            is_idle = not (counts.policy_tokens or learner.has_ptx or learner.roles.shares_policy)
            _step(learner, watched, epoch, policy_rests=policy_rests or is_idle)
    return watched


def _count(rollout: Rollout, rows: Sequence[int], settings: PpoSettings) -> _Counts:
    mask = rollout.policy_mask[rows]
    tokens = int(mask.sum())
    terms = int(mask.any(dim=1).sum()) if settings.loss_mean == "completions" else tokens
    return _Counts(tokens, terms, int(rollout.mask[rows].sum()))


def _known(learner: Learner, *, policy_rests: bool) -> list[str]:
    """Names of the sums that mean something in this minibatch; PTX is counted at its own step."""
    of_values = ["value_loss", "value_clipped"]
    if policy_rests:
        return of_values
    entropy = ["entropy"] if learner.settings.entropy_coefficient > 0 else []
    return [*_SUMS[:4], *entropy, *of_values]


def _backward(
    learner: Learner,
    rollout: Rollout,
    atoms: Iterable[Atom],
    counts: _Counts,
    *,
    policy_rests: bool,
) -> tuple[dict[str, float], torch.Tensor]:
    """Add the gradients of own atoms up; sums are those of all processes.

    Returns:
        The sums, and this process's largest |ratio - 1|.
    """
    parameter = learner.values()[0]
    sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=parameter.device)
    error = torch.zeros((), device=parameter.device)
    for atom in atoms:
        found: dict[str, torch.Tensor] = {}
        if learner.roles.shares_policy or not policy_rests:
            with learner.precision.autocast():
                outputs = policy_outputs(
                    learner.roles,
                    atom,
                    learner.settings.temperature,
                    with_entropy=learner.settings.entropy_coefficient > 0,
                    policy_rests=policy_rests,
                )
            loss = torch.zeros((), device=parameter.device)
            if not policy_rests:
                loss, ratio_error = _policy_terms(learner, rollout, atom, outputs, counts, found)
                error = torch.maximum(error, ratio_error)
            if outputs.values is not None:
                loss = loss + _value_terms(learner, rollout, atom, outputs.values, counts, found)
            torch.autograd.backward(loss)
        if not learner.roles.shares_policy:
            with learner.precision.autocast():
                values = value_outputs(learner.roles, atom)
            loss = _value_terms(learner, rollout, atom, values, counts, found)
            torch.autograd.backward(loss)
        for name, value in found.items():
            sums[_SUMS.index(name)] += value.detach()
    return dict(zip(_SUMS, sum_over_processes(sums).tolist(), strict=True)), error


def _of_atom(tensor: torch.Tensor, atom: Atom) -> torch.Tensor:
    """Rows and columns of a tensor (B, C) of the whole rollout that belong to an atom."""
    width = atom.tokens.shape[1]
    return tensor[list(atom.rows), :width].to(atom.tokens.device)


def _policy_terms(
    learner: Learner,
    rollout: Rollout,
    atom: Atom,
    outputs: PolicyOutputs,
    counts: _Counts,
    found: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The policy's share of the loss, and the largest |ratio - 1|."""
    settings = learner.settings
    mask, old = _of_atom(rollout.policy_mask, atom), _of_atom(rollout.logprobs, atom)
    weights = None
    if settings.loss_mean == "completions":
        weights = completion_weights(mask)
    if settings.sampler_correction is not None:
        sampled = _of_atom(rollout.sampled_logprobs, atom)
        correction = sampler_weights(old, sampled, settings.sampler_correction)
        weights = correction if weights is None else weights * correction
    terms = policy_loss(
        outputs.logprobs,
        old,
        _of_atom(rollout.advantages, atom),
        mask,
        num_tokens=counts.policy_terms,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        dual_clip=settings.dual_clip,
        weights=weights,
    )
    loss = terms.loss
    found["policy_loss"] = terms.loss.detach() * max(1, counts.policy_terms)
    found["approx_kl"] = terms.approx_kl_sum
    found["clipped_low"] = (terms.clipped_low & mask).sum()
    found["clipped_high"] = (terms.clipped_high & mask).sum()
    num_tokens = max(1, counts.policy_tokens)
    if outputs.entropies is not None:
        entropy = torch.where(mask, outputs.entropies, 0.0).sum()
        found["entropy"] = entropy
        loss = loss - settings.entropy_coefficient * entropy / num_tokens
    if settings.kl_in == "loss":
        divergence = kl_loss(
            outputs.logprobs, _of_atom(rollout.ref_logprobs, atom), mask, num_tokens=num_tokens
        )
        loss = loss + rollout.kl_coefficient * divergence
    error = torch.where(mask, (terms.ratio - 1).abs(), 0.0).max()
    return learner.policy_share * loss, error


def _value_terms(
    learner: Learner,
    rollout: Rollout,
    atom: Atom,
    values: torch.Tensor,
    counts: _Counts,
    found: dict[str, torch.Tensor],
) -> torch.Tensor:
    settings = learner.settings
    clip = None if settings.value_clip is None else settings.value_clip * rollout.return_std
    mask = _of_atom(rollout.mask, atom)
    terms = value_loss(
        values,
        _of_atom(rollout.values, atom),
        _of_atom(rollout.returns, atom),
        mask,
        num_tokens=counts.value_tokens,
        clip=clip,
    )
    found["value_loss"] = terms.loss.detach() * max(1, counts.value_tokens)
    found["value_clipped"] = (terms.clipped & mask).sum()
    return settings.value_coefficient * terms.loss


def _step(learner: Learner, watched: UpdateSums, epoch: int, *, policy_rests: bool) -> None:
    """Sum the gradients over all processes, clip each group, and make the update."""
    policy, values = learner.policy(), learner.values()
    if policy_rests:
        # Zero gradients would move the policy all the same, by the optimizer's momentum.
        for one in policy:
            one.grad = None
        policy = []
    norms: dict[str, float] = {}
    if policy and learner.has_ptx:
        ppo = sum_over_processes(flat_gradient(policy))
        for one in policy:
            one.grad = None
        _backward_ptx(learner, watched, epoch)
        ptx = sum_over_processes(flat_gradient(policy))
        norms = {"ppo_grad_norm": float(ppo.norm()), "ptx_grad_norm": float(ptx.norm())}
        set_gradient(policy, ppo + ptx)
    elif policy and learner.num_processes > 1:
        set_gradient(policy, sum_over_processes(flat_gradient(policy)))
    if learner.num_processes > 1:
        set_gradient(values, sum_over_processes(flat_gradient(values)))
    if policy:
        norms["policy_grad_norm"] = clip_gradient(policy, learner.max_grad_norm)
    norms["value_grad_norm"] = clip_gradient(values, learner.max_grad_norm)
    skipped = not all(math.isfinite(norm) for norm in norms.values())
    if not skipped:
        learner.optimizer.step()
        learner.move_average()
    watched.add_update(
        policy_grad_norm=norms.get("policy_grad_norm"),
        value_grad_norm=norms["value_grad_norm"],
        ptx_grad_norm=norms.get("ptx_grad_norm"),
        ppo_grad_norm=norms.get("ppo_grad_norm"),
        skipped=skipped,
    )
    learner.optimizer.zero_grad(set_to_none=True)


def clip_gradient(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale the gradients of a group down to a norm.

    Args:
        parameters: The group.
        max_norm: 0 leaves them as they are.

    Returns:
        The norm before that.
    """
    limit = max_norm if max_norm > 0 else math.inf
    return float(nn.utils.clip_grad_norm_(parameters, limit))


def _backward_ptx(learner: Learner, watched: UpdateSums, epoch: int) -> None:
    """Add the gradient of the language loss: mean over the labels of the batch of all processes."""
    ptx = learner.ptx
    rows = ptx_batch(learner.ptx_rows, learner.ptx_cursor, ptx.batch_size, learner.seed)
    learner.ptx_cursor += ptx.batch_size
    num_labels = sum(label != IGNORED for row in rows for label in row.labels)
    own = rows[learner.process :: learner.num_processes]
    device = learner.values()[0].device
    total = torch.zeros((), dtype=torch.float64, device=device)
    size = learner.micro_batch
    for start in range(0, len(own), size):
        nll = language_nll(learner.roles, own[start : start + size], learner.precision)
        torch.autograd.backward(ptx.coefficient * nll / num_labels)
        total += nll.detach()
    watched.add_minibatch(
        epoch=epoch,
        sums={"ptx_loss": float(sum_over_processes(total))},
        num_policy_tokens=0,
        num_value_tokens=0,
        num_ptx_tokens=num_labels,
    )


def language_nll(roles: Roles, rows: Sequence[Example], precision: Precision) -> torch.Tensor:
    """Negative log-likelihood of the labels of a few rows under the policy, summed.

    Args:
        roles: The policy's is switched on.
        rows: With labels.
        precision: Autocast.

    Returns:
        Scalar float32 in nats.
    """
    layer = output_layer_of(roles.policy.model)
    given: list[Mapping[str, Sequence[int]]] = [
        {"input_ids": row.input_ids, "labels": row.labels} for row in rows
    ]
    weight = next(layer.parameters())
    padded = pad_batch(given, pad_token_id=0)
    batch = {name: value.to(weight.device) for name, value in padded.items()}
    labels = batch.pop("labels")[:, 1:]
    with precision.autocast():
        hidden = hidden_states(roles.policy, batch)[:, :-1]
        is_learnt = labels != IGNORED
        logprobs, _ = token_logprobs(hidden[is_learnt], layer, labels[is_learnt], 1.0)
    return -logprobs.sum()
