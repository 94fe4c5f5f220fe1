"""Whatever a user names to chat with: a run folder, a checkpoint folder or a Hub id."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from sft_kit.artifacts.load import LoadedRun, load_run
from sft_kit.artifacts.record import RUN_FILE, read_record
from sft_kit.config.yaml_text import Scalar
from sft_kit.data.templates import choose_template
from sft_kit.devices import find_accelerator
from sft_kit.errors import CheckpointError, ConfigError, Problem
from sft_kit.models.adapters import load_adapter
from sft_kit.models.base import load_causal_lm, load_tokenizer
from sft_kit.models.chatglm.fast_int4 import use_fast_int4
from sft_kit.models.fingerprint import checkpoint_folder
from sft_kit.models.network import hub_is_reachable
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
    """

    base: str | None = None
    adapter: Path | None = None
    quantization: Quantization | None = None
    dtype: Dtype | None = None
    fast_int4: bool = False
    config: dict[str, Scalar] = field(default_factory=dict)


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
        loaded = load_run(name, options.base, device=device, dtype=fast_dtype)
    else:
        settings = ModelSettings(
            checkpoint=name,
            quantization=options.quantization or "none",
            dtype=fast_dtype or _dtype_of_device(options.dtype),
            config=options.config,
        )
        loaded = load_checkpoint(settings, options.adapter, device)
    if options.fast_int4:
        use_fast_int4(loaded.model)
    return loaded


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
    tokenizer = load_tokenizer(settings)
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
    elif options.base:
        found = "is the base of a run folder, and this is a checkpoint"
        problems = [Problem("command line", "--base", found, "leave it out")]
    if options.fast_int4 and options.dtype not in (None, "auto", "bfloat16"):
        found = f"found {options.dtype}, but --fast-int4 computes in bfloat16"
        problems.append(Problem("command line", "--dtype", found, "leave one of them out"))
    if options.fast_int4 and options.quantization not in (None, "none"):
        found = f"found {options.quantization}, but --fast-int4 reads packed int4 weights"
        problems.append(Problem("command line", "--quantization", found, "leave one of them out"))
    if problems:
        raise ConfigError("these options can't be used", problems)


def _dtype_of_device(asked: Dtype | None) -> Dtype:
    """Pick 16 bits on a CUDA GPU, where more may not fit, and float32 elsewhere."""
    if asked not in (None, "auto"):
        return asked
    found = find_accelerator()
    if found.kind != "cuda":
        return "float32"
    return "bfloat16" if found.bf16 else "float16"
