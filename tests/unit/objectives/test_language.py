import math

import pytest
import torch
from torch.nn import functional
from transformers import GPT2LMHeadModel

from sft_kit.data.rows import IGNORED as ROW_IGNORED
from sft_kit.objectives import language
from sft_kit.objectives.language import (
    IGNORED,
    cross_entropy,
    labelled_loss,
    labelled_nll,
    next_sentence_nll,
    next_token_loss,
    token_nll,
)

VOCABULARY = 11


@pytest.fixture(autouse=True, params=[0, language._FEW_LOGITS], ids=["in parts", "few"])
def ways_to_compute(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are small here: let every test see both ways."""
    monkeypatch.setattr(language, "_FEW_LOGITS", request.param)


def make_batch(rows: int = 4, tokens: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits, and labels of which rows have unequal shares."""
    logits = torch.randn(rows, tokens, VOCABULARY) * 3
    labels = torch.randint(VOCABULARY, (rows, tokens))
    for row in range(rows):
        labels[row, : 2 * row] = IGNORED
    return logits, labels


def brute_force_nll(logits: torch.Tensor, labels: torch.Tensor) -> list[list[float]]:
    """One label at a time in double precision, with nothing but exp and log."""
    result = []
    for row_logits, row_labels in zip(logits.tolist(), labels.tolist(), strict=True):
        row = [0.0]
        for before, label in zip(row_logits[:-1], row_labels[1:], strict=True):
            total = math.fsum(math.exp(value) for value in before)
            row.append(0.0 if label == -100 else math.log(total) - before[label])
        result.append(row)
    return result


def test_the_ignored_label_is_the_same_in_data_and_objectives():
    assert IGNORED == ROW_IGNORED == torch.nn.CrossEntropyLoss().ignore_index


def test_token_nll_equals_a_brute_force_sum_in_double_precision():
    logits, labels = make_batch()
    expected = torch.tensor(brute_force_nll(logits, labels), dtype=torch.float64)
    found = token_nll(logits, labels)
    assert found.shape == labels.shape
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_loss_equals_the_brute_force_mean_over_supervised_tokens():
    logits, labels = make_batch()
    expected = [
        value
        for row, row_labels in zip(brute_force_nll(logits, labels), labels.tolist(), strict=True)
        for value, label in list(zip(row, row_labels, strict=True))[1:]
        if label != -100
    ]
    mean = math.fsum(expected) / len(expected)
    assert next_token_loss(logits, labels).item() == pytest.approx(mean, rel=1e-5)


def test_loss_equals_transformers_own_for_gpt2(gpt2_model: GPT2LMHeadModel):
    ids = torch.randint(300, (3, 12))
    labels = ids.clone()
    labels[0, :5] = IGNORED
    labels[1, 3:] = IGNORED
    with torch.no_grad():
        mean = gpt2_model(input_ids=ids, labels=labels)
        scaled = gpt2_model(input_ids=ids, labels=labels, num_items_in_batch=77)
    torch.testing.assert_close(next_token_loss(mean.logits, labels), mean.loss)
    torch.testing.assert_close(next_token_loss(mean.logits, labels, 77), scaled.loss)


def test_the_label_at_position_0_never_counts():
    logits, labels = make_batch()
    other = labels.clone()
    other[:, 0] = IGNORED
    assert next_token_loss(logits, labels) == next_token_loss(logits, other)
    assert token_nll(logits, labels)[:, 0].abs().sum() == 0


def test_the_logits_of_the_last_position_predict_nothing():
    logits, labels = make_batch()
    other = logits.clone()
    other[:, -1] = 1e4
    assert next_token_loss(logits, labels) == next_token_loss(other, labels)


def test_micro_batches_with_the_global_count_sum_to_the_loss_and_gradient_of_the_full_batch():
    logits, labels = make_batch()
    num_labels = labels[:, 1:].ne(IGNORED).sum()
    whole = logits.clone().requires_grad_()
    full_loss = next_token_loss(whole, labels)
    full_loss.backward()

    parts = logits.clone().requires_grad_()
    part_losses = []
    for rows in (slice(0, 1), slice(1, 4)):
        loss = next_token_loss(parts[rows], labels[rows], num_labels)
        loss.backward()
        part_losses.append(loss.detach())

    torch.testing.assert_close(sum(part_losses), full_loss.detach())
    torch.testing.assert_close(parts.grad, whole.grad)


def test_the_mean_of_micro_batch_means_is_another_number():
    """What the global count is there to prevent; shows that the rows above are unequal enough."""
    logits, labels = make_batch()
    means = [next_token_loss(logits[rows], labels[rows]) for rows in (slice(0, 1), slice(1, 4))]
    assert abs(torch.stack(means).mean() - next_token_loss(logits, labels)) > 1e-3


def test_half_precision_logits_are_summed_in_float32():
    logits, labels = make_batch()
    half = logits.to(torch.bfloat16)
    assert next_token_loss(half, labels).dtype == torch.float32
    assert next_token_loss(half, labels) == next_token_loss(half.float(), labels)


def test_a_row_of_one_token_has_nothing_to_learn():
    assert token_nll(
        torch.randn(2, 1, VOCABULARY), torch.zeros(2, 1, dtype=torch.long)
    ).tolist() == [
        [0.0],
        [0.0],
    ]


# --- labels that stand where they are predicted --------------------------------------------------


def aligned_nll(logits: torch.Tensor, labels: torch.Tensor) -> list[list[float]]:
    """Brute force for labels in place: those of `brute_force_nll` behind a position of no use."""
    nothing = torch.zeros(labels.shape[0], 1, VOCABULARY)
    ignored = torch.full((labels.shape[0], 1), IGNORED)
    shifted = brute_force_nll(torch.cat([logits, nothing], 1), torch.cat([ignored, labels], 1))
    return [row[1:] for row in shifted]


def test_labels_in_place_cost_what_a_brute_force_sum_says():
    logits, labels = make_batch()
    counts = labels != IGNORED
    found = labelled_nll(logits[counts], labels)
    assert found.dtype == torch.float32
    expected = torch.tensor(aligned_nll(logits, labels), dtype=torch.float64)
    assert counts.any(1).all()
    assert (~counts).any()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    mean = float(expected.sum() / counts.sum())
    assert labelled_loss(logits[counts], labels).item() == pytest.approx(mean, rel=1e-5)
    assert labelled_loss(logits[counts], labels, 77).item() == pytest.approx(
        mean * int(counts.sum()) / 77, rel=1e-5
    )


def test_labels_in_place_are_those_of_the_loss_that_shifts():
    logits, labels = make_batch()
    labels[:, 0] = IGNORED
    in_place = torch.cat([labels[:, 1:], torch.full((4, 1), IGNORED)], 1)
    counts = in_place != IGNORED
    torch.testing.assert_close(
        labelled_loss(logits[counts], in_place), next_token_loss(logits, labels)
    )


def test_a_batch_without_labels_costs_nothing_and_moves_nothing():
    logits = torch.zeros(0, VOCABULARY, requires_grad=True)
    labels = torch.full((2, 3), IGNORED)
    for num_labels in (None, 0, torch.tensor(0)):
        loss = labelled_loss(logits, labels, num_labels)
        assert loss.item() == 0
        loss.backward()
    assert labelled_nll(logits, labels).tolist() == [[0.0] * 3] * 2


def test_micro_batches_of_labels_in_place_sum_to_the_gradient_of_the_full_batch():
    logits, labels = make_batch()
    num_labels = labels.ne(IGNORED).sum()
    whole, parts = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    labelled_loss(whole[labels != IGNORED], labels).backward()
    for rows in (slice(0, 1), slice(1, 4)):
        counts = labels[rows] != IGNORED
        labelled_loss(parts[rows][counts], labels[rows], num_labels).backward()
    assert whole.grad.abs().max() > 1e-3
    torch.testing.assert_close(parts.grad, whole.grad)


def test_pairs_cost_what_two_exponentials_say_and_nothing_where_none_is_asked():
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.5], [4.0, 4.0]])
    found = next_sentence_nll(logits, torch.tensor([0, 1, IGNORED]))
    expected = [math.log1p(math.exp(-1.2 - 0.3)), math.log1p(math.exp(2.0 - 0.5)), 0.0]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


# --- cross_entropy -------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_cross_entropy_is_torchs_whatever_part_is_looked_at_in_one_go(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int
):
    monkeypatch.setattr(language, "_LOGITS_ON_CPU", rows_at_once * VOCABULARY + 1)
    logits, labels = make_batch()
    logits, labels = logits.flatten(0, 1) * 10, labels.flatten()
    weights = torch.rand(len(labels))
    found, expected = (
        logits.clone().requires_grad_(),
        logits.double().requires_grad_(),
    )
    nll = cross_entropy(found, labels)
    torchs = functional.cross_entropy(expected, labels, ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(nll, torchs.float(), rtol=1e-6, atol=1e-5)
    assert nll[labels.eq(IGNORED)].eq(0).all()
    (nll * weights).sum().backward()
    (torchs * weights).sum().backward()
    assert found.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(found.grad, expected.grad.float(), rtol=1e-5, atol=1e-6)
    assert found.grad[labels.eq(IGNORED)].eq(0).all()


def test_cross_entropy_of_bfloat16_is_computed_in_float32():
    logits, labels = make_batch()
    logits, labels = logits.flatten(0, 1).bfloat16().requires_grad_(), labels.flatten()
    exact = logits.detach().float().requires_grad_()
    nll = cross_entropy(logits, labels)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, cross_entropy(exact, labels), rtol=0, atol=0)
    nll.sum().backward()
    cross_entropy(exact, labels).sum().backward()
    assert logits.grad is not None
    assert exact.grad is not None
    assert torch.equal(logits.grad, exact.grad.bfloat16())


def test_cross_entropy_can_be_differentiated_more_than_once_over_one_graph_and_leaves_the_logits():
    logits, labels = make_batch()
    logits, labels = logits.flatten(0, 1).requires_grad_(), labels.flatten()
    before = logits.detach().clone()
    total = cross_entropy(logits, labels).sum()
    first, second = (torch.autograd.grad(total, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(logits, before)


def test_cross_entropy_of_no_label_is_empty():
    logits = torch.randn(0, VOCABULARY, requires_grad=True)
    nll = cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    nll.sum().backward()
    assert nll.shape == (0,)
    assert logits.grad is not None
    assert logits.grad.shape == logits.shape
