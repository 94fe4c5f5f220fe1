"""ChatGLM2 and ChatGLM3 as transformers' GLM, loaded from and saved to the original format.

The two networks are the same: the original fuses the projections of queries, keys and values, and
uses other names. Code that comes with a checkpoint is never run.

Source of the names: THUDM/chatglm2-6b, modeling_chatglm.py.
"""

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    GlmConfig,
    GlmForCausalLM,
    PreTrainedModel,
)
from transformers.conversion_mapping import (
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding
from transformers.utils.hub import cached_file

from sft_kit.config.layer_names import CHATGLM_BLOCK_LAYERS, CHATGLM_OUTER_LAYERS
from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.chatglm.configuration import ChatGLMConfig
from sft_kit.models.chatglm.original_config import QUANT_METHOD
from sft_kit.models.chatglm.refusals import (
    refuse_other_weights,
    refuse_second_quantization,
    refuse_untold_dtype,
)
from sft_kit.models.chatglm.sentencepiece_model import count_pieces
from sft_kit.models.tensor_archive import read_tensors
from sft_kit.models.weight_files import download_options, refuse_outside_shards

PUBLISHED_VOCABULARY = 65024
PUBLISHED_PIECES = 64789
_USER_OFFSET, _OBSERVATION_OFFSET = 6, 8


class ChatGLMForCausalLM(GlmForCausalLM):
    """ChatGLM2 or ChatGLM3 with its language head.

    `from_pretrained` reads the original folders and Hub repositories, `save_pretrained` writes the
    original names again. Quantized checkpoints ("quantization_bit" 4 or 8) stay packed.
    """

    config_class = ChatGLMConfig
    config: ChatGLMConfig

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        # A table of rotary frequencies that the original saves and does not read.
        self._keys_to_ignore_on_load_unexpected = {r"rotary_pos_emb\.inv_freq"}
        self.generation_config = default_generation(config)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: object,
        **options: object,
    ) -> Self:
        """Load a checkpoint; arguments as in transformers, and `rope_mode` and `family` of ours.

        Where there is no generation_config.json, the family's defaults are set.

        Raises:
            CheckpointError: The checkpoint holds weights that would silently be left out, lacks
                some that the model needs, names files outside of its folder, has `.bin` that holds
                more than tensors, or is to be quantized though it is packed.
        """
        name = str(pretrained_model_name_or_path)
        refuse_second_quantization(name, options)
        if pretrained_model_name_or_path is not None:
            refuse_outside_shards(name, **download_options(options))
            refuse_untold_dtype(name, options)
        with_report = options.pop("output_loading_info", False)
        # transformers would run custom_generate/generate.py of the folder where code is trusted.
        options["trust_remote_code"] = False
        loaded = super().from_pretrained(
            pretrained_model_name_or_path,
            *model_args,
            **cast("dict[str, Any]", options | {"output_loading_info": True}),
        )
        model, report = cast("tuple[Self, dict[str, set[str]]]", loaded)
        refuse_other_weights(name, report, is_packed(model))
        if getattr(model.generation_config, "_from_model_config", False):
            pieces = _find_pieces(model.config.name_or_path, options)
            model.generation_config = default_generation(model.config, pieces)
        return cast("Self", (model, report)) if with_report else model

    @staticmethod
    def _load_pretrained_model(
        model: PreTrainedModel,
        state_dict: dict[str, torch.Tensor] | None,
        checkpoint_files: list[str] | None,
        *args: Any,  # noqa: ANN401 - passed on
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        # transformers 5.23 unpickles `.bin`; tensors that are handed to it, it takes as they are.
        pickled = [file for file in checkpoint_files or () if not file.endswith(".safetensors")]
        if state_dict is None and pickled:
            state_dict = {}
            for file in pickled:
                state_dict |= read_tensors(Path(file))
        return PreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, *args, **options
        )

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: object, **options: object
    ) -> None:
        """Save in the original format; models quantized by another library, with GLM's names."""
        if is_packed(self) or not getattr(self, "is_quantized", False):
            # What was recorded while loading misses the scales of a model quantized afterwards.
            self._weight_conversions = get_model_conversion_mapping(
                self, hf_quantizer=getattr(self, "hf_quantizer", None), add_legacy=False
            )
        else:  # its tables belong to the split projections
            options["save_original_format"] = False
        super().save_pretrained(
            save_directory, *cast("tuple[Any, ...]", args), **cast("dict[str, Any]", options)
        )
        self.config.dtype = self.dtype  # transformers 5.23 leaves the name of it there

    def half(self, *args: object) -> Self:
        """Cast to float16, packed models too: their packed weights and scales stay as they are."""
        dense: Any = super()
        return cast("Self", nn.Module.half(self) if is_packed(self) else dense.half(*args))

    def dequantize(self, dtype: torch.dtype | str | None = None) -> Self:
        """Turn packed layers into dense ones; arguments as in transformers."""
        dtype = self.dtype if dtype is None else dtype
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        packed: Any = super()
        return cast("Self", packed.dequantize(dtype))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        module: Any = super()
        module._apply(fn, recurse)
        rotary = self.model.rotary_emb
        if rotary.inv_freq.dtype != torch.float32:
            # A cast rounds the frequencies too: in float16, by 0.1 rad at position 700.
            exact = GlmRotaryEmbedding(self.config).to(rotary.inv_freq.device)
            rotary.inv_freq, rotary.original_inv_freq = exact.inv_freq, exact.original_inv_freq
        return self

    def to_glm(self) -> GlmForCausalLM:
        """Return the model as plain transformers knows it; see the function `to_glm`."""
        return to_glm(self)

    def float(self, *args: object) -> Self:
        """Cast to float32, packed models too: their packed weights and scales stay as they are."""
        dense: Any = super()
        return cast("Self", nn.Module.float(self) if is_packed(self) else dense.float(*args))


def is_packed(model: nn.Module) -> bool:
    """Tell whether the model's layers are packed in ChatGLM's own int4 or int8 format."""
    return bool(getattr(model, "is_quantized", False)) and (
        str(getattr(model, "quantization_method", "")) == QUANT_METHOD
    )


def to_glm(model: ChatGLMForCausalLM) -> GlmForCausalLM:
    """Make a stock GLM of a ChatGLM model, which needs this package no more once it is saved.

    The weights are shared with `model`, not copied.

    Raises:
        CheckpointError: The model is quantized, or has an adapter that is not merged.
    """
    _refuse_unlike_glm(model)
    fields = model.config.to_dict()
    names = GlmConfig.default_config_fields().keys() | {
        *("bos_token_id", "eos_token_id", "rope_parameters"),
    }
    kept = {name: fields[name] for name in names if name in fields}
    config = GlmConfig(**kept | {"dtype": model.dtype, "architectures": ["GlmForCausalLM"]})
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        glm = GlmForCausalLM(config)
    glm.load_state_dict(model.state_dict(), assign=True)
    glm.model.rotary_emb = GlmRotaryEmbedding(config).to(model.device)  # not in the state dict
    glm.generation_config = copy.deepcopy(model.generation_config)
    return cast("GlmForCausalLM", glm.train(model.training))


def default_generation(config: ChatGLMConfig, num_pieces: int | None = None) -> GenerationConfig:
    """Set what the original `chat` samples with, and the tokens that end an answer.

    Args:
        config: Its end tokens are kept where it names several.
        num_pieces: Pieces of the tokenizer, after which the ids of the role tokens follow; None
            where there is no tokenizer.

    Source:
        THUDM/chatglm3-6b, modeling_chatglm.py, `chat` and `stream_chat`.
    """
    if num_pieces is None and config.vocab_size == PUBLISHED_VOCABULARY:
        num_pieces = PUBLISHED_PIECES
    end = config.eos_token_id
    if config.family == "chatglm3" and isinstance(end, int) and num_pieces is not None:
        end = [end, num_pieces + _USER_OFFSET, num_pieces + _OBSERVATION_OFFSET]
    return GenerationConfig(
        do_sample=True,
        top_p=0.8,
        temperature=0.8,
        max_length=config.max_position_embeddings,
        eos_token_id=[end] if isinstance(end, int) else end,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
    )


def _find_pieces(name: str | None, options: Mapping[str, object]) -> int | None:
    path = cached_file(
        str(name),
        "tokenizer.model",
        **download_options(options),
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else count_pieces(Path(path))


def _refuse_unlike_glm(model: ChatGLMForCausalLM) -> None:
    problems = []
    if getattr(model, "is_quantized", False):
        todo = "call model.dequantize() before"
        problems.append(Problem("", "", "found a quantized model; accepts a dense one", todo))
    adapters = [name for name, _ in model.named_parameters() if ".base_layer." in name]
    if adapters:
        message = "found an adapter that is not merged; accepts a model without one"
        problems.append(Problem("", adapters[0], message, "call merge_and_unload() before"))
    if problems:
        raise CheckpointError("the model can't be exported as GLM", problems)


def _register() -> None:
    names = {
        "transformer.encoder.layers.": "model.layers.",
        "transformer.encoder.final_layernorm.": "model.norm.",
        **{f"{original}.": f"{name}." for original, (name,) in CHATGLM_OUTER_LAYERS.items()},
    }
    cut: dict[str, list[str]] = {}
    for original, parts in CHATGLM_BLOCK_LAYERS.items():
        if len(parts) == 1:
            names[f".{original}."] = f".{parts[0]}."
        else:
            cut[f".{original}."] = [f".{part}." for part in parts]
    # By the name of the class: PEFT looks for conversions of adapters under the model type.
    register_checkpoint_conversion_mapping(
        "ChatGLMForCausalLM",
        [WeightRenaming(original, native) for original, native in names.items()]
        + [
            WeightConverter(whole + kind, [part + kind for part in parts], [Split(dim=0)])
            for whole, parts in cut.items()
            for kind in ("weight", "bias")
        ],
        overwrite=True,
    )
    # Classes registered from outside transformers are taken before the code in the folder.
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        auto.register(ChatGLMConfig, ChatGLMForCausalLM, exist_ok=True)


_register()
