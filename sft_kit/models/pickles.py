"""Pickles of tensors, looked through before anything unpickles them.

A pickle is a program. What it would call is written in it and can be read without running it: here
nothing but the handful of names that `torch.save` writes for a dictionary of tensors is let by, and
no archive that grows when it is opened. torch's own restricted reader comes after that.
"""

import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.damage import is_lfs_pointer

_ZIP = b"PK\x03\x04"
_NUM_OLD_PICKLES = 5
"""Pickles in a file of torch before 1.6: magic number, version, machine, tensors, storage names."""

_MAX_GROWTH = 1.1
_MAX_PICKLE_BYTES = 100_000_000
_ELEMENTS = (
    *("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"),
    *("ComplexDouble", "ComplexFloat"),
)
_TENSORS_ONLY = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch Size",
        *(f"torch {element}Storage" for element in _ELEMENTS),
    }
)
_CALLS_BY_OTHER_NAMES = frozenset(
    {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
)
"""Opcodes that build objects of classes named elsewhere; `torch.save` writes none of them."""


def refuse_other_than_tensors(path: Path) -> None:
    """Stop before a pickle is read that holds more than a dictionary of tensors.

    Args:
        path: As `torch.save` wrote it.

    Raises:
        CheckpointError: It names anything else, is damaged, or is an archive that grows.
    """
    todo = "take the weights as safetensors, from where they were published"
    if is_lfs_pointer(path):
        pointer = f"found {path.name}, which only points to the file (git-lfs)"
        way = "run `git lfs pull` where it was cloned, or download the file"
        raise CheckpointError(f"{path} can't be read", [Problem(str(path), "", pointer, way)])
    try:
        found = next(_foreign_names(path), None)
    except (OSError, BadZipFile, ValueError, KeyError, EOFError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        problem = Problem(str(path), "", f"it is damaged: {reason}", "copy it again")
        raise CheckpointError(f"{path} can't be read", [problem]) from error
    if found is not None:
        told = f"found a pickle that holds more than tensors ({found}); nothing of it was run"
        raise CheckpointError(f"{path} can't be read", [Problem(str(path), "", told, todo)])


def _foreign_names(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            for _ in range(_NUM_OLD_PICKLES):
                yield from _names_in(file)
            return
    with ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > path.stat().st_size * _MAX_GROWTH:
            yield "an archive that grows when it is opened"
        for entry in entries:
            if not entry.filename.endswith(".pkl"):
                continue
            if entry.file_size > _MAX_PICKLE_BYTES:
                yield f"{entry.file_size:,} bytes of names"
            with archive.open(entry) as stream:
                yield from _names_in(stream)


def _names_in(stream: IO[bytes]) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in _CALLS_BY_OTHER_NAMES:
            yield f"the instruction {opcode.name}"
        if opcode.name == "GLOBAL" and argument not in _TENSORS_ONLY:
            yield str(argument).replace(" ", ".")[:80]
