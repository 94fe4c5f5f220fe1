import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM, GPT2LMHeadModel

from sft_kit.data.corpus.collators import pad_corrupted
from sft_kit.data.corpus.rows import Row, Vocabulary
from sft_kit.data.corruption.causal import causal_lm
from sft_kit.data.corruption.infilling import infill
from sft_kit.data.corruption.prefix import left_to_right, prefix_lm
from sft_kit.models.attention_masks import attention_mask_of, take_documents

END, MASK = 2, 3
VOCABULARY = Vocabulary(100, 0, MASK, 1, END, (), np.arange(4, 100))
IMPLEMENTATIONS = ("eager", "sdpa")


def row_of(lengths: list[int]) -> Row:
    """A row of documents; the first and the last token are special."""
    length = sum(lengths)
    special = np.isin(np.arange(length), [0, length - 1])
    ids = np.where(special, END, 4 + np.arange(length) * 7 % 96)
    documents = np.repeat(np.arange(len(lengths)) + 1, lengths)
    return Row(ids, special, np.arange(length), np.zeros(length, int), documents)


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=3),
    st.lists(st.integers(0, 5), min_size=3, max_size=3) | st.none(),
)
def test_who_sees_whom_is_what_a_triple_loop_says(
    documents: list[list[int]], prefixes: list[int] | None
) -> None:
    prefix_lengths = None if prefixes is None else torch.tensor(prefixes[: len(documents)])
    mask = attention_mask_of(torch.tensor(documents), prefix_lengths)
    assert mask.shape == (len(documents), 1, 5, 5)
    for index, row in enumerate(documents):
        prefix = 0 if prefixes is None else prefixes[index]
        for query in range(5):
            for key in range(5):
                same = row[query] == row[key] and row[query] != 0
                sees = (same and (key <= query or key < prefix)) or key == query
                assert mask[index, 0, query, key] == sees


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_documents_in_a_window_give_the_logits_of_documents_alone(
    gpt2_model: GPT2LMHeadModel, implementation: str
) -> None:
    gpt2_model.set_attn_implementation(implementation)
    packed = copy.deepcopy(gpt2_model)
    take_documents(packed)
    all_lengths = [[7, 12, 5], [9, 3], [1, 15]]
    rows = [causal_lm(row_of(lengths), 0, document_mask=True) for lengths in all_lengths]
    batch = pad_corrupted(rows, pad_token_id=0)
    del batch["labels"]
    differences = []
    with torch.no_grad():
        logits = packed(**batch).logits
        for index, lengths in enumerate(all_lengths):
            starts = np.cumsum([0, *lengths])
            for start, length in zip(starts, lengths, strict=False):
                place = slice(start, start + length)
                alone = gpt2_model(input_ids=batch["input_ids"][index : index + 1, place]).logits
                differences.append((logits[index, place] - alone[0]).abs().flatten())
    joined = torch.cat(differences)
    assert joined.max() < 1e-5
    assert joined.mean() < 1e-6


def tiny_bert(implementation: str) -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, type_vocab_size=20,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
    )  # fmt: skip
    model = BertForMaskedLM(config).eval()
    model.set_attn_implementation(implementation)
    take_documents(model)
    return model


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("objective", ["causal", "prefix", "infill"])
def test_no_position_of_an_encoder_looks_ahead_of_its_prefix(
    implementation: str, objective: str
) -> None:
    corrupt = {"causal": left_to_right, "prefix": prefix_lm, "infill": infill}[objective]
    rows = [corrupt(row_of([length]), 5, vocabulary=VOCABULARY) for length in (20, 26)]
    batch = pad_corrupted(rows, pad_token_id=0)
    del batch["labels"]
    model = tiny_bert(implementation)
    with torch.no_grad():
        before = model(**batch).logits
        for place in range(rows[0]["input_ids"].size):
            changed = batch["input_ids"].clone()
            changed[0, place] = 4 + (changed[0, place] + 1) % 90
            moved = (model(**{**batch, "input_ids": changed}).logits - before).abs().amax(-1)
            length = rows[0]["prefix_length"]
            sees = torch.arange(batch["input_ids"].shape[1]) >= (0 if place < length else place)
            sees &= batch["attention_mask"][0].bool()
            assert torch.equal(moved[0] > 1e-6, sees)
            assert moved[1].max() == 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padding_leaves_no_row_of_the_attention_empty(implementation: str) -> None:
    rows = [prefix_lm(row_of([length]), 5, vocabulary=VOCABULARY) for length in (6, 30)]
    batch = pad_corrupted(rows, pad_token_id=0, token_multiple=32)
    del batch["labels"]
    model = tiny_bert(implementation)
    model(**batch).logits.sum().backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    with torch.no_grad():
        together = model(**batch).logits
        alone = pad_corrupted(rows[:1], pad_token_id=0)
        del alone["labels"]
        assert (model(**alone).logits[0] - together[0, :7]).abs().max() < 1e-5
