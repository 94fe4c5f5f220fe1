"""Row numbers that travel with every batch, so that a bad step can be told by its rows.

A data loader with workers, a sampler of its own or several processes decides by itself which rows
become a batch. So each row takes its number along, the collator lays the numbers beside the batch
it has made of the rows, and they are taken out before the model sees the batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

ROW_NUMBER = "row_number"
Batch = MutableMapping[str, Any]


def number_rows(dataset: Any) -> Any:  # noqa: ANN401 - a Trainer takes any kind of data set
    """Wrap a data set so that each of its rows has a field `row_number`, counted from 0.

    A stream has no numbers of its own: its rows are counted as they come, in each process.
    """
    if isinstance(dataset, IterableDataset):
        return _NumberedStream(dataset)
    return _NumberedRows(dataset)


@dataclass(frozen=True, slots=True)
class NumberedBatches:
    """A collator that is not shown the row numbers, and lays them beside what it makes.

    Args:
        collate: Makes a batch of rows.
    """

    collate: Callable[[list[Any]], Batch]

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Make a batch of numbered rows."""
        numbers = torch.tensor([row[ROW_NUMBER] for row in rows])
        plain = [{key: row[key] for key in row if key != ROW_NUMBER} for row in rows]
        batch = self.collate(plain)
        batch[ROW_NUMBER] = numbers
        return batch


def take_row_numbers(batch: Batch) -> torch.Tensor | None:
    """Take the numbers of its rows out of a batch, (rows,) int64; None where it has none."""
    return cast("torch.Tensor | None", batch.pop(ROW_NUMBER, None))


def name_rows(dataset: object, numbers: Iterable[int]) -> list[str]:
    """Name rows by number, and by file and line where the data set knows them."""
    place_of = getattr(dataset, "place", None)
    if "where" in getattr(dataset, "column_names", ()):
        rows = cast("Sequence[Mapping[str, object]]", dataset)
        place_of = lambda number: rows[number]["where"]  # noqa: E731
    places = ((number, place_of(number) if place_of else "") for number in numbers)
    return [f"row {number} ({place})" if place else f"row {number}" for number, place in places]


class _NumberedRows(Dataset[dict[str, Any]]):
    def __init__(self, rows: Any) -> None:  # noqa: ANN401
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(self.rows):
            yield {**row, ROW_NUMBER: number}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], ROW_NUMBER: index}

    def __getitems__(self, indexes: Sequence[int]) -> list[dict[str, Any]]:
        together = getattr(self.rows, "__getitems__", None)
        rows = together(indexes) if together else [self.rows[index] for index in indexes]
        return [{**row, ROW_NUMBER: index} for index, row in zip(indexes, rows, strict=True)]


class _NumberedStream(IterableDataset[dict[str, Any]]):
    def __init__(self, rows: IterableDataset[Mapping[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, row in zip(count(first, every), self.rows, strict=False):
            yield {**row, ROW_NUMBER: number}
