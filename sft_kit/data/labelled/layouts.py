"""What a file of labelled texts looks like: encoding, header, quotes, separator."""

import csv
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from sft_kit.data.encodings import UTF8, declared_encoding, detect_encoding
from sft_kit.data.labelled.columns import (
    KNOWN_LABELS,
    KNOWN_TEXTS,
    MAX_LABEL_CHARACTERS,
    looks_like_labels,
)
from sft_kit.data.sources import Layout, kind_of_file
from sft_kit.data.tables import DELIMITERS, NUM_RECORDS_TO_COUNT, Table, open_table
from sft_kit.data.text_files import decoded_text, read_bytes
from sft_kit.errors import DataError, FormatError
from sft_kit.settings import Column, LabelledDataSettings

SEPARATORS = ("\t", "@", "|", "::", ";", ",")
"""What may stand between text and label in a .txt file, in the order of preference."""

_STARTS_WITH_QUOTE = re.compile(r'(?:^|\t)"')
NUMBER = re.compile(r"\s*[-+]?[0-9]+(\.[0-9]*)?\s*")
_NUM_LINES_TO_CUT = 100


@dataclass(slots=True)
class Looks:
    """What was found out about the files: a sentence each, and tables taken to have no header."""

    notes: list[str] = field(default_factory=list)
    without_header: set[str] = field(default_factory=set)


def look_at(
    path: Path,
    name: str,
    settings: LabelledDataSettings,
    known_labels: Collection[str] | None,
    looks: Looks,
) -> Layout:
    """Tell how the bytes of a file become rows, and note what was detected.

    Args:
        path: File to look at.
        name: The file as the user named it.
        settings: The `data` section.
        known_labels: None where the file must hold labels. Else it may, and a .txt file does where
            one of these ends every line.
        looks: Takes the notes.

    Raises:
        DataError: The encoding or the separator can't be told.
    """
    if kind_of_file(path) == "parquet":
        return Layout()
    encoding = _encoding(path, name, settings, looks)
    kind = kind_of_file(path, encoding)
    if kind == "table":
        return _look_at_table(path, name, encoding, settings, known_labels, looks)
    if kind == "text":
        return _look_at_lines(path, name, encoding, settings, known_labels, looks)
    return Layout(encoding)


def _encoding(path: Path, name: str, settings: LabelledDataSettings, looks: Looks) -> str:
    if settings.encoding != "auto":
        declared = declared_encoding(settings.encoding)
        if declared == UTF8:
            _refuse_what_is_not_utf8(path, name)
        return declared
    encoding = detect_encoding(read_bytes(path), name)
    if encoding != UTF8:
        looks.notes.append(
            f"data: {name} is read as {encoding} (detected; data.encoding declares it)"
        )
    return encoding


def _refuse_what_is_not_utf8(path: Path, name: str) -> None:
    """Refuse a wrong declaration where the bytes show the true encoding."""
    try:
        found = detect_encoding(read_bytes(path), name)
    except DataError:  # nobody knows better: the rows are told one by one
        return
    if found != UTF8:
        raise DataError(
            f"{name}: data.encoding says UTF-8, and the bytes look like {found} (remove "
            f"data.encoding, or set data.encoding={found})"
        )


def _look_at_table(
    path: Path,
    name: str,
    encoding: str,
    settings: LabelledDataSettings,
    known_labels: Collection[str] | None,
    looks: Looks,
) -> Layout:
    promised = DELIMITERS[path.suffix.lower()]
    table = open_table(path, name, promised, encoding)
    table = replace(table, delimiter=_delimiter(table, promised, settings))
    if table.delimiter == "\t":
        has_quotes = any(map(_STARTS_WITH_QUOTE.search, table.lines))
        table = replace(table, has_quotes=has_quotes and _has_quoted_cells(table))
        if has_quotes and not table.has_quotes:
            looks.notes.append(f"data: {name} has no quoted fields: quotes are read as text")
    has_header = settings.header
    if has_header == "auto":
        found = islice((record for _, _, record in table.records()), NUM_RECORDS_TO_COUNT)
        records = [record for record in found if record and not isinstance(record, str)]
        needs_labels = known_labels is None
        has_header = bool(records) and begins_with_names(
            records[0], records[1:], settings, needs_labels
        )
        _note_header(name, records, has_header, looks)
    return Layout(encoding, has_header, table.has_quotes, table.delimiter)


def _note_header(
    name: str, records: Sequence[Sequence[str]], has_header: bool, looks: Looks
) -> None:
    if has_header:
        listed = ", ".join(repr(cell.strip()) for cell in records[0][:20])
        looks.notes.append(f"data: {name} begins with the names of its columns: {listed}")
    else:
        looks.without_header.add(name)
        looks.notes.append(
            f"data: {name} has no header, its columns are numbered (detected; data.header "
            "declares it)"
        )


def _delimiter(table: Table, promised: str, settings: LabelledDataSettings) -> str:
    """Take the declared mark, or the first that cuts nearly all lines into as many fields."""
    if settings.separator != "auto":
        separator = settings.separator.replace("\\t", "\t")
        if len(separator) > 1 or separator in '"\r\n':
            raise FormatError(
                f"{table.name}: data.separator: found {settings.separator!r}, accepts one "
                "character between the fields of a table (remove it to have it detected)"
            )
        return separator
    if table.names_delimiter:
        return table.delimiter
    lines = [line for line in islice(table.lines, _NUM_LINES_TO_CUT) if line.strip()]
    for mark in (promised, "\t", ",", ";"):
        widths = Counter(
            line.count(mark) if mark == "\t" else _num_fields(line, mark) - 1 for line in lines
        )
        width, num_lines = widths.most_common(1)[0] if widths else (0, 0)
        if width and num_lines >= 0.9 * len(lines):
            return mark
    return promised


def _num_fields(line: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=delimiter), []))
    except csv.Error:
        return line.count(delimiter) + 1


def _has_quoted_cells(table: Table) -> bool:
    """Tell a table written with quotes from one whose texts merely begin with a quote.

    All cells with a quote must be well-formed quoted cells. Where a quoted cell would swallow
    tabs or line ends, and all lines have equally many fields as they are, quotes are text.
    """
    swallows = False
    for _, _, record in table.records():
        if isinstance(record, str):
            return False
        swallows = swallows or any("\t" in cell or "\n" in cell for cell in record)
    return not swallows or len({line.count("\t") for line in table.lines if line.strip()}) > 1


def begins_with_names(
    first: Sequence[str],
    rest: Sequence[Sequence[str]],
    settings: LabelledDataSettings,
    needs_labels: bool = True,
) -> bool:
    """Tell whether a table begins with the names of its columns.

    So it does where the settings name one of them, where there are well-known names of a text and
    of a label that their columns don't repeat, and where a column has a word above nothing but
    numbers.

    Args:
        first: Fields of the first record.
        rest: Fields of the records behind it.
        settings: The `data` section.
        needs_labels: Without, the well-known name of a text is enough.
    """
    cells = [cell.strip() for cell in first]
    if _names_in(settings) & set(cells):
        return True
    if len(set(cells)) < len(cells):  # a header that names two columns alike is refused later
        known = {cell.casefold() for cell in cells}
        return bool(known & KNOWN_TEXTS) and bool(known & KNOWN_LABELS)
    are_short = max(map(len, cells)) <= MAX_LABEL_CHARACTERS
    names = set()
    for number, cell in enumerate(cells):
        below = [record[number] for record in rest if len(record) > number]
        if cell not in {value.strip() for value in below}:
            names.add(cell.casefold())
        if are_short and cell and not NUMBER.fullmatch(cell) and _are_numbers(below):
            return True
    return bool(names & KNOWN_TEXTS) and (not needs_labels or bool(names & KNOWN_LABELS))


def _names_in(settings: LabelledDataSettings) -> set[str]:
    given: list[Column | None] = []
    for value in (settings.text, settings.text_pair, settings.label, settings.group):
        given += value if isinstance(value, list) else [value]
    names = {value for value in given if isinstance(value, str) and value != "auto"}
    return {name for name in names if not name.isdecimal()}


def _are_numbers(values: Collection[str]) -> bool:
    return len(values) >= 5 and all(map(NUMBER.fullmatch, values))


def _look_at_lines(
    path: Path,
    name: str,
    encoding: str,
    settings: LabelledDataSettings,
    known_labels: Collection[str] | None,
    looks: Looks,
) -> Layout:
    lines = [line for line in decoded_text(path, encoding).split("\n") if line.strip()]
    if settings.separator != "auto":
        separator = settings.separator.replace("\\t", "\t")
        if known_labels is not None and _find_separator(lines, (separator,), settings) is None:
            return Layout(encoding)
    else:
        if known_labels is None:
            found = _find_separator(lines, SEPARATORS, settings)
        else:
            found = _find_separator_before(known_labels, lines, settings)
        if found is None and known_labels is not None:
            return Layout(encoding)
        if found is None:
            raise _no_separator(name)
        separator = found
        looks.notes.append(
            f"data: {name} is cut at the last {separator!r} of each line (detected; "
            "data.separator declares it)"
        )
    cut = [[part.strip() for part in _cut(line, separator)] for line in lines]
    has_header = settings.header
    if has_header == "auto":
        has_header = bool(cut) and begins_with_names(cut[0], cut[1:], settings)
        if has_header:
            _note_header(name, cut, has_header, looks)
    return Layout(encoding, has_header, separator=separator)


def _no_separator(name: str) -> FormatError:
    return FormatError(
        f"{name}: found no {', '.join(map(repr, SEPARATORS))} with one of few short labels "
        "behind it on every line (set data.separator to what stands between text and label, "
        "or write a table or JSON Lines)"
    )


def _cut(line: str, separator: str) -> tuple[str, str]:
    text, _, last = line.rstrip("\r\n").rpartition(separator)
    return text, last


def _find_separator(
    lines: Sequence[str], candidates: Sequence[str], settings: LabelledDataSettings
) -> str | None:
    """Name the separator with the fewest different labels behind it."""
    best: dict[str, int] = {}
    for separator in candidates:
        if settings.multi_label and separator == settings.label_separator:
            continue
        last = [_cut(line, separator)[1] if separator in line else "" for line in lines]
        if settings.multi_label:
            last = [part.split(settings.label_separator)[0] for part in last]
        if looks_like_labels(last):
            best[separator] = len(set(last))
    return min(best, key=best.__getitem__) if best else None


def _find_separator_before(
    known_labels: Collection[str], lines: Sequence[str], settings: LabelledDataSettings
) -> str | None:
    """Name the separator with known labels behind it on every line, but for a header."""
    for separator in SEPARATORS:
        last = [_cut(line, separator)[1].strip() if separator in line else "" for line in lines]
        if last and last[0].casefold() in KNOWN_LABELS - set(known_labels):
            last = last[1:]
        if settings.multi_label:
            last = [one.strip() for part in last for one in part.split(settings.label_separator)]
        if last and set(last) <= set(known_labels):
            return separator
    return None
