import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft_kit.errors import CheckpointError
from sft_kit.run_record import (
    RUN_FILE,
    installed_versions,
    read_record,
    source_commit,
    write_record,
)

RECORD: dict[str, object] = {
    "status": "running",
    "settings": {"train": {"learning_rate": 2e-4, "output_dir": "runs/x"}, "adapter": None},
    "notes": ["device: cpu (2 cores, no GPU found)", "格式：alpaca"],
    "seconds": 1.5,
}
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path):
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD
    assert list(read_record(tmp_path)) == list(RECORD), "the order is the writer's"
    assert [path.name for path in tmp_path.iterdir()] == [RUN_FILE]


@settings(
    deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=VALUE)
def test_any_value_is_read_back_as_it_was_written(tmp_path: Path, value: object):
    record = {"status": "running", "settings": {}, "value": value}
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


@pytest.mark.parametrize(
    "text", ["no", "yes", "on", "2e-4", "1e3", "0x10", "0o7", "null", "~", "1:30", "2026-11-22",
             "a: b", "- x", "#", "", " ", "你好", "\x07", "\n", "line\nline", "'", '"']
)  # fmt: skip
def test_text_that_looks_like_something_else_stays_text(tmp_path: Path, text: str):
    record = {"status": "running", "settings": {"x": {"value": text}}}
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


def test_another_yaml_library_reads_the_same(tmp_path: Path):
    write_record(tmp_path, RECORD)
    found = yaml.safe_load((tmp_path / RUN_FILE).read_text(encoding="utf-8"))
    assert found["notes"] == RECORD["notes"]
    assert found["settings"]["train"]["output_dir"] == "runs/x"
    assert float(found["settings"]["train"]["learning_rate"]) == 2e-4


def test_a_failed_write_leaves_the_earlier_record(tmp_path: Path):
    write_record(tmp_path, RECORD)
    with pytest.raises(Exception, match="represent"):
        write_record(tmp_path, RECORD | {"status": "finished", "bad": object()})
    assert read_record(tmp_path) == RECORD


def corrupt(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text, encoding="utf-8")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no YAML": corrupt("status: [1, 2"),
    "not utf-8": lambda path: path.write_bytes(b"status: \xff\xfe\n"),
    "empty": corrupt(""),
    "a list": corrupt("- status\n- settings\n"),
    "without settings": corrupt("status: finished\n"),
    "without status": corrupt("settings: {}\n"),
    "settings a text": corrupt("status: finished\nsettings: none of them\n"),
    "a date that is none": corrupt("status: finished\nsettings: {x: 2026-99-99}\n"),
    "a key twice": corrupt("status: finished\nstatus: running\nsettings: {}\n"),
    "a control character": corrupt("status: \x07\nsettings: {}\n"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_record_is_a_checkpoint_error(tmp_path: Path, damage: Callable[[Path], object]):
    damage(tmp_path / RUN_FILE)
    with pytest.raises(CheckpointError, match=r"run\.yaml"):
        read_record(tmp_path)


def test_a_record_cut_anywhere_is_read_or_refused_and_never_a_traceback(tmp_path: Path):
    write_record(tmp_path, RECORD)
    whole = (tmp_path / RUN_FILE).read_bytes()
    refused = 0
    for length in range(len(whole)):
        (tmp_path / RUN_FILE).write_bytes(whole[:length])
        try:
            read_record(tmp_path)
        except CheckpointError:
            refused += 1
    assert refused > len("status: running")


def test_a_folder_without_record_and_no_folder_are_told_apart(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"has no run\.yaml"):
        read_record(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_record(tmp_path / "nothing")


def test_versions_are_those_of_the_installed_packages():
    found = installed_versions()
    for package in ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets"):
        assert found[package] == version(package)


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_is_named_and_changes_to_it_are_told(tmp_path: Path):
    git(tmp_path, "init", "-q")
    (tmp_path / "recipe.py").write_text("1\n")
    git(tmp_path, "add", "recipe.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert len(commit) == 40
    assert source_commit(tmp_path) == commit
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag moves, a commit does not")
    assert source_commit(tmp_path) == commit
    (tmp_path / "recipe.py").write_text("2\n")
    assert source_commit(tmp_path) == f"{commit}-dirty"


def test_outside_a_git_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert source_commit(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_commit(Path(__file__).parent) is None
