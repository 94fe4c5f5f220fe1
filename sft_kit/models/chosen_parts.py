"""Parts of a model that can be had in a faster form: attention kernel, dropout, activation."""

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from sft_kit.errors import ConfigError, Problem
from sft_kit.models.block_attention import BLOCKS, register_blocks
from sft_kit.models.dropout import disable_dropout
from sft_kit.settings import ModelSettings, PretrainModelSettings


def choose_parts(model: PreTrainedModel, settings: ModelSettings | PretrainModelSettings) -> None:
    """Give a model the attention kernel, dropout and activations that its settings ask for.

    Args:
        model: Without adapter, whose own dropout stays; changed in place. Its head, if it is a
            classifier, keeps its dropout too: the head trains.
        settings: `auto` leaves attention and dropout as they are; a run has resolved it before.

    Raises:
        ConfigError: The model, or this installation, has no such attention.
    """
    if settings.attention == BLOCKS:
        register_blocks()
    if settings.attention != "auto" and _has_kernels(model, settings.attention):
        try:
            model.set_attn_implementation(settings.attention)
        except (ImportError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            found = f"found {settings.attention}, which can't be had: {reason}"
            problem = Problem("model", "attention", found, "set it to auto")
            raise ConfigError("the attention kernel does not fit", [problem]) from error
    if settings.dropout == "none":
        disable_dropout(model.base_model)
    if settings.fused:
        _replace_gelu(model)


def _has_kernels(model: PreTrainedModel, attention: str) -> bool:
    """Whether it can be asked for; our own kernel stands in for `sdpa` only."""
    return attention != BLOCKS or bool(getattr(model, "_supports_sdpa", False))


class _FusedGelu(NewGELUActivation):
    """GPT-2's GELU, which transformers spells out in eight steps; in training, torch's same one."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.training:
            return functional.gelu(input, approximate="tanh")
        return super().forward(input)


def _replace_gelu(model: nn.Module) -> None:
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, _FusedGelu().train(child.training))
