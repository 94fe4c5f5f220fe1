"""Which weight files are read, on this machine and in a cache of the Hub."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import GPT2Config, LlamaConfig

from sft_kit.models.base import load_causal_lm, load_config_of
from sft_kit.models.chatglm import ChatGLMForCausalLM
from sft_kit.models.weight_files import WeightFiles, find_weight_files
from sft_kit.settings import ModelSettings

COMMIT = "0" * 40


@pytest.fixture
def chatglm(tmp_path: Path, chatglm_fixtures: Path) -> Path:
    """An original ChatGLM2 folder: two shards of pickles."""
    return shutil.copytree(chatglm_fixtures / "chatglm2_tiny_fp16", tmp_path / "chatglm")


@pytest.fixture
def cached(chatglm: Path) -> Iterator[Path]:
    """The same as a snapshot of a Hub id in the local cache."""
    repository = Path(constants.HF_HUB_CACHE) / "models--someone--chatglm2"
    shutil.copytree(chatglm, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    yield repository / "snapshots" / COMMIT
    shutil.rmtree(repository)


def found(checkpoint: str | Path) -> WeightFiles:
    config = load_config_of(ModelSettings(str(checkpoint)))
    return find_weight_files(str(checkpoint), config, revision=None, local_files_only=True)


def test_pickles_of_chatglm_are_read_where_there_is_nothing_else(chatglm: Path):
    assert found(chatglm) == WeightFiles(str(chatglm), use_safetensors=False)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_safetensors_come_first(chatglm: Path, name: str):
    save_file({"a": torch.zeros(1)}, chatglm / name)
    assert found(chatglm) == WeightFiles(str(chatglm), use_safetensors=True)


@pytest.mark.parametrize("config", [GPT2Config(), LlamaConfig()])
def test_pickles_of_other_families_are_never_read(chatglm: Path, config: GPT2Config | LlamaConfig):
    files = find_weight_files(str(chatglm), config, revision=None, local_files_only=True)
    assert files.use_safetensors


def test_pickles_in_the_cache_of_the_hub_are_read_from_their_folder(cached: Path):
    assert found("someone/chatglm2") == WeightFiles(str(cached), use_safetensors=False)


def test_a_model_from_the_cache_is_the_model_and_keeps_its_name(cached: Path):
    model = load_causal_lm(ModelSettings("someone/chatglm2"))
    direct = ChatGLMForCausalLM.from_pretrained(cached, dtype=torch.float32)
    assert model.name_or_path == "someone/chatglm2"
    for name, tensor in direct.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
