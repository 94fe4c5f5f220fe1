from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.bart.modeling_bart import shift_tokens_right

from sft_kit.data.corpus.collators import pad_corrupted, shift_right
from sft_kit.data.corpus.rows import Corrupted, Row, Vocabulary
from sft_kit.data.corruption.causal import causal_lm
from sft_kit.data.corruption.denoising import denoise
from sft_kit.data.corruption.infilling import infill
from sft_kit.data.corruption.prefix import prefix_lm
from sft_kit.data.corruption.spans import hide_spans

PAD, START, END, MASK = 0, 1, 2, 3
VOCABULARY = Vocabulary(100, PAD, MASK, START, END, tuple(range(90, 100)), np.arange(4, 90))
LENGTHS = (17, 24, 9)


def row_of(length: int) -> Row:
    special = np.isin(np.arange(length), [0, length - 1])
    ids = np.where(special, END, 4 + np.arange(length) * 7 % 86)
    numbers = np.arange(length) // 5
    return Row(ids, special, np.arange(length), numbers, numbers + 1)


def rows_of(corrupt: Any, **how: Any) -> list[Corrupted]:
    return [corrupt(row_of(length), seed, **how) for seed, length in enumerate(LENGTHS)]


def padded(lists: list[list[int]], fill: int, width: int) -> list[list[int]]:
    return [numbers + [fill] * (width - len(numbers)) for numbers in lists]


# --- padding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("token_multiple", [None, 8])
def test_rows_are_padded_on_the_right(token_multiple: int | None) -> None:
    rows = rows_of(infill, vocabulary=VOCABULARY)
    batch = pad_corrupted(rows, pad_token_id=7, token_multiple=token_multiple)
    lengths = [row["input_ids"].size for row in rows]
    width = max(lengths)
    if token_multiple:
        width = (width + 7) // 8 * 8
    fills = {"input_ids": 7, "labels": -100, "position_ids": 0, "token_type_ids": 0}
    for name, fill in fills.items():
        numbers = [row[name].tolist() for row in rows]  # type: ignore[literal-required]
        assert batch[name].tolist() == padded(numbers, fill, width)
        assert batch[name].dtype == torch.int64
    assert batch["attention_mask"].tolist() == padded([[1] * n for n in lengths], 0, width)
    assert batch["prefix_lengths"].tolist() == [row["prefix_length"] for row in rows]
    assert set(batch) == {*fills, "attention_mask", "prefix_lengths"}


def test_documents_keep_their_numbers_and_padding_has_none() -> None:
    rows = rows_of(causal_lm, document_mask=True)
    batch = pad_corrupted(rows, pad_token_id=PAD)
    documents = [row["documents"].tolist() for row in rows]
    assert batch["documents"].tolist() == padded(documents, 0, 24)
    assert (batch["documents"] > 0).long().tolist() == batch["attention_mask"].tolist()


def test_next_sentence_labels_come_one_a_row() -> None:
    rows: list[Corrupted] = [
        {"input_ids": np.arange(3), "labels": np.arange(3), "next_sentence_label": label}
        for label in (1, 0, -100)
    ]
    batch = pad_corrupted(rows, pad_token_id=PAD)
    assert batch["next_sentence_label"].tolist() == [1, 0, -100]


def test_labels_of_a_decoder_have_a_length_of_their_own_and_are_marked() -> None:
    rows = rows_of(hide_spans, vocabulary=VOCABULARY, mask_fraction=0.3)
    batch = pad_corrupted(rows, pad_token_id=PAD, decoder_start_token_id=PAD, mark_labels=True)
    labels = [row["labels"].tolist() for row in rows]
    width = max(map(len, labels))
    assert width < batch["input_ids"].shape[1]
    assert batch["labels"].tolist() == padded(labels, -100, width)
    marks = [[True] * len(row) for row in labels]
    assert batch["label_mask"].tolist() == padded(marks, False, width)
    given = [[PAD, *row[:-1]] for row in labels]
    for row, found in zip(given, batch["decoder_input_ids"].tolist(), strict=True):
        assert found[: len(row)] == row


def test_rows_are_copied_and_not_changed() -> None:
    rows = rows_of(prefix_lm, vocabulary=VOCABULARY)
    before = [row["input_ids"].tolist() for row in rows]
    pad_corrupted(rows, pad_token_id=PAD)["input_ids"].zero_()
    assert [row["input_ids"].tolist() for row in rows] == before


# --- what the decoder is given, as transformers does it ------------------------------------------


def tiny_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=100, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0,
        pad_token_id=PAD, decoder_start_token_id=PAD, eos_token_id=END,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def tiny_bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=100, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, dropout=0.0,
        max_position_embeddings=64, pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
        decoder_start_token_id=END, forced_eos_token_id=END,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


def test_labels_are_shifted_as_t5_and_bart_shift_them() -> None:
    rows = rows_of(denoise, vocabulary=VOCABULARY)
    labels = pad_corrupted(rows, pad_token_id=PAD)["labels"]
    assert (labels == -100).any()
    before = labels.clone()
    t5, bart = tiny_t5(), tiny_bart()
    assert torch.equal(shift_right(labels, PAD, PAD), t5._shift_right(labels))
    from_labels = bart.prepare_decoder_input_ids_from_labels(labels)
    assert torch.equal(shift_right(labels, PAD, END), from_labels)
    assert torch.equal(shift_right(labels, PAD, END), shift_tokens_right(labels, PAD, END))
    assert torch.equal(labels, before)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_loss_is_that_of_a_model_that_shifts_the_labels_itself(family: str) -> None:
    model = tiny_t5() if family == "t5" else tiny_bart()
    corrupt = hide_spans if family == "t5" else denoise
    start = model.config.decoder_start_token_id
    rows = rows_of(corrupt, vocabulary=VOCABULARY)
    batch = pad_corrupted(rows, pad_token_id=PAD, decoder_start_token_id=start)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).logits
        del batch["decoder_input_ids"]
        expected = model(**batch, labels=labels).loss
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert abs(loss - expected) < 1e-6


def test_a_batch_of_texts_costs_what_the_texts_cost_one_by_one() -> None:
    model = tiny_t5()
    rows = rows_of(hide_spans, vocabulary=VOCABULARY)
    batch = pad_corrupted(rows, pad_token_id=PAD, decoder_start_token_id=PAD, token_multiple=8)
    with torch.no_grad():
        together = model(**batch).logits
        for index, row in enumerate(rows):
            alone = pad_corrupted([row], pad_token_id=PAD, decoder_start_token_id=PAD)
            logits = model(**alone).logits[0]
            assert (together[index, : row["labels"].size] - logits).abs().max() < 1e-5
