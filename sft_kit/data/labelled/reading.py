"""A file, a folder or a data set of the Hub -> labelled texts, with everything that is wrong."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice

from sft_kit.data.inspection import counted
from sft_kit.data.labelled.columns import MAX_LABEL_CHARACTERS, Columns, find_columns
from sft_kit.data.labelled.doubts import separator_doubts
from sft_kit.data.labelled.labels import label_text, read_labels
from sft_kit.data.labelled.layouts import NUMBER, Looks, look_at
from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.rows import RawRow
from sft_kit.data.sources import open_source
from sft_kit.data.turns import Findings, check_text, required
from sft_kit.errors import FormatError, Problem
from sft_kit.settings import LabelledDataSettings

_FEW_LABELS = 50
_NUM_ROWS_TO_DOUBT = 3
_MAX_TOLD_SINGLY = 3
_MAX_NAMED_LINES = 10


@dataclass(slots=True)
class ReadRows:
    """Labelled texts in the order of the file, and what reading found.

    Attributes:
        rows: The rows that can be used.
        num_rows: Rows read, the bad ones included.
        problems: What is wrong with the others, in the order of the file.
        num_bad_rows: Rows that can't be used (one row may have several problems).
        fingerprint: sha256 over the bytes (of a Hub data set: its own fingerprint and the
            revision).
        class_names: Names by class id, where the data set knows them or columns of 0 and 1 are
            the labels; else empty.
        notes: What was detected, a sentence each.
        doubts: What was probably not meant, a sentence each.
    """

    rows: list[LabelledText] = field(default_factory=list)
    num_rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    num_bad_rows: int = 0
    fingerprint: str = ""
    class_names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def read_labelled(
    settings: LabelledDataSettings,
    path: str,
    *,
    needs_labels: bool = True,
    known_labels: Collection[str] = (),
) -> ReadRows:
    """Read labelled texts; bad rows are returned as problems, for `refuse_bad_rows` to judge.

    Args:
        settings: The `data` section; says all but the path.
        path: File, folder or Hub data set id.
        needs_labels: Without, the label column may be absent or empty, and labels stay empty.
        known_labels: Without labels that are needed: what counts as one at the end of the lines of
            a .txt file, which are whole texts otherwise.

    Raises:
        DataError: Nothing to read, or not readable.
        FormatError: Columns, header or separator can't be told, or the labels are no labels.
    """
    looks = Looks()
    known = None if needs_labels else known_labels
    layout = partial(look_at, settings=settings, known_labels=known, looks=looks)
    source = open_source(path, settings.split, settings.revision, layout)
    items = list(islice(source.rows, settings.num_rows))
    good = [item for item in items if isinstance(item, RawRow)]
    read = ReadRows(num_rows=len(items), fingerprint=source.fingerprint, notes=looks.notes)
    if not good:
        read.problems = [item for item in items if isinstance(item, Problem)]
        read.num_bad_rows = len(items)
        return read
    columns = _columns_of_all(good, settings, needs_labels)
    read.notes += [*_note_folder(path, items), f"data: {columns.describe()}"]
    reader = _Reader(settings, columns, source.class_names, needs_labels)
    for item in items:
        found = item if isinstance(item, Problem) else reader.read(item)
        if isinstance(found, LabelledText):
            read.rows.append(found)
        else:
            read.problems += [found] if isinstance(found, Problem) else found
            read.num_bad_rows += 1
    if needs_labels:
        read.class_names = _class_names(columns, settings, source.class_names)
        _refuse_hidden_header(read.rows, looks)
        if not (read.class_names or settings.label_names):
            _refuse_what_is_no_label(path, columns, read.rows)
        if settings.multi_label and not columns.are_flags:
            read.doubts = separator_doubts(path, read.rows, settings)
    return read


def _note_folder(path: str, items: Sequence[RawRow | Problem]) -> list[str]:
    files = {item.where.file for item in items if isinstance(item, RawRow)}
    if len(files) < 2:
        return []
    found = f"the {len(files)} files of {path} are read as one data set"
    return [f"data: {found} (data.eval_path names held-out rows)"]


def refuse_bad_rows(
    settings: LabelledDataSettings, read: ReadRows, held_out: ReadRows | None = None
) -> None:
    """Refuse bad rows, those of both files in one report, unless `on_bad_row` skips them.

    Args:
        settings: The `data` section.
        read: Rows of `path`.
        held_out: Rows of `eval_path`, where there is one.

    Raises:
        FormatError: There are bad rows and `on_bad_row` is `stop`, or a file has no good row.
    """
    files = [(settings.path, read)]
    if held_out:
        files.append((settings.eval_path or "", held_out))
    for path, found in files:
        if not found.rows:
            message = f"none of {counted(found.num_rows, 'row')} can be used (repair them):"
            raise FormatError(f"{path}: {message}", alike_in_one(found.problems))
    problems = [problem for _, found in files for problem in found.problems]
    if problems and settings.on_bad_row == "stop":
        num_bad = sum(found.num_bad_rows for _, found in files)
        num_rows = sum(found.num_rows for _, found in files)
        raise FormatError(
            f"{settings.path}: {num_bad:,} of {counted(num_rows, 'row')} can't be used (repair "
            "them, or leave them out with data.on_bad_row=skip):",
            alike_in_one(problems),
        )


def alike_in_one(problems: Sequence[Problem]) -> list[Problem]:
    """Tell many rows of a file with the same finding in one problem, at the place of the first."""
    alike: dict[tuple[str, str, str, str], list[Problem]] = {}
    for problem in problems:
        file = problem.where.rpartition(":")[0]
        key = (file, problem.key, problem.message, problem.todo)
        alike.setdefault(key, []).append(problem)
    told = []
    for (file, *_), found in alike.items():
        if not file or len(found) <= _MAX_TOLD_SINGLY:
            told += found
            continue
        lines = [problem.where.rpartition(":")[2] for problem in found[:_MAX_NAMED_LINES]]
        more = ", ..." if len(found) > len(lines) else ""
        where = f"{file}: {len(found):,} rows (lines {', '.join(lines)}{more})"
        told.append(replace(found[0], where=where))
    return told


def _columns_of_all(
    rows: Sequence[RawRow], settings: LabelledDataSettings, needs_labels: bool
) -> Columns:
    """Find the columns of each file; the files of a folder must agree."""
    found: dict[str, Columns] = {}
    for file, of_file in groupby(rows, key=lambda row: row.where.file):
        found[file] = find_columns(list(of_file), settings, needs_labels)
    (first, columns), *others = found.items()
    for file, other in others:
        if other != columns:
            raise FormatError(
                "the files of the folder have different columns (set data.text and data.label, or "
                "give the files the same names of columns):",
                [Problem(first, "", columns.describe()), Problem(file, "", other.describe())],
            )
    return columns


@dataclass(slots=True)
class _Reader:
    """Reads row after row, and remembers what the labels were said to mean."""

    settings: LabelledDataSettings
    columns: Columns
    class_names: Mapping[str, tuple[str, ...]]
    needs_labels: bool
    meanings: dict[str, tuple[str, str]] = field(default_factory=dict)

    def read(self, row: RawRow) -> LabelledText | list[Problem]:
        findings = Findings()
        texts = [_text(row.fields, self.columns.text, findings)]
        if self.columns.text_pair:
            texts.append(_text(row.fields, self.columns.text_pair, findings))
        labels: tuple[str, ...] = ()
        group = None
        if self.needs_labels:
            labels = read_labels(
                row.fields, self.columns, self.settings, self.class_names, findings
            )
            if self.columns.description and labels:
                self.compare_meanings(row, labels[0], findings)
        if self.columns.group and (self.needs_labels or row.fields.get(self.columns.group)):
            value = required(row.fields, self.columns.group, findings)
            group = _group(value, self.columns.group, findings)
        if findings.problems:
            return [replace(problem, where=str(row.where)) for problem in findings.problems]
        return LabelledText(tuple(texts), labels, row.where, group)

    def compare_meanings(self, row: RawRow, meaning: str, findings: Findings) -> None:
        """Note a label whose description differs from the one of an earlier row."""
        column = self.columns.label[0]
        label = label_text(row.fields.get(column), column, findings)
        if not label:
            return
        earlier, where = self.meanings.setdefault(label, (meaning, str(row.where)))
        if earlier != meaning:
            message = f"found {meaning!r:.60} for the label {label!r:.60}, {where} says {earlier!r}"
            findings.add(self.columns.description or "", message, "correct one of them")


def _text(fields: Mapping[str, object], names: Sequence[str], findings: Findings) -> str:
    """Join the fields of a text; empty ones don't count where another has a text."""
    parts: list[str] = []
    num_problems = len(findings.problems)
    for name in names:
        value = required(fields, name, findings)
        if isinstance(value, (bool, int, float)):
            value = str(value).lower()
        is_empty = value is None or (isinstance(value, str) and not value.strip())
        if name in fields and not (is_empty and len(names) > 1):
            parts.append(check_text(value, name, findings))
    if not parts and len(findings.problems) == num_problems:
        findings.add(names[0], "found an empty text", "write the text, or remove the row")
    return " ".join(parts)


def _group(value: object, name: str, findings: Findings) -> str | None:
    if isinstance(value, (bool, int, float)):
        value = str(value).lower()
    return check_text(value, name, findings).strip() or None


def _refuse_what_is_no_label(path: str, columns: Columns, rows: Sequence[LabelledText]) -> None:
    counts = Counter(label for row in rows for label in row.labels)
    if len(counts) > _FEW_LABELS and len(counts) * 2 > len(rows):
        example = next(iter(counts))
        raise FormatError(
            f"{path}: found {len(counts):,} different labels in {len(rows):,} rows, such as "
            f"{example!r:.80}: {columns.describe()} (set data.label to the column of the label)"
        )


def _refuse_hidden_header(rows: Sequence[LabelledText], looks: Looks) -> None:
    """Refuse to guess: a header of unknown names would be a class with a single text."""
    first = next(iter(rows), None)
    if first is None or first.where.file not in looks.without_header or not first.labels:
        return
    label = first.labels[0]
    is_single = sum(label in row.labels for row in rows) == 1
    is_name = not NUMBER.fullmatch(label) and all(
        len(cell) <= MAX_LABEL_CHARACTERS for cell in (*first.texts, label)
    )
    if len(rows) >= _NUM_ROWS_TO_DOUBT and is_single and is_name:
        raise FormatError(
            f"{first.where}: {first.texts[0]!r:.60} is the only text of the class "
            f"{label!r:.60}: it may be a row, or the names of the columns (say which "
            "with data.header=false or data.header=true)"
        )


def _class_names(
    columns: Columns,
    settings: LabelledDataSettings,
    of_source: Mapping[str, tuple[str, ...]],
) -> tuple[str, ...]:
    if settings.label_names:
        return ()
    if columns.are_flags:
        return columns.label
    return () if columns.description else of_source.get(columns.label[0], ())
