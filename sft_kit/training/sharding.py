"""Weights that are spread over the processes while they train, and gathered when they have.

FSDP2 and ZeRO-3 leave every process a part of each weight. What comes after training (answers,
saving, reading back) needs a whole model, so what the recipe built is set aside, empty, while a
copy of its structure trains with its weights; afterwards the main process puts them back.
"""

import copy
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from sft_kit.errors import TrainingError
from sft_kit.launch_checks import build_models_whole

_ZERO_WITH_PARAMETERS = 3


def spreads_weights(accelerator: Accelerator) -> bool:
    """Whether no process holds a whole model while it trains: FSDP, or ZeRO's third stage."""
    state = accelerator.state
    zero = getattr(state, "deepspeed_plugin", None)
    if zero is not None:
        return bool(zero.zero_stage == _ZERO_WITH_PARAMETERS)
    return getattr(state, "fsdp_plugin", None) is not None


def needs_optimizer(accelerator: Accelerator) -> bool:
    """Whether a model is prepared only together with an optimizer: FSDP, or any stage of ZeRO."""
    has_zero = getattr(accelerator.state, "deepspeed_plugin", None) is not None
    return has_zero or spreads_weights(accelerator)


def choose_layers(accelerator: Accelerator, model: nn.Module) -> None:
    """Choose the layers that FSDP gathers one by one, unless the launch file names them.

    accelerate 1.15 takes every class that the model doesn't split. Where one of these holds the
    input embedding, as BERT's does, it would shard that twice, which torch refuses.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or plugin.transformer_cls_names_to_wrap is not None:
        return
    embedding = cast("Any", model).get_input_embeddings()
    whole = set(getattr(model, "_no_split_modules", None) or ())
    layers = [one for one in model.modules() if type(one).__name__ in whole]
    around = {type(one) for one in layers if any(part is embedding for part in one.modules())}
    names = {type(one).__name__ for one in layers if type(one) not in around}
    plugin.transformer_cls_names_to_wrap = sorted(names)


def take_weights(model: nn.Module) -> nn.Module:
    """Copy the structure of a model and move its weights into the copy.

    Args:
        model: Keeps its modules and buffers; its parameters become empty ones of the same shape,
            tied ones stay tied.

    Returns:
        The copy, with the very parameters that the model had.
    """
    parameters = list(model.parameters())
    taken = copy.deepcopy(model, {id(one): one for one in parameters})
    empty = {
        id(one): nn.Parameter(torch.empty_like(one, device="meta"), one.requires_grad)
        for one in parameters
    }
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            module.register_parameter(name, empty[id(parameter)])
    return taken


def give_weights_back(accelerator: Accelerator, trained: nn.Module, model: nn.Module) -> None:
    """Gather trained weights in the main process, on its CPU, and put them into the empty model.

    All processes call this; the others' models stay empty.

    Raises:
        TrainingError: The gathered weights are not those of the model.
    """
    weights = cast("dict[str, torch.Tensor]", accelerator.get_state_dict(trained))
    build_models_whole()  # the Trainer has made transformers spread them
    if not accelerator.is_main_process:
        return
    found = model.load_state_dict(weights, strict=False, assign=True)
    _tie(model)
    left = [name for name, one in model.named_parameters() if one.is_meta]
    if left or found.unexpected_keys:
        names = ", ".join([*left, *found.unexpected_keys][:3])
        raise TrainingError(
            f"the weights gathered from all processes are not those of the model ({names}). The "
            "checkpoints stand; continue with --resume in as many processes"
        )


def _tie(model: nn.Module) -> None:
    """Make tied weights one again, each of which was gathered by itself."""
    for module in model.modules():
        if hasattr(module, "tie_weights"):
            cast("Any", module).tie_weights()
            return
