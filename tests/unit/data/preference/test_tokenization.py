"""Compared answers have the ids that SFT and chat give them, end with a stop token, and fit."""

import pytest
import torch

from sft_kit.data.preference.collators import pad_answers
from sft_kit.data.preference.rows import Comparison
from sft_kit.data.preference.tokenization import (
    check_preferences,
    to_preference_dataset,
    tokenize_preferences,
)
from sft_kit.data.rows import Conversation, Where
from sft_kit.data.templates import choose_template, encode_prompt
from sft_kit.data.tokenization import encode_conversation
from sft_kit.errors import DataError
from sft_kit.settings import PreferenceDataSettings

PROMPT = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How are you today?"},
    {"role": "assistant", "content": "Well."},
    {"role": "user", "content": "What is water?"},
)
# ChatGLM2's habit: an earlier answer is followed by another text than a last one.
REWRITING = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}"
    "{% if loop.last %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}"
    "{% else %}{{ m['content'] + '\\n' }}{% endif %}{% endfor %}"
)


def answer(*texts):
    roles = ("assistant", "user") * len(texts)
    return tuple({"role": role, "content": text} for role, text in zip(roles, texts, strict=False))


def compare(*answers, prompt=PROMPT, margin=0.0, line=1):
    return Comparison(prompt, answers, margin, "rows.jsonl", Where("rows.jsonl", line))


def plain(*texts):
    return compare(*(({"role": "text", "content": text},) for text in texts), prompt=())


def encode(comparisons, tokenizer, *, has_settings=True, **settings):
    template = choose_template(tokenizer, "auto")
    chosen = PreferenceDataSettings("rows.jsonl", **settings)
    examples = tokenize_preferences(comparisons, tokenizer, template, chosen)
    warnings = check_preferences(
        examples, comparisons, tokenizer, template, chosen, has_settings=has_settings
    )
    return examples, warnings


@pytest.mark.parametrize("source", [None, REWRITING])
def test_ids_are_those_of_chat_and_of_supervised_fine_tuning(bos_tokenizer, source) -> None:
    bos_tokenizer.chat_template = source
    comparison = compare(answer("A liquid."), answer("Ice"), answer("Is it?", "No.", "Then fog."))
    ((example,), warnings) = encode([comparison], bos_tokenizer)
    template = choose_template(bos_tokenizer, "auto")
    for ids, turns in zip(example.input_ids, comparison.answers, strict=True):
        whole = Conversation((*PROMPT, *turns), comparison.where)
        assert list(ids) == encode_conversation(bos_tokenizer, template, whole)[0]
        assert ids[-1] == template.stop_token_id
    prompt = encode_prompt(bos_tokenizer, template, PROMPT)
    assert list(example.input_ids[0][: len(prompt)]) == prompt
    assert example.num_prompt_tokens == len(prompt)
    assert warnings == []


def test_plain_texts_get_leading_tokens_and_one_stop_token(bos_tokenizer) -> None:
    texts = ["Water boils at one", "Water melts."]
    comparison = plain(texts[0], texts[1] + bos_tokenizer.eos_token)
    ((example,), _) = encode([comparison], bos_tokenizer)
    expected = [(*bos_tokenizer(text)["input_ids"], bos_tokenizer.eos_token_id) for text in texts]
    assert list(example.input_ids) == expected
    num_common = example.num_prompt_tokens
    assert expected[0][:num_common] == expected[1][:num_common]
    assert expected[0][num_common] != expected[1][num_common]


def test_special_tokens_spelled_in_rows_are_refused_all_at_once(tokenizer) -> None:
    rows = [
        compare(answer("a"), answer("b <|endoftext|> c"), line=4),
        compare(answer("a"), answer("b")),
        compare(answer("<|endoftext|>"), answer("b"), line=9),
    ]
    with pytest.raises(DataError, match="rendered") as caught:
        encode(rows, tokenizer)
    assert [problem.where for problem in caught.value.problems] == ["rows.jsonl:4", "rows.jsonl:9"]


def test_a_long_answer_costs_a_list_the_answer_and_a_pair_the_row(tokenizer) -> None:
    long = answer("water " * 40)
    rows = [
        compare(answer("a"), long, answer("c"), line=1),
        compare(answer("a"), long, line=2),
        compare(answer("a"), answer("b"), line=3),
    ]
    examples, warnings = encode(rows, tokenizer, max_length=70)
    assert [example.comparison for example in examples] == [rows[0], rows[2]]
    short = encode([compare(answer("a"), answer("c"))], tokenizer)[0][0]
    assert examples[0].input_ids == short.input_ids
    assert len(warnings) == 1
    assert "2 answers of more than 70 tokens" in warnings[0]
    assert "(lines 1, 2)" in warnings[0]
    assert "left 1 of 3 comparisons without two answers" in warnings[0]


@pytest.mark.parametrize("limit", range(8, 60))
def test_cutting_takes_the_same_tokens_from_the_beginning_of_all(bos_tokenizer, limit) -> None:
    comparison = compare(answer("A liquid."), answer("Water is a liquid today."))
    ((whole,), _) = encode([comparison], bos_tokenizer)
    size = max(map(len, whole.input_ids))
    num_answer = size - whole.num_prompt_tokens
    if limit < num_answer + 2:  # <s>, one token of the prompt, the answer
        with pytest.raises(DataError, match="no comparison is left"):
            encode([comparison], bos_tokenizer, max_length=limit, on_long_row="cut-prompt")
        return
    settings = {"max_length": limit, "on_long_row": "cut-prompt"}
    ((example,), warnings) = encode([comparison], bos_tokenizer, **settings)
    num_cut = max(size - limit, 0)
    for ids, before in zip(example.input_ids, whole.input_ids, strict=True):
        assert ids == before[:1] + before[1 + num_cut :]
    assert example.num_prompt_tokens == whole.num_prompt_tokens - num_cut
    assert bool(warnings) == bool(num_cut)


def test_answers_with_equal_ids_are_dropped_and_counted(tokenizer) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] | trim }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    rows = [compare(answer("a"), answer(" a ")), compare(answer("a"), answer("a "), answer("b"))]
    (example,), warnings = encode(rows, tokenizer)
    assert len(example.input_ids) == 2
    assert "2 answers with the token ids of a better one" in warnings[0]
    assert "left 1 of 2 comparisons" in warnings[0]


def test_a_context_shorter_than_the_limit_bounds_it_and_is_told(tokenizer) -> None:
    tokenizer.model_max_length = 60
    rows = [compare(answer("a"), answer("water " * 50)), compare(answer("a"), answer("b"))]
    examples, warnings = encode(rows, tokenizer)
    assert len(examples) == 1
    assert warnings[0] == "data.max_length=512 was lowered to 60, the context length."
    assert warnings[1].endswith(" Set data.on_long_row=cut-prompt.")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({}, " Raise data.max_length, or set data.on_long_row=cut-prompt."),
        ({"on_long_row": "cut-prompt"}, " Raise data.max_length."),
        ({"on_long_row": "cut-prompt", "max_length": 90}, " Shorten the answers."),
        ({"has_settings": False}, " left 1 of 2 comparisons without two answers."),
    ],
)
def test_advice_about_long_answers_names_only_what_helps(tokenizer, settings, advice) -> None:
    tokenizer.model_max_length = 90
    rows = [compare(answer("a"), answer("water " * 90)), compare(answer("a"), answer("b"))]
    _, warnings = encode(rows, tokenizer, **{"max_length": 80} | settings)
    assert warnings[-1].endswith(advice)


def test_the_data_set_has_the_answers_of_a_comparison_in_one_row(tokenizer) -> None:
    rows = [
        compare(answer("a"), answer("b"), margin=0.5),
        compare(answer("a"), answer("b"), answer("c")),
    ]
    examples, _ = encode(rows, tokenizer)
    dataset = to_preference_dataset(examples)
    assert dataset.column_names == ["input_ids", "margin", "where"]
    assert dataset["margin"][:] == [0.5, 0.0]
    assert [len(ids) for ids in dataset["input_ids"]] == [2, 3]
    assert dataset[1]["input_ids"][2] == list(examples[1].input_ids[2])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_keeps_order_and_tokens_and_never_asks_for_an_id(side) -> None:
    rows = [
        {"input_ids": [[5, 6, 7], [0, 0]], "margin": 0.25},
        {"input_ids": [[1], [2, 0, 3, 4], [8, 9]], "margin": 0.0},
    ]
    batch = pad_answers(rows, pad_token_id=0, side=side)
    assert batch["labels"].tolist() == [[2, 0.25], [3, 0.0]]
    assert batch["labels"].dtype == torch.float32
    found = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert found == [[5, 6, 7], [0, 0], [1], [2, 0, 3, 4], [8, 9]]
    edge = 0 if side == "right" else -1
    assert batch["attention_mask"][:, edge].tolist() == [1] * 5
    assert batch["input_ids"].shape == (5, 4)
