"""Heads in float32 over a model of any precision."""

from collections.abc import Sequence

import torch
from torch import nn


def let_head_train(model: nn.Module, modules: Sequence[str]) -> None:
    """Make the head float32, cast what it is given, and unfreeze it over quantized layers.

    Args:
        model: As loaded.
        modules: Names of the head's modules.
    """
    for name in modules:
        module = model.get_submodule(name)
        if next(module.parameters()).dtype != torch.float32:
            module.float()
            module.register_forward_pre_hook(_cast_inputs, with_kwargs=True)
        for parameter in module.parameters():
            # Weights as read lie in the file's memory map, unaligned, where torch's CPU kernels
            # round differently (2e-7) than for the aligned copy that PEFT trains.
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)


def _cast_inputs(
    _module: nn.Module, args: tuple[object, ...], options: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    cast_args = tuple(_to_float32(value) for value in args)
    return cast_args, {key: _to_float32(value) for key, value in options.items()}


def _to_float32(value: object) -> object:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
