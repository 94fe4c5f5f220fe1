"""The measured process: what it refuses is told, and nothing of it stays."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sft_kit.errors import SftKitError
from sft_kit.plan import running
from sft_kit.plan.running import measure

RECIPE = '''"""A recipe."""


def main() -> None:
    """Do it."""
    {body}
'''


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a plan makes its folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def write_recipe(folder: Path, body: str) -> Path:
    path = folder / "recipe.py"
    path.write_text(RECIPE.format(body=body), encoding="utf-8")
    return path


def test_a_recipe_with_a_loop_of_its_own_is_refused_in_words(
    tmp_path: Path, temporary: Path
) -> None:
    with pytest.raises(SftKitError, match=r"recipe\.py trains in a loop of its own"):
        measure(write_recipe(tmp_path, "pass"), [])
    assert not list(temporary.iterdir())


def test_a_recipe_that_breaks_is_told_with_its_last_words(tmp_path: Path, temporary: Path) -> None:
    recipe = write_recipe(tmp_path, "pass")
    recipe.write_text("raise ValueError('no such thing')\n", encoding="utf-8")
    with pytest.raises(SftKitError, match=r"recipe\.py failed .*ValueError: no such thing"):
        measure(recipe, [])
    assert not list(temporary.iterdir())


def test_ctrl_c_ends_the_measured_process_and_takes_its_folder_away(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    real = subprocess.Popen

    class Noted(real):  # type: ignore[type-arg,misc,valid-type]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            started.append(self.pid)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setattr(running.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure(write_recipe(tmp_path, "pass"), [])
    assert len(started) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)
    assert not list(temporary.iterdir())


def test_the_measured_process_ends_when_the_one_that_waits_is_gone(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "pass")
    recipe.write_text("import time\ntime.sleep(60)\n", encoding="utf-8")
    folder = tmp_path / "plan"
    folder.mkdir()
    command = [sys.executable, "-m", "sft_kit.plan.child", str(recipe)]
    child = subprocess.Popen(
        [*command, str(folder / "figures.jsonl"), str(folder)], stdin=subprocess.PIPE
    )
    assert child.stdin is not None
    child.stdin.close()  # as the system does with the files of a process that was killed
    began = time.monotonic()
    assert child.wait(timeout=50) == 1
    assert time.monotonic() - began < 50
    assert not folder.exists()
