import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_kit.data.corpus.rows import Corrupted, Row, Vocabulary
from sft_kit.data.corruption.causal import causal_lm
from sft_kit.data.corruption.draws import row_seed
from sft_kit.data.corruption.prefix import (
    NUM_ADDED_TOKENS,
    apply_prefix,
    left_to_right,
    prefix_lm,
)

END, MASK = 2, 3
VOCABULARY = Vocabulary(1000, 0, MASK, 1, END, (), np.arange(10, 1000))


def row_of(is_special: list[bool], documents: list[int] | None = None) -> Row:
    special = np.array(is_special)
    length = special.size
    ids = np.where(special, END, 10 + np.arange(length) % 990)
    parts = np.array(documents) if documents else np.ones(length, int)
    return Row(ids, special, np.arange(length), np.zeros(length, int), parts)


def row_with(text: str) -> tuple[Row, list[str]]:
    """A row of the tokens between spaces; those in brackets are special."""
    tokens = text.split()
    names = ["[PAD]", "[SOS]", "[EOS]", "[M]", *sorted(set(tokens) - {"[EOS]"})]
    special = np.array([token.startswith("[") for token in tokens])
    length = len(tokens)
    zeros = np.zeros(length, int)
    ids = np.array([names.index(token) for token in tokens])
    return Row(ids, special, np.arange(length), zeros, zeros + 1), names


def shown(ids: np.ndarray, names: list[str]) -> str:
    return " ".join("-" if token == -100 else names[token] for token in ids.tolist())


# --- left to right -------------------------------------------------------------------------------


def test_left_to_right_gives_every_position_the_next_token() -> None:
    row, names = row_with("[CLS] 今 天 天 气 真 好 ， 我 们 一 起 出 去 玩 吧 [EOS]")
    learnt = left_to_right(row, 0, vocabulary=VOCABULARY)
    assert shown(learnt["input_ids"], names) == (
        "[CLS] 今 天 天 气 真 好 ， 我 们 一 起 出 去 玩 吧 [EOS]"
    )
    assert shown(learnt["labels"], names) == "今 天 天 气 真 好 ， 我 们 一 起 出 去 玩 吧 [EOS] -"
    assert learnt["prefix_length"] == 0


# --- prefixes ------------------------------------------------------------------------------------


def test_a_prefix_is_learnt_in_place_and_the_rest_one_ahead() -> None:
    row, names = row_with("[SOS] 今 天 天 气 真 好 我 们 一 起 出 去 玩 吧 [EOS2]")
    is_hidden = np.isin(np.arange(7), [3, 6])
    learnt = apply_prefix(row.input_ids, 7, is_hidden, VOCABULARY)
    assert shown(learnt["input_ids"], names) == (
        "[SOS] 今 天 [M] 气 真 [M] [EOS] 我 们 一 起 出 去 玩 吧 [EOS2]"
    )
    assert shown(learnt["labels"], names) == "- - - 天 - - 好 我 们 一 起 出 去 玩 吧 [EOS2] -"
    assert learnt["prefix_length"] == 8


def original_of(learnt: Corrupted) -> list[int]:
    end = learnt["prefix_length"] - 1
    ids, labels = learnt["input_ids"], learnt["labels"]
    assert ids[end] == END
    prefix = np.where(labels[:end] != -100, labels[:end], ids[:end])
    return [*prefix.tolist(), *labels[end:-1].tolist()]


@given(
    st.lists(st.sampled_from([False] * 6 + [True]), max_size=40),
    st.integers(0, 2**64 - 1),
    st.floats(0, 0.5),
)
def test_the_original_is_recoverable_and_special_tokens_stay(
    inner: list[bool], seed: int, fraction: float
) -> None:
    row = row_of([True, *inner, True])
    learnt = prefix_lm(row, seed, vocabulary=VOCABULARY, mask_fraction=fraction)
    end = learnt["prefix_length"] - 1
    assert original_of(learnt) == row.input_ids.tolist()
    assert (
        learnt["input_ids"].size == learnt["labels"].size == row.input_ids.size + NUM_ADDED_TOKENS
    )
    assert learnt["input_ids"][end + 1 :].tolist() == row.input_ids[end:].tolist()
    is_learnt = learnt["labels"][:end] != -100
    assert not (is_learnt & row.is_special[:end]).any()
    assert ((learnt["input_ids"][:end] == MASK) == is_learnt).all()
    if np.count_nonzero(~row.is_special) > 1:
        assert not row.is_special[:end].all()
        assert not row.is_special[end:].all()


def test_the_cut_is_uniform_and_15_percent_of_a_million_prefix_tokens_are_hidden() -> None:
    row, num_rows = row_of([True, *[False] * 200, True]), 10_200
    cuts: Counter[int] = Counter()
    hidden = seen = 0
    for number in range(num_rows):
        learnt = prefix_lm(row, row_seed(3, 0, number), vocabulary=VOCABULARY)
        end = learnt["prefix_length"] - 1
        cuts[end] += 1
        seen += end - 1
        hidden += int(np.count_nonzero(learnt["labels"][:end] != -100))
    assert seen > 1_000_000
    assert abs(hidden - 0.15 * seen) < 3 * math.sqrt(seen * 0.15 * 0.85)
    # Before each token but the first: chi-square with 198 degrees of freedom.
    assert set(cuts) == set(range(2, 201))
    expected = num_rows / 199
    distance = sum((count - expected) ** 2 / expected for count in cuts.values())
    assert abs(distance - 198) < 3 * math.sqrt(2 * 198)


def test_every_cut_comes_up() -> None:
    row = row_of([True, False, False, True, False, False, True])
    lengths = {prefix_lm(row, seed, vocabulary=VOCABULARY)["prefix_length"] for seed in range(100)}
    # Before the second, the third and the fourth ordinary token, and the end token counts too.
    assert lengths == {3, 5, 6}


# --- documents in a window -----------------------------------------------------------------------


def test_a_window_that_is_one_text_learns_all_but_its_first_token() -> None:
    row = row_of([False] * 6, [1, 1, 2, 2, 2, 3])
    learnt = causal_lm(row, 0)
    assert learnt["input_ids"].tolist() == row.input_ids.tolist()
    assert learnt["labels"].tolist() == [-100, *row.input_ids[1:].tolist()]
    assert set(learnt) == {"input_ids", "labels"}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_a_document_kept_apart_begins_anew(lengths: list[int]) -> None:
    documents = [number for number, length in enumerate(lengths, 1) for _ in range(length)]
    row = row_of([False] * len(documents), documents)
    learnt = causal_lm(row, 0, document_mask=True)
    places = [place for length in lengths for place in range(length)]
    assert learnt["position_ids"].tolist() == places
    assert learnt["documents"].tolist() == documents
    expected = [
        -100 if place == 0 else token
        for place, token in zip(places, row.input_ids.tolist(), strict=True)
    ]
    assert learnt["labels"].tolist() == expected


@pytest.mark.parametrize("document_mask", [False, True])
def test_the_tokens_of_a_window_are_never_changed(document_mask: bool) -> None:
    row = row_of([False, False, True, False], [1, 1, 1, 2])
    before = row.input_ids.tolist()
    learnt = causal_lm(row, 0, document_mask=document_mask)
    assert learnt["input_ids"].tolist() == before
    assert row.input_ids.tolist() == before
