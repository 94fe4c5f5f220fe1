"""Reward models come out the same with one process as with several."""

import json
from pathlib import Path

import numpy as np
import pytest

from ..recipes.conftest import run
from .test_sft import LAUNCHERS, free_port, launch

STEM = "reward_gpt2_lora"


def write_lists(path: Path) -> Path:
    """Write lists of two to four answers; batches of two have unequal longest ones."""
    rows = [
        {"prompt": f"{path.stem} {index}?", "answers": ["Yes.", "no no", "bad", "Go away!"][:size]}
        for index, size in enumerate([2, 2, 2, 3, 4, 2, 2, 2, 3, 2, 2, 4, 2, 2])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.slow
def test_two_processes_evaluate_lists_of_unequal_length_as_one_does(
    smooth_checkpoint: Path, tmp_path: Path
) -> None:
    train, held_out = write_lists(tmp_path / "train.jsonl"), write_lists(tmp_path / "eval.jsonl")
    settings = {
        "model.checkpoint": smooth_checkpoint, "data.path": train, "data.eval_path": held_out,
        "data.eval_fraction": 0, "adapter.r": 4, "train.per_device_train_batch_size": 4,
        "train.per_device_eval_batch_size": 2, "train.max_steps": 3, "train.logging_steps": 1,
        "train.eval_strategy": "steps", "train.eval_steps": 3, "train.save_strategy": "no",
        "train.disable_tqdm": "true",
    }  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    run(STEM, settings | {"train.output_dir": one})
    words = [*LAUNCHERS["torchrun"], str(free_port())]
    halves = {"train.per_device_train_batch_size": 2, "train.output_dir": two}
    done = launch(words, settings | halves, STEM)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found = (
        json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        for folder in (one, two)
    )
    assert len(expected["differences"]) >= 14
    assert np.std(expected["differences"]) > 1e-3
    assert found["differences"] == pytest.approx(expected["differences"], abs=1e-5)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    for name in ("eval_loss", "eval_accuracy", "score_mean", "score_std"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], abs=1e-5), name
