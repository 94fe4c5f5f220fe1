"""A full disk, said before it costs something, or in words when it happens."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sft_kit.errors import CheckpointError, Problem

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_WRITER_WORDS = ("PytorchStreamWriter", "unexpected pos", "file write failed")
"""What `torch.save` says of a disk that took only a part; that it was full, it doesn't say."""
_WAY_OUT = (
    "free some there, set train.save_total_limit to keep fewer checkpoints, or move the run folder "
    "to another disk and name it with train.output_dir; then go on with --resume"
)


def check_space(folder: Path, num_bytes: int, what: str) -> None:
    """Refuse to begin what would not fit.

    Args:
        folder: Where it will be written; exists.
        num_bytes: It will take about that.
        what: Its name in the message.

    Raises:
        CheckpointError: Names the place, the bytes needed and those free.
    """
    if free_bytes(folder) < num_bytes:
        raise _no_space(folder, what, num_bytes, "")


@contextmanager
def telling_full_disk(folder: Path, what: str, num_bytes: int | None = None) -> Iterator[None]:
    """Say in words that a disk was full; any other error passes as it is.

    Args:
        folder: Where the block writes.
        what: Its name in the message.
        num_bytes: What it needs, where that is known.

    Raises:
        CheckpointError: Names the place, the bytes needed and those free.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_about_writing(error):
            raise
        raise _no_space(folder, what, num_bytes, str(error).splitlines()[0]) from error


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write where a folder is."""
    return shutil.disk_usage(folder).free


def folder_bytes(folder: Path) -> int:
    """Add up the files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def in_bytes(count: int) -> str:
    """Write a size as people do, exact where it is small."""
    if count < 10_000:
        return f"{count} bytes"
    power = min(len(str(count)) - 1, 14) // 3
    size = count / 1000**power
    unit = ("kB", "MB", "GB", "TB")[power - 1]
    return f"{size:.3g} {unit}" if size < 100 else f"{size:,.0f} {unit}"


def _is_about_writing(error: BaseException) -> bool:
    """Whether a writer failed for want of room: the system's, safetensors' or torch's own error."""
    if isinstance(error, CheckpointError):
        return False
    if isinstance(error, OSError):
        return error.errno in _FULL
    text = str(error)
    if isinstance(error, SafetensorError):
        return "No space left" in text or "os error" in text
    return any(words in text for words in _WRITER_WORDS)


def _no_space(folder: Path, what: str, num_bytes: int | None, found: str) -> CheckpointError:
    needs = "" if num_bytes is None else f"needs about {in_bytes(num_bytes)}, and "
    message = f"{what} {needs}{in_bytes(free_bytes(folder))} are free"
    message += f" ({found})" if found else ""
    problem = Problem(str(folder), "", message, _WAY_OUT)
    return CheckpointError("the disk is full; what was saved before is kept:", [problem])
