"""Labelled data settings -> texts for training and for evaluation that have no text in common."""

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from sft_kit.data.inspection import counted, name_places
from sft_kit.data.labelled.holding_out import group_numbers, hold_out
from sft_kit.data.labelled.reading import ReadRows, read_labelled, refuse_bad_rows
from sft_kit.data.labelled.repeats import (
    KeyedText,
    find_overlap,
    find_repeats,
    without_overlap,
    without_repeats,
)
from sft_kit.data.labelled.report import LabelledReport, LabelledSplits
from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.rows import Where
from sft_kit.data.text_hash import feed_text
from sft_kit.errors import DataError, FormatError, Problem
from sft_kit.settings import LabelledDataSettings

_WHOLE_NUMBER = re.compile(r"[-+]?[0-9]{1,100}")


def load_labelled(settings: LabelledDataSettings) -> LabelledSplits:
    """Read the rows, report the bad ones all at once, and hold out rows for evaluation.

    Equal texts, and rows with an equal `group`, stay on one side of a split. Both sides keep the
    order of the file.

    Args:
        settings: The `data` section.

    Raises:
        DataError: Nothing to read, not readable, or nothing left to train on.
        FormatError: Columns or labels can't be told, there are bad rows and `on_bad_row` is
            `stop`, or the labels can't train a classifier.
    """
    splits = read_splits(settings)
    check_splits(splits, settings)
    return splits


def read_splits(settings: LabelledDataSettings) -> LabelledSplits:
    """Read and split as `load_labelled`, and leave the judgement to `check_splits`.

    Raises:
        DataError: Nothing to read, or not readable.
        FormatError: Columns or labels can't be told, or there are bad rows and `on_bad_row` is
            `stop`.
    """
    read = read_labelled(settings, settings.path)
    held_out = None
    if settings.eval_path:
        held_out = read_labelled(replace(settings, num_rows=None), settings.eval_path)
    refuse_bad_rows(settings, read, held_out)
    report = _begin_report(settings, read, held_out)
    train, evaluation = _with_keys(read.rows), _with_keys(held_out.rows if held_out else [])
    report.num_duplicates = _count_repeats(train, report)
    report.num_eval_duplicates = _count_repeats(evaluation, report)
    _count_overlap(train, evaluation, report)
    if settings.deduplicate:
        train, evaluation = _deduplicated(train, report), _deduplicated(evaluation, report)
    if settings.eval_path:
        train, evaluation = _apart(train, evaluation, settings, report)
    else:
        train, evaluation = hold_out(train, settings)
    names = order_labels(_rows(train), settings.label_names, read.class_names)
    return LabelledSplits(_rows(train), _rows(evaluation), names, report)


def check_splits(splits: LabelledSplits, settings: LabelledDataSettings) -> None:
    """Refuse splits that no classifier can learn from or be judged by.

    Raises:
        DataError: Nothing to train on, or nothing held out where something was asked for.
        FormatError: Too few classes, or held-out labels that can't be learnt.
    """
    if not splits.train:
        raise DataError(
            f"{settings.path}: nothing is left to train on: {_left_out(splits.report)} (see "
            "data.deduplicate, data.on_overlap and data.on_bad_row)"
        )
    problems = [*_too_few_classes(splits, settings), *_unlearnt_labels(splits, settings)]
    if problems:
        raise FormatError(f"{settings.path}: these labels can't train a classifier:", problems)
    is_asked_for = settings.num_folds or settings.eval_path or settings.eval_fraction
    if is_asked_for and not splits.eval:
        raise DataError(
            f"{settings.eval_path or settings.path}: no row can be held out: each is equal to a "
            "training row, or the only one of its class or group (add rows, or set "
            "data.eval_fraction=0 and train.eval_strategy=no)"
        )


def text_key(texts: Sequence[str]) -> bytes:
    """Hash a text or a pair; case, Unicode composition and the length of white space don't count.

    White space beside a Chinese or Japanese character doesn't count at all: there it is a matter of
    how a page was copied.
    """
    digest = hashlib.sha256()
    for text in texts:
        feed_text(digest, text, gaps_beside_cjk=False)
        # NUL can't occur in a text, so no text can look like a boundary.
        digest.update(b"\0")
    return digest.digest()


def order_labels(
    rows: Sequence[LabelledText], label_names: Mapping[str, str], class_names: Sequence[str]
) -> tuple[str, ...]:
    """Decide which class id each label has.

    Args:
        rows: The training rows.
        label_names: As in the settings; its names come in its order.
        class_names: The class names of a data set that declares them.

    Returns:
        The declared names in their order; without these the labels themselves, whole numbers by
        value, everything else by its characters.
    """
    if declared := tuple(dict.fromkeys(label_names.values())) or tuple(class_names):
        return declared
    names = {name for row in rows for name in row.labels}
    if all(map(_WHOLE_NUMBER.fullmatch, names)):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _begin_report(
    settings: LabelledDataSettings, read: ReadRows, held_out: ReadRows | None
) -> LabelledReport:
    files = [read, held_out] if held_out else [read]
    return LabelledReport(
        num_rows=sum(one.num_rows for one in files),
        num_bad_rows=sum(one.num_bad_rows for one in files),
        bad_rows=[problem for one in files for problem in one.problems],
        was_deduplicated=settings.deduplicate,
        fingerprint=read.fingerprint,
        eval_fingerprint=held_out.fingerprint if held_out else "",
        num_eval_path_rows=len(held_out.rows) if held_out else 0,
        reading_notes=list(dict.fromkeys(note for one in files for note in one.notes)),
        doubts=list(dict.fromkeys(doubt for one in files for doubt in one.doubts)),
    )


def _with_keys(rows: Sequence[LabelledText]) -> list[KeyedText]:
    return [KeyedText(row, text_key(row.texts)) for row in rows]


def _rows(keyed: Sequence[KeyedText]) -> list[LabelledText]:
    return [one.row for one in keyed]


def _count_repeats(rows: Sequence[KeyedText], report: LabelledReport) -> int:
    repeats = find_repeats(rows)
    report.conflicts += repeats.conflicts
    return repeats.num_duplicates


def _count_overlap(
    train: Sequence[KeyedText], held_out: Sequence[KeyedText], report: LabelledReport
) -> None:
    overlap = find_overlap(train, held_out)
    report.overlaps = overlap.places
    report.num_overlap_texts = overlap.num_texts
    report.num_overlap_conflicts = overlap.num_conflicts
    trained, asked = ({one.row.group for one in side} - {None} for side in (train, held_out))
    report.num_shared_groups = len(trained & asked)


def _deduplicated(rows: Sequence[KeyedText], report: LabelledReport) -> list[KeyedText]:
    kept, num_duplicates, num_conflicting = without_repeats(rows)
    report.num_dropped_duplicates += num_duplicates
    report.num_dropped_conflicts += num_conflicting
    return kept


def _apart(
    train: Sequence[KeyedText],
    held_out: Sequence[KeyedText],
    settings: LabelledDataSettings,
    report: LabelledReport,
) -> tuple[list[KeyedText], list[KeyedText]]:
    kept = without_overlap(train, held_out, settings.on_overlap)
    report.num_dropped_train = len(train) - len(kept[0])
    report.num_dropped_eval = len(held_out) - len(kept[1])
    return kept


def _left_out(report: LabelledReport) -> str:
    num_repeats = report.num_dropped_duplicates + report.num_dropped_conflicts
    return (
        f"of {counted(report.num_rows, 'row')} {report.num_bad_rows:,} are bad, {num_repeats:,} "
        f"repeat or contradict another, {report.num_dropped_train:,} are held out too"
    )


def _too_few_classes(splits: LabelledSplits, settings: LabelledDataSettings) -> Iterator[Problem]:
    trained = sorted({name for row in splits.train for name in row.labels})
    if len(trained) < (1 if settings.multi_label else 2):
        accepted = "at least one label" if settings.multi_label else "two classes or more"
        found = f"found {f'the label {trained[0]!r} only' if trained else 'no label'}"
        todo = "check data.label: it must name the column of the labels"
        if settings.num_rows:
            todo += ", or raise data.num_rows"
        yield Problem(settings.path, "data.label", f"{found}, accepts {accepted}", todo)


def _unlearnt_labels(splits: LabelledSplits, settings: LabelledDataSettings) -> Iterator[Problem]:
    """Labels that would be asked for and never taught: in `eval_path`, or in one of the folds."""
    trained = {name for row in splits.train for name in row.labels}
    places: dict[str, list[Where]] = {}
    for row in splits.eval:
        for name in set(row.labels) - trained:
            places.setdefault(name, []).append(row.where)
    todo = "add training rows, leave these rows out, or rename the label with data.label_names"
    for name in sorted(places):
        found = f"found the label {name!r} in {counted(len(places[name]), 'held-out row')}"
        message = f"{found} {name_places(places[name])} and in no training row"
        yield Problem(settings.eval_path or settings.path, "data.label", message, todo)
    if settings.num_folds:
        yield from _labels_of_one_group(splits, settings, places.keys())


def _labels_of_one_group(
    splits: LabelledSplits, settings: LabelledDataSettings, told: Collection[str]
) -> Iterator[Problem]:
    """Labels that one fold or another can't teach, whichever it is: told before the first runs."""
    rows = _with_keys([*splits.train, *splits.eval])
    groups: dict[str, set[int]] = {}
    for keyed, number in zip(rows, group_numbers(rows), strict=True):
        for name in keyed.row.labels:
            groups.setdefault(name, set()).add(number)
    for name in sorted(name for name, found in groups.items() if len(found) == 1):
        if name not in told:
            places = [keyed.row.where for keyed in rows if name in keyed.row.labels]
            found = f"found the label {name!r} in one text or group only {name_places(places)}"
            todo = "leave these rows out, or rename the label with data.label_names"
            message = f"{found}, so the fold that holds it out can't learn it"
            yield Problem(settings.path, "data.label", message, todo)
