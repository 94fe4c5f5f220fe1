"""The sections of reward and PPO recipes: what can't go together is told with its line."""

import pytest

from sft_kit.config import read_config
from sft_kit.errors import ConfigError

RECIPE = """\
from dataclasses import dataclass
from peft import LoraConfig
from transformers import TrainingArguments
from sft_kit.settings import (
    ModelSettings, PpoSettings, PromptDataSettings, PtxSettings, ScoreSettings
)

@dataclass
class Settings:
    model: ModelSettings
    adapter: LoraConfig | None
    data: PromptDataSettings
    reward: ScoreSettings
    ppo: PpoSettings
    ptx: PtxSettings
    train: TrainingArguments
"""
YAML = """\
model:
  checkpoint: owner/gpt2
adapter:
  target_modules: all-linear
data:
  path: owner/prompts
reward:
  functions: {"rewards:happy": 1.0}
ppo:
  num_rollouts: 4
ptx:
  coefficient: 0.0
train:
  learning_rate: 1.0e-5
"""
REWARD_RECIPE = RECIPE.replace("PromptDataSettings", "PreferenceDataSettings").replace(
    "ScoreSettings", "RewardSettings"
)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ppo_gpt2.py"
    path.write_text(RECIPE, encoding="utf-8")
    for name, file in (("rm", "adapter_config.json"), ("full", "config.json"), ("empty", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("{}", encoding="utf-8")
    return path


def problems_of(recipe, *overrides, text=YAML):
    path = recipe.with_suffix(".yaml")
    path.write_text(text, encoding="utf-8")
    try:
        read_config(recipe, [path], overrides)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("reward.model=rm",),
        ("reward.model=full", "reward.model_weight=2", "reward.normalise=reference"),
        ("ppo.sft_adapter=rm",),
        ("reward.no_stop=penalise", "reward.no_stop_value=2"),
        ("ppo.kl_target=6", "ppo.kl_horizon=100"),
        ("ppo.kl_target=6", "ppo.kl_horizon=13"),
        ("ppo.keep=best", "ppo.eval_rollouts=2"),
        ("ptx.coefficient=0.5", "ptx.path=rows.jsonl"),
        ("ptx.coefficient=1", "ptx.path=owner/rows", "ptx.mix=convex"),
        ("adapter=null", "ppo.value=shared"),
        ("data.eval_fraction=0", "ppo.eval_rollouts=0"),
        ("ppo.num_minibatches=64",),
        ("reward.gold=my/rewards.py:gold",),
    ],
)
def test_what_goes_together_passes(recipe, overrides) -> None:
    assert problems_of(recipe, *overrides) == []


@pytest.mark.parametrize(
    ("overrides", "key", "found"),
    [
        (("reward.model=nowhere",), "reward.model", "no such folder"),
        (("reward.model=rows.jsonl",), "reward.model", "found the file"),
        (("reward.model=empty",), "reward.model", "no finished run"),
        (("ppo.sft_adapter=nowhere",), "ppo.sft_adapter", "no such folder"),
        (("reward.functions={happy: 1.0}",), "reward.functions", "module:function"),
        (("reward.gold=happy",), "reward.gold", "module:function"),
        (("reward.model_weight=2",), "reward.model_weight", "without reward.model"),
        (("reward.normalise=reference",), "reward.normalise", "without reward.model"),
        (("reward.no_stop_value=2",), "reward.no_stop_value", "does not use it"),
        (("ppo.num_minibatches=65",), "ppo.num_minibatches", "episodes_per_rollout (64)"),
        (("ppo.kl_target=6", "ppo.kl_coefficient=0"), "ppo.kl_target", "no factor can change"),
        (("ppo.kl_horizon=100",), "ppo.kl_horizon", "without ppo.kl_target"),
        (
            ("ppo.kl_target=6", "ppo.kl_horizon=12"),
            "ppo.kl_horizon",
            "found 12, accepts more than 12.8",
        ),
        (("ppo.keep=best", "ppo.eval_rollouts=0"), "ppo.keep", "nothing is evaluated"),
        (("ppo.value_warmup_rollouts=4",), "ppo.value_warmup_rollouts", "never learns"),
        (("ppo.warmup_rollouts=5",), "ppo.warmup_rollouts", "never peak"),
        (("adapter=null",), "ppo.value", "set it to shared or model"),
        (
            ("adapter=null", "ppo.value=shared", "ppo.sft_adapter=rm"),
            "ppo.sft_adapter",
            "`adapter:` is null",
        ),
        (("data.eval_fraction=0",), "ppo.eval_rollouts", "without prompts to evaluate on"),
        (("data.path=gone.jsonl",), "data.path", "no such file"),
        (("ptx.coefficient=0.1",), "ptx.coefficient", "without ptx.path"),
        (("ptx.path=rows.jsonl",), "ptx.path", "would not be read"),
        (("ptx.coefficient=0.1", "ptx.path=gone.jsonl"), "ptx.path", "no such file"),
        (
            ("ptx.coefficient=1.5", "ptx.path=rows.jsonl", "ptx.mix=convex"),
            "ptx.coefficient",
            "accepts 0 to 1",
        ),
    ],
)
def test_what_cannot_work_is_told_once_by_its_key(recipe, overrides, key, found) -> None:
    (problem,) = problems_of(recipe, *overrides)
    assert f": {key}: " in problem
    assert found in problem


def test_something_must_give_a_score(recipe) -> None:
    text = YAML.replace('  functions: {"rewards:happy": 1.0}', "  no_stop: none")
    (problem,) = problems_of(recipe, text=text)
    assert ": reward.model: found neither a reward model nor a function" in problem
    assert problems_of(recipe, "reward.model=rm", text=text) == []


def test_several_mistakes_are_told_at_once_with_their_lines(recipe) -> None:
    text = YAML.replace("num_rollouts: 4", "num_rollouts: 4\n  kl_horizon: 5").replace(
        "coefficient: 0.0", "coefficient: 0.2"
    )
    problems = problems_of(recipe, "reward.gold=x", text=text)
    places = {problem.partition(": ")[0] for problem in problems}
    assert {place.rpartition(":")[2] for place in places} == {"11", "13", "command line"}


def test_the_data_of_a_reward_recipe_is_looked_up_and_its_files_told_apart(recipe) -> None:
    recipe.write_text(REWARD_RECIPE, encoding="utf-8")
    text = YAML.replace('  functions: {"rewards:happy": 1.0}', "  center_weight: 0.1")
    text += "  remove_unused_columns: false\n"
    assert problems_of(recipe, text=text) == []
    (missing,) = problems_of(recipe, "data.path=gone.jsonl", text=text)
    assert ": data.path: " in missing
    (both,) = problems_of(recipe, "data.eval_path=rows.jsonl", "data.eval_fraction=0.2", text=text)
    assert ": data.eval_fraction: " in both


def test_a_reward_model_keeps_its_margins_and_its_metrics_have_names(recipe) -> None:
    recipe.write_text(REWARD_RECIPE, encoding="utf-8")
    text = YAML.replace('  functions: {"rewards:happy": 1.0}', "  center_weight: 0.1")
    (margins,) = problems_of(recipe, text=text)
    assert "train.remove_unused_columns: found true" in margins
    kept = "train.remove_unused_columns=false"
    best = "train.metric_for_best_model="
    assert problems_of(recipe, kept, f"{best}eval_accuracy", text=text) == []
    (metric,) = problems_of(recipe, kept, f"{best}acuracy", text=text)
    assert "accepts loss, accuracy, ties_fraction (did you mean 'accuracy'?)" in metric
