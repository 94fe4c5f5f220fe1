"""ChatGLM2 with packed int4 weights trains exactly as it would with the dense weights."""

from pathlib import Path

import pytest
import torch

from sft_kit.models.chatglm import ChatGLMForCausalLM

from ..recipes.conftest import run
from .conftest import Curve, assert_same_bits, assert_same_curve, train, twenty_steps
from .test_sft import LAUNCHERS, assert_same_run, free_port, launch

STEM = "sft_chatglm2_int4_lora"


@pytest.fixture(scope="module")
def packed_checkpoint(chatglm_fixtures: Path) -> Path:
    return chatglm_fixtures / "chatglm2_tiny_int4"


@pytest.fixture
def packed(packed_checkpoint: Path, rows: Path, tmp_path: Path) -> dict[str, object]:
    """Twenty steps on the packed checkpoint."""
    return twenty_steps(packed_checkpoint, rows, tmp_path / "run")


@pytest.fixture(scope="module")
def packed_curve(
    packed_checkpoint: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> Curve:
    folder = tmp_path_factory.mktemp("runs") / "packed"
    return train(twenty_steps(packed_checkpoint, rows, folder), stem=STEM)


@pytest.fixture(scope="module")
def dense_checkpoint(packed_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as float32 numbers; the tokenizer's files beside them."""
    folder = tmp_path_factory.mktemp("dense")
    model = ChatGLMForCausalLM.from_pretrained(packed_checkpoint, dtype=torch.float32)
    model.dequantize()
    model.save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (folder / name).write_bytes((packed_checkpoint / name).read_bytes())
    return folder


def test_packed_weights_train_like_the_dense_weights_they_stand_for(
    packed_curve: Curve, packed: dict[str, object], dense_checkpoint: Path
):
    dense = train(packed | {"model.checkpoint": dense_checkpoint}, stem=STEM)
    assert dense.model.get_base_model().model.layers[0].mlp.down_proj.weight.is_floating_point()
    assert_same_curve(packed_curve, dense)


def test_activation_checkpointing_changes_nothing(packed_curve: Curve, packed: dict[str, object]):
    again = train(packed | {"train.activation_checkpointing": "true"}, stem=STEM)
    assert_same_bits(packed_curve, again)


def test_original_and_native_target_names_train_the_same_layers(
    packed_curve: Curve, packed: dict[str, object]
):
    native = "[q_proj, k_proj, v_proj, o_proj, gate_up_proj, down_proj]"
    again = train(packed | {"adapter.target_modules": native}, stem=STEM)
    assert_same_bits(packed_curve, again)


def test_accumulated_micro_batches_equal_one_batch(packed_curve: Curve, packed: dict[str, object]):
    micro = {
        "train.per_device_train_batch_size": 2,
        "train.gradient_accumulation_steps": 4,
    }
    assert_same_curve(packed_curve, train(packed | micro, stem=STEM))


@pytest.mark.slow  # the same seam is held by the fine-tuning recipe in the default suite
def test_two_processes_give_the_curve_and_the_adapter_of_one(
    packed_checkpoint: Path, rows: Path, tmp_path: Path
):
    settings = twenty_steps(packed_checkpoint, rows, tmp_path / "one") | {
        "data.num_rows": 32,
        "train.max_steps": 8,
        "train.dataloader_drop_last": "true",
        "train.use_cpu": "true",
    }
    run(STEM, settings)
    halves = {"train.output_dir": tmp_path / "two", "train.per_device_train_batch_size": 4}
    launched = launch([*LAUNCHERS["torchrun"], str(free_port())], settings | halves, STEM)
    assert launched.returncode == 0, launched.stderr
    assert_same_run(tmp_path / "two", tmp_path / "one")
