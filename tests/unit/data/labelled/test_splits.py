"""Labelled rows -> training and evaluation: shares, groups, folds, repeats, overlap, refusals."""

import json
import random
import unicodedata
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sft_kit.data.labelled.dealing import deal, join_groups
from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.labelled.splits import load_labelled, order_labels, read_splits, text_key
from sft_kit.data.rows import Where
from sft_kit.errors import DataError, FormatError
from sft_kit.settings import LabelledDataSettings


def write_rows(path, rows):
    """Write (text, label) or (text, label, group); a text may be a pair."""
    lines = []
    for text, label, *group in rows:
        first, *second = [text] if isinstance(text, str) else text
        fields = {"text": first, "label": label}
        fields |= {"text_pair": second[0]} if second else {}
        fields |= {"group": group[0]} if group else {}
        lines.append(json.dumps(fields, ensure_ascii=False))
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def load(tmp_path):
    """Function from rows, and perhaps held-out rows, to their splits."""

    def load(rows, held_out=None, how=load_labelled, **settings):
        path = write_rows(tmp_path / "rows.jsonl", rows)
        if held_out is not None:
            settings["eval_path"] = write_rows(tmp_path / "held.jsonl", held_out)
        if len(rows[0]) == 3:
            settings["group"] = "group"
        return how(LabelledDataSettings(path=path, **settings))

    return load


def lines_of(rows):
    return [row.where.line for row in rows]


def labels_of(rows):
    return Counter(label for row in rows for label in row.labels)


def reviews(**counts):
    """Rows of each class, mixed."""
    rows = [(f"{name} {n}", name) for name, count in counts.items() for n in range(count)]
    random.Random(0).shuffle(rows)
    return rows


# --- dealing -------------------------------------------------------------------------------------

counts_of_classes = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@given(counts_of_classes, st.floats(0.0, 0.99), st.integers(0, 100))
@hypothesis_settings(deadline=None)
def test_a_share_of_single_rows_is_exact_to_a_row_in_each_class_and_in_all(counts, share, seed):
    classes = [f"c{index}" for index, count in enumerate(counts) for _ in range(count)]
    random.Random(seed).shuffle(classes)
    bins = deal([{name: 1} for name in classes], [1 - share, share], seed)
    for index, count in enumerate(counts):
        got = sum(bin_ for name, bin_ in zip(classes, bins, strict=True) if name == f"c{index}")
        assert abs(got - share * count) < 1
    assert abs(sum(bins) - share * len(classes)) <= 0.5 + 1e-6


@given(
    st.lists(st.integers(10, 40), min_size=1, max_size=8), st.integers(2, 10), st.integers(0, 100)
)
@hypothesis_settings(deadline=None, max_examples=40)
def test_folds_of_single_rows_are_as_even_as_those_of_scikit_learn(counts, num_folds, seed):
    from sklearn.model_selection import StratifiedKFold

    classes = [index for index, count in enumerate(counts) for _ in range(count)]
    bins = deal([{str(name): 1} for name in classes], [1 / num_folds] * num_folds, seed)
    theirs = [fold for _, fold in StratifiedKFold(num_folds).split(classes, classes)]
    for name in set(classes):
        ours = Counter(b for c, b in zip(classes, bins, strict=True) if c == name)
        expected = sorted(sum(classes[row] == name for row in fold) for fold in theirs)
        assert sorted(ours[fold] for fold in range(num_folds)) == expected
    sizes = Counter(bins)
    assert sorted(sizes.values()) == sorted(len(fold) for fold in theirs)


def test_folds_of_mixed_groups_are_at_least_as_even_as_those_of_scikit_learn():
    from sklearn.model_selection import StratifiedGroupKFold

    ours, theirs = [], []
    for seed in range(20):
        draw = random.Random(seed)
        sizes = [draw.randrange(1, 12) for _ in range(60)]
        group_of = [group for group, size in enumerate(sizes) for _ in range(size)]
        classes = [draw.choices("abc", [6, 3, 1])[0] for _ in group_of]
        groups = [Counter() for _ in sizes]
        for group, name in zip(group_of, classes, strict=True):
            groups[group][name] += 1
        bins = deal(groups, [0.2] * 5, seed)
        ours.append(unevenness(classes, [bins[group] for group in group_of]))
        folds = StratifiedGroupKFold(5).split(classes, classes, group_of)
        fold_of = {row: fold for fold, (_, rows) in enumerate(folds) for row in rows}
        theirs.append(unevenness(classes, [fold_of[row] for row in range(len(classes))]))
    assert sum(ours) <= sum(theirs)


def unevenness(classes, folds):
    """Squared distance of each class's rows in each fold from a fifth, relative to the class."""
    total = Counter(classes)
    found = Counter(zip(classes, folds, strict=True))
    return sum((found[name, fold] / total[name] - 0.2) ** 2 for name in total for fold in range(5))


@given(st.lists(st.lists(st.integers(0, 12), max_size=3), max_size=25))
@hypothesis_settings(deadline=None)
def test_rows_are_joined_as_connected_components_of_a_graph(keys):
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = len(keys) + 13
    edges = [(row, len(keys) + key) for row, row_keys in enumerate(keys) for key in row_keys]
    rows, columns = zip(*edges, strict=True) if edges else ((), ())
    graph = coo_array(([1] * len(edges), (list(rows), list(columns))), shape=(size, size))
    _, expected = connected_components(graph, directed=False)
    numbers = join_groups([[str(key).encode() for key in row_keys] for row_keys in keys])
    same = set(zip(numbers, expected[: len(keys)].tolist(), strict=True))
    assert len(same) == len(set(numbers)) == len(set(expected[: len(keys)].tolist()))
    firsts = [numbers.index(number) for number in range(len(set(numbers)))]
    assert firsts == sorted(firsts)


# --- one file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_each_class_is_held_out_in_the_same_share_and_the_order_of_the_file_stays(load, fraction):
    splits = load(reviews(good=100, bad=40, odd=20), eval_fraction=fraction)
    expected = {"good": 100 * fraction, "bad": 40 * fraction, "odd": 20 * fraction}
    assert labels_of(splits.eval) == expected
    for rows in (splits.train, splits.eval):
        assert lines_of(rows) == sorted(lines_of(rows))
    assert sorted(lines_of(splits.train) + lines_of(splits.eval)) == list(range(1, 161))
    assert splits.label_names == ("bad", "good", "odd")


def test_the_split_depends_on_its_seed_only(load):
    rows = reviews(good=30, bad=30)
    random.seed(1)
    first = lines_of(load(rows, split_seed=3).eval)
    random.seed(2)
    assert lines_of(load(rows, split_seed=3).eval) == first
    assert lines_of(load(rows, split_seed=4).eval) != first


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_every_class_keeps_a_row_to_train_on_and_something_is_held_out(load, fraction):
    splits = load(reviews(good=6, bad=2, lone=1), eval_fraction=fraction)
    assert labels_of(splits.train).keys() == {"good", "bad", "lone"}
    assert splits.eval


def test_without_a_fraction_nothing_is_held_out(load):
    splits = load(reviews(good=3, bad=3), eval_fraction=0.0)
    assert (len(splits.train), splits.eval) == (6, [])


DISGUISES = [
    str.upper,
    lambda text: f"  {text} ",
    lambda text: text.replace(" ", "\u3000\n"),
    lambda text: text.replace(" ", ""),
    lambda text: unicodedata.normalize("NFD", text),
]


@pytest.mark.parametrize("seed", range(5))
def test_equal_texts_never_stand_on_both_sides(load, seed):
    draw = random.Random(seed)
    rows = [(f"Café n° {n}", draw.choice("ab")) for n in range(30)]
    rows += [(draw.choice(DISGUISES)(text), label) for text, label in draw.choices(rows, k=40)]
    draw.shuffle(rows)
    splits = load(rows, eval_fraction=0.3, split_seed=seed)
    sides = [{plain_key(row.texts) for row in side} for side in (splits.train, splits.eval)]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert splits.report.num_duplicates == len(rows) - len({plain_key((row[0],)) for row in rows})


def test_rows_of_one_group_stay_together_also_through_equal_texts(load):
    draw = random.Random(5)
    rows = [(f"text {draw.randrange(300)}", draw.choice("ab"), f"g{n // 3}") for n in range(120)]
    splits = load(rows, eval_fraction=0.3)
    for what in (lambda row: row.group, lambda row: row.texts):
        assert not {what(row) for row in splits.train} & {what(row) for row in splits.eval}


def test_a_pair_is_equal_to_another_only_as_a_whole(load):
    rows = [((f"question {n // 4}", f"answer {n % 4}"), "ab"[n % 2]) for n in range(40)]
    splits = load([*rows, (("QUESTION 0", "answer 0"), "a")], eval_fraction=0.5)
    assert splits.report.num_duplicates == 1
    sides = [{row.texts[0] for row in side} for side in (splits.train, splits.eval)]
    assert sides[0] & sides[1]  # the first texts alone may part
    assert text_key(("ab", "c")) != text_key(("a", "bc")) != text_key(("abc",))


def plain_key(texts):
    """Say in the plainest way what counts as the same text."""
    return tuple(map(plainly, texts))


def plainly(text):
    told = ""
    for word in unicodedata.normalize("NFC", text).casefold().split():
        parts_words = told and not is_cjk(told[-1]) and not is_cjk(word[0])
        told += f" {word}" if parts_words else word
    return told


def is_cjk(char):
    kinds = {"CJK", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "FULLWIDTH"}
    return unicodedata.name(char, "").split(" ")[0].split("-")[0] in kinds


@given(st.lists(st.text("aé\u0301 \u3000ß水の。！", max_size=6), min_size=2, max_size=2))
@hypothesis_settings(deadline=None, max_examples=200)
def test_two_texts_have_one_key_exactly_when_they_are_plainly_the_same(texts):
    first, second = texts
    same = plain_key((first,)) == plain_key((second,))
    assert (text_key((first,)) == text_key((second,))) == same


def test_white_space_parts_words_and_counts_for_nothing_beside_chinese():
    assert text_key(("now here",)) != text_key(("nowhere",))
    assert text_key(("now here",)) == text_key((" Now \n here",))
    assert text_key(("房间 很大 ， wifi 也好",)) == text_key(("房间很大，wifi也好",))
    assert text_key(("방이 넓다",)) != text_key(("방이넓다",))


@pytest.mark.parametrize("before", range(65_533, 65_538))
@pytest.mark.parametrize("gap", ["", " ", "\n \t", " " * 70_000])
@pytest.mark.parametrize("char", ["b", "水"])
def test_a_long_text_has_the_key_of_a_short_one_wherever_its_white_space_stands(before, gap, char):
    text = f"{'a' * before}{gap}{char}c"
    assert (text_key((text,)) == text_key((f"{'a' * before} {char}c",))) == (
        bool(gap) or is_cjk(char)
    )


def test_folds_hold_out_every_row_once_and_train_on_the_others(load):
    rows = reviews(good=53, bad=31, odd=7)
    folds = [load(rows, num_folds=5, fold=fold) for fold in range(1, 6)]
    held_out = [line for splits in folds for line in lines_of(splits.eval)]
    assert sorted(held_out) == list(range(1, 92))
    for splits in folds:
        assert sorted(lines_of(splits.train) + lines_of(splits.eval)) == list(range(1, 92))
        for name, count in (("good", 53), ("bad", 31), ("odd", 7)):
            assert labels_of(splits.eval)[name] in (count // 5, count // 5 + 1)
        assert len(splits.eval) in (18, 19)


def test_a_class_that_one_fold_could_not_learn_is_refused_in_every_fold(load):
    rows = [*reviews(good=10, bad=10), ("only", "lone"), ("ONLY", "lone")]
    for fold in range(1, 6):
        with pytest.raises(FormatError) as caught:
            load(rows, num_folds=5, fold=fold)
        (problem,) = caught.value.problems
        assert "the label 'lone' in" in problem.message
        assert "(lines 21, 22)" in problem.message


@pytest.mark.parametrize("seed", range(10))
def test_multi_label_rows_are_held_out_in_the_share_of_each_label_and_of_all(load, seed):
    draw = random.Random(seed)
    rows = [(f"text {n}", [name for name in "abcd" if draw.random() < 0.5]) for n in range(200)]
    splits = load(rows, multi_label=True, eval_fraction=0.2, split_seed=seed)
    total = Counter(label for _, labels in rows for label in labels)
    for name in "abcd":
        assert abs(labels_of(splits.eval)[name] - 0.2 * total[name]) < 1
    assert len(splits.eval) == 40


# --- repeats and overlap -------------------------------------------------------------------------

REPEATED = [
    ("one", "a"), ("two", "b"), ("ONE", "a"), ("three", "a"), ("\u3000One\n", "a"), ("Three", "b"),
    ("four", "b"), ("five", "a"), ("six", "b"),
]  # fmt: skip


def test_repeats_and_contradictions_are_counted_and_told_when_they_stay(load):
    splits = load(REPEATED, eval_fraction=0.0)
    assert lines_of(splits.train) == list(range(1, 10))
    assert (splits.report.num_duplicates, splits.report.num_conflicts) == (3, 1)
    (conflict,) = splits.report.conflicts
    assert [(row.where.line, row.labels) for row in conflict] == [(4, ("a",)), (6, ("b",))]
    (note,) = [note for note in splits.notes() if "repeat" in note]
    assert "3 rows repeat an earlier text" in note
    assert "labels of 1 text contradict" in note
    assert "data.deduplicate=true" in note


def test_deduplication_keeps_the_first_of_equal_rows_and_none_of_contradicting_ones(load):
    splits = load(REPEATED, eval_fraction=0.0, deduplicate=True)
    assert lines_of(splits.train) == [1, 2, 7, 8, 9]
    report = splits.report
    assert (report.num_duplicates, report.num_conflicts) == (3, 1)
    assert (report.num_dropped_duplicates, report.num_dropped_conflicts) == (2, 2)
    assert splits.describe()["num_dropped_rows"] == 4
    assert splits.warnings() == ["class 'a' has 2 training rows (lines 1, 8)"]


def test_the_order_of_several_labels_is_no_contradiction(load):
    rows = [("one", ["a", "b"]), ("ONE", ["b", "a"]), ("two", ["a"]), ("Two", [])]
    splits = load(rows, multi_label=True, eval_fraction=0.0, deduplicate=True)
    assert lines_of(splits.train) == [1]


TRAIN = [("one", "a"), ("two", "b"), ("three", "a"), ("One", "a"), ("four", "b"), ("five", "a")]
HELD = [("ONE", "a"), ("six", "b"), (" two", "a"), ("one\u3000", "a")]


@pytest.mark.parametrize(
    ("on_overlap", "train", "held", "dropped"),
    [
        ("drop-train", [3, 5, 6], [1, 2, 3, 4], (3, 0)),
        ("drop-eval", [1, 2, 3, 4, 5, 6], [2], (0, 3)),
        ("keep", [1, 2, 3, 4, 5, 6], [1, 2, 3, 4], (0, 0)),
    ],
)
def test_overlap_with_the_held_out_file_is_found_and_dealt_with(
    load, on_overlap, train, held, dropped
):
    splits = load(TRAIN, HELD, on_overlap=on_overlap)
    report = splits.report
    assert (lines_of(splits.train), lines_of(splits.eval)) == (train, held)
    assert (report.num_overlaps, report.num_overlap_texts, report.num_overlap_conflicts) == (
        3,
        2,
        1,
    )
    assert [place.line for place in report.overlaps] == [1, 3, 4]
    assert (report.num_dropped_train, report.num_dropped_eval) == dropped
    assert any("come out too high" in note for note in splits.notes()) == (on_overlap == "keep")


def test_each_file_is_deduplicated_on_its_own_and_overlap_is_counted_before(load):
    splits = load(TRAIN, HELD, on_overlap="drop-eval", deduplicate=True)
    assert lines_of(splits.train) == [1, 2, 3, 5, 6]
    assert lines_of(splits.eval) == [2]
    assert splits.report.num_overlaps == 3
    assert (splits.report.num_duplicates, splits.report.num_eval_duplicates) == (1, 1)


def test_num_rows_shortens_the_training_file_only(load):
    splits = load(TRAIN, HELD, num_rows=3, on_overlap="keep")
    assert (len(splits.train), len(splits.eval)) == (3, 4)


@pytest.mark.parametrize(
    ("on_overlap", "train", "held", "is_told"),
    [
        ("drop-train", [2, 3], [1, 2, 3], False),
        ("drop-eval", [1, 2, 3, 4], [2], False),
        ("keep", [1, 2, 3, 4], [1, 2, 3], True),
    ],
)
def test_groups_that_stand_in_both_files_are_dealt_with_as_equal_texts_are(
    load, on_overlap, train, held, is_told
):
    rows = [("one", "a", "g"), ("two", "b", "h"), ("three", "a", "j"), ("four", "b", "k")]
    held_out = [("five", "a", "g"), ("six", "b", "i"), ("FOUR", "b", "l")]
    splits = load(rows, held_out, on_overlap=on_overlap)
    assert (lines_of(splits.train), lines_of(splits.eval)) == (train, held)
    assert (splits.report.num_shared_groups, splits.report.num_overlaps) == (1, 1)
    assert any("1 value of data.group" in note for note in splits.notes()) == is_told


def test_the_record_of_a_run_has_counts_and_fingerprints(load):
    described = load(TRAIN, HELD).describe()
    assert described | {"fingerprint": "", "eval_fingerprint": ""} == {
        "num_train_rows": 3, "num_eval_rows": 4, "num_texts": 1, "num_bad_rows": 0,
        "num_duplicates": 2,
        "num_conflicts": 0, "num_overlaps": 3, "num_dropped_rows": 3,
        "fingerprint": "", "eval_fingerprint": "",
    }  # fmt: skip
    assert len({described["fingerprint"], described["eval_fingerprint"], ""}) == 3
    pairs = [((f"q{n}", f"a{n}"), "ab"[n % 2]) for n in range(8)]
    assert load(pairs, eval_fraction=0.25).describe()["num_texts"] == 2


# --- class ids -----------------------------------------------------------------------------------


def labelled(*labels):
    return [LabelledText((f"{n}",), (name,), Where("x", n)) for n, name in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "-1", "9"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["b", "B", "a", "水"], ("B", "a", "b", "水")),
        (["1.5", "1"], ("1", "1.5")),
    ],
)
def test_class_ids_follow_numbers_by_value_and_texts_by_characters(labels, expected):
    assert order_labels(labelled(*labels), {}, ()) == expected


def test_declared_names_come_first_in_their_order(load):
    assert order_labels(labelled("x"), {}, ("z", "x")) == ("z", "x")
    names = {"2": "bad", "1": "good", "0": "bad"}
    splits = load([("a", 0), ("b", 1), ("c", 2)], eval_fraction=0.0, label_names=names)
    assert splits.label_names == ("bad", "good")
    assert [row.labels for row in splits.train] == [("bad",), ("good",), ("bad",)]


def test_a_declared_class_without_training_rows_is_told(load):
    names = {"0": "bad", "1": "good", "2": "odd"}
    splits = load([("a", 0), ("b", 1)], eval_fraction=0.0, label_names=names)
    assert splits.label_names == ("bad", "good", "odd")
    assert splits.warnings() == [
        "class 'bad' has 1 training row (line 1)",
        "class 'good' has 1 training row (line 2)",
        "no training row has the label 'odd'",
    ]


# --- refusals ------------------------------------------------------------------------------------


def test_a_held_out_label_that_is_never_trained_on_is_refused_with_its_places(load):
    with pytest.raises(FormatError) as caught:
        load(TRAIN, [*HELD, ("seven", "c"), ("eight", "d"), ("nine", "c")])
    first, second = caught.value.problems
    assert "the label 'c' in 2 held-out rows (lines 5, 7)" in first.message
    assert "the label 'd' in 1 held-out row (line 6)" in second.message
    assert first.where.endswith("held.jsonl")


def test_one_class_is_not_enough_and_one_label_of_many_is(load):
    rows = [("one", "a"), ("two", "a"), ("three", "a")]
    with pytest.raises(FormatError, match=r"found the label 'a' only, accepts two classes or more"):
        load(rows)
    with pytest.raises(FormatError, match=r"or raise data\.num_rows"):
        load([*rows, ("four", "b")], num_rows=3)
    many = [(text, [label]) for text, label in rows]
    assert load(many, multi_label=True).label_names == ("a",)
    with pytest.raises(FormatError, match=r"found no label, accepts at least one"):
        load([(text, []) for text, _ in rows], multi_label=True)


def test_nothing_left_to_train_on_is_refused_with_the_reasons(load):
    rows = [("one", "a"), ("two", "b")]
    with pytest.raises(DataError, match=r"nothing is left to train on: of 4 rows .* 2 are held"):
        load(rows, rows)
    with pytest.raises(DataError, match=r"nothing is left to train on: .* 2 repeat or contradict"):
        load([("one", "a"), ("ONE", "b")], deduplicate=True)


def test_nothing_to_hold_out_is_refused(load):
    with pytest.raises(DataError, match="no row can be held out"):
        load([("one", "a"), ("two", "b")])
    with pytest.raises(DataError, match="no row can be held out"):
        load(TRAIN, [("one", "a")], on_overlap="drop-eval")


def test_bad_rows_of_both_files_are_in_one_report_or_skipped(load):
    with pytest.raises(FormatError) as caught:
        load([*TRAIN, ("", "a")], [*HELD, ("x", "")])
    assert [problem.where.rpartition("/")[2] for problem in caught.value.problems] == [
        "rows.jsonl:7", "held.jsonl:5"
    ]  # fmt: skip
    splits = load([*TRAIN, ("", "a")], [*HELD, ("x", "")], on_bad_row="skip")
    assert splits.report.num_bad_rows == len(splits.report.bad_rows) == 2
    assert splits.report.num_rows == 12


# --- real data -----------------------------------------------------------------------------------


def test_overlap_and_repeats_of_chnsenticorp(real_data):
    folder = real_data / "chnsenticorp"

    def plain(name):
        lines = (folder / name).read_text(encoding="utf-8").split("\n")
        pairs = [line.rstrip("\r").split("\t") for line in lines if line]
        return [(plainly(text), label) for text, label in pairs]

    train, held_out = plain("train.tsv"), plain("dev.tsv")
    shared = {text for text, _ in train} & {text for text, _ in held_out}
    labels = {}
    for text, label in train:
        labels.setdefault(text, set()).add(label)
    settings = LabelledDataSettings(
        path=str(folder / "train.tsv"), eval_path=str(folder / "dev.tsv")
    )
    splits = load_labelled(settings)
    report = splits.report
    assert (len(train), len(held_out), report.num_rows) == (9600, 1200, 10800)
    # 337 different texts, which stand on 340 rows.
    assert report.num_overlap_texts == len(shared) == 337
    assert report.num_overlaps == sum(text in shared for text, _ in held_out) == 340
    # Without the white space beside hanzi; with it these are 1,351.
    assert report.num_duplicates == len(train) - len(labels) == 1358
    assert report.num_overlap_conflicts == sum(
        text in shared and label not in labels[text] for text, label in held_out
    )
    assert len(splits.train) == sum(text not in shared for text, _ in train)
    clean = load_labelled(replace(settings, deduplicate=True))
    of_held_out = {}
    for text, label in held_out:
        of_held_out.setdefault(text, set()).add(label)
    agreed = {text for text, found in of_held_out.items() if len(found) == 1}
    assert len(clean.eval) == len(agreed)
    left = {text for text, found in labels.items() if len(found) == 1} - agreed
    assert len(clean.train) == len(left)


def test_no_question_of_mc_taco_stands_on_both_sides(real_data):
    settings = LabelledDataSettings(
        path=str(real_data / "mctaco" / "dev_3783.tsv"),
        text=1, text_pair=[2, 3], label=4, group=2, eval_fraction=0.2,
    )  # fmt: skip
    splits = load_labelled(settings)
    lines = (real_data / "mctaco" / "dev_3783.tsv").read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t") for line in lines]
    sides = [{rows[line - 1][1] for line in lines_of(side)} for side in (splits.train, splits.eval)]
    assert not sides[0] & sides[1]
    assert len(splits.train) + len(splits.eval) == 3783
    whole = Counter(row[3] for row in rows if len(row) > 1)
    for name, count in labels_of(splits.eval).items():
        assert abs(count - 0.2 * whole[name]) <= 2


def test_five_folds_of_the_phrasebank_hold_out_every_row_once(real_data):
    path = str(real_data / "fin_phrasebank" / "Sentences_AllAgree.txt")
    splits = [
        load_labelled(LabelledDataSettings(path=path, num_folds=5, fold=fold))
        for fold in range(1, 6)
    ]
    held_out = sorted(line for one in splits for line in lines_of(one.eval))
    assert len(held_out) == 2264
    assert all(first < second for first, second in pairwise(held_out))
    whole = labels_of([*splits[0].train, *splits[0].eval])
    for one in splits:
        for name, count in whole.items():
            assert abs(labels_of(one.eval)[name] - count / 5) < 1


def test_the_report_is_there_even_when_the_labels_are_refused(load):
    splits = load([("one", "a"), ("two", "a")], how=read_splits)
    assert splits.label_names == ("a",)
