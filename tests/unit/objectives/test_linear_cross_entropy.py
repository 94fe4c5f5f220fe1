"""The loss of an output layer without its logits is torch's own, and so is its gradient."""

import pytest
import torch
from torch.nn import functional

from sft_kit.objectives.linear_cross_entropy import linear_cross_entropy

H, V = 16, 40


def sides(rows, dtype=torch.float64, with_bias=False):
    """Losses and gradients of the hidden states: ours, and torch's from all logits."""
    hidden = torch.randn(rows, H, dtype=dtype)
    weight, labels = torch.randn(V, H, dtype=dtype), torch.randint(V, (rows,))
    bias = torch.randn(V, dtype=dtype) if with_bias else None
    upstream = torch.rand(rows)
    found = []
    for is_ours in (True, False):
        own = hidden.clone().requires_grad_()
        if is_ours:
            losses = linear_cross_entropy(own, weight, labels, bias)
        else:
            logits = functional.linear(own, weight, bias)
            losses = functional.cross_entropy(logits.float(), labels, reduction="none")
        (losses * upstream).sum().backward()
        found.append((losses.detach(), own.grad))
    return found


@pytest.mark.parametrize("rows", [1, 5, 128, 300])
@pytest.mark.parametrize("with_bias", [False, True])
def test_losses_and_gradients_are_those_of_the_whole_logits(rows, with_bias):
    ours, theirs = sides(rows, torch.float32, with_bias)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=1e-5)
    assert ours[0].dtype == torch.float32


def test_in_bfloat16_it_is_as_near_to_the_truth_as_torch_is():
    torch.manual_seed(3)
    hidden, weight = torch.randn(200, H), torch.randn(V, H)
    labels = torch.randint(V, (200,))
    truth = hidden.clone().double().requires_grad_()
    functional.cross_entropy(truth @ weight.double().t(), labels, reduction="sum").backward()
    errors = []
    for is_ours in (True, False):
        own = hidden.bfloat16().requires_grad_()
        if is_ours:
            loss = linear_cross_entropy(own, weight.bfloat16(), labels).sum()
        else:
            logits = (own @ weight.bfloat16().t()).float()
            loss = functional.cross_entropy(logits, labels, reduction="sum")
        loss.backward()
        errors.append(float((own.grad.double() - truth.grad).abs().mean()))
    assert errors[0] < 1.2 * errors[1]


def test_under_autocast_the_products_are_16_bit_and_the_losses_float32():
    hidden = torch.randn(9, H, requires_grad=True)
    weight, labels = torch.randn(V, H), torch.randint(V, (9,))
    with torch.autocast("cpu", torch.bfloat16):
        losses = linear_cross_entropy(hidden, weight, labels)
    rounded = functional.linear(hidden.bfloat16(), weight.bfloat16()).float()
    expected = functional.cross_entropy(rounded, labels, reduction="none")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
    losses.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


def test_logits_of_hundreds_are_as_safe_as_small_ones():
    hidden, weight = torch.full((3, H), 30.0), torch.eye(V, H) * 30
    labels = torch.tensor([0, 1, V - 1])
    expected = functional.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, labels), expected)


def test_no_row_is_no_loss():
    hidden = torch.empty(0, H, requires_grad=True)
    losses = linear_cross_entropy(hidden, torch.randn(V, H), torch.empty(0, dtype=torch.long))
    losses.sum().backward()
    assert losses.shape == (0,)
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, H)
