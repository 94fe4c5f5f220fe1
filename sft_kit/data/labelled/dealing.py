"""Whole groups of rows dealt into bins so that each class has its share in every bin."""

import random
from collections.abc import Mapping, Sequence
from math import floor

GroupCounts = Mapping[str, int]
"""Class -> number of a group's rows that have it."""


def join_groups(keys: Sequence[Sequence[bytes]]) -> list[int]:
    """Number the groups of rows that belong together, directly or through other rows.

    Args:
        keys: Of each of N rows; rows with a key in common belong together.

    Returns:
        The group of each of N rows: 0, 1, ... in the order of their first rows.
    """
    parents = list(range(len(keys)))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = row = parents[parents[row]]
        return row

    owners: dict[bytes, int] = {}
    for row, row_keys in enumerate(keys):
        for key in row_keys:
            first, other = sorted((root(owners.setdefault(key, row)), root(row)))
            parents[other] = first
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(row), len(numbers)) for row in range(len(keys))]


def deal(groups: Sequence[GroupCounts], shares: Sequence[float], seed: int) -> list[int]:
    """Deal whole groups into bins, class by class.

    Where every group is one row of one class, each bin gets its share of each class and of all
    rows, rounded up or down. Where groups are larger or mixed, those with rare classes and then
    the largest are dealt first, each to the bin that lacks most of what it holds.

    Args:
        groups: Rows of each class, of each group.
        shares: Of each bin; they add up to 1.
        seed: Of the order among like groups.

    Returns:
        The bin of each group.

    Source:
        Sechidis, Tsoumakas and Vlahavas 2011, "On the Stratification of Multi-Label Data",
        algorithm 1: rarest label first, to the subset with the greatest need of it. Here groups
        have several rows, all their classes count, and needs are whole numbers, so that no
        rounding adds up over classes.
    """
    totals: dict[str, int] = {}
    for group in groups:
        for name, count in group.items():
            totals[name] = totals.get(name, 0) + count
    needs = _quotas(totals, shares)
    left = dict(totals)
    order = list(range(len(groups)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda index: (_rarest(groups[index], totals), -sum(groups[index].values())))
    bins = [0] * len(groups)
    for index in order:
        group = groups[index]
        for name, count in group.items():
            left[name] -= count
        lacks = [_lack(group, *bin_, left, totals) for bin_ in zip(needs, shares, strict=True)]
        bins[index] = lacks.index(max(lacks))
        for name, count in group.items():
            needs[bins[index]][name] -= count
    return bins


def _quotas(totals: GroupCounts, shares: Sequence[float]) -> list[dict[str, int]]:
    """Round the share of each class in each bin up or down so that bins have their share of all."""
    quotas: list[dict[str, int]] = [{} for _ in shares]
    owed = [0.0] * len(shares)
    # From the largest class on, as a rare one has less to give.
    for name in sorted(totals, key=lambda name: -totals[name]):
        # Rounded against the noise of floats: a tenth of 30 rows is 3, not 3.0000000000000004.
        exact = [round(share * totals[name], 9) for share in shares]
        given = [floor(wanted) for wanted in exact]
        owed = [debt + wanted - got for debt, wanted, got in zip(owed, exact, given, strict=True)]
        for _ in range(totals[name] - sum(given)):
            bin_ = max(
                (bin_ for bin_, wanted in enumerate(exact) if given[bin_] < wanted),
                key=lambda bin_: round(owed[bin_], 9),
            )
            given[bin_] += 1
            owed[bin_] -= 1
        for bin_, got in enumerate(given):
            quotas[bin_][name] = got
    return quotas


def _rarest(group: GroupCounts, totals: GroupCounts) -> int:
    return min(totals[name] for name in group)


def _lack(
    group: GroupCounts, need: GroupCounts, share: float, left: GroupCounts, totals: GroupCounts
) -> float:
    """How much a bin lacks of what a group holds, beyond its share of what is left after it.

    Giving a group to the bin where this is largest lowers the sum of squared lacks most, each
    relative to its class: (lack - count)² = lack² - 2 * count * lack + count², and count² is the
    same for all bins.
    """
    return sum(
        count * (need[name] - share * left[name]) / totals[name] ** 2
        for name, count in group.items()
    )
