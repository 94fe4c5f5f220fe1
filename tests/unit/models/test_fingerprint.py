import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from sft_kit.errors import CheckpointError
from sft_kit.models.fingerprint import checkpoint_folder, describe_base, fingerprint
from sft_kit.settings import ModelSettings

TENSORS = {
    "a.weight": torch.arange(5000, dtype=torch.float32),
    "b.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
}


def saved(folder: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata=metadata or None)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> str:
    return fingerprint(saved(tmp_path / "base", TENSORS))


def test_the_fingerprint_is_that_of_a_second_implementation(tmp_path: Path, base: str):
    digest = hashlib.sha256()
    for name, shape, bytes_ in (
        ("a.weight", [5000], struct.pack("<1024f", *range(1024))),
        ("b.weight", [3, 4], struct.pack("<12f", *range(12))),
    ):
        digest.update(f"{name}F32{shape}".encode() + bytes_)
    assert base == digest.hexdigest()


def test_a_copy_has_the_same_fingerprint(tmp_path: Path, base: str):
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == base


@pytest.mark.parametrize("name", ["a.weight", "b.weight"])
def test_the_first_bytes_of_any_tensor_count(tmp_path: Path, base: str, name: str):
    changed = TENSORS[name].clone()
    changed.view(-1)[0] += 1
    assert fingerprint(saved(tmp_path / "x", TENSORS | {name: changed})) != base


def test_the_name_the_shape_and_the_type_of_a_tensor_count(tmp_path: Path, base: str):
    others = [
        {"a.weight": TENSORS["a.weight"], "c.weight": TENSORS["b.weight"]},
        TENSORS | {"b.weight": TENSORS["b.weight"].view(4, 3)},
        TENSORS | {"b.weight": TENSORS["b.weight"].view(torch.int32)},
        TENSORS | {"c.weight": torch.zeros(1)},
        {"a.weight": TENSORS["a.weight"]},
    ]
    found = {
        fingerprint(saved(tmp_path / str(index), tensors)) for index, tensors in enumerate(others)
    }
    assert len(found | {base}) == len(others) + 1


def test_configs_and_metadata_do_not_count(tmp_path: Path, base: str):
    folder = saved(tmp_path / "x", TENSORS, format="pt", note="hello")
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert fingerprint(folder) == base


def test_every_file_of_a_split_checkpoint_counts(tmp_path: Path, gpt2_model: GPT2LMHeadModel):
    gpt2_model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    before = fingerprint(tmp_path)
    for shard in shards:
        tensors = load_file(shard)
        first = min(tensors)
        tensors[first] = tensors[first] + 1
        save_file(tensors, shard)
        after = fingerprint(tmp_path)
        assert after != before
        before = after


@pytest.mark.parametrize("data", [b"", b"\x10\0\0\0\0\0\0\0{", b"\xff" * 64, b"\2\0\0\0\0\0\0\0[]"])
def test_a_damaged_file_is_a_checkpoint_error(tmp_path: Path, data: bytes):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        fingerprint(tmp_path)


def pickled(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_have_a_fingerprint_by_content(tmp_path: Path):
    first = fingerprint(pickled(tmp_path / "a", TENSORS))
    assert fingerprint(pickled(tmp_path / "b", TENSORS)) == first
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == first
    reshaped = {"b.weight": TENSORS["b.weight"].view(2, 6)}
    others = [TENSORS | {"c": torch.zeros(1)}, TENSORS | reshaped]
    for name in TENSORS:
        # the last value, far behind the first bytes
        changed = TENSORS[name].clone()
        changed.view(-1)[-1] += 1
        others.append(TENSORS | {name: changed})
    seen = {fingerprint(pickled(tmp_path / str(i), other)) for i, other in enumerate(others)}
    assert len(seen | {first}) == len(others) + 1


def test_pickles_beside_safetensors_do_not_count(tmp_path: Path, base: str):
    assert fingerprint(pickled(tmp_path / "base", TENSORS)) == base


def test_files_that_are_not_loaded_do_not_count(tmp_path: Path, base: str):
    save_file({"lora": torch.ones(3)}, tmp_path / "base" / "adapter_model.safetensors")
    (tmp_path / "base" / "pytorch_model.bin.index.json").write_text("{")
    assert fingerprint(tmp_path / "base") == base


def test_safetensors_of_something_else_do_not_hide_pickled_weights(tmp_path: Path):
    before = fingerprint(pickled(tmp_path, TENSORS))
    save_file({"lora": torch.ones(3)}, tmp_path / "adapter_model.safetensors")
    assert fingerprint(tmp_path) == before
    pickled(tmp_path, TENSORS | {"c": torch.zeros(1)})
    assert fingerprint(tmp_path) != before


def test_the_files_that_an_index_names_count_whatever_they_are_called(tmp_path: Path):
    found = set()
    for values in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        for name, value in zip(("part0.bin", "part1.bin"), values, strict=True):
            torch.save({name: torch.tensor([value])}, tmp_path / name)
        index = {"weight_map": {"a": "part0.bin", "b": "part1.bin"}}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        found.add(fingerprint(tmp_path))
    assert len(found) == 3
    (tmp_path / "part1.bin").unlink()
    with pytest.raises(CheckpointError, match=r"part1\.bin is damaged"):
        fingerprint(tmp_path)


def test_the_pickles_of_old_versions_of_torch_are_hashed_whole(tmp_path: Path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    whole = hashlib.sha256(hashlib.sha256(content).digest()).hexdigest()
    assert fingerprint(tmp_path) == whole
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fingerprint(tmp_path) != whole


def test_a_damaged_pickle_is_named(tmp_path: Path):
    (pickled(tmp_path / "x", TENSORS) / "pytorch_model.bin").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is damaged"):
        fingerprint(tmp_path / "x")


def test_a_folder_is_its_own_checkpoint_folder(tmp_path: Path):
    assert checkpoint_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "name", ["nobody/never-downloaded", "/no/such/folder", "a/b/c/d", "not an id!", "-x"]
)
def test_a_checkpoint_that_is_nowhere_on_this_machine_has_no_folder(name: str):
    assert checkpoint_folder(name) is None


def test_a_downloaded_checkpoint_is_found_in_the_cache_of_the_hub(tmp_path: Path):
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / "models--someone--cached"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    try:
        assert checkpoint_folder("someone/cached") == snapshot
        assert checkpoint_folder("someone/cached", "0" * 40) == snapshot
    finally:
        shutil.rmtree(repository)


def test_a_base_is_described_by_name_absolute_folder_and_fingerprint(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base" / "config.json").write_text('{"model_type": "gpt2"}')
    described = describe_base(ModelSettings("base"))
    assert cast("dict[str, object]", described.pop("config"))["n_layer"] == 12
    assert described == {
        "name": "base",
        "model_type": "gpt2",
        "stored_as": "",
        "folder": str((tmp_path / "base").resolve()),
        "fingerprint": base,
    }
