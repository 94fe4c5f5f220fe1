"""Folders that are whole or not there: written beside their place, listed file by file, renamed.

A process can be killed between any two writes, and a disk can lose a bit. What stands under a
folder's own name has been written to the disk completely, and `manifest.json` says what that is: by
file its bytes and its sha256, the run it is of, and the sha256 of the manifest itself.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MANIFEST_FILE = "manifest.json"
_STAGE = ".part"
_REPLACED = ".old"
_DELETED = ".gone"
_VERSION = 1
_LOADED = {".bin", ".distcp", ".json", ".pkl", ".pt", ".pth", ".safetensors"}
"""Endings of files that a library may read because they are there."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a written folder holds.

    Attributes:
        run: Id of the run that wrote it; empty where no run did.
        files: Path inside the folder -> bytes and sha256.
    """

    run: str
    files: dict[str, tuple[int, str]]

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(num_bytes for num_bytes, _ in self.files.values())


def write_folder(folder: Path, files: Callable[[Path], None], run: str = "") -> None:
    """Write a folder so that it is seen whole or not at all.

    The files go to a hidden folder beside it, are forced to the disk together with their manifest,
    and appear by a rename. A folder that stands there is replaced only then.

    Args:
        folder: Where the files shall be.
        files: Writes them into the folder it is given.
        run: Id of the run that writes.
    """
    stage = open_stage(folder)
    try:
        files(stage)
        close_stage(stage, folder, run)
    except BaseException:
        drop_stage(stage)
        raise


def open_stage(folder: Path) -> Path:
    """Make the empty hidden folder in which a folder is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    tidy_up(folder.parent, glob.escape(folder.name))
    stage = stage_of(folder)
    stage.mkdir()
    return stage


def stage_of(folder: Path) -> Path:
    """Where a folder is written before it gets its name."""
    return folder.with_name(f".{folder.name}{_STAGE}")


def close_stage(stage: Path, folder: Path, run: str = "") -> None:
    """Force what was written to the disk, its manifest last, and give the folder its name."""
    files = list(_files(stage))
    for path in files:
        force_to_disk(path)
    described = {_name(stage, path): _describe(path) for path in files}
    body: dict[str, object] = {"version": _VERSION, "run": run, "files": described}
    text = json.dumps({**body, "sha256": _digest_of(body)}, indent=1)
    (stage / MANIFEST_FILE).write_text(text, encoding="utf-8")
    for path in [stage / MANIFEST_FILE, *_folders(stage), stage]:
        force_to_disk(path)
    _put_in_place(stage, folder)


def drop_stage(stage: Path) -> None:
    """Remove what was written before an error."""
    _remove(stage)


def read_manifest(folder: Path) -> Manifest | None:
    """Read what a written folder should hold; None where its manifest is missing or damaged."""
    try:
        stored = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        digest = stored.pop("sha256")
        if stored["version"] != _VERSION or digest != _digest_of(stored):
            return None
        entries = stored["files"].items()
        files = {str(name): (int(of["bytes"]), str(of["sha256"])) for name, of in entries}
        run = str(stored["run"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if any(_leads_out(name) for name in files):
        return None
    return Manifest(run, files)


def broken_parts(folder: Path) -> list[str]:
    """Say what is wrong with a written folder, one sentence per file; nothing where it is whole.

    A file that its manifest does not list counts only where a library would read it.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return [f"{MANIFEST_FILE} is missing"]
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{MANIFEST_FILE} is damaged"]
    if not manifest.files:
        return [f"{MANIFEST_FILE} lists no file"]
    states = {name: state_of(folder / name, *of) for name, of in manifest.files.items()}
    broken = [f"{name} is {state}" for name, state in states.items() if state]
    found = {_name(folder, path) for path in _files(folder)} - {MANIFEST_FILE}
    foreign = sorted(name for name in found - states.keys() if Path(name).suffix in _LOADED)
    return broken + [f"{name} is not of the run" for name in foreign]


def state_of(path: Path, num_bytes: int, sha256: str) -> str:
    """Say what is wrong with a file; empty where nothing is.

    Args:
        path: The file.
        num_bytes: It had at least that many.
        sha256: It had this digest.
    """
    if not path.is_file():
        return "missing"
    try:
        if path.stat().st_size < num_bytes:
            return "cut off"
        return "" if _digest(path) == sha256 else "changed"
    except OSError as error:
        return f"not readable ({error.strerror})"


def remove_folder(folder: Path) -> None:
    """Delete a folder so that no half of it is ever seen under its name."""
    hidden = folder.with_name(f".{folder.name}{_DELETED}")
    _remove(hidden)
    os.replace(folder, hidden)
    _remove(hidden)


def set_aside(folder: Path) -> Path:
    """Where a folder stands for the moment in which a new one takes its place."""
    return folder.with_name(f".{folder.name}{_REPLACED}")


def tidy_up(parent: Path, pattern: str) -> None:
    """Undo what killed processes left half done.

    A folder that was set aside for a new one, which never came, is brought back; stages go, and so
    does what was being deleted.

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
    for left in [*parent.glob(f".{pattern}{_STAGE}"), *parent.glob(f".{pattern}{_DELETED}")]:
        _remove(left)


def force_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(stage: Path, folder: Path) -> None:
    replaced = set_aside(folder)
    if folder.exists():
        _remove(replaced)
        os.replace(folder, replaced)
    os.replace(stage, folder)
    force_to_disk(folder.parent)
    _remove(replaced)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _describe(path: Path) -> dict[str, object]:
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest_of(body: object) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _leads_out(name: str) -> bool:
    """Whether a name in a manifest, which may come from elsewhere, leaves its folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or not path.parts


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_dir())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
