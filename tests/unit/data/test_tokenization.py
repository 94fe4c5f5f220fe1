"""Cutting, labelling and refusing."""

from typing import TYPE_CHECKING

import pytest

from sft_kit.data.rows import IGNORED, Conversation, Example, Message, Where
from sft_kit.data.templates import choose_template
from sft_kit.data.tokenization import encode_conversation, to_dataset, tokenize
from sft_kit.errors import DataError
from sft_kit.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def row(line: int, question: str, answer: str) -> Conversation:
    messages: tuple[Message, ...] = (
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    )
    return Conversation(messages, Where("rows.jsonl", line))


ROWS = [
    row(1, "How are you?", "I am well."),
    row(2, "什么是水？", "水是一种液体。"),
    Conversation((), Where("rows.jsonl", 3), text="Ice melts at zero."),
]


@pytest.mark.parametrize("loss_on", ["completion", "all"])
@pytest.mark.parametrize("max_length", [2, 9, 15, 512])
def test_batch_tokenization_equals_one_row_at_a_time_cut_at_max_length(
    tokenizer: "PreTrainedTokenizerFast", max_length: int, loss_on: str
) -> None:
    template = choose_template(tokenizer, "auto")
    settings = DataSettings(path="x", max_length=max_length, loss_on=loss_on)  # type: ignore[arg-type]
    examples = tokenize(ROWS, tokenizer, template, settings)
    for conversation, example in zip(ROWS, examples, strict=True):
        ids, labels = encode_conversation(tokenizer, template, conversation, settings.loss_on)
        assert example.input_ids == ids[:max_length]
        assert example.labels == labels[:max_length]
        assert example.was_cut == (len(ids) > max_length)
        assert example.where == conversation.where


def test_first_label_is_ignored_and_text_rows_learn_everything_else(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    template = choose_template(tokenizer, "auto")
    ids, labels = encode_conversation(tokenizer, template, ROWS[2])
    assert ids == [*tokenizer("Ice melts at zero.")["input_ids"], tokenizer.eos_token_id]
    assert labels == [IGNORED, *ids[1:]]
    ids, labels = encode_conversation(tokenizer, template, ROWS[0], "all")
    assert labels == [IGNORED, *ids[1:]]


def test_context_of_the_tokenizer_bounds_max_length(tokenizer: "PreTrainedTokenizerFast") -> None:
    template = choose_template(tokenizer, "auto")
    tokenizer.model_max_length = 6
    examples = tokenize(ROWS, tokenizer, template, DataSettings(path="x"))
    assert [len(example.input_ids) for example in examples] == [6, 6, 6]
    assert all(example.was_cut for example in examples)


def test_rows_that_spell_a_control_token_are_all_named(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    template = choose_template(tokenizer, "auto")
    rows = [
        row(4, "fine", "fine"),
        row(5, "bad <|endoftext|> question", "fine"),
        row(6, "fine", "ends early<|endoftext|> here"),
    ]
    with pytest.raises(DataError) as error:
        tokenize(rows, tokenizer, template, DataSettings(path="x"))
    assert [problem.where for problem in error.value.problems] == ["rows.jsonl:5", "rows.jsonl:6"]


def test_data_set_leaves_out_rows_that_teach_nothing() -> None:
    where = Where("rows.jsonl", 1)
    examples = [
        Example([1, 2, 3], [IGNORED, 2, 3], was_cut=False, where=where),
        Example([1, 2], [IGNORED, IGNORED], was_cut=True, where=where),
    ]
    data = to_dataset(examples)
    assert data.to_dict() == {
        "input_ids": [[1, 2, 3]],
        "labels": [[IGNORED, 2, 3]],
        "where": ["rows.jsonl:1"],
    }
    assert len(to_dataset([])) == 0
