"""Columns: found by name or by what is in them, named or numbered, and never guessed in silence."""

import pytest

from sft_kit.data.labelled.columns import Columns, find_columns, looks_like_labels
from sft_kit.data.labelled.layouts import begins_with_names
from sft_kit.data.rows import RawRow, Where
from sft_kit.errors import FormatError
from sft_kit.settings import LabelledDataSettings


def settings(**options):
    return LabelledDataSettings(path="a.csv", **options)


def rows_of(*names, num_rows=12):
    return [
        RawRow({name: f"{name} of row {n}" for name in names}, Where("a.csv", n + 2))
        for n in range(num_rows)
    ]


def headless(*columns):
    return [
        RawRow({str(n): cell for n, cell in enumerate(cells, start=1)}, Where("a.tsv", line))
        for line, cells in enumerate(zip(*columns, strict=True), start=1)
    ]


TEXTS = [f"this is the text of row number {n}" for n in range(12)]
LABELS = ["pos", "neg", "neg"] * 4


@pytest.mark.parametrize(
    ("names", "text", "pair", "label"),
    [
        (("text", "label"), "text", None, "label"),
        (("id", "sentence", "label"), "sentence", None, "label"),
        (("label", "review"), "review", None, "label"),
        (("Text", "Sentiment"), "Text", None, "Sentiment"),
        (("title", "content", "label"), "content", None, "label"),
        (("idx", "sentence1", "sentence2", "label"), "sentence1", "sentence2", "label"),
        (("premise", "hypothesis", "gold_label"), "premise", "hypothesis", "gold_label"),
        (("qid", "text_a", "text_b", "label"), "text_a", "text_b", "label"),
        (("question", "sentence", "label", "idx"), "question", "sentence", "label"),
        (("qid", "text_a", "label"), "text_a", None, "label"),
        (("foo", "label"), "foo", None, "label"),
        (("text", "foo"), "text", None, "foo"),
        (("text", "rating", "label"), "text", None, "label"),
    ],
)
def test_well_known_names_are_found_whatever_stands_beside_them(names, text, pair, label):
    found = find_columns(rows_of(*names), settings())
    assert found == Columns((text,), (pair,) if pair else (), (label,))


def test_the_description_of_a_label_names_the_class():
    rows = rows_of("sentence", "label", "label_desc")
    assert find_columns(rows, settings()).description == "label_desc"
    assert find_columns(rows, settings(label="label")).description is None
    assert find_columns(rows, settings(label_names={"100": "news"})).description is None


@pytest.mark.parametrize(
    ("options", "text", "pair", "label"),
    [
        ({"text": "b", "label": "c"}, ("b",), (), ("c",)),
        ({"text": 2, "label": 4}, ("b",), (), ("d",)),
        ({"text": "2", "label": "4"}, ("b",), (), ("d",)),
        ({"text": 1, "text_pair": [2, 3], "label": 4}, ("a",), ("b", "c"), ("d",)),
        ({"text": ["c", "a"], "label": "d"}, ("c", "a"), (), ("d",)),
    ],
)
def test_columns_are_named_or_numbered_from_one(options, text, pair, label):
    found = find_columns(rows_of("a", "b", "c", "d"), settings(**options))
    assert (found.text, found.text_pair, found.label) == (text, pair, label)


def test_a_column_that_is_called_like_a_number_goes_before_the_number():
    found = find_columns(rows_of("2", "1"), settings(text="2", label="1"))
    assert (found.text, found.label) == (("2",), ("1",))


def test_no_pair_is_read_where_the_settings_switch_it_off():
    rows = rows_of("sentence1", "sentence2", "label")
    assert find_columns(rows, settings(text_pair=None)).text_pair == ()
    assert find_columns(rows, settings(text="sentence1")).text_pair == ("sentence2",)
    assert find_columns(rows, settings(text="sentence2")).text_pair == ()


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (("text", "sentence", "label"), {}, ["'text' or 'sentence' may hold", "data.text"]),
        (("text", "label", "sentiment"), {}, ["'label' or 'sentiment' may hold", "data.label"]),
        (("a", "b", "c"), {}, ["data.text and data.label"]),
        (("a", "b", "label"), {}, ["set data.text "]),
        (("text", "a", "b"), {}, ["set data.label "]),
    ],
)
def test_several_candidates_are_listed_with_an_example_each(names, options, words):
    with pytest.raises(FormatError) as caught:
        find_columns(rows_of(*names), settings(**options))
    message = str(caught.value)
    assert message.startswith("a.csv: the columns can't be told")
    for word in words:
        assert word in message
    for number, name in enumerate(names, start=1):
        assert f"column {number} {name!r}: for example '{name} of row 0'" in message


def test_all_columns_that_are_not_there_are_named_at_once_with_the_nearest():
    with pytest.raises(FormatError) as caught:
        find_columns(rows_of("text", "label"), settings(text="txt", label=3, group="speaker"))
    problems = {problem.key: str(problem) for problem in caught.value.problems}
    assert "did you mean 'text'?" in problems["data.text"]
    assert "found no column 3, the file has 2: 'text', 'label'" in problems["data.label"]
    assert "found no column 'speaker', accepts 'text', 'label'" in problems["data.group"]


def test_several_columns_of_labels_need_the_setting_that_reads_them():
    rows = rows_of("text", "toxic", "threat")
    with pytest.raises(FormatError, match=r"data\.label: found 2 columns.*data\.multi_label=true"):
        find_columns(rows, settings(label=["toxic", "threat"]))
    found = find_columns(rows, settings(label=["toxic", "threat"], multi_label=True))
    assert (found.label, found.are_flags) == (("toxic", "threat"), True)
    with pytest.raises(FormatError, match="columns of 0 and 1 must be listed"):
        find_columns(rows, settings(multi_label=True))


def test_of_two_columns_without_names_the_label_has_few_short_values():
    assert find_columns(headless(TEXTS, LABELS), settings()) == Columns(("1",), (), ("2",))
    assert find_columns(headless(LABELS, TEXTS), settings()) == Columns(("2",), (), ("1",))


@pytest.mark.parametrize("columns", [(TEXTS, TEXTS), (LABELS, LABELS), (TEXTS, LABELS, LABELS)])
def test_columns_without_names_that_look_alike_are_refused(columns):
    with pytest.raises(FormatError, match="column 1: for example"):
        find_columns(headless(*columns), settings())


def test_without_labels_the_only_column_is_the_text_and_the_label_may_be_absent():
    found = find_columns(headless(TEXTS), settings(label=2, group="speaker"), needs_labels=False)
    assert found == Columns(("1",))
    found = find_columns(rows_of("text", "class"), settings(), needs_labels=False)
    assert (found.text, found.label) == (("text",), ("class",))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (LABELS, True),
        (["0", "1"] * 3, True),
        (TEXTS, False),
        (["a b", "c d"] * 6, False),
        ([f"word{n}" for n in range(60)], False),
        (["x" * 41, "y"] * 6, False),
        (["", ""] * 6, False),
        ([f"word{n % 7}" for n in range(14)], False),
        ([str(n % 51) for n in range(500)], False),
        ([str(n % 50) for n in range(500)], True),
        ([*LABELS * 2, "a stray text"], True),
    ],
)
def test_labels_are_few_short_and_without_blanks(values, expected):
    assert looks_like_labels(values) is expected


@pytest.mark.parametrize(
    ("first", "rest", "options", "expected"),
    [
        (["text", "label"], [["good", "1"]], {}, True),
        (["Sentence", "foo"], [["good", "1"]], {}, False),
        (["Sentence", "foo"], [["good", "1"]] * 5, {}, True),
        (["I liked it", "description"], [["I did not", "joy"]], {}, False),
        (["description", "topic"], [["I did not", "joy"]], {}, True),
        (["text", "label", "what the annotators were told about it"], [["a", "b", "c"]], {}, True),
        (["text", "label", "told " * 10], [["a", "b", "c"]], {}, True),
        (["it was fine " * 5, "good"], [["x", "1"]] * 5, {}, False),
        (["", "text", "label"], [["0", "good", "1"]], {}, True),
        (["phrase_of_mine", "mark"], [["good", "pos"]], {}, False),
        (["phrase_of_mine", "mark"], [["good", "pos"]], {"label": "mark"}, True),
        (["phrase_of_mine", "mark"], [["good", "1"]] * 5, {}, True),
        (["good", "1"], [["bad", "0"]] * 5, {}, False),
        (["one long string of cliches", "0"], [["fine", "1"]] * 5, {}, False),
        (["comment", "pos"], [["comment", "neg"]], {}, False),
        (["the " * 20 + "text", "label"], [["x", "neg"]], {}, False),
        (["text", "text"], [["x", "y"]], {}, False),
        (["good", "1"], [["bad", "0"]], {"text": "1", "label": 2}, False),
    ],
)
def test_a_header_is_seen_by_its_names_and_never_where_the_first_line_is_a_row(
    first, rest, options, expected
):
    assert begins_with_names(first, rest, settings(**options)) is expected
