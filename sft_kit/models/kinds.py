"""The kinds of language model: what they read and what they answer."""

from typing import Any, Literal, TypeAlias, cast

from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_PRETRAINING_MAPPING_NAMES,
)

Kind: TypeAlias = Literal["causal", "masked", "pairs", "seq2seq"]
"""A decoder that continues text; an encoder that fills masks; the same with a second head that
tells whether two texts follow each other; an encoder with a decoder."""


def kind_of(model: PreTrainedModel | PeftModel) -> Kind:
    """Tell the kind of a language model, with or without adapter, by its class."""
    bare = model.get_base_model() if isinstance(model, PeftModel) else model
    config = cast("Any", bare).config
    return _kind(type(bare).__name__, is_encoder_decoder=config.is_encoder_decoder)


def kind_of_config(config: PreTrainedConfig) -> Kind:
    """Tell the kind of a checkpoint's language model by the class that its config names first."""
    names = config.architectures or [""]
    return _kind(names[0], is_encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)))


def _kind(class_name: str, *, is_encoder_decoder: bool) -> Kind:
    if is_encoder_decoder:
        return "seq2seq"
    if class_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return "causal"
    if class_name in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values():
        return "masked"
    return "pairs" if class_name in MODEL_FOR_PRETRAINING_MAPPING_NAMES.values() else "causal"
