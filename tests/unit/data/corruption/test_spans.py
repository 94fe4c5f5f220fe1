import math
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_kit.data.corpus.rows import Corrupted, Row, Vocabulary
from sft_kit.data.corruption.draws import row_seed
from sft_kit.data.corruption.spans import (
    apply_sentinels,
    fit_lengths,
    hide_spans,
    place_spans,
    random_parts,
    replace_spans,
)

SENTINELS = tuple(range(999, 899, -1))
END = 1


def vocabulary_with(num_sentinels: int = 100) -> Vocabulary:
    return Vocabulary(1000, 0, -1, -1, END, SENTINELS[:num_sentinels], np.arange(2, 900))


def row_of(is_special: list[bool], ids: list[int] | None = None) -> Row:
    special = np.array(is_special)
    length = special.size
    tokens = np.array(ids) if ids else 2 + np.arange(length) % 898
    tokens[special] = END
    return Row(tokens, special, np.arange(length), np.zeros(length, int), np.ones(length, int))


def long_row(num_tokens: int) -> Row:
    return row_of([False] * num_tokens + [True])


@st.composite
def rows(draw: st.DrawFn) -> Row:
    special = draw(st.lists(st.sampled_from([False] * 8 + [True]), max_size=60))
    ids = [draw(st.integers(2, 899)) for _ in special]
    return row_of([*special, True], [*ids, END])


def original_of(corrupted: Corrupted) -> list[int]:
    """Put what the labels say into the places of the sentinels."""
    spans: dict[int, list[int]] = {}
    for token in corrupted["labels"][:-1].tolist():
        if token in SENTINELS:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    text: list[int] = []
    for token in corrupted["input_ids"].tolist():
        text += spans[token] if token in SENTINELS else [token]
    return text


def lengths_of(corrupted: Corrupted) -> list[int]:
    places = np.flatnonzero(np.isin(corrupted["labels"], SENTINELS))
    return (np.diff(places, append=corrupted["labels"].size - 1) - 1).tolist()


# --- what is hidden, and how it is written -------------------------------------------------------


def test_the_example_of_the_paper_is_hidden_as_in_its_figure_2() -> None:
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    ids = np.arange(10, 10 + len(words))
    corrupted = apply_sentinels(ids, np.array([2, 8]), np.array([2, 1]), vocabulary_with())
    names = dict(zip(ids.tolist(), words, strict=True)) | {999: "<X>", 998: "<Y>", END: "</s>"}
    shown = {name: " ".join(names[token] for token in corrupted[name]) for name in corrupted}
    assert shown == {
        "input_ids": "Thank you <X> me to your party <Y> week .",
        "labels": "<X> for inviting <Y> last </s>",
    }


@given(rows(), st.integers(0, 2**64 - 1), st.floats(0.05, 0.5), st.floats(1, 6))
def test_the_original_is_recoverable_and_special_tokens_stay(
    row: Row, seed: int, fraction: float, mean: float
) -> None:
    corrupted = hide_spans(
        row, seed, vocabulary=vocabulary_with(), mask_fraction=fraction, mean_span_length=mean
    )
    assert original_of(corrupted) == row.input_ids.tolist()
    assert corrupted["labels"][-1] == END
    assert END not in corrupted["labels"][:-1]
    assert corrupted["input_ids"][-1] == END
    assert np.count_nonzero(corrupted["input_ids"] == END) == np.count_nonzero(row.is_special)


@given(rows(), st.integers(0, 2**64 - 1))
def test_sentinels_come_in_order_and_never_side_by_side(row: Row, seed: int) -> None:
    corrupted = hide_spans(row, seed, vocabulary=vocabulary_with(), mask_fraction=0.5)
    is_sentinel = np.isin(corrupted["input_ids"], SENTINELS)
    used = corrupted["input_ids"][is_sentinel].tolist()
    assert used == list(SENTINELS[: len(used)])
    assert [token for token in corrupted["labels"].tolist() if token in SENTINELS] == used
    assert not (is_sentinel[1:] & is_sentinel[:-1]).any()
    assert all(length >= 1 for length in lengths_of(corrupted))


def test_a_row_with_too_few_sentinels_hides_as_much_in_fewer_spans() -> None:
    corrupted = hide_spans(long_row(400), 5, vocabulary=vocabulary_with(4))
    assert len(lengths_of(corrupted)) == 4
    assert sum(lengths_of(corrupted)) == 60


def test_without_sentinels_nothing_is_hidden() -> None:
    row = long_row(100)
    corrupted = hide_spans(row, 5, vocabulary=vocabulary_with(0))
    assert corrupted["input_ids"].tolist() == row.input_ids.tolist()
    assert corrupted["labels"].tolist() == [END]


@given(st.integers(0, 2**64 - 1), st.sets(st.sampled_from(SENTINELS[:6])))
def test_a_sentinel_that_the_text_brings_along_stands_for_no_span(
    seed: int, brought: set[int]
) -> None:
    row = row_of([False] * 60)
    places = np.random.default_rng(seed).choice(60, len(brought), replace=False)
    row.input_ids[places], row.is_special[places] = sorted(brought), True
    corrupted = hide_spans(row, seed, vocabulary=vocabulary_with(12), mask_fraction=0.4)
    used = [token for token in corrupted["labels"].tolist() if token in SENTINELS]
    free = [token for token in SENTINELS[:12] if token not in brought]
    assert used == free[: len(used)]
    assert used
    sentinels = corrupted["input_ids"][np.isin(corrupted["input_ids"], SENTINELS)].tolist()
    assert sorted(sentinels) == sorted([*used, *brought])


def test_a_seed_decides_everything() -> None:
    row, vocabulary = long_row(200), vocabulary_with()
    first, again = (hide_spans(row, 7, vocabulary=vocabulary) for _ in range(2))
    other = hide_spans(row, 8, vocabulary=vocabulary)
    assert first["input_ids"].tolist() == again["input_ids"].tolist()
    assert first["input_ids"].tolist() != other["input_ids"].tolist()


# --- how often -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def million() -> tuple[int, list[Corrupted]]:
    """Rows of 511 ordinary tokens, 1,000,000 in all: 76.65 hidden tokens each at 15 %."""
    row, vocabulary, num_rows = long_row(511), vocabulary_with(), 1957
    seeds = [row_seed(3, 0, number) for number in range(num_rows)]
    return num_rows, [hide_spans(row, seed, vocabulary=vocabulary) for seed in seeds]


def test_of_a_million_tokens_15_percent_are_hidden(million: tuple[int, list[Corrupted]]) -> None:
    num_rows, results = million
    hidden = sum(sum(lengths_of(result)) for result in results)
    # Each row hides 76 or 77 tokens.
    assert abs(hidden - num_rows * 76.65) < 3 * math.sqrt(num_rows * 0.65 * 0.35)


def test_there_is_one_span_for_three_hidden_tokens(million: tuple[int, list[Corrupted]]) -> None:
    num_rows, results = million
    spans = sum(len(lengths_of(result)) for result in results)
    # 76 / 3 and 77 / 3 are rounded with variance 2 / 9; 76 or 77 has variance .65 * .35.
    variance = 2 / 9 + 0.65 * 0.35 / 9
    assert abs(spans - num_rows * 76.65 / 3) < 3 * math.sqrt(num_rows * variance)


def test_span_lengths_are_those_of_random_compositions(
    million: tuple[int, list[Corrupted]],
) -> None:
    _, results = million
    counts: Counter[int] = Counter()
    expected = np.zeros(12)
    for result in results:
        lengths = lengths_of(result)
        counts.update(lengths)
        total, parts = sum(lengths), len(lengths)
        for length in range(1, 12):
            ways = math.comb(total - length - 1, parts - 2) / math.comb(total - 1, parts - 1)
            expected[length] += parts * ways
    for length in range(1, 12):
        assert abs(counts[length] - expected[length]) < 3 * math.sqrt(expected[length])


def brute_force(num_tokens: int, lengths: tuple[int, ...], stops: set[int]) -> set[tuple[int, ...]]:
    """All first tokens of spans with a token between each two and no stop inside one."""
    found = set()
    for starts in combinations(range(num_tokens + 1), len(lengths)):
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        apart = all(end < start for end, start in zip(ends, starts[1:], strict=False))
        inside = any(
            start < stop < end for start, end in zip(starts, ends, strict=True) for stop in stops
        )
        if apart and not inside and ends[-1] <= num_tokens:
            found.add(starts)
    return found


@pytest.mark.parametrize("lengths", [(2, 1), (1, 3), (0, 2, 0), (2,)])
@pytest.mark.parametrize("stops", [set(), {4}, {1, 9}])
def test_all_places_of_separate_spans_are_equally_likely(
    lengths: tuple[int, ...], stops: set[int]
) -> None:
    num_tokens, num_draws = 10, 4000
    special = [stop + number for number, stop in enumerate(sorted(stops))]
    is_special = np.zeros(num_tokens + len(stops), bool)
    is_special[special] = True
    ordinary = [*np.flatnonzero(~is_special).tolist(), is_special.size]
    generator = np.random.default_rng(11)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(num_draws):
        starts, placed = place_spans(np.array(lengths), is_special, generator)
        assert placed.tolist() == list(lengths)
        counts[tuple(ordinary.index(start) for start in starts)] += 1
    possible = brute_force(num_tokens, lengths, stops)
    assert set(counts) == possible
    # Chi-square: its mean are the degrees of freedom, its variance is twice that.
    freedom, expected = len(possible) - 1, num_draws / len(possible)
    distance = sum((count - expected) ** 2 / expected for count in counts.values())
    assert distance < freedom + 3 * math.sqrt(2 * freedom)


def test_parts_of_a_number_are_all_compositions_alike() -> None:
    generator = np.random.default_rng(2)
    counts = Counter(tuple(random_parts(6, 3, generator).tolist()) for _ in range(6000))
    possible = {(a, b, 6 - a - b) for a in range(1, 5) for b in range(1, 6 - a)}
    assert set(counts) == possible
    sigma = math.sqrt(6000 * 0.1 * 0.9)
    assert all(abs(count - 600) < 3.5 * sigma for count in counts.values())


# --- narrow places -------------------------------------------------------------------------------


def test_a_span_that_fits_nowhere_is_cut_to_the_longest_place() -> None:
    is_special = np.array([True, False, True, False, False, True, False, True])
    starts, lengths = place_spans(np.array([3]), is_special, np.random.default_rng(0))
    assert starts.tolist() == [3]
    assert lengths.tolist() == [2]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=8),
    st.lists(st.integers(1, 5), min_size=1, max_size=9),
    st.integers(0, 2**32),
)
def test_spans_among_close_special_tokens_are_apart_and_hold_none(
    drawn: list[int], documents: list[int], seed: int
) -> None:
    is_special = np.array([flag for length in documents for flag in [True, *[False] * length]])
    fitting = fit_lengths(np.array(drawn), sum(documents))
    starts, lengths = place_spans(fitting, is_special, np.random.default_rng(seed))
    assert starts.size == lengths.size <= fitting.size
    taken = [
        (start, start + length)
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]
    assert all(end < start for (_, end), (start, _) in pairwise(taken))
    assert not any(is_special[start:end].any() for start, end in taken)
    assert all(0 < start <= is_special.size >= end for start, end in taken)


@given(st.lists(st.integers(0, 6), max_size=8), st.integers(1, 20))
def test_fitted_lengths_leave_a_token_between_spans(drawn: list[int], num_tokens: int) -> None:
    fitted = fit_lengths(np.array(drawn, int), num_tokens).tolist()
    needed = sum(fitted) + max(len(fitted) - 1, 0)
    assert needed <= num_tokens
    if sum(drawn) + len(drawn) - 1 <= num_tokens:
        assert fitted == drawn
    else:
        assert fitted[:-1] == drawn[: len(fitted) - 1]
        assert needed >= num_tokens - 1
        assert all(length >= min(drawn) or length >= 1 for length in fitted)


def test_an_empty_span_puts_a_token_in_front_of_its_start() -> None:
    text, places = replace_spans(np.array([5, 6, 7]), np.array([0, 3]), np.array([0, 0]), 9)
    assert text.tolist() == [9, 5, 6, 7, 9]
    assert places.tolist() == [0, 4]
