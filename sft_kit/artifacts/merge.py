"""An adapter and its base as one stock model: merged, written, read back, compared.

Everything is written to a hidden folder beside the one that was asked for, which appears only once
the model read back has given the same logits.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from sft_kit.artifacts.load import ADAPTER_FILE, LoadedRun, load_run, require_finished
from sft_kit.artifacts.merged_card import CARD_FILE, is_merged_card, write_merged_card
from sft_kit.artifacts.named import LoadOptions, is_run_folder, load_checkpoint, refuse_options
from sft_kit.config.core_schema import Scalar
from sft_kit.devices import free_memory_bytes
from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.adapters import count_parameters
from sft_kit.models.base import load_causal_lm, load_config_of
from sft_kit.models.merging import is_exact, merge, to_dense
from sft_kit.models.probe import probe_logits
from sft_kit.run_record import read_record
from sft_kit.settings import Dtype, ModelSettings, StoredDtype

_EXACT = 1e-4
"""Largest difference of logits, as a share of the largest logit, that float32 may make."""
_ROUNDED = 0.25
"""The same against a base that computes in 16 bits, or rounds its inputs to 8 (LLM.int8).

That moves logits by up to 6 % (tiny models); weights read in a wrong layout, by 100 %.
"""
_WRITTEN = re.compile(
    r"README\.md|(generation_)?config\.json|model.*\.(safetensors|json)|.*token.*|"
    r"chat_template\.jinja|vocab\.\w+|merges\.txt"
)
"""Names in a folder that merging has written; one with any other name may hold somebody's work."""


_EXPORTED = frozenset({"chatglm"})
"""Model types that become another class: worth writing without an adapter too."""


@dataclass(frozen=True, slots=True)
class _Source:
    """What to merge: see `merge_and_save`."""

    name: str
    is_run: bool
    options: LoadOptions


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model on disk, and how far its logits moved on the way: largest differences.

    Attributes:
        folder: Where it stands.
        by_dequantizing: The base as loaded against the same weights in float32.
        by_merging: The adapter apart against the adapter merged, both in float32.
        by_rounding: The merged model in float32 against the same in the type it is stored in.
        dtype: That type.
    """

    folder: Path
    by_dequantizing: float
    by_merging: float
    by_rounding: float
    dtype: str

    def lines(self) -> list[str]:
        """Say it for a person, one fact a line."""
        facts = [
            f"largest difference of a logit by dequantizing to float32: {self.by_dequantizing:.3g}",
            f"largest difference of a logit by merging: {self.by_merging:.3g}",
        ]
        if self.dtype != "float32":
            facts.append(
                f"largest difference of a logit by storing {self.dtype}: {self.by_rounding:.3g}"
            )
        return [*facts, f"read back from the disk: the same logits, as {self.dtype}"]


def merge_and_save(
    name: str,
    output: Path,
    *,
    dtype: StoredDtype = "float32",
    base: str | None = None,
    adapter: Path | None = None,
    config: dict[str, Scalar] | None = None,
    overwrite: bool = False,
    force_base: bool = False,
) -> Merged:
    """Merge a run's adapter into its base, or a separate adapter into a checkpoint.

    A ChatGLM becomes a stock `GlmForCausalLM`, also without an adapter. It all happens on the CPU,
    where the same weights always give the same logits.

    Args:
        name: Run folder, checkpoint folder or Hub id.
        output: Folder to write.
        dtype: Type of the weights on disk.
        base: Where the base checkpoint of a run is now, if it has moved.
        adapter: Folder with an adapter for a checkpoint.
        config: Fields of a checkpoint's config to replace on loading.
        overwrite: Replace an earlier merged model.
        force_base: Merge a run's adapter into another base than its own too, with a warning.

    Raises:
        CheckpointError: Nothing to merge, a folder that may not be written, or logits that differ
            by more than rounding explains.
        ConfigError: An option that does not fit what `name` is.
    """
    options = LoadOptions(base, adapter, config=config or {}, force_base=force_base)
    source = _Source(name, is_run_folder(name), options)
    _check_source(source)
    output = output.resolve()
    _check_output(output, source, overwrite=overwrite)
    with _staging(output) as stage:
        merged = _merge_into(stage, source, output, dtype)
        usual = stage.stat().st_mode & 0o666
        for path in stage.iterdir():
            # safetensors writes through a temporary file that only its owner may read.
            path.chmod(usual)
    return merged


def _merge_into(stage: Path, source: _Source, output: Path, dtype: StoredDtype) -> Merged:
    """Load, merge, save and read back; one copy of the weights is in memory at a time."""
    loaded = _load(source)
    _check_memory(loaded)
    as_loaded = probe_logits(loaded.model)
    rounding = _EXACT if is_exact(loaded.model) else _ROUNDED
    dense = to_dense(loaded.model)
    apart = probe_logits(dense)
    model = merge(dense)
    together = probe_logits(model)
    by_dequantizing = _compare("dequantizing", as_loaded, apart, rounding)
    by_merging = _compare("merging", apart, together, _EXACT)
    _cast_parameters(model, getattr(torch, dtype))
    with _without_progress_bar():
        model.save_pretrained(stage)
    loaded.tokenizer.save_pretrained(stage)
    _cast_parameters(model, torch.float32)
    rounded = probe_logits(model)
    if not rounded.isfinite().all():
        raise CheckpointError(
            f"{dtype} can't hold the merged weights: they are too large (add --dtype float32, or "
            "bfloat16)"
        )
    by_rounding = float((rounded - together).abs().max())
    info = loaded.info
    del loaded, dense, model
    again = load_causal_lm(ModelSettings(str(stage), dtype="float32"), torch.device("cpu"))
    _compare("saving", rounded, probe_logits(again), 0.0)
    merged = Merged(output, by_dequantizing, by_merging, by_rounding, dtype)
    write_merged_card(stage / CARD_FILE, output.name, info, merged.lines())
    return merged


def _cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast what is saved; buffers, such as the frequencies of rotary positions, stay exact."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    had_progress_bar = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if had_progress_bar:
            enable_progress_bar()


def _load(source: _Source) -> LoadedRun:
    cpu = torch.device("cpu")
    if not source.is_run:
        settings = ModelSettings(source.name, dtype="float32", config=source.options.config)
        return load_checkpoint(settings, source.options.adapter, cpu)
    # A base quantized on loading is the one of the training only if it is loaded as it was then.
    is_quantized = _model_section(source).get("quantization", "none") != "none"
    dtype: Dtype | None = None if is_quantized else "float32"
    options = source.options
    return load_run(
        source.name, options.base, force_base=options.force_base, device=cpu, dtype=dtype
    )


def _check_memory(loaded: LoadedRun) -> None:
    """Stop before the system does: all weights become float32."""
    held = sum(tensor.numel() * tensor.element_size() for tensor in loaded.model.parameters())
    needed = count_parameters(loaded.model).total * torch.float32.itemsize - held
    free = free_memory_bytes(torch.device("cpu"))
    if needed > free:
        raise CheckpointError(
            f"merging in float32 needs {needed / 1e9:.1f} GB more memory, {free / 1e9:.1f} GB are "
            "free: close other programs, or merge on a larger machine"
        )


def _compare(what: str, before: torch.Tensor, after: torch.Tensor, share: float) -> float:
    """Return the largest difference; refuse one above `share` of the largest logit."""
    difference = float((before - after).abs().max())
    largest = float(before.abs().max())
    if not difference <= share * max(1.0, largest):  # also when it is not a number
        raise CheckpointError(
            f"{what} changed the model: a logit moved by {difference:.3g}, where the largest is "
            f"{largest:.3g}; nothing was written"
        )
    return difference


def _model_section(source: _Source) -> Mapping[str, object]:
    settings = cast(
        "Mapping[str, Mapping[str, object]]", read_record(Path(source.name))["settings"]
    )
    return settings.get("model") or {}


def _check_source(source: _Source) -> None:
    options = source.options
    refuse_options(options, is_run=source.is_run)
    record = require_finished(Path(source.name)) if source.is_run else {}
    if options.adapter or (Path(source.name) / ADAPTER_FILE).is_file():
        if "pretraining" in record:
            raise CheckpointError(
                f"the run in {source.name} can't be merged: merging is for causal language models "
                "that chat so far, and of this one PEFT's own `merge_and_unload` makes a plain "
                "model"
            )
        return
    settings = ModelSettings(source.name, config=options.config)
    if load_config_of(settings).model_type not in _EXPORTED:
        todo = "it can be loaded as it is" if source.is_run else "add --adapter FOLDER"
        problem = Problem(source.name, "", "it has no adapter", todo)
        raise CheckpointError("there is nothing to merge", [problem])


def _check_output(output: Path, source: _Source, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything but an earlier merged model, or a source of this one."""
    places = (source.name, source.options.base, source.options.adapter)
    sources = [Path(place).resolve() for place in places if place]
    if any(place == output or output in place.parents for place in sources):
        raise CheckpointError(f"{output} holds what is to be merged: give another --output")
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"{output} is a file: give another --output")
    found = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if not found:
        return
    if not overwrite:
        raise CheckpointError(f"{output} is not empty: give another --output, or add --overwrite")
    foreign = [name for name in found if not _WRITTEN.fullmatch(name)]
    if foreign or not is_merged_card(output / CARD_FILE):
        held = f" (it holds {', '.join(foreign[:5])})" if foreign else ""
        raise CheckpointError(
            f"{output} was not written by `sft-kit merge`{held}, so --overwrite does not delete "
            "it: give another --output"
        )


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    """Give a hidden folder that takes the place of `output` when all went well."""
    stage = output.with_name(f".{output.name}.staging-{os.getpid()}")
    try:
        stage.mkdir(parents=True)
        yield stage
        _put_in_place(stage, output)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(f"{output} can't be written: {reason}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _put_in_place(stage: Path, output: Path) -> None:
    """Let `stage` become `output`; the earlier model goes only once the new one stands."""
    earlier = stage.with_suffix(f".earlier-{os.getpid()}")
    if output.is_dir():
        output.replace(earlier)
    try:
        stage.replace(output)
    except BaseException:  # Ctrl-C too
        if earlier.is_dir():
            earlier.replace(output)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
