"""Data settings -> conversations for training and for evaluation that have no row in common."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from sft_kit.data.control_tokens import conversation_problems
from sft_kit.data.formats import detect_format, understand
from sft_kit.data.rows import Conversation, RawRow, ReadReport, Splits
from sft_kit.data.sources import Source, open_source
from sft_kit.data.text_hash import feed_text
from sft_kit.errors import FormatError, Problem
from sft_kit.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Key = TypeVar("Key", bytes, int)

NUM_ROWS_TO_DETECT = 100
"""Rows looked at to name the format."""


@dataclass(slots=True)
class Reading:
    """What is known of a source's rows, good and bad, while they are read.

    Attributes:
        format: Format used, named or detected.
        num_rows: Rows read, the bad ones included.
        num_bad_rows: Rows that can't be used.
        problems: What is wrong with these.
        unknown_roles: Role name as in the file -> number of rows that use it.
    """

    format: str = ""
    num_rows: int = 0
    num_bad_rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    unknown_roles: dict[str, int] = field(default_factory=dict)


def load_conversations(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> Splits:
    """Read the rows, report the bad ones all at once, and hold out rows for evaluation.

    Rows that are equal but for case and white space stay on one side of a split by fraction. Both
    sides keep the order of the file.

    Args:
        settings: The `data` section.
        tokenizer: Rows that spell one of its special tokens are bad; None leaves them in, and
            `tokenize` refuses them.

    Raises:
        DataError: Nothing to read, or not readable.
        FormatError: The format can't be told, no row is good, or there are bad rows and
            `on_bad_row` is `stop`.
    """
    readings: list[Reading] = []
    sides: list[list[Conversation]] = []
    sources = open_sources(settings)
    for source in sources:
        num_rows = None if readings else settings.num_rows
        readings.append(Reading())
        rows = read_conversations(source, settings.format, num_rows, tokenizer, readings[-1])
        sides.append(list(rows))
    report = report_of(sources, readings, settings)
    keys = [np.array([row_key(row) for row in rows], np.uint64) for rows in sides]
    train, held_out = choose_sides(keys, settings, report)
    held_out_rows = [sides[-1][index] for index in held_out.numbers]
    report.overlaps = [held_out_rows[index].where for index in held_out.overlaps]
    return Splits([sides[0][index] for index in train], held_out_rows, report)


def open_sources(settings: DataSettings) -> list[Source]:
    """Open `path` and, where it is set, `eval_path`."""
    paths = [settings.path, *([settings.eval_path] if settings.eval_path else [])]
    return [open_source(path, settings.split, settings.revision) for path in paths]


def read_conversations(
    source: Source,
    format_name: str,
    num_rows: int | None,
    tokenizer: "PreTrainedTokenizerBase | None",
    reading: Reading,
) -> Iterator[Conversation]:
    """Yield the good rows of a source as they are read.

    Args:
        source: The rows.
        format_name: A name of a format, or "auto".
        num_rows: Only so many first rows.
        tokenizer: Rows that spell one of its special tokens are bad.
        reading: Takes up counts and problems.
    """
    rows = islice(source.rows, num_rows)
    seen: list[RawRow | Problem] = []
    if format_name == "auto":
        seen = _first_rows(rows)
        samples = [row for row in seen if isinstance(row, RawRow)]
        # Without a single readable row any format will do: only problems are left to tell.
        format_name = detect_format(samples) if samples else "text"
    reading.format = format_name
    for row in chain(_consumed(seen), rows):
        reading.num_rows += 1
        if isinstance(row, Problem):
            reading.problems.append(row)
            reading.num_bad_rows += 1
            continue
        understood = understand(row, format_name)
        problems = list(understood.problems)
        for role in understood.unknown_roles:
            reading.unknown_roles[role] = reading.unknown_roles.get(role, 0) + 1
        if understood.conversation and tokenizer is not None:
            problems += conversation_problems(understood.conversation, tokenizer)
        reading.problems += problems
        if understood.conversation and not problems:
            yield understood.conversation
        else:
            reading.num_bad_rows += 1


def _first_rows(rows: Iterator[RawRow | Problem]) -> list[RawRow | Problem]:
    seen: list[RawRow | Problem] = []
    num_good = 0
    while num_good < NUM_ROWS_TO_DETECT and (row := next(rows, None)):
        seen.append(row)
        num_good += isinstance(row, RawRow)
    return seen


def _consumed(rows: list[RawRow | Problem]) -> Iterator[RawRow | Problem]:
    rows.reverse()
    while rows:
        yield rows.pop()


def report_of(
    sources: Sequence[Source], readings: Sequence[Reading], settings: DataSettings
) -> ReadReport:
    """Sum up what was read, after the last row.

    Raises:
        FormatError: No row is good, or there are bad rows and `on_bad_row` is `stop`.
    """
    together = _together(readings)
    _refuse_bad_rows(settings.path, together, settings.on_bad_row)
    for path, reading in zip((settings.path, settings.eval_path), readings, strict=False):
        _refuse_bad_rows(path or "", reading, "skip")
    return ReadReport(
        together.format,
        together.num_rows,
        together.problems,
        together.num_bad_rows,
        together.unknown_roles,
        fingerprint=sources[0].fingerprint,
        eval_fingerprint=sources[1].fingerprint if len(sources) > 1 else "",
    )


def _together(readings: Sequence[Reading]) -> Reading:
    roles: Counter[str] = Counter()
    for reading in readings:
        roles.update(reading.unknown_roles)
    return Reading(
        readings[0].format,
        sum(reading.num_rows for reading in readings),
        sum(reading.num_bad_rows for reading in readings),
        [problem for reading in readings for problem in reading.problems],
        dict(roles),
    )


def _refuse_bad_rows(path: str, reading: Reading, on_bad_row: str) -> None:
    has_good = reading.num_rows > reading.num_bad_rows
    if not reading.problems or (on_bad_row == "skip" and has_good):
        return
    counted = f"{reading.num_bad_rows} of {reading.num_rows} rows can't be used"
    advice = "repair them, or leave them out with data.on_bad_row=skip"
    if not has_good:
        counted, advice = f"none of the {reading.num_rows} rows can be used", "repair them"
    raise FormatError(f"{path}: {counted} ({advice}):", reading.problems)


def normalised_hash(conversation: Conversation) -> bytes:
    """Hash roles and texts; case, runs of white space and Unicode composition don't count."""
    digest = hashlib.sha256()
    if conversation.text is not None:
        feed_text(digest, conversation.text)
    for message in conversation.messages:
        # NUL can't occur in a text, so no text can look like a boundary.
        digest.update(f"\0{message['role']}\0".encode())
        feed_text(digest, message["content"])
    return digest.digest()


def row_key(conversation: Conversation) -> int:
    """The first eight bytes of `normalised_hash`, to compare millions of rows by."""
    return int.from_bytes(normalised_hash(conversation)[:8], "big")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows for evaluation.

    Attributes:
        numbers: Of the rows, among those of `eval_path` or else of `path`.
        overlaps: Places in `numbers` of rows that stand in `path` too.
    """

    numbers: NDArray[np.int64]
    overlaps: NDArray[np.int64]


def choose_sides(
    keys: Sequence[NDArray[np.uint64]], settings: DataSettings, report: ReadReport
) -> tuple[NDArray[np.int64], HeldOut]:
    """Decide which rows are trained on and which are held out; both keep their order.

    Args:
        keys: `row_key` of the rows of `path` and, where it is set, of `eval_path`.
        settings: `eval_fraction` and `split_seed`.
        report: Takes up how many rows are equal.

    Returns:
        Numbers of the rows of `path` to train on, and the rows to hold out.
    """
    if len(keys) > 1:
        train, held_out = keys
        report.num_duplicates = len(train) - len(np.unique(train))
        overlaps = np.flatnonzero(np.isin(held_out, train))
        report.num_overlaps = len(overlaps)
        kept = np.flatnonzero(~np.isin(train, held_out))
        return kept, HeldOut(np.arange(len(held_out)), overlaps)
    _, first, groups, sizes = np.unique(
        keys[0], return_index=True, return_inverse=True, return_counts=True
    )
    in_order = np.argsort(first)  # as they stand in the file
    drawn = held_out_groups(
        dict(enumerate(sizes[in_order].tolist())), settings.eval_fraction, settings.split_seed
    )
    is_drawn = np.zeros(len(sizes), np.bool_)
    is_drawn[in_order[list(drawn)]] = True
    is_held_out = is_drawn[groups]
    report.num_duplicates = int((~is_held_out).sum() - (~is_drawn).sum())
    nothing = np.zeros(0, np.int64)
    return np.flatnonzero(~is_held_out), HeldOut(np.flatnonzero(is_held_out), nothing)


def held_out_groups(sizes: dict[Key, int], fraction: float, seed: int) -> set[Key]:
    """Draw groups of equal rows until the fraction is reached; never none of two, never all.

    Args:
        sizes: Group -> number of its rows, in the order of the file.
        fraction: Share of the rows to hold out.
        seed: Seed of the draw.

    Returns:
        Groups whose rows are held out.
    """
    if fraction == 0 or len(sizes) < 2:
        return set()
    groups: Sequence[Key] = random.Random(seed).sample(list(sizes), k=len(sizes))
    room = max(1, round(fraction * sum(sizes.values())))
    chosen: set[Key] = set()
    for group in groups[:-1]:
        if sizes[group] <= room:
            chosen.add(group)
            room -= sizes[group]
    return chosen or {min(groups, key=sizes.__getitem__)}
