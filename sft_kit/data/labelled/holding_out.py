"""The rows of one file parted into training and evaluation, class by class, in whole groups."""

from collections.abc import Sequence

from sft_kit.data.labelled.dealing import deal, join_groups
from sft_kit.data.labelled.repeats import KeyedText
from sft_kit.settings import LabelledDataSettings

_TRAIN, _EVAL = 0, 1
_ANY = ""
"""Stands for every row where rows may have several labels or none; no label is empty."""


def hold_out(
    rows: Sequence[KeyedText], settings: LabelledDataSettings
) -> tuple[list[KeyedText], list[KeyedText]]:
    """Part rows by fraction or into folds; rows of one text or one group stay together.

    By fraction, each class keeps a row to train on, and at least one row is held out where that
    leaves every class one. Every row is held out in exactly one of the folds.

    Args:
        rows: In the order of the file.
        settings: `eval_fraction`, or `num_folds` and `fold`; `split_seed`, `multi_label`.

    Returns:
        Training rows and held-out rows, each in the order of the file.
    """
    if settings.num_folds is None and settings.eval_fraction == 0:
        return list(rows), []
    numbers = group_numbers(rows)
    groups = _count_classes(rows, numbers, multi_label=settings.multi_label)
    if settings.num_folds is None:
        shares = [1 - settings.eval_fraction, settings.eval_fraction]
        bins, held = deal(groups, shares, settings.split_seed), _EVAL
        _keep_every_class(bins, groups)
        _hold_something_out(bins, groups)
    else:
        shares = [1 / settings.num_folds] * settings.num_folds
        bins, held = deal(groups, shares, settings.split_seed), settings.fold - 1
    train = [row for row, group in zip(rows, numbers, strict=True) if bins[group] != held]
    evaluation = [row for row, group in zip(rows, numbers, strict=True) if bins[group] == held]
    return train, evaluation


def group_numbers(rows: Sequence[KeyedText]) -> list[int]:
    """Number the rows so that those which must stay together have the same number."""
    return join_groups([row.ties() for row in rows])


def _count_classes(
    rows: Sequence[KeyedText], numbers: Sequence[int], *, multi_label: bool
) -> list[dict[str, int]]:
    groups: list[dict[str, int]] = [{} for _ in range(max(numbers, default=-1) + 1)]
    for keyed, number in zip(rows, numbers, strict=True):
        for name in (*keyed.row.labels, _ANY) if multi_label else keyed.row.labels:
            groups[number][name] = groups[number].get(name, 0) + 1
    return groups


def _keep_every_class(bins: list[int], groups: Sequence[dict[str, int]]) -> None:
    """Move the smallest group of each class that has no row left to train on."""
    for name in sorted({name for group in groups for name in group}):
        places = [index for index, group in enumerate(groups) if name in group]
        if all(bins[index] == _EVAL for index in places):
            bins[min(places, key=lambda index: sum(groups[index].values()))] = _TRAIN


def _hold_something_out(bins: list[int], groups: Sequence[dict[str, int]]) -> None:
    """Where nothing is held out, take the smallest group that no class needs."""
    if _EVAL in bins:
        return
    num_groups: dict[str, int] = {}
    for group in groups:
        for name in group:
            num_groups[name] = num_groups.get(name, 0) + 1
    spare = [
        index for index, group in enumerate(groups) if all(num_groups[name] > 1 for name in group)
    ]
    if spare:
        bins[min(spare, key=lambda index: sum(groups[index].values()))] = _EVAL
