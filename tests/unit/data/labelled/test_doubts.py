"""What was probably not meant: labels that were not cut apart, starved classes, near names."""

import pytest

from sft_kit.data.labelled.doubts import class_doubts
from sft_kit.data.labelled.reading import alike_in_one, read_labelled
from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.rows import Where
from sft_kit.errors import FormatError, Problem
from sft_kit.settings import LabelledDataSettings


def rows_of(file, **lines):
    """Rows of each class at these lines."""
    return [
        LabelledText((f"text {line}",), (name,), Where(file, line))
        for name, numbers in lines.items()
        for line in numbers
    ]


@pytest.fixture
def read(tmp_path):
    """Function from label fields, and options, to what reading them as several labels finds."""

    def read(*labels, **options):
        path = tmp_path / "rows.csv"
        lines = "".join(f'text {n},"{label}"\n' for n, label in enumerate(labels))
        path.write_text("text,label\n" + lines, encoding="utf-8")
        options = {"multi_label": True, **options}
        return read_labelled(LabelledDataSettings(path=str(path), **options), str(path))

    return read


@pytest.mark.parametrize("mark", [";", "|", "；", "，", "、"])
def test_labels_that_hold_another_separator_are_doubted(read, mark):
    (doubt,) = read("c", f"a{mark}b", "a", f"b{mark}c").doubts
    assert f"rows.csv:3: the label 'a{mark}b' holds {mark!r}, and no row has ','" in doubt
    assert f"data.label_separator={mark!r}" in doubt
    assert not read("c", f"a{mark}b", "a", label_separator=mark).doubts


def test_labels_whose_parts_are_all_labels_of_other_rows_are_refused(read):
    with pytest.raises(FormatError, match=r"rows\.csv:2: the label 'a\|b' .* labels of other rows"):
        read("a|b", "a", "b", "")
    names = {name: name for name in ("a", "b", "a|b")}
    assert len(read("a|b", "a", "b", label_names=names).doubts) == 1


def test_several_labels_of_which_no_row_has_two_are_doubted(read):
    (doubt,) = read("a", "b", "").doubts
    assert "no row of" in doubt
    assert "has two labels" in doubt
    assert not read("a", "a,b").doubts
    assert not read("a", "b", multi_label=False).doubts


def test_a_class_with_hardly_any_training_rows_is_named_with_its_places():
    train = rows_of("x.csv", many=[2, 3, 4], two=[5, 6], one=[7])
    assert class_doubts(train, [], ("many", "one", "two")) == [
        "class 'one' has 1 training row (line 7)",
        "class 'two' has 2 training rows (lines 5, 6)",
    ]


@pytest.mark.parametrize("near", ["正 面", "正面 ", "正\u3000面"])
def test_a_name_that_differs_by_white_space_only_is_asked_about(near):
    train = rows_of("x.csv", **{"正面": [2, 3, 4], near: [7], "负面": [8, 9, 10]})
    assert class_doubts(train, [], ("正面", near, "负面")) == [
        f"class {near!r} has 1 training row (line 7): did you mean '正面'?"
    ]


@pytest.mark.parametrize("near", ["POS", "ｐｏｓ", "p os"])
def test_near_names_are_told_once_however_many_rows_they_have(near):
    train = rows_of("x.csv", pos=[2, 3, 4, 5], **{near: [6, 7, 8]})
    (doubt,) = class_doubts(train, [], ("pos", near))
    assert doubt == f"class {near!r} has 3 training rows (lines 6, 7, 8): did you mean 'pos'?"


def test_a_class_without_held_out_rows_is_told_where_there_is_an_evaluation():
    train = rows_of("x.csv", a=[2, 3, 4], b=[5, 6, 7])
    held_out = rows_of("x.csv", a=[8])
    (doubt,) = class_doubts(train, held_out, ("a", "b", "never"))
    assert doubt == "no held-out row has the label 'b': nothing is measured on it"
    assert not class_doubts(train, [], ("a", "b"))


def test_rows_with_the_same_finding_are_told_in_one_line():
    alike = [Problem(f"d:x.csv:{line}", "label", "found a list", "write one") for line in range(60)]
    other = Problem("d:x.csv:99", "label", "found nothing", "write one")
    one, last = alike_in_one([*alike[:30], other, *alike[30:]])
    assert str(one) == (
        "d:x.csv: 60 rows (lines 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...): label: found a list "
        "(write one)"
    )
    assert last == other
    assert alike_in_one(alike[:3]) == alike[:3]


def test_many_classes_with_hardly_any_rows_are_counted():
    names = [f"class {n}" for n in range(25)]
    doubts = class_doubts(rows_of("x", **{name: [n] for n, name in enumerate(names)}), [], names)
    assert len(doubts) == 11
    assert doubts[-1] == "15 more classes have hardly any training rows"
