"""A run folder back to a model that answers; the folder alone is enough."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_kit.artifacts.labels import Labels, recorded_labels
from sft_kit.data.templates import Template, bind_template
from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.adapters import load_adapter
from sft_kit.models.base import explained, load_causal_lm, load_config_of, load_tokenizer
from sft_kit.models.fingerprint import checkpoint_folder, describe_base
from sft_kit.models.heads import load_classifier
from sft_kit.models.kinds import Kind
from sft_kit.models.network import hub_is_reachable
from sft_kit.models.pretraining import load_of_kind
from sft_kit.models.reward_model import load_reward_model
from sft_kit.models.same_base import base_differences
from sft_kit.models.weight_files import fetch_weights
from sft_kit.run_record import RUN_FILE, read_record, weight_digests
from sft_kit.settings import Dtype, ModelSettings

ADAPTER_FILE = "adapter_model.safetensors"

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A finished run: the model in evaluation mode, its tokenizer and template, and `run.yaml`.

    Of a checkpoint that no run has written, `info` says how it was loaded.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    info: dict[str, object]


def load_run(
    folder: str,
    base: str | None = None,
    *,
    force_base: bool = False,
    device: torch.device | str | None = None,
    dtype: Dtype | None = None,
) -> LoadedRun:
    """Load a finished run, on this process's GPU or the CPU.

    Args:
        folder: Run folder.
        base: Where the base checkpoint is now, if it is not where the run found it.
        force_base: Put the adapter on another base than the one trained on too, with a warning.
        device: Where the weights go. None: the device of this process.
        dtype: Type of the weights, if the base's is to be another than in training, or a whole
            model's another than float32.

    Raises:
        CheckpointError: Not a finished run, that of a classifier or reward model, weights that are
            not the ones it saved, no base, another base than the one trained on, or a chat template
            that is not the one trained with.
    """
    path = Path(folder)
    record = require_finished(path)
    if is_reward_run(record):
        raise CheckpointError(
            f"the run in {folder} trained a reward model and not a language model: use `sft-kit "
            f"score {folder} --data FILE`, or give the folder of a language model"
        )
    if recorded_labels(record) is not None:
        raise CheckpointError(
            f"the run in {folder} trained a classifier and not a language model: use `sft-kit "
            f"classify {folder} --text TEXT`, or give the folder of a language model"
        )
    if "pretraining" in record:
        raise CheckpointError(
            f"the run in {folder} trained a model that holds no chats: use `sft-kit generate "
            f"{folder} --prompt TEXT`, or give the folder of a fine-tuned language model"
        )
    check_weights(path, cast("Mapping[str, str]", record.get("weights") or {}))
    settings = cast("Mapping[str, Mapping[str, object] | None]", record["settings"])
    tokenizer = load_tokenizer(ModelSettings(checkpoint=folder))
    template = load_template(path, tokenizer, record)
    model_settings = None
    if (path / ADAPTER_FILE).is_file():
        model_settings = find_base(path, settings["model"] or {}, record, base, force=force_base)
    model = load_model(path, model_settings, device, dtype)
    return LoadedRun(model, tokenizer, template, record)


def is_reward_run(record: Mapping[str, object]) -> bool:
    """Whether this is `run.yaml` of a reward model."""
    return "reward_model" in record


def require_finished(folder: Path) -> dict[str, object]:
    """Read the record of a run that has finished.

    Raises:
        CheckpointError: It has not, or there is no run.
    """
    record = read_record(folder)
    if record["status"] != "finished":
        raise CheckpointError(
            f"the run in {folder} did not finish (status: {record['status']}): repeat its command "
            "with --resume"
        )
    return record


def load_model(
    folder: Path,
    base: ModelSettings | None,
    device: torch.device | str | None = None,
    dtype: Dtype | None = None,
    labels: Labels | None = None,
    kind: Kind = "causal",
) -> PreTrainedModel | PeftModel:
    """Load an adapter onto a fresh base, or a whole model when `base` is None.

    Args:
        folder: With the adapter or the whole model.
        base: How its base is loaded.
        device: Where the weights go. None: the device of this process.
        dtype: Type of the weights, if another than the base's or float32.
        labels: Of a classifier or reward model; None loads a language model.
        kind: Of the language model.
    """
    settings = base or ModelSettings(checkpoint=str(folder))
    if dtype is not None:
        settings = replace(settings, dtype=dtype)
    if labels is None:
        model = (
            load_causal_lm(settings, device)
            if kind == "causal"
            else load_of_kind(settings, kind, device)
        )
    elif labels.is_score:
        model = load_reward_model(
            settings, pad_token_id=None, device=device, require_head=base is None
        )
    else:
        model = load_classifier(
            settings,
            labels.names,
            multi_label=labels.multi_label,
            device=device,
            require_head=base is None,
        )
    names = None if labels is None or labels.is_score else labels.names
    return model if base is None else load_adapter(model, folder, names)


def check_weights(path: Path, saved: Mapping[str, str]) -> None:
    """Compare a run's weight files with the digests in its record.

    Raises:
        CheckpointError: One was changed, is missing, or was added.
    """
    found = weight_digests(path)
    problems = [
        Problem(str(path / name), "", _difference(found.get(name), saved.get(name)))
        for name in sorted({*found, *saved})
        if found.get(name) != saved.get(name)
    ]
    if problems:
        raise CheckpointError(
            f"the weights in {path} are not the ones the run saved: bring them back as they were",
            problems,
        )


def _difference(found: str | None, saved: str | None) -> str:
    if found is None or saved is None:
        return "is missing" if found is None else f"was not written by the run ({RUN_FILE})"
    return f"has sha256 {found[:12]}, the run saved {saved[:12]}"


def load_template(
    path: Path, tokenizer: PreTrainedTokenizerBase, record: Mapping[str, object]
) -> Template:
    """Bind the chat template of a run folder, and make sure that it is the one trained with.

    Args:
        path: Run folder.
        tokenizer: Loaded from it.
        record: `run.yaml`.

    Raises:
        CheckpointError: It is missing, or another one.
    """
    saved = cast("Mapping[str, str]", record.get("template") or {})
    if not isinstance(tokenizer.chat_template, str) or not saved:
        raise CheckpointError(f"{path} has no chat template: it holds no model to chat with")
    template = bind_template(tokenizer, saved["name"], tokenizer.chat_template)
    if template.sha256 != saved["sha256"]:
        raise CheckpointError(
            f"the chat template in {path} is not the one the run was trained with (sha256 "
            f"{template.sha256[:12]}, trained with {saved['sha256'][:12]}): bring back "
            "chat_template.jinja as it was saved"
        )
    return template


def recorded_settings(cls: type[S], section: Mapping[str, object] | None) -> S:
    """Make settings of a section of `run.yaml`; keys of other versions are left out."""
    known = {entry.name for entry in fields(cast("Any", cls))}
    return cls(**{key: value for key, value in (section or {}).items() if key in known})


def find_base(
    path: Path,
    section: Mapping[str, object],
    record: Mapping[str, object],
    base: str | None,
    *,
    force: bool = False,
) -> ModelSettings:
    """Find the base of a run's adapter, and make sure that it is the one trained on.

    Args:
        path: Run folder.
        section: The section `model` of the run's settings.
        record: `run.yaml`.
        base: Where the base is now, if it has moved.
        force: Take another base too, and say so on stderr.

    Raises:
        CheckpointError: It has other weights, another config or another vocabulary.
    """
    settings = recorded_settings(ModelSettings, section)
    saved = cast("Mapping[str, str]", record["base"])
    folder = saved.get("folder")  # a run that was pulled knows none
    if base is None and not Path(settings.checkpoint).is_dir() and folder and Path(folder).is_dir():
        base = folder
    if base is not None:
        settings = replace(settings, checkpoint=base, revision=None)
    elif not saved.get("on_hub", True) and not Path(settings.checkpoint).is_dir():
        raise _base_elsewhere(path, settings.checkpoint)
    if not Path(settings.checkpoint).is_dir() and hub_is_reachable():
        with explained(settings.checkpoint):
            fetch_weights(settings.checkpoint, load_config_of(settings), settings.revision)
    if checkpoint_folder(settings.checkpoint, settings.revision) is not None:
        _check_base(path, settings, saved, force=force)
    return settings


def _base_elsewhere(path: Path, name: str) -> CheckpointError:
    found = f"the adapter in {path} was trained on a folder of another machine, {name!r}"
    return CheckpointError(f"{found}: give --base PATH with that checkpoint")


def _check_base(
    path: Path, settings: ModelSettings, saved: Mapping[str, object], *, force: bool
) -> None:
    differences = base_differences(saved, describe_base(settings))
    if not differences:
        return
    name = saved["name"]
    found = f"found {settings.checkpoint!r}, but the adapter was trained on {name!r}"
    found += f": {'; '.join(differences)}"
    summary = f"the adapter in {path} belongs to another base"
    if force:
        PartialState().print(f"warning: {summary}: {found}", file=sys.stderr)
        return
    todo = f"give --base PATH with {name!r} as it was, or add --force-base to use this one"
    raise CheckpointError(summary, [Problem(str(path), "base", found, todo)])
