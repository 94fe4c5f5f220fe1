"""The four roles of PPO on one base: policy, reference policy, value head, reward model.

A role is a backbone, the adapter that is on while it runs, and perhaps a head. With LoRA all roles
share one frozen base and differ by adapter; whole models have a backbone each. Shapes: B batch, T
tokens, H hidden, V vocabulary.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

POLICY_ADAPTER = "default"
"""PEFT saves the adapter of this name at the root of a folder, where plain PEFT looks for it."""


@dataclass(slots=True)
class Role:
    """One of the four roles.

    Attributes:
        name: "policy", "reference", "value" or "reward".
        model: The model that the role is part of.
        adapter: Name of the adapter that is on; None is the base alone.
        head: (H -> 1) float32; None where the role speaks in tokens.
        origin: Where its weights come from, for the reader.
    """

    name: str
    model: PreTrainedModel | PeftModel
    adapter: str | None
    head: nn.Linear | None = None
    origin: str = ""


@dataclass(slots=True)
class Roles:
    """The roles of a PPO run.

    Attributes:
        policy: Learns.
        reference: Frozen: what the policy is kept close to.
        value: Learns the values; shares the policy's backbone where `shares_policy`.
        reward: Frozen; None where Python functions score alone, or where the reward model is on
            another base.
        shares_policy: Values are read from the policy's own hidden states.
    """

    policy: Role
    reference: Role
    value: Role
    reward: Role | None = None
    shares_policy: bool = False

    def all(self) -> list[Role]:
        """List the roles there are."""
        roles = [self.policy, self.reference, self.value, self.reward]
        return [role for role in roles if role is not None]

    def policy_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that the policy trains."""
        return _parameters_of(self.policy)

    def value_parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that trains for values only."""
        own = {} if self.shares_policy else _parameters_of(self.value)
        head = self.value.head
        assert head is not None
        return own | {f"value_head.{name}": value for name, value in head.named_parameters()}


def _parameters_of(role: Role) -> dict[str, nn.Parameter]:
    if role.adapter is None:
        # A model that speaks in values has no use for its output layer.
        owner = role.model if role.head is None else backbone_of(role.model)
        return dict(owner.named_parameters())
    named = role.model.named_parameters()
    part = f".{role.adapter}."
    return {
        name: parameter for name, parameter in named if part in f"{name}." and _is_adapter(name)
    }


def _is_adapter(name: str) -> bool:
    return ".lora_" in name or ".modules_to_save." in name or ".trainable_tokens_" in name


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model under an adapter, or the model itself."""
    return cast(
        "PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model
    )


def backbone_of(model: PreTrainedModel | PeftModel) -> nn.Module:
    """The part of a model that gives hidden states, its head left out."""
    return base_of(model).base_model


def output_layer_of(model: PreTrainedModel | PeftModel) -> nn.Module:
    """The layer that makes logits of hidden states."""
    return cast("nn.Module", base_of(model).get_output_embeddings())


def activate(role: Role) -> None:
    """Switch a role's adapter on and all others off.

    `PeftModel.set_adapter` and `disable_adapter` change `requires_grad` too: called between a
    forward and its backward they lose gradients, and leaving `disable_adapter` freezes what trains.
    Here only the two fields that a forward reads are set. A backward that recomputes (gradient
    checkpointing) reads them again, so every backward must come before the next switch.
    """
    for module in role.model.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            layer = cast("Any", module)
            layer._disable_adapters = role.adapter is None
            if role.adapter is not None:
                layer._active_adapter = [role.adapter]


def hidden_states(role: Role, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Run a role's backbone.

    Args:
        role: Is switched on first.
        batch: `input_ids`, `attention_mask` and `position_ids`, each (B, T).

    Returns:
        (B, T, H) last hidden states.
    """
    activate(role)
    output = backbone_of(role.model)(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        use_cache=False,
    )
    return cast("torch.Tensor", output.last_hidden_state)


def apply_head(role: Role, hidden: torch.Tensor) -> torch.Tensor:
    """Apply a role's head in float32, outside of any autocast.

    Args:
        role: With a head.
        hidden: (..., H).

    Returns:
        (...) float32.
    """
    assert role.head is not None
    with torch.autocast(hidden.device.type, enabled=False):
        return cast("torch.Tensor", role.head(hidden.float())).squeeze(-1)


def freeze_all_but_trained(roles: Roles) -> None:
    """Set `requires_grad` once and for all: what the policy and the values train, nothing else."""
    for role in roles.all():
        role.model.requires_grad_(False)
        if role.head is not None:
            role.head.requires_grad_(False)
    trained = chain(roles.policy_parameters().values(), roles.value_parameters().values())
    for parameter in trained:
        parameter.requires_grad_(True)


def can_merge(role: Role) -> bool:
    """Whether a role's adapter can be added to the base's weights: plain LoRA on plain layers.

    A weight that two layers share, such as an output layer tied to the embeddings, would change for
    both.
    """
    layers = _lora_layers(role)
    owners = Counter(
        id(parameter)
        for module in role.model.modules()
        for parameter in module.parameters(recurse=False)
    )
    return bool(layers) and all(
        _is_plain(layer, cast("str", role.adapter))
        and owners[id(layer.get_base_layer().weight)] == 1
        for layer in layers
    )


def _lora_layers(role: Role) -> list[Any]:
    if role.adapter is None:
        return []
    modules = (module for module in role.model.modules() if isinstance(module, LoraLayer))
    return [
        module
        for module in modules
        if role.adapter in module.lora_A or role.adapter in module.lora_embedding_A
    ]


def _is_plain(layer: Any, adapter: str) -> bool:  # noqa: ANN401 - PEFT's layers are untyped
    return (
        type(layer.get_base_layer()) in (nn.Linear, Conv1D)
        and adapter not in layer.lora_variant
        and not layer.lora_bias.get(adapter, False)
    )


@contextmanager
def merged(role: Role) -> Iterator[None]:
    """Add a role's adapter to the weights of its base, for decoding; then put the base back.

    The base's tensors are set aside and not computed back, so that not a bit of them changes,
    whatever their type. Takes the memory of the layers that have an adapter.

    Args:
        role: One that `can_merge`.
    """
    aside: list[tuple[nn.Parameter, torch.Tensor]] = []
    layers = _lora_layers(role)
    activate(role)
    try:
        for layer in layers:
            weight = layer.get_base_layer().weight
            delta = layer.get_delta_weight(role.adapter)
            aside.append((weight, weight.data))
            weight.data = (weight.data.float() + delta.float()).to(weight.dtype)
            layer._disable_adapters = True
        yield
    finally:
        for weight, data in reversed(aside):
            weight.data = data
        activate(role)
