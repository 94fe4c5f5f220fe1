import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sft_kit.errors import TrainingError
from sft_kit.training.out_of_memory import (
    MemoryUse,
    is_out_of_memory,
    memory_changes,
    out_of_memory_error,
)
from sft_kit.training.trainer import SafeTrainer

MakeTrainer = Callable[..., SafeTrainer]
USE = MemoryUse(torch.device("cpu"), 6, 2, longest_row=1000, has_adapter=True)


def too_much() -> None:
    """Ask torch for 4 EiB, which no machine has."""
    torch.empty(1 << 60, dtype=torch.float32)


def test_the_words_of_this_torch_are_known():
    with pytest.raises(RuntimeError) as caught:
        too_much()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def changes(use: MemoryUse) -> list[str]:
    return [problem.message for problem in memory_changes(use)]


def test_at_most_three_changes_are_named_the_cheapest_first():
    assert changes(USE) == [
        "train.per_device_train_batch_size=3 train.gradient_accumulation_steps=4",
        "train.activation_checkpointing=true",
        "data.max_length=500",
    ]
    assert changes(replace(USE, checkpoints_activations=True, longest_row=90)) == [
        "train.per_device_train_batch_size=3 train.gradient_accumulation_steps=4",
        "model.quantization=nf4",
    ]
    smallest = replace(USE, batch_size=1, checkpoints_activations=True, longest_row=90)
    assert changes(replace(smallest, is_quantized=True)) == ["model.checkpoint=..."]


def test_the_global_batch_stays():
    for batch_size in range(2, 40):
        change = changes(replace(USE, batch_size=batch_size, accumulation=3))[0]
        smaller, more = (int(number) for number in re.findall(r"=(\d+)", change))
        assert smaller * more == batch_size * 3
        assert smaller < batch_size


def test_in_an_evaluation_its_own_batch_is_to_be_smaller():
    use = replace(USE, is_evaluating=True, eval_batch_size=8)
    assert changes(use)[0] == "train.per_device_eval_batch_size=4"
    assert "in an evaluation with 8 rows" in str(out_of_memory_error(3, use, "runs/x"))


@pytest.mark.parametrize("place", ["compute_loss", "prediction_step", "create_optimizer"])
def test_a_training_tells_what_it_took_and_what_to_change(
    make_trainer: MakeTrainer, place: str, monkeypatch: pytest.MonkeyPatch
):
    trainer = make_trainer(per_device_train_batch_size=4, eval_strategy="steps", eval_steps=1)
    monkeypatch.setattr(trainer, place, lambda *args, **kwargs: too_much())
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    text = str(caught.value)
    assert re.search(r"out of memory on cpu in .* [24] rows at once", text)
    peak, free = (float(one) for one in re.findall(r"([\d.]+) GiB", text))
    assert 0.1 < peak < 100
    assert free > 0
    wanted = "eval_batch_size=1" if place == "prediction_step" else "train_batch_size=2 train.grad"
    assert wanted in text
    if place == "compute_loss":
        width = max(one["input_ids"].shape[1] for one in trainer.get_train_dataloader())
        longest = int(re.search(r"longest row of (\d+) tokens", text).group(1))
        assert 1 < longest <= width


def test_another_error_stays_what_it_is(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("shapes do not match")

    trainer = make_trainer()
    monkeypatch.setattr(trainer, "compute_loss", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.train()
