"""Bytes on disk -> lines of text: opening, encodings, plain text files."""

from collections.abc import Iterator
from pathlib import Path

from sft_kit.data.rows import RawRow, Where
from sft_kit.errors import DataError, Problem

MAX_ROW_CHARACTERS = 10 * 2**20
"""Longer rows are reported: they are nearly always two files glued together or a missing quote."""

CONVERT = "convert the file: iconv -f gbk -t utf-8 OLD > NEW (latin1 for Western European text)"


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """Read a file, or its first `limit` bytes.

    Raises:
        DataError: The file can't be opened or read.
    """
    try:
        with path.open("rb") as handle:
            return handle.read(limit)
    except OSError as error:
        raise _unreadable(path, error) from error


def byte_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    r"""Yield line number (from 1), byte offset and bytes of each line, `\n` included, BOM removed.

    Only `\n` ends a line: U+2028 or a form feed inside a JSON string is text.

    Raises:
        DataError: The file can't be opened or read.
    """
    offset = 0
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                has_bom = number == 1 and line.startswith(b"\xef\xbb\xbf")
                yield (number, offset + 3, line[3:]) if has_bom else (number, offset, line)
                offset += len(line)
    except OSError as error:
        raise _unreadable(path, error) from error


def text_problem(where: Where, line: bytes, offset: int) -> Problem | None:
    """Say why a line of bytes can't be text, or None.

    Args:
        where: Place of the row.
        line: Bytes of the row.
        offset: Place of its first byte in the file.
    """
    if len(line) > MAX_ROW_CHARACTERS:
        return too_long(where, len(line))
    if b"\x00" in line:
        return nul_problem(where, offset + line.index(b"\x00"))
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return encoding_problem(where, offset + error.start, line[error.start])
    return None


def encoding_problem(where: Where, offset: int, byte: int) -> Problem:
    """A row with a byte that is not UTF-8."""
    return Problem(str(where), "", f"not UTF-8 at byte {offset} (found 0x{byte:02x})", CONVERT)


def nul_problem(where: Where, offset: int) -> Problem:
    """A row with a NUL byte."""
    return Problem(
        str(where),
        "",
        f"found a NUL byte at byte {offset}, accepts text",
        "remove it: the file was damaged, or is not text",
    )


def too_long(where: Where, num_characters: int) -> Problem:
    """A row above the size cap."""
    return Problem(
        str(where),
        "",
        f"found a row of {num_characters:,} characters, accepts up to {MAX_ROW_CHARACTERS:,}",
        "split the row, or look for a line end or quote that is missing",
    )


def read_text_file(path: Path, name: str) -> Iterator[RawRow | Problem]:
    """Yield one row `{"text": line}` per line that is not blank.

    Args:
        path: File to read.
        name: The file as the user named it.
    """
    for number, offset, line in byte_lines(path):
        if not line.strip():
            continue
        where = Where(name, number)
        if problem := text_problem(where, line, offset):
            yield problem
        else:
            yield RawRow({"text": line.decode("utf-8").rstrip("\r\n")}, where)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: the file can't be read: {error.strerror or error} (check the path and its "
        "permissions)"
    )
