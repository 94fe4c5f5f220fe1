"""Prompts of every format: ids as chat sends them, once each, on one side, and short enough."""

import json

import pytest

from sft_kit.data.preference.prompts import load_prompts
from sft_kit.data.templates import choose_template, encode_prompt
from sft_kit.errors import DataError, FormatError
from sft_kit.settings import PromptDataSettings

U = {"role": "user", "content": "What is water?"}
A = {"role": "assistant", "content": "A liquid."}


@pytest.fixture
def write(tmp_path):
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def load(path, tokenizer, *, context=None, max_new_tokens=8, eval_fraction=0.0, **settings):
    chosen = PromptDataSettings(path, eval_fraction=eval_fraction, **settings)
    template = choose_template(tokenizer, "auto")
    return load_prompts(chosen, tokenizer, template, context=context, max_new_tokens=max_new_tokens)


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({"prompt": U["content"], "answer": 3}, {"answer": 3}),
        ({"prompt": [U]}, {}),
        ({"messages": [U, A], "id": "x"}, {"id": "x"}),
        ({"messages": [U]}, {}),
        ({"conversations": [{"from": "human", "value": U["content"]}]}, {}),
        (
            {
                "conversations": [
                    {"from": "human", "value": U["content"]},
                    {"from": "gpt", "value": "A liquid."},
                ]
            },
            {},
        ),
        ({"instruction": "What is water?", "output": "A liquid."}, {"output": "A liquid."}),
        ({"instruction": "What is water?"}, {}),
        (
            {"prompt": U["content"], "completion": "A liquid."},
            {"completion": "A liquid."},
        ),
        ({"prompt": [U], "completion": [A]}, {"completion": [A]}),
        (
            {"prompt": U["content"], "chosen": "A liquid.", "rejected": "Ice."},
            {"chosen": "A liquid.", "rejected": "Ice."},
        ),
        (
            {"prompt": U["content"], "chosen": "Ice.", "rejected": "Ice."},
            {"chosen": "Ice.", "rejected": "Ice."},
        ),
        ({"instruction": U["content"], "output": ["a", "b"]}, {"output": ["a", "b"]}),
        ({"messages": [U, A], "label": False}, {"label": False}),
    ],
)
def test_every_format_gives_the_prompt_as_chat_sends_it(
    write, bos_tokenizer, fields, columns
) -> None:
    (prompt,) = load(write([fields]), bos_tokenizer).train
    template = choose_template(bos_tokenizer, "auto")
    assert list(prompt.input_ids) == encode_prompt(bos_tokenizer, template, [U])
    assert (prompt.messages, prompt.text) == ((U,), U["content"])
    assert prompt.columns == columns


def test_only_the_last_answer_is_left_out(write, tokenizer) -> None:
    turns = [U, A, {"role": "user", "content": "And ice?"}, {"role": "assistant", "content": "No"}]
    (prompt,) = load(write([{"messages": turns}]), tokenizer).train
    assert (prompt.messages, prompt.text) == (tuple(turns[:3]), "And ice?")


def test_plain_text_is_continued_with_leading_tokens_and_without_a_stop(
    tmp_path, write, bos_tokenizer
) -> None:
    lines = tmp_path / "rows.txt"
    lines.write_text("Water boils\n", encoding="utf-8")
    for path in (str(lines), write([{"text": "Water boils"}])):
        (prompt,) = load(path, bos_tokenizer).train
        assert list(prompt.input_ids) == bos_tokenizer("Water boils")["input_ids"]
        assert (prompt.messages, prompt.text) == ((), "Water boils")


def test_plain_text_pairs_give_their_common_beginning(write, tokenizer) -> None:
    rows = [{"chosen": "Water boils today.", "rejected": "Water boils tonight."}]
    (prompt,) = load(write(rows), tokenizer).train
    assert prompt.text == "Water boils"


def test_a_prompt_that_stands_several_times_is_kept_once(write, tokenizer) -> None:
    rows = [{"prompt": text} for text in ("Is it wet?", "is it  WET?", "Is it dry?", "Is it wet?")]
    splits = load(write(rows), tokenizer)
    assert [prompt.text for prompt in splits.train] == ["Is it wet?", "Is it dry?"]
    assert splits.report.num_duplicates == 2
    assert any("2 repeated prompts" in note for note in splits.notes())


@pytest.mark.parametrize("seed", range(3))
def test_the_split_is_seeded_and_has_no_prompt_on_both_sides(write, tokenizer, seed) -> None:
    path = write([{"prompt": f"What is {number}?"} for number in range(20)] * 2)
    splits = load(path, tokenizer, eval_fraction=0.2, split_seed=seed)
    train, held_out = ({prompt.text for prompt in side} for side in (splits.train, splits.eval))
    assert not train & held_out
    assert (len(train), len(held_out)) == (16, 4)
    again = load(path, tokenizer, eval_fraction=0.2, split_seed=seed)
    assert again == splits


def test_training_does_without_the_prompts_of_the_held_out_file(write, tokenizer) -> None:
    path = write([{"prompt": "What is water?"}, {"prompt": "What is ice?"}])
    eval_path = write([{"prompt": "what is ICE?"}], "eval.jsonl")
    splits = load(path, tokenizer, eval_path=eval_path)
    assert [prompt.text for prompt in splits.train] == ["What is water?"]
    assert splits.describe()["num_overlaps"] == 1
    with pytest.raises(DataError, match="no prompt is left"):
        load(path, tokenizer, eval_path=path)


def test_long_prompts_are_dropped_or_cut_behind_the_leading_tokens(write, bos_tokenizer) -> None:
    long = "today " * 30 + "water"
    path = write([{"text": "short"}, {"text": long}])
    dropped = load(path, bos_tokenizer, max_prompt_length=12)
    assert [prompt.text for prompt in dropped.train] == ["short"]
    assert "1 row with a prompt of more than 12 tokens left out (line 2)" in " ".join(
        dropped.notes()
    )
    cut = load(path, bos_tokenizer, max_prompt_length=12, on_long_prompt="cut").train[1]
    whole = bos_tokenizer(long)["input_ids"]
    assert list(cut.input_ids) == whole[:1] + whole[-11:]


def test_prompts_that_cutting_makes_equal_are_kept_once(write, tokenizer) -> None:
    path = write([{"text": f"{start} " + "water " * 20} for start in ("one", "two")])
    splits = load(path, tokenizer, max_prompt_length=8, on_long_prompt="cut")
    assert (len(splits.train), splits.report.num_duplicates) == (1, 1)


def test_a_completion_has_room_in_the_context(write, tokenizer) -> None:
    path = write([{"text": "Water boils at one hundred degrees."}, {"text": "Ice"}])
    splits = load(path, tokenizer, context=16, max_new_tokens=12)
    assert splits.report.limit == 3
    assert all(len(prompt.input_ids) <= 3 for prompt in splits.train)
    assert "max_prompt_length=256 was lowered to 3" in " ".join(splits.notes())
    with pytest.raises(DataError, match="leaves no room for a prompt"):
        load(path, tokenizer, context=16, max_new_tokens=16)


def test_nothing_but_long_prompts_is_refused(write, tokenizer) -> None:
    path = write([{"text": "Water boils at one hundred degrees."}] * 3)
    with pytest.raises(DataError, match=r"the only prompt is longer than 2 tokens \(raise"):
        load(path, tokenizer, max_prompt_length=2)


def test_long_prompts_are_counted_once_and_advice_is_of_use(write, tokenizer) -> None:
    texts = ("Is water wet today?", "is water WET  today?", "Is ice dry today?")
    path = write([{"prompt": text} for text in texts] * 4)
    with pytest.raises(DataError, match=r"all 2 prompts are longer than 4 tokens \(raise data\."):
        load(path, tokenizer, max_prompt_length=4)
    advice = r"all 2 prompts are longer than 3 tokens \(lower ppo\.max_new_tokens"
    with pytest.raises(DataError, match=advice):
        load(path, tokenizer, context=16, max_new_tokens=12)


def test_bad_rows_are_told_by_place_or_skipped(write, tokenizer) -> None:
    path = write([{"prompt": "What is ice?"}, {"prompt": 5}, {"prompt": []}])
    with pytest.raises(FormatError, match="2 of 3 rows") as caught:
        load(path, tokenizer)
    assert [problem.key for problem in caught.value.problems] == ["prompt", "prompt"]
    splits = load(path, tokenizer, on_bad_row="skip")
    assert (len(splits.train), splits.report.num_bad_rows) == (1, 2)


def test_special_tokens_spelled_in_prompts_are_refused(write, tokenizer) -> None:
    rows = [{"prompt": "x <|endoftext|> y"}, {"prompt": "What is ice?"}]
    with pytest.raises(DataError, match="spells the special token"):
        load(write(rows), tokenizer)


def test_a_preference_file_can_be_named_as_such(write, tokenizer) -> None:
    path = write([{"prompt": "What is ice?", "answers": ["Cold.", "Hot."]}])
    splits = load(path, tokenizer, format="preference")
    assert splits.report.format == "preference: ranked"
