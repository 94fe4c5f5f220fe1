"""Mistakes that make no error are planted in a copy, one at a time; the project's tests must fail.

`pytest -m slow -rP tests/faults/test_planted_bugs.py` prints which test caught what.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Bug:
    """A mistake, and who must notice.

    Attributes:
        file: In `sft_kit`.
        right: What stands there, once.
        wrong: What is put in its place.
        tests: Files with the tests, or single tests.
        chosen: Which of their tests, as for pytest's `-k`.
    """

    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]
    chosen: str = ""


BUGS = {
    "labels masked by id": Bug(
        "data/collators.py",
        "    return batch\n\n\ndef pad_labelled",
        '    batch["labels"][batch["labels"] == pad_token_id] = IGNORED\n'
        "    return batch\n\n\ndef pad_labelled",
        ("unit/data/test_collators.py",),
    ),
    "mean of means": Bug(
        "objectives/language.py",
        "    return token_nll(logits, labels).sum() / num_labels",
        "    return token_nll(logits, labels).sum() / labels[:, 1:].ne(IGNORED).sum()",
        ("unit/objectives/test_language.py",),
    ),
    "no modules_to_save": Bug(
        "models/head_adapters.py",
        "        config.modules_to_save = [",
        "        _ = [",
        ("unit/models/test_head_adapters.py",),
        "head",
    ),
    "a save that is not atomic": Bug(
        "manifest.py",
        "    os.replace(stage, folder)",
        "    shutil.copytree(stage, folder)\n    _remove(stage)",
        ("unit/test_manifest.py", "unit/training/test_trainer.py"),
        "disk or kill",
    ),
    "nothing forced to the disk": Bug(
        "manifest.py",
        "        os.fsync(descriptor)",
        "        pass",
        ("unit/test_manifest.py",),
        "disk",
    ),
    "optimizer not resumed": Bug(
        "training/trainer.py",
        "    def _is_complete(self) -> bool:",
        "    def _load_optimizer_and_scheduler(self, checkpoint: object) -> None:\n"
        "        pass\n\n"
        "    def _is_complete(self) -> bool:",
        ("unit/training/test_trainer.py",),
        "straight_one",
    ),
    "padding on the right in replies": Bug(
        "inference/generate.py",
        "    padded = [[pad_token_id] * (width - len(ids)) + ids for ids in prompts]\n"
        "    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]",
        "    padded = [ids + [pad_token_id] * (width - len(ids)) for ids in prompts]\n"
        "    mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in prompts]",
        ("unit/inference/test_generate.py",),
        "fifty_prompts",
    ),
    "no sha256": Bug(
        "manifest.py",
        '        return "" if _digest(path) == sha256 else "changed"',
        '        return "" if _digest(path) else "changed"',
        ("unit/test_manifest.py",),
        "damage",
    ),
    "evaluation draws from training's generators": Bug(
        "training/randomness.py",
        "        restore_random_state(state)\n",
        "        pass\n",
        ("unit/training/test_randomness.py",),
    ),
    "NaN goes into the weights": Bug(
        "training/nonfinite.py",
        "    if findings:",
        "    if not record:",
        ("unit/training/test_nonfinite.py",),
    ),
    "a base known by its weights alone": Bug(
        "models/same_base.py",
        "    if fields:",
        "    if not fields and saved is None:",
        ("unit/models/test_same_base.py",),
    ),
    "the stop token is not learnt": Bug(
        "data/templates.py",
        "    return after[:end]",
        "    return after[: end - len(template.stop_token)]",
        ("unit/data/test_templates.py",),
    ),
    "somebody's code is trusted": Bug(
        "models/base.py",
        "                trust_remote_code=False,",
        "                trust_remote_code=True,",
        ("unit/models/test_base.py",),
        "code",
    ),
    "shards from anywhere": Bug(
        "models/weight_files.py",
        'if Path(name).name != name or name == "..")',
        'if name == "..")',
        ("unit/models/test_weight_files.py",),
    ),
    "pickles are unpickled": Bug(
        "models/tensor_archive.py",
        "def _read(path: Path) -> dict[str, torch.Tensor]:\n",
        "def _read(path: Path) -> dict[str, torch.Tensor]:\n"
        "    return torch.load(path, weights_only=False)\n\n\n"
        "def _read_words(path: Path) -> dict[str, torch.Tensor]:\n",
        ("unit/models/test_tensor_archive.py",),
    ),
    "tokens are pushed": Bug(
        "hub/secrets.py",
        "        if pattern.search(view):",
        "        if pattern.search(b''):",
        ("unit/hub",),
    ),
}


def run_tests(package: Path, bug: Bug) -> tuple[bool, str]:
    """Run a bug's tests against the package in a folder; whether they pass, and what failed."""
    tests = [str(REPOSITORY / "tests" / name) for name in bug.tests]
    words = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu", *tests]
    if bug.chosen:
        words += ["-k", bug.chosen]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", *words],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    found = re.findall(r"^(?:FAILED|ERROR) (\S+)|^_{3,} (\S+) _{3,}$", done.stdout, re.MULTILINE)
    names = [one or other for one, other in found]
    return done.returncode == 0, names[0] if names else ""


def planted(place: Path, bug: Bug | None) -> Path:
    """Copy the package, with a bug."""
    shutil.copytree(REPOSITORY / "sft_kit", place / "sft_kit")
    if bug is not None:
        path = place / "sft_kit" / bug.file
        text = path.read_text(encoding="utf-8")
        assert text.count(bug.right) == 1, f"{bug.file} no longer has this place once"
        path.write_text(text.replace(bug.right, bug.wrong), encoding="utf-8")
    return place


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(tmp_path: Path, name: str):
    bug = BUGS[name]
    passes, caught_by = run_tests(planted(tmp_path, bug), bug)
    print(f"{name:45} {'not caught' if passes else caught_by}")
    assert not passes


def test_the_right_code_passes_the_same_tests(tmp_path: Path):
    package = planted(tmp_path, None)
    failed = {name: run_tests(package, bug) for name, bug in BUGS.items()}
    assert [name for name, (passes, _) in failed.items() if not passes] == []


def test_there_are_at_least_twelve_bugs() -> None:
    assert len(BUGS) >= 12
