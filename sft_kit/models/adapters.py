"""LoRA adapters: attach, and count what trains."""

import difflib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sft_kit.errors import ConfigError, Problem

_LORA_LAYERS = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layer classes that PEFT can put a LoRA on; quantized ones are subclasses of `nn.Linear`."""


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters that train and all parameters (4-bit weights counted as what they stand for)."""

    trainable: int
    total: int

    def __str__(self) -> str:
        share = self.trainable / self.total
        return f"{self.trainable:,} of {self.total:,} parameters train ({share:.2%})"


def attach_lora(model: PreTrainedModel, config: LoraConfig | None) -> PreTrainedModel | PeftModel:
    """Add a LoRA adapter to a base model; draws the adapter from the global random state.

    GPT-2 keeps its linear layers as `Conv1D`, with the weight transposed; once quantized they are
    `Linear` like everybody's. The flag for it follows the class of the layers found.

    Args:
        model: The base, as loaded.
        config: None leaves the whole model trainable.

    Returns:
        The model with its adapter in float32, or the model itself.

    Raises:
        ConfigError: A target module matches no layer; each name is reported on its own.
    """
    if config is None:
        return model
    targets = _target_layers(model, config)
    config.fan_in_fan_out = any(isinstance(layer, Conv1D) for layer in targets)
    with quiet_peft():
        try:
            return cast("PeftModel", get_peft_model(model, config))
        except ValueError as error:
            problem = Problem("adapter", "", " ".join(str(error).split()))
            raise ConfigError("the adapter does not fit the model", [problem]) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keep back two warnings of PEFT 0.21 that a user can do nothing about."""
    with warnings.catch_warnings():
        # It sets the flag layer by layer where classes are mixed, and warns each time.
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        # It asks for a property that transformers 5.20 renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        yield


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count parameters, a packed 4-bit weight as the weights it stands for."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        size = parameter.numel() if state is None else torch.Size(state.shape).numel()
        total += size
        trainable += size if parameter.requires_grad else 0
    return ParameterCount(trainable, total)


def _target_layers(model: PreTrainedModel, config: LoraConfig) -> list[nn.Module]:
    layers: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, _LORA_LAYERS)
    }
    targets = config.target_modules
    if targets is None or targets == "all-linear":
        return list(layers.values())
    if isinstance(targets, str):
        try:
            found = [layer for name, layer in layers.items() if re.fullmatch(targets, name)]
        except re.error as error:
            message = f"found {targets!r}, which is no regular expression: {error}"
            problem = Problem("adapter", "target_modules", message)
            raise ConfigError("1 target module matches no layer of the model", [problem]) from error
        problems = [] if found else [_no_match(targets, layers)]
    else:
        matches = {
            target: [
                layer
                for name, layer in layers.items()
                if name == target or name.endswith(f".{target}")
            ]
            for target in targets
        }
        found = [layer for group in matches.values() for layer in group]
        problems = [_no_match(target, layers) for target in sorted(matches) if not matches[target]]
    if problems:
        count = (
            "1 target module matches"
            if len(problems) == 1
            else f"{len(problems)} target modules match"
        )
        raise ConfigError(f"{count} no layer of the model", problems)
    return found


def _no_match(target: str, layers: dict[str, nn.Module]) -> Problem:
    names = sorted({name.rsplit(".", 1)[-1] for name in layers})
    close = difflib.get_close_matches(target, names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    if target in names:  # only a string, which is matched against whole names, gets here
        hint = f"; a string is a regular expression for the whole name, write [{target}]"
    return Problem(
        "adapter",
        "target_modules",
        f"found {target!r}, which matches no layer; accepts all-linear or {', '.join(names)}{hint}",
    )
