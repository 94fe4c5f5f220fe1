"""Files -> labelled texts: what is read, what is noted, and what is refused with its line."""

import csv
import io
import json
import random
from collections import Counter

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_kit.data.labelled.reading import ReadRows, read_labelled, refuse_bad_rows
from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.rows import Where
from sft_kit.errors import DataError, FormatError, Problem, SftKitError
from sft_kit.settings import LabelledDataSettings

TEXTS = [
    "I liked this film a lot", '"Great" is the word', "très bon, vraiment", "not good; not bad",
    "a@b.c is where to write", "tabs\\and | bars", "今天 天气 很好", "1984", "well, well", "the end"
]  # fmt: skip
LABELS = ["pos", "neg"] * 5
PAIRS = list(zip(TEXTS, LABELS, strict=True))


def read(path, needs_labels=True, **options):
    settings = LabelledDataSettings(path=str(path), **options)
    return read_labelled(settings, str(path), needs_labels=needs_labels)


def write(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def pairs(found):
    return [(*row.texts, *row.labels) for row in found.rows]


def table(rows, delimiter=",", **options):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator="\n", **options).writerows(rows)
    return out.getvalue()


def plain(rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def as_json_lines(rows):
    return "".join(
        json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n"
        for text, label in rows
    )


HEADER = [("text", "label")]
FILES = {
    "header.csv": table(HEADER + PAIRS),
    "quoted.csv": table(HEADER + PAIRS, quoting=csv.QUOTE_ALL),
    "headless.csv": table(PAIRS),
    "semicolons.csv": table(HEADER + PAIRS, ";"),
    "tabs.csv": table(HEADER + PAIRS, "\t"),
    "header.tsv": plain(HEADER + PAIRS),
    "headless.tsv": plain(PAIRS),
    "quoted.tsv": table(HEADER + PAIRS, "\t"),
    "at.txt": "".join(f"{text}@{label}\n" for text, label in PAIRS),
    "bars.txt": "".join(f"{text}|{label}\n" for text, label in PAIRS),
    "tabs.txt": plain(PAIRS),
    "header.txt": plain(HEADER + PAIRS),
    "lines.jsonl": as_json_lines(PAIRS),
    "list.json": json.dumps([{"text": t, "label": n} for t, n in PAIRS], ensure_ascii=False),
    "indented.json": json.dumps(
        [{"label": n, "text": t} for t, n in PAIRS], ensure_ascii=False, indent=1
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_every_kind_of_file_gives_the_same_rows_in_every_encoding(tmp_path, name, encoding, ends):
    content = FILES[name].replace("\n", ends).encode(encoding)
    found = read(write(tmp_path / name, content), encoding=encoding)
    assert pairs(found) == PAIRS
    assert found.problems == []
    assert found.num_rows == len(PAIRS)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030"])
def test_the_encoding_of_every_kind_of_file_is_detected(tmp_path, name, encoding):
    chinese = FILES[name].replace("très bon, vraiment", "房间很大，早餐不错")
    expected = [(text.replace("très bon, vraiment", "房间很大，早餐不错"), n) for text, n in PAIRS]
    found = read(write(tmp_path / name, chinese, encoding))
    assert pairs(found) == expected
    told = [note for note in found.notes if "data.encoding declares it" in note]
    assert len(told) == (0 if encoding == "utf-8-sig" else 1)


def test_each_thing_that_was_detected_is_told_in_a_sentence(tmp_path):
    path = write(tmp_path / "a.txt", "".join(f"bien s\xfbr {n}@oui\n" for n in range(9)), "latin-1")
    assert read(path).notes == [
        f"data: {path} is read as latin-1 (detected; data.encoding declares it)",
        f"data: {path} is cut at the last '@' of each line (detected; data.separator declares it)",
        "data: read the text from column 1, the label from column 2",
    ]
    path = write(tmp_path / "a.tsv", plain([('"so', "1"), ("x", "0"), ("y z", "0")]))
    assert read(path, text=1, label=2).notes == [
        f"data: {path} has no quoted fields: quotes are read as text",
        f"data: {path} has no header, its columns are numbered (detected; data.header declares it)",
        "data: read the text from column 1, the label from column 2",
    ]
    path = write(tmp_path / "a.csv", table(HEADER + PAIRS))
    assert read(path).notes == [
        f"data: {path} begins with the names of its columns: 'text', 'label'",
        "data: read the text from 'text', the label from 'label'",
    ]


def test_a_line_that_is_not_of_the_declared_encoding_is_a_bad_row(tmp_path):
    lines = [f"{text}@{label}\n".encode("gb18030") for text, label in PAIRS]
    lines[3] = b"\xff\xff\xff@pos\n"
    found = read(write(tmp_path / "a.txt", b"".join(lines)), encoding="gb18030", separator="@")
    assert pairs(found) == PAIRS[:3] + PAIRS[4:]
    (problem,) = found.problems
    assert problem.where == f"{tmp_path}/a.txt:4"
    assert "bytes that are not gb18030" in problem.message
    assert "data.encoding" in problem.todo


@pytest.mark.parametrize("text", ["a\tb", "two\nlines", 'say "so"', '"', "plain", '"quoted"', ""])
def test_a_tsv_that_pandas_wrote_comes_back_as_it_was(tmp_path, text):
    frame = pd.DataFrame({"text": [f"{text} {n}" for n in range(4)], "label": [1, 0, 1, 0]})
    frame.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    assert pairs(read(tmp_path / "a.tsv")) == [
        (row.text, str(row.label)) for row in frame.itertuples()
    ]


def test_the_row_numbers_that_pandas_puts_in_front_do_no_harm(tmp_path):
    frame = pd.DataFrame({"text": TEXTS, "label": LABELS})
    frame.to_csv(tmp_path / "a.csv")
    assert pairs(read(tmp_path / "a.csv")) == PAIRS


@pytest.mark.parametrize(
    "texts",
    [
        ['"never closed', "plain"],
        ['"a" is a letter', "plain"],
        ['"begins here', 'and ends here"', '"again', 'so"'],
        ["plain", 'in "the" middle'],
        ['""', "plain"],
    ],
)
def test_quotes_of_a_table_without_quoted_fields_are_text(tmp_path, texts):
    rows = [(f"{text} {n}" if text != '""' else '"" x', "01"[n % 2]) for n, text in
            enumerate(texts * 3)]  # fmt: skip
    assert pairs(read(write(tmp_path / "a.tsv", plain(rows)), text=1, label=2)) == rows


def test_quotes_that_would_swallow_regular_lines_are_text(tmp_path):
    rows = [('"begins here', "0"), ('and ends here"', "1")]
    assert pairs(read(write(tmp_path / "a.tsv", plain(rows)), text=1, label=2)) == rows


def test_a_header_of_unknown_names_is_asked_about_instead_of_becoming_a_class(tmp_path):
    rows = [("words of mine", "mark")] + [(f"text {n}", "pn"[n % 2]) for n in range(30)]
    path = write(tmp_path / "a.csv", table(rows))
    with pytest.raises(FormatError, match=r"a\.csv:1: .*data\.header=false or data\.header=true"):
        read(path)
    assert pairs(read(path, header=False)) == rows
    assert pairs(read(path, header=True)) == rows[1:]


@pytest.mark.parametrize("labels", [["p", "n"], ["p", "n", "n"], ["p", "p", "n", "n", "rare"]])
def test_a_short_table_and_another_rare_class_hide_no_header(tmp_path, labels):
    rows = [("words of mine", "mark"), *((f"text {n}", name) for n, name in enumerate(labels))]
    path = write(tmp_path / "a.csv", table(rows))
    with pytest.raises(FormatError, match=r"a\.csv:1: .*data\.header=false or data\.header=true"):
        read(path, text=1, label=2)
    assert pairs(read(path, header=True, text=1, label=2)) == rows[1:]


@pytest.mark.parametrize(
    "first", [("a sentence that is much too long for a name", "odd"), ("text 9", "7"), ("so", "p")]
)
def test_a_first_row_that_can_be_no_header_is_a_row(tmp_path, first):
    rows = [first, ("text 1", "p"), ("text 2", "n"), ("text 3", "n")]
    assert pairs(read(write(tmp_path / "a.csv", table(rows)), text=1, label=2)) == rows


def test_a_header_may_be_declared_away(tmp_path):
    path = write(tmp_path / "a.csv", table(HEADER + PAIRS))
    assert pairs(read(path, header=False, text=1, label=2)) == [*HEADER, *PAIRS]


def test_a_name_in_a_table_without_names_asks_for_the_header(tmp_path):
    path = write(tmp_path / "a.tsv", plain(PAIRS))
    with pytest.raises(FormatError, match=r"data\.label.*no column 'labl'.*data\.header=true"):
        read(path, label="labl")


def test_ragged_rows_are_bad_rows_and_the_first_is_no_exception(tmp_path):
    rows = [("lonely",), *PAIRS, ("a", "b", "c")]
    found = read(write(tmp_path / "a.tsv", plain(rows)), header=False)
    assert pairs(found) == PAIRS
    assert [problem.where.rsplit(":", 1)[1] for problem in found.problems] == ["1", "12"]
    assert "found 3 fields, most rows have 2" in found.problems[1].message


@pytest.mark.parametrize(
    ("separator", "found"), [("auto", "::"), ("::", "::"), ("\\t", "\t"), (" ## ", " ## ")]
)
def test_a_line_of_text_is_cut_at_the_last_separator(tmp_path, separator, found):
    rows = [(f"one{found}two {n}", "ab"[n % 2]) for n in range(9)]
    path = write(tmp_path / "a.txt", "".join(f"{a}{found}{b}\n" for a, b in rows))
    assert pairs(read(path, separator=separator)) == rows


def test_lines_without_their_separator_are_bad_rows(tmp_path):
    lines = [f"{text}@{label}" for text, label in PAIRS * 3]
    lines[4] = "no label here"
    lines[7] = "an empty label@ "
    found = read(write(tmp_path / "a.txt", "\n".join(lines)), separator="@")
    assert [problem.where.rsplit(":", 1)[1] for problem in found.problems] == ["5", "8"]
    assert "found no '@'" in found.problems[0].message
    assert "an empty label" in found.problems[1].message


def test_text_without_a_separator_asks_for_one(tmp_path):
    path = write(tmp_path / "a.txt", "".join(f"{text}\n" for text in TEXTS))
    with pytest.raises(FormatError, match=r"data\.separator"):
        read(path)
    found = read(path, needs_labels=False)
    assert [row.texts[0] for row in found.rows] == TEXTS
    assert {row.labels for row in found.rows} == {()}


@pytest.mark.parametrize(
    "lines",
    [
        ["Good food, really"],
        ["这家酒店的房间很大，早餐也不错。"],
        ["Good food, really", "Bad food, sadly", "Good food, sadly"],
        ["one,pos", "two,neg", "three, they say"],
    ],
)
def test_lines_without_known_labels_are_whole_texts_where_no_labels_are_needed(tmp_path, lines):
    path = write(tmp_path / "a.txt", "\n".join(lines))
    settings = LabelledDataSettings(path=str(path))
    found = read_labelled(settings, str(path), needs_labels=False, known_labels=["pos", "neg"])
    assert [row.texts for row in found.rows] == [(line,) for line in lines]


@pytest.mark.parametrize("header", ["", "text@label\n"])
def test_known_labels_are_cut_off_where_no_labels_are_needed(tmp_path, header):
    lines = "".join(f"{text}@{label}\n" for text, label in PAIRS)
    path = write(tmp_path / "a.txt", header + lines)
    settings = LabelledDataSettings(path=str(path))
    found = read_labelled(settings, str(path), needs_labels=False, known_labels=["neg", "pos", "x"])
    assert [(row.texts, row.labels) for row in found.rows] == [((text,), ()) for text in TEXTS]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1, "1"), (True, "true"), (False, "false"), (1.0, "1"), (-3, "-3"), (" pos ", "pos"),
        ("1.0", "1.0"), ("007", "007"), ("NA", "NA"),
    ],
)  # fmt: skip
def test_labels_become_text(tmp_path, value, label):
    rows = [{"text": "a", "label": value}, {"text": "b", "label": "z"}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert pairs(read(path)) == [("a", label), ("b", "z")]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "found null"),
        ("", "an empty label"),
        ("  ", "an empty label"),
        (0.5, "the number 0.5"),
        (["a"], "data.multi_label=true"),
        ({"a": 1}, "an object"),
        ("a\0b", "NUL"),
        ("\ud800", "surrogate"),
    ],
)
def test_a_label_that_is_none_is_a_bad_row(tmp_path, value, words):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": value}, {"text": "c"}]
    found = read(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert pairs(found) == [("a", "x")]
    assert words in str(found.problems[0])
    assert found.problems[0].where == f"{tmp_path}/a.jsonl:2"
    assert "the field is missing" in found.problems[1].message
    assert found.num_bad_rows == 2


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "found null"), ("", "an empty text"), (" \n", "an empty text"), ([1], "a list"),
        ("a\0b", "NUL"), ("\ud800", "surrogate"),
    ],
)  # fmt: skip
def test_a_text_that_is_none_is_a_bad_row(tmp_path, value, words):
    rows = [{"text": "a", "label": "x"}, {"text": value, "label": "y"}]
    found = read(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert pairs(found) == [("a", "x")]
    assert words in found.problems[0].message
    assert (found.problems[0].where, found.problems[0].key) == (f"{tmp_path}/a.jsonl:2", "text")


def test_numbers_are_texts_and_columns_are_joined_by_a_blank(tmp_path):
    rows = [{"a": "one", "b": 2, "c": "x"}, {"a": "", "b": "two", "c": "y"}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert pairs(read(path, text=["a", "b"], label="c")) == [("one 2", "x"), ("two", "y")]


def test_label_names_rename_and_refuse_what_they_do_not_know(tmp_path):
    path = write(tmp_path / "a.csv", table([("text", "label"), ("a", 1), ("b", 0), ("c", "10")]))
    found = read(path, label_names={"0": "negative", "1": "positive"})
    assert pairs(found) == [("a", "positive"), ("b", "negative")]
    (problem,) = found.problems
    assert (problem.where, problem.key) == (f"{path}:4", "label")
    assert "found '10', accepts '0', '1'" in problem.message
    assert found.class_names == ()


def test_the_description_of_a_label_becomes_its_name_and_must_not_change(tmp_path):
    rows = [("100", "news_story"), ("101", "news_culture"), ("100", "news_story"), ("100", "oops")]
    lines = [
        json.dumps({"sentence": f"s{n}", "label": label, "label_desc": name})
        for n, (label, name) in enumerate(rows)
    ]
    found = read(write(tmp_path / "a.json", "\n".join(lines)))
    assert [row.labels for row in found.rows] == [(name,) for _, name in rows[:3]]
    assert "with its name from 'label_desc'" in found.notes[-1]
    assert f"{tmp_path}/a.json:1 says 'news_story'" in found.problems[0].message
    assert found.problems[0].where.endswith(":4")


def test_several_labels_of_a_text_are_lists_or_cut_texts(tmp_path):
    values = [["a", "b"], [], None, "b, c", "", ["a", "a"], 3, '["b", "c"]', "a,"]
    expected = [("a", "b"), (), (), ("b", "c"), (), ("a",), ("3",), ("b", "c"), ("a",)]
    lines = [json.dumps({"text": f"t{n}", "labels": value}) for n, value in enumerate(values)]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    assert [row.labels for row in read(path, multi_label=True).rows] == expected
    found = read(path)
    assert "data.multi_label=true" in str(found.problems[0])


def test_several_labels_in_a_text_file_stand_behind_one_separator(tmp_path):
    rows = [(f"text {n}", ("a", "b", "c")[: n % 3 + 1]) for n in range(12)]
    path = write(tmp_path / "a.txt", "".join(f"{t}@{','.join(names)}\n" for t, names in rows))
    found = read(path, multi_label=True)
    assert [(row.texts[0], row.labels) for row in found.rows] == rows


def test_columns_of_zero_and_one_are_labels_of_their_own_name(tmp_path):
    rows = [("text", "toxic", "threat"), ("a", "1", "0"), ("b", "0", "0"), ("c", "1", "1"),
            ("d", "2", "0"), ("e", "1.0", "True")]  # fmt: skip
    path = write(tmp_path / "a.csv", table(rows))
    found = read(path, multi_label=True, label=["toxic", "threat"])
    assert [row.labels for row in found.rows] == [("toxic",), (), ("toxic", "threat"),
                                                  ("toxic", "threat")]  # fmt: skip
    assert found.class_names == ("toxic", "threat")
    assert str(found.problems[0]).startswith(f"{path}:5: toxic: found '2', accepts 0 or 1")


def test_a_column_of_sentences_is_not_taken_for_the_label(tmp_path):
    rows = [("a", "b"), *((f"text {n}", f"a sentence of its own, {n}") for n in range(60))]
    path = write(tmp_path / "a.csv", table(rows))
    with pytest.raises(FormatError, match=r"60 different labels in 60 rows.*data\.label"):
        read(path, text="a", label="b")


def test_the_group_is_the_text_of_its_column(tmp_path):
    rows = [{"text": f"t{n}", "label": "x", "speaker": speaker}
            for n, speaker in enumerate([1, "1", "b ", None])]  # fmt: skip
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    found = read(path, group="speaker")
    assert [row.group for row in found.rows] == ["1", "1", "b"]
    assert (found.problems[0].where, found.problems[0].key) == (f"{path}:4", "speaker")


def test_the_files_of_a_folder_are_each_read_as_they_are(tmp_path):
    write(tmp_path / "a.csv", table(HEADER + PAIRS[:4]), "utf-16")
    write(tmp_path / "b.tsv", plain([("label", "text"), *((b, a) for a, b in PAIRS[4:])]))
    write(tmp_path / "c.jsonl", as_json_lines([("bien s\xfbr", "pos")]), "latin-1")
    found = read(tmp_path)
    assert pairs(found) == [*PAIRS, ("bien s\xfbr", "pos")]
    assert sum("data.encoding declares it" in note for note in found.notes) == 2


def test_files_of_a_folder_that_have_different_columns_are_refused(tmp_path):
    write(tmp_path / "a.csv", table(HEADER + PAIRS))
    write(tmp_path / "b.csv", table([("review", "class"), *PAIRS]))
    with pytest.raises(FormatError) as caught:
        read(tmp_path)
    assert [problem.where for problem in caught.value.problems] == [
        f"{tmp_path}/a.csv", f"{tmp_path}/b.csv",
    ]  # fmt: skip
    assert "'review'" in str(caught.value)


def test_parquet_keeps_its_names_and_types(tmp_path):
    rows = [{"sentence": text, "label": n % 2} for n, text in enumerate(TEXTS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert pairs(found) == [(text, str(n % 2)) for n, text in enumerate(TEXTS)]
    assert found.notes == ["data: read the text from 'sentence', the label from 'label'"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def serve(rows, **features):
        dataset = datasets.Dataset.from_list(
            rows, features=datasets.Features({"text": datasets.Value("string"), **features})
        )
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)

    return serve


def test_class_ids_of_the_hub_become_the_names_it_gives_them(hub):
    ids = [1, 0, -1, 2]
    names = datasets.ClassLabel(names=["neg", "pos", "mixed"])
    hub([{"text": f"t{n}", "label": n_} for n, n_ in enumerate(ids)], label=names)
    found = read("someone/reviews")
    assert pairs(found) == [("t0", "pos"), ("t1", "neg"), ("t3", "mixed")]
    assert found.class_names == ("neg", "pos", "mixed")
    assert "no label (-1)" in found.problems[0].message
    assert found.problems[0].where == "someone/reviews:3"
    renamed = read("someone/reviews", label_names={"0": "bad", "pos": "good", "mixed": "so"})
    assert [row.labels[0] for row in renamed.rows] == ["good", "bad", "so"]
    assert renamed.class_names == ()


def test_lists_of_class_ids_become_names_too(hub):
    feature = datasets.Sequence(datasets.ClassLabel(names=["joy", "anger"]))
    hub([{"text": "a", "labels": [1, 0]}, {"text": "b", "labels": []}], labels=feature)
    found = read("someone/emotions", multi_label=True)
    assert [row.labels for row in found.rows] == [("anger", "joy"), ()]
    assert found.class_names == ("joy", "anger")


def test_only_the_first_rows_are_read_where_their_number_is_given(tmp_path):
    found = read(write(tmp_path / "a.csv", table(HEADER + PAIRS)), num_rows=4)
    assert pairs(found) == PAIRS[:4]
    assert found.num_rows == 4


def test_bad_rows_stop_the_run_with_all_of_them_in_one_report():
    settings = LabelledDataSettings(path="a.csv", eval_path="b.csv")
    row = LabelledText(("text",), ("label",), Where("a.csv", 2))
    first = ReadRows([row], 3, [Problem("a.csv:2", "", "bad"), Problem("a.csv:3", "", "bad")], 2)
    second = ReadRows([row], 2, [Problem("b.csv:2", "", "worse")], 1)
    with pytest.raises(FormatError, match=r"3 of 5 rows.*data\.on_bad_row=skip") as caught:
        refuse_bad_rows(settings, first, second)
    assert [problem.where for problem in caught.value.problems] == ["a.csv:2", "a.csv:3", "b.csv:2"]
    settings.on_bad_row = "skip"
    refuse_bad_rows(settings, first, second)
    second.rows.clear()
    with pytest.raises(FormatError, match=r"^b\.csv: none of 2 rows"):
        refuse_bad_rows(settings, first, second)


def mutated(content, chance):
    """Damage a file in up to three places."""
    for _ in range(chance.choice([1, 2, 3])):
        at = chance.randrange(len(content) + 1)
        junk = bytes(chance.randrange(256) for _ in range(chance.choice([1, 4, 100])))
        content = chance.choice(
            [content[:at], content[:at] + junk + content[at:], content.replace(b"\n", b"\r"),
             content[:at] + b'"' + content[at:], content[:at] + b"\t" + content[at:],
             content[:at] + b"\0" + content[at:], b"\xef\xbb\xbf" + content, content * 2, junk]
        )  # fmt: skip
    return content


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_give_rows_or_an_error_of_ours_and_nothing_else(tmp_path, name):
    chance = random.Random(name)
    outcomes = Counter()
    for _ in range(25):
        encoding = chance.choice(["utf-8", "gb18030", "utf-16", "cp037"])
        path = write(tmp_path / name, mutated(FILES[name].encode(encoding, "replace"), chance))
        declared = chance.choice(["auto", encoding, "utf-16", "ascii", "shift_jis"])
        try:
            found = read(path, encoding=declared, multi_label=chance.random() < 0.2)
        except SftKitError as error:
            outcomes["refused, with the file" if str(tmp_path) in str(error) else str(error)] += 1
        else:
            assert found.num_rows == len(found.rows) + found.num_bad_rows
            assert all(text.strip() for row in found.rows for text in row.texts)
            "".join(text for row in found.rows for text in row.texts).encode("utf-8")
            outcomes["read"] += 1
    assert outcomes["read"] >= 3
    assert set(outcomes) <= {"refused, with the file", "read"}


def test_an_unknown_encoding_is_refused_by_the_name_of_its_setting(tmp_path):
    path = write(tmp_path / "a.csv", table(HEADER + PAIRS))
    with pytest.raises(DataError, match=r"^data\.encoding: found 'utf-88'"):
        read(path, encoding="utf-88")


# --- real files, against a plain reading of their lines ------------------------------------------


def lines_of(path, encoding="utf-8"):
    return path.read_bytes().decode(encoding).rstrip("\n").split("\n")


@pytest.mark.parametrize(
    ("file", "num_rows", "num_classes"),
    [
        ("sst2/train.tsv", 6_920, 2),
        ("sst2/dev.tsv", 872, 2),
        ("chnsenticorp/train.tsv", 9_600, 2),
        ("chnsenticorp/dev.tsv", 1_200, 2),
        ("tnews/train.tsv", 53_360, 15),
        ("tnews/dev.tsv", 10_000, 15),
    ],
)
def test_real_tables_without_a_header_lose_no_row_and_no_quote(
    real_data, file, num_rows, num_classes
):
    expected = [tuple(line.rstrip("\r").split("\t")) for line in lines_of(real_data / file)]
    found = read(real_data / file)
    assert pairs(found) == expected
    assert [row.where.line for row in found.rows] == list(range(1, num_rows + 1))
    assert len({row.labels for row in found.rows}) == num_classes
    assert found.problems == []


def test_the_real_phrasebank_is_read_from_latin_1_and_cut_at_its_last_at(real_data):
    path = real_data / "fin_phrasebank" / "Sentences_AllAgree.txt"
    expected = [tuple(line.strip().rsplit("@", 1)) for line in lines_of(path, "latin-1")]
    found = read(path)
    assert pairs(found) == expected
    assert len(found.rows) == 2_264
    assert {row.labels[0] for row in found.rows} == {"positive", "neutral", "negative"}
    assert (
        found.notes[0] == f"data: {path} is read as latin-1 (detected; data.encoding declares it)"
    )


def test_real_pairs_without_a_header_are_read_as_the_settings_number_their_columns(real_data):
    path = real_data / "mctaco" / "dev_3783.tsv"
    cells = [line.split("\t") for line in lines_of(path)]
    found = read(path, text=1, text_pair=[2, 3], label=4, group=2)
    assert pairs(found) == [(row[0], f"{row[1]} {row[2]}", row[3]) for row in cells]
    assert [row.group for row in found.rows] == [row[1] for row in cells]
    assert len(found.rows) == 3_783
    with pytest.raises(FormatError, match="column 5: for example 'Stationarity'"):
        read(path)


# --- what a declaration, a header or a folder gets wrong -----------------------------------------


@pytest.mark.parametrize("first", ["sep=;\n", "SEP=;\r\n", '"sep=;"\n', "\ufeffsep=;\n"])
def test_the_line_in_which_excel_names_the_delimiter_is_obeyed_and_no_row(tmp_path, first):
    rows = [(f"{text}, and, more", label) for text, label in PAIRS]
    path = write(tmp_path / "rows.csv", first + table([*HEADER, *rows], delimiter=";"))
    found = read(path)
    assert pairs(found) == rows
    assert [row.where.line for row in found.rows] == list(range(3, 13))


def test_a_declared_separator_is_the_delimiter_of_a_table(tmp_path):
    path = write(tmp_path / "rows.csv", table([*HEADER, *PAIRS], delimiter="^"))
    assert pairs(read(path, separator="^")) == PAIRS
    path = write(tmp_path / "tabs.csv", table([*HEADER, *PAIRS], delimiter="\t"))
    assert pairs(read(path, separator="\\t")) == PAIRS


@pytest.mark.parametrize("separator", ["::", '"', "\n"])
def test_a_separator_that_cannot_cut_a_table_is_refused(tmp_path, separator):
    path = write(tmp_path / "rows.csv", table([*HEADER, *PAIRS]))
    with pytest.raises(FormatError, match=r"data\.separator: found .* accepts one character"):
        read(path, separator=separator)


def test_utf8_declared_for_chinese_bytes_names_what_they_are(tmp_path):
    rows = [("这部电影真的很好看，值得一看", "好"), ("太差了，一点意思也没有", "坏")] * 5
    path = write(tmp_path / "rows.csv", table([*HEADER, *rows]), "gb18030")
    for declared in ("utf-8", "utf8", "utf-8-sig"):
        with pytest.raises(DataError, match=r"remove data\.encoding, or set .*=gb18030"):
            read(path, encoding=declared)
    assert pairs(read(path, encoding="gb18030")) == rows


def test_a_header_that_names_two_columns_alike_is_refused_as_one(tmp_path):
    path = write(tmp_path / "rows.csv", table([("text", "text", "label"), ("a", "b", "c")] * 1))
    with pytest.raises(DataError, match=r"rows\.csv:1: .*'text' stands 2 times"):
        read(path)


def test_a_group_that_takes_the_only_text_says_so(tmp_path):
    path = write(tmp_path / "rows.csv", table([*HEADER, *PAIRS]))
    with pytest.raises(FormatError, match=r"and data\.group takes 'text'"):
        read(path, group="text")


def test_a_group_that_is_not_there_can_be_set_to_null(tmp_path):
    path = write(tmp_path / "rows.csv", table([*HEADER, *PAIRS]))
    with pytest.raises(FormatError, match=r"no column 'group'.* set data\.group=null"):
        read(path, group="group")


def test_lines_that_end_in_cr_only_are_refused_in_plain_words(tmp_path):
    rows = table([*HEADER, *PAIRS])
    with pytest.raises(DataError, match="lines end in CR only"):
        read(write(tmp_path / "rows.csv", rows.replace("\n", "\r")))
    found = read(write(tmp_path / "rows.csv", rows + "one\rtwo,pos\n"))
    assert [problem.message for problem in found.problems] == ["found a CR within the line"]


def test_the_files_of_a_folder_are_told_to_be_one_data_set(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "dev.csv", table([*HEADER, *PAIRS]))
    assert not [note for note in read(folder).notes if "one data set" in note]
    write(folder / "train.csv", table([*HEADER, *PAIRS]))
    (note,) = [note for note in read(folder).notes if "one data set" in note]
    assert f"the 2 files of {folder} are read as one" in note
    assert "data.eval_path" in note


def test_an_unknown_label_may_always_be_added_and_short_ones_resemble_nothing(tmp_path):
    path = write(tmp_path / "rows.csv", table([*HEADER, ("x", "3"), ("y", "positve")]))
    found = read(path, label_names={"1": "one", "positive": "good"})
    assert [problem.todo for problem in found.problems] == [
        "add it to data.label_names",
        "did you mean 'positive'? or add it to data.label_names",
    ]
