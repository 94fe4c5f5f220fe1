import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, Trainer

from sft_kit.artifacts.checkpoints import missing_parts, newest_checkpoint

NEEDED = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth")
WEIGHTS = {"adapter": "adapter_model.safetensors", "full": "model.safetensors"}


@pytest.fixture(params=list(WEIGHTS))
def run(
    request: pytest.FixtureRequest,
    make_trainer: Callable[..., Trainer],
    tiny_model: Callable[[float], GPT2LMHeadModel],
) -> tuple[Path, str]:
    """Folder of a real run with checkpoints at steps 1, 2 and 10, and the name of its weights."""
    model: torch.nn.Module = tiny_model(0.0)
    if request.param == "adapter":
        model = get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    trainer = make_trainer(model=model, max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-10")
    return folder, WEIGHTS[request.param]


def test_the_newest_whole_checkpoint_is_the_one_of_the_highest_step(run: tuple[Path, str]):
    folder, _ = run
    assert newest_checkpoint(folder) == (folder / "checkpoint-10", [])


def test_each_needed_file_that_is_missing_empty_or_cut_passes_a_checkpoint_over(
    run: tuple[Path, str],
):
    folder, weights = run
    newest = folder / "checkpoint-10"
    for name in (*NEEDED, weights):
        path = newest / name
        whole = path.read_bytes().rstrip(b"\n")  # a JSON without its last newline is whole
        for damaged in (None, b"", whole[:1], whole[: len(whole) // 2], whole[:-1]):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            found, skipped = newest_checkpoint(folder)
            size = None if damaged is None else len(damaged)
            assert found == folder / "checkpoint-2", f"{name} cut to {size} bytes was taken"
            assert len(skipped) == 1
            assert skipped[0].startswith(f"{newest} was passed over: ")
            path.write_bytes(whole)
        assert newest_checkpoint(folder) == (newest, [])


def test_every_damaged_part_is_named(run: tuple[Path, str]):
    folder, weights = run
    newest = folder / "checkpoint-10"
    (newest / "optimizer.pt").unlink()
    (newest / "rng_state.pth").unlink()
    (newest / weights).write_bytes((newest / weights).read_bytes()[:-1])
    assert missing_parts(newest) == [
        "optimizer.pt is missing",
        "random state is missing",
        f"{weights} is cut off",
    ]


def test_every_passed_over_checkpoint_is_told_and_none_may_be_left(run: tuple[Path, str]):
    folder, _ = run
    for step in (1, 2, 10):
        (folder / f"checkpoint-{step}" / "scheduler.pt").unlink()
    found, skipped = newest_checkpoint(folder)
    assert found is None
    assert [line.split(" was passed over")[0] for line in skipped] == [
        str(folder / f"checkpoint-{step}") for step in (10, 2, 1)
    ]


def test_other_folders_and_files_are_no_checkpoints(tmp_path: Path):
    for name in ("checkpoint-x", "checkpoint-", "checkpoint-5-old", "my-checkpoint-7"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    found, skipped = newest_checkpoint(tmp_path)
    assert found is None
    assert len(skipped) == 1
    assert "checkpoint-9" in skipped[0]


def test_a_folder_that_does_not_exist_has_no_checkpoint(tmp_path: Path):
    assert newest_checkpoint(tmp_path / "nothing") == (None, [])


@pytest.mark.parametrize("run", ["full"], indirect=True)
def test_every_shard_of_split_weights_is_needed(run: tuple[Path, str]):
    newest = run[0] / "checkpoint-10"
    tensors = load_file(newest / "model.safetensors")
    (newest / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:3], "model-2.safetensors": names[3:]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, newest / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    index = newest / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert missing_parts(newest) == []
    (newest / "model-2.safetensors").rename(newest / "elsewhere")
    assert missing_parts(newest) == ["model-2.safetensors is missing"]
    index.write_text("{")
    assert missing_parts(newest) == ["model.safetensors.index.json is cut off"]


@pytest.mark.parametrize("run", ["full"], indirect=True)
def test_the_chosen_checkpoint_is_one_the_trainer_resumes(
    run: tuple[Path, str], make_trainer: Callable[..., Trainer], tiny_model: Callable[..., object]
):
    folder, _ = run
    shutil.rmtree(folder / "checkpoint-10")
    (folder / "checkpoint-2" / "optimizer.pt").write_bytes(b"PK")
    found, _ = newest_checkpoint(folder)
    trainer = make_trainer(max_steps=3)
    trainer.train(resume_from_checkpoint=str(found))
    assert found == folder / "checkpoint-1"
    assert trainer.state.global_step == 3
