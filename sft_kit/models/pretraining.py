"""Models that are pretrained: new ones with random weights, or checkpoints to go on with."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sft_kit.errors import CheckpointError, ConfigError, Problem
from sft_kit.models.base import (
    load_checkpoint,
    load_config_of,
    load_tokenizer,
    new_config,
    refuse_random_weights,
)
from sft_kit.models.chosen_parts import choose_parts
from sft_kit.models.fingerprint import describe_base
from sft_kit.models.kinds import Kind
from sft_kit.models.overrides import cant_build, refuse_other_shapes
from sft_kit.settings import ModelSettings, PretrainModelSettings, ScratchModelSettings

AUTO_CLASSES: Mapping[Kind, Any] = MappingProxyType(
    {
        "causal": AutoModelForCausalLM,
        "masked": AutoModelForMaskedLM,
        "pairs": AutoModelForPreTraining,
        "seq2seq": AutoModelForSeq2SeqLM,
    }
)
"""transformers' class that makes or loads a model of each kind."""

_NEXT_SENTENCE_LABEL = "next_sentence_label"
_DRAWN_FOR_PAIRS = ("pooler.", "seq_relationship.")
"""Parts that a checkpoint without the second task lacks; they may begin at random."""


def model_source(settings: PretrainModelSettings) -> ModelSettings | ScratchModelSettings:
    """Say which of the two the section `model` asks for: a checkpoint, or a new model.

    Raises:
        ConfigError: Neither, or a new model without architecture.
    """
    if settings.checkpoint is not None:
        return ModelSettings(
            settings.checkpoint,
            settings.revision,
            settings.quantization,
            settings.double_quantization,
            settings.dtype,
            settings.config,
            settings.attention,
            settings.dropout,
            settings.fused,
        )
    if settings.tokenizer is None or settings.architecture is None:
        missing = "tokenizer" if settings.tokenizer is None else "architecture"
        found = "found neither a checkpoint nor what a new model needs"
        problem = Problem("model", missing, found, "set it, or set model.checkpoint")
        raise ConfigError("there is no model to train", [problem])
    return ScratchModelSettings(settings.tokenizer, settings.architecture, settings.config)


def load_pretraining_tokenizer(settings: PretrainModelSettings) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint or of a new model, ready to pad.

    Raises:
        CheckpointError: No tokenizer there, or the Hub can't be reached.
        ConfigError: `model.config` names a field that the architecture does not have.
    """
    return load_tokenizer(model_source(settings))


def load_pretraining_model(
    settings: PretrainModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    *,
    num_token_types: int = 1,
    has_adapter: bool = False,
) -> PreTrainedModel:
    """Make a new model, drawn from the global random state, or load a checkpoint.

    Args:
        settings: Which of the two; `dtype: auto` means float32 here.
        tokenizer: Gives a new model its vocabulary.
        kind: What the model reads and answers.
        num_token_types: Different `token_type_ids` that it must know.
        has_adapter: Only an adapter will train, so nothing else may begin at random.

    Returns:
        The model; a checkpoint's in evaluation mode.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or of another kind; the architecture is
            unknown or its config refuses a field.
        ConfigError: `model` does not fit, or the architecture has no such model.
    """
    source = model_source(settings)
    if isinstance(source, ModelSettings):
        _require_token_types(load_config_of(source), num_token_types)
        return load_of_kind(source, kind, may_draw=not has_adapter)
    if has_adapter:
        found = "found an adapter for a new model, whose random weights would stay as they are"
        problem = Problem("", "adapter", found, "set it to null, or set model.checkpoint")
        raise ConfigError("the adapter does not fit the model", [problem])
    config = new_config(source, tokenizer)
    _require_kind(config, kind, f"model.architecture={source.architecture}")
    _require_token_types(config, num_token_types)
    _start_decoder(config, tokenizer, kind)
    try:
        model = AUTO_CLASSES[kind].from_config(config, trust_remote_code=False)
    except Exception as error:
        raise cant_build(source, error) from error
    choose_parts(cast("PreTrainedModel", model), settings)
    return cast("PreTrainedModel", model)


def load_of_kind(
    settings: ModelSettings,
    kind: Kind,
    device: torch.device | str | None = None,
    *,
    may_draw: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint as a language model of a kind.

    Args:
        settings: Checkpoint, quantization and dtype; `auto` means float32 here.
        kind: What the model reads and answers.
        device: Where the weights go. None: the device of this process.
        may_draw: The head for next sentences may begin at random where the checkpoint has none.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: It is missing, damaged, or lacks weights.
        ConfigError: It is of another kind, or `settings` do not fit it.
    """
    config = load_config_of(settings)
    _require_kind(config, kind, f"model.checkpoint={settings.checkpoint}")
    refuse_other_shapes(settings, load_config_of)
    load = AUTO_CLASSES[kind].from_pretrained
    model, report = load_checkpoint(load, settings, config, device=device)
    missing = report["missing_keys"]
    if kind == "pairs" and may_draw:
        missing = {name for name in missing if not any(part in name for part in _DRAWN_FOR_PAIRS)}
    refuse_random_weights(settings.checkpoint, missing)
    return model


def auto_class_name(kind: Kind) -> str:
    """Name transformers' class that loads a model of this kind."""
    return cast("str", AUTO_CLASSES[kind].__name__)


def describe_start(settings: PretrainModelSettings) -> dict[str, dict[str, object]]:
    """Say which weights a run goes on with, as `base` of its record; nothing of a new model."""
    source = checkpoint_of(settings)
    return {} if source is None else {"base": describe_base(source)}


def checkpoint_of(settings: PretrainModelSettings) -> ModelSettings | None:
    """Say which checkpoint is gone on with; None for a new model."""
    source = model_source(settings)
    return source if isinstance(source, ModelSettings) else None


def _require_kind(config: PreTrainedConfig, kind: Kind, place: str) -> None:
    if not _fits(config, kind):
        known = [name for name in AUTO_CLASSES if _fits(config, name)]
        has = {
            "causal": "a decoder (as gpt2 or llama)",
            "masked": "an encoder with a head for masked tokens (as bert)",
            "pairs": "an encoder with a head for next sentences (as bert)",
            "seq2seq": "an encoder and a decoder (as t5 or bart)",
        }
        found = f"found {config.model_type}, accepts {has[kind]}"
        todo = f"it is {has[known[0]]}: use a recipe for that" if known else ""
        raise ConfigError("the model does not fit the recipe", [Problem("", place, found, todo)])
    if kind == "pairs" and not _can_tell_pairs(config):
        found = f"found true, and {config.model_type} has no head that could tell"
        todo = "set it to false, or take a BERT"
        problem = Problem("", "pretrain.next_sentence", found, todo)
        raise ConfigError("the model does not fit the objective", [problem])


def _fits(config: PreTrainedConfig, kind: Kind) -> bool:
    """Whether the architecture is of a kind.

    transformers' tables alone don't tell: they have a BART that fills masks, and a BERT that writes
    from left to right although it sees both ways unless its config says `is_decoder`.
    """
    if type(config) not in AUTO_CLASSES[kind]._model_mapping:
        return False
    if kind == "seq2seq":
        return True
    if getattr(config, "is_encoder_decoder", False):
        return False
    is_encoder = type(config) in AUTO_CLASSES["masked"]._model_mapping
    if kind == "causal":
        return not is_encoder or bool(getattr(config, "is_decoder", False))
    return is_encoder


def _can_tell_pairs(config: PreTrainedConfig) -> bool:
    made = cast("type[PreTrainedModel]", AUTO_CLASSES["pairs"]._model_mapping[type(config)])
    return _NEXT_SENTENCE_LABEL in inspect.signature(made.forward).parameters


def _require_token_types(config: PreTrainedConfig, wanted: int) -> None:
    known = int(getattr(config, "type_vocab_size", 0) or 1)
    if wanted <= known:
        return
    found = f"found {known}, and the objective numbers tokens from 0 to {wanted - 1}"
    todo = f"set model.config.type_vocab_size={wanted} for a new model"
    problem = Problem("model", "config.type_vocab_size", found, todo)
    raise ConfigError("the model does not fit the objective", [problem])


def _start_decoder(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, kind: Kind
) -> None:
    """Let a new decoder begin with padding, as T5's does, or with the end of text, as BART's.

    A new config has the ids of the published vocabulary, which mean something else in another.
    """
    if kind != "seq2seq":
        return
    is_t5 = "t5" in config.model_type
    start = tokenizer.pad_token_id if is_t5 else tokenizer.eos_token_id
    if start is None:
        lacks = "padding" if is_t5 else "end-of-text"
        raise CheckpointError(f"the tokenizer has no {lacks} token for a decoder to begin with")
    config.decoder_start_token_id = start
    if not is_t5:
        config.forced_eos_token_id = None
