import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft_kit.models.fingerprint import describe_base
from sft_kit.models.same_base import base_differences
from sft_kit.settings import ModelSettings


def described(folder: Path, **config: object) -> dict[str, object]:
    facts = describe_base(ModelSettings(str(folder), config=cast("dict[str, str]", config)))
    return cast("dict[str, object]", json.loads(json.dumps(facts)))  # as it comes back from a file


def edit(folder: Path, file: str = "config.json", **fields: object) -> None:
    path = folder / file
    kept = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(kept | fields), encoding="utf-8")


def save_again(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def without_defaults(folder: Path) -> None:
    """Leave what an old version of transformers would have written."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "model_type")
    (folder / "config.json").write_text(json.dumps({name: config[name] for name in names}))


RIGHT: dict[str, Callable[[Path], None]] = {
    "a copy": lambda folder: None,
    "saved again": save_again,
    "without defaults": without_defaults,
    "of another version": lambda folder: edit(folder, transformers_version="4.27.1"),
    "saved in another place": lambda folder: edit(folder, _name_or_path="/elsewhere", id2label={}),
    "as bfloat16 on loading": lambda folder: edit(folder, torch_dtype="bfloat16"),
    "with other special tokens": lambda folder: edit(folder, pad_token_id=0, bos_token_id=1),
    "with labels": lambda folder: edit(folder, id2label={"0": "bad", "1": "good"}),
    "for a faster cache": lambda folder: edit(folder, use_cache=False),
    "without dropout": lambda folder: edit(folder, attn_pdrop=0.0, resid_pdrop=0.3),
    "with another file beside it": lambda folder: (folder / "notes.txt").touch(),
    "without tokenizer": lambda folder: [one.unlink() for one in folder.glob("*token*")],  # type: ignore[dict-item,return-value]
}
WRONG: dict[str, tuple[dict[str, object], str]] = {
    "fewer layers": ({"n_layer": 1}, "n_layer=1 instead of 2"),
    "another activation": ({"activation_function": "relu"}, '"relu" instead of "gelu_new"'),
    "another epsilon": ({"layer_norm_epsilon": 0.1}, "layer_norm_epsilon=0.1 instead of 1e-05"),
    "other heads": ({"n_head": 4}, "n_head=4 instead of 2"),
    "other scaling": ({"scale_attn_by_inverse_layer_idx": True}, "=true instead of false"),
    "untied": ({"tie_word_embeddings": False}, "tie_word_embeddings=false instead of true"),
}


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_the_same_base_is_known_again(gpt2_checkpoint: Path, change: Callable[[Path], None]):
    before = described(gpt2_checkpoint)
    moved = gpt2_checkpoint.with_name("moved")
    shutil.copytree(gpt2_checkpoint, moved)
    change(moved)
    assert base_differences(before, described(moved)) == []


@pytest.mark.parametrize(("fields", "words"), WRONG.values(), ids=WRONG)
def test_another_config_over_the_same_weights_is_named(
    gpt2_checkpoint: Path, fields: dict[str, object], words: str
):
    before = described(gpt2_checkpoint)
    edit(gpt2_checkpoint, **fields)
    (difference,) = base_differences(before, described(gpt2_checkpoint))
    assert difference.startswith("its config.json has ")
    assert words in difference


def test_other_rotary_angles_are_named(llama_checkpoint: Path):
    before = described(llama_checkpoint)
    theta = {"rope_type": "default", "rope_theta": 500.0}
    edit(llama_checkpoint, rope_parameters=theta)
    (difference,) = base_differences(before, described(llama_checkpoint))
    assert "rope_parameters.rope_theta=500.0 instead of 10000.0" in difference


def test_another_vocabulary_is_named_by_its_size(gpt2_checkpoint: Path):
    before = described(gpt2_checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(gpt2_checkpoint)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(gpt2_checkpoint)
    (difference,) = base_differences(before, described(gpt2_checkpoint))
    assert re.fullmatch(r"its tokenizer has (\d+) tokens instead of (\d+)", difference)
    assert before["num_tokens"] == len(tokenizer) - 2


def test_tokens_in_another_order_are_told(gpt2_checkpoint: Path):
    before = described(gpt2_checkpoint)
    text = (gpt2_checkpoint / "tokenizer.json").read_text(encoding="utf-8")
    swapped = text.replace('"A": ', '"@@": ').replace('"B": ', '"A": ').replace('"@@": ', '"B": ')
    (gpt2_checkpoint / "tokenizer.json").write_text(swapped, encoding="utf-8")
    assert swapped != text
    assert base_differences(before, described(gpt2_checkpoint)) == [
        "its tokenizer has other tokens"
    ]


def test_dropout_counts_for_training_only(gpt2_checkpoint: Path):
    before = described(gpt2_checkpoint)
    edit(gpt2_checkpoint, attn_pdrop=0.5)
    now = described(gpt2_checkpoint)
    assert base_differences(before, now) == []
    (difference,) = base_differences(before, now, for_training=True)
    assert "attn_pdrop=0.5 instead of 0.0" in difference


def test_fields_that_a_run_replaced_are_no_difference(gpt2_checkpoint: Path):
    before = described(gpt2_checkpoint, activation_function="relu")
    assert base_differences(before, described(gpt2_checkpoint)) == []


def test_a_record_of_an_older_version_is_compared_by_its_weights_alone(gpt2_checkpoint: Path):
    before = describe_base(ModelSettings(str(gpt2_checkpoint)))
    old = {name: before[name] for name in ("name", "folder", "fingerprint")}
    edit(gpt2_checkpoint, n_layer=1)
    assert base_differences(old, described(gpt2_checkpoint)) == []
    assert base_differences(old | {"fingerprint": "0"}, before) == ["the weights differ"]


def test_all_differences_are_told_and_no_more_than_five_fields(gpt2_checkpoint: Path):
    now = described(gpt2_checkpoint)
    config = dict.fromkeys(cast("dict[str, object]", now["config"]), "other")
    weights, fields, tokens = base_differences(
        {"fingerprint": "0", "config": config, "num_tokens": 3}, now
    )
    assert weights == "the weights differ"
    assert fields.count(" instead of ") == 5
    assert fields.endswith(", ...")
    assert tokens.endswith("tokens instead of 3")
