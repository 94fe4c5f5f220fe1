"""Data settings -> conversations for training and for evaluation that have no row in common."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from sft_kit.data.formats import detect_format, understand
from sft_kit.data.rows import Conversation, RawRow, ReadReport, Splits
from sft_kit.data.sources import Source, open_source
from sft_kit.data.text_hash import feed_text
from sft_kit.errors import FormatError, Problem
from sft_kit.settings import DataSettings

NUM_ROWS_TO_DETECT = 100
"""Rows looked at to name the format."""


@dataclass(slots=True)
class _Read:
    """All rows of one source."""

    format: str = ""
    num_rows: int = 0
    conversations: list[Conversation] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    num_bad_rows: int = 0
    unknown_roles: dict[str, int] = field(default_factory=dict)


def load_conversations(settings: DataSettings) -> Splits:
    """Read the rows, report the bad ones all at once, and hold out rows for evaluation.

    Rows that are equal but for case and white space stay on one side of a split by fraction. Both
    sides keep the order of the file.

    Args:
        settings: The `data` section.

    Raises:
        DataError: Nothing to read, or not readable.
        FormatError: The format can't be told, no row is good, or there are bad rows and
            `on_bad_row` is `stop`.
    """
    source = open_source(settings.path, settings.split, settings.revision)
    read = _read_source(source, settings.format, settings.num_rows)
    held_out = _Read()
    report = ReadReport(read.format, fingerprint=source.fingerprint)
    if settings.eval_path:
        eval_source = open_source(settings.eval_path, settings.split, settings.revision)
        report.eval_fingerprint = eval_source.fingerprint
        held_out = _read_source(eval_source, settings.format, None)
    _refuse_bad_rows(settings.path, _together(read, held_out), settings.on_bad_row)
    _refuse_bad_rows(settings.path, read, "skip")
    _refuse_bad_rows(settings.eval_path or "", held_out, "skip")
    _fill(report, _together(read, held_out))
    if settings.eval_path:
        return _with_overlap(read.conversations, held_out.conversations, report)
    return _split(read.conversations, settings, report)


def _read_source(source: Source, format_name: str, num_rows: int | None) -> _Read:
    rows = islice(source.rows, num_rows)
    seen: list[RawRow | Problem] = []
    if format_name == "auto":
        seen = _first_rows(rows)
        samples = [row for row in seen if isinstance(row, RawRow)]
        # Without a single readable row any format will do: only problems are left to tell.
        format_name = detect_format(samples) if samples else "text"
    read = _Read(format_name)
    for row in chain(_consumed(seen), rows):
        read.num_rows += 1
        if isinstance(row, Problem):
            read.problems.append(row)
            read.num_bad_rows += 1
            continue
        understood = understand(row, format_name)
        read.problems += understood.problems
        for role in understood.unknown_roles:
            read.unknown_roles[role] = read.unknown_roles.get(role, 0) + 1
        if understood.conversation:
            read.conversations.append(understood.conversation)
        else:
            read.num_bad_rows += 1
    return read


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


def _together(first: _Read, second: _Read) -> _Read:
    roles = {**first.unknown_roles}
    for role, count in second.unknown_roles.items():
        roles[role] = roles.get(role, 0) + count
    return _Read(
        first.format,
        first.num_rows + second.num_rows,
        [*first.conversations, *second.conversations],
        [*first.problems, *second.problems],
        first.num_bad_rows + second.num_bad_rows,
        roles,
    )


def _refuse_bad_rows(path: str, read: _Read, on_bad_row: str) -> None:
    if not read.problems or (on_bad_row == "skip" and read.conversations):
        return
    counted = f"{read.num_bad_rows} of {read.num_rows} rows can't be used"
    advice = "repair them, or leave them out with data.on_bad_row=skip"
    if not read.conversations:
        counted, advice = f"none of the {read.num_rows} rows can be used", "repair them"
    raise FormatError(f"{path}: {counted} ({advice}):", read.problems)


def _fill(report: ReadReport, read: _Read) -> None:
    report.num_rows = read.num_rows
    report.bad_rows = read.problems
    report.num_bad_rows = read.num_bad_rows
    report.unknown_roles = read.unknown_roles


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


def _with_overlap(
    train: list[Conversation], held_out: list[Conversation], report: ReadReport
) -> Splits:
    train_hashes = [normalised_hash(conversation) for conversation in train]
    known = set(train_hashes)
    report.num_duplicates = len(train_hashes) - len(known)
    report.overlaps = [
        conversation.where for conversation in held_out if normalised_hash(conversation) in known
    ]
    report.num_overlaps = len(report.overlaps)
    held_out_hashes = {normalised_hash(conversation) for conversation in held_out}
    kept = [
        conversation
        for conversation, digest in zip(train, train_hashes, strict=True)
        if digest not in held_out_hashes
    ]
    return Splits(kept, held_out, report)


def _split(rows: list[Conversation], settings: DataSettings, report: ReadReport) -> Splits:
    hashes = [normalised_hash(row) for row in rows]
    sizes: dict[bytes, int] = {}
    for key in hashes:
        sizes[key] = sizes.get(key, 0) + 1
    held_out = held_out_groups(sizes, settings.eval_fraction, settings.split_seed)
    train = [row for row, key in zip(rows, hashes, strict=True) if key not in held_out]
    evaluation = [row for row, key in zip(rows, hashes, strict=True) if key in held_out]
    report.num_duplicates = len(train) - (len(sizes) - len(held_out))
    return Splits(train, evaluation, report)


def held_out_groups(sizes: dict[bytes, int], fraction: float, seed: int) -> set[bytes]:
    """Draw groups of equal rows until the fraction is reached; never none of two, never all.

    Args:
        sizes: Hash -> number of rows that have it, in the order of the file.
        fraction: Share of the rows to hold out.
        seed: Seed of the draw.

    Returns:
        Hashes whose rows are held out.
    """
    if fraction == 0 or len(sizes) < 2:
        return set()
    groups: Sequence[bytes] = random.Random(seed).sample(list(sizes), k=len(sizes))
    room = max(1, round(fraction * sum(sizes.values())))
    chosen: set[bytes] = set()
    for group in groups[:-1]:
        if sizes[group] <= room:
            chosen.add(group)
            room -= sizes[group]
    return chosen or {min(groups, key=sizes.__getitem__)}
