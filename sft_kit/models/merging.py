"""An adapter made part of its base, in float32.

Merging rounds the sum `W + alpha / r * B @ A` to the base's type: in bfloat16 or 4 bits that loses
a good part of what the adapter learnt. So the base becomes float32 first, whatever it was.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from bitsandbytes.nn.modules import Linear8bitLt
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.adapters import quiet_peft
from sft_kit.models.chatglm.modeling import to_glm


def merge(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Merge the adapter, if there is one, into a dense float32 model of a stock class.

    Args:
        model: Quantized or not; it is used up.

    Returns:
        The model that plain transformers knows: a ChatGLM becomes a `GlmForCausalLM`.

    Raises:
        CheckpointError: The adapter can't be merged, or its merged weights are not finite.
    """
    dense = to_dense(model)
    merged = _merge_adapter(dense) if isinstance(dense, PeftModel) else dense
    if merged.config.model_type == "chatglm":
        return cast("PreTrainedModel", to_glm(cast("Any", merged)))
    _restore_conv1d(merged)
    return merged


def to_dense(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """Dequantize the base and turn all weights to float32; an adapter stays apart.

    Args:
        model: Changed in place as far as possible; go on with what is returned.

    Raises:
        CheckpointError: The adapter is no LoRA, or there are several.
    """
    if not isinstance(model, PeftModel):
        dense_model = _dequantize(model)
        dense_model.eval()
        return dense_model
    name, config = _only_adapter(model)
    if not getattr(model.get_base_model(), "is_quantized", False):
        nn.Module.to(model, torch.float32)
        model.eval()
        return model
    # PEFT's wrappers of bitsandbytes layers expect these to stay: the adapter moves to a new one.
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    config.init_lora_weights = True  # what PiSSA and its like changed in the base is in it already
    config.base_model_name_or_path = None  # PEFT warns when it is called otherwise now
    base = _dequantize(cast("PreTrainedModel", cast("Any", model.base_model).unload()))
    with quiet_peft(), _quiet_ties():
        dense = cast("PeftModel", get_peft_model(base, config))
        set_peft_model_state_dict(dense, state)
    nn.Module.to(dense, torch.float32)
    dense.eval()
    return dense


def is_exact(model: nn.Module) -> bool:
    """Whether a model computes in float32, apart from how its weights are stored."""
    dtypes = {value.dtype for value in model.parameters() if value.is_floating_point()}
    has_int8 = any(isinstance(module, Linear8bitLt) for module in model.modules())
    return dtypes <= {torch.float32, torch.float64} and not has_int8


def _only_adapter(model: PeftModel) -> tuple[str, Any]:
    configs = cast("dict[str, Any]", model.peft_config)
    kinds = ", ".join(str(getattr(config.peft_type, "value", "")) for config in configs.values())
    if kinds != "LORA":
        problem = Problem("adapter", "", f"found {kinds}, accepts one LORA")
        raise CheckpointError("this adapter can't be merged", [problem])
    ((name, config),) = configs.items()
    return name, copy.deepcopy(config)


def _merge_adapter(model: PeftModel) -> PreTrainedModel:
    _untie_adapted_embeddings(model)
    try:
        with _quiet_ties():
            merged = cast("Any", model).merge_and_unload(safe_merge=True)
    except ValueError as error:  # safe_merge: a weight that is not a number
        problem = Problem("adapter", "", " ".join(str(error).split()))
        raise CheckpointError("the adapter can't be merged", [problem]) from error
    return cast("PreTrainedModel", merged)


def _dequantize(model: PreTrainedModel) -> PreTrainedModel:
    if getattr(model, "is_quantized", False):
        _refuse_repacked(model)
        with _without_advice():
            model.dequantize(dtype=torch.float32)
    nn.Module.to(model, torch.float32)
    return model


def _refuse_repacked(model: nn.Module) -> None:
    """Stop where bitsandbytes has re-packed 4-bit weights, which it would dequantize wrongly.

    Models that `load_causal_lm` loaded are guarded; see `sft_kit.models.quantization`.
    """
    states = (getattr(parameter, "quant_state", None) for parameter in model.parameters())
    if any(getattr(state, "packing_format_for_cpu", False) for state in states):
        raise CheckpointError(
            "the 4-bit weights were re-packed by an evaluation on this CPU and can't be read back: "
            "load the model again, through sft_kit.models.base.load_causal_lm"
        )


def _untie_adapted_embeddings(model: PeftModel) -> None:
    """Give the output layer weights of its own where only one of two tied layers has an adapter."""
    base = cast("PreTrainedModel", model.get_base_model())
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    if not any(isinstance(layer, BaseTunerLayer) for layer in ends):
        return
    inside: list[Any] = [
        layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in ends
    ]
    if inside[1] is not None and inside[0].weight is inside[1].weight:
        inside[1].weight = nn.Parameter(inside[1].weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = False


def _restore_conv1d(model: PreTrainedModel) -> None:
    """Turn linear layers back into `Conv1D` where the architecture has it.

    Quantizing GPT-2 replaces its `Conv1D` by `Linear`, whose weight is the transposed one; plain
    transformers would read a square weight as it stands, without noticing.
    """
    with torch.device("meta"):
        stock = type(model)(model.config)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and isinstance(stock.get_submodule(name), Conv1D):
            restored = Conv1D(layer.out_features, layer.in_features)
            restored.weight = nn.Parameter(layer.weight.detach().T.contiguous())
            restored.bias = nn.Parameter(layer.bias.detach())
            model.set_submodule(name, restored)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep transformers from advising how to choose the type of dequantized weights."""
    logger = logging.getLogger("transformers.integrations.bitsandbytes")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _quiet_ties() -> Iterator[None]:
    """Keep back PEFT's warnings about tied embeddings, which are untied here where it matters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        yield
