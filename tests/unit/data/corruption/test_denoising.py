import math
from collections import Counter
from itertools import chain, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_kit.data.corpus.rows import Corrupted, Row, Vocabulary
from sft_kit.data.corruption.denoising import denoise, shuffle_sentences
from sft_kit.data.corruption.draws import row_seed
from sft_kit.data.corruption.spans import replace_spans

PAD, START, END, MASK = 0, 1, 2, 3
VOCABULARY = Vocabulary(10_000, PAD, MASK, START, END, (), np.arange(10, 10_000))
MEAN = 3.0


def row_of(is_special: list[bool], sentences: list[int] | None = None) -> Row:
    """Ids count up from 10, so that gaps in them show what is missing; special ones too."""
    length = len(is_special)
    numbers = np.array(sentences) if sentences else np.zeros(length, int)
    ids = np.arange(10, 10 + length)
    return Row(ids, np.array(is_special), np.arange(length), numbers, np.ones(length, int))


def long_row(num_tokens: int) -> Row:
    return row_of([True, *[False] * num_tokens, True])


@st.composite
def rows(draw: st.DrawFn) -> Row:
    special = draw(st.lists(st.sampled_from([False] * 8 + [True]), max_size=50))
    steps = [draw(st.sampled_from([0, 0, 0, 1])) for _ in special]
    return row_of([True, *special, True], [0, *np.cumsum(steps).tolist(), 99])


def blanks_of(corrupted: Corrupted) -> list[int]:
    """Tokens that are missing at each mask, by the ids on its two sides."""
    ids = corrupted["input_ids"]
    places = np.flatnonzero(ids == MASK)
    return (ids[places + 1] - ids[places - 1] - 1).tolist()


# --- the corruptions, one by one -----------------------------------------------------------------


def test_infilling_does_what_figure_2_of_the_paper_shows() -> None:
    letters = "ABC.DE."
    ids = np.array([ord(letter) for letter in letters])
    text, _ = replace_spans(ids, np.array([1, 5]), np.array([2, 0]), ord("_"))
    assert "".join(map(chr, text)) == "A_.D_E."


def test_sentences_are_shuffled_whole_and_all_orders_are_equally_likely() -> None:
    row = row_of([True, *[False] * 6, True], [0, 0, 0, 1, 2, 2, 2, 2])
    parts = [[11, 12], [13], [14, 15, 16]]
    expected = {(10, *chain(*order), 17) for order in permutations(parts)}
    num_draws = 6000
    generator = np.random.default_rng(4)
    counts = Counter(tuple(shuffle_sentences(row, generator).tolist()) for _ in range(num_draws))
    assert set(counts) == expected
    sigma = math.sqrt(num_draws * 1 / 6 * 5 / 6)
    assert all(abs(count - num_draws / 6) < 3 * sigma for count in counts.values())


@given(rows(), st.integers(0, 2**32))
def test_sentences_only_trade_places_between_two_special_tokens(row: Row, seed: int) -> None:
    shuffled = shuffle_sentences(row, np.random.default_rng(seed))
    assert (shuffled == row.input_ids)[row.is_special].all()
    edges = np.flatnonzero(row.is_special)
    for start, end in pairwise(edges):
        before, after = row.input_ids[start + 1 : end], shuffled[start + 1 : end]
        assert sorted(after) == sorted(before)
        # Within a sentence, each token still follows the one it followed.
        same = row.sentences[start + 1 : end - 1] == row.sentences[start + 2 : end]
        followed = set(zip(after[:-1].tolist(), after[1:].tolist(), strict=True))
        pairs = zip(before[:-1][same].tolist(), before[1:][same].tolist(), strict=True)
        assert set(pairs) <= followed


@given(rows(), st.integers(0, 2**64 - 1), st.booleans(), st.floats(0, 0.5), st.floats(0, 0.5))
def test_labels_are_the_original_and_special_tokens_stay(
    row: Row, seed: int, permute: bool, infill: float, delete: float
) -> None:
    corrupted = denoise(
        row, seed, vocabulary=VOCABULARY, infill_fraction=infill, permute_sentences=permute,
        delete_fraction=delete,
    )  # fmt: skip
    assert corrupted["labels"].tolist() == row.input_ids.tolist()
    ids = corrupted["input_ids"]
    special = row.input_ids[row.is_special]
    assert ids[np.isin(ids, special)].tolist() == special.tolist()
    assert (ids[0], ids[-1]) == (special[0], special[-1])
    kept = ids[ids != MASK]
    assert len(set(kept.tolist())) == kept.size
    assert set(kept.tolist()) <= set(row.input_ids.tolist())
    if not permute:
        assert (np.diff(kept) > 0).all()


@given(rows(), st.integers(0, 2**64 - 1))
def test_tokens_are_missing_only_where_a_mask_stands(row: Row, seed: int) -> None:
    corrupted = denoise(row, seed, vocabulary=VOCABULARY, permute_sentences=False)
    ids = corrupted["input_ids"]
    assert not ((ids[1:] == MASK) & (ids[:-1] == MASK)).any()
    assert (np.diff(ids)[(ids[1:] != MASK) & (ids[:-1] != MASK)] == 1).all()


def test_without_any_corruption_the_row_is_as_it_was() -> None:
    row = long_row(30)
    corrupted = denoise(row, 1, vocabulary=VOCABULARY, infill_fraction=0, permute_sentences=False)
    assert corrupted["input_ids"].tolist() == row.input_ids.tolist()


def test_half_in_spans_and_half_left_out_leaves_masks_only() -> None:
    corrupted = denoise(
        long_row(300), 1, vocabulary=VOCABULARY, infill_fraction=0.5, delete_fraction=0.5
    )
    assert set(corrupted["input_ids"][1:-1].tolist()) == {MASK}


# --- how often -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def million() -> tuple[int, list[Corrupted]]:
    """Rows of 511 ordinary tokens, 1,000,000 in all: 51.1 spans each at 30 %."""
    row, num_rows = long_row(511), 1957
    seeds = [row_seed(3, 0, number) for number in range(num_rows)]
    return num_rows, [
        denoise(row, seed, vocabulary=VOCABULARY, permute_sentences=False) for seed in seeds
    ]


def test_of_a_million_tokens_30_percent_are_in_spans(million: tuple[int, list[Corrupted]]) -> None:
    num_rows, results = million
    hidden = sum(sum(blanks_of(result)) for result in results)
    # 51 or 52 spans, each with the mean and the variance 3.
    variance = 51.1 * MEAN + 0.1 * 0.9 * MEAN**2
    assert abs(hidden - num_rows * 511 * 0.3) < 3 * math.sqrt(num_rows * variance)


def test_span_lengths_are_poisson_from_0_on(million: tuple[int, list[Corrupted]]) -> None:
    _, results = million
    counts = Counter(length for result in results for length in blanks_of(result))
    total = counts.total()
    assert abs(total - len(results) * 51.1) < 3 * math.sqrt(len(results) * 0.1 * 0.9)
    for length in range(11):
        share = math.exp(-MEAN) * MEAN**length / math.factorial(length)
        sigma = math.sqrt(total * share * (1 - share))
        assert abs(counts[length] - total * share) < 3 * sigma


def test_a_tenth_of_a_million_tokens_is_left_out_beside_the_spans() -> None:
    row, num_rows = long_row(511), 1957
    left_out = 0
    for number in range(num_rows):
        seed = row_seed(9, 1, number)
        whole = denoise(row, seed, vocabulary=VOCABULARY)
        gaps = denoise(row, seed, vocabulary=VOCABULARY, delete_fraction=0.1)
        left_out += whole["input_ids"].size - gaps["input_ids"].size
    # Each of about 0.7 * 511 tokens with 1 / 7, and the number of those varies with the spans.
    rate = 0.1 / 0.7
    variance = 0.7 * 511 * rate * (1 - rate) + rate**2 * (51.1 * MEAN + 0.09 * MEAN**2)
    assert abs(left_out - num_rows * 511 * 0.1) < 3 * math.sqrt(num_rows * variance)


def test_close_special_tokens_do_not_lower_the_share() -> None:
    row, num_rows = row_of([place % 12 == 0 for place in range(121)]), 1200
    hidden = 0
    for number in range(num_rows):
        seed = row_seed(6, 0, number)
        result = denoise(row, seed, vocabulary=VOCABULARY, permute_sentences=False)
        hidden += sum(blanks_of(result))
    assert abs(hidden - num_rows * 110 * 0.3) < 3 * math.sqrt(num_rows * 11 * MEAN)


def test_masks_are_spread_evenly_over_the_row(million: tuple[int, list[Corrupted]]) -> None:
    num_rows, results = million
    hidden = np.zeros(511)
    for result in results:
        seen = result["input_ids"][result["input_ids"] != MASK]
        missing = np.ones(513, bool)
        missing[seen - 10] = False
        hidden += missing[1:-1]
    # In 7 stretches of 73 tokens; neighbours are hidden together, so spans count, not tokens.
    stretches = hidden.reshape(7, 73).sum(1)
    expected = num_rows * 73 * 0.3
    sigma = math.sqrt(num_rows * 73 / 511 * 51.1 * (MEAN + MEAN**2))
    assert (np.abs(stretches - expected) < 3 * sigma).all()
