"""A run that goes on with smaller micro-batches of the same global batch, as a full memory asks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from sft_kit.training.trainer import SafeTrainer

MakeTrainer = Callable[..., SafeTrainer]
MakeModel = Callable[[float], GPT2LMHeadModel]
SETTINGS = {"rows": 15, "max_steps": 7, "logging_steps": 1, "eval_rows": 0}
"""An epoch of 3 whole batches and one of 3 rows."""


def batches(rows: int, times: int) -> dict[str, object]:
    return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": times} | SETTINGS


def watch_rows(trainer: SafeTrainer) -> list[tuple[int, tuple[int, ...]]]:
    """The rows of every micro-batch, with the step they are learnt in."""
    seen: list[tuple[int, tuple[int, ...]]] = []
    original = trainer.training_step

    def watched(model: object, inputs: dict[str, torch.Tensor], *rest: object) -> object:
        mask = inputs["attention_mask"]
        for ids, length in zip(inputs["input_ids"], mask.sum(dim=1), strict=True):
            seen.append((trainer.state.global_step, tuple(ids[:length].tolist())))
        return original(model, inputs, *rest)

    trainer.training_step = watched  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize(("rows", "times"), [(2, 2), (1, 4)])
def test_each_step_has_the_rows_and_the_loss_it_would_have_had(
    make_trainer: MakeTrainer, tiny_model: MakeModel, tmp_path: Path, rows: int, times: int
):
    straight = make_trainer(
        model=tiny_model(0.0), **batches(4, 1), save_strategy="steps", save_steps=3
    )
    expected = watch_rows(straight)
    straight.train()
    resumed = make_trainer(
        model=tiny_model(0.0), **batches(rows, times), output_dir=str(tmp_path / "run")
    )
    seen = watch_rows(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for step in range(3, 7):
        wanted = [ids for at, ids in expected if at == step]
        assert len(wanted) == (3 if step == 3 else 4)
        assert [ids for at, ids in seen if at == step] == wanted
    assert {at for at, _ in seen} == {3, 4, 5, 6}
    losses, wanted_losses = (
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        for trainer in (resumed, straight)
    )
    assert losses == pytest.approx(wanted_losses, abs=1e-5)
    for one, other in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert (one - other).abs().max() < 1e-4
