"""A linear layer and its LoRA as one step of autograd, in the type of the frozen weights.

PEFT casts a layer's input to the adapter's float32, keeps that copy, and draws a float32 dropout
mask with one random number each; on a CPU this costs as much as the layer's own matrix product.
Shapes: T tokens, I inputs, O outputs, R rank.
"""

from typing import Any, cast

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from peft import LoraConfig
from peft.tuners.lora import bnb as peft_bnb
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from sft_kit.models.row_products import add_product, multiply
from sft_kit.models.seeded_dropout import (
    clear_numbers,
    draw_bits,
    draw_seed,
    keep_numbers,
    read_mask,
)

_QUANTIZED = (Linear4bit, Linear8bitLt)
_BY_DEEPSPEED = "ds_id"
"""Mark of weights that ZeRO-3 gathers only while the module's own forward runs."""


class _Fused:
    """PEFT's LoRA layer, same weights and same names, with a faster forward where that is plain.

    Plain is: one adapter, on, unmerged, without variants, on a frozen layer whose type is that of
    the computation. Anything else goes PEFT's own way, and so does a model that is not in training:
    what is saved answers, bit by bit, as it does when PEFT has loaded it.
    """

    # Random numbers of numpy and a backward pass of its own are nothing for `torch.compile`.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        """Answer for (..., I) with (..., O)."""
        layer = cast("Any", self)
        base = layer.get_base_layer()
        dtype = _product_dtype(base, x)
        if args or kwargs or dtype is None or not x.numel() or not _is_plain(layer):
            return cast("torch.Tensor", cast("Any", super()).forward(x, *args, **kwargs))
        (name,) = layer.active_adapters
        result: torch.Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
            x.reshape(-1, x.shape[-1]).to(dtype),
            base,
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
            float(layer.scaling[name]),
            float(getattr(layer.lora_dropout[name], "p", 0.0)),
        )
        result = result.view(*x.shape[:-1], result.shape[-1])
        return result.to(x.dtype) if isinstance(base, _QUANTIZED) else result


class FusedLinear(_Fused, Linear):
    """On `nn.Linear` and GPT-2's `Conv1D`."""


class FusedLinear4bit(_Fused, peft_bnb.Linear4bit):
    """On a 4-bit layer, unpacked once forward and once backward, and never kept."""


class FusedLinear8bit(_Fused, peft_bnb.Linear8bitLt):
    """On an 8-bit layer."""


def use_fused_lora(config: LoraConfig) -> None:
    """Have PEFT build fused layers for the adapters of this config; nothing of it is saved."""
    mapping: Any = {
        Linear4bit: _build_4bit,
        Linear8bitLt: _build_8bit,
        nn.Linear: _build_linear,
        Conv1D: _build_conv1d,
    }
    config._register_custom_module(mapping)


def _build_linear(
    target: nn.Module,
    adapter_name: str,
    config: LoraConfig,
    **options: Any,  # noqa: ANN401
) -> nn.Module | None:
    if type(target) is not nn.Linear:  # a subclass may compute something else
        return None
    config.fan_in_fan_out = False
    return FusedLinear(target, adapter_name, config=config, **options)


def _build_conv1d(
    target: nn.Module,
    adapter_name: str,
    config: LoraConfig,
    **options: Any,  # noqa: ANN401
) -> nn.Module | None:
    if type(target) is not Conv1D:
        return None
    config.fan_in_fan_out = True
    return FusedLinear(target, adapter_name, is_target_conv_1d_layer=True, config=config, **options)


def _build_4bit(target: nn.Module, adapter_name: str, **options: Any) -> nn.Module | None:  # noqa: ANN401
    if not isinstance(target, Linear4bit):
        return None
    weight = cast("Any", target.weight)
    own = {
        "compute_dtype": target.compute_dtype,
        "compress_statistics": weight.compress_statistics,
        "quant_type": weight.quant_type,
    }
    return FusedLinear4bit(target, adapter_name, **(options | own))


def _build_8bit(target: nn.Module, adapter_name: str, **options: Any) -> nn.Module | None:  # noqa: ANN401
    if not isinstance(target, Linear8bitLt):
        return None
    state = target.state
    own = {
        "has_fp16_weights": state.has_fp16_weights,
        "threshold": state.threshold,
        "index": target.index,
    }
    return FusedLinear8bit(target, adapter_name, **(options | own))


def _is_plain(layer: Any) -> bool:  # noqa: ANN401
    """Whether one adapter is on, in training, and nothing else."""
    names = layer.active_adapters
    return (
        layer.training
        and len(names) == 1
        and names[0] in layer.lora_A
        and names[0] not in layer.lora_variant
        and not layer.disable_adapters
        and not layer.merged
        and layer.lora_A[names[0]].bias is None
        and layer.lora_B[names[0]].bias is None
    )


def _product_dtype(base: nn.Module, x: torch.Tensor) -> torch.dtype | None:
    """Say in which type a frozen layer would be computed; None where its weight would be cast."""
    device = x.device.type
    cast_to = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    weight = cast("nn.Linear", base).weight
    if weight.requires_grad or hasattr(weight, _BY_DEEPSPEED):
        return None
    if isinstance(base, _QUANTIZED):
        # Only the CPU multiplies 8-bit weights as floating-point numbers, as is done here.
        is_right = isinstance(base, Linear4bit) or device == "cpu"
        return (cast_to or x.dtype) if is_right else None
    return weight.dtype if cast_to in (None, weight.dtype) else None


def _read_weight(base: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """Give a layer's weight as (I, O)."""
    if isinstance(base, Conv1D):
        return base.weight
    if isinstance(base, Linear4bit):
        weight = cast("Any", base.weight)
        return dequantize_4bit(weight.data, weight.quant_state).to(dtype).t()
    if isinstance(base, Linear8bitLt):
        if cast("Any", base.weight).CB is not None:
            base.init_8bit_state()
        rows, scales = base.state.CB, base.state.SCB
        assert rows is not None
        assert scales is not None
        return rows.to(dtype).mul_(scales.unsqueeze(1).mul(1 / 127)).t()
    return cast("nn.Linear", base).weight.t()


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        rows: torch.Tensor,
        base: nn.Linear,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        probability: float,
    ) -> torch.Tensor:
        """Compute `rows @ weight + bias + scale * dropout(rows) @ down.T @ up.T`."""
        dtype = rows.dtype
        weight = _read_weight(base, dtype)
        bias: torch.Tensor | None = base.bias  # torch's stubs forget that there may be none
        result = multiply(rows, weight, None if bias is None else bias.to(dtype))
        ctx.base, ctx.scale = base, scale / (1 - probability)
        bits = draw_bits(rows, draw_seed() if probability else None, probability)
        inner = keep_numbers(rows, read_mask(bits, rows)) @ down.to(dtype).t()
        result.addmm_(inner, up.to(dtype).t(), alpha=ctx.scale)
        ctx.save_for_backward(rows, inner, down, up, bits)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        rows, inner, down, up, bits = ctx.saved_tensors
        dtype = rows.dtype
        keep = read_mask(bits, rows)
        of_inner = (upstream @ up.to(dtype)).mul_(ctx.scale)
        of_up = (inner.t() @ upstream).t().to(up.dtype).mul_(ctx.scale)
        of_rows = None
        if ctx.needs_input_grad[0]:
            of_rows = clear_numbers(of_inner @ down.to(dtype), keep)
            add_product(of_rows, upstream, _read_weight(ctx.base, dtype).t())
        of_down = (of_inner.t() @ keep_numbers(rows, keep)).to(down.dtype)
        return of_rows, None, of_down, of_up, None, None
