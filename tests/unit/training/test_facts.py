import math
from collections.abc import Callable

import numpy as np
import pytest
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from sft_kit.data.corpus.rows import Corrupted
from sft_kit.data.rows import Example
from sft_kit.training.facts import derive_facts, fact_lines

MakeTrainer = Callable[..., Trainer]
AsExamples = Callable[[list[dict[str, list[int]]]], list[Example]]


class CountWork(TrainerCallback):
    """Counts updates, micro-batches and epochs as they happen."""

    def __init__(self) -> None:
        self.updates = self.micro_batches = self.epochs = 0

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.updates += 1

    def on_substep_end(self, args, state, control, **kwargs):
        self.micro_batches += 1

    def on_step_end(self, args, state, control, **kwargs):
        self.micro_batches += 1

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epochs += 1


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (12, {"max_steps": 5}),
        (12, {"num_train_epochs": 2}),
        (13, {"num_train_epochs": 2}),
        (13, {"num_train_epochs": 2, "dataloader_drop_last": True}),
        (13, {"num_train_epochs": 1.5, "per_device_train_batch_size": 2}),
        (13, {"num_train_epochs": 2, "gradient_accumulation_steps": 3}),
        (3, {"num_train_epochs": 3, "gradient_accumulation_steps": 2}),
        (13, {"num_train_epochs": 2, "per_device_train_batch_size": 1}),
    ],
)
def test_the_facts_are_what_the_trainer_then_does(
    rows: int, settings: dict[str, object], make_trainer: MakeTrainer, examples: AsExamples
):
    counter = CountWork()
    settings = {"max_steps": -1, "include_num_input_tokens_seen": "non_padding"} | settings
    trainer = make_trainer(rows=rows, callbacks=(counter,), **settings)
    facts = derive_facts(trainer, examples(trainer.train_dataset))
    trainer.train()
    assert facts["num_steps"] == counter.updates == trainer.state.global_step
    assert math.ceil(facts["epochs"] - 1e-9) == counter.epochs
    assert facts["micro_batch"] == trainer.args.per_device_train_batch_size
    assert facts["global_batch"] == (
        trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    )
    # whole epochs without dropped rows are exact, others an average over the rows
    seen = trainer.state.num_input_tokens_seen
    is_exact = facts["epochs"] == counter.epochs and not trainer.args.dataloader_drop_last
    tolerance = counter.updates / 2 if is_exact else 0.2 * seen
    assert abs(facts["tokens_per_step"] * counter.updates - seen) <= tolerance


def test_parameters_are_counted(make_trainer: MakeTrainer, examples: AsExamples):
    trainer = make_trainer()
    for parameter in trainer.model.transformer.wte.parameters():
        parameter.requires_grad_(False)
    facts = derive_facts(trainer, examples(trainer.train_dataset))
    assert facts["total_parameters"] == trainer.model.num_parameters()
    assert facts["trainable_parameters"] == trainer.model.num_parameters(only_trainable=True)
    assert facts["num_processes"] == 1


class Stream(IterableDataset[dict[str, list[int]]]):
    """Rows without end."""

    def __iter__(self):
        while True:
            yield {"input_ids": [1, 2], "labels": [1, 2]}


class CorruptedOnDemand:
    """Rows of growing length that count how often they are asked for."""

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Corrupted:
        if not 0 <= index < self.count:
            raise IndexError(index)
        self.asked += 1
        ids = np.zeros(index + 1, dtype=np.int64)
        return {"input_ids": ids, "labels": ids[:1]}


@pytest.mark.parametrize("count", [12, 40_000])
def test_rows_that_are_made_on_demand_are_measured_on_an_even_sample(
    count: int, make_trainer: MakeTrainer
):
    trainer = make_trainer(rows=8, max_steps=3, per_device_train_batch_size=4)
    trainer.train_dataset = CorruptedOnDemand(count)
    facts = derive_facts(trainer, trainer.train_dataset)
    assert trainer.train_dataset.asked == min(count, 1_000)
    assert facts["num_steps"] == 3
    mean = (count + 1) / 2  # of the lengths 1, 2, ..., count
    assert facts["tokens_per_step"] == pytest.approx(4 * mean, rel=2e-3)


def test_a_stream_has_steps_but_no_epochs(make_trainer: MakeTrainer):
    trainer = make_trainer(
        max_steps=7, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    trainer.train_dataset = Stream()
    facts = derive_facts(trainer, trainer.train_dataset, max_length=128)
    assert (facts["num_steps"], facts["tokens_per_step"]) == (7, 4 * 2 * 128)
    assert "epochs" not in facts
    assert fact_lines(facts)[-1] == "steps: 7, about 1,024 tokens each"
    unknown = derive_facts(trainer, trainer.train_dataset)
    assert fact_lines(unknown)[-1] == "steps: 7"


def test_the_facts_read_as_sentences():
    facts = {
        "trainable_parameters": 811_008, "total_parameters": 125_250_816, "num_processes": 2,
        "micro_batch": 4, "gradient_accumulation_steps": 3, "global_batch": 24, "num_steps": 100,
        "epochs": 1.5, "tokens_per_step": 12_345,
    }  # fmt: skip
    assert fact_lines(facts) == [
        "parameters: 811,008 of 125,250,816 train (0.65%)",
        "global batch: 4 examples x 2 processes x 3 accumulation = 24",
        "steps: 100 (1.5 epochs), about 12,345 tokens each",
    ]
