"""Each format gives prompt and answers in order; bad rows are told by file, line and field."""

import json
from itertools import permutations

import pytest

from sft_kit.data.preference.comparing import prompt_text, understand_preference
from sft_kit.data.preference.formats import PREFERENCE_FORMATS, detect_preference_format
from sft_kit.data.rows import RawRow, Where
from sft_kit.errors import FormatError

U, A = "user", "assistant"


def row(fields):
    return RawRow(json.loads(json.dumps(fields)), Where("rows.jsonl", 3))


def compare(fields, margin=None):
    """Detect the format, read the row; return prompt and answers as (role, text) lists."""
    compared = understand_preference(row(fields), detect_preference_format([row(fields)]), margin)
    assert not compared.problems, compared.problems
    comparison = compared.comparison
    return pairs(comparison.prompt), [pairs(answer) for answer in comparison.answers]


def pairs(messages):
    return [(message["role"], message["content"]) for message in messages]


def problems_of(fields, name, margin=None):
    compared = understand_preference(row(fields), name, margin)
    assert compared.comparison is None
    return [str(problem) for problem in compared.problems]


def say(role, text):
    return {"role": role, "content": text}


def tell(speaker, text):
    return {"from": speaker, "value": text}


def parts(text):
    return [{"type": "text", "value": text}]


ASKED = [(U, "Q")]
ANSWERED = [[(A, "good")], [(A, "bad")]]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("chosen-rejected", {"prompt": "Q", "chosen": "good", "rejected": "bad"}),
        (
            "chosen-rejected",
            {"prompt": [say(U, "Q")], "chosen": [say(A, "good")], "rejected": [say(A, "bad")]},
        ),
        (
            "chosen-rejected",
            {"chosen": [say(U, "Q"), say(A, "good")], "rejected": [say(U, "Q"), say(A, "bad")]},
        ),
        (
            "chosen-rejected",
            {
                "prompt": "Q",
                "chosen": [say(U, "Q"), say(A, "good")],
                "rejected": [say(U, "Q"), say(A, "bad")],
                "messages": [say(U, "Q"), say(A, "good")],
            },
        ),
        (
            "chosen-rejected",
            {"prompt": "Q", "chosen": say(A, "good"), "rejected": tell("gpt", "bad")},
        ),
        (
            "chosen-rejected",
            {
                "chosen_messages": [
                    say("system", parts("")),
                    say(U, parts("Q")),
                    say(A, parts("good")),
                ],
                "rejected_messages": [say(U, parts("Q")), say(A, parts("bad"))],
            },
        ),
        (
            "transcripts",
            {
                "chosen": "\n\nHuman: Q\n\nAssistant: good",
                "rejected": "\n\nHuman: Q\n\nAssistant: bad",
            },
        ),
        (
            "transcripts",
            {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " good", "rejected": " bad"},
        ),
        ("alpaca", {"instruction": "Q", "input": "", "output": ["good", "bad"]}),
        ("alpaca", {"instruction": "Q", "chosen": "good", "rejected": "bad"}),
        (
            "sharegpt",
            {
                "conversations": [tell("human", "Q")],
                "chosen": tell("gpt", "good"),
                "rejected": tell("gpt", "bad"),
            },
        ),
        (
            "sharegpt",
            {
                "messages": [say(U, "Q")],
                "chosen": say(A, "good"),
                "rejected": say(A, "bad"),
            },
        ),
        ("ranked", {"prompt": "Q", "answers": ["good", "bad"]}),
        ("ranked", {"prompt": [say(U, "Q")], "responses": ["bad", "good"], "ranks": [2, 1]}),
        ("ranked", {"prompt": "Q", "completions": ["bad", "good"], "scores": [0.1, 0.7]}),
    ],
)
def test_every_spelling_of_a_pair_is_detected_and_read_as_the_same_pair(name, fields) -> None:
    assert detect_preference_format([row(fields)]) == name
    assert compare(fields) == (ASKED, ANSWERED)


def test_each_format_is_tried_above() -> None:
    marks = test_every_spelling_of_a_pair_is_detected_and_read_as_the_same_pair.pytestmark
    assert {case[0] for mark in marks for case in mark.args[1]} == set(PREFERENCE_FORMATS)


def test_strings_without_prompt_are_plain_texts() -> None:
    prompt, answers = compare({"chosen": "A cow eats grass.", "rejected": "A cow eats hay."})
    assert prompt == []
    assert answers == [[("text", "A cow eats grass.")], [("text", "A cow eats hay.")]]


def test_alpaca_turns_before_the_answers_are_the_prompt() -> None:
    fields = {
        "instruction": "Add", "input": "1 and 2", "system": "S", "history": [["q", "a"]],
        "output": ["3", "4", "5"],
    }  # fmt: skip
    prompt, answers = compare(fields)
    assert prompt == [("system", "S"), (U, "q"), (A, "a"), (U, "Add\n\n1 and 2")]
    assert answers == [[(A, "3")], [(A, "4")], [(A, "5")]]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_ranks_and_scores_sort_in_any_order_of_the_file(order) -> None:
    texts = [f"answer {place}" for place in order]
    best_first = [[(A, f"answer {place}")] for place in range(4)]
    ranks = {"prompt": "Q", "answers": texts, "ranks": [place + 1 for place in order]}
    scores = {"prompt": "Q", "answers": texts, "scores": [-0.5 * place for place in order]}
    assert compare(ranks)[1] == compare(scores)[1] == best_first


def test_of_answers_with_one_rank_only_the_first_stays_and_the_others_are_counted() -> None:
    fields = {"prompt": "Q", "answers": ["a", "b", "c", "d"], "ranks": [2, 1, 2, 2]}
    compared = understand_preference(row(fields), "ranked", None)
    assert [pairs(answer) for answer in compared.comparison.answers] == [[(A, "b")], [(A, "a")]]
    assert compared.num_ties == 2


def test_equal_answers_are_no_error_but_left_out_and_counted() -> None:
    fields = {"prompt": "Q", "answers": ["a", "b", "a"]}
    compared = understand_preference(row(fields), "ranked", None)
    assert len(compared.comparison.answers) == 2
    assert compared.num_equal == 1
    same = {"prompt": "Q", "chosen": "a", "rejected": "a"}
    compared = understand_preference(row(same), "chosen-rejected", None)
    assert (compared.comparison, compared.problems, compared.num_equal) == (None, (), 1)


def test_transcripts_that_part_earlier_have_answers_of_several_turns() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: "
    fields = {
        "chosen": start + "how?\n\nAssistant: so",
        "rejected": start + "why?\n\nAssistant: no\n\nHuman: ok\n\nAssistant: bye",
    }
    prompt, answers = compare(fields)
    assert prompt == [(U, "Hi")]
    assert answers[0] == [(A, "Hello"), (U, "how?"), (A, "so")]
    assert answers[1] == [(A, "Hello"), (U, "why?"), (A, "no"), (U, "ok"), (A, "bye")]


def test_a_speaker_inside_a_line_begins_no_turn() -> None:
    text = "\n\nHuman: Q\n\nAssistant: I say Human: no. Assistant: yes."
    prompt, answers = compare({"chosen": text, "rejected": "\n\nHuman: Q\n\nAssistant: bad"})
    assert (prompt, answers[0]) == (ASKED, [(A, "I say Human: no. Assistant: yes.")])


@pytest.mark.parametrize(
    ("name", "fields", "key", "found"),
    [
        ("chosen-rejected", {"prompt": "Q", "chosen": "a"}, "rejected", "missing"),
        ("chosen-rejected", {"prompt": "Q", "chosen": "a", "rejected": 5}, "rejected", "number 5"),
        ("chosen-rejected", {"prompt": " ", "chosen": "a", "rejected": "b"}, "prompt", "empty"),
        (
            "chosen-rejected",
            {"prompt": "Q", "chosen": [say(A, "a")], "rejected": [say("bot", "b")]},
            "rejected[0].role",
            "unknown role 'bot'",
        ),
        (
            "chosen-rejected",
            {"chosen": [say(U, "Q"), say(A, "a")], "rejected": [say(U, "R"), say(A, "b")]},
            "rejected",
            "another question",
        ),
        (
            "sharegpt",
            {
                "conversations": [tell("human", "Q"), tell("gpt", "x")],
                "chosen": tell("gpt", "a"),
                "rejected": tell("gpt", "b"),
            },
            "chosen.from",
            "turn of the assistant here",
        ),
        ("alpaca", {"instruction": "Q", "output": ["a", ""]}, "output[1]", "empty"),
        ("alpaca", {"instruction": "Q", "output": ["a"]}, "output", "a list of 1"),
        ("transcripts", {"chosen": "Q", "rejected": "Human: Q"}, "chosen", "first speaker"),
        (
            "transcripts",
            {"chosen": "Human: Q\n\nAssistant:", "rejected": "Human: Q\n\nAssistant: b"},
            "chosen, turn 2",
            "empty",
        ),
        ("ranked", {"prompt": "Q", "answers": ["a", "b"], "ranks": [1]}, "ranks", "list of 1"),
        ("ranked", {"prompt": "Q", "answers": ["a", "b"], "ranks": [0, 1]}, "ranks", "number 0,"),
        ("ranked", {"prompt": "Q", "answers": ["a", "b"], "ranks": [1, 1.5]}, "ranks", "1.5, acc"),
        (
            "ranked",
            {"prompt": "Q", "answers": ["a", "b"], "ranks": [1, 2], "scores": [1, 2]},
            "ranks",
            "(keep one of them)",
        ),
        ("ranked", {"prompt": "", "answers": ["a", "b"]}, "prompt", "empty"),
        ("chosen-rejected", {"prompt": "", "chosen": "a", "rejected": "b"}, "prompt", "empty text"),
        ("chosen-rejected", {"prompt": [], "chosen": "a", "rejected": "b"}, "prompt", "empty list"),
        ("chosen-rejected", {"prompt": None, "chosen": "a", "rejected": "b"}, "prompt", "null"),
        (
            "ranked",
            {"prompt": "Q", "answers": ["a", "b"], "scores": [1, float("nan")]},
            "scores",
            "2 numbers",
        ),
    ],
)
def test_a_bad_row_is_told_by_its_place_and_field(name, fields, key, found) -> None:
    first = problems_of(fields, name)[0]
    assert first.startswith(f"rows.jsonl:3: {key}: ")
    assert found in first


def test_a_problem_of_the_shared_prompt_is_told_once() -> None:
    assert len(problems_of({"prompt": 5, "chosen": "a", "rejected": "b"}, "chosen-rejected")) == 1


@pytest.mark.parametrize(("value", "margin"), [(0.5, 0.5), (0, 0.0), ("1.5", 1.5)])
def test_the_margin_is_read_from_its_field(value, margin) -> None:
    fields = {"prompt": "Q", "chosen": "a", "rejected": "b", "by": value}
    compared = understand_preference(row(fields), "chosen-rejected", "by")
    assert compared.comparison.margin == margin


@pytest.mark.parametrize("value", [None, True, "much", float("inf"), float("nan"), [1]])
def test_a_margin_that_is_no_number_is_a_bad_row(value) -> None:
    fields = {"prompt": "Q", "chosen": "a", "rejected": "b", "by": value}
    assert "rows.jsonl:3: by: " in problems_of(fields, "chosen-rejected", "by")[0]


@pytest.mark.parametrize("value", [-2, -1e-9, "-0.5"])
def test_a_margin_below_zero_is_a_bad_row_whose_answers_may_be_swapped(value) -> None:
    fields = {"prompt": "Q", "chosen": "a", "rejected": "b", "by": value}
    (problem,) = problems_of(fields, "chosen-rejected", "by")
    assert f"by: found {float(value):g}, accepts 0 or more" in problem
    assert "(swap chosen and rejected, or repair the row)" in problem


def test_an_empty_prompt_beside_whole_conversations_is_none() -> None:
    answers = [[say(U, "Q"), say(A, text)] for text in ("good", "bad")]
    pair = {"prompt": "", "chosen": answers[0], "rejected": answers[1]}
    assert compare(pair) == compare({"prompt": [], "answers": answers}) == (ASKED, ANSWERED)


def test_a_margin_beside_three_answers_is_refused() -> None:
    fields = {"prompt": "Q", "answers": ["a", "b", "c"], "by": 1}
    assert "3 answers" in problems_of(fields, "ranked", "by")[0]


def test_rows_of_two_formats_and_of_none_are_refused_with_all_formats_listed() -> None:
    ranked = row({"prompt": "Q", "answers": ["a", "b"]})
    pair = row({"prompt": "Q", "chosen": "a", "rejected": "b"})
    with pytest.raises(FormatError, match="several formats"):
        detect_preference_format([ranked, pair])
    with pytest.raises(FormatError, match="fit no format") as caught:
        detect_preference_format([row({"instruction": "Q", "output": "a"})])
    assert {problem.key for problem in caught.value.problems} == set(PREFERENCE_FORMATS)


@pytest.mark.parametrize(
    ("texts", "prompt"),
    [
        (["The sky is blue.", "The sky is black."], "The sky is "),
        (["The sky.", "The sky is blue."], "The sky"),
        (["天空是蓝色的", "天空是黑色的"], "天空是"),
        (["yes", "no"], ""),
    ],
)
def test_the_prompt_of_plain_texts_ends_where_a_word_ends(texts, prompt) -> None:
    assert prompt_text(texts) == prompt
