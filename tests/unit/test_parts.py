"""Every choice that makes a run fast is said, with the key that changes it."""

import pytest

from sft_kit.parts import notes_on_speed, pick_parts

AUTO = {"attention": "auto", "dropout": "auto", "fused": True}


@pytest.mark.parametrize(
    ("on_cpu", "precision", "attention"),
    [
        (True, "bfloat16", "blocks"),
        (True, None, "sdpa"),
        (False, "bfloat16", "sdpa"),
        (False, "float16", "sdpa"),
    ],
)
def test_the_kernel_follows_device_and_precision(on_cpu, precision, attention):
    picked = pick_parts({"model": AUTO}, on_cpu=on_cpu, precision=precision)
    assert picked["attention"] == attention


def test_dropout_stays_where_all_weights_train():
    whole = {"model": AUTO, "adapter": None}
    assert pick_parts(whole, on_cpu=True, precision=None)["dropout"] == "keep"
    lora = {"model": AUTO, "adapter": {"r": 8}}
    assert pick_parts(lora, on_cpu=True, precision=None)["dropout"] == "none"


def test_what_was_asked_for_is_left_alone():
    asked = {"attention": "eager", "dropout": "keep", "fused": False}
    assert pick_parts({"model": asked, "adapter": {}}, on_cpu=True, precision="bfloat16") == {}


def test_a_recipe_without_these_keys_is_told_nothing():
    assert pick_parts({"model": {"tokenizer": "x"}}, on_cpu=True, precision=None) == {}
    assert notes_on_speed({"tokenizer": "x"}, {}) == []


def test_each_note_names_the_key_that_changes_it():
    model = {"attention": "blocks", "dropout": "none", "fused": True}
    train = {"train_sampling_strategy": "group_by_length"}
    notes = notes_on_speed(model, train)
    keys = ("model.attention", "model.dropout", "model.fused", "train.train_sampling_strategy",
            "train.torch_compile", "train.activation_checkpointing")  # fmt: skip
    assert len(notes) == len(keys)
    for note, key in zip(notes, keys, strict=True):
        assert key in note
    slow = notes_on_speed(
        {"attention": "eager", "dropout": "keep", "fused": False},
        {"torch_compile": True, "activation_checkpointing": True},
    )
    assert not set(notes) & set(slow)
