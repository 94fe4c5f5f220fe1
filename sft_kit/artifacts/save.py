"""The end of a run: everything written, read back, compared, and only then called finished."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from accelerate import PartialState
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sft_kit.artifacts.card import write_card
from sft_kit.artifacts.classifier_card import write_classifier_card
from sft_kit.artifacts.figures import write_curves, write_ppo_curves, write_pretraining_curves
from sft_kit.artifacts.folder import RunFolder
from sft_kit.artifacts.load import is_reward_run
from sft_kit.artifacts.ppo_card import write_ppo_card
from sft_kit.artifacts.pretraining_card import write_pretraining_card
from sft_kit.artifacts.reading_back import reload_difference, tolerated_difference
from sft_kit.artifacts.reward_card import write_reward_card
from sft_kit.artifacts.samples import Sample, write_samples
from sft_kit.disk import telling_full_disk
from sft_kit.errors import CheckpointError
from sft_kit.manifest import force_to_disk
from sft_kit.run_record import RUN_FILE, weight_digests, write_record
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
    folders: Mapping[str, Callable[[Path], None]] = MappingProxyType({}),
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
        folders: Name -> what fills a folder of this name, such as the value head of a policy.

    Raises:
        CheckpointError: What was saved does not give the same logits.
    """
    state = PartialState()
    if state.is_main_process:
        with _staged(run.path) as stage:
            save_model(model, tokenizer, stage)
            difference = _checked_difference(model, stage, base)
            figures = {**metrics, "reload_max_logit_difference": difference}
            (stage / "metrics.json").write_text(
                json.dumps(figures, indent=2) + "\n", encoding="utf-8"
            )
            if samples:
                write_samples(stage / "samples.md", samples, _name_before(run.record))
            for name, content in files.items():
                (stage / name).write_bytes(content)
            for name, fill in folders.items():
                fill(stage / name)
            pictures = [*write_curves(stage, history), *write_ppo_curves(stage, history)]
            if "pretraining" in run.record:
                pictures += write_pretraining_curves(stage, history)
            pictures += [name for name in files if name.endswith(".png")]
            _write_card(run, stage / "README.md", figures, pictures, samples, history)
            _move_all(stage, run.path)
        run.record.update(
            status="finished",
            seconds=round(time.time() - run.started, 1),
            metrics=dict(figures),
            weights=weight_digests(run.path),
        )
        with telling_full_disk(run.path, RUN_FILE):
            write_record(run.path, run.record)
    state.wait_for_everyone()


def _checked_difference(
    model: PreTrainedModel | PeftModel, stage: Path, base: ModelSettings | None
) -> float:
    """Read back what was saved and compare its logits."""
    difference = reload_difference(model, stage, base)
    if difference > tolerated_difference(model):
        raise CheckpointError(
            f"the model read back from {stage} gives other logits than the trained one "
            f"(largest difference {difference:.3g}); the folder was left for inspection and "
            "the run is not marked as finished"
        )
    return difference


def _name_before(record: Mapping[str, object]) -> str:
    """Name what a model was before the run: a new one, or a fine-tuned one, is not a base."""
    if "pretraining" in record:
        return "Before training"
    return "Before PPO" if "ppo" in record else "Base model"


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Give a hidden folder to write to; where the disk is full, it goes."""
    stage = folder / ".staging"
    shutil.rmtree(stage, ignore_errors=True)
    with telling_full_disk(folder, "what the run leaves"):
        try:
            stage.mkdir(parents=True)
            yield stage
        except CheckpointError:
            raise
        except Exception:
            shutil.rmtree(stage, ignore_errors=True)
            raise


def _move_all(stage: Path, folder: Path) -> None:
    """Give everything in a stage its place, once it is on the disk."""
    for path in stage.rglob("*"):
        force_to_disk(path)
    for path in stage.iterdir():
        _move(path, folder / path.name)
    force_to_disk(folder)
    stage.rmdir()


def _move(path: Path, target: Path) -> None:
    """Move a file, or a folder in the place of one that an interrupted end of the run has left."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    for file in files:
        # safetensors writes through a temporary file that only its owner may read.
        file.chmod(0o644)
    if target.is_dir():
        shutil.rmtree(target)
    path.replace(target)


def _write_card(
    run: RunFolder,
    path: Path,
    metrics: Mapping[str, float],
    pictures: Sequence[str],
    samples: Sequence[Sample],
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write the card of the kind of run that this was."""
    title = run.path.resolve().name
    if "ppo" in run.record:
        write_ppo_card(path, title, run.record, metrics, pictures, samples)
    elif "pretraining" in run.record:
        counted = [int(entry.get("num_input_tokens_seen", 0)) for entry in history]
        num_tokens = max(counted, default=0) or None
        write_pretraining_card(path, title, run.record, metrics, pictures, num_tokens)
    elif is_reward_run(run.record):
        write_reward_card(path, title, run.record, metrics, pictures)
    elif "labels" in run.record:
        write_classifier_card(path, title, run.record, metrics, pictures)
    else:
        write_card(path, title, run.record, metrics, pictures)


def save_model(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Save the adapter (plain PEFT) or the whole model, and the tokenizer with its template."""
    if isinstance(model, PeftModel):
        # "auto" would ask the Hub for the base's vocabulary size; embeddings are never resized.
        # PEFT calls an adapter "default" where nobody names it; a policy has others beside it.
        model.save_pretrained(
            str(folder), selected_adapters=["default"], save_embedding_layers=False
        )
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
