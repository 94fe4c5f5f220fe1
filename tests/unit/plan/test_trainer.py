"""A run that is measured: which batches it tries, what it notes, and what it leaves behind."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import Trainer

from sft_kit.plan import trainer as measured
from sft_kit.plan.course import shape_of
from sft_kit.plan.forecast import forecast
from sft_kit.plan.measurement import read_measurement
from sft_kit.plan.recorder import Recorder
from sft_kit.plan.trainer import MeasuringTrainer
from sft_kit.training import length_groups
from sft_kit.training.trainer import SafeTrainer


def test_a_short_run_with_accumulation_still_tries_its_widest_batch(
    tmp_path: Path, make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "_MIXED_SECONDS", 0.1)
    figures, folder = tmp_path / "figures.jsonl", tmp_path / "run"
    folder.mkdir()
    recorder = Recorder(figures)
    trainer = make_trainer(
        kind=partial(MeasuringTrainer, recorder), rows=22, eval_rows=3,
        gradient_accumulation_steps=2, max_steps=2, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=2, save_total_limit=1,
    )  # fmt: skip
    trainer.train()
    recorder.phase("end")
    found = read_measurement(figures)

    assert [sum(len(shape.lengths) for shape in found.shapes), len(found.shapes)] == [22, 6]
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    assert sum(shape.real for shape in found.shapes) == tokens
    widest = max(found.shapes, key=lambda shape: shape.padded)
    rising = [one.shape for one in found.micro_steps if one.is_rising]
    assert rising.count(widest) >= 3  # when the optimizer has its states, and at the end
    assert found.micro_steps[-2].shape == widest  # the first of the last step
    assert max(map(len, (shape.lengths for shape in rising))) == 4
    assert sum(not one.is_rising for one in found.micro_steps) >= 4
    sizes = ("num_steps", "accumulation", "num_evaluations", "num_checkpoints")
    assert [found.run[name] for name in sizes] == [2, 2, 2, 1]
    assert found.checkpoint_bytes > 0
    assert not list(folder.glob("checkpoint-*"))
    planned = forecast(found)
    assert planned.num_steps == 2
    assert planned.host.value >= max(one.host_bytes for one in found.micro_steps)
    assert planned.parts["steps"].value > 0


class ShapeNote(SafeTrainer):
    """Notes the shape of each batch that it trains on."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.noted = [*getattr(self, "noted", []), shape_of(args[1]).kind]
        return super().training_step(*args, **kwargs)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_a_plan_knows_all_shapes_that_the_epochs_of_the_run_will_have(
    tmp_path: Path,
    make_trainer: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
) -> None:
    monkeypatch.setattr(measured, "_MIXED_SECONDS", 0.1)
    monkeypatch.setattr(length_groups, "_BATCHES_PER_GROUP", 2)  # or all rows stand in one group
    settings: dict[str, Any] = {"rows": 22, "eval_rows": 0, "num_train_epochs": 3, "max_steps": -1}
    settings |= {"train_sampling_strategy": strategy, "logging_steps": 100}
    (tmp_path / "run").mkdir()
    recorder = Recorder(tmp_path / "figures.jsonl")
    make_trainer(kind=partial(MeasuringTrainer, recorder), **settings).train()
    found = read_measurement(tmp_path / "figures.jsonl")
    real = cast("ShapeNote", make_trainer(kind=ShapeNote, **settings))
    real.train()

    assert len(real.noted) == 18
    assert {shape.kind for shape in found.shapes} == set(real.noted[:6])
    assert found.later_kinds == set(real.noted) - set(real.noted[:6])
    assert found.later_kinds
