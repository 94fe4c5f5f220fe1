"""A checkpoint named later takes the place of a new model that was described before."""

import pytest

from sft_kit.config import read_config
from sft_kit.errors import ConfigError

RECIPE = """\
from dataclasses import dataclass
from sft_kit.settings import PretrainModelSettings

@dataclass
class Settings:
    model: PretrainModelSettings
"""
NEW = "model:\n  tokenizer: owner/tokenizer\n  architecture: bert\n  config: {hidden_size: 8}\n"
OLD = "model:\n  checkpoint: owner/model\n  config: {hidden_size: 9}\n"


@pytest.fixture
def model_of(tmp_path):
    def model_of(*overrides, files=(NEW,)):
        recipe = tmp_path / "pretrain.py"
        recipe.write_text(RECIPE, encoding="utf-8")
        paths = [tmp_path / f"{number}.yaml" for number, _ in enumerate(files)]
        for path, text in zip(paths, files, strict=True):
            path.write_text(text, encoding="utf-8")
        resolved = read_config(recipe, paths, overrides)
        assert resolved.sections["model"] is not None
        keys = ("checkpoint", "tokenizer", "architecture", "config")
        return tuple(resolved.sections["model"][key] for key in keys), resolved.notes

    return model_of


def test_a_checkpoint_on_the_command_line_drops_the_new_model_of_the_file(model_of):
    model, notes = model_of("model.checkpoint=owner/model")
    assert model == ("owner/model", None, None, {})
    (note,) = notes
    assert note.startswith("model.checkpoint (command line) takes the place of tokenizer, ")
    assert note.endswith("0.yaml:1")


@pytest.mark.parametrize("order", [1, -1])
def test_fields_of_the_command_line_belong_to_the_checkpoint_named_there(model_of, order):
    words = ["model.checkpoint=owner/model", "model.config.hidden_size=3"]
    model, _ = model_of(*words[::order])
    assert model == ("owner/model", None, None, {"hidden_size": 3})


def test_a_second_file_can_name_a_checkpoint_or_a_new_model(model_of):
    assert model_of(files=(NEW, OLD))[0] == ("owner/model", None, None, {"hidden_size": 9})
    assert model_of(files=(OLD, NEW))[0] == (None, "owner/tokenizer", "bert", {"hidden_size": 8})


@pytest.mark.parametrize("word", ["model.tokenizer=owner/other", "model.checkpoint=null"])
def test_another_tokenizer_keeps_the_new_model_as_it_is(model_of, word):
    (checkpoint, _, architecture, config), notes = model_of(word)
    assert (checkpoint, architecture, config, notes) == (None, "bert", {"hidden_size": 8}, ())


def test_both_in_one_place_are_refused(model_of):
    both = "model:\n  tokenizer: owner/tokenizer\n  checkpoint: owner/model\n"
    with pytest.raises(ConfigError, match=r"together with model\.checkpoint"):
        model_of(files=(both,))
