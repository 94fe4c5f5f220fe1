"""Pairs for next-sentence prediction: what follows, what is drawn, what is cut off."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_kit.data.corpus.encoding import Stream
from sft_kit.data.corpus.pairs import IS_NEXT, IS_RANDOM, NOT_ASKED, SentencePairs, shortened
from sft_kit.data.corpus.rows import Vocabulary
from sft_kit.data.rows import Where
from sft_kit.errors import DataError

START, END = 1, 2
VOCABULARY = Vocabulary(
    size=5000, pad=0, mask=3, start=START, end=END, sentinels=(), ordinary=np.arange(10, 5000)
)
DOCUMENTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=2, max_size=5)


def stream_of(documents, words=None):
    """Documents as lists of sentence lengths; tokens 10, 11, ... in one count over all of them."""
    sizes = [size for document in documents for size in document]
    num_tokens = sum(sizes)
    sentences = np.zeros(num_tokens, bool)
    sentences[np.cumsum([0, *sizes])[: len(sizes)]] = True
    starts = np.cumsum([0, *(sum(document) for document in documents)])
    return Stream(np.arange(10, 10 + num_tokens, dtype=np.int32), starts, sentences, words)


def parts_of(row):
    """The tokens of A and of B; checks what stands around them."""
    ids = row.input_ids.tolist()
    ends = [index for index, token in enumerate(ids) if token == END]
    assert ids[0] == START
    assert ends[-1] == len(ids) - 1
    assert row.is_special.tolist() == [token in (START, END) for token in ids]
    first, second = ids[1 : ends[0]], ids[ends[0] + 1 : -1]
    types = [0] * (ends[0] + 1) + [1] * (len(ids) - ends[0] - 1)
    assert row.token_type_ids.tolist() == types
    assert (row.documents == 1).all()
    return first, second


@settings(max_examples=80, deadline=None)
@given(documents=DOCUMENTS, max_length=st.integers(8, 20), seed=st.integers(0, 2**64 - 1))
def test_the_second_part_follows_the_first_or_comes_from_another_document(
    documents, max_length, seed
):
    stream = stream_of(documents)
    document_of = np.repeat(np.arange(len(documents)), np.diff(stream.starts))
    begins = {int(place) + 10 for place in np.flatnonzero(stream.sentences)}
    pairs = SentencePairs(stream, VOCABULARY, max_length)
    for index in range(len(pairs)):
        row = pairs.row(index, seed)
        first, second = parts_of(row)
        assert len(row.input_ids) <= max_length
        for part in (first, second):
            assert part == list(range(part[0], part[0] + len(part))) if part else part == []
        owners = [{int(document_of[token - 10]) for token in part} for part in (first, second)]
        if row.next_sentence_label == NOT_ASKED:
            assert (second, len(documents[owners[0].pop()])) == ([], 1)
            continue
        assert min(len(first), len(second)) > 0
        assert all(len(owner) == 1 for owner in owners)
        assert (owners[0] == owners[1]) == (row.next_sentence_label == IS_NEXT)
        if row.next_sentence_label == IS_NEXT:
            # Only a pair that is too long loses tokens, and these may stand between its parts.
            gap = second[0] - first[-1] - 1
            assert gap >= 0
            assert any(begin in begins for begin in range(first[-1] + 1, second[0] + 1))
            if len(row.input_ids) < max_length:
                assert (gap, first[0] in begins, second[0] in begins) == (0, True, True)
        starts = [token in begins for token in second]
        numbers = [sum(token in begins for token in first[1:])] * 2
        inner = np.cumsum([False, *(token in begins for token in first[1:])])
        expected = [0, *inner, numbers[0], *(numbers[0] + 1 + np.cumsum([0, *starts[1:]]))]
        assert row.sentences.tolist() == [*expected, expected[-1]]


@settings(max_examples=60, deadline=None)
@given(documents=DOCUMENTS, max_length=st.integers(8, 20))
def test_the_runs_of_a_document_hold_all_its_sentences(documents, max_length):
    pairs = SentencePairs(stream_of(documents), VOCABULARY, max_length)
    sentences, tokens = set(), set()
    for run in pairs.runs:
        if run.is_pair:
            assert run.last - run.first >= 2
            sentences |= set(range(run.first, run.last))
            size = int(pairs.edges[run.last - 1] - pairs.edges[run.first])
            assert size < max_length - 3 or run.last - run.first == 2  # full with the last one
        else:
            assert run.last - run.first <= max_length - 2
            tokens |= set(range(run.first, run.last))
    for place, token in enumerate(pairs.edges[:-1]):
        own = set(range(int(token), int(pairs.edges[place + 1])))
        assert (place in sentences) != (own <= tokens)


def test_half_of_the_pairs_are_random_and_every_cut_is_as_likely():
    documents = [[3, 3, 3, 3]] * 50
    pairs = SentencePairs(stream_of(documents), VOCABULARY, 64)
    rows = [pairs.row(number % 50, number) for number in range(4000)]
    num = len(rows)
    assert num == 4000
    random = sum(row.next_sentence_label == IS_RANDOM for row in rows)
    assert abs(random - num / 2) < 3 * np.sqrt(num / 4)
    sizes = np.array([len(parts_of(row)[0]) for row in rows])
    for size in (3, 6, 9):
        assert abs((sizes == size).sum() - num / 3) < 3 * np.sqrt(num * 2 / 9)


def test_a_random_part_is_drawn_from_all_other_documents_alike():
    pairs = SentencePairs(stream_of([[2, 2]] * 5), VOCABULARY, 64)
    rows = [pairs.row(2, seed) for seed in range(3000)]
    owners = [
        (parts_of(row)[1][0] - 10) // 4 for row in rows if row.next_sentence_label == IS_RANDOM
    ]
    counts = np.bincount(owners, minlength=5)
    assert counts[2] == 0
    expected = len(owners) / 4
    others = np.delete(counts, 2)
    assert (abs(others - expected) < 3.5 * np.sqrt(expected * 3 / 4)).all()


def test_a_pair_depends_on_its_number_and_seed_alone():
    pairs = SentencePairs(stream_of([[5, 4, 3, 6]] * 8), VOCABULARY, 12)
    again = SentencePairs(stream_of([[5, 4, 3, 6]] * 8), VOCABULARY, 12)
    seen = {pairs.row(1, seed).input_ids.tobytes() for seed in range(50)}
    assert len(seen) > 10
    for index in reversed(range(len(pairs))):
        assert (again.row(index, 77).input_ids == pairs.row(index, 77).input_ids).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 40))
def test_the_longer_part_loses_token_after_token(num_first, num_second, most):
    sizes = [num_first, num_second]
    while sum(sizes) > most:
        sizes[0 if sizes[0] > sizes[1] else 1] -= 1
    assert shortened(num_first, num_second, most) == tuple(sizes)


def test_words_of_a_pair_are_numbered_through_it():
    words = np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)
    pairs = SentencePairs(stream_of([[4, 2], [2]], words), VOCABULARY, 16)
    rows = [pairs.row(0, seed) for seed in range(20)]
    row = next(row for row in rows if row.next_sentence_label == IS_NEXT)
    assert row.input_ids.tolist() == [1, 10, 11, 12, 13, 2, 14, 15, 2]
    assert row.words.tolist() == [0, 1, 1, 2, 3, 4, 5, 5, 6]


def test_one_document_has_no_other_to_draw_from():
    with pytest.raises(DataError, match="found one document only"):
        SentencePairs(stream_of([[3, 4]]), VOCABULARY, 16)
    assert len(SentencePairs(stream_of([[3]]), VOCABULARY, 16)) == 1
    assert len(SentencePairs(stream_of([]), VOCABULARY, 16)) == 0


def test_a_pair_knows_the_document_of_its_run():
    documents = [[3, 4, 5], [6, 2], [4, 4]]
    stream = replace(stream_of(documents), places=[Where("t.txt", line) for line in (1, 5, 8)])
    pairs = SentencePairs(stream, VOCABULARY, 40)
    assert [pairs.place(index) for index in range(len(pairs))] == ["t.txt:1", "t.txt:5", "t.txt:8"]
    unknown = SentencePairs(stream_of(documents), VOCABULARY, 40)
    assert unknown.place(0) == ""
