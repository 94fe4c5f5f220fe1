"""Whatever a user names to chat with: a run folder, a checkpoint folder or a Hub id."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from sft_kit.artifacts.load import LoadedRun, load_run
from sft_kit.artifacts.plain import LoadedPlain, is_plain_run, load_plain_run
from sft_kit.config.core_schema import Scalar
from sft_kit.data.templates import choose_template
from sft_kit.devices import find_accelerator
from sft_kit.errors import CheckpointError, ConfigError, Problem, SftKitError
from sft_kit.models.adapters import load_adapter
from sft_kit.models.base import load_causal_lm, load_config_of, load_tokenizer
from sft_kit.models.chatglm.fast_int4 import use_fast_int4
from sft_kit.models.fingerprint import checkpoint_folder
from sft_kit.models.kinds import Kind, kind_of_config
from sft_kit.models.network import hub_is_reachable
from sft_kit.models.pretraining import load_of_kind
from sft_kit.run_record import RUN_FILE, read_record
from sft_kit.settings import Dtype, ModelSettings, Quantization

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model that was named on the command line; None was not given.

    Attributes:
        base: Where the base checkpoint of a run is now, if it has moved.
        adapter: Folder with an adapter for a checkpoint.
        quantization: Storage of a checkpoint's linear layers.
        dtype: Type of a checkpoint's weights; None and "auto" pick by device.
        fast_int4: Generate with the int4 kernel of the CPU, in bfloat16.
        config: Fields of a checkpoint's config to replace on loading.
        force_base: Put a run's adapter on another base too, with a warning.
    """

    base: str | None = None
    adapter: Path | None = None
    quantization: Quantization | None = None
    dtype: Dtype | None = None
    fast_int4: bool = False
    config: dict[str, Scalar] = field(default_factory=dict)
    force_base: bool = False


def load_named(name: str, options: LoadOptions) -> LoadedRun:
    """Load what a user named: a run folder, a checkpoint folder or a Hub id.

    Raises:
        CheckpointError: It is none of these, or can't be loaded.
        ConfigError: An option that does not fit what it is.
    """
    is_run = is_run_folder(name)
    refuse_options(options, is_run=is_run)
    fast_dtype: Dtype | None = "bfloat16" if options.fast_int4 else None
    device = "cpu" if options.fast_int4 else None
    if is_run:
        loaded = load_run(
            name,
            options.base,
            force_base=options.force_base,
            device=device,
            dtype=fast_dtype,
        )
    else:
        settings = _settings_of(name, options, fast_dtype)
        if _kind_of_checkpoint(name) != "causal":
            raise CheckpointError(
                f"{name} is an encoder, or has one, and holds no chats: use `sft-kit generate "
                f"{name} --prompt TEXT`, or give a decoder"
            )
        loaded = load_checkpoint(settings, options.adapter, device)
    if options.fast_int4:
        use_fast_int4(loaded.model)
    return loaded


def load_named_plain(name: str, options: LoadOptions) -> LoadedPlain | None:
    """Load what a user named if it is a model that holds no chats; else None.

    That is a run of pretraining or of a sequence-to-sequence model, and a checkpoint with an
    encoder. What is nothing at all is None too: `load_named` says so.

    Raises:
        CheckpointError: It can't be loaded.
        ConfigError: An option that does not fit what it is.
    """
    folder = Path(name)
    if (folder / RUN_FILE).is_file():
        if not is_plain_run(read_record(folder)):
            return None
        _refuse_plain_options(options, is_run=True)
        return load_plain_run(name, options.base, force_base=options.force_base)
    if not _has_config(name):
        return None
    kind = _kind_of_checkpoint(name)
    if kind == "causal":
        return None
    _refuse_plain_options(options, is_run=False)
    settings = _settings_of(name, options, None)
    tokenizer = _load_tokenizer(settings)
    model = load_of_kind(settings, kind)
    adapted = model if options.adapter is None else load_adapter(model, options.adapter)
    adapted.eval()
    objective = "mlm"
    if kind == "seq2seq":
        has_sentinels = "<extra_id_0>" in tokenizer.get_vocab()
        objective = "spans" if has_sentinels else "pairs of texts"
    info: dict[str, object] = {"settings": {"model": asdict(settings), "adapter": None}}
    return LoadedPlain(adapted, tokenizer, kind, objective, info)


def is_run_folder(name: str) -> bool:
    """Whether this is a run folder, rather than a checkpoint folder or a Hub id.

    Raises:
        CheckpointError: It is none of the three.
    """
    folder = Path(name)
    if (folder / RUN_FILE).is_file():
        return True
    if (folder / "config.json").is_file():
        return False
    if (folder / "adapter_config.json").is_file():
        todo = f"give its base checkpoint, and --adapter {name}"
        raise CheckpointError(f"{name} holds an adapter and no {RUN_FILE}: {todo}")
    if folder.exists() or not _HUB_ID.fullmatch(name):
        read_record(folder)  # it says what a run folder is
    if checkpoint_folder(name) is None and not hub_is_reachable():
        found = "there is no such folder, it is not in the Hub's cache, and the Hub is out of reach"
        todo = "give a run folder (train.output_dir), a checkpoint folder or a Hub id"
        raise CheckpointError(f"{name} can't be loaded", [Problem("", "MODEL", found, todo)])
    return False


def load_checkpoint(
    settings: ModelSettings, adapter: Path | None = None, device: torch.device | str | None = None
) -> LoadedRun:
    """Load a checkpoint that no run has written, to chat with it.

    Args:
        settings: Checkpoint, quantization, dtype and config.
        adapter: Folder in which PEFT saved an adapter for it; of any age for ChatGLM.
        device: Where the weights go. None: the device of this process.

    Returns:
        The model in evaluation mode, with the tokenizer's own chat template, else
        `human-assistant`.

    Raises:
        CheckpointError: The checkpoint or the adapter can't be loaded.
        ConfigError: The quantization or the config does not fit the checkpoint.
    """
    tokenizer = _load_tokenizer(settings)
    template = choose_template(tokenizer, "auto")
    model = load_causal_lm(settings, device)
    adapted = model if adapter is None else load_adapter(model, adapter)
    adapted.eval()
    info: dict[str, object] = {"settings": {"model": asdict(settings), "adapter": None}}
    return LoadedRun(adapted, tokenizer, template, info)


def refuse_options(options: LoadOptions, *, is_run: bool) -> None:
    """Refuse options that do not fit what was named, or each other.

    Raises:
        ConfigError: All of them at once.
    """
    given = {
        "--adapter": options.adapter,
        "--quantization": options.quantization,
        "--dtype": options.dtype,
        "--config": options.config,
    }
    problems = []
    if is_run:
        found = "does not fit a run folder, which says itself how it was trained"
        problems = [
            Problem("command line", name, found, "leave it out") for name in given if given[name]
        ]
    else:
        bases = {"--base": options.base, "--force-base": options.force_base}
        names = {"--base": "is", "--force-base": "is about"}
        problems = [
            Problem(
                "command line",
                name,
                f"{verb} the base of a run folder, and this is a checkpoint",
                "leave it out",
            )
            for name, verb in names.items()
            if bases[name]
        ]
    if options.fast_int4 and options.dtype not in (None, "auto", "bfloat16"):
        found = f"found {options.dtype}, but --fast-int4 computes in bfloat16"
        problems.append(Problem("command line", "--dtype", found, "leave one of them out"))
    if options.fast_int4 and options.quantization not in (None, "none"):
        found = f"found {options.quantization}, but --fast-int4 reads packed int4 weights"
        problems.append(Problem("command line", "--quantization", found, "leave one of them out"))
    if problems:
        raise ConfigError("these options can't be used", problems)


def _refuse_plain_options(options: LoadOptions, *, is_run: bool) -> None:
    refuse_options(options, is_run=is_run)
    if options.fast_int4:
        found = "is for ChatGLM only, and this is another model"
        problem = Problem("command line", "--fast-int4", found, "leave it out")
        raise ConfigError("these options can't be used", [problem])


def _settings_of(name: str, options: LoadOptions, fast_dtype: Dtype | None) -> ModelSettings:
    return ModelSettings(
        checkpoint=name,
        quantization=options.quantization or "none",
        dtype=fast_dtype or _dtype_of_device(options.dtype),
        config=options.config,
    )


def _load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer; where training saved none with it, the run's folder has it."""
    folder = Path(settings.checkpoint)
    run = folder.resolve().parent
    if folder.is_dir() and not any(folder.glob("*token*")) and (run / RUN_FILE).is_file():
        found = "it has no tokenizer, as it was saved on the way of a run"
        problem = Problem(str(folder), "", found, f"give the run folder: {folder.parent}")
        raise CheckpointError(f"{folder} can't be loaded", [problem])
    return load_tokenizer(settings)


def _has_config(name: str) -> bool:
    """Whether a checkpoint of this name can be looked into."""
    if Path(name).exists() or not _HUB_ID.fullmatch(name):
        return (Path(name) / "config.json").is_file()
    return checkpoint_folder(name) is not None or hub_is_reachable()


def _kind_of_checkpoint(name: str) -> Kind:
    try:
        return kind_of_config(load_config_of(ModelSettings(name)))
    except SftKitError:
        # What is wrong is said where the model is loaded, with the fields that --config replaces.
        return "causal"


def _dtype_of_device(asked: Dtype | None) -> Dtype:
    """Pick 16 bits on a CUDA GPU, where more may not fit, and float32 elsewhere."""
    if asked not in (None, "auto"):
        return asked
    found = find_accelerator()
    if found.kind != "cuda":
        return "float32"
    return "bfloat16" if found.bf16 else "float16"
