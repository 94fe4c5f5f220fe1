"""Whether a place can be written, tried before anything costs time."""

import os
import tempfile
from pathlib import Path

import pytest

from sft_kit.config.places import why_not_writable


def test_a_folder_and_one_that_is_to_be_made_can_be_written_and_stay_as_they_were(tmp_path: Path):
    assert why_not_writable(tmp_path) == ""
    assert why_not_writable(tmp_path / "to" / "be" / "made") == ""
    assert list(tmp_path.iterdir()) == []


def test_below_a_file_nothing_can_be_written(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("x")
    assert why_not_writable(file / "out") == f"{file} does not allow it: Not a directory"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux's /proc")
def test_where_root_has_all_rights_and_nothing_can_be_made_the_system_says_why():
    assert why_not_writable(Path("/proc/x")).startswith("/proc does not allow it: ")


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    found = why_not_writable(tmp_path / "out")
    assert found == f"{tmp_path} does not allow it: No space left on device"
