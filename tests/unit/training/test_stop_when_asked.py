"""A stop between any two things that a training does, and the run that goes on from there."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, TrainerCallback

from sft_kit.errors import StoppedError
from sft_kit.training.trainer import SafeTrainer

MakeTrainer = Callable[..., SafeTrainer]
MakeModel = Callable[[float], GPT2LMHeadModel]
SETTINGS = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 6,
    "logging_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps",
    "save_steps": 4, "rows": 16,
}  # fmt: skip
CLOCKS = ("runtime", "per_second", "train_loss", "total_flos")


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def history(trainer: SafeTrainer) -> list[dict[str, float]]:
    return [
        {key: value for key, value in entry.items() if not any(one in key for one in CLOCKS)}
        for entry in trainer.state.log_history
    ]


def stop_at(trainer: SafeTrainer, method: str, call: int) -> None:
    """Send SIGTERM at the n-th call of a method."""
    original, calls = getattr(trainer, method), [0]

    def watched(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    setattr(trainer, method, watched)


MOMENTS = [
    ("training_step", 3, 2), ("training_step", 12, 6), ("prediction_step", 2, 2),
    ("prediction_step", 5, 4), ("_save_rng_state", 1, 4),
]  # fmt: skip


@pytest.mark.parametrize(("method", "call", "step"), MOMENTS)
def test_a_stop_is_a_checkpoint_from_which_the_run_goes_on_bit_by_bit(
    make_trainer: MakeTrainer, tiny_model: MakeModel, method: str, call: int, step: int,
    tmp_path: Path,
):  # fmt: skip
    straight = make_trainer(
        model=tiny_model(0.2), **SETTINGS, output_dir=str(tmp_path / "straight")
    )
    straight.train()
    stopped = make_trainer(model=tiny_model(0.2), **SETTINGS)
    stop_at(stopped, method, call)
    with pytest.raises(StoppedError, match=rf"SIGTERM after step {step}: .*--resume") as caught:
        stopped.train()
    assert caught.value.signal_number == signal.SIGTERM
    checkpoint = Path(stopped.args.output_dir) / f"checkpoint-{step}"
    assert checkpoint.is_dir()
    resumed = make_trainer(model=tiny_model(0.2), **SETTINGS)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(weights(resumed.model), weights(straight.model))
    assert history(resumed) == history(straight)


def test_an_evaluation_that_was_put_off_is_not_repeated_by_the_next_resume(
    make_trainer: MakeTrainer, tiny_model: MakeModel
):
    stopped = make_trainer(model=tiny_model(0.0), **SETTINGS)
    stop_at(stopped, "prediction_step", 2)
    with pytest.raises(StoppedError):
        stopped.train()
    place = str(Path(stopped.args.output_dir) / "checkpoint-2")
    for expected in (1, 0):
        resumed = make_trainer(model=tiny_model(0.0), **SETTINGS | {"eval_steps": 100})
        resumed.args.max_steps = 3
        counted = [0]

        class Count(TrainerCallback):
            def on_evaluate(self, args, state, control, counted=counted, **kwargs):
                counted[0] += state.global_step == 2

        resumed.add_callback(Count())
        resumed.train(resume_from_checkpoint=place)
        assert counted == [expected]


def test_a_stop_before_the_first_step_saves_nothing(
    make_trainer: MakeTrainer, tiny_model: MakeModel
):
    trainer = make_trainer(model=tiny_model(0.0), **SETTINGS, eval_on_start=True)
    stop_at(trainer, "prediction_step", 1)
    with pytest.raises(StoppedError, match="before step 1"):
        trainer.train()
    assert not list(Path(trainer.args.output_dir).glob("checkpoint-*"))


def test_a_checkpoint_is_saved_where_none_was_wanted(
    make_trainer: MakeTrainer, tiny_model: MakeModel
):
    trainer = make_trainer(model=tiny_model(0.0), **SETTINGS | {"save_strategy": "no"})
    stop_at(trainer, "training_step", 5)
    with pytest.raises(StoppedError):
        trainer.train()
    assert (Path(trainer.args.output_dir) / "checkpoint-3").is_dir()


def test_evaluation_leaves_no_trace_in_what_is_trained(
    make_trainer: MakeTrainer, tiny_model: MakeModel
):
    never = {"eval_strategy": "no", "save_strategy": "no"}
    often = {"eval_steps": 1, "save_steps": 1, "eval_on_start": True}
    trained = []
    for changes in (never, often, {"eval_strategy": "epoch", "save_strategy": "epoch"}):
        trainer = make_trainer(model=tiny_model(0.3), **SETTINGS | changes)
        trainer.train()
        trained.append(weights(trainer.model))
    assert torch.equal(trained[0], trained[1])
    assert torch.equal(trained[0], trained[2])
