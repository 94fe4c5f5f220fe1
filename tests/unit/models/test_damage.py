"""A folder that does not load is explained by what is in it."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from sft_kit.errors import CheckpointError
from sft_kit.models.base import load_causal_lm, load_tokenizer
from sft_kit.settings import ModelSettings

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def folder(tmp_path: Path, chatglm_fixtures: Path) -> Path:
    return Path(shutil.copytree(chatglm_fixtures / "chatglm2_tiny_int4", tmp_path / "base"))


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_causal_lm(ModelSettings(str(folder)))
    return str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin"])
def test_a_git_lfs_pointer_is_called_one(folder: Path, name: str):
    (folder / name).write_text(POINTER)
    message = refused(folder)
    assert f"found {name}, which only points to the file" in message
    assert "git lfs pull" in message


def test_a_pickle_that_would_run_something_is_refused_and_nothing_is_run(folder: Path):
    mark = folder / "was_run"
    torch.save({"weight": torch.zeros(1), "trap": Trap(mark)}, folder / "pytorch_model.bin")
    message = refused(folder)
    assert "holds more than tensors (posix.system); nothing of it was run" in message
    assert "weights_only" not in message  # torch would say how to run it after all
    assert not mark.exists()
    with (folder / "direct.pkl").open("wb") as file:
        pickle.dump(Trap(mark), file)
    pickle.loads((folder / "direct.pkl").read_bytes())
    assert mark.exists(), "the trap would have sprung"


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("chatglm2_tiny_int4", "quantization_bit", 0),
        ("chatglm2_tiny_int4", "quantization_bit", 8),
        ("chatglm2_tiny_fp16", "quantization_bit", 4),
        ("chatglm2_tiny_fp16", "ffn_hidden_size", 96),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_called_that(
    tmp_path: Path, chatglm_fixtures: Path, name: str, field: str, value: int
):
    folder = Path(shutil.copytree(chatglm_fixtures / name, tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    message = refused(folder)
    assert "config.json" in message
    assert "take config.json from where the weights come from" in message
    assert "ignore_mismatched_sizes" not in message


def test_parts_without_their_index_are_named(tmp_path: Path, chatglm_fixtures: Path):
    folder = Path(shutil.copytree(chatglm_fixtures / "chatglm2_tiny_fp16", tmp_path / "base"))
    (folder / "pytorch_model.bin.index.json").unlink()
    message = refused(folder)
    assert "found parts of the weights without pytorch_model.bin.index.json" in message


def test_a_truncated_file_asks_for_a_new_copy(folder: Path):
    weights = folder / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "copy it again" in refused(folder)


@pytest.mark.usefixtures("offline")
def test_without_network_a_chatglm_is_pointed_to_the_embedded_one():
    with pytest.raises(CheckpointError, match="checkpoint=data/checkpoints/tiny-chatglm2-int4"):
        load_tokenizer(ModelSettings("THUDM/chatglm2-6b-int4"))
    with pytest.raises(CheckpointError, match="checkpoint=data/checkpoints/tiny-gpt2"):
        load_tokenizer(ModelSettings("openai-community/gpt2"))
