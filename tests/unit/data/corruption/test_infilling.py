import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_kit.data.corpus.rows import Corrupted, Row, Vocabulary
from sft_kit.data.corruption.draws import row_seed
from sft_kit.data.corruption.infilling import apply_blanks, infill, infilled_length, longest_row

START, END, MASK = 1, 2, 3
VOCABULARY = Vocabulary(1000, 0, MASK, START, END, (), np.arange(10, 1000))
MEAN = 3.0
NO_ZERO = 1 - math.exp(-MEAN)


def row_of(is_special: list[bool], ids: list[int] | None = None) -> Row:
    special = np.array(is_special)
    length = special.size
    tokens = np.array(ids) if ids else 10 + np.arange(length) % 990
    tokens[special] = END
    return Row(tokens, special, np.arange(length), np.zeros(length, int), np.ones(length, int))


def long_row(num_tokens: int) -> Row:
    return row_of([True, *[False] * num_tokens, True])


@st.composite
def rows(draw: st.DrawFn) -> Row:
    special = draw(st.lists(st.sampled_from([False] * 8 + [True]), max_size=60))
    ids = [draw(st.integers(10, 999)) for _ in special]
    return row_of([True, *special, True], [END, *ids, END])


def spans_of(corrupted: Corrupted) -> list[tuple[int, list[int]]]:
    """Of each span, in the order written: the place of its mask token, and its tokens."""
    spans: list[tuple[int, list[int]]] = []
    for place in range(corrupted["prefix_length"], corrupted["input_ids"].size):
        if corrupted["token_type_ids"][place] == 1:
            spans.append((int(corrupted["position_ids"][place]), []))
        spans[-1][1].append(int(corrupted["labels"][place]))
    assert all(tokens[-1] == END and END not in tokens[:-1] for _, tokens in spans)
    return [(place, tokens[:-1]) for place, tokens in spans]


def original_of(corrupted: Corrupted) -> list[int]:
    text = [[token] for token in corrupted["input_ids"][: corrupted["prefix_length"]].tolist()]
    for place, tokens in spans_of(corrupted):
        assert text[place] == [MASK]
        text[place] = tokens
    return [token for part in text for token in part]


# --- what is hidden, and how it is written -------------------------------------------------------


def test_the_example_of_the_paper_is_laid_out_as_in_its_figure_2() -> None:
    x1, x2, x3, x4, x5, x6 = ids = list(range(11, 17))
    corrupted = apply_blanks(
        np.array(ids), np.array([2, 4]), np.array([1, 2]), np.array([1, 0]), VOCABULARY
    )
    assert corrupted["input_ids"].tolist() == [x1, x2, MASK, x4, MASK, START, x5, x6, START, x3]
    assert corrupted["labels"].tolist() == [-100] * 5 + [x5, x6, END, x3, END]
    assert (corrupted["position_ids"] + 1).tolist() == [1, 2, 3, 4, 5, 5, 5, 5, 3, 3]
    assert corrupted["token_type_ids"].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 1, 2]
    assert corrupted["prefix_length"] == 5


@given(rows(), st.integers(0, 2**64 - 1), st.floats(0, 0.5), st.floats(1, 6))
def test_the_original_is_recoverable_and_special_tokens_stay(
    row: Row, seed: int, fraction: float, mean: float
) -> None:
    corrupted = infill(
        row, seed, vocabulary=VOCABULARY, mask_fraction=fraction, mean_span_length=mean
    )
    assert original_of(corrupted) == row.input_ids.tolist()
    length = corrupted["prefix_length"]
    text = corrupted["input_ids"][:length]
    assert np.count_nonzero(text == END) == np.count_nonzero(row.is_special)
    assert corrupted["position_ids"][:length].tolist() == list(range(length))
    assert not ((text[1:] == MASK) & (text[:-1] == MASK)).any()


@given(rows(), st.integers(0, 2**64 - 1))
def test_a_span_is_read_one_token_behind_what_is_learnt(row: Row, seed: int) -> None:
    corrupted = infill(row, seed, vocabulary=VOCABULARY, mask_fraction=0.4)
    length = corrupted["prefix_length"]
    assert (corrupted["labels"][:length] == -100).all()
    read, learnt = corrupted["input_ids"][length:], corrupted["labels"][length:]
    begins = corrupted["token_type_ids"][length:] == 1
    assert (read[begins] == START).all()
    assert (read[~begins] == learnt[:-1][~begins[1:]]).all() if read.size else begins.size == 0


@given(rows(), st.integers(0, 2**64 - 1), st.floats(0, 0.5), st.floats(1, 6))
def test_no_row_grows_beyond_its_bound(row: Row, seed: int, fraction: float, mean: float) -> None:
    how = {"mask_fraction": fraction, "mean_span_length": mean}
    corrupted = infill(row, seed, vocabulary=VOCABULARY, **how)
    assert corrupted["input_ids"].size == row.input_ids.size + 2 * len(spans_of(corrupted))
    assert corrupted["input_ids"].size <= infilled_length(row.input_ids.size, **how)


@given(st.integers(0, 600), st.floats(0, 0.5), st.floats(1, 6))
def test_the_longest_row_is_the_longest_that_fits(
    max_length: int, fraction: float, mean: float
) -> None:
    how = {"mask_fraction": fraction, "mean_span_length": mean}
    longest = longest_row(max_length, **how)
    assert infilled_length(longest, **how) <= max_length < infilled_length(longest + 1, **how)


def test_spans_are_cut_to_what_the_second_positions_hold() -> None:
    long, short = (
        infill(long_row(400), 3, vocabulary=VOCABULARY, mask_fraction=0.5, max_span_length=most)
        for most in (None, 2)
    )
    assert long["token_type_ids"].max() > 4
    assert short["token_type_ids"].max() == 3
    assert original_of(short) == long_row(400).input_ids.tolist()


@pytest.mark.parametrize("mean", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("most", [1, 14])
def test_rows_with_short_spans_keep_to_their_bound(mean: float, most: int) -> None:
    how = {"mask_fraction": 0.15, "mean_span_length": mean, "max_span_length": most}
    size = longest_row(256, **how)
    assert infilled_length(size, **how) <= 256 < infilled_length(size + 1, **how)
    row = row_of([False] * size)
    sizes = [infill(row, seed, vocabulary=VOCABULARY, **how)["input_ids"].size for seed in range(9)]
    assert max(sizes) <= 256


# --- how often -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def million() -> tuple[int, list[list[int]]]:
    """Span lengths in rows of 511 ordinary tokens, 1,000,000 in all."""
    row, num_rows = long_row(511), 1957
    results = [
        infill(row, row_seed(3, 0, number), vocabulary=VOCABULARY) for number in range(num_rows)
    ]
    return num_rows, [[len(tokens) for _, tokens in spans_of(result)] for result in results]


def test_of_a_million_tokens_15_percent_are_hidden(million: tuple[int, list[list[int]]]) -> None:
    num_rows, lengths = million
    hidden = sum(map(sum, lengths))
    mean = MEAN / NO_ZERO
    per_span = (MEAN + MEAN**2) / NO_ZERO - mean**2
    number = 511 * 0.15 / mean
    variance = number * per_span + (number % 1) * (1 - number % 1) * mean**2
    assert abs(hidden - num_rows * 511 * 0.15) < 3 * math.sqrt(num_rows * variance)


@pytest.mark.parametrize("mean", [3.0, 10.0, 30.0])
@pytest.mark.parametrize("most", [2, 14])
def test_the_share_stays_where_spans_are_cut(mean: float, most: int) -> None:
    row, num_rows = long_row(500), 400
    hidden = []
    for number in range(num_rows):
        result = infill(
            row,
            row_seed(3, 0, number),
            vocabulary=VOCABULARY,
            mean_span_length=mean,
            max_span_length=most,
        )
        hidden.append(sum(len(tokens) for _, tokens in spans_of(result)))
    shares = np.array(hidden) / 500
    assert abs(shares.mean() - 0.15) < 3 * shares.std() / math.sqrt(num_rows)
    assert shares.std() < 0.03


def test_span_lengths_are_poisson_without_0(million: tuple[int, list[list[int]]]) -> None:
    _, lengths = million
    counts = Counter(length for row in lengths for length in row)
    total = counts.total()
    assert counts[0] == 0
    for length in range(1, 11):
        share = math.exp(-MEAN) * MEAN**length / math.factorial(length) / NO_ZERO
        sigma = math.sqrt(total * share * (1 - share))
        assert abs(counts[length] - total * share) < 3 * sigma


def test_spans_are_written_in_every_order_alike() -> None:
    row = long_row(63)
    orders: Counter[tuple[int, ...]] = Counter()
    for number in range(4000):
        result = infill(row, row_seed(8, 0, number), vocabulary=VOCABULARY)
        places = [place for place, _ in spans_of(result)]
        if len(places) == 3:
            orders[tuple(sorted(places).index(place) for place in places)] += 1
    assert set(orders) == set(permutations(range(3)))
    total = orders.total()
    assert total > 3000
    sigma = math.sqrt(total * 1 / 6 * 5 / 6)
    assert all(abs(count - total / 6) < 3 * sigma for count in orders.values())
