"""A base, an adapter for each role, and their heads."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from peft.utils import CONFIG_NAME, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from sft_kit.errors import CheckpointError, ConfigError, Problem
from sft_kit.models.adapters import (
    attach_lora,
    check_adapter_files,
    load_adapter,
    quiet_peft,
)
from sft_kit.models.roles import (
    POLICY_ADAPTER,
    Role,
    Roles,
    base_of,
    freeze_all_but_trained,
    output_layer_of,
)
from sft_kit.settings import PpoSettings

_HEAD = "score"


def make_roles(
    base: PreTrainedModel,
    adapter: LoraConfig | None,
    ppo: PpoSettings,
    *,
    sft_folder: Path | None = None,
    reward_folder: Path | None = None,
    reward_scale: tuple[float, float] = (0.0, 1.0),
) -> Roles:
    """Put every role on one base; draws new adapters from the global random state.

    Args:
        base: As loaded.
        adapter: LoRA of new adapters; None trains the whole policy.
        ppo: `value` says where values come from.
        sft_folder: An adapter that the policy starts from; the reference policy is it.
        reward_folder: Adapter and head of a reward model on the same base.
        reward_scale: Mean and standard deviation of its scores, as the rewards will be normalised.

    Raises:
        CheckpointError: As for `load_adapter`.
        ConfigError: These roles don't go together.
    """
    _check_request(base, adapter, ppo, sft_folder, reward_folder)
    if adapter is None:
        return whole_model_roles(base, ppo.value)
    return adapter_roles(
        base,
        adapter,
        ppo.value,
        sft_folder=sft_folder,
        reward_folder=reward_folder,
        reward_scale=reward_scale,
    )


def whole_model_roles(base: PreTrainedModel, value: str) -> Roles:
    """Make roles of whole models: the policy trains, a frozen copy of it is the reference.

    Args:
        base: Becomes the policy, in float32.
        value: "shared" or "model".
    """
    base.float()  # at a learning rate of 1e-6 an update is too small for bfloat16 to keep
    policy = Role("policy", base, None, origin="the whole model")
    reference = Role("reference", copy.deepcopy(base), None, origin="a frozen copy")
    shares = value == "shared"
    critic = base if shares else copy.deepcopy(base)
    origin = "a new head on the policy" if shares else "a copy of the model with a new head"
    roles = Roles(policy, reference, Role("value", critic, None, new_head(base), origin), None)
    roles.shares_policy = shares
    freeze_all_but_trained(roles)
    return roles


def adapter_roles(
    base: PreTrainedModel,
    config: LoraConfig,
    value: str,
    *,
    sft_folder: Path | None = None,
    reward_folder: Path | None = None,
    reward_scale: tuple[float, float] = (0.0, 1.0),
) -> Roles:
    """Put one adapter per role on a frozen base.

    Args:
        base: The base, as loaded.
        config: LoRA of new adapters.
        value: "adapter", "shared" or "model".
        sft_folder: As for `load_roles`.
        reward_folder: As for `load_roles`.
        reward_scale: As for `load_roles`.
    """
    critic = copy.deepcopy(base).float() if value == "model" else None
    for_values = copy.deepcopy(config)
    model, origin = _policy_on(base, config, sft_folder)
    policy = Role("policy", model, POLICY_ADAPTER, origin=origin)
    if sft_folder is None:
        reference = Role("reference", model, None, origin="the base without adapter")
    else:
        _add_adapter(model, "sft", sft_folder)
        reference = Role("reference", model, "sft", origin=f"the adapter in {sft_folder}")
    reward = None
    if reward_folder is not None:
        head = _add_adapter(model, "reward", reward_folder, with_head=True)
        reward = Role("reward", model, "reward", head, f"the adapter in {reward_folder}")
    if value == "shared":
        values = Role("value", model, POLICY_ADAPTER, new_head(base), "a new head on the policy")
    elif critic is not None:
        values = Role("value", critic, None, new_head(base), "a copy of the base with a new head")
    elif reward_folder is not None:
        _add_adapter(model, "value", reward_folder, with_head=True)
        head = _rescaled(cast("nn.Linear", cast("Role", reward).head), reward_scale)
        values = Role("value", model, "value", head, "a copy of the reward model")
    else:
        of_policy = cast("LoraConfig", model.peft_config[POLICY_ADAPTER])
        for_values.target_modules = of_policy.target_modules
        for_values.fan_in_fan_out = of_policy.fan_in_fan_out
        for_values.modules_to_save = None
        with quiet_peft():
            model.add_adapter("value", for_values)
        values = Role("value", model, "value", new_head(base), "a new adapter and head")
    roles = Roles(policy, reference, values, reward, shares_policy=value == "shared")
    freeze_all_but_trained(roles)
    return roles


def new_head(model: PreTrainedModel | PeftModel) -> nn.Linear:
    """Make a value head that answers 0: (H -> 1) float32, on the model's device."""
    layer = output_layer_of(model)
    size = cast("nn.Linear", layer).weight.shape[1]
    head = nn.Linear(size, 1, device=base_of(model).device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def save_role(role: Role, folder: Path, *, head_only: bool = False) -> None:
    """Save a role's adapter (plain PEFT) or whole model, and its head as `head.safetensors`.

    Args:
        role: With a head.
        folder: Is made.
        head_only: The rest is the policy's, and saved with it.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    own_adapter = not head_only and role.adapter not in (None, POLICY_ADAPTER)
    if isinstance(role.model, PeftModel) and own_adapter:
        role.model.save_pretrained(
            str(folder), selected_adapters=[str(role.adapter)], save_embedding_layers=False
        )
        inner = folder / str(role.adapter)
        for path in inner.iterdir():
            path.replace(folder / path.name)
        inner.rmdir()
        (folder / "README.md").unlink(missing_ok=True)
    elif role.adapter is None and not head_only:
        base_of(role.model).save_pretrained(folder)
    if role.head is not None:
        tensors = {name: tensor.detach().cpu() for name, tensor in role.head.state_dict().items()}
        save_file(tensors, folder / "head.safetensors")


def _check_request(
    base: PreTrainedModel,
    adapter: LoraConfig | None,
    ppo: PpoSettings,
    sft: Path | None,
    reward: Path | None,
) -> None:
    problems: list[Problem] = []
    if ppo.value == "model" and getattr(base, "is_quantized", False):
        found = "found model, but the base is quantized, and quantized weights can't be trained"
        problems.append(Problem("", "ppo.value", found, "set it to adapter or shared"))
    if adapter is None:
        if ppo.value == "adapter":
            found = "found adapter, but the whole policy trains (adapter: null)"
            problems.append(Problem("", "ppo.value", found, "set it to shared or model"))
        for key, folder in (("ppo.sft_adapter", sft), ("reward.model", reward)):
            if folder is not None:
                found = f"found {folder}, an adapter, but the whole policy trains (adapter: null)"
                problems.append(
                    Problem("", key, found, "add an `adapter:` section, or merge it first")
                )
    if problems:
        raise ConfigError("these roles don't go together", problems)


def _policy_on(
    base: PreTrainedModel, config: LoraConfig, sft_folder: Path | None
) -> tuple[PeftModel, str]:
    if sft_folder is None:
        return cast("PeftModel", attach_lora(base, config, fused=False)), "a new adapter"
    return load_adapter(base, sft_folder), f"a copy of the adapter in {sft_folder}"


def _add_adapter(
    model: PeftModel, name: str, folder: Path, *, with_head: bool = False
) -> nn.Linear | None:
    """Put a saved adapter beside the others; a reward model's head is returned, not attached."""
    check_adapter_files(folder)  # PEFT would unpickle one in `.bin`
    config = LoraConfig.from_pretrained(str(folder))
    if with_head:
        config = replace(config, task_type="CAUSAL_LM", modules_to_save=None)
    config = replace(config, inference_mode=False)
    with quiet_peft():
        model.add_adapter(name, config)
        tensors = load_peft_weights(str(folder), device="cpu")
        heads = [key for key in tensors if f".{_HEAD}." in key]
        weight = tensors.pop(heads[0]) if with_head and len(heads) == 1 else None
        report = set_peft_model_state_dict(model, tensors, adapter_name=name)
    lost = list(cast("Any", report).unexpected_keys)
    missing = [key for key in cast("Any", report).missing_keys if f".{name}." in f"{key}."]
    if lost or missing or (with_head and weight is None):
        raise _other_shape(folder, [*lost, *missing] or [f"the head {_HEAD}"])
    if weight is None:
        return None
    head = nn.Linear(weight.shape[1], 1, bias=False, device=base_of(model).device)
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def _other_shape(folder: Path, names: list[str]) -> CheckpointError:
    shown = ", ".join(names[:3])
    problem = Problem(str(folder / CONFIG_NAME), "", f"does not fit the base: {shown}")
    return CheckpointError(f"the adapter in {folder} belongs to another model", [problem])


def _rescaled(head: nn.Linear, scale: tuple[float, float]) -> nn.Linear:
    """Copy a reward model's head so that it answers normalised scores."""
    mean, std = scale
    copied = nn.Linear(head.in_features, 1, device=head.weight.device, dtype=torch.float32)
    with torch.no_grad():
        copied.weight.copy_(head.weight / std)
        copied.bias.fill_(-mean / std)
    return copied


def save_policy_average(role: Role, average: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Save the policy with other values for what it trains, and put its own back.

    Args:
        role: The policy.
        average: Name -> value of each parameter that trains.
        folder: Is made.
    """
    own = {name: one for name, one in role.model.named_parameters() if name in average}
    kept = {name: one.data for name, one in own.items()}
    try:
        for name, one in own.items():
            one.data = average[name].to(one.dtype)
        save_policy(role, folder)
    finally:
        for name, one in own.items():
            one.data = kept[name]


def save_policy(role: Role, folder: Path) -> None:
    """Save the policy: its adapter alone as plain PEFT, or the whole model."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(role.model, PeftModel):
        role.model.save_pretrained(
            str(folder), selected_adapters=[POLICY_ADAPTER], save_embedding_layers=False
        )
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's blank card names local folders
    else:
        role.model.save_pretrained(folder)
