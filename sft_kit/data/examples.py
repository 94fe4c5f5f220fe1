"""Tokenized rows in flat arrays, in memory or read from the disk as they are needed.

Ids and labels take eight bytes a token; as lists of Python's numbers they would take over sixty.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from sft_kit.data.rows import IGNORED, Example, Where

Item = TypeVar("Item")

TOKEN = np.dtype(np.int32)
ROW = np.dtype(
    [
        ("start", np.int64),  # first token
        ("end", np.int64),  # the one behind the last
        ("line", np.int64),
        ("row", np.int64),  # number among rows of one line; 0 is none
        ("file", np.int32),
        ("was_cut", np.int32),
        ("num_unlearnt_answers", np.int32),
        ("num_supervised", np.int32),
        ("last_label", np.int32),  # of the supervised ones; `IGNORED` where there is none
    ]
)
"""What is known of a row beside its tokens."""

PARTS = {"ids": TOKEN, "labels": TOKEN, "rows": ROW}
"""Arrays of which examples consist, by name."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples(Sequence[Example]):
    """Tokenized conversations that share their arrays with other splits. N tokens, S rows.

    Attributes:
        ids: (N,) token ids of all rows, one row behind the other.
        labels: (N,) labels.
        rows: (S,) of `ROW`.
        files: Names of the files that the rows came from.
        chosen: (K,) numbers of the rows that these examples are.
    """

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    rows: NDArray[np.void]
    files: tuple[str, ...]
    chosen: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> "Examples": ...

    def __getitem__(self, index: int | slice) -> "Example | Examples":
        if isinstance(index, slice):
            return self.choose(np.arange(len(self))[index])
        row = self.rows[self.chosen[index]]
        tokens = slice(int(row["start"]), int(row["end"]))
        return Example(
            input_ids=self.ids[tokens].tolist(),
            labels=self.labels[tokens].tolist(),
            was_cut=bool(row["was_cut"]),
            where=self._place(row),
            num_unlearnt_answers=int(row["num_unlearnt_answers"]),
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(K,) tokens of each example."""
        return self.fact("end") - self.fact("start")

    def fact(self, name: str) -> NDArray[np.int64]:
        """(K,) one field of `ROW`, by example."""
        return cast("NDArray[np.int64]", self.rows[name][self.chosen].astype(np.int64))

    def place(self, index: int) -> Where:
        """Where an example stood in the data."""
        return self._place(self.rows[self.chosen[index]])

    def choose(self, numbers: NDArray[np.int64]) -> "Examples":
        """Take some of the examples, given by number."""
        return Examples(self.ids, self.labels, self.rows, self.files, self.chosen[numbers])

    def _place(self, row: np.void) -> Where:
        number = int(row["row"]) or None
        return Where(self.files[int(row["file"])], int(row["line"]), number)


class ExampleWriter:
    """Appends rows to the three arrays, each a file or a buffer.

    Args:
        parts: Name in `PARTS` -> where its bytes go.
    """

    def __init__(self, parts: Mapping[str, BinaryIO]) -> None:
        self._parts = parts
        self._num_tokens = 0
        self._files: dict[str, int] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that rows came from so far."""
        return tuple(self._files)

    def add(
        self,
        ids: NDArray[np.int32],
        labels: NDArray[np.int32],
        rows: NDArray[np.void],
        places: Iterable[Where],
    ) -> None:
        """Append rows.

        Args:
            ids: (T,) token ids.
            labels: (T,) labels.
            rows: (R,) of `ROW`, `start` and `end` within `ids`; the place is filled in here.
            places: R places.
        """
        rows = rows.copy()
        rows["start"] += self._num_tokens
        rows["end"] += self._num_tokens
        self._num_tokens += len(ids)
        known = list(places)
        rows["file"] = [self._files.setdefault(one.file, len(self._files)) for one in known]
        rows["line"] = [one.line for one in known]
        rows["row"] = [one.row or 0 for one in known]
        for name, array in (("ids", ids), ("labels", labels), ("rows", rows)):
            self._parts[name].write(array.tobytes())


def in_memory() -> dict[str, BytesIO]:
    """Buffers for an `ExampleWriter`."""
    return {name: BytesIO() for name in PARTS}


def from_buffers(parts: Mapping[str, BytesIO], files: tuple[str, ...]) -> Examples:
    """Read what an `ExampleWriter` wrote to buffers."""
    arrays = {name: np.frombuffer(parts[name].getbuffer(), dtype) for name, dtype in PARTS.items()}
    return _together(arrays, files)


def from_folder(folder: Path, files: tuple[str, ...]) -> Examples:
    """Map what an `ExampleWriter` wrote to the files of a folder; it is read when it is used."""
    arrays = {
        name: np.memmap(folder / name, dtype, mode="r")
        if (folder / name).stat().st_size
        else np.zeros(0, dtype)
        for name, dtype in PARTS.items()
    }
    return _together(arrays, files)


def flat_examples(examples: Sequence[Example]) -> Examples:
    """Lay examples out flat; those that are so already are returned as they are."""
    if isinstance(examples, Examples):
        return examples
    parts = in_memory()
    writer = ExampleWriter(parts)
    for example in examples:
        labels = np.array(example.labels, TOKEN)
        row = np.zeros(1, ROW)
        row["end"], row["was_cut"] = len(labels), example.was_cut
        row["num_unlearnt_answers"] = example.num_unlearnt_answers
        learnt = labels[labels != IGNORED]
        row["num_supervised"] = len(learnt)
        row["last_label"] = learnt[-1] if len(learnt) else IGNORED
        writer.add(np.array(example.input_ids, TOKEN), labels, row, [example.where])
    return from_buffers(parts, writer.files)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Part items into lists of `size`; the last may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def place_names(examples: Examples) -> Iterator[str]:
    """Name the places of all rows of the arrays, chosen or not."""
    facts = (examples.rows[name].tolist() for name in ("file", "line", "row"))
    for file, line, row in zip(*facts, strict=True):
        yield str(Where(examples.files[file], line, row or None))


def _together(arrays: Mapping[str, NDArray[np.generic]], files: tuple[str, ...]) -> Examples:
    ids, labels = (cast("NDArray[np.int32]", arrays[name]) for name in ("ids", "labels"))
    rows = cast("NDArray[np.void]", arrays["rows"])
    return Examples(ids, labels, rows, files, np.arange(len(rows)))
