"""The sections of a classification recipe: values arrive exactly, conflicts have their lines."""

import pytest

from sft_kit.config import json_schema, read_config
from sft_kit.config.schema import describe
from sft_kit.errors import ConfigError
from sft_kit.settings import ClassifySettings, Column, LabelledDataSettings

RECIPE = """\
from dataclasses import dataclass
from transformers import TrainingArguments
from sft_kit.settings import ClassifySettings, LabelledDataSettings, ModelSettings

@dataclass
class Settings:
    model: ModelSettings
    data: LabelledDataSettings
    classify: ClassifySettings
    train: TrainingArguments
"""
YAML = """\
model:
  checkpoint: owner/bert
data:
  path: owner/reviews
classify:
  label_smoothing: 0.0
train:
  eval_strategy: epoch
  save_strategy: epoch
  load_best_model_at_end: true
  restore_callback_states_from_checkpoint: true
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "classify_bert.py"
    path.write_text(RECIPE, encoding="utf-8")
    path.with_suffix(".yaml").write_text(YAML, encoding="utf-8")
    return path


def read(recipe, *overrides, text=YAML):
    path = recipe.with_suffix(".yaml")
    path.write_text(text, encoding="utf-8")
    return read_config(recipe, [path], overrides)


def problems_of(recipe, *overrides, text=YAML):
    with pytest.raises(ConfigError) as caught:
        read(recipe, *overrides, text=text)
    return [str(problem) for problem in caught.value.problems]


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.text=1", 1),
        ("data.text='1'", "1"),
        ("data.text=review", "review"),
        ("data.text_pair=[2, 3]", [2, 3]),
        ("data.text_pair=[2, '3', third]", [2, "3", "third"]),
        ("data.text_pair=null", None),
        ("data.group=2", 2),
        ("data.header=true", True),
        ("data.header=auto", "auto"),
        ("data.num_folds=null", None),
        ('data.label_names={"1": good, "0": bad}', {"1": "good", "0": "bad"}),
        ("classify.class_weights=balanced", "balanced"),
        ("classify.class_weights={bad: 2, good: 0.5}", {"bad": 2.0, "good": 0.5}),
        ("classify.early_stopping_patience=3", 3),
    ],
)
def test_values_of_several_types_arrive_exactly(recipe, override, value):
    dotted = override.partition("=")[0]
    section, key = dotted.split(".")
    resolved = read(recipe, override)
    got = resolved.sections[section][key]
    assert (got, type(got)) == (value, type(value))
    if isinstance(value, list):
        assert [type(one) for one in got] == [type(one) for one in value]
    if isinstance(value, dict):
        assert list(got) == list(value)
        assert [type(one) for one in got.values()] == [type(one) for one in value.values()]
    built = resolved.own("data", LabelledDataSettings), resolved.own("classify", ClassifySettings)
    assert value in [getattr(one, key) for one in built if hasattr(one, key)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.text=true", "found true, accepts text, a whole number or a list of these"),
        ("data.text=1.0", "found 1.0, accepts text, a whole number or a list of these (write 1)"),
        ("data.text={a: 1}", "found a mapping, accepts text, a whole number or a list of these"),
        ("data.text_pair=1.5", "accepts text, a whole number, a list of these or null"),
        ("data.text_pair=[1, 2.5]", "data.text_pair[1]: found 2.5, accepts text or a whole number"),
        ("data.text_pair=[1, true]", "data.text_pair[1]: found true, accepts text or a whole num"),
        ("data.group=[1]", "found a list, accepts text, a whole number or null"),
        ("data.header=1", "found 1, accepts true, false or 'auto'"),
        ("data.header=yes", "found 'yes', accepts true, false or 'auto' (write true)"),
        ("data.label_names={a: 0}", "data.label_names.a: found 0, accepts text (for this text"),
        ("data.label_names={0: a}", "found the key 0, accepts text (put the key in quotes)"),
        ("data.on_overlap=drop_train", "did you mean 'drop-train'?"),
        ("classify.class_weights=balancd", "did you mean 'balanced'?"),
        ("classify.class_weights=3", "found 3, accepts 'equal', 'balanced' or a mapping"),
        ("classify.class_weights={a: x}", "classify.class_weights.a: found 'x', accepts a number"),
        ("classify.label_smoothing=1.0", "found 1.0, accepts a number >= 0"),
        ("data.num_folds=1", "found 1, accepts a whole number >= 2 or null"),
    ],
)
def test_a_wrong_value_is_told_with_all_that_is_accepted(recipe, override, message):
    (problem,) = problems_of(recipe, override)
    assert problem.startswith(f"command line: {override.partition('=')[0]}")
    assert message in problem


def test_a_list_of_something_else_is_not_called_a_list_of_these():
    assert describe(Column | list[Column]) == "text, a whole number or a list of these"
    assert describe(str | list[str]) == "text or a list of these"
    assert describe(str | list[int]) == "text or a list (a whole number)"
    assert describe(str | list[str | int]) == "text or a list (text or a whole number)"


def test_the_json_schema_has_every_alternative(recipe):
    sections = json_schema(recipe)["$defs"]
    data = sections["LabelledDataSettings"]["properties"]
    column = [{"type": "string"}, {"type": "integer"}]
    assert data["text"]["anyOf"] == [*column, {"type": "array", "items": {"anyOf": column}}]
    assert data["text_pair"]["anyOf"][-1] == {"type": "null"}
    assert data["header"]["anyOf"] == [{"type": "boolean"}, {"const": "auto", "type": "string"}]
    assert data["label_names"]["additionalProperties"] == {"type": "string"}
    weights = sections["ClassifySettings"]["properties"]["class_weights"]
    assert weights["anyOf"] == [
        {"enum": ["equal", "balanced"], "type": "string"},
        {"type": "object", "additionalProperties": {"type": "number"}},
    ]


# --- conflicts -----------------------------------------------------------------------------------

FOLDS = ["data.num_folds=5"]
NAMES = 'data.label_names={"0": bad, "1": good}'


@pytest.mark.parametrize(
    ("overrides", "key", "hint"),
    [
        (["data.text=0"], "data.text", "numbered from 1"),
        (["data.text_pair=[2, -1]"], "data.text_pair", "found -1"),
        (["data.label=''"], "data.label", "found no name"),
        (["data.text=[]"], "data.text", "found no columns"),
        (["data.label=[toxic, threat]"], "data.label", "set data.multi_label to true"),
        ([*FOLDS, "data.eval_path=owner/x"], "data.num_folds", "add data.eval_path=null"),
        ([*FOLDS, "data.fold=6"], "data.fold", "found 6, accepts 1 to 5"),
        (["data.fold=2"], "data.fold", "without data.num_folds"),
        (["data.on_overlap=keep"], "data.on_overlap", "without data.eval_path"),
        (["data.eval_fraction=0"], "train.eval_strategy", "without rows to evaluate on"),
        (
            ["classify.early_stopping_patience=2", "train.load_best_model_at_end=false"],
            "classify.early_stopping_patience",
            "set train.load_best_model_at_end to true",
        ),
        (
            [NAMES, "classify.class_weights={bda: 1}"],
            "classify.class_weights",
            "found 'bda', accepts 'bad', 'good' (data.label_names) (did you mean 'bad'?)",
        ),
        (["classify.class_weights={a: 0}"], "classify.class_weights", "found 0 for 'a', accepts a"),
        (
            [
                "classify.early_stopping_patience=2",
                "train.restore_callback_states_from_checkpoint=false",
            ],
            "classify.early_stopping_patience",
            "set train.restore_callback_states_from_checkpoint to true",
        ),
        (
            ["train.metric_for_best_model=f1"],
            "train.metric_for_best_model",
            "found 'f1', accepts loss, accuracy, macro_f1, weighted_f1, mcc",
        ),
        (
            ["train.metric_for_best_model=mcc", "data.multi_label=true"],
            "train.metric_for_best_model",
            "found 'mcc', accepts loss, accuracy, micro_f1, macro_f1",
        ),
    ],
)
def test_settings_of_a_classifier_that_cannot_go_together_are_refused(recipe, overrides, key, hint):
    (problem,) = problems_of(recipe, *overrides)
    assert problem.startswith(f"command line: {key}: ") or key == "train.eval_strategy"
    assert f"{key}: " in problem
    assert hint in problem


def test_early_stopping_without_evaluation_is_refused_beside_what_else_needs_it(recipe):
    overrides = ("classify.early_stopping_patience=2", "train.eval_strategy=no")
    problems = problems_of(recipe, *overrides)
    assert "it counts evaluations" in problems[-1]
    assert any("train.load_best_model_at_end" in problem for problem in problems)


@pytest.mark.parametrize(
    "overrides",
    [
        FOLDS,
        [*FOLDS, "data.fold=5"],
        [*FOLDS, "data.eval_fraction=0"],
        [*FOLDS, "data.eval_fraction=0.2"],
        ["train.metric_for_best_model=eval_macro_f1"],
        ["train.metric_for_best_model=micro_f1", "data.multi_label=true"],
        ["data.eval_path=owner/x", "data.on_overlap=keep"],
        ["classify.early_stopping_patience=2"],
        [NAMES, "classify.class_weights={bad: 1, good: 3}"],
        ["classify.class_weights={anything: 1}"],
        ["data.multi_label=true", "data.label=[toxic, threat]"],
        ["data.multi_label=true", "classify.class_weights={toxic: 2}"],
        ["data.label=[label]"],
        ["classify.label_smoothing=0.1"],
        ["data.multi_label=true", "classify.label_smoothing=0.1"],
    ],
)
def test_settings_of_a_classifier_that_can_go_together_are_accepted(recipe, overrides):
    read(recipe, *overrides)


def test_a_conflict_has_the_line_of_its_key(recipe):
    text = YAML.replace("reviews\n", "reviews\n  num_folds: 3\n  fold: 4\n  on_overlap: keep\n")
    places = [problem.split(": ")[:2] for problem in problems_of(recipe, text=text)]
    assert places == [
        ["classify_bert.yaml:6", "data.fold"],
        ["classify_bert.yaml:7", "data.on_overlap"],
    ]


def test_folds_that_are_no_number_are_one_problem_and_not_two(recipe):
    (problem,) = problems_of(recipe, "data.num_folds=five", "data.eval_fraction=0")
    assert "data.num_folds: found 'five'" in problem


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_metrics_that_may_be_named_are_those_an_evaluation_gives(multi_label):
    import numpy as np
    from transformers import EvalPrediction

    from sft_kit.config.label_rules import METRICS
    from sft_kit.evaluation.classification import class_metrics

    labels = np.eye(3) if multi_label else np.arange(3)
    found = class_metrics(EvalPrediction(np.eye(3), labels))
    assert set(found) == set(METRICS[multi_label])
