"""Weights in `.bin`, read without an unpickler: a zip of numbers, and a pickle read as words.

The numbers stay on the disk until they are used: every tensor lies on the mapped file.
"""

import math
import struct
import sys
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.damage import is_lfs_pointer
from sft_kit.models.pickles import MoreThanTensorsError, StoredTensor, stored_tensors

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_LOCAL_HEADER_BYTES = 30
_NUM_LENGTHS = struct.Struct("<26xHH")
_MAX_PICKLE_BYTES = 2_000_000
"""Some 150 bytes say what a tensor is; an instruction of one byte takes 5 microseconds."""

_MAX_DIMENSIONS = 64
_MAX_NUMBER = 2**62
_DAMAGED = (BadZipFile, OSError, ValueError, KeyError, EOFError, RuntimeError, struct.error)
_GET_SAFETENSORS = "take the weights as safetensors, from where they were published"


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a dictionary of tensors that `torch.save` wrote; nothing in the file is run.

    Args:
        path: The file. It is mapped as long as one of the tensors lives; nothing writes to it.

    Returns:
        Name -> tensor on the CPU, in the file's order. Tensors that shared a storage share it.

    Raises:
        CheckpointError: It holds anything but tensors, points outside of itself, grows when it is
            opened, was written by torch before 1.6, or is damaged.
        FileNotFoundError: There is no such file.
    """
    if is_lfs_pointer(path):
        pointer = f"found {path.name}, which only points to the file (git-lfs)"
        way = "run `git lfs pull` where it was cloned, or download the file"
        raise CheckpointError(f"{path} can't be read", [Problem(str(path), "", pointer, way)])
    try:
        return _read(path)
    except MoreThanTensorsError as error:
        told = f"found a pickle that holds more than tensors ({error}); nothing of it was run"
        raise CheckpointError(
            f"{path} can't be read", [Problem(str(path), "", told, _GET_SAFETENSORS)]
        ) from error
    except (MemoryError, torch.OutOfMemoryError, FileNotFoundError, CheckpointError):
        raise
    except _DAMAGED as error:
        reason = f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        found = f"it is damaged: {' '.join(reason.split())[:200]}"
        problem = Problem(str(path), "", found, "copy it again")
        raise CheckpointError(f"{path} can't be read", [problem]) from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    _refuse_other_kinds(path)
    with ZipFile(path) as archive:
        entries = _entries(archive)
        order = archive.read(entries["byteorder"]).decode() if "byteorder" in entries else "little"
        if order != sys.byteorder:
            raise ValueError(f"its numbers are {order}-endian")
        described = stored_tensors(archive.read(entries["data.pkl"]))
    places = {}
    with path.open("rb") as file:
        for storage in {one.storage.name: one.storage for one in described.values()}.values():
            entry = entries[f"data/{storage.name}"]
            file.seek(entry.header_offset)
            name_bytes, extra_bytes = _NUM_LENGTHS.unpack(file.read(_LOCAL_HEADER_BYTES))
            begin = entry.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
            places[storage.name] = (begin, begin + entry.file_size)
    return _mapped(path, described, places)


def _refuse_other_kinds(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if start.startswith(_PICKLE):
        found = (
            "found a bare pickle, such as torch wrote before 1.6, of which nothing was run; "
            "accepts the archives written since"
        )
        raise CheckpointError(
            f"{path} can't be read", [Problem(str(path), "", found, _GET_SAFETENSORS)]
        )
    if start != _ZIP:
        raise ValueError("it is no file of torch.save")


def _entries(archive: ZipFile) -> dict[str, ZipInfo]:
    """The archive's files by their names below its one folder; all stored as they are."""
    entries: dict[str, ZipInfo] = {}
    folder = archive.namelist()[0].partition("/")[0] if archive.namelist() else ""
    for entry in archive.infolist():
        place, _, name = entry.filename.partition("/")
        if place != folder or name in entries:
            raise MoreThanTensorsError("an archive with two of a file, or of folders")
        if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size:
            raise MoreThanTensorsError("an archive that grows when it is opened")
        if not name.startswith("data/") and entry.file_size > _MAX_PICKLE_BYTES:
            raise MoreThanTensorsError(f"{entry.file_size:,} bytes of names")
        entries[name] = entry
    return entries


def _mapped(
    path: Path, described: dict[str, StoredTensor], places: dict[str, tuple[int, int]]
) -> dict[str, torch.Tensor]:
    num_bytes = path.stat().st_size
    whole = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=num_bytes)
    storages = {}
    for name, (begin, end) in places.items():
        if end > num_bytes:
            raise ValueError(f"storage {name} ends behind the file")
        storages[name] = whole[begin:end]
    tensors = {}
    for name, tensor in described.items():
        _refuse_outside(name, tensor, places)
        empty = torch.empty(0, dtype=tensor.storage.dtype)
        numbers = storages[tensor.storage.name]
        tensors[name] = empty.set_(numbers, tensor.offset, tensor.size, tensor.stride)
    return tensors


def _refuse_outside(name: str, tensor: StoredTensor, places: dict[str, tuple[int, int]]) -> None:
    """Check that all of a tensor lies in its storage, and that it is no larger than that."""
    length, width = tensor.storage.length, tensor.storage.dtype.itemsize
    begin, end = places[tensor.storage.name]
    size, stride = tensor.size, tensor.stride
    numbers = (tensor.offset, *size, *stride)
    count = math.prod(size)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=False))
    if (
        length * width != end - begin
        or begin % width
        or not len(size) == len(stride) <= _MAX_DIMENSIONS
        or not 0 <= min(numbers) <= max(numbers) < _MAX_NUMBER
        or count > length
        or (count > 0 and last >= length)
    ):
        raise ValueError(f"{name[:80]!r} does not fit its storage")
