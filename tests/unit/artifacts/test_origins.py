"""Bases and data are named as others know them: an id on the Hub, or a folder's own name."""

from pathlib import Path

import pytest

from sft_kit.artifacts.origins import (
    base_of_run,
    data_of_run,
    data_set_of_run,
    name_of_checkpoint,
)
from sft_kit.artifacts.public_record import public_record
from sft_kit.run_record import write_record


@pytest.mark.parametrize(
    ("checkpoint", "folder", "name", "is_on_hub"),
    [
        ("gpt2", "/c/models--gpt2/other", "gpt2", True),
        ("org/model", None, "org/model", True),
        ("org/model", "/c/hub/models--org--model/snapshots/0af3", "org/model", True),
        ("/c/hub/models--org--model/snapshots/0af3", None, "org/model", True),
        ("bases/tiny", "/home/x/bases/tiny", "tiny", False),
        ("../bases/tiny", "/home/x/bases/tiny", "tiny", False),
        ("/home/x/tiny", "/home/x/tiny", "tiny", False),
    ],
)
def test_a_base_is_named_by_its_id_or_by_its_folder(checkpoint, folder, name, is_on_hub):
    assert name_of_checkpoint(checkpoint, folder) == (name, is_on_hub)


def test_a_folder_that_says_where_it_is_from_gives_its_id(tmp_path: Path):
    pulled, plain, told = (tmp_path / name for name in ("pulled", "plain", "told"))
    for folder in (pulled, plain, told):
        folder.mkdir()
    write_record(pulled, {"status": "finished", "settings": {}, "hub": {"repo": "me/run"}})
    (plain / "config.json").write_text('{"_name_or_path": "/somewhere/else"}')
    (told / "config.json").write_text('{"_name_or_path": "org/model"}')
    assert name_of_checkpoint(str(pulled)) == ("me/run", True)
    assert name_of_checkpoint(str(plain)) == ("plain", False)
    assert name_of_checkpoint(str(told)) == ("told", False), "its weights may be tuned ones"


def test_a_record_that_was_pulled_keeps_what_its_base_was():
    for is_on_hub in (True, False):
        base = {"name": "tiny", "on_hub": is_on_hub}
        record = {"settings": {"model": {"checkpoint": "tiny"}}, "base": base}
        assert base_of_run(record) == ("tiny", is_on_hub)
        assert public_record(record, samples=False)["base"] == base


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: cc-by-4.0\ntask: x\n---\nlicence: MIT\n", "cc-by-4.0"),
        ("Everything here has its licence (Apache-2.0).\nMore.", "Apache-2.0"),
        ("License: MIT for a, CC-BY-4.0 for b", ""),
        ("It admits nothing.", ""),
        (None, ""),
    ],
)
def test_the_licence_of_data_is_what_its_own_card_says(tmp_path: Path, readme, licence):
    (tmp_path / "rows.jsonl").write_text("{}")
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    told = data_of_run({"path": str(tmp_path / "rows.jsonl")})
    assert told.pop("data") == "`rows.jsonl`"
    assert told == ({"licence of the data": licence} if licence else {})


def test_a_data_set_of_the_hub_is_linked():
    assert data_set_of_run({"path": "org/rows"}) == "org/rows"
    assert data_of_run({"path": "org/rows"})["data"] == (
        "[org/rows](https://huggingface.co/datasets/org/rows)"
    )
    for path in ("data/rows.jsonl", "/x/rows", None):
        assert data_set_of_run({"path": path}) == ""


@pytest.mark.parametrize(
    ("written", "public"),
    [
        ("/shared/Alice Data/eval.jsonl", "eval.jsonl"),
        ("my data/rows.jsonl", "rows.jsonl"),
        ("~/My Models/base", "base"),
        ("C:\\My Data\\rows", "rows"),
        ("Is 1 / 2 a half?", "Is 1 / 2 a half?"),
        ("/imagine a cat", "/imagine a cat"),
        ("name an input/output device", "name an input/output device"),
    ],
)
def test_a_path_with_a_space_is_one_and_a_sentence_is_none(written, public):
    record = {"settings": {"data": {"path": written}}}
    assert public_record(record, samples=True)["settings"] == {"data": {"path": public}}


def test_every_path_in_a_record_becomes_its_last_name():
    settings = {
        "model": {"checkpoint": "org/model"},
        "data": {"path": "/home/x/rows.jsonl", "eval_path": "~/held/out.csv", "note": "a / b"},
        "reward": {"functions": {"/home/x/f.py:score": 1.0}, "model": "../runs/reward"},
        "train": {"output_dir": "runs/deep/run", "hub_model_id": "me/x", "logging_dir": "C:\\logs"},
        "adapter": None,
    }
    public = public_record({"settings": settings, "origins": {"a": "b"}}, samples=True)
    assert public["settings"] == {
        "model": {"checkpoint": "org/model"},
        "data": {"path": "rows.jsonl", "eval_path": "out.csv", "note": "a / b"},
        "reward": {"functions": {"f.py:score": 1.0}, "model": "reward"},
        "train": {"output_dir": "run", "logging_dir": "logs"},
        "adapter": None,
    }
