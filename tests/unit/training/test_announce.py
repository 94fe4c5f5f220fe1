import re

import numpy as np
import pytest
from accelerate import PartialState
from transformers import PreTrainedTokenizerFast

from sft_kit.data.preference.rows import Comparison, PreferenceExample
from sft_kit.data.rows import Example, Where
from sft_kit.training.announce import announce, announce_preferences, announce_pretraining

FACTS: dict[str, object] = {
    "trainable_parameters": 10, "total_parameters": 1_000, "num_processes": 1, "micro_batch": 4,
    "gradient_accumulation_steps": 2, "global_batch": 8, "num_steps": 30, "epochs": 2.0,
    "tokens_per_step": 900,
}  # fmt: skip


@pytest.fixture
def example(tokenizer: PreTrainedTokenizerFast) -> Example:
    prompt = tokenizer("Human: How are you?\n")["input_ids"]
    answer = [*tokenizer("I am [well]")["input_ids"], tokenizer.eos_token_id]
    labels = [-100] * len(prompt) + answer
    return Example(prompt + answer, labels, was_cut=False, where=Where("[red]rows.json", 7))


def test_facts_warnings_and_the_first_example_are_told_on_stderr(
    example: Example, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
):
    announce(FACTS, ["device: cpu [2 cores]"], ["rows [x] are odd"], example, tokenizer)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[:6] == [
        "device: cpu [2 cores]",
        "parameters: 10 of 1,000 train (1.00%)",
        "global batch: 4 examples x 1 processes x 2 accumulation = 8",
        "steps: 30 (2.0 epochs), about 900 tokens each",
        "warning: rows [x] are odd",
        "first example ([red]rows.json:7), what is learnt in ⟦ ⟧:",
    ]
    shown = "\n".join(lines[6:])
    assert shown.startswith("Human: How are you?")
    assert "⟦I am [well]" in shown
    assert "<|endoftext|>⟧" in shown


def test_a_long_example_is_cut_in_the_display(
    tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
):
    ids = tokenizer(" dog" * 500)["input_ids"]
    long = Example(ids, [-100, *ids[1:]], was_cut=False, where=Where("rows.json", 1))
    announce(FACTS, [], [], long, tokenizer)
    shown = re.sub("[\n⟦⟧]", "", capsys.readouterr().err)
    assert shown.count("dog") == tokenizer.decode(ids[:120]).count("dog") > 20


@pytest.mark.parametrize("num_answers", [2, 4, 5, 9])
def test_of_a_long_list_of_answers_the_first_four_are_shown(
    tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str], num_answers: int
):
    prompt = tuple(tokenizer("How are you?")["input_ids"])
    answers = [tuple(tokenizer(f" well {number}")["input_ids"]) for number in range(num_answers)]
    comparison = Comparison((), (), 0.0, "rows.json", Where("rows.json", 7))
    ids = tuple(prompt + answer for answer in answers)
    announce_preferences(
        FACTS, [], [], PreferenceExample(ids, len(prompt), 0.0, comparison), tokenizer
    )
    _, *shown = capsys.readouterr().err.partition("first example")[2].splitlines()
    first = [f"  answer {number + 1}: ' well {number}'" for number in range(min(num_answers, 4))]
    more = [f"  ... and {num_answers - 4} more"] if num_answers > 4 else []
    assert shown == ["  prompt: 'How are you?'", *first, *more]


def test_other_processes_say_nothing(
    example: Example,
    tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(PartialState, "is_main_process", False)
    announce(FACTS, ["note"], ["warning"], example, tokenizer)
    assert capsys.readouterr() == ("", "")


def test_a_pretraining_shows_what_is_hidden_and_what_is_learnt(
    tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
):
    ids = np.array(tokenizer("How are you [today]?")["input_ids"])
    labels = np.where(np.arange(len(ids)) > 0, ids, -100)
    apart = {"documents": np.array([1, 1] + [2] * (len(ids) - 2))}
    announce_pretraining(FACTS, ["a"], ["b"], {"input_ids": ids, "labels": labels}, tokenizer)
    lines = capsys.readouterr().err.splitlines()
    assert [lines[0], lines[4]] == ["a", "warning: b"]
    assert lines[5] == f"first example ({len(ids)} tokens), what is learnt in ⟦ ⟧:"
    assert re.sub("[⟦⟧]", "", "\n".join(lines[6:])) == "How are you [today]?"
    announce_pretraining(FACTS, [], [], {"input_ids": ids, "labels": labels, **apart}, tokenizer)
    shown = capsys.readouterr().err
    assert "2 documents apart" in shown
    assert shown.count("┃") == 1


def test_a_long_row_and_a_long_written_text_are_cut_in_the_display(
    tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
):
    ids = np.array(tokenizer(" dog" * 500)["input_ids"])
    announce_pretraining(FACTS, [], [], {"input_ids": ids, "labels": ids}, tokenizer)
    shown = re.sub("[\n⟦⟧]", "", capsys.readouterr().err)
    assert "written" in shown
    assert shown.count("dog") == 2 * tokenizer.decode(ids[:120]).count("dog") > 40
