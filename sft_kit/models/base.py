"""Checkpoints to models and tokenizers: one place that decides how anything is loaded.

Safetensors only, and never code from a checkpoint: `trust_remote_code=False` is passed always,
because the libraries' default is to ask on stdin.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.network import hub_is_reachable
from sft_kit.models.quantization import freeze, guard_cpu_packing
from sft_kit.settings import ModelSettings, ScratchModelSettings

if TYPE_CHECKING:
    from collections.abc import Callable

EMBEDDED_CHECKPOINT = "data/checkpoints/tiny-gpt2"
"""The checkpoint that comes with the project and needs no network."""


def load_tokenizer(settings: ModelSettings | ScratchModelSettings) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint, ready to pad.

    A tokenizer without padding token pads with its end-of-text token: labels are masked by
    position, so nothing is lost, and no embedding has to be resized.

    Raises:
        CheckpointError: No tokenizer there, or the Hub can't be reached.
    """
    name = settings.tokenizer if isinstance(settings, ScratchModelSettings) else settings.checkpoint
    revision = settings.revision if isinstance(settings, ModelSettings) else None
    tokenizer = cast(
        "PreTrainedTokenizerBase",
        _from_pretrained(AutoTokenizer.from_pretrained, name, revision=revision),
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if isinstance(settings, ModelSettings):
        context = context_length(load_config_of(name, revision))
        if context is not None:
            tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    return tokenizer


def load_config_of(checkpoint: str, revision: str | None = None) -> PreTrainedConfig:
    """Load the architecture's settings of a checkpoint.

    Raises:
        CheckpointError: No config there, or the Hub can't be reached.
    """
    config = _from_pretrained(AutoConfig.from_pretrained, checkpoint, revision=revision)
    return cast("PreTrainedConfig", config)


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens the model can attend to; None where the architecture sets no bound."""
    length = getattr(config, "max_position_embeddings", None)
    return int(length) if length else None


def load_causal_lm(
    settings: ModelSettings, device: torch.device | str | None = None
) -> PreTrainedModel:
    """Load a causal language model, quantized when asked for.

    Args:
        settings: Checkpoint, quantization and dtype; `auto` means float32 here, a run has resolved
            it before.
        device: Where the weights go. None: this process's own GPU, else the CPU.

    Returns:
        The model in evaluation mode. Quantized models come with every parameter frozen.

    Raises:
        CheckpointError: The checkpoint is missing, has no safetensors, or needs its own code.
    """
    place = torch.device(device) if device is not None else _own_device()
    dtype = torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    quantization = _quantization_config(settings, dtype)
    options: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
    model = cast(
        "PreTrainedModel",
        _from_pretrained(
            AutoModelForCausalLM.from_pretrained,
            settings.checkpoint,
            revision=settings.revision,
            dtype=dtype,
            use_safetensors=True,
            device_map={"": place},
            **options,
        ),
    )
    if quantization is not None:
        guard_cpu_packing(model)
        freeze(model)
    return model


def new_causal_lm(
    settings: ScratchModelSettings, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Make a model with random weights that fits a tokenizer.

    Raises:
        CheckpointError: The architecture is unknown or its config refuses a field.
    """
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = AutoConfig.for_model(settings.architecture, **(ids | settings.config))
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (TypeError, ValueError) as error:
        place = f"model.architecture={settings.architecture}"
        problem = Problem("", place, str(error), "see the architecture's config in transformers")
        raise CheckpointError("the model can't be built", [problem]) from error
    return cast("PreTrainedModel", model)


def _own_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def _quantization_config(settings: ModelSettings, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if settings.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if settings.quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=settings.double_quantization,
            bnb_4bit_compute_dtype=dtype,
        )
    return None


def _from_pretrained(
    load: "Callable[..., object]", name: str, *, revision: str | None, **options: object
) -> object:
    local = Path(name).is_dir() or not hub_is_reachable()
    disable_progress_bar()
    try:
        return load(
            name, revision=revision, trust_remote_code=False, local_files_only=local, **options
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(*_explain(name, error)) from error
    finally:
        enable_progress_bar()


def _explain(name: str, error: Exception) -> tuple[str, list[Problem]]:
    """Say which of the four things that go wrong it was, and what to do."""
    key = "model.checkpoint"
    text = str(error)
    if "trust_remote_code" in text:
        todo = "choose a checkpoint whose architecture transformers knows"
        return f"{name} can't be loaded", [
            Problem("", key, "it needs Python code of its own, which is never run", todo)
        ]
    if Path(name).is_dir():
        first_line = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        todo = "it needs config.json, model.safetensors and the tokenizer's files"
        return f"the folder {name} can't be loaded", [Problem(name, key, first_line, todo)]
    if "safetensors" in text:
        todo = "choose a revision with model.safetensors, or convert the weights"
        return f"{name} can't be loaded", [
            Problem("", key, "it has no safetensors weights; pickles are never read", todo)
        ]
    todo = (
        f"to run without network, add model.checkpoint={EMBEDDED_CHECKPOINT} to the command; for "
        "a private model run `hf auth login`; for a folder of your own, check the path"
    )
    reason = _root_cause(error) if hub_is_reachable() else "the Hub can't be reached from here"
    return f"{name} is not on this machine, and the Hub did not give it", [
        Problem("", key, f"found {name!r}: {reason}", todo)
    ]


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
