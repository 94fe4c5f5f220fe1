import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, Trainer

from sft_kit.errors import TrainingError
from sft_kit.training.callbacks import (
    IsolatedEvaluation,
    LogFile,
    StopOnNonFinite,
    append_log,
    cut_log,
)

MakeTrainer = Callable[..., Trainer]
MakeModel = Callable[[float], GPT2LMHeadModel]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- StopOnNonFinite -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_before_the_update(
    make_trainer: MakeTrainer, tiny_model: MakeModel, value: float
):
    model = tiny_model(0.0)
    trainer = make_trainer(model=model, callbacks=(StopOnNonFinite(),))
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = value
    before = weights(model)
    with pytest.raises(TrainingError, match=r"step 1: the gradient of \S+ is not finite") as caught:
        trainer.train()
    assert str(trainer.args.output_dir) in str(caught.value)
    assert torch.equal(weights(model).nan_to_num(7.0), before.nan_to_num(7.0))


class PoisonStep(StopOnNonFinite):
    """Makes one gradient infinite just before the third update."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            self.before = weights(model)
            model.transformer.wte.weight.grad[0, 0] = math.inf
        super().on_pre_optimizer_step(args, state, control, model=model, **kwargs)


def test_the_step_and_the_parameter_are_named(make_trainer: MakeTrainer, tiny_model: MakeModel):
    model = tiny_model(0.0)
    poison = PoisonStep()
    with pytest.raises(TrainingError, match=r"step 3: the gradient of transformer\.wte\.weight"):
        make_trainer(model=model, callbacks=(poison,)).train()
    assert torch.equal(weights(model), poison.before)


def test_without_the_callback_the_trainer_writes_nan_into_the_weights(
    make_trainer: MakeTrainer, tiny_model: MakeModel
):
    """What the callback is there for; when this fails, it can go."""
    model = tiny_model(0.0)
    trainer = make_trainer(model=model)
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = math.nan
    count = weights(model).isnan().sum()
    trainer.train()
    assert weights(model).isnan().sum() > count


def test_finite_training_goes_to_its_end(make_trainer: MakeTrainer):
    trainer = make_trainer(callbacks=(StopOnNonFinite(),))
    trainer.train()
    assert trainer.state.global_step == 3


def test_finite_gradients_whose_norm_overflows_are_no_reason_to_stop(
    make_trainer: MakeTrainer, tiny_model: MakeModel
):
    """3e38 squared is beyond float32, 3e38 is not."""
    trainer = make_trainer(callbacks=())
    model = tiny_model(0.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3e38)
    StopOnNonFinite().on_pre_optimizer_step(trainer.args, trainer.state, trainer.control, model)


# --- IsolatedEvaluation --------------------------------------------------------------------------


def trained(
    make_trainer: MakeTrainer, tiny_model: MakeModel, *, isolated: bool, **settings: object
) -> torch.Tensor:
    model = tiny_model(0.3)
    callbacks = (IsolatedEvaluation(),) if isolated else ()
    make_trainer(model=model, callbacks=callbacks, max_steps=6, **settings).train()
    return weights(model)


EVALUATIONS = {
    "every step": {"eval_strategy": "steps", "eval_steps": 1},
    "every epoch": {"eval_strategy": "epoch"},
    "at the start": {"eval_strategy": "steps", "eval_steps": 100, "eval_on_start": True},
}


@pytest.mark.parametrize("settings", EVALUATIONS.values(), ids=list(EVALUATIONS))
def test_training_with_evaluation_gives_the_weights_of_training_without(
    make_trainer: MakeTrainer, tiny_model: MakeModel, settings: dict[str, object]
):
    expected = trained(make_trainer, tiny_model, isolated=True, eval_strategy="no")
    assert torch.equal(trained(make_trainer, tiny_model, isolated=True, **settings), expected)
    assert not torch.equal(trained(make_trainer, tiny_model, isolated=False, **settings), expected)


# --- LogFile -------------------------------------------------------------------------------------


def read_log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_has_every_figure_the_trainer_logged(make_trainer: MakeTrainer):
    settings = {"logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    trainer = make_trainer(callbacks=(LogFile(),), **settings)
    trainer.train()
    lines = read_log(Path(trainer.args.output_dir))
    times = [line.pop("time") for line in lines]
    assert lines == trainer.state.log_history
    assert times == sorted(times)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4]


def test_a_resumed_run_has_one_log_without_steps_told_twice(make_trainer: MakeTrainer):
    settings = {"logging_steps": 1, "save_strategy": "steps", "save_steps": 2}
    straight = make_trainer(callbacks=(LogFile(),), max_steps=5, **settings)
    straight.train()
    folder = Path(straight.args.output_dir)
    expected = [line["step"] for line in read_log(folder)]
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"time": 1, "st')  # as after a crash
    resumed = make_trainer(callbacks=(LogFile(),), max_steps=5, **settings)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert [line["step"] for line in read_log(folder)] == expected


def test_cutting_a_log_keeps_whole_lines_up_to_the_step(tmp_path: Path):
    for step in (1, 2, 2, 3, 4):
        append_log(tmp_path, {"step": step, "loss": 0.5})
    whole = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    cut_log(tmp_path, 3)
    assert (tmp_path / "log.jsonl").read_text() == "".join(whole[:4])
    (tmp_path / "log.jsonl").write_text("".join(whole[:2]) + whole[2][:-9])
    cut_log(tmp_path, 3)
    assert (tmp_path / "log.jsonl").read_text() == "".join(whole[:2])


def test_cutting_a_log_that_does_not_exist_does_nothing(tmp_path: Path):
    cut_log(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []
