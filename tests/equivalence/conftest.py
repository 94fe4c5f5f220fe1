"""Twenty steps of a recipe in this process, and how two of them are compared."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from ..recipes.conftest import run, save_checkpoint, write_rows

if TYPE_CHECKING:
    import torch

NUM_STEPS = 20


@dataclass(frozen=True)
class Curve:
    """What a training gave: figures per step, and the trained model."""

    losses: list[float]
    grad_norms: list[float]
    model: Any

    def trained(self) -> "dict[str, torch.Tensor]":
        """The parameters that trained, by name."""
        parameters = self.model.named_parameters()
        return {name: tensor.detach() for name, tensor in parameters if tensor.requires_grad}


def train(
    settings: dict[str, object],
    change: Callable[[ModuleType], None] | None = None,
    stem: str = "sft_gpt2_lora",
) -> Curve:
    """Run a recipe up to the point where it would save."""
    saved: dict[str, Any] = {}

    def prepare(recipe: ModuleType) -> None:
        def keep(run, model, tokenizer, metrics, history, **rest):
            saved.update(model=model, history=history)

        recipe.save_run = keep  # type: ignore[attr-defined]
        if change is not None:
            change(recipe)

    run(stem, settings, "--overwrite", change=prepare)
    steps = [entry for entry in saved["history"] if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, len(steps) + 1))
    return Curve(
        [entry["loss"] for entry in steps],
        [entry["grad_norm"] for entry in steps],
        saved["model"],
    )


def assert_same_curve(first: Curve, second: Curve) -> None:
    """Hold two curves together: largest and mean difference of the loss, and the gradient norms.

    A mean far below the largest difference says that what is left is rounding, not a bias.
    """
    assert len(first.losses) == len(second.losses) > 0
    residuals = [a - b for a, b in zip(first.losses, second.losses, strict=True)]
    assert max(map(abs, residuals)) <= 2e-5
    assert abs(sum(residuals) / len(residuals)) <= 2e-6
    assert second.grad_norms == pytest.approx(first.grad_norms, rel=1e-4)


def assert_same_bits(first: Curve, second: Curve) -> None:
    """Hold two trainings together to the last bit."""
    assert first.losses == second.losses
    ours, others = first.trained(), second.trained()
    assert ours.keys() == others.keys()
    assert [name for name in ours if (ours[name] != others[name]).any()] == []


@pytest.fixture(scope="session")
def smooth_checkpoint(tmp_path_factory, trained_tokenizer):
    """Random GPT-2 without dropout."""
    folder = tmp_path_factory.mktemp("base") / "tiny-gpt2"
    return save_checkpoint(folder, trained_tokenizer, dropout=0.0)


@pytest.fixture(scope="session")
def rough_checkpoint(tmp_path_factory, trained_tokenizer):
    """Random GPT-2 with dropout 0.1."""
    folder = tmp_path_factory.mktemp("base") / "tiny-gpt2"
    return save_checkpoint(folder, trained_tokenizer, dropout=0.1)


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """40 rows of very unequal lengths."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture
def settings(smooth_checkpoint, rows, tmp_path):
    """Twenty steps without dropout; change them per test."""
    return twenty_steps(smooth_checkpoint, rows, tmp_path / "run")


def twenty_steps(checkpoint: Path, rows: Path, folder: Path) -> dict[str, object]:
    """Settings without dropout and evaluation; the last batch of an epoch is smaller."""
    return {
        "model.checkpoint": checkpoint,
        "model.quantization": "none",
        "adapter.lora_dropout": 0.0,
        "data.path": rows,
        "data.eval_fraction": 0,
        "data.num_rows": 37,
        "train.output_dir": folder,
        "train.per_device_train_batch_size": 8,
        "train.learning_rate": 2e-3,
        "train.max_steps": NUM_STEPS,
        "train.logging_steps": 1,
        "train.eval_strategy": "no",
        "train.save_strategy": "no",
        "train.disable_tqdm": "true",
        "sample.prompts": "[]",
    }
