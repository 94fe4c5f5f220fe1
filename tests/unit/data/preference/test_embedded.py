"""The project's own preference sample: made by its script, split by prompt, not told by length."""

import importlib
import json
import re
import sys
from itertools import chain
from pathlib import Path

import pytest

from sft_kit.data.preference.inspection import inspect_preferences
from sft_kit.data.preference.splits import load_preferences
from sft_kit.data.preference.tokenization import check_preferences, tokenize_preferences
from sft_kit.data.templates import choose_template
from sft_kit.settings import PreferenceDataSettings

DATA = Path(__file__).resolve().parents[4] / "data"
SAMPLE = DATA / "preferences.jsonl"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the scripts of data/ importable, as they are for one another."""
    monkeypatch.syspath_prepend(str(DATA))
    for script in DATA.glob("*.py"):
        monkeypatch.delitem(sys.modules, script.stem, raising=False)


def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


def test_the_script_makes_the_file_byte_by_byte(scripts, tmp_path, monkeypatch) -> None:
    made = tmp_path / "preferences.jsonl"
    monkeypatch.setattr(sys, "argv", ["make_preferences", "--output", str(made)])
    importlib.import_module("make_preferences").main()
    assert made.read_bytes() == SAMPLE.read_bytes()


def test_chosen_answers_are_right_and_rejected_ones_are_wrong_here(scripts) -> None:
    from make_instructions import SMALL_TALK
    from questions import all_questions

    right = {
        prompt: question.answer
        for question in all_questions()
        for prompt in (*question.wordings, f"{question.task}\n\n{question.task_input}")
    }
    right |= {prompt: answer for answer, *prompts in SMALL_TALK for prompt in prompts}
    assert all(right[row["prompt"]] == row["chosen"] for row in rows())
    assert not any(right[row["prompt"]] == row["rejected"] for row in rows())
    off_topic = sum(row["rejected"] in right.values() for row in rows())
    assert 0.28 <= off_topic / len(rows()) <= 0.38, "else the prompt need not be read"


def test_rows_are_many_bilingual_and_each_prompt_has_three_bad_answers() -> None:
    found = rows()
    chinese = sum(bool(re.search("[\u4e00-\u9fff]", row["chosen"])) for row in found)
    assert len(found) >= 600
    assert 0.4 <= chinese / len(found) <= 0.6
    bad: dict[str, set[str]] = {}
    for row in found:
        bad.setdefault(row["prompt"], set()).add(row["rejected"])
    assert {len(answers) for answers in bad.values()} == {3}


def test_the_sample_has_no_flaw_fits_the_checkpoint_and_length_does_not_decide() -> None:
    from transformers import AutoTokenizer

    settings = PreferenceDataSettings(str(SAMPLE))
    splits = load_preferences(settings)
    report = splits.report
    assert len(splits.notes()) == 1, splits.notes()
    assert (report.num_bad_rows, report.num_duplicates, report.contradictions) == (0, 0, [])
    train, held_out = (
        {row.prompt[-1]["content"] for row in side} for side in (splits.train, splits.eval)
    )
    assert not train & held_out
    tokenizer = AutoTokenizer.from_pretrained(DATA / "checkpoints" / "tiny-gpt2")
    template = choose_template(tokenizer, "auto")
    everything = [*splits.train, *splits.eval]
    examples = tokenize_preferences(everything, tokenizer, template, settings)
    assert len(examples) == len(rows())
    warnings = check_preferences(examples, everything, tokenizer, template, settings)
    assert all("lowered" in warning for warning in warnings)
    assert max(map(len, chain.from_iterable(one.input_ids for one in examples))) < 100
    figures = inspect_preferences(examples)
    assert figures.longer_wins_fraction <= 0.58
    assert figures.shorter_wins_fraction <= 0.58
