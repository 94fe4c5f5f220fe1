"""Least squares without negative parts, and the error bars of what follows from it."""

import math
import statistics

import pytest

from sft_kit.plan.costs import Estimate, fit_cost, mean_cost, mean_of
from sft_kit.plan.shapes import Shape


def shape(rows: int, width: int, labelled: int) -> Shape:
    return Shape((width,) * rows, width, rows * width, labelled)


SHAPES = [
    shape(2, 10, 3), shape(4, 10, 31), shape(8, 20, 40), shape(8, 40, 90), shape(1, 80, 70),
    shape(16, 30, 100),
]  # fmt: skip


def test_a_cost_made_of_all_four_parts_is_found_again() -> None:
    values = [7 + 3 * s.padded + 5 * s.labelled + 0.25 * s.padded * s.width for s in SHAPES]
    cost = fit_cost(SHAPES, values)
    found = (cost.fixed, cost.per_token, cost.per_label, cost.per_square)
    assert found == pytest.approx((7, 3, 5, 0.25))
    other = shape(3, 50, 20)
    assert cost.of(other) == pytest.approx(7 + 3 * 150 + 5 * 20 + 0.25 * 150 * 50)


def test_a_part_that_costs_nothing_is_left_out() -> None:
    cost = fit_cost(SHAPES, [7 + 3 * s.padded for s in SHAPES])
    assert (cost.per_label, cost.per_square) == (0, 0)
    assert (cost.fixed, cost.per_token) == pytest.approx((7, 3))


def test_no_part_is_negative_where_unconstrained_squares_would_make_one() -> None:
    cost = fit_cost([shape(1, 10, 1), shape(1, 20, 1), shape(1, 30, 1)], [30.0, 20.0, 10.0])
    assert min(cost.fixed, cost.per_token, cost.per_label, cost.per_square) >= 0
    assert cost.of(shape(1, 20, 1)) == pytest.approx(20)


def test_one_micro_batch_alone_is_its_own_cost() -> None:
    assert fit_cost([shape(2, 10, 3)], [42.0]).of(shape(2, 10, 3)) == pytest.approx(42)


def test_the_jackknife_of_equal_shapes_is_twice_the_standard_error_of_their_mean() -> None:
    values = [9.0, 10.0, 11.0, 14.0]
    estimate = mean_cost([shape(2, 10, 3)] * 4, values, [shape(2, 10, 3)])
    assert estimate.value == pytest.approx(11)
    assert estimate.error == pytest.approx(2 * statistics.stdev(values) / math.sqrt(4))
    again = mean_of(values)
    assert (again.value, again.error) == pytest.approx((estimate.value, estimate.error))


def test_a_measurement_without_noise_has_no_error_and_two_points_have_much() -> None:
    values = [2.0 * s.padded for s in SHAPES]
    exact = mean_cost(SHAPES, values, [shape(4, 100, 10)])
    assert (exact.value, exact.error) == pytest.approx((800, 0), abs=1e-6)
    few = mean_cost(SHAPES[:2], values[:2], SHAPES[:1])
    assert few.error == pytest.approx(few.value / 2)


def test_errors_of_independent_figures_add_up_by_their_squares() -> None:
    total = Estimate(10, 3) + Estimate(20, 4)
    assert (total.value, total.error, total.upper) == (30, 5, 35)
    assert Estimate(10, 3).times(4) == Estimate(40, 12)
