"""Folders that are whole or not there: written beside their place, listed file by file, renamed.

A process can be killed between any two writes. What stands under a folder's own name has therefore
been written to the disk completely, and `manifest.json` says what that is.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

MANIFEST_FILE = "manifest.json"
_STAGE = ".part"
_REPLACED = ".old"


def write_folder(folder: Path, files: Callable[[Path], None]) -> None:
    """Write a folder so that it is seen whole or not at all.

    The files go to a hidden folder beside it, are forced to the disk together with their manifest,
    and appear by a rename. A folder that stands there is replaced only then.

    Args:
        folder: Where the files shall be.
        files: Writes them into the folder it is given.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    tidy_up(folder.parent, glob.escape(folder.name))
    stage = folder.with_name(f".{folder.name}{_STAGE}")
    stage.mkdir()
    try:
        files(stage)
        (stage / MANIFEST_FILE).write_text(json.dumps(_describe(stage), indent=1), encoding="utf-8")
        for path in [*sorted(stage.rglob("*")), stage]:
            _force_to_disk(path)
        _put_in_place(stage, folder)
    except BaseException:
        _remove(stage)
        raise


def broken_parts(folder: Path) -> list[str]:
    """Say what a written folder lacks, one sentence per file; nothing where it is whole.

    Files that its manifest does not list don't count.
    """
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        return [f"{MANIFEST_FILE} is missing"]
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        entries = {name: (int(of["bytes"]), str(of["sha256"])) for name, of in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST_FILE} is cut off"]
    if not entries:
        return [f"{MANIFEST_FILE} lists no file"]
    states = {name: _state(folder / name, *expected) for name, expected in entries.items()}
    return [f"{name} is {state}" for name, state in states.items() if state]


def set_aside(folder: Path) -> Path:
    """Where a folder stands for the moment in which a new one takes its place."""
    return folder.with_name(f".{folder.name}{_REPLACED}")


def tidy_up(parent: Path, pattern: str) -> None:
    """Undo what killed processes left half done.

    A folder that was set aside for a new one, which never came, is brought back; stages go.

    Args:
        parent: Folder in which `write_folder` wrote.
        pattern: Of the folders' own names, such as `checkpoint-*`.
    """
    for old in parent.glob(f".{pattern}{_REPLACED}"):
        target = parent / old.name[1:].removesuffix(_REPLACED)
        if target.exists():
            _remove(old)
        else:
            os.replace(old, target)
    for stage in parent.glob(f".{pattern}{_STAGE}"):
        _remove(stage)


def _put_in_place(stage: Path, folder: Path) -> None:
    replaced = set_aside(folder)
    if folder.exists():
        _remove(replaced)
        os.replace(folder, replaced)
    os.replace(stage, folder)
    _force_to_disk(folder.parent)
    _remove(replaced)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _describe(folder: Path) -> dict[str, dict[str, object]]:
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": _digest(path),
        }
        for path in _files(folder)
    }


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _state(path: Path, num_bytes: int, sha256: str) -> str:
    if not path.is_file():
        return "missing"
    if path.stat().st_size < num_bytes:
        return "cut off"
    return "" if _digest(path) == sha256 else "changed"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
