import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import GPT2LMHeadModel, Trainer

from sft_kit.errors import NonFiniteError
from sft_kit.training.nonfinite import (
    Finding,
    gradient_norm,
    nonfinite_error,
    nonfinite_gradient,
    nonfinite_losses,
    nonfinite_parameter,
)
from sft_kit.training.trainer import SafeTrainer

MakeTrainer = Callable[..., SafeTrainer]
MakeModel = Callable[[float], GPT2LMHeadModel]
POISON = 33
"""A token of one row only."""


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def poisoned_rows(count: int, bad: int) -> Dataset:
    rows = [[1 + (index + place) % 30 for place in range(6)] for index in range(count)]
    rows[bad][2] = POISON
    labels = [[-100, *ids[1:]] for ids in rows]
    where = [f"rows.jsonl:{index + 1}" for index in range(count)]
    return Dataset.from_dict({"input_ids": rows, "labels": labels, "where": where})


def poison(model: GPT2LMHeadModel, value: float) -> None:
    with torch.no_grad():
        model.transformer.wte.weight[POISON] = value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_at_the_start_are_named_and_left_alone(
    make_trainer: MakeTrainer, tiny_model: MakeModel, value: float
):
    model = tiny_model(0.0)
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = value
    before = weights(model)
    trainer = make_trainer(model=model)
    told = r"step 1: transformer\.ln_f\.bias was not finite before the step"
    with pytest.raises(NonFiniteError, match=told) as caught:
        trainer.train()
    assert str(trainer.args.output_dir) in str(caught.value)
    assert torch.equal(weights(model).nan_to_num(7.0), before.nan_to_num(7.0))


class PoisonedLoss(SafeTrainer):
    """Its loss is not a number where a batch has the token."""

    def compute_loss(self, model, inputs, **kwargs):
        is_bad = (inputs["input_ids"] == POISON).any()
        return super().compute_loss(model, inputs, **kwargs) * (math.nan if is_bad else 1.0)


@pytest.mark.parametrize("bad", [0, 11])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loss_that_is_no_number_is_told_with_the_rows_of_its_micro_batch(
    make_trainer: MakeTrainer, tiny_model: MakeModel, bad: int, workers: int
):
    model = tiny_model(0.0)
    trainer = make_trainer(
        model=model, kind=PoisonedLoss, train_dataset=poisoned_rows(12, bad),
        per_device_train_batch_size=2, gradient_accumulation_steps=2,
        dataloader_num_workers=workers,
    )  # fmt: skip
    with pytest.raises(NonFiniteError, match=r"step [123]: the loss is nan") as caught:
        trainer.train()
    assert f"row {bad} (rows.jsonl:{bad + 1})" in str(caught.value)
    assert str(caught.value).count("rows.jsonl:") == 2
    assert torch.isfinite(weights(model)).all()


class PoisonedGradient(SafeTrainer):
    """A hook makes one gradient infinite in the third step."""

    def compute_loss(self, model, inputs, **kwargs):
        self.before = weights(model)
        if self.state.global_step == 2:
            model.transformer.wpe.weight.register_hook(lambda grad: grad * math.nan)
        return super().compute_loss(model, inputs, **kwargs)


@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_the_step_and_the_parameter_are_told_as_they_were_before_clipping(
    make_trainer: MakeTrainer, tiny_model: MakeModel, max_grad_norm: float
):
    """Clipping makes every gradient NaN; the first parameter is wte."""
    model = tiny_model(0.0)
    trainer = make_trainer(model=model, kind=PoisonedGradient, max_grad_norm=max_grad_norm)
    told = r"step 3: the gradient of transformer\.wpe\.weight is not finite"
    with pytest.raises(NonFiniteError, match=told) as caught:
        trainer.train()
    assert torch.equal(weights(model), trainer.before)
    assert str(caught.value).count("row ") == 4


def test_bf16_stops_too(make_trainer: MakeTrainer, tiny_model: MakeModel):
    trainer = make_trainer(model=tiny_model(0.0), kind=PoisonedGradient, bf16=True)
    with pytest.raises(NonFiniteError, match=r"transformer\.wpe\.weight"):
        trainer.train()


class Engine:
    """What is left of a step when DeepSpeed has made its update: the norm of the gradients."""

    def __init__(self, *norms: float) -> None:
        self.norms = list(norms)

    def get_global_grad_norm(self) -> float:
        return self.norms.pop(0)


class WithEngine(SafeTrainer):
    """Has an engine from its first loss on, as after the preparation of a DeepSpeed launch."""

    def compute_loss(self, *args, **kwargs):
        self.accelerator.deepspeed_engine_wrapped = self.engine
        return super().compute_loss(*args, **kwargs)


def test_an_update_that_deepspeed_has_made_with_bad_gradients_is_not_saved(
    make_trainer: MakeTrainer,
):
    trainer = make_trainer(kind=WithEngine, save_strategy="steps", save_steps=1)
    trainer.engine = Engine(1.0, math.inf)
    told = r"step 2: the gradient of some parameter is not finite, so the weights were not saved"
    with pytest.raises(NonFiniteError, match=told) as caught:
        trainer.train()
    assert str(caught.value).count("row ") == 4
    assert [path.name for path in Path(str(trainer.args.output_dir)).glob("checkpoint-*")] == [
        "checkpoint-1"
    ]


def test_finite_norms_of_deepspeed_are_no_reason_to_stop(make_trainer: MakeTrainer):
    trainer = make_trainer(kind=WithEngine)
    trainer.engine = Engine(1.0, 3e38, 0.0)
    trainer.train()
    assert trainer.state.global_step == 3


def test_the_trainer_of_upstream_writes_nan_into_the_weights(
    make_trainer: MakeTrainer, tiny_model: MakeModel
):
    """What the check is there for; when this fails, it can go."""
    model = tiny_model(0.0)
    trainer = make_trainer(model=model, kind=Trainer)
    with torch.no_grad():
        model.transformer.ln_f.bias[3] = math.nan
    count = weights(model).isnan().sum()
    trainer.train()
    assert weights(model).isnan().sum() > count


def test_finite_training_goes_to_its_end(make_trainer: MakeTrainer):
    trainer = make_trainer()
    trainer.train()
    assert trainer.state.global_step == 3


def test_finite_gradients_whose_norm_overflows_are_no_reason_to_stop(tiny_model: MakeModel):
    """3e38 squared is beyond float32, 3e38 is not."""
    model = tiny_model(0.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3e38)
    assert nonfinite_gradient(model, gradient_norm(model)) is None
    model.transformer.ln_f.bias.grad[0] = math.inf
    assert nonfinite_gradient(model, gradient_norm(model)) == "transformer.ln_f.bias"


def test_whole_numbers_among_the_parameters_are_passed_over():
    model = torch.nn.Linear(2, 2)
    packed = torch.zeros(2, dtype=torch.uint8)
    model.register_parameter("packed", torch.nn.Parameter(packed, requires_grad=False))
    assert nonfinite_parameter(model) is None


def test_every_micro_batch_is_looked_at():
    losses = [torch.tensor(1.0), torch.tensor(math.nan), torch.tensor(2.0), torch.tensor(-math.inf)]
    assert nonfinite_losses(losses) == [1, 3]


def test_a_long_list_of_rows_is_cut():
    rows = tuple(f"row {number}" for number in range(100))
    text = str(nonfinite_error(3, [Finding("the loss is nan", rows, is_own=True)], "runs/x"))
    assert "row 31 and 68 more" in text
