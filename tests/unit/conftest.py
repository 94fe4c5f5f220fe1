"""A real Trainer on a tiny model, with rows of unequal length.

Libraries are imported inside the fixtures: what they read from the environment is set only after
this file has been read.
"""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sft_kit.data.rows import Example, Where

if TYPE_CHECKING:
    import torch
    from transformers import GPT2LMHeadModel, Trainer

MakeTrainer = Callable[..., "Trainer"]
PAD = 0


def make_model(dropout: float = 0.0) -> "GPT2LMHeadModel":
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2, attn_pdrop=dropout,
        embd_pdrop=dropout, resid_pdrop=dropout, bos_token_id=PAD, eos_token_id=PAD,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def make_rows(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = [draw.randrange(1, 40) for _ in range(draw.randrange(4, 24))]
        masked = draw.randrange(1, len(ids) - 1)
        rows.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return rows


def as_examples(rows: list[dict[str, list[int]]]) -> list[Example]:
    return [
        Example(row["input_ids"], row["labels"], was_cut=False, where=Where("rows.json", line))
        for line, row in enumerate(rows, start=1)
    ]


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """Builds a Trainer as the recipes do; other keywords are settings of `TrainingArguments`."""
    from transformers import TrainingArguments

    from sft_kit.data.collators import pad_batch
    from sft_kit.training.metrics import causal_lm_loss, label_nll, language_metrics
    from sft_kit.training.trainer import SafeTrainer

    def build(
        *,
        model: "torch.nn.Module | None" = None,
        rows: int = 12,
        eval_rows: int = 5,
        callbacks: tuple[object, ...] = (),
        kind: "type[Trainer]" = SafeTrainer,
        train_dataset: object = None,
        **settings: object,
    ) -> "Trainer":
        defaults = {
            "output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": "none",
            "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False,
            "per_device_train_batch_size": 4, "per_device_eval_batch_size": 2, "max_steps": 3,
            "learning_rate": 1e-2, "seed": 7,
        }  # fmt: skip
        return kind(
            model=model or make_model(),
            args=TrainingArguments(**(defaults | settings)),
            train_dataset=make_rows(rows) if train_dataset is None else train_dataset,
            eval_dataset=make_rows(eval_rows, seed=1) if eval_rows else None,
            data_collator=partial(pad_batch, pad_token_id=PAD),
            compute_loss_func=causal_lm_loss,
            preprocess_logits_for_metrics=label_nll,
            compute_metrics=language_metrics,
            callbacks=list(callbacks),
        )

    return build


@pytest.fixture
def tiny_model() -> Callable[[float], "GPT2LMHeadModel"]:
    return make_model


@pytest.fixture
def rows() -> Callable[..., list[dict[str, list[int]]]]:
    return make_rows


@pytest.fixture
def examples() -> Callable[[list[dict[str, list[int]]]], list[Example]]:
    return as_examples
