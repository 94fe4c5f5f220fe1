"""Hostile files, and a guard that sees whether one of them got its way.

Every payload, were it run, would make a canary file; every secret lies in a folder that nothing may
open. The guard fails a test where the canary appears or a secret was opened, whatever else happens.
"""

import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_opened: list[str] = []
_is_watching: list[bool] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _is_watching and event in ("open", "os.listdir", "os.scandir") and arguments:
        _opened.append(str(arguments[0]))


sys.addaudithook(_note)  # it can't be taken off, so it only notes while it is asked to


class Payload:
    """Makes the canary when it is unpickled."""

    def __init__(self, canary: Path, how: str = "touch") -> None:
        self.canary, self.how = canary, how

    def __reduce__(self) -> tuple[object, ...]:
        if self.how == "system":
            return os.system, (f"touch {self.canary}",)
        if self.how == "exec":
            return exec, (f"open({str(self.canary)!r}, 'w')",)
        if self.how == "eval":
            return eval, (f"__import__('pathlib').Path({str(self.canary)!r}).touch()",)
        if self.how == "getattr":
            return getattr, (_Late(self.canary), "go")
        return Path.touch, (self.canary,)


class _Late:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.canary), "w")


def nested(canary: Path) -> object:
    """A payload deep inside of what looks like weights."""
    import torch

    return {"a.weight": torch.zeros(2, 2), "b": [{"c": (1, Payload(canary))}]}


HOW = ("touch", "system", "exec", "eval", "getattr")


def pickled(kind: str, canary: Path) -> bytes:
    """A file whose reading, by a reader that trusts it, makes the canary."""
    import numpy as np
    import torch

    buffer = io.BytesIO()
    if kind.startswith("protocol"):
        return pickle.dumps({"w": Payload(canary)}, protocol=int(kind[-1]))
    if kind in HOW:
        torch.save({"w": Payload(canary, kind)}, buffer)
    elif kind == "nested":
        torch.save(nested(canary), buffer)
    elif kind == "old torch":
        torch.save(nested(canary), buffer, _use_new_zipfile_serialization=False)
    elif kind == "numpy":
        np.save(buffer, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    elif kind == "joblib":
        import joblib

        joblib.dump({"w": Payload(canary)}, buffer)
    elif kind == "second entry":  # a zip with the name of the tensors' pickle twice
        torch.save({"w": torch.zeros(2)}, buffer)
        with zipfile.ZipFile(buffer, "a") as archive:
            name = next(one for one in archive.namelist() if one.endswith("data.pkl"))
            with _quiet_zip():
                archive.writestr(name, pickle.dumps({"w": Payload(canary)}, protocol=2))
    elif kind == "stack global":  # the class is named by strings on the stack, not by an opcode
        parts = ("posix", "system", f"touch {canary}")
        module, name, text = (b"\x8c" + bytes([len(one)]) + one.encode() for one in parts)
        return b"\x80\x04" + module + name + b"\x93" + text + b"\x85R."
    elif kind == "instance":  # the opcode of Python 1
        return b"(S'touch " + str(canary).encode() + b"'\niposix\nsystem\n."
    return buffer.getvalue()


PICKLES = (
    *("protocol 0", "protocol 2", "protocol 4", *HOW, "nested", "old torch"),
    *("numpy", "joblib", "second entry", "stack global", "instance"),
)


@contextmanager
def _quiet_zip() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Duplicate name")
        yield


def write_code(folder: Path, canary: Path, *names: str) -> None:
    """Write modules that make the canary when they are imported, with every class asked for."""
    classes = "".join(f"class {name}:\n    pass\n" for name in names)
    for stem in (
        "evil",
        "modeling_evil",
        "configuration_evil",
        "tokenization_evil",
        "custom_generate",
    ):
        (folder / f"{stem}.py").write_text(
            f"open({str(canary)!r}, 'w').close()\n{classes}", encoding="utf-8"
        )


def edit_json(path: Path, **fields: object) -> None:
    """Put fields into a JSON file, which is made where it is missing."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(kept | fields), encoding="utf-8")


# --- archives that grow ---------------------------------------------------------------------------


def bomb(kind: str, megabytes: int = 300) -> bytes:
    """A small archive of many equal bytes."""
    buffer = io.BytesIO()
    block = b'{"instruction": "a", "output": "b"}\n' * 30_000
    rounds = megabytes * 1_000_000 // len(block)
    if kind == "gz":
        with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
            for _ in range(rounds):
                file.write(block)
    elif kind == "zip":
        with (
            zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("rows.jsonl", "w") as file,
        ):
            for _ in range(rounds):
                file.write(block)
    elif kind == "tar.gz":
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            entry = tarfile.TarInfo("../../rows.jsonl")
            entry.size = len(block)
            archive.addfile(entry, io.BytesIO(block))
    elif kind == "bz2":
        import bz2

        buffer.write(bz2.compress(block * 50))
    elif kind == "xz":
        import lzma

        buffer.write(lzma.compress(block * 50))
    return buffer.getvalue()


def grown_weights(megabytes: int = 300) -> bytes:
    """A file of `torch.save` whose entries were packed, which torch never does."""
    import torch

    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(megabytes * 250_000)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return packed.getvalue()


def headers() -> dict[str, bytes]:
    """Safetensors files whose headers promise what is not there."""

    def file(header: dict[str, object]) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text

    huge = {"dtype": "F32", "shape": [1 << 30, 1 << 10], "data_offsets": [0, 1 << 42]}
    return {
        "a header of 8 EB": struct.pack("<Q", 1 << 62) + b"{}",
        "a header longer than the file": struct.pack("<Q", 1 << 20) + b"{}",
        "a tensor of 4 TB": file({"w": huge}),
        "a negative offset": file({"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
        "a header nested 20,000 deep": struct.pack("<Q", 40_000) + b"[" * 20_000 + b"]" * 20_000,
    }


# --- the guard ------------------------------------------------------------------------------------


@contextmanager
def guarded(canary: Path, secret: Path | None = None, *, may_read: bool = False) -> Iterator[None]:
    """Fail where the canary appears, the secret's folder is opened, or anything but words comes.

    Whatever asks on stdin is answered with yes; with `may_read` that is a line of a chat.
    """
    from sft_kit.errors import SftKitError

    answers = io.StringIO("y\n" * (1 if may_read else 50))
    stdin, sys.stdin = sys.stdin, answers
    _opened.clear()
    _is_watching.append(True)
    try:
        yield
    except SftKitError:
        pass  # refused in words
    except SystemExit as end:
        if end.code not in (0, 2, None):
            raise
    finally:
        _is_watching.pop()
        sys.stdin = stdin
    assert not canary.exists(), "hostile code ran"
    assert may_read or answers.tell() == 0, "something was asked on stdin"
    if secret is not None:
        place = os.path.realpath(secret)
        seen = [name for name in _opened if os.path.realpath(name).startswith(place)]
        assert seen == [], "files outside of the folder were opened"


Attack = Callable[[Path, Path], None]
