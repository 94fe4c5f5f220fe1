"""How often a run evaluates and saves, by the Trainer's own rules."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset
from transformers import TrainerState, TrainingArguments

from sft_kit.plan.course import spread_batches
from sft_kit.plan.trainer import count_events


@pytest.mark.parametrize(
    ("settings", "num_steps", "per_epoch", "expected"),
    [
        ({"eval_strategy": "steps", "eval_steps": 100, "save_steps": 100}, 387, 39, (4, 4)),
        ({"eval_strategy": "steps", "eval_steps": 100, "save_steps": 100}, 400, 40, (4, 4)),
        ({"eval_strategy": "epoch", "save_strategy": "epoch"}, 30, 10, (3, 3)),
        ({"eval_strategy": "epoch", "save_strategy": "epoch"}, 25, 10, (3, 3)),
        ({"eval_strategy": "no", "save_strategy": "no"}, 30, 10, (0, 0)),
        ({"eval_strategy": "steps", "eval_steps": 0.25, "save_steps": 0.5}, 40, 10, (4, 2)),
        ({"eval_strategy": "epoch", "save_strategy": "epoch", "eval_on_start": True}, 30, 10,
         (4, 3)),
    ],
)  # fmt: skip
def test_evaluations_and_checkpoints_are_counted(
    tmp_path: Path,
    settings: dict[str, object],
    num_steps: int,
    per_epoch: int,
    expected: tuple[int, int],
) -> None:
    words = {"save_strategy": "steps", "output_dir": str(tmp_path), **settings}
    args = TrainingArguments(use_cpu=True, report_to="none", **words)  # type: ignore[arg-type]
    state = TrainerState(max_steps=10_000)
    assert count_events(args, state, num_steps, per_epoch) == expected


def test_a_large_evaluation_is_cut_to_whole_batches_that_are_spread_over_it() -> None:
    rows = TensorDataset(torch.arange(1_005))
    chosen = [int(row[0]) for row in spread_batches(rows, 10)]
    assert len(chosen) == 60
    assert [number // 10 for number in chosen[::10]] == [0, 16, 33, 50, 67, 84]
    assert chosen[:10] == list(range(10))
    few = TensorDataset(torch.arange(55))
    assert spread_batches(few, 10) is few
