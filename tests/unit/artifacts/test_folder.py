"""The folder of a run: refused before anything is loaded, named as a shell takes it."""

import shlex
from pathlib import Path

import pytest

from sft_kit.artifacts.folder import RunFolder, open_run
from sft_kit.config import Config, Resolved
from sft_kit.errors import CheckpointError


def config_of(output_dir: Path) -> Config[object]:
    sections: dict[str, dict[str, object] | None] = {"train": {"output_dir": str(output_dir)}}
    resolved = Resolved(Path(__file__), sections, origins={})
    return Config(None, resolved, resume=False, overwrite=False, notes=[])


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
