"""The loss of reward models against hand values, TRL's formula and brute force in float64."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sft_kit.objectives.preference import pairs_of_groups, pairwise_loss


def one_pair(chosen: float, rejected: float, margin: float = 0.0, **options) -> float:
    labels = torch.tensor([[2.0, margin]])
    return float(pairwise_loss(torch.tensor([chosen, rejected]), labels, **options))


def by_hand(
    scores: list[float],
    groups: list[tuple[int, float]],
    smoothing: float = 0.0,
    center: float = 0.0,
) -> float:
    """The definition, in Python's own double precision, group by group and pair by pair."""
    total, start = 0.0, 0
    for size, margin in groups:
        row = scores[start : start + size]
        start += size
        costs = []
        for better, worse in combinations(row, 2):
            right = 1 / (1 + math.exp(-(better - worse - margin)))
            turned = 1 / (1 + math.exp(-(worse - better - margin)))
            cost = -(1 - smoothing) * math.log(right) - smoothing * math.log(turned)
            costs.append(cost + center * (better + worse) ** 2)
        total += sum(costs) / len(costs)
    return total / len(groups)


def random_groups(sizes: list[int], margins: list[float] | None = None):
    scores = torch.randn(sum(sizes), dtype=torch.float64)
    labels = torch.tensor(
        [[k, m] for k, m in zip(sizes, margins or [0.0] * len(sizes), strict=True)]
    )
    return scores, labels.float()


# --- hand values ---------------------------------------------------------------------------------


def test_equal_scores_cost_the_logarithm_of_two():
    assert one_pair(1.5, 1.5) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("chosen", "rejected", "margin", "expected"),
    [
        (2.0, 1.0, 0.0, 0.3132617),  # -log sigmoid(1)
        (1.0, 2.0, 0.0, 1.3132617),  # -log sigmoid(-1)
        (2.0, 1.0, 1.0, 0.6931472),  # the margin eats the difference up
        (2.0, 1.0, 3.0, 2.1269280),  # -log sigmoid(-2)
    ],
)
def test_a_pair_costs_what_bradley_and_terry_say(chosen, rejected, margin, expected):
    assert one_pair(chosen, rejected, margin) == pytest.approx(expected, abs=1e-6)


def test_smoothing_mixes_in_the_cost_of_the_turned_preference():
    # 0.9 * 0.3132617 + 0.1 * 1.3132617
    assert one_pair(2.0, 1.0, label_smoothing=0.1) == pytest.approx(0.4132617, abs=1e-6)
    # With margin 0.5: 0.9 * -log sigmoid(0.5) + 0.1 * -log sigmoid(-1.5)
    expected = 0.9 * 0.4740770 + 0.1 * 1.7014133
    assert one_pair(2.0, 1.0, 0.5, label_smoothing=0.1) == pytest.approx(expected, abs=1e-6)


def test_centring_adds_the_squared_sum_of_the_scores():
    plain = one_pair(2.0, 1.0)
    assert one_pair(2.0, 1.0, center_weight=0.01) == pytest.approx(plain + 0.09, abs=1e-6)
    assert one_pair(1.5, -1.5, center_weight=0.01) == pytest.approx(one_pair(1.5, -1.5))


def test_huge_differences_stay_finite():
    assert one_pair(1e4, -1e4) == 0.0
    assert one_pair(-1e4, 1e4) == pytest.approx(2e4)


def test_scores_in_16_bits_are_compared_in_32():
    scores = torch.tensor([8.0, 8.0625], dtype=torch.bfloat16)
    found = pairwise_loss(scores, torch.tensor([[2.0, 0.0]]))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(math.log1p(math.exp(0.0625)), abs=1e-6)


# --- against brute force and TRL -----------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=5),
    smoothing=st.sampled_from([0.0, 0.2]),
    center=st.sampled_from([0.0, 0.01]),
    data=st.data(),
)
def test_any_batch_costs_what_its_definition_says(sizes, smoothing, center, data):
    number = st.floats(-5, 5, width=32)
    scores = data.draw(st.lists(number, min_size=sum(sizes), max_size=sum(sizes)))
    margins = [data.draw(st.floats(0, 2, width=32)) if size == 2 else 0.0 for size in sizes]
    groups = list(zip(sizes, margins, strict=True))
    found = pairwise_loss(
        torch.tensor(scores),
        torch.tensor(groups),
        label_smoothing=smoothing,
        center_weight=center,
    )
    assert float(found) == pytest.approx(by_hand(scores, groups, smoothing, center), rel=1e-4)


def test_pairs_cost_what_trl_writes_down():
    # trl.RewardTrainer.compute_loss: chosen rows first, rejected rows after, margin, centring.
    chosen, rejected = torch.randn(6), torch.randn(6)
    margin = torch.rand(6)
    expected = -torch.nn.functional.logsigmoid(chosen - rejected - margin).mean()
    expected = expected + 0.01 * torch.mean((chosen + rejected) ** 2)
    scores = torch.stack([chosen, rejected], dim=1).reshape(-1)
    labels = torch.stack([torch.full((6,), 2.0), margin], dim=1)
    found = pairwise_loss(scores, labels, center_weight=0.01)
    torch.testing.assert_close(found, expected)


def test_a_list_of_four_is_its_six_pairs():
    scores = torch.randn(4)
    whole = pairwise_loss(scores, torch.tensor([[4.0, 0.0]]), center_weight=0.02)
    rows = [scores[[i, j]] for i, j in combinations(range(4), 2)]
    pairs = pairwise_loss(torch.cat(rows), torch.tensor([[2.0, 0.0]] * 6), center_weight=0.02)
    torch.testing.assert_close(whole, pairs)


def test_gradients_are_those_of_finite_differences():
    scores, labels = random_groups([2, 4, 3], [0.5, 0.0, 0.0])
    scores.requires_grad_(True)
    options = {"label_smoothing": 0.1, "center_weight": 0.01}
    (found,) = torch.autograd.grad(pairwise_loss(scores, labels, **options), scores)
    groups = [(int(size), float(margin)) for size, margin in labels]
    step, expected = 1e-5, []
    for index in range(len(scores)):
        values = []
        for sign in (1, -1):
            moved = scores.detach().tolist()
            moved[index] += sign * step
            values.append(by_hand(moved, groups, 0.1, 0.01))
        expected.append((values[0] - values[1]) / (2 * step))
    difference = (found - torch.tensor(expected, dtype=torch.float64)).abs()
    assert float(difference.max()) < 1e-6
    assert float(difference.mean()) < 1e-6
    assert float(found.abs().max()) > 0.05


# --- batches -------------------------------------------------------------------------------------


def test_shares_of_unequal_micro_batches_add_up_to_the_loss_of_the_batch():
    sizes = [2, 4, 3, 2, 2]
    scores, labels = random_groups(sizes, [0.3, 0.0, 0.0, 0.0, 1.0])
    whole = pairwise_loss(scores, labels, label_smoothing=0.1, center_weight=0.01)
    parts, start = [], 0
    for first, last in ((0, 1), (1, 4), (4, 5)):
        rows = sum(sizes[first:last])
        part, some = scores[start : start + rows], labels[first:last]
        start += rows
        parts.append(
            pairwise_loss(part, some, num_groups=5, label_smoothing=0.1, center_weight=0.01)
        )
    torch.testing.assert_close(sum(parts), whole)


def test_every_group_weighs_the_same_however_many_answers_it_has():
    scores = torch.zeros(7)
    alone = float(pairwise_loss(torch.zeros(5), torch.tensor([[5.0, 0.0]])))
    both = float(pairwise_loss(scores, torch.tensor([[5.0, 0.0], [2.0, 0.0]])))
    assert alone == pytest.approx(math.log(2), abs=1e-6)
    assert both == pytest.approx(math.log(2), abs=1e-6)


def test_pairs_stay_within_their_group():
    better, worse, group = pairs_of_groups(torch.tensor([2, 3]))
    assert list(zip(better.tolist(), worse.tolist(), group.tolist(), strict=True)) == [
        (0, 1, 0), (2, 3, 1), (2, 4, 1), (3, 4, 1),
    ]  # fmt: skip
