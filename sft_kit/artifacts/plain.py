"""A run folder back to a model that reads and writes plain text; the folder alone is enough."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_kit.artifacts.load import (
    ADAPTER_FILE,
    check_weights,
    find_base,
    load_model,
    require_finished,
)
from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.base import load_tokenizer
from sft_kit.models.kinds import Kind
from sft_kit.run_record import RUN_FILE
from sft_kit.settings import Dtype, ModelSettings


@dataclass(frozen=True, slots=True)
class LoadedPlain:
    """A finished run of pretraining, or of a sequence-to-sequence model.

    Attributes:
        model: In evaluation mode.
        tokenizer: As in training.
        kind: What the model reads and answers.
        objective: What it was trained for: "clm", "mlm", "prefix", "pairs of texts", ...
        info: `run.yaml`.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    kind: Kind
    objective: str
    info: dict[str, object]


def is_plain_run(record: Mapping[str, object]) -> bool:
    """Whether this is `run.yaml` of a model that reads and writes plain text."""
    return "pretraining" in record


def load_plain_run(
    folder: str,
    base: str | None = None,
    *,
    force_base: bool = False,
    device: torch.device | str | None = None,
    dtype: Dtype | None = None,
) -> LoadedPlain:
    """Load a finished run of pretraining, or of a sequence-to-sequence model.

    Args:
        folder: Run folder.
        base: Where the base checkpoint of an adapter is now, if it is not where the run found it.
        force_base: Put the adapter on another base than the one trained on too, with a warning.
        device: Where the weights go. None: the device of this process.
        dtype: Type of the weights, if another than the base's in training, or than float32.

    Raises:
        CheckpointError: Not a finished run of this sort, weights that are not the ones it saved, no
            base, or another base than the one trained on.
    """
    path = Path(folder)
    record = require_finished(path)
    if not is_plain_run(record):
        raise CheckpointError(
            f"the run in {folder} was no pretraining: give the folder of one, or of a "
            "sequence-to-sequence model"
        )
    about = cast("Mapping[str, str]", record["pretraining"])
    if about.get("kind") not in get_args(Kind):
        accepted = ", ".join(get_args(Kind))
        found = f"found {about.get('kind')!r}, accepts {accepted}"
        problem = Problem(str(path / RUN_FILE), "pretraining.kind", found, "bring back the file")
        raise CheckpointError(f"the run in {folder} can't be loaded", [problem])
    kind = cast("Kind", about["kind"])
    check_weights(path, cast("Mapping[str, str]", record.get("weights") or {}))
    settings = cast("Mapping[str, Mapping[str, object] | None]", record["settings"])
    tokenizer = load_tokenizer(ModelSettings(checkpoint=folder))
    base_settings = None
    if (path / ADAPTER_FILE).is_file():
        base_settings = find_base(path, settings["model"] or {}, record, base, force=force_base)
    model = load_model(path, base_settings, device, dtype, kind=kind)
    return LoadedPlain(model, tokenizer, kind, about["objective"], record)
