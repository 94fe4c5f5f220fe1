"""Figures about labels against recounts, and what is refused."""

import itertools
import random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_kit.data.inspection import (
    check_labels,
    choose_examples,
    histogram,
    inspect_labels,
    name_places,
)
from sft_kit.data.rows import IGNORED, Example, Where
from sft_kit.errors import DataError

STOP = 9


def make_example(labels, *, was_cut=False, line=1, file="chat.jsonl"):
    ids = [label if label != IGNORED else 1 for label in labels]
    return Example(ids, list(labels), was_cut, Where(file, line))


def good(line):
    return make_example([IGNORED, 5, STOP], line=line)


def unlabelled(line, *, was_cut=True):
    return make_example([IGNORED] * 4, was_cut=was_cut, line=line)


def check(examples, *, fraction=0.01, last_tokens=("a", "b")):
    report = inspect_labels(examples, (STOP,))
    return check_labels(
        report, template_name="alpaca", last_tokens=last_tokens, max_dropped_fraction=fraction
    )


labels_of_a_row = st.lists(
    st.one_of(st.just(IGNORED), st.just(STOP), st.integers(0, 20)), min_size=1, max_size=12
)
rows_of_a_split = st.lists(st.tuples(labels_of_a_row, st.booleans()), max_size=30)


# --- figures -------------------------------------------------------------------------------------


@given(rows_of_a_split)
def test_figures_equal_a_recount_token_by_token(rows):
    examples = [
        make_example(labels, was_cut=was_cut, line=line)
        for line, (labels, was_cut) in enumerate(rows, start=1)
    ]
    report = inspect_labels(examples, (STOP,))

    num_tokens = num_supervised = 0
    cut, unlabelled_lines, no_stop = [], [], []
    for line, (labels, was_cut) in enumerate(rows, start=1):
        last = None
        for label in labels:
            num_tokens += 1
            if label != IGNORED:
                num_supervised += 1
                last = label
        cut += [line] if was_cut else []
        unlabelled_lines += [line] if last is None else []
        no_stop += [line] if last != STOP else []

    assert report.num_examples == len(rows)
    assert report.num_tokens == num_tokens
    assert report.num_supervised == num_supervised
    assert report.supervised_fraction * num_tokens == pytest.approx(num_supervised)
    assert [where.line for where in report.cut_rows] == cut
    assert [where.line for where in report.unlabelled_rows] == unlabelled_lines
    assert [where.line for where in report.no_stop_rows] == no_stop
    assert (report.num_cut, report.num_unlabelled) == (len(cut), len(unlabelled_lines))
    assert report.num_without_stop == len(no_stop)
    assert report.num_with_stop == len(rows) - len(no_stop)


@given(st.lists(st.integers(1, 600), min_size=1, max_size=60))
def test_length_figures_equal_numpys_nearest_rank(lengths):
    report = inspect_labels([make_example([IGNORED] * length) for length in lengths], (STOP,))
    assert report.lengths == tuple(lengths)
    assert report.min_length == min(lengths)
    assert report.longest_length == max(lengths)
    for figure, fraction in ((report.median_length, 0.5), (report.p90_length, 0.9)):
        assert figure == numpy.quantile(lengths, fraction, method="inverted_cdf")


def test_a_split_without_examples_has_zero_everywhere():
    report = inspect_labels([], (STOP,))
    assert report.num_examples == report.num_tokens == report.num_with_stop == 0
    assert report.supervised_fraction == report.unlabelled_fraction == 0.0
    assert report.min_length == report.median_length == report.longest_length == 0


def test_a_stop_token_that_is_not_the_last_supervised_token_does_not_count():
    examples = [
        make_example([IGNORED, STOP, 5]),
        make_example([IGNORED, 5, STOP, IGNORED, IGNORED]),
        make_example([IGNORED, IGNORED]),
    ]
    assert inspect_labels(examples, (STOP,)).num_with_stop == 1


def test_the_token_that_ends_an_earlier_completion_counts_as_a_stop_token():
    turn_stop = 8
    examples = [
        make_example([IGNORED, 5, turn_stop, IGNORED], was_cut=True, line=1),
        make_example([IGNORED, 5, turn_stop, IGNORED, 5, STOP], line=2),
        make_example([IGNORED, 5, turn_stop, IGNORED, 5], was_cut=True, line=3),
    ]
    report = inspect_labels(examples, (STOP, turn_stop))
    assert report.stop_token_ids == (STOP, turn_stop)
    assert [where.line for where in report.no_stop_rows] == [3]
    assert inspect_labels(examples, (STOP,)).num_with_stop == 1
    many = [good(line) for line in range(40)]
    many[7] = make_example([IGNORED, 5, turn_stop])
    many[30] = make_example([IGNORED, 5, 5])
    assert choose_examples(many, (STOP, turn_stop), 2, 0) == [0, 30]
    assert choose_examples(many, (STOP,), 2, 0) == [0, 7]


# --- what is refused -----------------------------------------------------------------------------


def test_no_example_at_all_is_refused():
    with pytest.raises(DataError, match="no row became an example"):
        check([])


def test_nothing_supervised_anywhere_is_refused_with_the_setting_that_cut_it():
    with pytest.raises(DataError) as caught:
        check([unlabelled(line) for line in range(1, 1501)])
    message = str(caught.value)
    assert "no token of 1,500 examples is supervised after max_length=4" in message
    assert "raise data.max_length" in message
    assert len(caught.value.problems) == 1


def test_nothing_supervised_without_a_cut_row_does_not_blame_max_length():
    with pytest.raises(DataError) as caught:
        check([unlabelled(line, was_cut=False) for line in range(3)])
    assert "max_length" not in str(caught.value)
    assert "data.loss_on" in str(caught.value)


def test_no_supervised_stop_token_is_refused_with_template_and_last_five_tokens():
    examples = [make_example([IGNORED, 5, 6], line=line) for line in range(1, 4)]
    with pytest.raises(DataError) as caught:
        check(examples, last_tokens=["zero", " one", " two", "\n", ".", "</s>"])
    message = str(caught.value)
    assert "none of 3 examples ends in a supervised stop token (id 9)" in message
    assert "template 'alpaca'" in message
    assert r"' one' ' two' '\n' '.' '</s>'" in message
    assert "zero" not in message
    assert "chat.jsonl" in message


def test_every_token_that_would_have_ended_a_completion_is_named():
    report = inspect_labels([make_example([IGNORED, 5, 6])], (STOP, 8))
    with pytest.raises(DataError, match=r"supervised stop token \(id 9 or 8\)"):
        check_labels(report, template_name="a", last_tokens=[], max_dropped_fraction=0.01)


def test_no_stop_token_because_all_rows_were_cut_asks_for_a_larger_max_length():
    examples = [make_example([IGNORED, 5, 6], was_cut=True, line=line) for line in range(1, 4)]
    with pytest.raises(DataError, match=r"all were cut after max_length=3 \(raise data.max_length"):
        check(examples)


def test_too_many_rows_without_supervised_token_are_refused_with_count_limit_and_first_ten_lines():
    examples = [good(line) for line in range(1, 4964)]
    examples += [unlabelled(line) for line in range(5001, 5038)]
    with pytest.raises(DataError) as caught:
        check(examples, fraction=0.005)
    lines = ", ".join(str(line) for line in range(5001, 5011))
    assert (
        f"37 of 5,000 rows have no supervised token after max_length=4 (lines {lines}, ...)"
        in str(caught.value)
    )
    assert "0.005" in str(caught.value)
    assert "data.max_dropped_fraction" in str(caught.value)


def test_the_accepted_share_itself_is_accepted_and_one_row_more_is_not():
    examples = [good(line) for line in range(99)] + [unlabelled(100)]
    assert check(examples, fraction=0.01)
    with pytest.raises(DataError):
        check([*examples, unlabelled(101)], fraction=0.01)


def test_missing_stop_tokens_and_dropped_rows_are_reported_together():
    examples = [make_example([IGNORED, 5]), unlabelled(2)]
    with pytest.raises(DataError) as caught:
        check(examples)
    assert len(caught.value.problems) == 2


def test_faultless_labels_give_no_warning():
    assert check([good(line) for line in range(1, 20)]) == []


def test_cut_rows_and_missing_stops_are_warned_about_with_counts():
    cut = [make_example([IGNORED, 5, 6, 7], was_cut=True, line=line) for line in (3, 8)]
    first, second = check([good(line) for line in range(10, 2008)] + cut)
    assert first.startswith("2 of 2,000 rows were cut after max_length=4 (lines 3, 8)")
    assert "doesn't learn to stop" in first
    assert second.startswith("1,998 of 2,000 examples end with a supervised stop token; 2 don't")


def test_unlabelled_rows_below_the_limit_are_warned_about():
    warnings = check([good(1), unlabelled(7)], fraction=0.5)
    assert any(
        "1 of 2 rows have no supervised token after max_length=4 (line 7)" in text
        for text in warnings
    )


def test_places_in_several_files_are_named_with_their_file():
    assert name_places([Where("a.json", 3), Where("b.json", 4)]) == "(a.json:3, b.json:4)"


# --- histogram -----------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 700), min_size=1, max_size=80), st.integers(1, 20))
def test_histogram_bins_cover_all_lengths_once(lengths, num_bins):
    bins = histogram(lengths, num_bins)
    assert 1 <= len(bins) <= num_bins
    assert (bins[0][0], bins[-1][1]) == (min(lengths), max(lengths))
    assert all(before[1] + 1 == after[0] for before, after in itertools.pairwise(bins))
    assert len({high - low for low, high, _ in bins[:-1]}) <= 1
    for low, high, count in bins:
        assert count == sum(low <= length <= high for length in lengths)


def test_histogram_of_nothing_is_empty():
    assert histogram([]) == []


# --- examples to show ----------------------------------------------------------------------------


def test_the_telling_examples_are_chosen_first():
    examples = [good(line) for line in range(40)]
    examples[11] = make_example([IGNORED, 5, 6, 7, STOP])
    examples[17] = make_example([IGNORED, *[5] * 30], was_cut=True)
    examples[23] = make_example([IGNORED, 5])
    assert choose_examples(examples, (STOP,), count=4, seed=0) == [0, 11, 17, 23]


def test_a_cut_example_without_stop_serves_where_all_others_stop():
    examples = [good(0), good(1), make_example([IGNORED, 5, 6], was_cut=True)]
    assert choose_examples(examples, (STOP,), count=2, seed=0)[:1] == [0]
    assert set(choose_examples(examples, (STOP,), count=3, seed=0)) == {0, 1, 2}


def test_random_examples_depend_on_the_seed_only():
    examples = [good(line) for line in range(500)]
    first = choose_examples(examples, (STOP,), count=8, seed=3)
    random.seed(99)
    assert choose_examples(examples, (STOP,), count=8, seed=3) == first
    assert choose_examples(examples, (STOP,), count=8, seed=4) != first


@given(rows_of_a_split, st.integers(0, 12), st.integers(0, 5))
def test_chosen_examples_are_different_and_as_many_as_asked(rows, count, seed):
    examples = [make_example(labels, was_cut=was_cut) for labels, was_cut in rows]
    chosen = choose_examples(examples, (STOP,), count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(examples))
    assert all(0 <= index < len(examples) for index in chosen)
