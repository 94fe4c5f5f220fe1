"""What makes a run fast changes nothing that it learns, or only by the rounding of bfloat16."""

import pytest
import torch

from sft_kit import devices

from .conftest import assert_same_bits, assert_same_curve, train
from .test_sft import twenty_steps

IN_BF16 = {"train.bf16": True}
IN_FLOAT32 = {"train.bf16": False}


@pytest.fixture(scope="module")
def settings(rough_checkpoint, rows, tmp_path_factory):
    """Twenty steps on a model with dropout in its config."""
    found = twenty_steps(rough_checkpoint, rows, tmp_path_factory.mktemp("fast"))
    return found | {"adapter.lora_dropout": 0.0}


@pytest.fixture(scope="module")
def fast(settings):
    return train(settings | IN_FLOAT32)


def test_fused_or_not_is_the_same_curve_in_float32(settings, fast):
    plain = train(settings | IN_FLOAT32 | {"model.fused": False})
    assert_same_curve(fast, plain)
    for name, tensor in fast.trained().items():
        assert (tensor - plain.trained()[name]).abs().max() <= 1e-5, name


def test_dropout_of_the_base_is_a_choice(settings, fast):
    kept = train(settings | IN_FLOAT32 | {"model.dropout": "keep"})
    assert kept.losses != fast.losses
    again = train(settings | IN_FLOAT32 | {"model.dropout": "none"})
    assert_same_bits(again, fast)


def test_bfloat16_stays_within_its_rounding(settings, fast):
    rounded = train(settings | IN_BF16)
    gaps = [abs(a - b) for a, b in zip(rounded.losses, fast.losses, strict=True)]
    # Eight bits of mantissa: a part in 256 of a number, and the mean over tokens is nearer still.
    assert max(gaps) / fast.losses[0] < 2**-8
    assert sum(gaps) / len(gaps) / fast.losses[0] < 2**-9
    assert max(gaps) > 0
    assert {one.dtype for one in rounded.trained().values()} == {torch.float32}
    base = next(one for one in rounded.model.parameters() if not one.requires_grad)
    assert base.dtype == torch.bfloat16


def test_the_kernel_of_attention_changes_rounding_only(settings):
    ours = train(settings | IN_BF16 | {"model.attention": "blocks"})
    theirs = train(settings | IN_BF16 | {"model.attention": "sdpa"})
    gaps = [abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)]
    assert max(gaps) / ours.losses[0] < 2**-8


@pytest.mark.parametrize(
    ("stem", "embedded"),
    [
        ("sft_gpt2_lora", "tiny-gpt2"),
        ("classify_gpt2_head", "tiny-gpt2"),
        ("classify_bert_chinese_lora", "tiny-bert-chinese"),
        ("reward_gpt2_lora", "tiny-gpt2"),
        ("sft_chatglm2_int4_lora", "tiny-chatglm2-int4"),
    ],
)
def test_every_stage_learns_in_bfloat16_as_a_fast_cpu_picks_it(
    stem, embedded, monkeypatch, tmp_path
):
    monkeypatch.setattr(devices, "cpu_is_fast_in_bf16", lambda: True)
    settings = {
        "model.checkpoint": f"data/checkpoints/{embedded}",
        "model.quantization": "none",
        "train.output_dir": tmp_path / "run",
        "train.max_steps": 6,
        "train.warmup_steps": 1,
        "train.logging_steps": 1,
        "train.eval_strategy": "no",
        "train.save_strategy": "no",
        "train.load_best_model_at_end": False,
        "train.disable_tqdm": True,
    }
    if stem.startswith("classify"):
        settings["classify.early_stopping_patience"] = "null"
    rounded = train(dict(settings), stem=stem)
    exact = train(settings | IN_FLOAT32, stem=stem)
    assert rounded.losses == pytest.approx(exact.losses, rel=2**-6)
    assert rounded.losses != exact.losses
