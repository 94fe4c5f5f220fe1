"""CSV, TSV and Parquet -> rows. Text stays text: `007`, `NA` and `2024-01-01` are not touched."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NOT_TEXT = re.compile(r"[\x00\udc80-\udcff]")


def read_csv(path: Path, name: str, delimiter: str) -> Iterator[RawRow | Problem]:
    """Yield the rows of a table with a header line; a row's line is the first line of its record.

    Args:
        path: File to read.
        name: The file as the user named it.
        delimiter: What the suffix promises; another one is used where the header shows it.

    Raises:
        DataError: The header has no names, or the same name twice.
    """
    lines, offsets = [], []
    for _, offset, line in byte_lines(path):
        lines.append(line.decode("utf-8", errors="surrogateescape"))
        offsets.append(offset)
    delimiter = _true_delimiter(next((line for line in lines if line.strip()), ""), delimiter)
    header: list[str] | None = None
    for start, end, record in _records(lines, delimiter):
        where = Where(name, start + 1)
        if not record:
            continue
        if header is None:
            header = _header(record, where)
        elif problem := _text_problem(lines[start:end], offsets[start:end], where):
            yield problem
        else:
            yield _row(header, record, where)


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


def _header(record: list[str] | str, where: Where) -> list[str]:
    if isinstance(record, str):
        raise DataError(f"{where}: the header line can't be read: {record} (repair its quotes)")
    names = [name.strip() for name in record]
    if problem := _NOT_TEXT.search("".join(names)):
        found = "a NUL byte" if problem.group() == "\0" else "bytes that are not UTF-8"
        raise DataError(f"{where}: found {found} in the header line (save the file as UTF-8)")
    twice = sorted({name for name in names if names.count(name) > 1 or not name})
    if twice:
        listed = ", ".join(repr(name) for name in twice)
        raise DataError(
            f"{where}: the header line has columns without a name of their own: {listed} (give "
            "each column one name, and the file one header line)"
        )
    return names


def _text_problem(lines: Sequence[str], offsets: Sequence[int], where: Where) -> Problem | None:
    if (size := sum(map(len, lines))) > MAX_ROW_CHARACTERS:
        return too_long(where, size)
    for line, offset in zip(lines, offsets, strict=True):
        if bad := _NOT_TEXT.search(line):
            before = line[: bad.start()].encode("utf-8", errors="surrogateescape")
            code, place = ord(bad.group()), offset + len(before)
            return (
                encoding_problem(where, place, code - 0xDC00) if code else nul_problem(where, place)
            )
    return None


def _row(header: list[str], record: list[str] | str, where: Where) -> RawRow | Problem:
    if isinstance(record, str):
        todo = 'a field with quotes or line ends is written "so, with ""inner"" quotes doubled"'
        return Problem(str(where), "", f"broken quotes: {record}", todo)
    if len(record) != len(header):
        message = f"found {len(record)} fields, the header has {len(header)}"
        todo = "put quotes around fields that hold the delimiter or a line end"
        return Problem(str(where), "", message, todo)
    return RawRow(dict(zip(header, record, strict=True)), where)


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
        for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
            yield from _batch_rows(batch, name, number)
            number += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}:{number + 1}: the Parquet file can't be read: {error} (write or copy it again)"
        ) from error


def _batch_rows(batch: "pa.RecordBatch", name: str, before: int) -> Iterator[RawRow | Problem]:
    for index in range(batch.num_rows):
        where = Where(name, before + index + 1)
        try:
            fields = batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield Problem(
                str(where), "", f"found text that is not UTF-8: {error.reason}", "repair it"
            )
        else:
            yield RawRow(fields, where)
