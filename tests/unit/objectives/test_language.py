import math

import pytest
import torch
from transformers import GPT2LMHeadModel

from sft_kit.data.rows import IGNORED as ROW_IGNORED
from sft_kit.objectives.language import IGNORED, next_token_loss, token_nll

VOCABULARY = 11


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
