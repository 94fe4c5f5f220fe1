"""CSV, TSV and Parquet -> rows. Text stays text: `007`, `NA` and `2024-01-01` are not touched."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sft_kit.data.encodings import UTF8
from sft_kit.data.rows import RawRow, Where
from sft_kit.data.text_files import (
    MAX_ROW_CHARACTERS,
    byte_lines,
    encoding_problem,
    nul_problem,
    too_long,
)
from sft_kit.errors import DataError, Problem

if TYPE_CHECKING:
    from _csv import Reader

    import pyarrow as pa
    import pyarrow.parquet as pq

DELIMITERS = {".csv": ",", ".tsv": "\t"}
NUM_RECORDS_TO_COUNT = 1000
"""Records looked at to know how many columns a table without a header has."""

_ROWS_AT_ONCE = 16
"""Rows of a Parquet file that are unpacked at a time: each may repeat a text of 10 M characters."""
_MAX_UNPACKED = 2**28
_MAX_RATIO = 100
_NAMED_DELIMITER = re.compile(r'"?sep=([^"\r\n])"?\r?\n', flags=re.IGNORECASE)
_NOT_TEXT = re.compile(r"[\x00\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Table:
    """Lines of a table, and what cuts them into fields; Excel's first line may name that."""

    name: str
    encoding: str
    lines: list[str]
    offsets: list[int]
    delimiter: str
    has_quotes: bool = True
    names_delimiter: bool = False

    def records(self) -> Iterator[tuple[int, int, list[str] | str]]:
        """Yield first line, line after the last, and the fields (or what is wrong) of records."""
        if self.has_quotes:
            return _records(self.lines, self.delimiter)
        return _plain_records(self.lines, self.delimiter)


def open_table(path: Path, name: str, delimiter: str, encoding: str = UTF8) -> Table:
    """Read the lines of a table; fields may be quoted.

    Args:
        path: File to read.
        name: The file as the user named it.
        delimiter: What the suffix promises; another one is used where the first line shows it.
        encoding: Python's name of the file's encoding.
    """
    lines, offsets = [], []
    for _, offset, line in byte_lines(path, encoding):
        lines.append(line.decode(UTF8, errors="surrogateescape"))
        offsets.append(offset)
    if lines and (named := _NAMED_DELIMITER.fullmatch(lines[0])):
        lines[0] = "\n"  # blank lines are no records, and the others keep their numbers
        return Table(name, encoding, lines, offsets, named[1], names_delimiter=True)
    first = next((line for line in lines if line.strip()), "")
    return Table(name, encoding, lines, offsets, _true_delimiter(first, delimiter))


def read_table(table: Table, has_header: bool = True) -> Iterator[RawRow | Problem]:
    """Yield the rows of a table; a row's line is the first line of its record.

    Args:
        table: The table; of fields with quotes or without.
        has_header: The first record names the columns. Else they are called "1", "2", ...

    Raises:
        DataError: The header has no names, or the same name twice.
    """
    names = None if has_header else _numbers(table)
    others = "the header has" if has_header else "most rows have"
    for start, end, record in table.records():
        where = Where(table.name, start + 1)
        if not record:
            continue
        if names is None:
            names = _header(record, where, table.encoding)
        elif problem := _text_problem(table, start, end, where):
            yield problem
        else:
            yield _row(names, record, where, others)


def _numbers(table: Table) -> list[str]:
    """Name the columns by number, as many as most of the first records have."""
    first = islice((record for _, _, record in table.records() if record), NUM_RECORDS_TO_COUNT)
    widths = Counter(len(record) for record in first if not isinstance(record, str))
    width = widths.most_common(1)[0][0] if widths else 1
    return [str(number) for number in range(1, width + 1)]


def _true_delimiter(header: str, promised: str) -> str:
    if promised in header:
        return promised
    return next((mark for mark in ("\t", ",", ";") if mark in header), promised)


def _records(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, int, list[str] | str]]:
    """Yield first line, line after the last, and the fields (or what is wrong) of each record.

    A quote that is never closed swallows lines until something contradicts it. Reading then starts
    again one line below the quote, so that it costs its own row only.
    """
    at = 0
    while at < len(lines):
        reader = csv.reader(_from(lines, at), delimiter=delimiter, strict=True)
        start = at
        try:
            while True:
                start = at + reader.line_num
                record = _next_record(reader)
                yield start, at + reader.line_num, record
        except StopIteration:
            return
        except csv.Error as error:
            yield start, start + 1, str(error)
            at = start + 1


def _plain_records(lines: Sequence[str], delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield each line as a record: quotes are text, and no field holds a line end."""
    for at, line in enumerate(lines):
        line = line.rstrip("\r\n")
        yield at, at + 1, line.split(delimiter) if line else []


def _from(lines: Sequence[str], at: int) -> Iterator[str]:
    for index in range(at, len(lines)):
        yield lines[index]


def _next_record(reader: "Reader") -> list[str]:
    # The limit (131,072) belongs to the whole process: it is raised for this call only.
    limit = csv.field_size_limit(MAX_ROW_CHARACTERS)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(limit)


def _header(record: list[str] | str, where: Where, encoding: str) -> list[str]:
    if isinstance(record, str):
        raise DataError(f"{where}: the header line can't be read: {record} (repair its quotes)")
    names = [name.strip() for name in record]
    if problem := _NOT_TEXT.search("".join(names)):
        declared = "UTF-8" if encoding == UTF8 else encoding
        found = "a NUL byte" if problem.group() == "\0" else f"bytes that are not {declared}"
        raise DataError(f"{where}: found {found} in the header line (save the file as UTF-8)")
    if len(names) > 1 and not names[0] and "1" not in names:
        names[0] = "1"  # pandas writes its row numbers as a first column without a name
    twice = sorted({name for name in names if names.count(name) > 1 or not name})
    if twice:
        listed = ", ".join(f"{name!r} stands {names.count(name)} times" for name in twice)
        raise DataError(
            f"{where}: the header line has columns without a name of their own: {listed} (give "
            "each column one name, and the file one header line)"
        )
    return names


def _text_problem(table: Table, start: int, end: int, where: Where) -> Problem | None:
    lines, offsets = table.lines[start:end], table.offsets[start:end]
    if (size := sum(map(len, lines))) > MAX_ROW_CHARACTERS:
        return too_long(where, size)
    for line, offset in zip(lines, offsets, strict=True):
        if bad := _NOT_TEXT.search(line):
            place = offset + len(line[: bad.start()].encode(UTF8, errors="surrogateescape"))
            if bad.group() == "\0":
                return nul_problem(where, place, table.encoding)
            return encoding_problem(where, place, ord(bad.group()) - 0xDC00, table.encoding)
    return None


def _row(names: list[str], record: list[str] | str, where: Where, others: str) -> RawRow | Problem:
    if isinstance(record, str) and "new-line" in record:  # Python's words are about its own open()
        todo = "write line ends as LF, and put quotes around fields that hold one"
        return Problem(str(where), "", "found a CR within the line", todo)
    if isinstance(record, str):
        todo = 'a field with quotes or line ends is written "so, with ""inner"" quotes doubled"'
        return Problem(str(where), "", f"broken quotes: {record}", todo)
    if len(record) != len(names):
        message = f"found {len(record)} fields, {others} {len(names)}"
        todo = "put quotes around fields that hold the delimiter or a line end"
        return Problem(str(where), "", message, todo)
    return RawRow(dict(zip(names, record, strict=True)), where)


def read_parquet(path: Path, name: str) -> Iterator[RawRow | Problem]:
    """Yield the rows of a Parquet file, numbered from 1.

    Args:
        path: File to read.
        name: The file as the user named it.

    Raises:
        DataError: The file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(path)
        _refuse_bomb(file, name)
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            yield from _batch_rows(batch, name, number)
            number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}:{number + 1}: the Parquet file can't be read: {error} (write or copy it again)"
        ) from error


def _refuse_bomb(file: "pq.ParquetFile", name: str) -> None:
    """Refuse to unpack gigabytes from a small file."""
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        columns = [group.column(place) for place in range(group.num_columns)]
        unpacked = sum(column.total_uncompressed_size for column in columns)
        packed = sum(column.total_compressed_size for column in columns)
        if unpacked > max(_MAX_UNPACKED, _MAX_RATIO * packed):
            raise DataError(
                f"{name}: found {unpacked:,} bytes packed into {packed:,}, accepts at most "
                f"{_MAX_RATIO} times as many (write the file again, with rows that differ)"
            )


def _batch_rows(batch: "pa.RecordBatch", name: str, before: int) -> Iterator[RawRow | Problem]:
    for index in range(batch.num_rows):
        where = Where(name, before + index + 1)
        try:
            fields = batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield Problem(
                str(where), "", f"found text that is not UTF-8: {error.reason}", "repair it"
            )
            continue
        size = sum(len(value) for value in fields.values() if isinstance(value, str))
        yield too_long(where, size) if size > MAX_ROW_CHARACTERS else RawRow(fields, where)
