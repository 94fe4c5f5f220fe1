"""The sections of a pretraining recipe: one model, streams with an end, shares that add up."""

import pytest

from sft_kit.config import read_config
from sft_kit.config.text_rules import DEFAULT_FRACTIONS
from sft_kit.errors import ConfigError

RECIPE = """\
from dataclasses import dataclass
from peft import LoraConfig
from transformers import TrainingArguments
from sft_kit.settings import {objective}, PretrainModelSettings, TextDataSettings

@dataclass
class Settings:
    model: PretrainModelSettings
    adapter: LoraConfig | None
    data: TextDataSettings
    pretrain: {objective}
    train: TrainingArguments
"""
YAML = """\
model:
  tokenizer: owner/tokenizer
adapter: null
data:
  path: owner/texts
pretrain: {}
train:
  max_steps: 10
  eval_strategy: steps
  remove_unused_columns: false
  accelerator_config: {dispatch_batches: false}
"""


@pytest.fixture
def problems_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def problems_of(*overrides, objective="MaskedSettings"):
        path = tmp_path / f"pretrain_{objective.lower()}.py"
        path.write_text(RECIPE.format(objective=objective), encoding="utf-8")
        path.with_suffix(".yaml").write_text(YAML, encoding="utf-8")
        try:
            read_config(path, [path.with_suffix(".yaml")], overrides)
        except ConfigError as error:
            return [
                f"{problem.key}: {problem.message} ({problem.todo})" for problem in error.problems
            ]
        return []

    return problems_of


CHECKPOINT = ("model.tokenizer=null", "model.checkpoint=owner/model")
LORA = ("adapter.r=4", "adapter.target_modules=[query]")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        CHECKPOINT,
        (*CHECKPOINT, "model.revision=v1"),
        (*CHECKPOINT, *LORA, "model.quantization=nf4"),
        ("model.architecture=bert",),
        ("model.checkpoint=owner/model",),
        ("data.streaming=true", "data.eval_path=owner/others", "data.eval_fraction=0"),
        ("data.streaming=true", "train.eval_strategy=no", "data.shuffle_buffer=5"),
        ("data.hold_out=end",),
        ("pretrain.mask_token_fraction=0.9", "pretrain.random_token_fraction=0.1"),
        ("pretrain.mask_token_fraction=0.7", "pretrain.random_token_fraction=0.3"),
        ("pretrain.objective=spell", "pretrain.random_token_fraction=0.9"),
    ],
)
def test_settings_that_go_together_are_accepted(problems_of, overrides):
    assert problems_of(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ("model.tokenizer=null",),
            "model.tokenizer: found neither model.checkpoint nor model.tokenizer",
        ),
        (
            ("model.checkpoint=owner/model", "model.tokenizer=owner/tokenizer"),
            "model.tokenizer: found owner/tokenizer together with model.checkpoint",
        ),
        (
            (*CHECKPOINT, "model.architecture=bert"),
            "model.architecture: found bert together with model.checkpoint",
        ),
        (("model.revision=v1",), "model.revision: found v1 without model.checkpoint"),
        (
            (*LORA, "model.quantization=nf4"),
            "model.quantization: found nf4 without model.checkpoint",
        ),
        (
            ("data.streaming=true", "train.max_steps=-1", "train.eval_strategy=no"),
            "train.max_steps: found -1 with data.streaming",
        ),
        (
            ("data.streaming=true",),
            "train.eval_strategy: found steps with data.streaming and without data.eval_path",
        ),
        (
            ("data.streaming=true", "data.eval_fraction=0.1"),
            "data.eval_fraction: found 0.1 with data.streaming: nothing is held out of a stream",
        ),
        (
            ("data.streaming=true", "data.eval_fraction=0"),
            "train.eval_strategy: found steps without rows to evaluate on",
        ),
        (
            ("data.hold_out=end", "data.eval_path=owner/others"),
            "data.hold_out: found end together with data.eval_path",
        ),
        (
            ("data.hold_out=end", "data.streaming=true", "train.eval_strategy=no"),
            "data.hold_out: found end together with data.streaming",
        ),
        (("data.shuffle_buffer=5",), "data.shuffle_buffer: found 5 without data.streaming"),
        (
            ("pretrain.mask_token_fraction=0.95",),
            "pretrain.mask_token_fraction: found 0.95 of mask tokens and 0.1 of random tokens",
        ),
        (
            ("pretrain.random_token_fraction=0.21",),
            "pretrain.random_token_fraction: found 0.8 of mask tokens and 0.21 of random tokens",
        ),
        (
            ("pretrain.confusions=alike.json",),
            "pretrain.confusions: found alike.json with pretrain.objective=mlm",
        ),
        (
            ("pretrain.objective=spell", "pretrain.confusions=alike.json"),
            "pretrain.confusions: found 'alike.json', and there is no such file",
        ),
        (
            (
                "data.streaming=true",
                "train.eval_strategy=no",
                "train.accelerator_config.dispatch_batches=true",
            ),
            "train.accelerator_config: found no dispatch_batches: false with data.streaming",
        ),
        (
            ("train.remove_unused_columns=true",),
            "train.remove_unused_columns: found true: rows carry more than",
        ),
        (
            ("train.dataloader_num_workers=1", "train.dataloader_persistent_workers=true"),
            "train.dataloader_persistent_workers: found true: such workers would hide",
        ),
        (
            ("data.eval_path=missing.txt", "data.eval_fraction=0"),
            "data.eval_path: found 'missing.txt', and there is no such file",
        ),
    ],
)
def test_each_conflict_is_told_once_where_it_stands(problems_of, overrides, expected):
    (problem,) = problems_of(*overrides)
    assert problem.startswith(expected)


def test_a_file_of_confusions_is_accepted_where_it_stands(problems_of, tmp_path):
    (tmp_path / "alike.json").write_text("{}", encoding="utf-8")
    assert problems_of("pretrain.objective=spell", "pretrain.confusions=alike.json") == []


def test_a_document_mask_needs_windows_of_several_documents(problems_of):
    mask = "pretrain.document_mask=true"
    assert problems_of(mask, objective="CausalSettings") == []
    (problem,) = problems_of(mask, "data.pack=false", objective="CausalSettings")
    assert problem.startswith("pretrain.document_mask: found true with data.pack=false")


@pytest.mark.parametrize("key", ["mean_span_length", "max_span_length"])
def test_lengths_of_blanks_belong_to_infilling(problems_of, key):
    length = f"pretrain.{key}=5"
    assert problems_of(length, "pretrain.objective=infill", objective="PrefixSettings") == []
    (problem,) = problems_of(length, objective="PrefixSettings")
    assert problem.startswith(f"pretrain.{key}: found 5")
    assert problems_of(length.replace("max", "mean"), objective="SpanSettings") == []


def test_the_rules_of_checkpoints_leave_a_new_model_alone(problems_of, tmp_path):
    """A folder called None would be found if null were read as a name."""
    (tmp_path / "None").mkdir()
    assert problems_of(*LORA) == []


def test_the_shares_of_null_are_those_of_the_corruption():
    from sft_kit.data.corruption.masking import default_fractions

    assert {name: default_fractions(name) for name in DEFAULT_FRACTIONS} == DEFAULT_FRACTIONS
