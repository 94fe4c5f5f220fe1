"""A full disk is told with the place, the bytes needed and those free."""

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from sft_kit.disk import check_space, in_bytes, telling_full_disk
from sft_kit.errors import CheckpointError


@pytest.fixture
def nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=10**12, used=10**12 - 4321, free=4321)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


@pytest.mark.usefixtures("nearly_full")
def test_what_would_not_fit_is_refused_with_the_figures_and_the_ways_on(tmp_path: Path):
    check_space(tmp_path, 4321, "checkpoint-8")
    with pytest.raises(CheckpointError) as caught:
        check_space(tmp_path, 2_500_000_000, "checkpoint-8")
    (problem,) = caught.value.problems
    assert problem.where == str(tmp_path)
    assert problem.message == "checkpoint-8 needs about 2.5 GB, and 4321 bytes are free"
    for way in ("train.save_total_limit", "train.output_dir", "--resume"):
        assert way in problem.todo


@pytest.mark.usefixtures("nearly_full")
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:820] . PytorchStreamWriter failed"),
        RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
    ],
)
def test_the_error_of_every_writer_is_told_as_a_full_disk(tmp_path: Path, error: Exception):
    with pytest.raises(CheckpointError) as caught, telling_full_disk(tmp_path, "checkpoint-8", 70):
        raise error
    message = caught.value.problems[0].message
    assert message.startswith("checkpoint-8 needs about 70 bytes, and 4321 bytes are free (")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied"),
        RuntimeError("CUDA out of memory"),
        SafetensorError("header too large"),
        CheckpointError("unexpected pos of a checkpoint"),
        ValueError("x"),
    ],
)
def test_any_other_error_passes_as_it_is(tmp_path: Path, error: Exception):
    with pytest.raises(type(error)) as caught, telling_full_disk(tmp_path, "checkpoint-8"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (9999, "9999 bytes"), (10_000, "10 kB"), (999_999, "1,000 kB"),
     (1_500_000, "1.5 MB"), (512_000_000, "512 MB"), (84 * 10**9, "84 GB"),
     (3 * 10**15, "3,000 TB")],
)  # fmt: skip
def test_a_size_is_written_as_people_do(count: int, text: str):
    assert in_bytes(count) == text
