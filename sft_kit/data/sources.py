"""Where rows come from: a file, a folder of files, or a data set on the Hub."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sft_kit.data.json_files import (
    holds_list,
    read_json_lines,
    read_json_list,
    refuse_object_over_lines,
)
from sft_kit.data.rows import RawRow, Where
from sft_kit.data.tables import DELIMITERS, read_csv, read_parquet
from sft_kit.data.text_files import (
    CONVERT,
    MAX_ROW_CHARACTERS,
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
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
}
_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Source:
    """Rows in the order of the file, bad ones as problems, and the fingerprint of what is read."""

    rows: Iterator[RawRow | Problem]
    fingerprint: str


def open_source(path: str, split: str = "train", revision: str | None = None) -> Source:
    """Open a file, a folder of files or a data set on the Hub; rows are read as they are asked for.

    Args:
        path: What `data.path` says.
        split: Split of a data set on the Hub.
        revision: Branch, tag or commit of a data set on the Hub.

    Raises:
        DataError: Nothing is there, or it can't be read. Also raised while rows are asked for.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        files = _files_of_folder(place, path)
        rows = (
            row for file in files for row in _read_file(file, f"{path.rstrip('/')}/{file.name}")
        )
        return Source(rows, _fingerprint_of_folder(files))
    if place.exists():
        return Source(_read_file(place, path), _fingerprint(place))
    if _is_hub_id(path):
        return _open_hub(path, split, revision)
    raise DataError(f"{path}: found no file or folder of this name (check data.path)")


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


def _read_file(path: Path, name: str) -> Iterator[RawRow | Problem]:
    """Yield the rows of a file; where content and suffix disagree, content wins."""
    head = read_bytes(path, _HEAD_BYTES)
    if not head:
        raise DataError(f"{name}: the file is empty (put rows into it)")
    num_rows = 0
    for row in _reader(path, name, head):
        num_rows += 1
        yield row
    if not num_rows:
        raise DataError(f"{name}: found no rows, only blank lines or a header (put rows into it)")


def _reader(path: Path, name: str, head: bytes) -> Iterator[RawRow | Problem]:
    suffix = path.suffix.lower()
    if head.startswith(b"PAR1"):
        return read_parquet(path, name)
    _refuse_other_content(head, name)
    content = head.removeprefix(b"\xef\xbb\xbf")
    if suffix in {".json", ".jsonl"} or _LOOKS_LIKE_JSON.match(content):
        if holds_list(path, suffix):
            return read_json_list(path, name)
        refuse_object_over_lines(path, name)
        return read_json_lines(path, name)
    if suffix in DELIMITERS:
        return read_csv(path, name, DELIMITERS[suffix])
    if suffix == ".txt":
        return read_text_file(path, name)
    found = "is not Parquet inside" if suffix == ".parquet" else f"has the suffix {suffix!r}"
    raise DataError(
        f"{name}: the file {found}, accepts {', '.join(SUFFIXES)} (rename or convert it)"
    )


def _refuse_other_content(head: bytes, name: str) -> None:
    for magic, kind in _NOT_ROWS.items():
        if head.startswith(magic):
            raise DataError(
                f"{name}: found {kind}, accepts {', '.join(SUFFIXES)} (unpack or export it first)"
            )
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head.count(0) * 4 > len(head):
        raise DataError(
            f"{name}:1: not UTF-8 at byte {0 if head[0] > 0x7F else head.index(0)}: it looks like "
            f"UTF-16 ({CONVERT.replace('gbk', 'utf-16')})"
        )
    if b"\r" in head and b"\n" not in head and len(head) == _HEAD_BYTES:
        raise DataError(f"{name}:1: lines end in CR only (convert: tr '\\r' '\\n' < OLD > NEW)")


def _open_hub(name: str, split: str, revision: str | None) -> Source:
    dataset = _load_from_hub(name, split, revision)
    rows = (_hub_row(fields, Where(name, number)) for number, fields in enumerate(dataset, start=1))
    return Source(rows, f"{dataset._fingerprint}@{revision or 'main'}")


def _load_from_hub(name: str, split: str, revision: str | None) -> "Dataset":
    import datasets

    try:
        return datasets.load_dataset(name, split=split, revision=revision)
    # Whatever goes wrong up there (network, access, names, damaged files) has one reader: the user.
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{name}: found no file or folder of this name, and the Hub gave no data set: {reason} "
            f"(for a local file check data.path; for the Hub check the network, the id, "
            f"split={split!r} and revision={revision or 'main'!r})"
        ) from error


def _hub_row(fields: dict[str, object], where: Where) -> RawRow | Problem:
    size = sum(len(value) for value in fields.values() if isinstance(value, str))
    return too_long(where, size) if size > MAX_ROW_CHARACTERS else RawRow(fields, where)
