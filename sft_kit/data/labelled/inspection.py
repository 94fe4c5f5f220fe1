"""Figures about labelled texts: balance, what a constant answer scores, lengths, what to look at.

Pure functions; `view` shows what they return.
"""

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sft_kit.data.inspection import nearest_rank
from sft_kit.data.labelled.rows import LabelledExample, LabelledText
from sft_kit.data.rows import Where


@dataclass(frozen=True, slots=True)
class ClassBalance:
    """How often each class occurs in a split.

    Attributes:
        num_rows: Rows of the split.
        counts: Rows of each class, by class id; with several labels a text they may add up to any
            number.
        num_without_label: Rows that have no label.
    """

    num_rows: int
    counts: tuple[int, ...]
    num_without_label: int

    def fraction(self, class_id: int) -> float:
        """Share of the rows that have a class, in [0, 1]; 0 without rows."""
        return self.counts[class_id] / self.num_rows if self.num_rows else 0.0


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the constant answer scores that is right most often in training.

    Attributes:
        answer: Its labels: one, or with several labels a text the commonest set of them.
        accuracy: Share of the rows whose labels are exactly these, in [0, 1].
        macro_f1: Mean of the F1 of all classes, in [0, 1].
    """

    answer: tuple[str, ...]
    accuracy: float
    macro_f1: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the examples of a split.

    Attributes:
        lengths: Tokens of each example, after cutting.
        cut_rows: Rows that were longer than `max_length`.
    """

    lengths: tuple[int, ...]
    cut_rows: tuple[Where, ...]

    def spread(self) -> tuple[int, int, int, int]:
        """Tokens of the shortest, the median, the 90 % and the longest example; 0 without any."""
        ranks = (nearest_rank(self.lengths, fraction) for fraction in (0.0, 0.5, 0.9, 1.0))
        shortest, median, p90, longest = ranks
        return shortest, median, p90, longest


def class_balance(rows: Sequence[LabelledText], label_names: Sequence[str]) -> ClassBalance:
    """Count the rows of each class."""
    counts = dict.fromkeys(label_names, 0)
    for row in rows:
        for name in set(row.labels):
            counts[name] += 1
    without = sum(not row.labels for row in rows)
    return ClassBalance(len(rows), tuple(counts.values()), without)


def majority_answer(
    train: Sequence[LabelledText], label_names: Sequence[str], *, multi_label: bool
) -> tuple[str, ...]:
    """The answer that is right most often in training: a class, or the commonest set of labels.

    Of equally frequent classes it is the first, of equally frequent sets the one without the first
    class that they don't share.
    """
    counts = Counter(frozenset(row.labels) for row in train)
    if not counts:
        return ()

    def rank(labels: frozenset[str]) -> tuple[int, list[bool]]:
        return -counts[labels], [(name in labels) == multi_label for name in label_names]

    answer = min(counts, key=rank)
    return tuple(name for name in label_names if name in answer)


def score_answer(
    answer: Sequence[str], rows: Sequence[LabelledText], label_names: Sequence[str]
) -> Baseline:
    """Score one answer given to every row.

    A class that is always answered has precision p, its share of the rows, and recall 1, so its F1
    is 2p / (1 + p); a class that is never answered has 0.
    """
    balance = class_balance(rows, label_names)
    scores = [
        2 * balance.fraction(index) / (1 + balance.fraction(index)) if name in answer else 0.0
        for index, name in enumerate(label_names)
    ]
    num_right = sum(set(row.labels) == set(answer) for row in rows)
    return Baseline(
        tuple(answer),
        num_right / len(rows) if rows else 0.0,
        sum(scores) / len(scores) if scores else 0.0,
    )


def measure_lengths(examples: Sequence[LabelledExample]) -> Lengths:
    """Collect how long the examples of a split are."""
    return Lengths(
        tuple(len(example.input_ids) for example in examples),
        tuple(example.where for example in examples if example.was_cut),
    )


def unknown_labels(rows: Sequence[LabelledText], known: Collection[str]) -> list[str]:
    """Labels that have no class id, sorted."""
    return sorted({name for row in rows for name in row.labels} - set(known))


def choose_rows(rows: Sequence[LabelledText], count: int, seed: int) -> list[int]:
    """Choose rows worth looking at: one of each class in turn, then any.

    Args:
        rows: Rows of one split.
        count: Number of rows to choose at most.
        seed: Seed of the draw.

    Returns:
        Different indices; as many classes as `count` allows, in the order of their names.
    """
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    first: dict[tuple[str, ...], int] = {}
    for index in order:
        first.setdefault(tuple(sorted(rows[index].labels)), index)
    by_class = [first[labels] for labels in sorted(first)]
    return list(dict.fromkeys([*by_class, *order]))[:count]
