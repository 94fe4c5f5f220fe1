"""Where rows come from: a file, a folder of files, or a data set on the Hub."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sft_kit.data.encodings import UTF8
from sft_kit.data.json_files import (
    holds_list,
    read_json_lines,
    read_json_list,
    refuse_object_over_lines,
)
from sft_kit.data.rows import RawRow, Where
from sft_kit.data.tables import DELIMITERS, open_table, read_parquet, read_table
from sft_kit.data.text_files import (
    CONVERT,
    MAX_ROW_CHARACTERS,
    byte_lines,
    cut_lines,
    read_bytes,
    read_text_file,
    too_long,
)
from sft_kit.errors import DataError, Problem

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", flags=re.ASCII)
_LOOKS_LIKE_JSON = re.compile(rb'\s*(\{\s*"|\[\s*\{|\[\s*\])')
_NOT_ROWS = {
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
}
_NOT_ROWS_WITHIN = {(257, b"ustar"): "a tar archive", (4, b"1AY&SY"): "a bzip2 archive"}
_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Layout:
    """How the bytes of a file become rows.

    Attributes:
        encoding: Python's name of the encoding.
        has_header: Tables, and lines with a separator: the first record names the columns. Else
            they are called "1", "2", ...
        has_quotes: Tables: fields may be quoted.
        delimiter: Tables: what stands between the fields; None is what the suffix promises, or
            what the first line shows instead.
        separator: .txt files: lines are cut at the last of these into two fields; None is no cut.
        read_text: .txt files: makes rows of the path, the name the user knows it by and the
            encoding.
    """

    encoding: str = UTF8
    has_header: bool = True
    has_quotes: bool = True
    delimiter: str | None = None
    separator: str | None = None
    read_text: Callable[[Path, str, str], Iterator[RawRow | Problem]] = read_text_file


LayoutOf = Callable[[Path, str], Layout]
"""Looks at a file, given its path and the name the user knows it by."""

Kind = Literal["json", "table", "text", "parquet", "other"]


@dataclass(frozen=True, slots=True)
class Source:
    """Rows in the order of the file, bad ones as problems, and the fingerprint of what is read.

    Attributes:
        rows: Rows as they are read.
        fingerprint: sha256 over the bytes, or what the Hub calls the data set's fingerprint.
        class_names: Column -> names of its classes by class id; data sets of the Hub know them.
        num_bytes: Size of the files; None of a data set on the Hub.
    """

    rows: Iterator[RawRow | Problem]
    fingerprint: str
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    num_bytes: int | None = None


def open_source(
    path: str,
    split: str = "train",
    revision: str | None = None,
    layout: Layout | LayoutOf = Layout(),
    *,
    streaming: bool = False,
) -> Source:
    """Open a file, a folder of files or a data set on the Hub; rows are read as they are asked for.

    Args:
        path: What `data.path` says.
        split: Split of a data set on the Hub.
        revision: Branch, tag or commit of a data set on the Hub.
        layout: How bytes become rows: of all files, or a function that says it of each.
        streaming: Read a data set on the Hub as it is downloaded; files are always read so.

    Raises:
        DataError: Nothing is there, or it can't be read. Also raised while rows are asked for.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        files = _files_of_folder(place, path)
        rows = (
            row
            for file in files
            for row in _read_file(file, f"{path.rstrip('/')}/{file.name}", layout)
        )
        num_bytes = sum(file.stat().st_size for file in files)
        return Source(rows, _fingerprint_of_folder(files), num_bytes=num_bytes)
    if place.exists():
        num_bytes = place.stat().st_size
        return Source(_read_file(place, path, layout), _fingerprint(place), num_bytes=num_bytes)
    if _is_hub_id(path):
        return _stream_hub(path, split, revision) if streaming else _open_hub(path, split, revision)
    raise DataError(f"{path}: found no file or folder of this name (check the path)")


def _is_hub_id(path: str) -> bool:
    if not _HUB_ID.fullmatch(path) or path.lower().endswith(SUFFIXES):
        return False
    # A slip in `data/rows` should not cost half a minute of calls to the Hub.
    return "/" not in path or not Path(path).parent.is_dir()


def _files_of_folder(folder: Path, name: str) -> list[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{name}: the folder can't be read: {error.strerror or error}") from error
    files = [
        entry
        for entry in entries
        if entry.is_file()
        and entry.suffix.lower() in SUFFIXES
        and entry.stem.lower() not in {"readme", "license", "licence"}
    ]
    if not files:
        found = ", ".join(entry.name for entry in entries[:10]) or "nothing"
        raise DataError(
            f"{name}: found no data file in the folder (it holds: {found}), accepts files "
            f"ending in {', '.join(SUFFIXES)} (put the files directly into it)"
        )
    return files


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: the file can't be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _fingerprint_of_folder(files: list[Path]) -> str:
    lines = "".join(f"{_fingerprint(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _read_file(path: Path, name: str, layout: Layout | LayoutOf) -> Iterator[RawRow | Problem]:
    """Yield the rows of a file; where content and suffix disagree, content wins."""
    head = read_bytes(path, _HEAD_BYTES)
    if not head:
        raise DataError(f"{name}: the file is empty (put rows into it)")
    _refuse_other_files(head, name)
    num_rows = 0
    for row in _reader(path, name, layout if isinstance(layout, Layout) else layout(path, name)):
        num_rows += 1
        yield row
    if not num_rows:
        raise DataError(f"{name}: found no rows, only blank lines or a header (put rows into it)")


def _reader(path: Path, name: str, layout: Layout) -> Iterator[RawRow | Problem]:
    suffix, encoding = path.suffix.lower(), layout.encoding
    kind = kind_of_file(path, encoding)
    if kind == "parquet":
        return read_parquet(path, name)
    head = _head(path, encoding)
    _refuse_other_text(head, name, encoding)
    if b"\r" in head and b"\n" not in head and (kind == "table" or len(head) == _HEAD_BYTES):
        raise DataError(f"{name}:1: lines end in CR only (convert: tr '\\r' '\\n' < OLD > NEW)")
    if kind == "json":
        if holds_list(path, suffix, encoding):
            return read_json_list(path, name, encoding)
        refuse_object_over_lines(path, name, encoding)
        return read_json_lines(path, name, encoding)
    if kind == "table":
        table = open_table(path, name, layout.delimiter or DELIMITERS[suffix], encoding)
        delimiter = layout.delimiter or table.delimiter
        table = replace(table, delimiter=delimiter, has_quotes=layout.has_quotes)
        return read_table(table, layout.has_header)
    if kind == "text":
        rows = layout.read_text(path, name, encoding)
        return cut_lines(rows, layout.separator, layout.has_header) if layout.separator else rows
    found = "is not Parquet inside" if suffix == ".parquet" else f"has the suffix {suffix!r}"
    raise DataError(
        f"{name}: the file {found}, accepts {', '.join(SUFFIXES)} (rename or convert it)"
    )


def kind_of_file(path: Path, encoding: str = UTF8) -> Kind:
    """Tell how a file is read; where content and suffix disagree, content wins.

    Args:
        path: File to look at.
        encoding: Python's name of its encoding, where it holds text.
    """
    suffix = path.suffix.lower()
    if read_bytes(path, 4) == b"PAR1":
        return "parquet"
    if suffix in {".json", ".jsonl"} or _LOOKS_LIKE_JSON.match(_head(path, encoding)):
        return "json"
    if suffix in DELIMITERS:
        return "table"
    return "text" if suffix == ".txt" else "other"


def _head(path: Path, encoding: str) -> bytes:
    """Read the first bytes of the text, as UTF-8 and without a byte order mark."""
    if encoding == UTF8:
        return read_bytes(path, _HEAD_BYTES).removeprefix(b"\xef\xbb\xbf")
    lines = islice((line for _, _, line in byte_lines(path, encoding)), _HEAD_BYTES)
    return b"".join(lines)[:_HEAD_BYTES]


def _refuse_other_files(head: bytes, name: str) -> None:
    kinds = [kind for magic, kind in _NOT_ROWS.items() if head.startswith(magic)]
    kinds += [kind for (at, mark), kind in _NOT_ROWS_WITHIN.items() if head.startswith(mark, at)]
    if kinds:
        raise DataError(
            f"{name}: found {kinds[0]}, accepts {', '.join(SUFFIXES)} (unpack or export it first)"
        )


def _refuse_other_text(head: bytes, name: str, encoding: str) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head.count(0) * 4 > len(head):
        at = 0 if head[0] > 0x7F else head.index(0)
        if encoding != UTF8:
            raise DataError(
                f"{name}:1: found NUL characters in the text read as {encoding} (declare the true "
                "encoding with data.encoding)"
            )
        raise DataError(
            f"{name}:1: not UTF-8 at byte {at}: it looks like UTF-16 "
            f"({CONVERT.replace('gbk', 'utf-16')})"
        )


def _open_hub(name: str, split: str, revision: str | None) -> Source:
    dataset = _load_from_hub(name, split, revision)
    rows = (_hub_row(fields, Where(name, number)) for number, fields in enumerate(dataset, start=1))
    fingerprint = f"{dataset._fingerprint}@{revision or 'main'}"
    return Source(rows, fingerprint, _class_names(dataset))


def _stream_hub(name: str, split: str, revision: str | None) -> Source:
    dataset = _load_from_hub(name, split, revision, streaming=True)
    # A stream has no fingerprint of its own, and no class ids before its rows are read.
    rows = (_hub_row(fields, Where(name, number)) for number, fields in enumerate(dataset, start=1))
    return Source(rows, f"{name}/{split}@{revision or 'main'}")


def _class_names(dataset: "Dataset") -> dict[str, tuple[str, ...]]:
    """Name the classes of the columns that hold class ids, or lists of them."""
    named = {}
    for column, feature in dataset.features.items():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            named[column] = tuple(names)
    return named


def _load_from_hub(name: str, split: str, revision: str | None, **options: bool) -> "Dataset":
    import datasets

    try:
        return datasets.load_dataset(name, split=split, revision=revision, **options)
    # Whatever goes wrong up there (network, access, names, damaged files) has one reader: the user.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{name}: found no file or folder of this name, and the Hub gave no data set: {reason} "
            f"(for a local file check the path; for the Hub check the network, the id, "
            f"split={split!r} and revision={revision or 'main'!r})"
        ) from error


def _hub_row(fields: dict[str, object], where: Where) -> RawRow | Problem:
    size = sum(len(value) for value in fields.values() if isinstance(value, str))
    return too_long(where, size) if size > MAX_ROW_CHARACTERS else RawRow(fields, where)
