"""A run on a disk that fills up ends in words, loses no checkpoint, and goes on when there is room.

The disk is a tmpfs of a few sizes, which root may mount; without that right the tests are skipped.
`SFT_KIT_SIZES` says how many sizes for each of the three recipes (default 8).
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sft_kit.checkpoints import list_checkpoints, newest_checkpoint

from .harness import Job, compare, finish, make_jobs, run

NUM_SIZES = int(os.environ.get("SFT_KIT_SIZES", "8"))
ROOM = 256 << 20
EXIT_USER_ERROR = 2
pytestmark = pytest.mark.slow


def mount(place: Path, num_bytes: int, *, again: bool = False) -> bool:
    how = f"{'remount,' if again else ''}size={num_bytes}"
    command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(place)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if not mount(place, ROOM):
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.fixture(scope="module", params=["sft", "classify", "ppo"])
def straight(request, tmp_path_factory) -> tuple[Job, Path, int]:
    """A job, the folder of a whole run, and the bytes of all that it left."""
    place = tmp_path_factory.mktemp(request.param)
    job = make_jobs(place / "data")[request.param]
    ended = run(job, place / "straight")
    assert ended.code == 0, ended.said
    files = [path for path in (place / "straight").rglob("*") if path.is_file()]
    return job, place / "straight", sum(path.stat().st_size for path in files)


def sizes_of(num_bytes: int) -> list[int]:
    """Disks from a hundredth of what a run leaves to nearly all of it."""
    page = 4096
    shares = [0.01 + 0.94 * index / max(NUM_SIZES - 1, 1) for index in range(NUM_SIZES)]
    return [max(round(num_bytes * share) // page, 2) * page for share in shares]


def test_a_run_on_a_disk_that_fills_up_ends_in_words_and_goes_on_later(straight, disk: Path):
    job, whole, num_bytes = straight
    for number, size in enumerate(sizes_of(num_bytes), start=1):
        assert mount(disk, size, again=True)
        folder = disk / f"run-{number}"
        log = disk.with_name(f"run-{number}.log")
        ended = run(job, folder, log=log)
        assert ended.code == EXIT_USER_ERROR, f"{size} bytes: {ended.code}: {ended.said[-800:]}"
        assert "Traceback" not in ended.said
        for word in (str(disk), "are free", "--resume"):
            assert word in ended.said, f"{size} bytes: {ended.said[-800:]}"
        kept = newest_checkpoint(folder)[0]
        assert kept == next(iter(list_checkpoints(folder)), None), "half a checkpoint was left"
        assert not [path.name for path in folder.glob(".*") if path.is_dir()]
        assert mount(disk, ROOM, again=True)
        failure = compare(job, folder, whole, finish(job, folder, log=log))
        assert not failure, f"{size} bytes: {failure}"
        shutil.rmtree(folder)
        print(f"{job.stem}: {number} of {NUM_SIZES} sizes told and resumed", flush=True)
