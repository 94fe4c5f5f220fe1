"""A checkpoint with one wrong bit is never resumed from, and the one before it is.

`SFT_KIT_FLIPS` says how many single bits are flipped (default 500), and `SFT_KIT_RESUMED` in how
many of these cases the run is really resumed (default 8); in all of them it is said what is wrong.
"""

import os
import random
import shutil
from pathlib import Path

import pytest

from sft_kit.checkpoints import newest_checkpoint

from .harness import Job, compare, finish, make_jobs, on_file_event, run

NUM_FLIPS = int(os.environ.get("SFT_KIT_FLIPS", "500"))
NUM_RESUMED = int(os.environ.get("SFT_KIT_RESUMED", "8"))
pytestmark = pytest.mark.slow
Killed = tuple[Job, Path, Path]


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Killed:
    """A job; the folder of a run killed when the checkpoint of its last step stood; a whole run."""
    place = tmp_path_factory.mktemp("sft")
    job = make_jobs(place / "data")["sft"]
    whole = run(job, place / "straight")
    assert whole.code == 0, whole.said
    folder = place / "killed"
    ended = run(job, folder, first=lambda: on_file_event(folder, die_when_it_stands(folder)))
    assert ended.code == -9, ended.said
    assert newest_checkpoint(folder)[0] == folder / "checkpoint-4"
    return job, folder, place / "straight"


def die_when_it_stands(folder: Path):
    def act(_: int) -> None:
        if (folder / "checkpoint-4").exists():
            os.kill(os.getpid(), 9)

    return act


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_every_flipped_bit_is_named_and_the_checkpoint_before_is_taken(killed: Killed, tmp_path):
    job, folder, straight = killed
    draw = random.Random(11)
    files = sorted(path.name for path in (folder / "checkpoint-4").iterdir())
    sizes = [(folder / "checkpoint-4" / name).stat().st_size for name in files]
    # By size as a disk would, but every file, however small, in its turn.
    names = [*files, *draw.choices(files, sizes, k=NUM_FLIPS)][:NUM_FLIPS]
    resumed = set(draw.sample(range(NUM_FLIPS), min(NUM_RESUMED, NUM_FLIPS)))
    num_found = 0
    for index, name in enumerate(names):
        path = folder / "checkpoint-4" / name
        whole = path.read_bytes()
        flip(path, draw)
        found, skipped = newest_checkpoint(folder)
        assert found == folder / "checkpoint-2", name
        assert len(skipped) == 1
        assert name in skipped[0]
        num_found += 1
        if index in resumed:
            copy = Path(shutil.copytree(folder, tmp_path / f"run-{index}"))
            ended = finish(job, copy)
            assert f"checkpoint-4 was passed over: {name} is " in ended.said
            assert not compare(job, copy, straight, ended)
        path.write_bytes(whole)
    print(f"{num_found} of {len(names)} flipped bits named, {len(resumed)} of them resumed")
    assert newest_checkpoint(folder)[0] == folder / "checkpoint-4"
