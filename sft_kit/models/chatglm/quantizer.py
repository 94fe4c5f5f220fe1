"""Rowwise int4 and int8 as a quantization method of transformers, "chatglm_rowwise".

Loading, saving and `dequantize` go through `from_pretrained`, `save_pretrained` and the model, as
for every method that transformers knows. On disk is the original layout: packed integers under
`weight`, float16 scales under `weight_scale`.
"""

from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.chatglm.original_config import QUANT_METHOD
from sft_kit.models.chatglm.packed_linear import RowwiseQuantLinear
from sft_kit.models.chatglm.packing import Bits, check_bits, pack

_SCALE = ".weight_scale"

Layer = TypeVar("Layer", bound=nn.Linear)


@register_quantization_config(QUANT_METHOD)
class RowwiseQuantConfig(QuantizationConfigMixin):
    """What config.json says of the quantization.

    Args:
        bits: 4 or 8.
        quant_method: The method's name, as config.json repeats it.

    Raises:
        CheckpointError: Other bits.
    """

    def __init__(self, bits: int = 4, quant_method: str = QUANT_METHOD) -> None:
        self.quant_method = quant_method  # type: ignore[assignment] # upstream has an enum of its own
        self.bits: Bits = check_bits(bits)


@register_quantizer(QUANT_METHOD)
class RowwiseQuantizer(HfQuantizer):
    """Puts packed layers in the place of linear ones, all but the head.

    Adapters train on it; the packed weights themselves don't.
    """

    quantization_config: RowwiseQuantConfig
    # Makes transformers cut the scales of query_key_value at the rows at which it cuts the weight.
    serialized_names: dict[str, list[str]] = {"weight": ["weight", "weight_scale"]}  # noqa: RUF012

    def validate_environment(self, **_: object) -> None:
        """Refuse to quantize while loading, which would round weights that were rounded before.

        Raises:
            CheckpointError: The checkpoint is not quantized.
        """
        if not self.pre_quantized:
            message = "found a checkpoint that is not quantized; accepts one that is"
            todo = "load it in float16 without this config and call quantize(model)"
            problem = Problem("", "quantization_config", message, todo)
            raise CheckpointError("weights are not packed while they are loaded", [problem])

    def is_serializable(self) -> bool:
        """Allow `save_pretrained`."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Allow the Trainer to train adapters."""
        return True

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Give the scales back as float16, which they came as, where that loses nothing."""
        state = model.state_dict()
        for name in [name for name in state if name.endswith(_SCALE)]:
            half = state[name].half()
            if torch.equal(half.float(), state[name]):
                state[name] = half
        return state, {}

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: object) -> None:
        for name, linear in _layers(model, nn.Linear):
            layer = _packed_like(linear, self.quantization_config.bits)
            # transformers would give a weight that the checkpoint lacks random numbers; integers
            # can't have them. What is missing is refused after loading.
            layer._is_hf_initialized = True  # type: ignore[assignment]
            _replace(model, name, layer)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: object) -> None:
        layers = _layers(model, RowwiseQuantLinear)
        missing = [name for name, layer in layers if not _is_loaded(layer.weight)]
        if missing:
            message = f"found no packed weights for it ({len(missing)} layers lack them)"
            todo = "copy the checkpoint anew, it is incomplete"
            problem = Problem("", f"{missing[0]}.weight", message, todo)
            raise CheckpointError("the checkpoint can't be used", [problem])
        # transformers makes every floating tensor that it loads a trainable parameter.
        for _name, layer in layers:
            layer.weight_scale.requires_grad_(False)

    def _dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | str | None = None
    ) -> PreTrainedModel:
        if isinstance(dtype, str):  # as `save_pretrained` leaves it in the config
            dtype = cast("torch.dtype", getattr(torch, dtype))
        embedding = cast("Tensor", model.get_input_embeddings().weight)
        for name, layer in _layers(model, RowwiseQuantLinear):
            _replace(
                model, name, _dense_like(layer, dtype or embedding.dtype, embedding.requires_grad)
            )
        return model


def quantize(model: PreTrainedModel, bits: int = 4) -> None:
    """Pack a dense model's linear layers in place, all but the head, as the original does.

    Each weight is rounded to float16 first, since the original quantizes float16 checkpoints;
    rows are independent, so the split projections give the integers of the fused one. What is left
    keeps its dtype. `save_pretrained` then writes a checkpoint in the original layout.

    Args:
        model: A dense ChatGLM model of any floating dtype, without adapter.
        bits: 4 or 8.

    Raises:
        CheckpointError: The model is quantized, has an adapter, or has weights that don't fit;
            nothing is changed then.
    """
    width = check_bits(bits)
    layers = _layers(model, nn.Linear)
    _refuse(model, layers)
    packed = {name: _pack(linear, width) for name, linear in layers}
    for name, layer in packed.items():
        _replace(model, name, layer)
    quantizer = RowwiseQuantizer(RowwiseQuantConfig(width), pre_quantized=True)
    model.hf_quantizer = quantizer  # type: ignore[assignment]
    model.quantization_method = QUANT_METHOD  # type: ignore[assignment]
    model.config.quantization_config = quantizer.quantization_config


def _refuse(model: PreTrainedModel, layers: list[tuple[str, nn.Linear]]) -> None:
    problems = []
    if getattr(model, "is_quantized", False):
        todo = "call model.dequantize() before"
        problems.append(Problem("", "", "found a quantized model; accepts a dense one", todo))
    elif hasattr(model, "peft_config"):
        message = "found an adapter; accepts a model without one"
        problems.append(Problem("", "", message, "merge it before"))
    else:
        message = "found weights that are infinite, not a number or too large for float16"
        problems.extend(
            Problem("", f"{name}.weight", message, "look for a checkpoint that is not damaged")
            for name, linear in layers
            if not linear.weight.detach().half().isfinite().all()
        )
    if problems:
        raise CheckpointError("the model can't be quantized", problems)


def _layers(model: PreTrainedModel, kind: type[Layer]) -> list[tuple[str, Layer]]:
    head = model.get_output_embeddings()
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, kind) and module is not head
    ]


def _packed_like(linear: nn.Linear, bits: Bits) -> RowwiseQuantLinear:
    return RowwiseQuantLinear(
        linear.in_features, linear.out_features, bits=bits, bias=linear.bias is not None,
        device=linear.weight.device, dtype=linear.weight.dtype,
    )  # fmt: skip


def _pack(linear: nn.Linear, bits: Bits) -> RowwiseQuantLinear:
    layer = _packed_like(linear, bits)
    packed, scale = pack(linear.weight.detach().half(), bits)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    layer.weight_scale = nn.Parameter(scale.float(), requires_grad=False)
    layer.bias = linear.bias
    return layer.train(linear.training)


def _dense_like(layer: RowwiseQuantLinear, dtype: torch.dtype, trains: bool) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(layer.in_features, layer.out_features, bias=False)
    linear.weight = nn.Parameter(layer.dequantize(dtype), requires_grad=trains)
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.detach().to(dtype), layer.bias.requires_grad)
    return linear.train(layer.training)


def _is_loaded(parameter: nn.Parameter) -> bool:
    return bool(getattr(parameter, "_is_hf_initialized", False))


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
