"""Figures about labelled texts: against scikit-learn, numpy and counting by hand."""

import random
from collections import Counter

import pytest

from sft_kit.data.labelled.inspection import (
    choose_rows,
    class_balance,
    majority_answer,
    measure_lengths,
    score_answer,
    unknown_labels,
)
from sft_kit.data.labelled.rows import LabelledExample, LabelledText
from sft_kit.data.rows import Where

NAMES = ("a", "b", "c", "d")


def texts(*labels):
    """Rows with these labels: a name, or a list of names."""
    return [
        LabelledText((f"{n}",), (one,) if isinstance(one, str) else tuple(one), Where("x", n))
        for n, one in enumerate(labels, start=1)
    ]


def drawn(seed, weights=(5, 3, 1, 0)):
    return random.Random(seed).choices(NAMES, weights, k=200)


def baseline(train, rows, *, multi_label=False):
    answer = majority_answer(texts(*train), NAMES, multi_label=multi_label)
    return score_answer(answer, texts(*rows), NAMES)


def test_the_balance_counts_every_class_also_one_that_never_occurs():
    balance = class_balance(texts("a", "c", "a"), NAMES)
    assert (balance.num_rows, balance.counts, balance.num_without_label) == (3, (2, 0, 1, 0), 0)
    assert [balance.fraction(index) for index in range(4)] == [2 / 3, 0, 1 / 3, 0]
    many = class_balance(texts(["a", "b"], [], ["b"]), NAMES)
    assert (many.num_rows, many.counts, many.num_without_label) == (3, (1, 2, 0, 0), 1)
    assert class_balance([], NAMES).fraction(0) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_majority_baseline_is_that_of_scikit_learn(seed):
    from sklearn.dummy import DummyClassifier
    from sklearn.metrics import accuracy_score, f1_score

    train, rows = drawn(seed, (1, 3, 2, 1)), drawn(seed + 100)
    dummy = DummyClassifier(strategy="most_frequent").fit([[0]] * 200, train)
    predicted = dummy.predict([[0]] * 200)
    got = baseline(train, rows)
    assert got.answer == (predicted[0],)
    assert got.accuracy == pytest.approx(accuracy_score(rows, predicted))
    expected = f1_score(rows, predicted, labels=NAMES, average="macro", zero_division=0)
    assert got.macro_f1 == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_constant_answer_with_many_labels_is_scored_as_by_scikit_learn(seed):
    import numpy as np
    from sklearn.metrics import accuracy_score, f1_score

    draw = random.Random(seed)
    chances = {"a": 0.8, "b": 0.6, "c": 0.3, "d": 0.0}

    def rows():
        return [[n for n, chance in chances.items() if draw.random() < chance] for _ in range(200)]

    train, held_out = rows(), rows()
    got = baseline(train, held_out, multi_label=True)
    counts = Counter(map(tuple, train)).most_common(2)
    assert counts[0][1] > counts[1][1]
    assert got.answer == counts[0][0]
    truth = np.array([[name in labels for name in NAMES] for labels in held_out])
    predicted = np.array([[name in counts[0][0] for name in NAMES]] * 200)
    assert got.accuracy == pytest.approx(accuracy_score(truth, predicted))
    expected = f1_score(truth, predicted, average="macro", zero_division=0)
    assert got.macro_f1 == pytest.approx(expected)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_the_answer_is_the_one_that_evaluation_compares_with(seed, multi_label):
    import numpy as np

    from sft_kit.evaluation.classification import evaluate

    draw = random.Random(seed)
    if multi_label:
        rows = texts(*([n for n in NAMES if draw.random() < 0.4] for _ in range(9)))
        labels = np.array([[name in row.labels for name in NAMES] for row in rows])
    else:
        rows = texts(*draw.choices(NAMES, k=9))
        labels = np.array([NAMES.index(row.labels[0]) for row in rows])
    report = evaluate(np.zeros((9, 4)), labels, rows, NAMES, multi_label=multi_label)
    assert majority_answer(rows, NAMES, multi_label=multi_label) == report.majority


def test_of_equally_frequent_classes_the_first_is_answered_and_of_sets_the_smaller():
    assert baseline(["b", "c", "b", "c"], ["b"]).answer == ("b",)
    half = baseline([["a"], ["a"], [], []], [[], ["a"]], multi_label=True)
    assert (half.answer, half.accuracy, half.macro_f1) == ((), 0.5, 0)


def test_no_rows_score_nothing():
    assert score_answer(("a",), [], NAMES).accuracy == 0
    assert majority_answer([], (), multi_label=False) == ()


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_lengths_are_the_nearest_ranks_of_numpy(count):
    import numpy as np

    draw = random.Random(count)
    examples = [
        LabelledExample([1] * draw.randrange(1, 90), [], 0, draw.random() < 0.3, Where("x", line))
        for line in range(count)
    ]
    lengths = measure_lengths(examples)
    values = [len(example.input_ids) for example in examples]
    expected = np.quantile(values, [0, 0.5, 0.9, 1], method="inverted_cdf").tolist()
    assert list(lengths.spread()) == expected
    assert lengths.lengths == tuple(values)
    assert lengths.cut_rows == tuple(example.where for example in examples if example.was_cut)
    assert measure_lengths([]).spread() == (0, 0, 0, 0)


def test_labels_without_a_class_id_are_named_once():
    assert unknown_labels(texts("z", "a", "y", "z"), NAMES) == ["y", "z"]


def test_chosen_rows_show_every_class_first_and_no_row_twice():
    rows = texts(*drawn(3))
    chosen = choose_rows(rows, 6, seed=1)
    assert [rows[index].labels for index in chosen[:3]] == [("a",), ("b",), ("c",)]
    assert len(set(chosen)) == 6
    assert chosen == choose_rows(rows, 6, seed=1) != choose_rows(rows, 6, seed=2)
    assert Counter(choose_rows(rows, 1000, seed=1)) == Counter(range(200))
    assert choose_rows(rows, 0, seed=1) == choose_rows([], 5, seed=1) == []
