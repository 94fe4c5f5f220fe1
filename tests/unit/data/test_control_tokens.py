"""Rows that spell a control token are bad rows: told with the others, or skipped and counted."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from sft_kit.data.preference.prompts import load_prompts
from sft_kit.data.preference.splits import load_preferences
from sft_kit.data.preference.tokenization import tokenize_preferences
from sft_kit.data.splits import load_conversations
from sft_kit.data.templates import choose_template
from sft_kit.data.tokenization import tokenize
from sft_kit.errors import DataError, FormatError
from sft_kit.settings import (
    DataSettings,
    PreferenceDataSettings,
    PromptDataSettings,
)

STOP = "<|endoftext|>"
Tokenizer = PreTrainedTokenizerFast


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(*rows: dict[str, object]) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def asked(question: str, answer: str = "It is cold.") -> dict[str, object]:
    return {"prompt": question, "completion": answer}


def test_conversations_that_spell_one_are_skipped_and_counted(write, tokenizer: Tokenizer):
    rows = [asked(f"What is ice {number}?") for number in range(8)]
    rows[2:2] = [asked(f"What is{STOP}?"), {"prompt": 5, "completion": "x"}]
    rows.append(asked("What is snow?", f"Cold.{STOP} And white."))
    path = write(*rows)
    settings = DataSettings(path=path, on_bad_row="skip", eval_fraction=0.25)
    splits = load_conversations(settings, tokenizer)
    assert splits.report.num_rows == 11
    assert splits.report.num_bad_rows == 3
    assert sorted({problem.where for problem in splits.report.bad_rows}) == [
        f"{path}:11", f"{path}:3", f"{path}:4",
    ]  # fmt: skip
    assert "data: 3 bad rows were skipped" in splits.notes()
    assert splits.describe()["num_bad_rows"] == 3
    template = choose_template(tokenizer, settings.template)
    examples = [
        example
        for side in (splits.train, splits.eval)
        for example in tokenize(side, tokenizer, template, settings)
    ]
    assert sorted(example.where.line for example in examples) == [1, 2, 5, 6, 7, 8, 9, 10]


def test_where_bad_rows_stop_a_run_they_are_told_with_all_others(write, tokenizer: Tokenizer):
    path = write(asked("What is ice?"), asked(f"{STOP}?"), {"prompt": 5}, asked("And snow?"))
    with pytest.raises(FormatError, match=r"2 of 4 rows can't be used.*on_bad_row=skip") as caught:
        load_conversations(DataSettings(path=path), tokenizer)
    spelled = caught.value.problems[0]
    assert spelled.where == f"{path}:2"
    assert spelled.message.startswith(f"spells the special token {STOP!r}")


def test_a_file_of_nothing_but_such_rows_is_refused_even_where_they_are_skipped(
    write, tokenizer: Tokenizer
):
    path = write(asked(STOP), asked(f"x{STOP}"))
    with pytest.raises(FormatError, match="none of the 2 rows can be used"):
        load_conversations(DataSettings(path=path, on_bad_row="skip"), tokenizer)


def test_without_a_tokenizer_they_are_left_to_tokenizing(write, tokenizer: Tokenizer):
    settings = DataSettings(path=write(asked("a?"), asked(f"b{STOP}?")), on_bad_row="skip",
                            eval_fraction=0.0)  # fmt: skip
    rows = load_conversations(settings).train
    assert len(rows) == 2
    with pytest.raises(DataError, match="spells the special token"):
        tokenize(rows, tokenizer, choose_template(tokenizer, settings.template), settings)


def test_comparisons_that_spell_one_are_skipped_but_a_plain_text_may_end_with_it(
    write, tokenizer: Tokenizer
):
    plain = {"chosen": f"Ice is cold.{STOP}", "rejected": f"Ice is hot.{STOP}"}
    rows = [
        plain,
        {"chosen": f"Snow {STOP} is cold.", "rejected": "Snow is hot."},
        {"chosen": "Rain is wet.", "rejected": "Rain is dry."},
    ]
    path = write(*rows)
    settings = PreferenceDataSettings(path, on_bad_row="skip", eval_fraction=0.0)
    template = choose_template(tokenizer, settings.template)
    splits = load_preferences(settings, tokenizer, template)
    assert [row.where.line for row in splits.train] == [1, 3]
    assert splits.report.num_bad_rows == 1
    assert len(tokenize_preferences(splits.train, tokenizer, template, settings)) == 2
    with pytest.raises(FormatError, match="1 of 3 rows"):
        load_preferences(PreferenceDataSettings(path), tokenizer, template)


def test_prompts_that_spell_one_are_skipped(write, tokenizer: Tokenizer):
    path = write({"prompt": f"What{STOP}?"}, {"prompt": "What is ice?"}, {"prompt": "And snow?"})
    template = choose_template(tokenizer, "auto")
    splits = load_prompts(
        PromptDataSettings(path, on_bad_row="skip", eval_fraction=0.0), tokenizer, template,
        context=64, max_new_tokens=8,
    )  # fmt: skip
    assert [prompt.where.line for prompt in splits.train] == [2, 3]
    assert splits.report.num_bad_rows == 1
