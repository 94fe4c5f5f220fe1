"""Bytes on disk -> lines of text: opening, encodings, plain text files."""

from collections.abc import Iterator
from pathlib import Path

from sft_kit.data.encodings import UTF8, lines_as_utf8
from sft_kit.data.rows import RawRow, Where
from sft_kit.errors import DataError, Problem

MAX_ROW_CHARACTERS = 10 * 2**20
"""Longer rows are reported: they are nearly always two files glued together or a missing quote."""

_BLOCK_BYTES = 1 << 23

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


def byte_blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file, some megabytes at a time.

    Raises:
        DataError: The file can't be opened or read.
    """
    try:
        with path.open("rb") as handle:
            while block := handle.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise _unreadable(path, error) from error


def byte_lines(path: Path, encoding: str = UTF8) -> Iterator[tuple[int, int, bytes]]:
    r"""Yield line number (from 1), byte offset and bytes of each line, `\n` included, BOM removed.

    Only `\n` ends a line: U+2028 or a form feed inside a JSON string is text. The bytes are UTF-8
    whatever the file's encoding; the offset is the one in the file.

    Raises:
        DataError: The file can't be opened or read.
    """
    if encoding != UTF8:
        lines = lines_as_utf8(read_bytes(path), encoding)
        yield from ((number, offset, line) for number, (offset, line) in enumerate(lines, start=1))
        return
    offset = 0
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                has_bom = number == 1 and line.startswith(b"\xef\xbb\xbf")
                yield (number, offset + 3, line[3:]) if has_bom else (number, offset, line)
                offset += len(line)
    except OSError as error:
        raise _unreadable(path, error) from error


def decoded_text(path: Path, encoding: str = UTF8) -> str:
    """Read a whole file; bytes that aren't of its encoding become lone surrogates.

    Raises:
        DataError: The file can't be opened or read.
    """
    content = b"".join(line for _, _, line in byte_lines(path, encoding))
    return content.decode(UTF8, errors="surrogateescape")


def text_problem(where: Where, line: bytes, offset: int, encoding: str = UTF8) -> Problem | None:
    """Say why a line of bytes can't be text, or None.

    Args:
        where: Place of the row.
        line: Bytes of the row.
        offset: Place of its first byte in the file.
        encoding: Encoding of the file that the bytes come from.
    """
    if len(line) > MAX_ROW_CHARACTERS:
        return too_long(where, len(line))
    if b"\x00" in line:
        return nul_problem(where, offset + line.index(b"\x00"), encoding)
    try:
        line.decode(UTF8)
    except UnicodeDecodeError as error:
        return encoding_problem(where, offset + error.start, line[error.start], encoding)
    return None


def encoding_problem(where: Where, offset: int, byte: int, encoding: str = UTF8) -> Problem:
    """A row with a byte that is not UTF-8, or not of the encoding that was declared."""
    if encoding != UTF8:
        todo = "declare the true one with data.encoding, or repair the row"
        return Problem(str(where), "", f"found bytes that are not {encoding}", todo)
    return Problem(str(where), "", f"not UTF-8 at byte {offset} (found 0x{byte:02x})", CONVERT)


def nul_problem(where: Where, offset: int, encoding: str = UTF8) -> Problem:
    """A row with a NUL byte; its place is known where the file is UTF-8."""
    found = f"a NUL byte at byte {offset}" if encoding == UTF8 else "a NUL character"
    return Problem(
        str(where),
        "",
        f"found {found}, accepts text",
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


def read_text_file(path: Path, name: str, encoding: str = UTF8) -> Iterator[RawRow | Problem]:
    """Yield one row `{"text": line}` per line that is not blank.

    Args:
        path: File to read.
        name: The file as the user named it.
        encoding: Python's name of the file's encoding.
    """
    for number, offset, line in byte_lines(path, encoding):
        if not line.strip():
            continue
        where = Where(name, number)
        if problem := text_problem(where, line, offset, encoding):
            yield problem
        else:
            yield RawRow({"text": line.decode(UTF8).rstrip("\r\n")}, where)


def cut_lines(
    rows: Iterator[RawRow | Problem], separator: str, has_header: bool
) -> Iterator[RawRow | Problem]:
    """Cut lines such as `text@label` at their last separator.

    Args:
        rows: Rows of `read_text_file`.
        separator: What stands between the two fields.
        has_header: The first line names them. Else they are called "1" and "2".
    """
    names: tuple[str, str] | None = None if has_header else ("1", "2")
    for row in rows:
        if isinstance(row, Problem):
            yield row
            continue
        text, found, last = str(row.fields["text"]).rpartition(separator)
        if not found:
            message = f"found no {separator!r}, accepts a text, {separator!r} and a label"
            yield Problem(str(row.where), "", message, "repair the line, or remove it")
        elif names is None:
            names = (text.strip(), last.strip())
        else:
            yield RawRow({names[0]: text, names[1]: last}, row.where)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: the file can't be read: {error.strerror or error} (check the path and its "
        "permissions)"
    )
