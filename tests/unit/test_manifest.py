import hashlib
import json
import os
from pathlib import Path

import pytest

from sft_kit.manifest import (
    MANIFEST_FILE,
    broken_parts,
    read_manifest,
    remove_folder,
    set_aside,
    tidy_up,
    write_folder,
)

FILES = {"a.bin": b"12345", "empty": b"", "deep/b.txt": b"text\n"}


def write_files(folder: Path) -> None:
    (folder / "deep").mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoint-12"
    write_folder(folder, write_files, run="r" * 32)
    return folder


def test_a_written_folder_is_whole_and_lists_every_file_with_its_digest(written: Path):
    listed = json.loads((written / MANIFEST_FILE).read_text())
    assert listed["run"] == "r" * 32
    assert listed["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in FILES.items()
    }
    assert broken_parts(written) == []
    assert [path.name for path in written.parent.iterdir()] == [written.name]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "a.bin").unlink(), "a.bin is missing"),
        (lambda folder: (folder / "a.bin").write_bytes(b"1234"), "a.bin is cut off"),
        (lambda folder: (folder / "a.bin").write_bytes(b"12346"), "a.bin is changed"),
        (lambda folder: (folder / "empty").write_bytes(b"x"), "empty is changed"),
        (lambda folder: (folder / "deep" / "b.txt").unlink(), "deep/b.txt is missing"),
        (lambda folder: (folder / MANIFEST_FILE).unlink(), "manifest.json is missing"),
        (lambda folder: (folder / MANIFEST_FILE).write_text("{}"), "manifest.json is damaged"),
        (lambda folder: (folder / MANIFEST_FILE).write_text("[1]"), "manifest.json is damaged"),
        (lambda folder: (folder / "a.bin").write_bytes(b"\0" * 5), "a.bin is changed"),
        (lambda folder: (folder / "a.bin").write_bytes(b"123456"), "a.bin is changed"),
        (
            lambda folder: (folder / "scaler.pt").write_bytes(b"evil"),
            "scaler.pt is not of the run",
        ),
    ],
)
def test_each_damage_is_named(written: Path, damage, said: str):
    damage(written)
    assert broken_parts(written) == [said]


def test_a_manifest_cut_anywhere_is_seen(written: Path):
    whole = (written / MANIFEST_FILE).read_bytes()
    for size in range(len(whole)):
        (written / MANIFEST_FILE).write_bytes(whole[:size])
        assert broken_parts(written) == ["manifest.json is damaged"]


def test_a_flipped_bit_in_a_manifest_is_seen(written: Path):
    whole = (written / MANIFEST_FILE).read_bytes()
    for bit in range(0, 8 * len(whole), 7):  # each place in a byte, each byte
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (written / MANIFEST_FILE).write_bytes(flipped)
        assert broken_parts(written) == ["manifest.json is damaged"], bit


def test_a_manifest_cannot_name_a_file_outside_its_folder(written: Path):
    outside = written.parent / "secret"
    outside.write_text("x")
    digest = hashlib.sha256(b"x").hexdigest()
    for name in ("../secret", str(outside), "deep/../../secret", ""):
        body = {"version": 1, "run": "", "files": {name: {"bytes": 1, "sha256": digest}}}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        body["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        (written / MANIFEST_FILE).write_text(json.dumps(body))
        assert read_manifest(written) is None
        assert broken_parts(written) == ["manifest.json is damaged"]


def test_an_empty_folder_is_not_whole(tmp_path: Path):
    write_folder(tmp_path / "empty", lambda _: None)
    assert broken_parts(tmp_path / "empty") == ["manifest.json lists no file"]


def test_a_folder_is_never_half_deleted_under_its_name(
    written: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(path: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("sft_kit.manifest.shutil.rmtree", fail)
    with pytest.raises(ZeroDivisionError):
        remove_folder(written)
    assert [path.name for path in written.parent.iterdir()] == [".checkpoint-12.gone"]
    monkeypatch.undo()
    tidy_up(written.parent, "checkpoint-*")
    assert list(written.parent.iterdir()) == []


def test_all_damaged_files_are_named_and_a_foreign_file_does_not_count(written: Path):
    (written / "notes.txt").write_text("mine")
    assert broken_parts(written) == []
    (written / "a.bin").unlink()
    (written / "empty").write_text("x")
    assert broken_parts(written) == ["a.bin is missing", "empty is changed"]


def test_a_folder_that_stands_there_is_replaced_by_the_new_one_alone(written: Path):
    write_folder(written, lambda folder: (folder / "new").write_bytes(b"new") and None)
    assert sorted(path.name for path in written.iterdir()) == [MANIFEST_FILE, "new"]
    assert broken_parts(written) == []
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_an_error_while_writing_leaves_the_old_folder_and_nothing_beside_it(written: Path):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_folder(written, fail)
    assert broken_parts(written) == []
    assert (written / "a.bin").read_bytes() == b"12345"
    assert [path.name for path in written.parent.iterdir()] == [written.name]


def test_every_file_and_folder_reaches_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_folder(tmp_path / "run" / "out", write_files)
    before, after = events[: events.index("rename")], events[events.index("rename") + 1 :]
    assert before.index(MANIFEST_FILE) > max(map(before.index, ("a.bin", "empty", "b.txt")))
    assert sorted(before) == sorted(["a.bin", "empty", "deep", "b.txt", MANIFEST_FILE, ".out.part"])
    assert after == ["run"]


def test_what_a_killed_process_left_is_removed_or_brought_back(written: Path):
    parent = written.parent
    written.rename(set_aside(written))
    (parent / ".checkpoint-7.part").mkdir()
    (parent / ".other.part").mkdir()
    tidy_up(parent, "checkpoint-*")
    assert broken_parts(written) == []
    assert {path.name for path in parent.iterdir()} == {"checkpoint-12", ".other.part"}
    set_aside(written).mkdir()
    (set_aside(written) / "older").write_text("x")
    tidy_up(parent, "checkpoint-*")
    assert broken_parts(written) == []
    assert {path.name for path in parent.iterdir()} == {"checkpoint-12", ".other.part"}
