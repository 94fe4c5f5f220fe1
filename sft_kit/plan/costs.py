"""What a micro-batch costs by its shape: least squares with no negative part, and an error bar.

A cost is fixed + a per padded token + b per label + c per padded token and width. Each is kept only
where the measured micro-batches tell it from the others.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from sft_kit.plan.shapes import Shape

_NUM_PARTS = 4
_ENOUGH = 1e-12
_TINY = 1e-300
"""An exact fit has no squares left, and zero has no logarithm."""


@dataclass(frozen=True, slots=True)
class Cost:
    """A fitted cost.

    Attributes:
        fixed: Of any micro-batch.
        per_token: Of a token, padding included.
        per_label: Of a label.
        per_square: Of a token times the width of the batch.
        residual: Root mean square of what the fit leaves, in the same unit.
    """

    fixed: float
    per_token: float
    per_label: float
    per_square: float
    residual: float

    def of(self, shape: Shape) -> float:
        """Cost of a micro-batch."""
        parts = (self.fixed, self.per_token, self.per_label, self.per_square)
        return sum(part * size for part, size in zip(parts, _sizes(shape), strict=True))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and how far off it may be: in about 19 of 20 cases no farther than `error`."""

    value: float
    error: float

    def __add__(self, other: "Estimate") -> "Estimate":
        """Add independent figures."""
        return Estimate(self.value + other.value, math.hypot(self.error, other.error))

    def times(self, factor: float) -> "Estimate":
        """Take a figure several times; so is its error."""
        return Estimate(self.value * factor, self.error * factor)

    @property
    def upper(self) -> float:
        """The figure with its error."""
        return self.value + self.error


def fit_cost(shapes: Sequence[Shape], values: Sequence[float]) -> Cost:
    """Fit a cost to measured micro-batches.

    Every choice of parts is fitted; of those without a negative part the one with the smallest
    Bayesian information criterion is taken, so that a part has to earn its place.

    Args:
        shapes: Of the micro-batches; at least one.
        values: What each was measured to cost.
    """
    import numpy as np  # `sft-kit check` answers before it would be loaded

    sizes = np.array([_sizes(shape) for shape in shapes], dtype=np.float64)
    scale = sizes.max(axis=0)
    scale[scale == 0] = 1.0
    target = np.array(values, dtype=np.float64)
    floor = _ENOUGH * float((target**2).sum()) + _TINY
    best: tuple[float, Cost] | None = None
    for parts in _choices(min(_NUM_PARTS, len(shapes))):
        columns = sizes[:, parts] / scale[parts]
        found, *_ = np.linalg.lstsq(columns, target, rcond=None)
        if (found < 0).any():
            continue
        squares = float(((columns @ found - target) ** 2).sum())
        penalty = len(parts) * math.log(max(len(shapes), 2))
        criterion = len(shapes) * math.log((squares + floor) / len(shapes)) + penalty
        if best is None or criterion < best[0]:
            coefficients = np.zeros(_NUM_PARTS)
            coefficients[parts] = found / scale[parts]
            spare = max(len(shapes) - len(parts), 1)
            fixed, per_token, per_label, per_square = coefficients.tolist()
            residual = math.sqrt(squares / spare)
            best = criterion, Cost(fixed, per_token, per_label, per_square, residual)
    assert best is not None
    return best[1]


def _choices(most: int) -> list[list[int]]:
    """All choices of up to so many parts."""
    counts = range(1, most + 1)
    return [list(one) for count in counts for one in combinations(range(_NUM_PARTS), count)]


def mean_cost(tried: Sequence[Shape], values: Sequence[float], wanted: Sequence[Shape]) -> Estimate:
    """Predict the mean cost of micro-batches from others that were tried.

    The error is twice the jackknife's: how much the answer moves when one of those tried is left
    out.
    """

    def predict(left_out: int | None = None) -> float:
        kept = [index for index in range(len(tried)) if index != left_out]
        cost = fit_cost([tried[index] for index in kept], [values[index] for index in kept])
        return sum(map(cost.of, wanted)) / len(wanted)

    whole = predict()
    count = len(tried)
    if count < 3:
        return Estimate(whole, whole / 2)
    others = [predict(index) for index in range(count)]
    return Estimate(whole, 2 * math.sqrt((count - 1) * statistics.pvariance(others)))


def mean_of(values: Sequence[float]) -> Estimate:
    """Mean of repeats, with twice its standard error; of a single one a quarter."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, mean / 4)
    return Estimate(mean, 2 * math.sqrt(statistics.variance(values) / len(values)))


def _sizes(shape: Shape) -> tuple[int, int, int, int]:
    return 1, shape.padded, shape.labelled, shape.padded * shape.width
