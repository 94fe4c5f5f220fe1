"""The end of a run: everything written, read back, compared, and only then called finished."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_kit.artifacts.card import write_card
from sft_kit.artifacts.classifier_card import write_classifier_card
from sft_kit.artifacts.figures import write_curves
from sft_kit.artifacts.folder import RunFolder
from sft_kit.artifacts.reading_back import reload_difference, tolerated_difference
from sft_kit.artifacts.record import weight_digests, write_record
from sft_kit.artifacts.samples import Sample, write_samples
from sft_kit.errors import CheckpointError
from sft_kit.settings import ModelSettings


def save_run(
    run: RunFolder,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    metrics: Mapping[str, float],
    history: Sequence[Mapping[str, float]],
    *,
    base: ModelSettings | None = None,
    samples: Sequence[Sample] = (),
    files: Mapping[str, bytes] = MappingProxyType({}),
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
        files: Name -> content of what else belongs to the run, such as an evaluation report.

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
        if difference > tolerated_difference(model):
            raise CheckpointError(
                f"the model read back from {stage} gives other logits than the trained one "
                f"(largest difference {difference:.3g}); the folder was left for inspection and "
                "the run is not marked as finished"
            )
        figures = {**metrics, "reload_max_logit_difference": difference}
        (stage / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        if samples:
            write_samples(stage / "samples.md", samples)
        for name, content in files.items():
            (stage / name).write_bytes(content)
        pictures = write_curves(stage, history)
        pictures += [name for name in files if name.endswith(".png")]
        write = write_classifier_card if "labels" in run.record else write_card
        write(stage / "README.md", run.path.resolve().name, run.record, figures, pictures)
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
