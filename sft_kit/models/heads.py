"""Classification heads: a pretrained language model to a classifier.

The classes are transformers' own, so that what is saved needs nothing else to be read.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from sft_kit.errors import CheckpointError, ConfigError, Problem
from sft_kit.models.base import (
    explained,
    load_checkpoint,
    load_config_of,
    refuse_random_weights,
)
from sft_kit.models.head_origin import (
    HeadOrigin,
    LabelSet,
    held_back_report,
    parameter_names,
    refuse_drawn,
    refuse_other_sizes,
    settle_head,
    show_unexpected,
)
from sft_kit.models.head_precision import let_head_train
from sft_kit.models.pooling import is_language_model, pool_last_token
from sft_kit.settings import ModelSettings

_OF_THE_DATA = ("num_labels", "problem_type")


def load_classifier(
    settings: ModelSettings,
    label_names: Sequence[str],
    *,
    multi_label: bool = False,
    lm_weight: float = 0.0,
    device: torch.device | str | None = None,
    pad_token_id: int | None = None,
    require_head: bool = False,
) -> PreTrainedModel:
    """Load a pretrained model with a classification head in the place of its language-model head.

    A head that the checkpoint brings is kept if it is for the same labels; else a new one is drawn
    from the global random state. `head_of` says which. The head is float32 whatever the rest is,
    and never quantized. Decoders pool at the last real token (`sft_kit.models.pooling`).

    Args:
        settings: Checkpoint, quantization and dtype; `auto` means float32 here.
        label_names: Class id -> name.
        multi_label: A text may have any number of labels.
        lm_weight: Above 0, a decoder answers the loss of its language model too.
        device: Where the weights go. None: the device of this process.
        pad_token_id: What the tokenizer pads a decoder's texts with, for transformers' own class,
            which looks for it. None: as the checkpoint says, else its end-of-text token.
        require_head: Refuse a checkpoint that brings no head for these labels.

    Returns:
        The model in evaluation mode. Of a quantized one only the head trains.

    Raises:
        CheckpointError: As for `load_causal_lm`; the architecture has no classifier, or one whose
            pooling can't be made to follow the attention mask; or `require_head` is not met.
        ConfigError: `model.config` sets what the data decides, or `lm_weight` asks for a language
            model where there is none.
    """
    config = load_config_of(settings)
    wanted = LabelSet(tuple(label_names), _problem_type(multi_label))
    return load_headed(
        settings,
        config,
        wanted,
        lm_weight=lm_weight,
        device=device,
        pad_token_id=pad_token_id,
        require_head=require_head,
    )


def load_headed(
    settings: ModelSettings,
    config: PreTrainedConfig,
    wanted: LabelSet,
    *,
    lm_weight: float = 0.0,
    device: torch.device | str | None = None,
    pad_token_id: int | None = None,
    require_head: bool = False,
) -> PreTrainedModel:
    """Load a pretrained model with a head for any labels; `load_classifier` says all about it.

    Args:
        settings: Checkpoint, quantization and dtype.
        config: Of the checkpoint.
        wanted: What the head is for.
        lm_weight: Above 0, a decoder answers the loss of its language model too.
        device: Where the weights go.
        pad_token_id: What the tokenizer pads a decoder's texts with.
        require_head: Refuse a checkpoint that brings no such head.
    """
    _check_request(settings, config, wanted, lm_weight)
    brought = LabelSet(label_names_of(config), config.problem_type)
    _name_labels(config, wanted)
    blank = _blank_model(settings, config)
    modules = head_modules(blank)
    with held_back_report() as records:
        model, report = load_checkpoint(
            AutoModelForSequenceClassification.from_pretrained,
            settings,
            config,
            device=device,
            unquantized=modules,
            ignore_mismatched_sizes=True,
        )
    head = parameter_names(model, modules)
    refuse_random_weights(settings.checkpoint, report["missing_keys"] - head)
    refuse_other_sizes(settings.checkpoint, {key for key, *_ in report["mismatched_keys"]} - head)
    show_unexpected(model, report["unexpected_keys"], records)
    origin = settle_head(model, blank, modules, report, brought=brought, wanted=wanted)
    if require_head:
        refuse_drawn(settings.checkpoint, origin, brought=brought, wanted=wanted)
    cast("Any", model).sft_kit_head = origin
    let_head_train(model, modules)
    if is_decoder(config):
        _make_decoder(model, blank.config, lm_weight, fused=settings.fused)
        _name_padding(model.config.get_text_config(), pad_token_id)
    return model


def is_classifier(model: PreTrainedModel | PeftModel) -> bool:
    """Whether a model, with or without adapter, is a text classifier of transformers."""
    name = type(_without_adapter(model)).__name__
    return name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()


def head_modules(model: PreTrainedModel | PeftModel) -> tuple[str, ...]:
    """Name the modules that make up the classification head.

    Returns:
        Everything with parameters outside of the backbone, and the backbone's `pooler`, which
        stands between the two and which language models have not trained. Empty for a model
        without classification head.
    """
    if not is_classifier(model):
        return ()
    base = _without_adapter(model)
    backbone = base.base_model
    names = [
        name
        for name, child in base.named_children()
        if child is not backbone and any(True for _ in child.parameters())
    ]
    pooler = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        names.insert(0, f"{base.base_model_prefix}.pooler")
    return tuple(names)


def label_names_of(config: PreTrainedConfig) -> tuple[str, ...]:
    """Names of a config's labels in the order of the class ids."""
    names = cast("dict[int, str]", config.id2label or {})
    return tuple(names[number] for number in sorted(names))


def head_of(model: PreTrainedModel | PeftModel) -> HeadOrigin:
    """Say where a model's head comes from.

    Of a model that `load_classifier` has not made, everything outside of the backbone counts as
    drawn.
    """
    base = _without_adapter(model)
    known = cast("HeadOrigin | None", getattr(base, "sft_kit_head", None))
    if known is not None:
        return known
    prefix = f"{base.base_model_prefix}."
    modules = [name for name in head_modules(model) if not name.startswith(prefix)]
    note = f"head: of unknown origin ({', '.join(modules)})" if modules else "head: none"
    return HeadOrigin(frozenset(parameter_names(base, modules)), note)


def _without_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    if isinstance(model, PeftModel):
        return cast("PreTrainedModel", model.get_base_model())
    return model


def _problem_type(multi_label: bool) -> str:
    return "multi_label_classification" if multi_label else "single_label_classification"


def _name_labels(config: PreTrainedConfig, labels: LabelSet) -> None:
    config.id2label = dict(enumerate(labels.names))
    config.label2id = {name: number for number, name in enumerate(labels.names)}
    cast("Any", config).problem_type = labels.problem_type


def is_decoder(config: PreTrainedConfig) -> bool:
    """Whether an architecture with a classifier reads from left to right and pools at the end."""
    stock = cast("type[object]", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)])
    reads_on = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return (
        (reads_on or issubclass(stock, GenericForSequenceClassification))
        and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not config.is_encoder_decoder
    )


def _check_request(
    settings: ModelSettings, config: PreTrainedConfig, wanted: LabelSet, lm_weight: float
) -> None:
    assert len(set(wanted.names)) == len(wanted.names), "class ids are found by name"
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        found = f"{config.model_type} has no classification model in transformers"
        raise _cant_classify(settings, found)
    problems = [
        Problem("model", f"config.{key}", "the labels of the data decide it", "take it out")
        for key in _OF_THE_DATA
        if key in settings.config
    ]
    if wanted.problem_type == _problem_type(False) and len(wanted.names) < 2:
        problems.append(Problem("data", "label", f"found {wanted}, accepts 2 or more"))
    if lm_weight > 0 and not is_decoder(config):
        found = f"found {lm_weight}, but {config.model_type} does not predict the next token"
        problems.append(Problem("classify", "lm_weight", found, "set it to 0, or take a decoder"))
    if problems:
        raise ConfigError("this classifier can't be built", problems)


def _cant_classify(settings: ModelSettings, found: str) -> CheckpointError:
    todo = "choose another checkpoint, such as one of BERT, RoBERTa, GPT-2 or Llama"
    problem = Problem("model", "checkpoint", found, todo)
    return CheckpointError(f"{settings.checkpoint} can't be made a classifier", [problem])


def _blank_model(settings: ModelSettings, config: PreTrainedConfig) -> PreTrainedModel:
    """Make the classifier without memory, to see what its head is."""
    with explained(settings.checkpoint), torch.device("meta"):
        made = AutoModelForSequenceClassification.from_config(
            copy.deepcopy(config), trust_remote_code=False
        )
    blank = cast("PreTrainedModel", made)
    if is_decoder(config) and _linear_head(blank) is None:
        raise _cant_classify(
            settings, f"the classifier of {config.model_type} pools in a way of its own"
        )
    return blank


def _linear_head(model: PreTrainedModel) -> str | None:
    names = head_modules(model)
    is_linear = len(names) == 1 and isinstance(model.get_submodule(names[0]), nn.Linear)
    return names[0] if is_linear else None


def _make_decoder(
    model: PreTrainedModel, config: PreTrainedConfig, lm_weight: float, *, fused: bool
) -> None:
    learns_language = lm_weight > 0
    if learns_language and not is_language_model(model, config):
        found = (
            f"found {lm_weight}, but the next token of this {config.model_type} is not read from "
            "its embeddings alone"
        )
        todo = "set it to 0, or take a checkpoint with tied embeddings, such as GPT-2"
        problem = Problem("classify", "lm_weight", found, todo)
        raise ConfigError("this classifier can't be built", [problem])
    head = _linear_head(model)
    assert head is not None, "checked before the weights were loaded"
    pool_last_token(model, head, learns_language=learns_language, fused=fused)


def _name_padding(config: PreTrainedConfig, pad_token_id: int | None) -> None:
    """Name the padding token where the checkpoint does not: the end of text, as the tokenizer does.

    After the embeddings were made: those of some architectures never train the padding token.
    """
    own = cast("int | None", config.pad_token_id)
    if pad_token_id is not None:
        cast("Any", config).pad_token_id = pad_token_id
    elif own is None or own < 0:
        end = config.eos_token_id
        cast("Any", config).pad_token_id = end[0] if isinstance(end, list) else end
