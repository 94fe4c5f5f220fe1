"""Source and target are found by name, named by the settings, or asked for with what there is."""

import json

import pytest

from sft_kit.data.pairs.splits import load_pairs
from sft_kit.errors import FormatError
from sft_kit.settings import PairDataSettings


def read(path, **settings):
    splits = load_pairs(PairDataSettings(path, eval_fraction=0, **settings))
    return [(pair.source, pair.target) for pair in splits.train], splits.report.format


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("source", "target"), ("article", "summary"), ("article", "highlights"),
        ("document", "summary"), ("dialogue", "summary"), ("text", "summary"),
        ("content", "title"), ("question", "answer"), ("Question", "Answer"), ("input", "output"),
        ("en", "zh"), ("zh-CN", "en_US"), ("中文", "英文"),
    ],
)  # fmt: skip
def test_well_known_names_are_found_whatever_stands_beside_them(write, source, target):
    rows = [{"id": 7, source: "read this", "url": "x", target: "write this"}]
    pairs, told = read(write(rows))
    assert pairs == [("read this", "write this")]
    assert told == (
        f"the source is read from {source!r}, the target from {target!r}; not read: 'id', 'url'"
    )


def test_of_two_languages_the_first_column_is_translated_into_the_second(write):
    path = write("zh\ten\n你好\thello\n再见\tbye\n", "pairs.tsv")
    assert read(path)[0] == [("你好", "hello"), ("再见", "bye")]
    assert read(path, source="en")[0] == [("hello", "你好"), ("bye", "再见")]
    assert read(path, target="zh")[0] == [("hello", "你好"), ("bye", "再见")]


def test_fields_within_an_object_are_found_and_can_be_named(write):
    path = write([{"id": "1", "translation": {"en": "cat", "fr": "chat"}}])
    assert read(path)[0] == [("cat", "chat")]
    named = read(path, source="translation.fr", target="translation.en")
    assert named[0] == [("chat", "cat")]
    assert "'translation'" not in named[1]


@pytest.mark.parametrize(
    ("row", "source", "target"),
    [
        ({"prompt": "2+2?", "completion": "4"}, "2+2?", "4"),
        ({"instruction": "Add.", "input": "2 and 2", "output": "4"}, "Add.\n\n2 and 2", "4"),
        (
            {"instruction": "And 3?", "output": "5", "history": [["2+2?", "4"]], "system": "Add!"},
            "Add!\n\n2+2?\n\n4\n\nAnd 3?",
            "5",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Hello!"},
                    {"role": "user", "content": "Bye"},
                    {"role": "assistant", "content": "See you."},
                ]
            },
            "Hi\n\nHello!\n\nBye",
            "See you.",
        ),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
         "Hi", "Yo"),
    ],
)  # fmt: skip
def test_the_last_answer_of_a_chat_is_the_target_and_all_before_it_the_source(
    write, row, source, target
):
    pairs, told = read(write([row]))
    assert pairs == [(source, target)]
    assert "the last answer" in told


def test_named_fields_win_over_known_names(write):
    row = {"source": "a", "target": "b", "question": "c", "answer": "d", "long": "e"}
    path = write([row])
    assert read(path, source="long", target="question")[0] == [("e", "c")]
    assert read(path, source="question")[0] == [("c", "d")]


def test_rivals_are_listed_with_an_example_each(write):
    rows = [{"article": "long " * 40, "summary": "short", "highlights": "point"}]
    with pytest.raises(FormatError) as caught:
        read(write(rows))
    message = str(caught.value)
    assert "'article' and 'summary', or 'article' and 'highlights'" in message
    assert "data.source and data.target" in message
    assert "'highlights': for example 'point'" in message
    assert max(map(len, message.splitlines()[1:])) < 120


def test_unknown_names_are_told_with_what_there_is(write):
    path = write("Hi.\t嗨。\nRun!\t跑！\n", "anki.tsv")
    with pytest.raises(FormatError, match=r"'Hi\.': for example 'Run!'"):
        read(path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"source": "artikel"}, ["data.source", "'artikel'", "did you mean 'article'"]),
        ({"source": "x", "target": "y"}, ["data.source", "data.target"]),
        ({"source": "article", "target": "article"}, ["data.target", "name another field"]),
    ],
)
def test_a_wrong_name_in_the_settings_is_told_with_the_nearest(write, settings, words):
    with pytest.raises(FormatError) as caught:
        read(write([{"article": "a", "summary": "b"}]), **settings)
    assert all(word in str(caught.value) for word in words)


def test_bad_rows_are_reported_all_at_once_with_their_lines(write):
    rows = [
        json.dumps({"article": "a", "summary": "b"}),
        json.dumps({"article": "a", "summary": ""}),
        json.dumps({"article": 5, "summary": None}),
        json.dumps({"article": "a"}),
        "{broken",
    ]
    path = write(rows)
    with pytest.raises(FormatError) as caught:
        read(path)
    found = [(problem.where.rpartition(":")[2], problem.key) for problem in caught.value.problems]
    assert found[:4] == [("2", "summary"), ("3", "article"), ("3", "summary"), ("4", "summary")]
    assert found[4][0].startswith("5")
    assert "4 of 5 rows" in caught.value.summary
    splits = load_pairs(PairDataSettings(path, eval_fraction=0, on_bad_row="skip"))
    assert [pair.where.line for pair in splits.train] == [1]
    assert "data: 4 bad rows were skipped" in splits.notes()


def test_a_chat_that_ends_with_a_question_is_a_bad_row(write):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    rows = [{"messages": turns}, {"messages": turns[:1]}, {"messages": turns[1:]}]
    with pytest.raises(FormatError) as caught:
        read(write(rows))
    assert {problem.where.rpartition(":")[2] for problem in caught.value.problems} == {"2", "3"}
