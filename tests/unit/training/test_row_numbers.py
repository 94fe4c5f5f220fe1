"""Row numbers must be right, and no batch may be another for them."""

from collections.abc import Callable, Iterator

import pytest
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import Trainer

from sft_kit.training.length_groups import SeededLengthGroups
from sft_kit.training.row_numbers import ROW_NUMBER, name_rows
from sft_kit.training.trainer import SafeTrainer

MakeTrainer = Callable[..., SafeTrainer]


def told_rows(count: int, *, extra: bool) -> list[dict[str, object]]:
    """Rows that tell their own number by their first token."""
    rows: list[dict[str, object]] = []
    for index in range(count):
        ids = [1 + index, *([3] * (2 + index * 5 % 7))]
        row: dict[str, object] = {"input_ids": ids, "labels": [-100, *ids[1:]]}
        rows.append(row | ({"note": "not for the model"} if extra else {}))
    return rows


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[dict[str, object]]:
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        yield from told_rows(24, extra=False)[first::every]


DATA = {
    "a list": lambda: told_rows(14, extra=False),
    "a table with columns that the model does not take": lambda: Dataset.from_list(
        told_rows(14, extra=True)
    ),
    "a stream": Stream,
}


def seen_batches(trainer: Trainer) -> list[tuple[dict[str, torch.Tensor], list[int] | None]]:
    """What the model is given in three steps, and the numbers that were taken out."""
    seen: list[tuple[dict[str, torch.Tensor], list[int] | None]] = []
    forward = trainer.compute_loss

    def watch(model, inputs, **kwargs):
        record = getattr(trainer, "_record", None)
        numbers = None if record is None else record.rows[len(record.losses)].tolist()
        seen.append(({key: value.clone() for key, value in inputs.items()}, numbers))
        return forward(model, inputs, **kwargs)

    trainer.compute_loss = watch
    trainer.train()
    return seen


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", list(DATA))
@pytest.mark.parametrize(
    "strategy", ["random", pytest.param("group_by_length", marks=pytest.mark.slow)]
)
def test_the_model_sees_the_same_batches_and_the_numbers_are_those_of_the_rows(
    make_trainer: MakeTrainer, kind: str, workers: int, strategy: str
):
    if kind == "a stream" and strategy != "random":
        pytest.skip("a stream has no lengths")
    settings = {
        "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 3,
        "dataloader_num_workers": workers, "train_sampling_strategy": strategy,
    }  # fmt: skip
    plain, numbered = (
        seen_batches(
            make_trainer(
                kind=of, train_dataset=DATA[kind](), callbacks=(SeededLengthGroups(),), **settings
            )
        )
        for of in (Trainer, SafeTrainer)
    )
    assert len(plain) == len(numbered) >= 5
    for (expected, _), (found, numbers) in zip(plain, numbered, strict=True):
        assert found.keys() == expected.keys()
        assert ROW_NUMBER not in found
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert numbers == (found["input_ids"][:, 0] - 1).tolist()


def test_rows_are_named_by_their_place_where_the_data_set_knows_it():
    dataset = Dataset.from_dict({"input_ids": [[1], [2]], "where": ["a.jsonl:3", "b.csv:7 row 2"]})
    assert name_rows(dataset, [1, 0]) == ["row 1 (b.csv:7 row 2)", "row 0 (a.jsonl:3)"]
    assert name_rows([{"input_ids": [1]}], [0]) == ["row 0"]
