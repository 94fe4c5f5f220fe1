"""The folder of a run: refused before anything is loaded, named as a shell takes it."""

import shlex
from pathlib import Path

import pytest

from sft_kit.artifacts.folder import RunFolder, open_run
from sft_kit.config import Config, Resolved
from sft_kit.errors import CheckpointError
from sft_kit.manifest import write_folder
from sft_kit.run_record import read_record


def config_of(output_dir: Path, *, resume: bool = False, overwrite: bool = False) -> Config[object]:
    sections: dict[str, dict[str, object] | None] = {"train": {"output_dir": str(output_dir)}}
    resolved = Resolved(Path(__file__), sections, origins={})
    return Config(None, resolved, resume=resume, overwrite=overwrite, notes=[])


def test_a_folder_in_which_nothing_can_be_made_is_refused_at_once(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(CheckpointError) as caught:
        open_run(config_of(file / "run"))
    assert str(caught.value) == (
        f"train.output_dir={file / 'run'} can't be written: {file} does not allow it: "
        "Not a directory"
    )


def test_opening_a_run_leaves_its_place_as_it_was(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        assert open_run(config_of(tmp_path / name)).path == tmp_path / name
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_resuming_where_nothing_is_begins_at_step_0_and_says_so(tmp_path: Path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".run.yaml.part").write_text("stat")
    for name in ("new", "empty", "killed"):
        run = open_run(config_of(tmp_path / name, resume=True))
        assert run.checkpoint is None
        said = capsys.readouterr().out
        assert said == f"nothing to resume in {tmp_path / name}: starting at step 0\n"
        run.begin()
        assert read_record(tmp_path / name)["status"] == "running"


def begun(folder: Path, **how: bool) -> str:
    """Begin a run and give its id."""
    open_run(config_of(folder, **how)).begin()
    return str(read_record(folder)["run_id"])


def test_a_run_keeps_its_id_when_it_is_resumed_and_a_new_one_has_another(tmp_path: Path):
    first = begun(tmp_path / "run")
    assert len(first) == 32
    assert begun(tmp_path / "run", resume=True) == first
    assert begun(tmp_path / "run", overwrite=True) != first
    assert begun(tmp_path / "other") != first


def test_the_checkpoints_of_a_run_that_was_overwritten_by_hand_are_passed_over(
    tmp_path: Path, capsys
):
    """Another run's checkpoint, with a higher step, stands in the folder."""
    first = begun(tmp_path / "run")
    for step, run in ((3, first), (9, "b" * 32)):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        write_folder(folder, lambda stage: (stage / "x").write_text("x") and None, run)
    run_folder = open_run(config_of(tmp_path / "run", resume=True))
    assert run_folder.checkpoint == str(tmp_path / "run" / "checkpoint-3")
    said = capsys.readouterr().out
    assert "checkpoint-9 was passed over: it is of run bbbbbbbb" in said


def test_an_overwriting_that_was_killed_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    begun(folder)
    for name in ("checkpoint-1", "value"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("x")
    monkeypatch.setattr("sft_kit.artifacts.folder.shutil.rmtree", killed)
    with pytest.raises(ZeroDivisionError):
        begun(folder, overwrite=True)
    monkeypatch.undo()
    begun(folder, overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["run.yaml"]


def killed(*_: object, **__: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("record", "command"),
    [
        ({"labels": {}}, "classify"),
        ({"reward_model": {}}, "score"),
        ({"pretraining": {}}, "generate"),
        ({"template": {}}, "chat"),
    ],
)
def test_the_command_at_the_end_can_be_copied_into_a_shell(record, command, capsys):
    path = Path("runs/it's my $first; run")
    RunFolder(path, None, record, 0.0).announce_end({})
    line = capsys.readouterr().out.splitlines()[-1]
    words = shlex.split(line.partition(": ")[2])
    assert words[:3] == ["sft-kit", command, str(path)]
