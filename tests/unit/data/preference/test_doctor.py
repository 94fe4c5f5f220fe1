"""`sft-kit inspect` of reward and PPO recipes: the whole report, its exit code, its refusals."""

import json
import re
import sys

import pytest

from sft_kit.cli import main
from sft_kit.data.preference.inspection import inspect_preferences
from sft_kit.data.preference.rows import Comparison, PreferenceExample
from sft_kit.data.rows import Where

REWARD_RECIPE = """\
from dataclasses import dataclass
from transformers import TrainingArguments
from sft_kit.settings import ModelSettings, PreferenceDataSettings, RewardSettings

@dataclass
class Settings:
    model: ModelSettings
    data: PreferenceDataSettings
    reward: RewardSettings
    train: TrainingArguments
"""
PPO_RECIPE = """\
from dataclasses import dataclass
from transformers import TrainingArguments
from sft_kit.settings import ModelSettings, PpoSettings, PromptDataSettings

@dataclass
class Settings:
    model: ModelSettings
    data: PromptDataSettings
    ppo: PpoSettings
    train: TrainingArguments
"""
YAML = "model:\n  checkpoint: {checkpoint}\ndata:\n  path: rows.jsonl\n  eval_fraction: 0.25\n"
YAML += "train:\n  learning_rate: 1.0e-4\n  remove_unused_columns: false\n"
ROWS = [
    {"prompt": "Is it wet?", "chosen": "Yes.", "rejected": "No, water is dry and cold today."},
    {"prompt": "Is it wet?", "chosen": "No, water is dry and cold today.", "rejected": "Yes."},
    {"prompt": "How are you?", "chosen": "I am <b>well</b>.", "rejected": "Go."},
    {"prompt": "What is ice?", "chosen": "Water.", "rejected": "Water."},
    {"prompt": "What is water?", "chosen": "A liquid.", "rejected": "liquid liquid " * 60},
]


@pytest.fixture
def recipe(gpt2_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (gpt2_checkpoint / "model.safetensors").unlink()  # no weights are needed
    for name, text, section in (
        ("reward", REWARD_RECIPE, "reward:\n  center_weight: 0.1\n"),
        ("ppo", PPO_RECIPE, "ppo:\n  max_new_tokens: 16\n"),
    ):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        yaml = YAML.format(checkpoint=gpt2_checkpoint) + section
        (tmp_path / f"{name}.yaml").write_text(yaml, encoding="utf-8")
    write(ROWS)
    return "reward.yaml"


def write(rows):
    with open("rows.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the console script's function; return exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sft-kit", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as caught:
            main()
        out = capsys.readouterr()
        return caught.value.code or 0, out.out, out.err

    return call


def figure(text, caption):
    return re.search(rf"^{re.escape(caption)}\s{{2,}}(.*?)\s*$", text, flags=re.MULTILINE)[1]


def test_the_report_counts_lengths_contradictions_and_what_was_dropped(call, recipe) -> None:
    code, out, _ = call("inspect", recipe, "data.eval_fraction=0", "data.max_length=90")
    assert code == 0
    assert figure(out, "rows read") == "5"
    assert figure(out, "rows without two different answers") == "1 !"
    assert figure(out, "comparisons that contradict another") == "1 !"
    assert "rows.jsonl:2 contradicts rows.jsonl:1" in out
    assert figure(out, "comparisons") == "3"
    assert figure(out, "answers of a prompt: comparisons") == "2: 3"
    assert figure(out, "the longer one is better") == "66.7% !"
    assert figure(out, "the shorter one is better") == "33.3%"
    assert "1 answer of more than 90 tokens with the prompt (line 5) dropped" in out
    assert "user: How are you?" in out
    assert re.search(r"assistant: I am <b>well</b>\.\s+│ assistant: Go\.", out)


def test_the_page_holds_the_same_and_escapes_what_rows_say(call, recipe, tmp_path) -> None:
    code, out, _ = call("inspect", recipe, "data.eval_fraction=0", "--html", "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (code, "written: page.html" in out) == (0, True)
    assert "I am &lt;b&gt;well&lt;/b&gt;." in page
    assert "rows.jsonl:2 contradicts rows.jsonl:1" in page
    assert not re.search(r"<script|https?://|<b>well", page)


def test_bad_rows_are_shown_beside_the_others_and_refused_at_the_end(call, recipe) -> None:
    write([*ROWS, {"prompt": "Is it?", "chosen": "Yes.", "rejected": ""}])
    code, out, err = call("inspect", recipe)
    assert code == 1
    assert figure(out, "rows read") == "6"
    assert "rows.jsonl:6: rejected: found an empty text" in out
    assert "1 of 6 rows can't be used" in err
    assert "Traceback" not in err


def test_no_comparison_within_the_limit_is_refused(call, recipe) -> None:
    code, _, err = call("inspect", recipe, "data.max_length=8")
    assert code == 1
    assert "no comparison is left" in err


def test_prompts_of_a_ppo_recipe_are_shown(call, recipe) -> None:
    code, out, _ = call("inspect", "ppo.yaml", "--examples", 9)
    assert code == 0
    assert "format preference: chosen-rejected, 5 rows read, 3 prompts to train on, 1 held" in out
    assert out.count("user: ") == 3
    code, _, err = call("inspect", "ppo.yaml", "--html", "page.html")
    assert code == 2
    assert "--html" in err


def test_the_range_of_the_margins_is_a_figure(call, recipe) -> None:
    write([row | {"by": number / 4} for number, row in enumerate(ROWS[2:])])
    code, out, _ = call("inspect", recipe, "data.margin=by", "data.eval_fraction=0")
    assert code == 0
    assert figure(out, "margins: min / median / max") == "0 / 0.25 / 0.5"
    assert "! data: nothing is held out" in out


def test_every_pair_of_a_list_counts_in_the_figures() -> None:
    where = Where("rows.jsonl", 1)
    comparison = Comparison((), (), 0.0, "rows.jsonl", where)
    ids = ((1, 2, 3), (1, 4, 5, 6), (1, 7), (1, 8))
    figures = inspect_preferences([PreferenceExample(ids, 1, 0.0, comparison)])
    # Tokens: 2 < 3, 2 > 1, 2 > 1, 3 > 1, 3 > 1, 1 = 1.
    assert (figures.num_pairs, figures.group_sizes) == (6, {4: 1})
    assert figures.longer_wins_fraction == pytest.approx(4 / 6)
    assert figures.shorter_wins_fraction == pytest.approx(1 / 6)
    assert figures.better_lengths == (2, 2, 2, 3, 3, 1)
