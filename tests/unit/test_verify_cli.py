"""`sft-kit verify`: every checkpoint and the final weights against their digests."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sft_kit.cli import app
from sft_kit.errors import CheckpointError
from sft_kit.manifest import write_folder
from sft_kit.run_record import write_record

RUN = "a" * 32
WEIGHTS = b"weights"


def write_run(folder: Path, status: str = "running", run: str = RUN) -> Path:
    folder.mkdir()
    for step in (4, 8, 12):
        write_folder(folder / f"checkpoint-{step}", write_files, run)
    record: dict[str, object] = {"status": status, "settings": {}, "run_id": RUN}
    if status == "finished":
        (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
        digest = hashlib.sha256(WEIGHTS).hexdigest()
        record["weights"] = {"adapter_model.safetensors": digest}
    write_record(folder, record)
    return folder


def write_files(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"12345")


def verify(*words: str) -> Result:
    return CliRunner().invoke(app, ["verify", *words])


def test_a_whole_run_is_told_with_the_checkpoint_that_resume_takes(tmp_path: Path):
    done = verify(str(write_run(tmp_path / "run")))
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert [line.split() for line in lines[:3]] == [
        [f"checkpoint-{step}", "5", "bytes", "whole"] for step in (12, 8, 4)
    ]
    assert lines[3:] == ["--resume goes on from checkpoint-12"]


def test_each_damage_is_named_and_ends_with_exit_code_2(tmp_path: Path):
    run = write_run(tmp_path / "run")
    (run / "checkpoint-12" / "optimizer.pt").write_bytes(b"12344")
    write_folder(run / "checkpoint-90", write_files, "b" * 32)
    done = verify(str(run))
    assert done.exit_code == 2
    assert "optimizer.pt is changed" in done.output
    assert "it is of run bbbbbbbb, not of run aaaaaaaa" in done.output
    assert done.output.splitlines()[-1] == "--resume goes on from checkpoint-8"


def test_with_nothing_whole_resume_begins_anew(tmp_path: Path):
    run = write_run(tmp_path / "run")
    for step in (4, 8, 12):
        (run / f"checkpoint-{step}" / "optimizer.pt").unlink()
    done = verify(str(run))
    assert done.exit_code == 2
    assert done.output.splitlines()[-1] == ("--resume goes on from step 0: no checkpoint is whole")


@pytest.mark.parametrize(
    ("content", "said"), [(WEIGHTS, "whole"), (b"weightz", "changed"), (None, "missing")]
)
def test_the_final_weights_are_compared_too(tmp_path: Path, content: bytes | None, said: str):
    run = write_run(tmp_path / "run", "finished")
    path = run / "adapter_model.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    done = verify(str(run))
    assert done.exit_code == (0 if said == "whole" else 2)
    (line,) = [line for line in done.output.splitlines() if line.startswith(path.name)]
    assert line.split()[-1] == said
    assert done.output.splitlines()[-1].endswith("has finished: there is nothing to resume")


def test_json_says_the_same(tmp_path: Path):
    run = write_run(tmp_path / "run")
    (run / "checkpoint-12" / "optimizer.pt").unlink()
    done = verify(str(run), "--json")
    assert done.exit_code == 2
    found = json.loads(done.output)
    assert (found["status"], found["resume"], found["whole"]) == ("running", "checkpoint-8", False)
    assert found["checkpoints"][0] == {
        "name": "checkpoint-12", "step": 12, "bytes": 5, "problems": ["optimizer.pt is missing"],
    }  # fmt: skip


def test_a_folder_that_is_no_run_is_refused_in_words(tmp_path: Path):
    done = verify(str(tmp_path))
    assert isinstance(done.exception, CheckpointError)
    assert "has no run.yaml" in str(done.exception)


def test_it_answers_without_torch(tmp_path: Path):
    run = write_run(tmp_path / "run")
    script = (
        "import sys\nfrom sft_kit.cli import main\nsys.argv = ['sft-kit', 'verify', sys.argv[1]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    assert not end.code, end.code\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(run)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
