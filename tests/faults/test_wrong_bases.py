"""Adapters of four recipes on six wrong bases, all refused, and on twenty right ones, all taken.

`pytest -m slow -rP tests/faults/test_wrong_bases.py` prints what each refusal says.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ..recipes.conftest import run
from .trained_runs import TrainedRun, train_classifier, train_policy, train_reward, train_sft

pytestmark = pytest.mark.slow

RECIPES = ("sft", "classifier", "reward", "policy")
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trained_tokenizer) -> dict[str, TrainedRun]:
    place = tmp_path_factory.mktemp("runs")
    return {
        "sft": train_sft(place, trained_tokenizer),
        "classifier": train_classifier(place),
        "reward": train_reward(place, trained_tokenizer),
        "policy": train_policy(place, trained_tokenizer),
    }


def edit_config(**by_family: dict[str, object]) -> Change:
    def change(base: Path) -> None:
        path = base / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(config | by_family[config["model_type"]]), encoding="utf-8")

    return change


def other_weights(base: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "model.safetensors")
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name] = tensors[name] + 0.001
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def more_tokens(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(base)


WRONG: dict[str, tuple[Change, str]] = {
    "weights": (other_weights, "the weights differ"),
    "layers": (edit_config(gpt2={"n_layer": 1}, bert={"num_hidden_layers": 1}), "1 instead of 2"),
    "activation": (
        edit_config(gpt2={"activation_function": "relu"}, bert={"hidden_act": "relu"}),
        '"relu" instead of "gelu',
    ),
    "epsilon": (
        edit_config(gpt2={"layer_norm_epsilon": 0.5}, bert={"layer_norm_eps": 0.5}),
        "0.5 instead of 1e-",
    ),
    "heads": (
        edit_config(gpt2={"n_head": 8}, bert={"num_attention_heads": 8}),
        "8 instead of 2",
    ),
    "vocabulary": (more_tokens, "its tokenizer has "),
}


def same_again(base: Path) -> None:
    """Write the same tensors by other means."""
    from safetensors.torch import load_file, save_file

    save_file(load_file(base / "model.safetensors"), base / "model.safetensors", {"by": "hand"})


def saved_again(base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    is_bert = json.loads((base / "config.json").read_text())["model_type"] == "bert"
    kind = AutoModelForMaskedLM if is_bert else AutoModelForCausalLM
    kind.from_pretrained(base).save_pretrained(base)
    AutoTokenizer.from_pretrained(base).save_pretrained(base)


def more_files(base: Path) -> None:
    (base / "README.md").write_text("mine")
    (base / "training_args.bin").write_bytes(b"not read")


RIGHT: dict[str, Change] = {
    "moved": lambda base: None,
    "the same tensors again": same_again,
    "saved again": saved_again,
    "more files": more_files,
    "another dropout": edit_config(gpt2={"resid_pdrop": 0.2}, bert={"hidden_dropout_prob": 0.2}),
}


def load(kind: str, folder: Path, base: str | None) -> None:
    """Load a run as the commands do."""
    from sft_kit.artifacts import LoadOptions, load_named
    from sft_kit.artifacts.classifier import load_classifier_run
    from sft_kit.artifacts.reward import load_reward_run

    if kind == "classifier":
        load_classifier_run(str(folder), base)
    elif kind == "reward":
        load_reward_run(str(folder), base)
    else:
        load_named(str(folder), LoadOptions(base=base))


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", RECIPES)
def test_an_adapter_on_a_wrong_base_is_refused_with_both_names(
    runs, tmp_path: Path, kind: str, wrong: str
):
    from sft_kit.errors import CheckpointError

    trained = runs[kind]
    other = tmp_path / "another"
    shutil.copytree(trained.base, other)
    change, words = WRONG[wrong]
    change(other)
    with pytest.raises(CheckpointError, match="belongs to another base") as caught:
        load(kind, trained.folder, str(other))
    message = str(caught.value)
    print(message)
    assert repr(str(other)) in message
    assert repr(str(trained.base)) in message
    assert words in message
    assert "--force-base" in message


@pytest.mark.parametrize("right", RIGHT)
@pytest.mark.parametrize("kind", RECIPES)
def test_an_adapter_on_its_own_base_is_taken(runs, tmp_path: Path, kind: str, right: str):
    moved = tmp_path / "moved"
    shutil.copytree(runs[kind].base, moved)
    RIGHT[right](moved)
    load(kind, runs[kind].folder, str(moved))


def test_there_are_twenty_right_bases_and_twenty_four_wrong_ones() -> None:
    assert (len(RIGHT) * len(RECIPES), len(WRONG) * len(RECIPES)) == (20, 24)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_merge_and_a_resume_are_refused_too(runs, tmp_path: Path, wrong: str):
    from sft_kit.artifacts import merge_and_save
    from sft_kit.errors import CheckpointError

    trained = runs["sft"]
    other = tmp_path / "another"
    shutil.copytree(trained.base, other)
    WRONG[wrong][0](other)
    with pytest.raises(CheckpointError, match="belongs to another base"):
        merge_and_save(str(trained.folder), tmp_path / "merged", base=str(other))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("wrong", WRONG)
def test_a_policy_is_not_started_from_an_adapter_of_another_base(runs, tmp_path: Path, wrong: str):
    from sft_kit.errors import CheckpointError

    other = tmp_path / "another"
    shutil.copytree(runs["sft"].base, other)
    WRONG[wrong][0](other)
    settings = {
        "model.checkpoint": other,
        "data.path": runs["policy"].data,
        "ppo.sft_adapter": runs["sft"].folder,
        "reward.model": runs["reward"].folder,
        "train.output_dir": tmp_path / "policy",
        "train.disable_tqdm": "true",
    }
    with pytest.raises(CheckpointError) as caught:
        run("ppo_gpt2_lora", settings)
    (problem,) = caught.value.problems
    assert problem.key == "ppo.sft_adapter"
    assert str(other) in problem.message
    assert repr(str(runs["sft"].base)) in problem.message
    assert WRONG[wrong][1] in problem.message
    assert not (tmp_path / "policy").exists()
