"""Which weight files are read, on this machine and in a cache of the Hub."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, LlamaConfig

from sft_kit.errors import CheckpointError
from sft_kit.models.base import load_causal_lm, load_config_of
from sft_kit.models.chatglm import ChatGLMForCausalLM
from sft_kit.models.tensor_archive import read_tensors
from sft_kit.models.weight_files import WeightFiles, find_weight_files, loaded_files
from sft_kit.settings import ModelSettings

COMMIT = "0" * 40
pytestmark = pytest.mark.usefixtures("offline")


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
    if name.endswith(".json"):
        (chatglm / name).write_text('{"weight_map": {"a": "a.safetensors"}}')
        name = "a.safetensors"
    save_file({"a": torch.zeros(1)}, chatglm / name)
    assert loaded_files(chatglm) == [chatglm / name]
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


def write_index(folder: Path, *files: str, name: str = "pytorch_model.bin.index.json") -> None:
    weight_map = {f"tensor{i}": file for i, file in enumerate(files)}
    (folder / name).write_text(json.dumps({"weight_map": weight_map}))


def test_the_files_listed_are_those_that_are_read_and_nothing_is_unpickled(
    chatglm: Path, monkeypatch: pytest.MonkeyPatch
):
    for other in ("adapter_model.safetensors", "training_args.bin", "pytorch_model-old.bin"):
        (chatglm / other).write_bytes(b"not weights")
    opened = []

    def noted(path: Path) -> dict[str, torch.Tensor]:
        opened.append(path)
        return read_tensors(path)

    def unpickle(*_: object, **__: object) -> object:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr("sft_kit.models.chatglm.modeling.read_tensors", noted)
    monkeypatch.setattr(torch, "load", unpickle)
    ChatGLMForCausalLM.from_pretrained(chatglm)
    assert opened
    assert loaded_files(chatglm) == sorted(set(opened))


@pytest.mark.parametrize("dtype", [None, "auto", torch.float32, "float32"])
def test_without_a_dtype_in_the_config_nothing_is_unpickled_to_learn_it(
    chatglm: Path, monkeypatch: pytest.MonkeyPatch, dtype: object
):
    def unpickle(*_: object, **__: object) -> object:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(torch, "load", unpickle)
    fields = json.loads((chatglm / "config.json").read_text())
    del fields["torch_dtype"]
    (chatglm / "config.json").write_text(json.dumps(fields))
    if dtype in (None, "auto"):
        with pytest.raises(CheckpointError, match=r"no torch_dtype in config\.json"):
            ChatGLMForCausalLM.from_pretrained(chatglm, dtype=dtype)
    else:
        assert ChatGLMForCausalLM.from_pretrained(chatglm, dtype=dtype).dtype == torch.float32


def test_a_pickle_that_a_config_names_is_refused_for_every_family(
    tmp_path: Path, gpt2_checkpoint: Path
):
    folder = Path(shutil.copytree(gpt2_checkpoint, tmp_path / "base"))
    fields = json.loads((folder / "config.json").read_text())
    fields["transformers_weights"] = "adapter_model.bin"
    (folder / "config.json").write_text(json.dumps(fields))
    torch.save(load_file(folder / "model.safetensors"), folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"transformers_weights: found 'adapter_model\.bin'"):
        load_causal_lm(ModelSettings(str(folder)))


def test_a_file_that_the_config_names_comes_first(chatglm: Path):
    save_file({"a": torch.zeros(1)}, chatglm / "model.safetensors")
    save_file({"a": torch.zeros(1)}, chatglm / "mine.safetensors")
    fields = json.loads((chatglm / "config.json").read_text())
    fields["transformers_weights"] = "mine.safetensors"
    (chatglm / "config.json").write_text(json.dumps(fields))
    assert loaded_files(chatglm) == [chatglm / "mine.safetensors"]


def test_a_folder_without_weights_has_no_files(tmp_path: Path):
    assert loaded_files(tmp_path) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_a_damaged_index_is_named(tmp_path: Path, content: str):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        loaded_files(tmp_path)


@pytest.mark.parametrize("file", ["../a.bin", "/tmp/a.bin", "below/a.bin", ".."])
@pytest.mark.parametrize("index", ["pytorch_model.bin.index.json", "model.safetensors.index.json"])
def test_a_checkpoint_whose_weights_lie_elsewhere_is_refused(chatglm: Path, file: str, index: str):
    write_index(chatglm, "pytorch_model.bin", file, name=index)
    for path in chatglm.glob("pytorch_model*.bin"):
        path.unlink()
    with pytest.raises(CheckpointError, match="accepts names of files in the same folder"):
        load_causal_lm(ModelSettings(str(chatglm)))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        loaded_files(chatglm)


def test_an_index_in_the_cache_of_the_hub_is_checked_as_well(cached: Path):
    write_index(cached, "../a.bin")
    with pytest.raises(CheckpointError, match="outside of its folder"):
        load_causal_lm(ModelSettings("someone/chatglm2"))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        ChatGLMForCausalLM.from_pretrained("someone/chatglm2", local_files_only=True)


def test_only_weights_and_configs_are_fetched_from_the_hub(
    monkeypatch: pytest.MonkeyPatch, chatglm: Path
):
    asked: list[str] = []

    def fetch(_name: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.extend(allow_patterns)
        return "folder"

    monkeypatch.setattr("sft_kit.models.weight_files.snapshot_download", fetch)
    config = load_config_of(ModelSettings(str(chatglm)))
    find_weight_files("someone/nowhere", config, revision=None, local_files_only=True)
    names = {
        "config.json": True, "generation_config.json": True, "pytorch_model.bin": True,
        "pytorch_model-00001-of-00007.bin": True, "pytorch_model.bin.index.json": True,
        "training_args.bin": False, "optimizer.bin": False, "modeling_chatglm.py": False,
    }  # fmt: skip
    assert set(filter_repo_objects(names, allow_patterns=asked)) == {n for n in names if names[n]}
