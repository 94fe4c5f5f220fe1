"""A run folder back to a model that scores; the folder alone is enough."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_kit.artifacts.labels import Labels
from sft_kit.artifacts.load import (
    ADAPTER_FILE,
    check_weights,
    find_base,
    is_reward_run,
    load_model,
    load_template,
    recorded_settings,
    require_finished,
)
from sft_kit.data.templates import Template
from sft_kit.errors import CheckpointError
from sft_kit.models.base import load_tokenizer
from sft_kit.models.reward_model import ScoreScale
from sft_kit.settings import Dtype, ModelSettings, PreferenceDataSettings


@dataclass(frozen=True, slots=True)
class LoadedReward:
    """A finished run of a reward model.

    Attributes:
        model: In evaluation mode; its logits (B, 1) are the scores.
        tokenizer: As in training.
        template: As in training.
        scale: Where the scores of chosen answers lie.
        data: How the run read its data.
        record: `run.yaml`.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    scale: ScoreScale
    data: PreferenceDataSettings
    record: dict[str, object]


def load_reward_run(
    folder: str,
    base: str | None = None,
    *,
    force_base: bool = False,
    device: torch.device | str | None = None,
    dtype: Dtype | None = None,
) -> LoadedReward:
    """Load a finished run of a reward model, on this process's GPU or the CPU.

    Args:
        folder: Run folder.
        base: Where the base checkpoint is now, if it is not where the run found it.
        force_base: Put the adapter on another base than the one trained on too, with a warning.
        device: Where the weights go. None: the device of this process.
        dtype: Type of the weights, if the base's is to be another than in training.

    Raises:
        CheckpointError: Not a finished run, or not that of a reward model; weights or a template
            that are not the ones it saved; a head that is missing; no base, or another base than
            the one trained on.
    """
    path = Path(folder)
    record = require_finished(path)
    if not is_reward_run(record):
        raise CheckpointError(
            f"the run in {folder} trained no reward model: give the folder of a run of a recipe "
            "whose name begins with reward_"
        )
    check_weights(path, cast("Mapping[str, str]", record.get("weights") or {}))
    settings = cast("Mapping[str, Mapping[str, object] | None]", record["settings"])
    tokenizer = load_tokenizer(ModelSettings(checkpoint=folder))
    template = load_template(path, tokenizer, record)
    model_settings = None
    if (path / ADAPTER_FILE).is_file():
        model_settings = find_base(path, settings["model"] or {}, record, base, force=force_base)
    score = Labels(("score",), multi_label=False, is_score=True)
    model = load_model(path, model_settings, device, dtype, score)
    scale = ScoreScale(**cast("dict[str, Any]", record["score_scale"]))
    data = recorded_settings(PreferenceDataSettings, settings["data"])
    return LoadedReward(model.eval(), tokenizer, template, scale, data, record)
