"""Figures about labels: what a model would learn from the examples, and whether it learns to stop.

Pure functions over `Example`s; `token_text` decodes examples, `label_view` and `label_page` show.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from sft_kit.data.examples import flat_examples
from sft_kit.data.rows import IGNORED, Example, Where
from sft_kit.errors import DataError, Problem

_MAX_NAMED_ROWS = 10
_MAX_NAMED_FILES = 3


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What the labels of one split teach.

    Attributes:
        stop_token_ids: Ids of the tokens that end a completion.
        lengths: Tokens of each example, in the order of the examples.
        num_supervised: Tokens whose label is not ignored.
        cut_rows: Rows that were longer than `max_length`.
        unlabelled_rows: Rows in which nothing is learnt.
        no_stop_rows: Rows whose last supervised token isn't a stop token, unlabelled ones too.
    """

    stop_token_ids: tuple[int, ...]
    lengths: tuple[int, ...]
    num_supervised: int
    cut_rows: tuple[Where, ...]
    unlabelled_rows: tuple[Where, ...]
    no_stop_rows: tuple[Where, ...]

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples together."""
        return sum(self.lengths)

    @property
    def supervised_fraction(self) -> float:
        """Share of the tokens that are learnt, in [0, 1]; 0 without tokens."""
        return self.num_supervised / self.num_tokens if self.num_tokens else 0.0

    @property
    def num_cut(self) -> int:
        """Number of examples that were longer than `max_length`."""
        return len(self.cut_rows)

    @property
    def num_unlabelled(self) -> int:
        """Number of examples in which nothing is learnt."""
        return len(self.unlabelled_rows)

    @property
    def unlabelled_fraction(self) -> float:
        """Share of the examples in which nothing is learnt, in [0, 1]; 0 without examples."""
        return self.num_unlabelled / self.num_examples if self.num_examples else 0.0

    @property
    def num_without_stop(self) -> int:
        """Number of examples whose last supervised token is not the stop token."""
        return len(self.no_stop_rows)

    @property
    def num_with_stop(self) -> int:
        """Number of examples whose last supervised token is the stop token."""
        return self.num_examples - self.num_without_stop

    @property
    def min_length(self) -> int:
        """Tokens of the shortest example; 0 without examples."""
        return min(self.lengths, default=0)

    @property
    def median_length(self) -> int:
        """The length that half of the examples don't exceed; 0 without examples."""
        return nearest_rank(self.lengths, 0.5)

    @property
    def p90_length(self) -> int:
        """The length that nine tenths of the examples don't exceed; 0 without examples."""
        return nearest_rank(self.lengths, 0.9)

    @property
    def longest_length(self) -> int:
        """Tokens of the longest example; 0 without examples. Equals `max_length` if one was cut."""
        return max(self.lengths, default=0)


def inspect_labels(examples: Sequence[Example], stop_token_ids: tuple[int, ...]) -> LabelReport:
    """Count what the labels of a split teach; any of the stop tokens may end a completion."""
    flat = flat_examples(examples)
    num_supervised = flat.fact("num_supervised")

    def places(chosen: NDArray[np.bool_]) -> tuple[Where, ...]:
        return tuple(flat.place(int(index)) for index in np.flatnonzero(chosen))

    return LabelReport(
        stop_token_ids=stop_token_ids,
        lengths=tuple(flat.lengths.tolist()),
        num_supervised=int(num_supervised.sum()),
        cut_rows=places(flat.fact("was_cut") > 0),
        unlabelled_rows=places(num_supervised == 0),
        no_stop_rows=places(~np.isin(flat.fact("last_label"), stop_token_ids)),
    )


def check_labels(
    report: LabelReport,
    *,
    template_name: str,
    last_tokens: Sequence[str],
    max_dropped_fraction: float,
) -> list[str]:
    """Refuse labels that can't train, and say what looks unintended in labels that can.

    Args:
        report: Figures of the training split.
        template_name: Chat template that rendered the examples.
        last_tokens: Tokens of one example, as text; the last five are shown when none learns to
            stop.
        max_dropped_fraction: Largest accepted share of rows without a supervised token, in [0, 1].

    Returns:
        Warnings, each a sentence.

    Raises:
        DataError: There is no example, nothing is supervised, no example ends in a supervised stop
            token, or too many rows have no supervised token.
    """
    if not report.num_examples:
        raise DataError(
            "There is nothing to train on: no row became an example (see data.path, data.num_rows)."
        )
    problems = _label_problems(report, template_name, last_tokens, max_dropped_fraction)
    if problems:
        raise DataError("These labels can't train a model:", problems)
    return _label_warnings(report)


def _label_problems(
    report: LabelReport,
    template_name: str,
    last_tokens: Sequence[str],
    max_dropped_fraction: float,
) -> list[Problem]:
    files = _files(report.no_stop_rows)
    if not report.num_supervised:
        message = f"no token of {report.num_examples:,} examples is supervised{_after_cut(report)}"
        todo = (
            "raise data.max_length"
            if report.num_cut
            else "the rows need a non-empty completion; see data.format and data.loss_on"
        )
        return [Problem(files, "", message, todo)]
    problems = []
    if not report.num_with_stop:
        problems.append(_no_stop_problem(report, files, template_name, last_tokens))
    if report.unlabelled_fraction > max_dropped_fraction:
        message = (
            f"{_unlabelled_sentence(report)}; accepted is a share of {max_dropped_fraction:g} "
            "at most (data.max_dropped_fraction)"
        )
        todo = (
            f"{'raise data.max_length, ' if report.num_cut else ''}repair or remove these rows, "
            "or accept a larger share"
        )
        problems.append(Problem(_files(report.unlabelled_rows), "", message, todo))
    return problems


def _no_stop_problem(
    report: LabelReport, files: str, template_name: str, last_tokens: Sequence[str]
) -> Problem:
    shown = " ".join(repr(token) for token in last_tokens[-5:])
    ids = " or ".join(str(token_id) for token_id in report.stop_token_ids)
    message = (
        f"none of {report.num_examples:,} examples ends in a supervised stop token "
        f"(id {ids}), so the model would never learn to stop; "
        f"template {template_name!r}, one example ends in {shown}"
    )
    if report.num_cut == report.num_examples:
        return Problem(
            files, "", f"{message}; all were cut{_after_cut(report)}", "raise data.max_length"
        )
    return Problem(
        files, "", message, "choose a data.template that ends a completion with the stop token"
    )


def _label_warnings(report: LabelReport) -> list[str]:
    warnings = []
    if report.num_cut:
        warnings.append(
            f"{report.num_cut:,} of {report.num_examples:,} rows were cut"
            f"{_after_cut(report)} {name_places(report.cut_rows)}: where the end of the completion "
            "is cut off, the model doesn't learn to stop. Raise data.max_length to keep it."
        )
    if report.num_unlabelled:
        warnings.append(f"{_unlabelled_sentence(report)}: the model learns nothing from them.")
    if report.num_without_stop:
        warnings.append(
            f"{report.num_with_stop:,} of {report.num_examples:,} examples end with a supervised "
            f"stop token; {report.num_without_stop:,} don't {name_places(report.no_stop_rows)}."
        )
    return warnings


def _unlabelled_sentence(report: LabelReport) -> str:
    return (
        f"{report.num_unlabelled:,} of {report.num_examples:,} rows have no supervised token"
        f"{_after_cut(report)} {name_places(report.unlabelled_rows)}"
    )


def _after_cut(report: LabelReport) -> str:
    """Name the limit where it bit: a cut example has exactly `max_length` tokens, none has more."""
    return f" after max_length={report.longest_length}" if report.num_cut else ""


def counted(count: int, noun: str) -> str:
    """Write a number with its noun.

    >>> counted(1, "row"), counted(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def name_places(rows: Sequence[Where]) -> str:
    """Name the first ten places, in brackets: `(lines 12, 88, ...)`, with files if several."""
    named = rows[:_MAX_NAMED_ROWS]
    more = ", ..." if len(rows) > len(named) else ""
    if len({where.file for where in rows}) == 1:
        word = "row" if all(where.row for where in rows) else "line"
        numbers = ", ".join(str(where.row or where.line) for where in named)
        return f"({word}{'s' if len(rows) > 1 else ''} {numbers}{more})"
    return f"({', '.join(str(where) for where in named)}{more})"


def _files(rows: Sequence[Where]) -> str:
    files = sorted({where.file for where in rows})
    return ", ".join(files[:_MAX_NAMED_FILES]) + (", ..." if len(files) > _MAX_NAMED_FILES else "")


def histogram(lengths: Sequence[int], num_bins: int = 10) -> list[tuple[int, int, int]]:
    """Count lengths in bins of equal width.

    Args:
        lengths: Tokens of each example.
        num_bins: Number of bins at most; fewer where there are fewer different lengths.

    Returns:
        (smallest, largest, count) of each bin, both bounds inclusive, without gaps between bins.

    >>> histogram([3, 4, 5, 9], num_bins=2)
    [(3, 6, 3), (7, 9, 1)]
    """
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    width = ceil((high - low + 1) / num_bins)
    counts = [0] * ceil((high - low + 1) / width)
    for length in lengths:
        counts[(length - low) // width] += 1
    return [
        (low + index * width, min(low + (index + 1) * width - 1, high), count)
        for index, count in enumerate(counts)
    ]


def choose_examples(
    examples: Sequence[Example], stop_token_ids: tuple[int, ...], count: int, seed: int
) -> list[int]:
    """Choose examples worth looking at: the telling ones first, then some at random.

    Args:
        examples: Examples of one split.
        stop_token_ids: Ids of the tokens that end a completion.
        count: Number of examples to choose at most.
        seed: Seed of the random ones.

    Returns:
        Different indices: the first, the longest that was not cut, one that was cut, one that
        doesn't end in a supervised stop token (not cut if there is one), then random ones.
    """
    everything = range(len(examples))
    whole = [index for index in everything if not examples[index].was_cut]
    cut = [index for index in everything if examples[index].was_cut]
    no_stop = [index for index in everything if _last_label(examples[index]) not in stop_token_ids]
    chosen = [
        *everything[:1],
        *sorted(whole, key=lambda index: -len(examples[index].input_ids))[:1],
        *cut[:1],
        *sorted(no_stop, key=lambda index: examples[index].was_cut)[:1],
    ]
    rest = sorted(set(everything) - set(chosen))
    drawn = random.Random(seed).sample(rest, min(count, len(rest)))
    return list(dict.fromkeys([*chosen, *drawn]))[:count]


def _last_label(example: Example) -> int | None:
    return next((label for label in reversed(example.labels) if label != IGNORED), None)


def nearest_rank(lengths: Sequence[int], fraction: float) -> int:
    """The smallest length that this share of them doesn't exceed; 0 without lengths."""
    if not lengths:
        return 0
    return sorted(lengths)[max(ceil(fraction * len(lengths)), 1) - 1]
