"""A linear layer whose frozen weight stays packed, also while it trains an adapter.

Shapes: B... any leading dimensions, N their product, O output features, I input features.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.chatglm.packing import Bits, dequantize, packed_width

CPU_ROW_BLOCK = 1 << 20
"""Weights dequantized at a time on a CPU, forward: 4 MiB of float32, which stay in its cache."""

CPU_COLUMN_BLOCK = 1 << 22
"""The same backward: 16 MiB of float32. Narrower columns cost more than leaving the cache."""

DEVICE_BLOCK = 32 << 20
"""Weights dequantized at a time elsewhere: 64 MiB of float16, and few kernels to launch."""


class RowwiseQuantLinear(nn.Linear):
    """Linear layer with rowwise int4 or int8 weights that are never held dense.

    The weight and its scales don't train; a bias may. Being an `nn.Linear`, PEFT wraps it like any
    other; `W_q` and `dequantize` are the names under which PEFT finds the weight of a quantized
    layer (`dequantize_module_weight`), which DoRA needs.

    Args:
        in_features: I; even for 4 bits.
        out_features: O.
        bits: Width of the integers.
        bias: Whether there is a bias.
        device: Where the parameters are made, uninitialised.
        dtype: Of the bias, which is what the layer computes with; the input's dtype decides.

    Raises:
        CheckpointError: 4 bits with an odd number of input features.
    """

    weight: nn.Parameter
    weight_scale: nn.Parameter
    bias: nn.Parameter | None  # type: ignore[assignment] # torch leaves the None out
    no_grad_product: Callable[[Tensor, Tensor, Tensor], Tensor | None] | None
    """Faster `input @ weight.T` from input, weight and scale, tried where gradients are off."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: Bits,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make the dense weight
        self.in_features = in_features
        self.out_features = out_features
        self.bits: Bits = bits
        self.no_grad_product = None
        packed = torch.empty(
            out_features, packed_width(in_features, bits), dtype=torch.int8, device=device
        )
        scale = torch.empty(out_features, dtype=torch.float32, device=device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        values = nn.Parameter(torch.empty(out_features, dtype=dtype, device=device))
        self.register_parameter("bias", values if bias else None)

    @property
    def num_weights(self) -> int:
        """Weights that the packed integers stand for."""
        return self.in_features * self.out_features

    @property
    def W_q(self) -> nn.Parameter:  # noqa: N802 - PEFT's name
        """The packed weight."""
        return self.weight

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the dense weight, (O, I) in `dtype`."""
        return dequantize(self.weight.detach(), self.weight_scale.detach(), self.bits, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B..., I) to (B..., O) in the input's dtype, or autocast's.

        The bias is added to the rounded product, as the original does.

        Raises:
            TypeError: The input is not floating.
            ValueError: Its last dimension is not I.
        """
        _check_input(input, self.in_features)
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        output = None
        if self.no_grad_product is not None and not torch.is_grad_enabled():
            output = self.no_grad_product(input, self.weight, self.weight_scale)
        if output is None:
            output = rowwise_linear(input, self.weight, self.weight_scale, self.bits)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Take a parameter; the packed weight becomes one that is not overwritten by chance."""
        if name == "weight" and param is not None and not isinstance(param, _FixedWeight):
            fixed = _FixedWeight(param.detach(), requires_grad=False)
            vars(fixed).update(vars(param))  # transformers marks what it has loaded
            param = fixed
        super().register_parameter(name, param)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled layer; pickles hold the weight as a plain parameter."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.weight = self.weight  # registers it anew

    def extra_repr(self) -> str:
        """Describe the layer in a printed model."""
        return f"{super().extra_repr()}, bits={self.bits}"

    def reset_parameters(self) -> None:
        """Leave the parameters alone: integers have no random start."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RowwiseQuantLinear":
        # `.to(dtype)`, `.half()` and the like pass by integers: shown as int32, the scales follow
        # to another device and keep their 24 bits, of which bfloat16 would leave 8.
        order = list(self._parameters)
        packed = {"weight": self.weight, "weight_scale": self.weight_scale}
        for name in packed:
            del self._parameters[name]
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            packed = {name: _moved(parameter, fn) for name, parameter in packed.items()}
        finally:
            every = {**self._parameters, **packed}
            self._parameters.clear()
            self._parameters.update({name: every[name] for name in order})
        return self


def _moved(parameter: nn.Parameter, fn: Callable[[Tensor], Tensor]) -> nn.Parameter:
    integers = parameter.detach()
    if parameter.is_floating_point():
        integers = integers.view(torch.int32)
    moved = fn(integers).view(parameter.dtype)
    if moved.device == parameter.device and moved.data_ptr() == parameter.data_ptr():
        return parameter
    new = type(parameter)(moved, requires_grad=False)
    vars(new).update(vars(parameter))
    return new


class _FixedWeight(nn.Parameter):
    """A packed weight whose `data` takes no new values.

    PEFT's merging casts an adapter to int8, which leaves next to nothing of it, and writes that to
    `data`. Some of it torch refuses by itself. Nothing else would fail for 8 bits with
    `safe_merge=True`, and for DoRA: 8 bits always, 4 bits with `safe_merge=True`.

    The layer moves to another device by making a new parameter.
    """

    @property
    def data(self) -> Tensor:
        return super().data

    @data.setter
    def data(self, value: Tensor) -> None:
        if value.data_ptr() != self.data_ptr():
            message = "found new values for a packed weight; accepts none"
            todo = "call model.dequantize() before merging an adapter"
            raise CheckpointError("packed weights don't change", [Problem("", "", message, todo)])
        cast("Any", torch.Tensor.data).__set__(self, value)


def rowwise_linear(
    input: Tensor, packed: Tensor, scale: Tensor, bits: Bits, block: int | None = None
) -> Tensor:
    """Multiply by a packed weight, dequantizing a block at a time, forward and backward.

    Nothing but the packed weight is kept for the backward pass. Forward goes by rows of the weight
    and backward by its columns, so that each element of a result is one whole dot product and
    blocks change no rounding.

    Args:
        input: (B..., I), floating; the weight takes its dtype.
        packed: (O, I / 2 or I) int8.
        scale: (O,) float32.
        bits: Width of the integers.
        block: Weights dequantized at a time. None: what suits the device.

    Returns:
        (B..., O) in the input's dtype.
    """
    output: Tensor = _RowwiseLinear.apply(input, packed, scale, bits, block)  # type: ignore[no-untyped-call]
    return output


class _RowwiseLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context takes any attribute
        input: Tensor,
        packed: Tensor,
        scale: Tensor,
        bits: Bits,
        block: int | None,
    ) -> Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.bits, ctx.block = bits, block
        flat = input.reshape(-1, input.shape[-1])
        block = block or (CPU_ROW_BLOCK if input.device.type == "cpu" else DEVICE_BLOCK)
        output = _by_rows(flat, packed, scale, bits, block)
        return output.view(*input.shape[:-1], packed.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        packed, scale = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        block = ctx.block or (CPU_COLUMN_BLOCK if flat.device.type == "cpu" else DEVICE_BLOCK)
        result = _by_columns(flat, packed, scale, ctx.bits, block)
        return result.view(*gradient.shape[:-1], result.shape[1]), None, None, None, None


def _by_rows(input: Tensor, packed: Tensor, scale: Tensor, bits: Bits, block: int) -> Tensor:
    """(N, I) times the weight transposed: (N, O)."""
    out_features, width = packed.shape[0], input.shape[1]
    step = max(1, block // width)
    if step >= out_features:
        return input @ dequantize(packed, scale, bits, input.dtype).T
    output = input.new_empty(input.shape[0], out_features)
    buffer = input.new_empty(step, width)
    for start in range(0, out_features, step):
        stop = min(start + step, out_features)
        weight = dequantize(
            packed, scale, bits, input.dtype, rows=slice(start, stop), out=buffer[: stop - start]
        )
        torch.mm(input, weight.T, out=output[:, start:stop])
    return output


def _by_columns(gradient: Tensor, packed: Tensor, scale: Tensor, bits: Bits, block: int) -> Tensor:
    """(N, O) times the weight: (N, I)."""
    out_features = packed.shape[0]
    width = packed.shape[1] * (8 // bits)
    step = max(2, block // out_features // 2 * 2)
    if step >= width:
        return gradient @ dequantize(packed, scale, bits, gradient.dtype)
    output = gradient.new_empty(gradient.shape[0], width)
    buffer = gradient.new_empty(out_features * step)
    for start in range(0, width, step):
        stop = min(start + step, width)
        weight = dequantize(
            packed, scale, bits, gradient.dtype, columns=slice(start, stop),
            out=buffer[: out_features * (stop - start)].view(out_features, -1),
        )  # fmt: skip
        torch.mm(gradient, weight, out=output[:, start:stop])
    return output


def _check_input(input: Tensor, in_features: int) -> None:
    if not input.is_floating_point():
        raise TypeError(f"found an input of {input.dtype}; a packed linear layer accepts floats")
    if input.shape[-1:] != (in_features,):
        found = tuple(input.shape)
        raise ValueError(f"found an input of shape {found}; its last size must be {in_features}")
