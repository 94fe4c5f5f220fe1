"""Which checkpoint `--resume` takes, judged without training and without torch."""

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_kit.checkpoints import examine, list_checkpoints, newest_checkpoint, why_not_resumable
from sft_kit.manifest import MANIFEST_FILE, set_aside, write_folder

RUN = "a" * 32
OTHER = "b" * 32
FILES = {
    "adapter_model.safetensors": 4000, "optimizer.pt": 9000, "scheduler.pt": 1400,
    "rng_state.pth": 13000, "trainer_state.json": 900, "adapter_config.json": 700,
}  # fmt: skip
"""What a checkpoint of an adapter holds beside its manifest, and about how many bytes."""


def write_checkpoint(folder: Path, run: str = RUN) -> Path:
    def write(stage: Path) -> None:
        for name, num_bytes in FILES.items():
            draw = random.Random(f"{folder.name} {name}")
            (stage / name).write_bytes(draw.randbytes(num_bytes))

    write_folder(folder, write, run)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with checkpoints 2, 4 and 10."""
    for step in (2, 4, 10):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    return tmp_path


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


MUTATIONS: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink, "cut off": cut, "zeros": zero, "changed": flip_one_bit,
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("name", [*FILES, MANIFEST_FILE])
def test_every_mutation_of_every_file_is_named_and_the_one_before_is_taken(
    run: Path, name: str, mutation: str
):
    newest = run / "checkpoint-10"
    MUTATIONS[mutation](newest / name)
    found, skipped = newest_checkpoint(run, RUN)
    assert found == run / "checkpoint-4"
    state = "changed" if mutation == "zeros" else mutation
    if name == MANIFEST_FILE and mutation != "missing":
        state = "damaged"
    assert skipped == [f"{newest} was passed over: {name} is {state}"]


def test_the_newest_is_the_one_of_the_highest_step(run: Path):
    assert newest_checkpoint(run, RUN) == (run / "checkpoint-10", [])
    assert [folder.name for folder in list_checkpoints(run)] == [
        "checkpoint-10", "checkpoint-4", "checkpoint-2",
    ]  # fmt: skip


def test_a_checkpoint_of_an_earlier_run_in_a_reused_folder_is_never_taken(run: Path):
    write_checkpoint(run / "checkpoint-90", OTHER)
    found, skipped = newest_checkpoint(run, RUN)
    assert found == run / "checkpoint-10"
    assert skipped == [
        f"{run / 'checkpoint-90'} was passed over: it is of run bbbbbbbb, not of run aaaaaaaa "
        "which stands in run.yaml"
    ]
    assert newest_checkpoint(run)[0] == run / "checkpoint-90"


def test_a_checkpoint_without_a_manifest_is_not_resumed(run: Path):
    (run / "checkpoint-10" / MANIFEST_FILE).unlink()
    assert why_not_resumable(run / "checkpoint-10") == ["manifest.json is missing"]


def test_a_file_that_a_library_would_load_and_no_run_wrote_is_named(run: Path):
    (run / "checkpoint-10" / "pytorch_model.bin").write_bytes(b"evil")
    (run / "checkpoint-10" / "notes.txt").write_text("mine")
    assert why_not_resumable(run / "checkpoint-10", RUN) == ["pytorch_model.bin is not of the run"]


def test_every_one_that_is_passed_over_is_told_and_none_may_be_left(run: Path):
    for step in (2, 4, 10):
        (run / f"checkpoint-{step}" / "scheduler.pt").unlink()
    found, skipped = newest_checkpoint(run, RUN)
    assert found is None
    assert [line.partition(" was passed over")[0] for line in skipped] == [
        str(run / f"checkpoint-{step}") for step in (10, 4, 2)
    ]


def test_other_folders_and_files_are_no_checkpoints(tmp_path: Path):
    for name in ("checkpoint-x", "checkpoint-", "checkpoint-5-old", "my-checkpoint-7",
                 ".checkpoint-8.part", ".checkpoint-9.gone"):  # fmt: skip
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    found, skipped = newest_checkpoint(tmp_path, RUN)
    assert found is None
    assert skipped == [f"{tmp_path / 'checkpoint-9'} was passed over: manifest.json is missing"]


def test_one_that_was_set_aside_for_its_heir_counts_behind_it(run: Path):
    newest = run / "checkpoint-10"
    shutil.copytree(newest, set_aside(newest))
    assert newest_checkpoint(run, RUN)[0] == newest
    (newest / "optimizer.pt").unlink()
    assert newest_checkpoint(run, RUN)[0] == set_aside(newest)
    shutil.rmtree(newest)
    assert newest_checkpoint(run, RUN)[0] == set_aside(newest)


def test_a_folder_that_does_not_exist_has_no_checkpoint(tmp_path: Path):
    assert newest_checkpoint(tmp_path / "nothing", RUN) == (None, [])


def test_what_is_found_is_described(run: Path):
    whole = examine(run / "checkpoint-10", RUN)
    assert (whole.step, whole.problems, whole.num_bytes) == (10, (), sum(FILES.values()))
    (run / "checkpoint-10" / MANIFEST_FILE).unlink()
    assert examine(run / "checkpoint-10", RUN).num_bytes == 0


def test_looking_changes_nothing(run: Path):
    def snapshot() -> dict[str, str]:
        files = [path for path in run.rglob("*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = snapshot()
    newest_checkpoint(run, RUN)
    assert snapshot() == before
