"""Checkpoints to models and tokenizers: one place that decides how anything is loaded.

Never code from a checkpoint: `trust_remote_code=False` is passed always, because the libraries'
default is to ask on stdin. ChatGLM, which ships code of its own, is `sft_kit.models.chatglm`.
"""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

import sft_kit.models.chatglm  # noqa: F401  (makes the Auto classes know ChatGLM2 and ChatGLM3)
from sft_kit.config.suggestions import did_you_mean, nearest
from sft_kit.errors import CheckpointError, ConfigError, Problem, SftKitError
from sft_kit.models.chosen_parts import choose_parts
from sft_kit.models.damage import explain_damage, one_line
from sft_kit.models.network import hub_is_reachable
from sft_kit.models.overrides import cant_build, refuse_other_fields, refuse_other_shapes
from sft_kit.models.quantization import freeze, guard_cpu_packing
from sft_kit.models.untrusted import refuse_hub_kernels
from sft_kit.models.weight_files import find_weight_files
from sft_kit.settings import ModelSettings, ScratchModelSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

EMBEDDED_CHECKPOINTS = {
    "chatglm": "data/checkpoints/tiny-chatglm2-int4",
    "gpt2": "data/checkpoints/tiny-gpt2",  # distilgpt2 is distilbert's
    "bert": "data/checkpoints/tiny-bert-chinese",
    "t5": "data/checkpoints/tiny-t5",
    "bart": "data/checkpoints/tiny-t5",
    "": "data/checkpoints/tiny-gpt2",
}
"""The checkpoints that come with the project and need no network, by what a name contains."""

_TRAIN_TOKENIZER = "train one with `sft-kit tokenizer train TEXTS --family FAMILY --output FOLDER`"

POSITIONS_AFTER_PADDING = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke",
    "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""Architectures that count positions from the padding token's id + 1, as fairseq does."""


def load_tokenizer(settings: ModelSettings | ScratchModelSettings) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint, ready to pad.

    A tokenizer without padding token pads with its end-of-text token: labels are masked by
    position, so nothing is lost, and no embedding has to be resized.

    Raises:
        CheckpointError: No tokenizer there, or the Hub can't be reached.
        ConfigError: `model.config` names a field that the architecture does not have.
    """
    name, key = (
        (settings.tokenizer, "model.tokenizer")
        if isinstance(settings, ScratchModelSettings)
        else (settings.checkpoint, "model.checkpoint")
    )
    revision = settings.revision if isinstance(settings, ModelSettings) else None
    config = None
    if isinstance(settings, ModelSettings) and _has_config(name):
        config = load_config_of(settings)
    tokenizer = cast(
        "PreTrainedTokenizerBase",
        _from_pretrained(
            AutoTokenizer.from_pretrained,
            name,
            key,
            revision=revision,
            **_tokenizer_options(config),
        ),
    )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # transformers builds an empty tokenizer of the config's architecture when it finds no file.
        todo = "copy tokenizer.json and tokenizer_config.json to it"
        problem = Problem(name, key, "it has no tokenizer", todo)
        raise CheckpointError(f"{name} can't be loaded", [problem])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if isinstance(settings, ScratchModelSettings):
        config = new_config(settings, tokenizer)
    context = None if config is None else context_length(config)
    if context is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    return tokenizer


def _tokenizer_options(config: PreTrainedConfig | None) -> dict[str, object]:
    # A ChatGLM tokenizer is of a family; it would read config.json anew, without `model.config`.
    if config is None or config.model_type != "chatglm":
        return {}
    return {"config": config, "family": cast("Any", config).family}


def load_config_of(settings: ModelSettings) -> PreTrainedConfig:
    """Load the architecture's settings of a checkpoint, with the fields of `model.config` replaced.

    Raises:
        CheckpointError: No config there, one that asks for code from the Hub, or the Hub can't be
            reached.
        ConfigError: `model.config` names a field that the architecture does not have.
    """
    config, unknown = cast(
        "tuple[PreTrainedConfig, dict[str, object]]",
        _from_pretrained(
            AutoConfig.from_pretrained,
            settings.checkpoint,
            "model.checkpoint",
            revision=settings.revision,
            return_unused_kwargs=True,
            **settings.config,
        ),
    )
    problems = [
        Problem("model", f"config.{name}", f"{config.model_type} has no such field", hint)
        for name in settings.config
        if name in unknown
        for hint in [did_you_mean(nearest(name, config.to_dict()))]
    ]
    if problems:
        raise ConfigError("these fields can't be set", problems)
    refuse_hub_kernels(settings.checkpoint, config)
    return config


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens the model can attend to; None where the architecture sets no bound.

    Raises:
        ConfigError: The id of the padding token leaves no position for a token.
    """
    length = getattr(config, "max_position_embeddings", None)
    if not length:
        return None
    skipped = _skipped_positions(config)
    if skipped < length:
        return int(length) - skipped
    key = "model.config.max_position_embeddings"
    found = f"found {length}, and {config.model_type} skips {skipped}: the padding token's id and 1"
    raise ConfigError("the model has no positions", [Problem("", key, found, "raise it")])


def _skipped_positions(config: PreTrainedConfig) -> int:
    if config.model_type not in POSITIONS_AFTER_PADDING:
        return 0
    if config.model_type == "mpnet":  # it has fairseq's id, whatever the config says
        return 2
    if getattr(config, "position_embedding_type", "absolute") != "absolute":  # ESM's rotary ones
        return 0
    padding = getattr(config, "pad_token_id", None)
    return 0 if padding is None else int(padding) + 1


def load_causal_lm(
    settings: ModelSettings, device: torch.device | str | None = None
) -> PreTrainedModel:
    """Load a causal language model, quantized when asked for.

    Args:
        settings: Checkpoint, quantization and dtype; `auto` means float32 here, a run has resolved
            it before.
        device: Where the weights go. None: the device of this process, as accelerate sees it.

    Returns:
        The model in evaluation mode. Quantized models come with every parameter frozen.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or incomplete, has no weights that are
            safe to read, or needs its own code.
        ConfigError: `model.config` or `model.quantization` does not fit the checkpoint.
    """
    config = load_config_of(settings)
    refuse_other_shapes(settings, load_config_of)
    model, report = load_checkpoint(
        AutoModelForCausalLM.from_pretrained, settings, config, device=device
    )
    refuse_random_weights(settings.checkpoint, report["missing_keys"])
    return model


def load_checkpoint(
    load: "Callable[..., object]",
    settings: ModelSettings,
    config: PreTrainedConfig,
    *,
    device: torch.device | str | None = None,
    unquantized: "Sequence[str] | None" = None,
    **options: object,
) -> tuple[PreTrainedModel, dict[str, "set[Any]"]]:
    """Load a checkpoint into a model of any kind, quantized when asked for.

    Args:
        load: The Auto class's `from_pretrained`.
        settings: Checkpoint, quantization and dtype.
        config: Of the checkpoint, as it shall be.
        device: Where the weights go. None: the device of this process, as accelerate sees it.
        unquantized: Modules that stay as they are. None: the output layer and what is tied to it.
        **options: More for `from_pretrained`.

    Returns:
        The model in evaluation mode, and transformers' report: `missing_keys`, `unexpected_keys`
        and `mismatched_keys`. Quantized models come with every parameter frozen.

    Raises:
        CheckpointError: The checkpoint is missing or damaged, has no weights that are safe to read,
            or needs its own code.
        ConfigError: `model.quantization` does not fit the checkpoint.
    """
    place = torch.device(device) if device is not None else PartialState().device
    dtype = torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    is_packed = getattr(config, "quantization_config", None) is not None
    if is_packed and settings.quantization != "none":
        raise _quantized_twice(settings)
    quantization = _quantization_config(settings, dtype, unquantized)
    if quantization is not None:
        options["quantization_config"] = quantization
    with explained(settings.checkpoint):
        files = find_weight_files(
            settings.checkpoint,
            config,
            revision=settings.revision,
            local_files_only=_only_local(settings.checkpoint),
        )
    model, report = cast(
        "tuple[PreTrainedModel, dict[str, set[Any]]]",
        _from_pretrained(
            load,
            files.source,
            "model.checkpoint",
            revision=settings.revision,
            config=config,
            dtype=dtype,
            use_safetensors=files.use_safetensors,
            device_map={"": place},
            output_loading_info=True,
            # transformers 5.23 looks for an adapter first and asks the Hub without this.
            adapter_kwargs={"local_files_only": _only_local(settings.checkpoint)},
            **options,
        ),
    )
    model.name_or_path = settings.checkpoint  # an adapter's card names the base by this
    if quantization is not None or is_packed:
        guard_cpu_packing(model)
        freeze(model)
    choose_parts(model, settings)
    return model, report


def new_config(
    settings: ScratchModelSettings, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedConfig:
    """Make the config of a new model; vocabulary and special tokens are the tokenizer's.

    Raises:
        CheckpointError: The architecture is unknown or its config refuses a field.
        ConfigError: `model.config` names a field that the architecture does not have, or tokens
            that the tokenizer does not have.
    """
    refuse_other_fields(settings, len(tokenizer))
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        config = AutoConfig.for_model(settings.architecture, **(ids | settings.config))
    except Exception as error:  # a config field can be wrong in as many ways as there are fields
        raise cant_build(settings, error) from error
    return config


def _quantization_config(
    settings: ModelSettings, dtype: torch.dtype, unquantized: "Sequence[str] | None"
) -> BitsAndBytesConfig | None:
    skipped = None if unquantized is None else list(unquantized)
    if settings.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    if settings.quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=skipped,  # it counts for 4 bits too
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=settings.double_quantization,
            bnb_4bit_compute_dtype=dtype,
        )
    return None


def _quantized_twice(settings: ModelSettings) -> ConfigError:
    found = f"found {settings.quantization}, but {settings.checkpoint} is stored quantized already"
    problem = Problem("model", "quantization", found, "set it to none: the weights stay packed")
    return ConfigError("the checkpoint can't be quantized twice", [problem])


def _from_pretrained(
    load: "Callable[..., object]",
    name: str,
    key: str,
    *,
    revision: str | None,
    **options: object,
) -> object:
    if Path(name).is_file():
        problem = Problem("", key, f"found {name!r}, a file", "name its folder")
        raise CheckpointError(f"{name} can't be loaded", [problem])
    had_progress_bar = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        with explained(name, key):
            return load(
                name,
                revision=revision,
                trust_remote_code=False,
                local_files_only=_only_local(name),
                **options,
            )
    finally:
        if had_progress_bar:  # it may have been switched off by HF_HUB_DISABLE_PROGRESS_BARS
            enable_progress_bar()


@contextmanager
def explained(name: str, key: str = "model.checkpoint") -> "Iterator[None]":
    """Turn what goes wrong while a checkpoint is read into one message that says what to do.

    Args:
        name: Hub id or folder.
        key: The setting that names it.

    Raises:
        CheckpointError: Anything went wrong but memory and what is a message already.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, SftKitError):
        raise
    except Exception as error:
        # A damaged file ends in whatever its reader raises: SafetensorError, KeyError, a bare
        # Exception of the tokenizers library.
        raise CheckpointError(*_explain(name, key, error)) from error


def _explain(name: str, key: str, error: Exception) -> tuple[str, list[Problem]]:
    """Say which of the four things that go wrong it was, and what to do."""
    text = str(error)
    if "trust_remote_code" in text:
        todo = "choose a checkpoint whose architecture transformers knows"
        return f"{name} can't be loaded", [
            Problem("", key, "it needs Python code of its own, which is never run", todo)
        ]
    if Path(name).is_dir():
        found, todo = explain_damage(Path(name), error)
        if key == "model.tokenizer":
            needs = "it needs tokenizer.json and tokenizer_config.json, whole"
            todo = f"{needs}: copy them again, or {_TRAIN_TOKENIZER}"
        return f"the folder {name} can't be loaded", [Problem(name, key, found, todo)]
    if "safetensors" in text:
        todo = "choose a revision with model.safetensors, or convert the weights"
        return f"{name} can't be loaded", [
            Problem("", key, "it has no safetensors weights; pickles are never read", todo)
        ]
    reason = _root_cause(error) if hub_is_reachable() else "the Hub can't be reached from here"
    return f"{name} is not on this machine, and the Hub did not give it", [
        Problem("", key, f"found {name!r}: {reason}", _way_on(name, key))
    ]


def _way_on(name: str, key: str) -> str:
    last = "for a folder of your own, check the path"
    if key == "model.tokenizer":
        return f"{_TRAIN_TOKENIZER}; for a private one run `hf auth login`; {last}"
    embedded = next(path for part, path in EMBEDDED_CHECKPOINTS.items() if part in name.lower())
    return (
        f"to run without network, add model.checkpoint={embedded} to the command; for "
        f"a private model run `hf auth login`; {last}"
    )


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def _only_local(name: str) -> bool:
    return Path(name).is_dir() or not hub_is_reachable()


def _has_config(name: str) -> bool:
    # A run folder with an adapter has a tokenizer and no config of a model.
    return not Path(name).is_dir() or (Path(name) / "config.json").is_file()


def refuse_random_weights(name: str, missing: "Collection[str]") -> None:
    """Stop where transformers fills what a checkpoint lacks with random numbers and goes on.

    Raises:
        CheckpointError: `missing` names tensors.
    """
    if not missing:
        return
    shown = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
    todo = "the weights are incomplete or belong to another architecture than config.json"
    problem = Problem("", "model.checkpoint", f"it lacks {len(missing)} tensors: {shown}", todo)
    raise CheckpointError(f"{name} can't be loaded", [problem])
