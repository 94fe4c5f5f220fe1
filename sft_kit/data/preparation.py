"""Data settings -> tokenized rows for training and for evaluation, read and encoded in one pass.

The same rows as `load_conversations` and `tokenize` give one after the other. Here the texts of a
large file are never in memory together: a thousand rows at a time are read, compared, rendered and
encoded, and their tokens go to the disk, from where they are read as training asks for them.
"""

import json
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from sft_kit.data.cache import cache_entry
from sft_kit.data.examples import (
    PARTS,
    Examples,
    ExampleWriter,
    batched,
    from_buffers,
    from_folder,
    in_memory,
)
from sft_kit.data.rows import ReadReport
from sft_kit.data.sources import Source
from sft_kit.data.splits import (
    Reading,
    choose_sides,
    open_sources,
    read_conversations,
    report_of,
    row_key,
)
from sft_kit.data.templates import Template
from sft_kit.data.tokenization import ROWS_AT_ONCE, refuse_unrenderable, write_examples
from sft_kit.errors import DataError, Problem
from sft_kit.manifest import broken_parts, write_folder
from sft_kit.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RECORD = "record.json"
_SIDES = ("train", "eval", "overlaps")


@dataclass(slots=True)
class PreparedRows:
    """Tokenized rows, and how they were read.

    Attributes:
        train: To train on.
        eval: Held out; may be empty.
        report: What reading found.
        remarks: Where the rows are kept, or why they are not.
    """

    train: Examples
    eval: Examples
    report: ReadReport
    remarks: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """Say what was read, one sentence each: format, counts, and what was left out."""
        return [*self.report.notes(len(self.train), len(self.eval)), *self.remarks]

    def describe(self) -> dict[str, object]:
        """Counts and fingerprints, for the record of a run."""
        counts = self.report.describe(len(self.train), len(self.eval))
        return {"format": self.report.format, **counts}


@dataclass(frozen=True, slots=True)
class _Work:
    """What `prepare` is given."""

    settings: DataSettings
    tokenizer: "PreTrainedTokenizerBase"
    template: Template


@dataclass(frozen=True, slots=True)
class _Record:
    """What is known of written rows: their files, numbers of some of them, and the report."""

    files: tuple[str, ...]
    train: NDArray[np.int64]
    eval: NDArray[np.int64]
    overlaps: NDArray[np.int64]
    report: ReadReport

    def rows(self, examples: Examples, remark: str = "") -> PreparedRows:
        """Share the examples between the two sides."""
        self.report.overlaps = [examples.place(int(number)) for number in self.overlaps]
        train, held_out = examples.choose(self.train), examples.choose(self.eval)
        return PreparedRows(train, held_out, self.report, [remark] if remark else [])


def prepare(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerBase", template: Template
) -> PreparedRows:
    """Read, check, split, render, encode and cut the rows, or find all that done in the cache.

    Several processes that start at once do it once: the first one works, the others wait.

    Args:
        settings: The `data` section.
        tokenizer: Carries the template; its `model_max_length` bounds `settings.max_length`.
        template: From `choose_template`.

    Raises:
        DataError: Nothing to read, not readable, or a row that the template can't render.
        FormatError: The format can't be told, no row is good, or there are bad rows (such as those
            that spell a special token) and `on_bad_row` is `stop`.
    """
    work = _Work(settings, tokenizer, template)
    sources = open_sources(settings)
    entry = cache_entry(settings, sources, tokenizer, template)
    if entry is None:
        return _prepare_in_memory(work, sources)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.with_name(f".{entry.name}.lock")):
            is_known = not broken_parts(entry)
            if not is_known:
                write_folder(entry, lambda stage: _prepare_in_folder(work, sources, stage))
            record = _load_record(entry)
            kept = f"data: tokenized rows {'taken from' if is_known else 'kept in'} {entry}"
            return record.rows(from_folder(entry, record.files), kept)
    except OSError as error:  # a full disk or a folder of somebody else's costs the cache only
        remark = f"data: tokenized rows are not kept in {entry.parent}: {error.strerror or error}"
        rows = _prepare_in_memory(work, open_sources(settings))
        rows.remarks.append(remark)
        return rows


def _prepare_in_memory(work: _Work, sources: Sequence[Source]) -> PreparedRows:
    parts = in_memory()
    record = _write(work, sources, parts)
    return record.rows(from_buffers(parts, record.files))


def _prepare_in_folder(work: _Work, sources: Sequence[Source], folder: Path) -> None:
    with ExitStack() as files:
        parts = {name: files.enter_context((folder / name).open("wb")) for name in PARTS}
        record = _write(work, sources, parts)
    _save_record(record, folder)


def _write(work: _Work, sources: Sequence[Source], parts: Mapping[str, BinaryIO]) -> _Record:
    """Tokenize all rows of all sources, one behind the other, and share them out."""
    settings = work.settings
    writer = ExampleWriter(parts)
    readings: list[Reading] = []
    keys: list[array[int]] = []
    problems: list[Problem] = []
    for source in sources:
        num_rows = None if readings else settings.num_rows
        reading, own_keys = Reading(), array("Q")
        readings.append(reading)
        keys.append(own_keys)
        rows = read_conversations(source, settings.format, num_rows, work.tokenizer, reading)
        for some in batched(rows, ROWS_AT_ONCE):
            if reading.problems and settings.on_bad_row == "stop":
                continue  # only the other bad rows are left to find
            own_keys.extend(map(row_key, some))
            try:
                write_examples(
                    writer, some, work.tokenizer, work.template, settings, are_checked=True
                )
            except DataError as error:
                problems += error.problems
    report = report_of(sources, readings, settings)
    refuse_unrenderable(problems)
    train, held_out = choose_sides(
        [np.array(own_keys, np.uint64) for own_keys in keys], settings, report
    )
    before_eval = len(keys[0]) if len(keys) > 1 else 0
    overlaps = held_out.overlaps + before_eval
    return _Record(writer.files, train, held_out.numbers + before_eval, overlaps, report)


def _save_record(record: _Record, folder: Path) -> None:
    for name in _SIDES:
        np.save(folder / f"{name}.npy", getattr(record, name))
    content = {"files": record.files, "report": asdict(record.report)}
    (folder / _RECORD).write_text(json.dumps(content), encoding="utf-8")


def _load_record(folder: Path) -> _Record:
    content = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    report = ReadReport(**content["report"])
    report.bad_rows = [Problem(**fields) for fields in content["report"]["bad_rows"]]
    train, held_out, overlaps = (np.load(folder / f"{name}.npy") for name in _SIDES)
    return _Record(tuple(content["files"]), train, held_out, overlaps, report)
