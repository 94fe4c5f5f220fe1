"""The end of a run: everything written, read back, compared, and only then called finished."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_kit.artifacts.card import write_card
from sft_kit.artifacts.figures import write_curves
from sft_kit.artifacts.folder import RunFolder
from sft_kit.artifacts.load import load_model
from sft_kit.artifacts.record import weight_digests, write_record
from sft_kit.artifacts.samples import Sample, write_samples
from sft_kit.errors import CheckpointError
from sft_kit.settings import ModelSettings

_PROBE_TOKENS = 32


def save_run(
    run: RunFolder,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    metrics: Mapping[str, float],
    history: Sequence[Mapping[str, float]],
    *,
    base: ModelSettings | None = None,
    samples: Sequence[Sample] = (),
) -> None:
    """Write the run folder's final files and prove that they give back the model in memory.

    Everything is written to a hidden folder first and moved when the reloaded model has given the
    same logits; `run.yaml` says "finished" last of all. The other processes wait.

    Args:
        run: From `open_run`, begun.
        model: As trained, not wrapped.
        tokenizer: With its chat template.
        metrics: Goes into `metrics.json` as it is.
        history: What was logged, for the curves: `step` and figures.
        base: How the base was loaded; None for a model without one.
        samples: Answers before and after.

    Raises:
        CheckpointError: What was saved does not give the same logits.
    """
    state = PartialState()
    if state.is_main_process:
        stage = run.path / ".staging"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        save_model(model, tokenizer, stage)
        difference = reload_difference(model, stage, base)
        if difference > _tolerance(model):
            raise CheckpointError(
                f"the model read back from {stage} gives other logits than the trained one "
                f"(largest difference {difference:.3g}); the folder was left for inspection and "
                "the run is not marked as finished"
            )
        figures = {**metrics, "reload_max_logit_difference": difference}
        (stage / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if samples:
            write_samples(stage / "samples.md", samples)
        curves = write_curves(stage, history)
        write_card(stage / "README.md", run.path.resolve().name, run.record, figures, curves)
        for path in stage.iterdir():
            # safetensors writes through a temporary file that only its owner may read.
            path.chmod(0o644)
            path.replace(run.path / path.name)
        stage.rmdir()
        run.record.update(
            status="finished",
            seconds=round(time.time() - run.started, 1),
            metrics=dict(figures),
            weights=weight_digests(run.path),
        )
        write_record(run.path, run.record)
    state.wait_for_everyone()


def save_model(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Save the adapter (plain PEFT) or the whole model, and the tokenizer with its template."""
    if isinstance(model, PeftModel):
        # "auto" would ask the Hub for the base's vocabulary size; embeddings are never resized.
        model.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def reload_difference(
    model: PreTrainedModel | PeftModel, folder: Path, settings: ModelSettings | None
) -> float:
    """Load what was saved into a fresh base and compare logits on fixed token ids.

    Returns:
        Largest absolute difference of a logit.
    """
    device = next(model.parameters()).device
    fresh = load_model(folder, settings if isinstance(model, PeftModel) else None, device)
    vocabulary = int(model.config.vocab_size)
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=device).remainder(vocabulary).unsqueeze(0)
    was_training = model.training
    model.eval()
    fresh.eval()
    try:
        with torch.no_grad():
            before = _logits(model, ids)
            after = _logits(fresh, ids)
    finally:
        model.train(was_training)
    return float((before - after).abs().max())


def _logits(model: PreTrainedModel | PeftModel, ids: torch.Tensor) -> torch.Tensor:
    # accelerate puts an autocasting `forward` on the instance that was trained; the class's own one
    # gives what the weights give.
    forward = cast("Any", type(model)).forward
    return cast("torch.Tensor", forward(model, input_ids=ids).logits).float()


def _tolerance(model: PreTrainedModel | PeftModel) -> float:
    # One CPU computes the same bits twice; a GPU may choose another kernel for the second model.
    return 0.0 if next(model.parameters()).device.type == "cpu" else 1e-2
