"""NaN, infinity and too little memory, put into real runs: stopped before the update, and told.

The trials run in this process, on a tiny model whose base is trained wholly.
"""

import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sft_kit.errors import NonFiniteError, TrainingError
from sft_kit.training.trainer import SafeTrainer

from ..unit.conftest import make_model, make_trainer  # noqa: F401 - a fixture

VALUES = (math.nan, math.inf, -math.inf)
PLACES = ("weights", "gradient", "loss", "batch")
NUM_STEPS, ACCUMULATION = 5, 2
NUM_ROWS = 2


@dataclass(frozen=True)
class Fault:
    """What becomes bad, and when.

    Attributes:
        place: One of `PLACES`.
        step: From 1.
        micro_batch: From 0.
        value: NaN or an infinity.
        seed: Chooses parameter and element.
    """

    place: str
    step: int
    micro_batch: int
    value: float
    seed: int


def faults(count: int) -> Iterator[Fault]:
    draw = random.Random(11)
    for seed in range(count):
        yield Fault(
            PLACES[seed % len(PLACES)],
            draw.randint(1, NUM_STEPS),
            draw.randrange(ACCUMULATION),
            draw.choice(VALUES),
            seed,
        )


class Faulty(SafeTrainer):
    """Puts a fault into its own step."""

    fault: Fault
    before: torch.Tensor
    poisoned: str = ""

    def compute_loss(self, model, inputs, **kwargs):
        fault = self.fault
        now = self.state.global_step + 1 == fault.step
        if now and len(self._record.losses) == fault.micro_batch:
            if fault.place == "weights":
                self._poison_weights(model)
            elif fault.place == "gradient":
                self._poison_gradient(model)
            elif fault.place == "batch":
                inputs = self._poison_batch(model, inputs)
        if now and not self._record.losses:
            self.before = flat(model)
        loss = super().compute_loss(model, inputs, **kwargs)
        bad = now and fault.place == "loss" and len(self._record.losses) == fault.micro_batch
        return loss * 0 + fault.value if bad else loss

    def _poison_weights(self, model):
        name, parameter = random.Random(self.fault.seed).choice(list(model.named_parameters()))
        with torch.no_grad():
            # The last row of the positions is read by no text as short as these.
            parameter.view(-1)[0] = self.fault.value
        self.poisoned = name

    def _poison_gradient(self, model):
        name, parameter = random.Random(self.fault.seed).choice(list(model.named_parameters()))
        self.poisoned = name

        def spoil(gradient):
            handle.remove()
            spoilt = gradient.clone()
            spoilt.view(-1)[-1] = self.fault.value
            return spoilt

        handle = parameter.register_hook(spoil)

    def _poison_batch(self, model, inputs):
        inputs = dict(inputs)
        embedded = model.transformer.wte(inputs.pop("input_ids")).detach().clone()
        embedded[-1, 1] = self.fault.value
        return inputs | {"inputs_embeds": embedded}


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in model.parameters()])


def check(fault: Fault, build: Callable[..., Faulty]) -> None:
    """Train into a fault; nothing is updated, the rows are told, the checkpoint before is whole."""
    trainer = build(
        kind=Faulty, model=make_model(), max_steps=NUM_STEPS, rows=24, eval_rows=0,
        per_device_train_batch_size=NUM_ROWS, gradient_accumulation_steps=ACCUMULATION,
        save_strategy="steps", save_steps=1, save_total_limit=1,
    )  # fmt: skip
    trainer.fault = fault
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    text = str(caught.value)
    assert text.startswith(f"step {fault.step}: ")
    same = flat(trainer.model).nan_to_num(7.0) == trainer.before.nan_to_num(7.0)
    # The weights that were poisoned in a later micro-batch are the only ones that differ.
    assert int((~same).sum()) <= (fault.place == "weights")
    rows = {int(number) for number in re.findall(r"row (\d+)", text)}
    step_rows = [set(one.tolist()) for one in trainer._record.rows]
    if fault.place == "gradient":
        assert f"the gradient of {trainer.poisoned} is not finite" in text
        assert rows == set().union(*step_rows)
    elif fault.place == "weights":
        assert f"{trainer.poisoned} was not finite before the step" in text
    else:
        assert "the loss is " in text
        assert rows == step_rows[fault.micro_batch]
    folder = Path(trainer.args.output_dir)
    kept = [path.name for path in folder.glob("checkpoint-*")]
    assert kept == ([f"checkpoint-{fault.step - 1}"] if fault.step > 1 else [])
    for path in folder.glob("checkpoint-*/model.safetensors"):
        assert all(torch.isfinite(one).all() for one in load_file(path).values())


ALL = list(faults(100))


@pytest.mark.parametrize(
    "fault",
    [*ALL[:4], *(pytest.param(one, marks=pytest.mark.slow) for one in ALL[4:])],
    ids=lambda one: f"{one.seed}-{one.place}-{one.step}.{one.micro_batch}-{one.value}",
)
def test_a_bad_number_is_stopped_before_the_update_and_told_with_its_rows(
    fault: Fault,
    make_trainer: Callable[..., Faulty],  # noqa: F811
):
    check(fault, make_trainer)


class Hungry(SafeTrainer):
    """Runs out of memory at the n-th call of a method."""

    place: str = ""
    call: int = 0

    def _eat(self, place: str) -> None:
        if place == self.place:
            self.call -= 1
            if self.call == 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def training_step(self, *args, **kwargs):  # evaluations compute losses too
        self._eat("forward")
        return super().training_step(*args, **kwargs)

    def prediction_step(self, *args, **kwargs):
        self._eat("evaluation")
        return super().prediction_step(*args, **kwargs)

    def create_optimizer(self, *args, **kwargs):
        self._eat("optimizer")
        return super().create_optimizer(*args, **kwargs)


HUNGRY = [("optimizer", 1), *(("forward", n) for n in (1, 2, 3, 6, 9)),
          *(("evaluation", n) for n in (1, 2, 4, 7))]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "call"),
    [
        HUNGRY[3],
        *(pytest.param(*one, marks=pytest.mark.slow) for one in HUNGRY if one != HUNGRY[3]),
    ],
)
def test_too_little_memory_is_told_with_figures_and_the_global_batch_stays(
    place: str,
    call: int,
    make_trainer: Callable[..., Hungry],  # noqa: F811
):
    trainer = make_trainer(
        kind=Hungry, model=make_model(), max_steps=NUM_STEPS, rows=24, eval_rows=5,
        per_device_train_batch_size=6, gradient_accumulation_steps=2, save_strategy="steps",
        save_steps=1, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    trainer.place, trainer.call = place, call
    with pytest.raises(TrainingError, match="out of memory") as caught:
        trainer.train()
    text = str(caught.value)
    assert len(re.findall(r"\d+\.\d\d GiB", text)) == 2
    if place == "evaluation":
        assert "train.per_device_eval_batch_size=1" in text
    else:
        assert "with 6 rows at once" in text
        assert "train.per_device_train_batch_size=3 train.gradient_accumulation_steps=4" in text
    saved = len(list(Path(trainer.args.output_dir).glob("checkpoint-*/manifest.json")))
    assert saved == trainer.state.global_step - (place == "evaluation")
