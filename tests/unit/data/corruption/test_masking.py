"""Bounds of 3 sigma come from the binomial, multinomial and chi-square distributions."""

from dataclasses import replace
from functools import partial
from itertools import groupby
from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_kit.data.corpus.rows import Row, Vocabulary
from sft_kit.data.corruption.draws import generator_of, row_seed
from sft_kit.data.corruption.masking import (
    apply_mask,
    choose_words,
    default_fractions,
    draw_replacements,
    mask_tokens,
)

LECTURE = ["[CLS]", *"今天天气真好，我们一起出去玩吧", "[SEP]"]
WORDS = ["[CLS]", "今天", "天气", "真", "好", "，", "我们", "一起", "出去玩", "吧", "[SEP]"]
TOKENS = ["[PAD]", "[M]", *dict.fromkeys(LECTURE)]
NUM_ROWS, NUM_TOKENS, NUM_ORDINARY = 2000, 500, 1000
BIG = Vocabulary(
    size=NUM_ORDINARY + 3,
    pad=0,
    mask=1,
    start=2,
    end=2,
    sentinels=(),
    ordinary=np.arange(3, NUM_ORDINARY + 3),
)


def row_of(ids: list[int], special: list[bool], words: list[int]) -> Row:
    return Row(
        input_ids=np.array(ids, dtype=np.int64),
        is_special=np.array(special, dtype=bool),
        words=np.array(words, dtype=np.int64),
        sentences=np.zeros(len(ids), dtype=np.int64),
        documents=np.ones(len(ids), dtype=np.int64),
    )


def lecture_row() -> Row:
    words = [number for number, word in enumerate(WORDS) for _ in (word if word[0] != "[" else "1")]
    return row_of(
        [TOKENS.index(token) for token in LECTURE], [token[0] == "[" for token in LECTURE], words
    )


def show(ids: np.ndarray) -> str:
    return " ".join("-" if number == -100 else TOKENS[number] for number in ids)


def sampled_rows() -> list[Row]:
    """1,000,000 ordinary tokens in words of 1 to 4, with two special tokens around each row."""
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(NUM_ROWS):
        ids = np.concatenate([[2], rng.choice(BIG.ordinary, NUM_TOKENS), [2]])
        lengths = rng.integers(1, 5, NUM_TOKENS)
        words = np.repeat(np.arange(NUM_TOKENS), lengths)[:NUM_TOKENS]
        special = np.zeros(NUM_TOKENS + 2, dtype=bool)
        special[[0, -1]] = True
        rows.append(row_of(list(ids), list(special), [-1, *words, -2]))
    return rows


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return sampled_rows()


def corrupt_all(rows: list[Row], epoch: int = 0, **options: object) -> tuple[np.ndarray, ...]:
    """Inputs, labels and originals of all rows, (NUM_ROWS, NUM_TOKENS + 2) each."""
    corrupt = partial(mask_tokens, vocabulary=BIG, **options)
    made = [corrupt(row, row_seed(7, epoch, number)) for number, row in enumerate(rows)]
    return (
        np.stack([corrupted["input_ids"] for corrupted in made]),
        np.stack([corrupted["labels"] for corrupted in made]),
        np.stack([row.input_ids for row in rows]),
    )


def assert_share(count: float, number: int, share: float, variance: float | None = None) -> None:
    """Whether a count of `number` draws lies within 3 sigma of its share."""
    sigma = sqrt(number * share * (1 - share) if variance is None else variance)
    assert abs(count - number * share) <= 3 * sigma


def assert_chi_square(statistic: float, degrees: int) -> None:
    assert abs(statistic - degrees) <= 3 * sqrt(2 * degrees)


def test_the_lectures_masked_row_learns_where_the_mask_stands():
    row = lecture_row()
    chosen = np.isin(np.arange(len(LECTURE)), [2, 4, 9, 14])
    masked = apply_mask(row, chosen, np.full(4, TOKENS.index("[M]")))
    assert show(masked["input_ids"]) == (
        "[CLS] 今 [M] 天 [M] 真 好 ， 我 [M] 一 起 出 去 [M] 吧 [SEP]"
    )
    assert show(masked["labels"]) == "- - 天 - 气 - - - - 们 - - - - 玩 - -"


def test_the_lectures_whole_words_are_hidden_together():
    row = lecture_row()
    draws = np.full(len(LECTURE), 0.9)
    draws[[WORDS.index(word) for word in ("天气", "我们", "出去玩")]] = 0.1
    generator = SimpleNamespace(random=lambda size: draws[:size])
    chosen = choose_words(row.words, row.is_special, 0.15, generator)
    masked = apply_mask(row, chosen, np.full(7, TOKENS.index("[M]")))
    assert show(masked["input_ids"]) == (
        "[CLS] 今 天 [M] [M] 真 好 ， [M] [M] 一 起 [M] [M] [M] 吧 [SEP]"
    )
    assert show(masked["labels"]) == "- - - 天 气 - - - 我 们 - - 出 去 玩 - -"


def test_a_special_token_is_not_hidden_with_the_word_whose_number_it_has():
    chosen = choose_words(
        np.array([0, 0, 1, 1]), np.array([True, False, False, True]), 1.0, generator_of(0)
    )
    assert chosen.tolist() == [False, True, True, False]


@pytest.mark.parametrize("fraction", [0.15, 0.4])
@pytest.mark.parametrize("whole_words", [False, True])
def test_of_a_million_tokens_the_asked_share_is_learnt_at_any_place(
    rows: list[Row], fraction: float, whole_words: bool
):
    _, labels, originals = corrupt_all(rows, mask_fraction=fraction, whole_words=whole_words)
    chosen = labels != -100
    assert np.array_equal(labels[chosen], originals[chosen])
    assert not chosen[:, [0, -1]].any()
    chosen = chosen[:, 1:-1]
    lengths = np.ones(chosen.size)
    if whole_words:
        lengths = np.concatenate(
            [[len(list(group)) for _, group in groupby(row.words[1:-1])] for row in rows]
        )
    variance = fraction * (1 - fraction) * float(np.sum(lengths**2))
    assert_share(chosen.sum(), chosen.size, fraction, variance)
    of_place = chosen.sum(axis=0)
    expected = fraction * NUM_ROWS
    statistic = np.sum((of_place - expected) ** 2) / (expected * (1 - fraction))
    # The variance is twice the sum of r ** 2 over pairs of places, at most that of r, the share of
    # rows where one word covers both. For single tokens that is a chi-square's 2 * NUM_TOKENS.
    spread = sqrt(2 * NUM_TOKENS * float(np.sum(lengths**2) / np.sum(lengths)))
    assert abs(statistic - NUM_TOKENS) <= 3 * spread


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize(("mask", "random"), [(0.8, 0.1), (0.5, 0.5), (0.0, 0.3)])
def test_of_the_chosen_tokens_the_asked_shares_are_hidden_replaced_and_kept(
    rows: list[Row], mask: float, random: float, whole_words: bool
):
    inputs, labels, _ = corrupt_all(
        rows, mask_token_fraction=mask, random_token_fraction=random, whole_words=whole_words
    )
    chosen = labels != -100
    number = int(chosen.sum())
    seen, learnt = inputs[chosen], labels[chosen]
    assert_share(np.sum(seen == BIG.mask), number, mask)
    # One random token in NUM_ORDINARY is the original again.
    assert_share(np.sum(seen == learnt), number, 1 - mask - random + random / NUM_ORDINARY)


def test_random_tokens_are_drawn_alike_from_all_ordinary_ones_and_from_no_other(rows: list[Row]):
    inputs, labels, _ = corrupt_all(rows, mask_token_fraction=0.0, random_token_fraction=1.0)
    drawn = inputs[labels != -100]
    assert np.isin(drawn, BIG.ordinary).all()
    counts = np.bincount(drawn, minlength=BIG.size)[3:]
    expected = drawn.size / NUM_ORDINARY
    assert_chi_square(float(np.sum((counts - expected) ** 2) / expected), NUM_ORDINARY - 1)


def test_random_tokens_do_not_depend_on_what_they_replace(rows: list[Row]):
    inputs, labels, _ = corrupt_all(rows, mask_token_fraction=0.0, random_token_fraction=1.0)
    drawn, original = inputs[labels != -100], labels[labels != -100]
    table = np.histogram2d(drawn % 10, original % 10, bins=10)[0]
    expected = table.sum(axis=0) * table.sum(axis=1)[:, None] / table.sum()
    assert_chi_square(float(np.sum((table - expected) ** 2 / expected)), 81)


def test_a_seed_gives_one_result_and_the_next_epoch_an_independent_one(rows: list[Row]):
    first, again, second = (corrupt_all(rows, epoch) for epoch in (0, 0, 1))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    both = ((first[1] != -100) & (second[1] != -100))[:, 1:-1]
    assert_share(both.sum(), both.size, 0.15**2)
    neighbours = (first[1][:-1] != -100) & (first[1][1:] != -100)
    # Rows of a chain share a row with the next: pairs that meet in one row covary by p^3 - p^4.
    pairs, share = neighbours[:, 1:-1].size, 0.15**2
    variance = pairs * (share * (1 - share) + 2 * (0.15**3 - 0.15**4))
    assert_share(neighbours.sum(), pairs, share, variance)


@st.composite
def any_rows(draw: st.DrawFn) -> Row:
    lengths = draw(st.lists(st.integers(1, 4), max_size=12))
    words = [number for number, length in enumerate(lengths) for _ in range(length)]
    size = len(words)
    ids = draw(st.lists(st.integers(0, 29), min_size=size, max_size=size))
    row = row_of(ids, [number < 3 for number in ids], words)
    parts = draw(st.none() | st.just(np.array([number % 2 for number in words], dtype=np.int64)))
    return replace(row, token_type_ids=parts, next_sentence_label=draw(st.none() | st.just(1)))


@settings(deadline=None, max_examples=150)
@given(
    row=any_rows(),
    seed=st.integers(0, 2**64 - 1),
    fraction=st.floats(0.0, 1.0),
    mask=st.floats(0.0, 0.6),
    random=st.floats(0.0, 0.4),
    whole_words=st.booleans(),
)
def test_any_row_is_recovered_from_input_and_labels(
    row: Row, seed: int, fraction: float, mask: float, random: float, whole_words: bool
):
    before = row.input_ids.copy()
    corrupted = mask_tokens(
        row,
        seed,
        vocabulary=replace(BIG, ordinary=np.arange(3, 30)),
        mask_fraction=fraction,
        mask_token_fraction=mask,
        random_token_fraction=random,
        whole_words=whole_words,
    )
    inputs, labels = corrupted["input_ids"], corrupted["labels"]
    assert inputs.dtype == labels.dtype == np.int64
    learnt = labels != -100
    assert np.array_equal(np.where(learnt, labels, inputs), before)
    assert np.array_equal(row.input_ids, before)
    assert not learnt[row.is_special].any()
    assert not np.isin(inputs[learnt], [0, 2]).any()
    if whole_words:
        for number in set(row.words.tolist()):
            assert len(set(learnt[(row.words == number) & ~row.is_special])) <= 1
    for name in ("token_type_ids", "next_sentence_label"):
        assert corrupted.get(name) is getattr(row, name)


def bert_tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh")]
    backend = Tokenizer(WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{token[1:-1].lower()}_token": token for token in special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.mark.parametrize("whole_words", [False, True])
def test_transformers_collator_and_ours_agree_on_the_same_masks(whole_words: bool):
    import torch
    from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling

    tokenizer = bert_tokenizer()
    texts = ["abc de fghab c", "hgf e d cba abab", "a b c d e f g h aa bb"] * 8
    encoded = tokenizer(
        texts,
        return_special_tokens_mask=True,
        return_offsets_mapping=whole_words,
        padding=True,
        return_token_type_ids=False,
    )
    share = 1.0 if whole_words else 0.8
    collate = DataCollatorForLanguageModeling(
        tokenizer,
        mlm_probability=0.4,
        whole_word_mask=whole_words,
        mask_replace_prob=share,
        random_replace_prob=0.0 if whole_words else 0.1,
        seed=5,
    )
    features = [{key: values[n] for key, values in encoded.items()} for n in range(len(texts))]
    theirs = collate(features)
    ours = []
    for number in range(len(texts)):
        ids, special = encoded["input_ids"][number], encoded["special_tokens_mask"][number]
        words = [-1 if word is None else word for word in encoded.word_ids(number)]
        row = row_of(ids, [bool(flag) for flag in special], words)
        chosen = theirs["labels"][number].numpy() != -100
        if whole_words:
            draws = np.ones(len(ids))
            runs = [word for word, _ in groupby(words)]
            hidden = set(row.words[chosen].tolist())
            draws[: len(runs)] = [0.0 if word in hidden else 1.0 for word in runs]
            generator = SimpleNamespace(random=lambda size, draws=draws: draws[:size])
            chosen = choose_words(row.words, row.is_special, 0.5, generator)
        ours.append(apply_mask(row, chosen, theirs["input_ids"][number].numpy()[chosen]))
    inputs = torch.from_numpy(np.stack([corrupted["input_ids"] for corrupted in ours]))
    labels = torch.from_numpy(np.stack([corrupted["labels"] for corrupted in ours]))
    assert (labels != -100).sum() > 50
    assert torch.equal(inputs, theirs["input_ids"])
    assert torch.equal(labels, theirs["labels"])
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    model = BertForMaskedLM(config).eval()
    mine = model(input_ids=inputs, attention_mask=theirs["attention_mask"], labels=labels)
    assert mine.loss.item() == pytest.approx(model(**theirs).loss.item(), abs=1e-6)


def test_replacements_of_no_tokens_are_none():
    nothing = np.array([], dtype=np.int64)
    drawn = draw_replacements(
        nothing,
        generator_of(1),
        vocabulary=BIG,
        mask_token_fraction=0.8,
        random_token_fraction=0.1,
    )
    assert drawn.shape == (0,)


def test_the_usual_shares_are_those_of_the_papers():
    assert default_fractions("mlm") == default_fractions("wwm") == (0.8, 0.1)
    assert default_fractions("spell") == (0.1, 0.1)
