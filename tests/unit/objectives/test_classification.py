from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from sft_kit.objectives.classification import (
    balanced_weights,
    classification_loss,
    last_token_index,
    mean_token_nll,
    rescaled_weights,
)

WEIGHTS = torch.tensor([0.5, 2.0, 1.25])


@pytest.fixture
def single() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 3, requires_grad=True), torch.tensor([0, 2, 1, 1, 0, 2, 2, 0])


@pytest.fixture
def multi() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 3, requires_grad=True), torch.randint(0, 2, (8, 3)).float()


# --- against torch -------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_loss_of_one_class_a_row_is_torchs_cross_entropy_by_row(single, weights, smoothing):
    logits, labels = single
    each = functional.cross_entropy(
        logits, labels, weight=weights, label_smoothing=smoothing, reduction="none"
    )
    found = classification_loss(logits, labels, class_weights=weights, label_smoothing=smoothing)
    torch.testing.assert_close(found, each.mean())


def test_smoothed_loss_is_its_definition(single):
    logits, labels = single
    smoothed = functional.one_hot(labels, 3) * 0.8 + 0.2 / 3
    expected = -(smoothed * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(classification_loss(logits, labels, label_smoothing=0.2), expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_loss_of_several_classes_a_row_is_torchs_binary_cross_entropy(multi, weights):
    logits, labels = multi
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, labels)
    torch.testing.assert_close(classification_loss(logits, labels, class_weights=weights), expected)


def test_smoothed_loss_of_several_classes_a_row_is_its_definition(multi):
    logits, labels = multi
    p, y = logits.sigmoid(), labels * 0.8 + 0.1
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    found = classification_loss(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(found, expected)


def test_ignored_labels_count_neither_in_the_sum_nor_in_the_mean(single, multi):
    logits, labels = single
    cut = labels.clone()
    cut[5:] = -100
    torch.testing.assert_close(
        classification_loss(logits, cut), functional.cross_entropy(logits[:5], labels[:5])
    )
    logits, answers = multi
    cut = answers.clone()
    cut[:, 1] = -100
    kept = torch.tensor([0, 2])
    expected = functional.binary_cross_entropy_with_logits(logits[:, kept], answers[:, kept])
    torch.testing.assert_close(classification_loss(logits, cut), expected)


def test_loss_of_half_precision_logits_is_computed_in_float32(single):
    logits, labels = single
    half = logits.detach().bfloat16()
    found = classification_loss(half, labels)
    assert found.dtype == torch.float32
    assert found == functional.cross_entropy(half.float(), labels)


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.parametrize("sizes", [[2, 2, 2, 2], [5, 1, 2]])
def test_micro_batches_of_any_size_add_up_to_one_batch(request, kind, sizes):
    logits, labels = request.getfixturevalue(kind)
    options = {"class_weights": WEIGHTS, "label_smoothing": 0.1}
    whole = classification_loss(logits, labels, **options)
    (expected,) = torch.autograd.grad(whole, logits, retain_graph=True)
    parts = [
        classification_loss(some, their, labels.numel(), **options)
        for some, their in zip(logits.split(sizes), labels.split(sizes), strict=True)
    ]
    (found,) = torch.autograd.grad(sum(parts), logits)
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(found, expected)


# --- class weights -------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 500), min_size=2, max_size=8))
def test_balanced_weights_are_scikit_learns(counts):
    rows = [number for number, count in enumerate(counts) for _ in range(count)]
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=rows)
    found = balanced_weights(torch.tensor(counts))
    torch.testing.assert_close(found.double(), torch.as_tensor(expected), rtol=1e-6, atol=0)
    assert found[rows].mean() == pytest.approx(1.0, rel=1e-4)


def test_a_class_without_rows_weighs_nothing_and_changes_no_other_weight():
    found = balanced_weights(torch.tensor([6, 0, 2]))
    assert found.tolist() == pytest.approx([8 / 12, 0.0, 8 / 4])
    assert found[[0] * 6 + [2] * 2].mean() == pytest.approx(1.0)


def test_rescaled_weights_keep_their_proportions_and_have_mean_1_over_the_rows():
    counts = torch.tensor([6, 2, 4])
    found = rescaled_weights(torch.tensor([1.0, 5.0, 2.0]), counts)
    assert (found / found[0]).tolist() == pytest.approx([1.0, 5.0, 2.0])
    assert found.repeat_interleave(counts).mean() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([0.0, 0.0], "above 0"), ([1.0, -1.0], "negative"), ([1.0, float("nan")], "finite")],
)
def test_weights_that_mean_nothing_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        rescaled_weights(torch.tensor(weights), torch.tensor([3, 4]))


# --- the last real token -------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 6)), min_size=1, max_size=5))
def test_last_token_is_found_for_padding_on_either_side_or_both(rows):
    width = max(left + real for left, real in rows) + 2
    mask = [[0] * left + [1] * real + [0] * (width - left - real) for left, real in rows]
    expected = [max(at for at, value in enumerate(row) if value) for row in mask]
    for dtype in (torch.int64, torch.bool, torch.float32):
        assert last_token_index(torch.tensor(mask, dtype=dtype)).tolist() == expected


def test_a_row_without_tokens_has_its_last_one_at_0():
    assert last_token_index(torch.tensor([[0, 0], [1, 0]])).tolist() == [0, 0]


# --- the language model's loss beside the labels -------------------------------------------------


def brute_force(hidden, embedding, ids, mask) -> torch.Tensor:
    """Token by token, in float64."""
    rows = []
    for states, tokens, real in zip(hidden.double(), ids, mask, strict=True):
        at = [place for place, value in enumerate(real.tolist()) if value]
        terms = [
            -(states[before] @ embedding.double().T).log_softmax(dim=0)[tokens[now]]
            for before, now in pairwise(at)
        ]
        rows.append(sum(terms) / len(terms) if terms else states.sum() * 0)
    return torch.stack(rows)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunk", [4, 512])
def test_mean_nll_is_a_mean_over_each_rows_own_tokens(monkeypatch, side, chunk):
    monkeypatch.setattr("sft_kit.objectives.classification._CHUNK_TOKENS", chunk)
    lengths, width = [7, 1, 4, 2], 7
    hidden = torch.randn(4, width, 6, requires_grad=True)
    embedding = torch.randn(11, 6, requires_grad=True)
    ids = torch.randint(0, 11, (4, width))
    real = torch.arange(width) < torch.tensor(lengths)[:, None]
    mask = (real if side == "right" else real.flip(1)).long()
    found = mean_token_nll(hidden, embedding, ids, mask)
    expected = brute_force(hidden, embedding, ids, mask)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert found[1] == 0
    wanted = torch.autograd.grad(expected.sum(), [hidden, embedding])
    gradients = torch.autograd.grad(found.sum(), [hidden, embedding])
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_a_mask_every_token_is_real():
    hidden, embedding, ids = torch.randn(2, 5, 6), torch.randn(11, 6), torch.randint(0, 11, (2, 5))
    found = mean_token_nll(hidden, embedding, ids)
    expected = brute_force(hidden, embedding, ids, torch.ones(2, 5))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_rows_of_one_token_alone_have_no_loss_and_no_gradient():
    hidden = torch.randn(2, 1, 6, requires_grad=True)
    found = mean_token_nll(hidden, torch.randn(11, 6), torch.tensor([[3], [4]]))
    assert found.tolist() == [0.0, 0.0]
    found.sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()
