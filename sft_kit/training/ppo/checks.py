"""Checks at the start of a run, and of every rollout: each a mistake that PPO would hide.

Training goes on with wrong probabilities as with right ones; only the policy gets worse, slowly.
"""

from itertools import chain
from typing import Any

import torch

from sft_kit.errors import TrainingError
from sft_kit.models.roles import Roles, activate, backbone_of, base_of, output_layer_of
from sft_kit.training.ppo.atoms import make_atom
from sft_kit.training.ppo.experience import Collector, Experience
from sft_kit.training.ppo.scoring import policy_outputs

_NUM_PADS = 3
_EXACT = 1e-3
"""Largest difference of a logprob in full precision, in nats."""
_OFF = "set ppo.self_checks=false to go on all the same"


def check_trained_set(roles: Roles) -> None:
    """Check that what trains is what was declared, neither more nor less.

    Raises:
        TrainingError: Names a parameter.
    """
    declared = {id(one) for one in roles.policy_parameters().values()}
    declared |= {id(one) for one in roles.value_parameters().values()}
    named = chain.from_iterable(
        chain(
            role.model.named_parameters(),
            [] if role.head is None else role.head.named_parameters(),
        )
        for role in roles.all()
    )
    for name, parameter in named:
        if parameter.requires_grad != (id(parameter) in declared):
            state = "trains" if parameter.requires_grad else "does not train"
            raise TrainingError(f"{name} {state}, and it should be the other way round ({_OFF})")


def check_first_rollout(collector: Collector, experience: Experience) -> None:
    """Check the policy's probabilities on the first atom of a run.

    Args:
        collector: As used for the rollout.
        experience: Rollout 0, before any update.

    Raises:
        TrainingError: Two forwards differ, padding changes a logprob, the policy does not start as
            the reference policy, or the model does more to its logits than its output layer.
    """
    rollout, atom = experience.rollout, experience.atom_of(0)
    rows, width = experience.rows[0], atom.tokens.shape[1]
    scored = rollout.logprobs[rows, :width]
    _check_again(collector, experience, scored)
    gap = _largest(rollout.logprobs - rollout.ref_logprobs)
    if gap != 0:
        raise TrainingError(
            f"the policy does not start as the reference policy: their logprobs differ by {gap:.3g}"
            f". Is the adapter new (or the one of ppo.sft_adapter), and its start one that leaves "
            f"the base as it is (adapter.init_lora_weights: true)? ({_OFF})"
        )
    padded = make_atom(rollout.episodes, rows, collector.device, num_pads=_NUM_PADS)
    with torch.no_grad(), collector.precision.autocast():
        again = policy_outputs(collector.roles, padded, collector.settings.temperature)
    shift = _largest(again.logprobs.float().cpu() - scored)
    if not shift <= _tolerance(collector):
        raise TrainingError(
            f"padding on the left changes logprobs by {shift:.3g}: this model does not take "
            f"position_ids and attention_mask as others do ({_OFF})"
        )
    _check_logits(collector, experience)


def check_first_ratio(error: float | None, collector: Collector) -> None:
    """Check that the first update of a rollout sees the logprobs that were scored.

    Args:
        error: Largest |ratio - 1|; None where the policy rests.
        collector: Tells the precision.

    Raises:
        TrainingError: The forward of the update differs from that of the scoring.
    """
    if error is not None and not error <= _tolerance(collector):  # NaN is no small error
        raise TrainingError(
            f"the first update of a rollout finds a ratio that is off 1 by {error:.3g}: the "
            "policy's forward is not the same in training as in scoring. Something random is on "
            "(a dropout that could not be switched off), or the weights moved in between "
            f"({_OFF})"
        )


def _check_again(collector: Collector, experience: Experience, scored: torch.Tensor) -> None:
    # With gradients, as in an update; the rollout was scored without.
    with collector.precision.autocast():
        atom = experience.atom_of(0)
        outputs = policy_outputs(collector.roles, atom, collector.settings.temperature)
    gap = _largest(outputs.logprobs.detach().float().cpu() - scored)
    if not gap <= _tolerance(collector) * (0 if collector.device.type == "cpu" else 1):
        raise TrainingError(
            f"two forwards of the policy over the same tokens differ by {gap:.3g} in their "
            f"logprobs: something random is on in training mode ({_OFF})"
        )


@torch.no_grad()
def _check_logits(collector: Collector, experience: Experience) -> None:
    policy = collector.roles.policy
    ids = torch.tensor([experience.rollout.episodes[0].prompt_ids], device=collector.device)
    activate(policy)
    model: Any = base_of(policy.model)
    with collector.precision.autocast():
        expected = model(input_ids=ids, use_cache=False).logits.float()
        hidden = backbone_of(policy.model)(input_ids=ids, use_cache=False).last_hidden_state
        found = output_layer_of(policy.model)(hidden).float()
    gap = _largest(expected - found)
    relative = 1e-2 if _tolerance(collector) > _EXACT else 1e-4
    capped = getattr(model.config, "final_logit_softcapping", None)
    if capped or not gap <= max(1e-4, relative * _largest(expected)):
        raise TrainingError(
            f"{type(model).__name__} does more to its logits than its output layer (they differ by "
            f"{gap:.3g}); PPO would learn other probabilities than it draws from ({_OFF})"
        )


def _tolerance(collector: Collector) -> float:
    is_exact = (
        not collector.precision.bf16
        and base_of(collector.roles.policy.model).dtype == torch.float32
    )
    return _EXACT if is_exact else 0.5


def _largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0
