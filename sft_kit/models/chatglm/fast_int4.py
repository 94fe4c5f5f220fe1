"""An optional faster product for packed int4 layers: bfloat16, CPU, without gradients.

torch has a kernel that multiplies by 4-bit integers without dequantizing them. It has no backward
and reads its own packing, so it serves generation only and takes memory of its own: 0.53 bytes for
each packed weight, somewhat more than the packed weights themselves (3.0 GB for a 6B model). While
a layer is prepared, 5 bytes for each of its weights come on top.

Its scales are bfloat16; results differ from those of the dense bfloat16 weights by what bfloat16
rounds, 0.3 % of their norm.
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.chatglm.packed_linear import RowwiseQuantLinear
from sft_kit.models.chatglm.packing import unpack_int4

_GROUPS = (128, 64, 32)
"""Columns that share a scale in the kernel; the largest that divides a row is the fastest."""

_ROW_MULTIPLE = 16
_INT4 = 4
_OFFSET = 8
_INNER_TILES = 1
_KERNELS = ("_convert_weight_to_int4pack_for_cpu", "_weight_int4pack_mm_for_cpu")


def use_fast_int4(model: nn.Module) -> int:
    """Give the packed int4 layers of a model torch's own int4 kernel for generation on a CPU.

    It is used where gradients are off and the layer computes in bfloat16; elsewhere, as in
    training, the layers go on as before. Packed weights that are changed or moved afterwards make
    their layer fall back as well; call this again then.

    Args:
        model: A bfloat16 model on the CPU with packed int4 layers, with or without adapter.

    Returns:
        Number of layers that have the kernel now.

    Raises:
        CheckpointError: The model, its layers or this torch don't fit the kernel; nothing is
            changed then.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, RowwiseQuantLinear)
    }
    problems = list(_problems(model, layers))
    if problems:
        raise CheckpointError("the fast int4 kernel can't be used", problems)
    for layer in layers.values():
        layer.no_grad_product = _Int4Product(layer)
    return len(layers)


class _Int4Product:
    """`input @ weight.T` of one layer by torch's kernel, or None where it does not apply."""

    def __init__(self, layer: RowwiseQuantLinear) -> None:
        self.source = _state(layer.weight, layer.weight_scale)
        self.group = cast("int", _group(layer.in_features))
        self.packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            unpack_int4(layer.weight.detach()).int() + _OFFSET, _INNER_TILES
        )
        # The kernel computes (integer - 8) * scale + zero, by group and output feature.
        shape = (layer.in_features // self.group, layer.out_features, 2)
        self.scales = torch.zeros(shape, dtype=torch.bfloat16)
        self.scales[..., 0] = layer.weight_scale.detach()

    def __call__(self, input: Tensor, packed: Tensor, scale: Tensor) -> Tensor | None:
        fits = input.dtype == torch.bfloat16 and input.device.type == "cpu"
        if not fits or input.numel() == 0 or _state(packed, scale) != self.source:
            return None
        result: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            input.reshape(-1, input.shape[-1]).contiguous(), self.packed, self.group, self.scales
        )
        return result.view(*input.shape[:-1], -1)


def _state(*tensors: Tensor) -> tuple[tuple[int, int], ...]:
    """What changes when tensors are written to or replaced."""
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)


def _group(in_features: int) -> int | None:
    return next((group for group in _GROUPS if in_features % group == 0), None)


def _problems(model: nn.Module, layers: dict[str, RowwiseQuantLinear]) -> Iterator[Problem]:
    if not layers:
        yield Problem("", "", "found no packed layers; accepts a ChatGLM int4 checkpoint")
    if not all(hasattr(torch.ops.aten, name) for name in _KERNELS):
        todo = "install torch 2.6 or later, or go on without it"
        yield Problem("", "", f"torch {torch.__version__} lacks the kernel", todo)
    dtype = _dtype(model)
    if layers and dtype != torch.bfloat16:
        message = f"found a model in {str(dtype).removeprefix('torch.')}; accepts bfloat16"
        yield Problem("", "dtype", message, "load the model with dtype bfloat16")
    for name, layer in layers.items():
        if message := _misfit(layer):
            yield Problem("", name, message, "go on without the fast kernel")


def _misfit(layer: RowwiseQuantLinear) -> str:
    if layer.weight.device.type != "cpu":
        return f"found weights on {layer.weight.device}; accepts the CPU"
    if layer.bits != _INT4:
        return f"found {layer.bits}-bit weights; accepts 4 bits"
    if _group(layer.in_features) is None:
        return f"found {layer.in_features} input features; accepts a multiple of {_GROUPS[-1]}"
    if layer.out_features % _ROW_MULTIPLE:
        return f"found {layer.out_features} output features; accepts a multiple of {_ROW_MULTIPLE}"
    return ""


def _dtype(model: nn.Module) -> torch.dtype | None:
    """Dtype of the first weights that are neither scales nor an adapter's: the embedding's."""
    floats = (
        parameter.dtype
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
        and not name.endswith(".weight_scale")
        and ".lora_" not in name
    )
    return next(floats, None)
