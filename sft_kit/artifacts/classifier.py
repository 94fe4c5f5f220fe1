"""A run folder back to a model that classifies; the folder alone is enough."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_kit.artifacts.labels import recorded_labels
from sft_kit.artifacts.load import (
    ADAPTER_FILE,
    check_weights,
    find_base,
    is_reward_run,
    load_model,
    recorded_settings,
    require_finished,
)
from sft_kit.artifacts.plain import is_plain_run
from sft_kit.errors import CheckpointError
from sft_kit.models.base import load_tokenizer
from sft_kit.settings import Dtype, LabelledDataSettings, ModelSettings


@dataclass(frozen=True, slots=True)
class LoadedClassifier:
    """A finished classifier run.

    Attributes:
        model: In evaluation mode.
        tokenizer: As in training.
        label_names: Class id -> name.
        multi_label: A text may have any number of labels.
        data: How the run read its data.
        info: `run.yaml`.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    label_names: tuple[str, ...]
    multi_label: bool
    data: LabelledDataSettings
    info: dict[str, object]


def load_classifier_run(
    folder: str,
    base: str | None = None,
    *,
    force_base: bool = False,
    device: torch.device | str | None = None,
    dtype: Dtype | None = None,
) -> LoadedClassifier:
    """Load a finished classifier run, on this process's GPU or the CPU.

    Args:
        folder: Run folder.
        base: Where the base checkpoint is now, if it is not where the run found it.
        force_base: Put the adapter on another base than the one trained on too, with a warning.
        device: Where the weights go. None: the device of this process.
        dtype: Type of the weights, if the base's is to be another than in training.

    Raises:
        CheckpointError: Not a finished run, the run of a language model, weights that are not the
            ones it saved, a head that is missing or for other classes, no base, or another base
            than the one trained on.
    """
    path = Path(folder)
    record = require_finished(path)
    labels = recorded_labels(record)
    if is_reward_run(record):
        raise CheckpointError(
            f"the run in {folder} trained a reward model, which has no classes: use `sft-kit score "
            f"{folder} --data FILE`, or give the folder of a classifier"
        )
    if labels is None:
        ask = f"generate {folder} --prompt TEXT" if is_plain_run(record) else f"chat {folder}"
        raise CheckpointError(
            f"the run in {folder} trained a language model, which has no classes: use `sft-kit "
            f"{ask}`, or give the folder of a classifier"
        )
    check_weights(path, cast("Mapping[str, str]", record.get("weights") or {}))
    settings = cast("Mapping[str, Mapping[str, object] | None]", record["settings"])
    tokenizer = load_tokenizer(ModelSettings(checkpoint=folder))
    model_settings = None
    if (path / ADAPTER_FILE).is_file():
        model_settings = find_base(path, settings["model"] or {}, record, base, force=force_base)
    model = load_model(path, model_settings, device, dtype, labels)
    data = recorded_settings(LabelledDataSettings, settings["data"])
    return LoadedClassifier(model, tokenizer, labels.names, labels.multi_label, data, record)
