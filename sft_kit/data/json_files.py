"""JSON lists and JSON Lines -> rows, each with the line it starts on.

The standard library parses; the walk from row to row is our own, because a parser of whole files
knows neither the line of a good row nor anything about the rows behind a broken one.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sft_kit.data.encodings import UTF8
from sft_kit.data.rows import RawRow, Where
from sft_kit.data.text_files import (
    MAX_ROW_CHARACTERS,
    byte_blocks,
    byte_lines,
    decoded_text,
    encoding_problem,
    read_bytes,
    text_problem,
    too_long,
)
from sft_kit.data.turns import kind_of
from sft_kit.errors import DataError, Problem

_SPACE = re.compile(r"[ \t\r\n]*")
_ROW_START = re.compile(r'\{\s*"((?:[^"\\]|\\.){0,100})"\s*:')
_NOT_UTF8 = re.compile(r"[\udc80-\udcff]")
_ROWS_IN_LIST = re.compile(rb"\s*\[\s*\{")
_BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 4096
_NOWHERE = -1
_WINDOW = 1 << 24
"""Characters of a list that are in memory behind the row that is read, at least: more than the
longest row may have."""
_MAX_INDENT = 4096
_PIECES = (1 << 12, 1 << 16, 1 << 20, 1 << 24)
_FIX_JSON = "repair the row, or remove it"
_MAX_TOO_DEEP = 100
"""Rows of one list that may be nested too deeply: the next row is looked for within each of them,
so a file of nothing but brackets would take minutes."""


class TooDeepError(ValueError):
    """A value with more levels than the parser can follow."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One JSON value, where it ends in the text, and what in it a row must not have."""

    value: object
    end: int
    complaints: tuple[str, ...]


def decode(text: str, start: int = 0) -> Decoded:
    """Decode the JSON value that starts at `start`.

    Raises:
        ValueError: Broken JSON; a `json.JSONDecodeError` where the place is known.
    """
    complaints: list[str] = []

    def from_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            complaints.append(f"found the same key twice: {', '.join(map(repr, twice))}")
        return fields

    def from_constant(name: str) -> None:
        complaints.append(f"found {name}, which is not JSON")

    decoder = json.JSONDecoder(object_pairs_hook=from_pairs, parse_constant=from_constant)
    try:
        value, end = decoder.raw_decode(text, start)
    except RecursionError as error:
        raise TooDeepError("nested too deeply") from error
    return Decoded(value, end, tuple(complaints))


def read_json_lines(path: Path, name: str, encoding: str = UTF8) -> Iterator[RawRow | Problem]:
    """Yield the object of each line that is not blank.

    Args:
        path: File to read.
        name: The file as the user named it.
        encoding: Python's name of the file's encoding.
    """
    for number, offset, line in byte_lines(path, encoding):
        if not line.strip():
            continue
        where = Where(name, number)
        yield text_problem(where, line, offset, encoding) or _row_of_line(line, where)


def _row_of_line(line: bytes, where: Where) -> RawRow | Problem:
    text = line.strip().decode("utf-8")
    try:
        decoded = decode(text)
    except ValueError as error:
        return _broken(error, where)
    if decoded.end != len(text):
        message = f"found more after the JSON value, at column {decoded.end + 1}"
        return Problem(str(where), "", message, "write one object per line, without commas between")
    return _row(decoded, where)


def _broken(error: ValueError, where: Where, column: int = 0) -> Problem:
    """Word an error; `column` characters stand before the decoded text on its first line."""
    message = f"broken JSON: {error}"
    if isinstance(error, json.JSONDecodeError):
        line = where.line + error.lineno - 1
        column = error.colno + (column if error.lineno == 1 else 0)
        message = f"broken JSON: {error.msg} at line {line}, column {column}"
    return Problem(str(where), "", message, _FIX_JSON)


def _row(decoded: Decoded, where: Where) -> RawRow | Problem:
    if decoded.complaints:
        return Problem(str(where), "", "; ".join(decoded.complaints), _FIX_JSON)
    if not isinstance(decoded.value, dict):
        message = f"found {kind_of(decoded.value)}, accepts an object with named fields"
        return Problem(str(where), "", message, _FIX_JSON)
    return RawRow(decoded.value, where)


def read_json_list(path: Path, name: str, encoding: str = UTF8) -> Iterator[RawRow | Problem]:
    """Yield the objects of a JSON list; goes on behind a broken one.

    Args:
        path: File to read.
        name: The file as the user named it.
        encoding: Python's name of the file's encoding.
    """
    has_bom = read_bytes(path, 3) == _BOM
    # Bytes of another encoding become lone surrogates: they spoil their own row, and no other.
    pieces = _decoded_pieces(path) if encoding == UTF8 else iter([decoded_text(path, encoding)])
    yield from _walk_list(_Text(pieces, name, encoding, byte=3 if has_bom else 0))


def _decoded_pieces(path: Path) -> Iterator[str]:
    """Decode a UTF-8 file piece by piece, without its byte order mark."""
    decoder = codecs.getincrementaldecoder(UTF8)(errors="surrogateescape")
    is_first = True
    for block in byte_blocks(path):
        text = decoder.decode(block.removeprefix(_BOM) if is_first else block)
        is_first = False
        if text:
            yield text
    yield decoder.decode(b"", final=True)


@dataclass(slots=True)
class _Text:
    """Text of a file with a mark that only moves forward and knows its line and byte.

    As long as the rows are sound, `text` is a window that moves along with the mark; all places are
    within it. What is broken is looked at with all the rest of the file.
    """

    pieces: Iterator[str]
    file: str
    encoding: str
    at: int = 0
    line: int = 1
    line_start: int = 0
    byte: int = 0
    byte_at: int = 0
    row: int = 0
    row_line: int = 1
    text: str = ""
    num_left_of_line: int = 0
    is_whole: bool = False

    def advance(self, at: int) -> int:
        """Have at least a window of text behind a place; returns where the place is now."""
        if self.is_whole or len(self.text) - at >= _WINDOW:
            return at
        cut = self._drop_before(at)
        kept = [self.text]
        num_kept = len(self.text)
        while num_kept < 2 * _WINDOW and (piece := next(self.pieces, None)) is not None:
            kept.append(piece)
            num_kept += len(piece)
        self.is_whole = num_kept < 2 * _WINDOW
        self.text = "".join(kept)
        return at - cut

    def read_rest(self) -> None:
        """Have all the rest of the file as text."""
        self.text = "".join([self.text, *self.pieces])
        self.is_whole = True

    def column(self, at: int) -> int:
        """Number of characters before a place on its line; the mark is on that line."""
        return at - self.line_start + self.num_left_of_line

    def _drop_before(self, at: int) -> int:
        """Forget text before a place, but not the beginning of its line unless it is far away."""
        self.where(at)
        is_far = at - self.line_start > _MAX_INDENT
        cut = at if is_far else max(self.line_start - 1, 0)
        if cut > self.byte_at:
            self.byte_offset(cut)
        if is_far:
            self.num_left_of_line += at - self.line_start
        self.text = self.text[cut:]
        self.at, self.byte_at = self.at - cut, self.byte_at - cut
        self.line_start = max(self.line_start - cut, 0)
        return cut

    def next_row(self, at: int) -> Where:
        """Count a row; its number tells it from others where it starts on the same line."""
        where = self.where(at)
        self.row += 1
        shares_line = where.line == self.row_line
        self.row_line = where.line
        return replace(where, row=self.row) if shares_line else where

    def where(self, at: int) -> Where:
        self.line += self.text.count("\n", self.at, at)
        if (line_end := self.text.rfind("\n", self.at, at)) >= 0:
            self.line_start, self.num_left_of_line = line_end + 1, 0
        self.at = at
        return Where(self.file, self.line)

    def byte_offset(self, at: int) -> int:
        between = self.text[self.byte_at : at]
        self.byte += len(between.encode("utf-8", errors="surrogateescape"))
        self.byte_at = at
        return self.byte


def _walk_list(source: _Text) -> Iterator[RawRow | Problem]:
    keys = set[str]()
    source.advance(0)
    at = _skip_space(source.text, _skip_space(source.text, 0) + 1)
    num_too_deep = 0
    while at != _NOWHERE and source.text[at : at + 1] not in {"", "]"}:
        at = source.advance(at)
        where = source.next_row(at)
        try:
            decoded = _decode_row(source, at)
        except ValueError as error:
            yield _broken(error, where, source.column(at))
            num_too_deep += isinstance(error, TooDeepError)
            if num_too_deep > _MAX_TOO_DEEP:
                found = f"found more than {_MAX_TOO_DEEP} rows that are nested too deeply"
                raise DataError(f"{where}: {found} (this is no list of rows)") from error
            at = _next_row(source, at, keys)
            continue
        text = source.text
        if start := _ROW_START.match(text, at):
            keys.add(start.group(1))
        after = _skip_space(text, decoded.end)
        found = text[after : after + 1]
        if found and found not in ",]{":
            message = f"broken JSON: found {found!r} after the row, accepts a comma or ]"
            yield Problem(str(where), "", message, _FIX_JSON)
            at = _next_row(source, at, keys)
            continue
        yield _checked_row(source, at, decoded, where)
        at = after
        if found == "{":
            yield _at(source, at, "found no comma before this row", "put commas between the rows")
        elif found == ",":
            at = _after_comma(source, at)
            if source.text[at : at + 1] == "]":
                yield _at(source, after, "found a comma after the last row", "remove the comma")
    if at != _NOWHERE:
        source.read_rest()
        yield from _end_of_list(source, at)


def _decode_row(source: _Text, at: int) -> Decoded:
    """Decode the row at `at`; with all the rest of the file where the window may be too short."""
    if not source.is_whole:
        try:
            decoded = _decode_nearby(source.text, at)
        except ValueError:
            decoded = None
        if decoded and _skip_space(source.text, decoded.end) < len(source.text):
            return decoded
        source.read_rest()
    return _decode_nearby(source.text, at)


def _after_comma(source: _Text, comma: int) -> int:
    """Find what follows a comma; the end of the text only where the file ends there."""
    at = _skip_space(source.text, comma + 1)
    if at >= len(source.text) and not source.is_whole:
        source.read_rest()
        at = _skip_space(source.text, comma + 1)
    return at


def _checked_row(source: _Text, at: int, decoded: Decoded, where: Where) -> RawRow | Problem:
    if decoded.end - at > MAX_ROW_CHARACTERS:
        return too_long(where, decoded.end - at)
    if bad := _NOT_UTF8.search(source.text, at, decoded.end):
        byte = ord(bad.group()) - 0xDC00
        offset = source.byte_offset(bad.start())
        return encoding_problem(where, offset, byte, source.encoding)
    return _row(decoded, where)


def _end_of_list(source: _Text, at: int) -> Iterator[Problem]:
    text = source.text
    if at >= len(text):
        last = len(text.rstrip(" \t\r\n"))
        yield _at(
            source, last, "found no ] at the end of the list", "add it; was the file cut off?"
        )
    elif (rest := _skip_space(text, at + 1)) < len(text):
        yield _at(source, rest, "found more after the end of the list", "remove it")


def _at(source: _Text, at: int, message: str, todo: str) -> Problem:
    return Problem(str(source.where(at)), "", message, todo)


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _decode_nearby(text: str, at: int) -> Decoded:
    """Decode the value at `at` from a short piece of the text, longer while it doesn't end there.

    An error of the decoder costs as much time as there is text before it. With the whole file as
    text, a file of broken rows would take minutes.
    """
    for size in _PIECES:
        piece = text[at : at + size]
        try:
            decoded = decode(piece)
        except json.JSONDecodeError as error:
            was_cut = error.msg.startswith("Unterminated") or error.pos > len(piece) - 16
            if not was_cut or len(piece) < size:
                raise
        else:
            if decoded.end < len(piece):
                return Decoded(decoded.value, at + decoded.end, decoded.complaints)
    try:
        return decode(text, at)
    except json.JSONDecodeError as error:
        raise ValueError(error.msg) from error  # its line would be counted from the top


def _next_row(source: _Text, broken: int, keys: set[str]) -> int:
    """Find where the row after a broken one starts; `_NOWHERE` if there is none.

    Where rows start lines, it is the next line with the same indent and a `{` (or with anything
    but a key, behind a comma): nested objects are indented deeper. In a list on one line it is the
    next `{` with the first key of a row: nested objects have other keys.
    """
    source.read_rest()
    text = source.text
    # No row is indented by more than a hundred characters: in a list on one line this keeps the
    # piece short.
    indent = text[source.line_start : min(broken, source.line_start + 100)]
    if source.line_start and source.line_start + len(indent) == broken and not indent.strip():
        start_of_row = rf"\n{indent}(?=\{{)|,[ \t]*\r?\n{indent}(?=[^\s\]}}\"])"
        found = re.compile(start_of_row).search(text, broken)
        if found:
            return found.end()
    own = _ROW_START.match(text, broken)
    known = keys or ({own.group(1)} if own else set())
    for start in _ROW_START.finditer(text, broken + 1):
        if start.group(1) in known:
            return start.start()
    return _NOWHERE if keys else _first_top_level_row(text, broken + 1)


def _first_top_level_row(text: str, at: int) -> int:
    """Find a row without knowing its keys: the first object that isn't part of an inner list."""
    while start := _ROW_START.search(text, at):
        end = _end_of_run(text, start.start())
        after = _skip_space(text, end + 1)
        if end > start.start() and (text[end : end + 1] != "]" or after >= len(text)):
            return start.start()
        at = max(end, start.end())
    return _NOWHERE


def _end_of_run(text: str, at: int) -> int:
    """Walk over values with commas between them to the first character that is neither."""
    while True:
        try:
            end = _skip_space(text, _decode_nearby(text, at).end)
        except ValueError:
            return at
        if text[end : end + 1] != ",":
            return end
        at = _skip_space(text, end + 1)


def holds_list(path: Path, suffix: str, encoding: str = UTF8) -> bool:
    """Tell a JSON list from JSON Lines: it starts with [ (and ends with ] in a .jsonl file)."""
    is_text_of_rows = _ROWS_IN_LIST.match(read_bytes(path, _HEAD_BYTES).removeprefix(_BOM))
    if encoding == UTF8 and suffix != ".jsonl" and is_text_of_rows:
        return True  # without reading its first line, which may be all of it
    first, more = _first_lines(path, encoding)
    if not first.startswith(b"["):
        return False
    if suffix == ".jsonl" and not decoded_text(path, encoding).rstrip().endswith("]"):
        return False
    # A first line like `["a", 1]` with more lines behind it is a bad row of JSON Lines.
    return bool(re.match(rb"\[\s*(\{|\]|$)", first) or not more or not first.endswith(b"]"))


def refuse_object_over_lines(path: Path, name: str, encoding: str = UTF8) -> None:
    """Refuse a file that is one big object instead of a list or one object per line.

    Raises:
        DataError: With the field that seems to hold the rows, if there is one.
    """
    first, _ = _first_lines(path, encoding)
    if not first.startswith(b"{") or b"}" in first:
        return
    try:
        value = decode(decoded_text(path, encoding).lstrip()).value
    except ValueError:
        return
    lists = (
        [key for key, item in value.items() if isinstance(item, list)]
        if isinstance(value, dict)
        else []
    )
    hint = f"; the rows may stand under {lists[0]!r}" if len(lists) == 1 else ""
    raise DataError(
        f"{name}: found an object over several lines, accepts a list of objects or one object per "
        f"line{hint} (save the list of rows itself as the file)"
    )


def _first_lines(path: Path, encoding: str) -> tuple[bytes, bytes]:
    lines = (line.strip() for _, _, line in byte_lines(path, encoding) if line.strip())
    return next(lines, b""), next(lines, b"")
