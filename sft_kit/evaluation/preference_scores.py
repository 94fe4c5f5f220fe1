"""Single figures of a reward model, from the differences of the scores of its pairs.

Shapes: N pairs, M answers, G groups, K answers of a group. A difference d is the better answer's
score minus the worse one's. Weights say how much a pair counts; they need not add up to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from sft_kit.evaluation.scores import NUM_BINS, NUM_RESAMPLES

_TAIL = 0.025
_TEMPERATURES = (1e-3, 1e3)


@dataclass(frozen=True, slots=True)
class Pairs:
    """All pairs of all groups.

    Attributes:
        group: (N,) number of the group.
        better: (N,) place of the better answer in its group.
        worse: (N,) place of the worse one.
        differences: (N,) of their scores.
        weights: (N,) 1 / C(K, 2).
        lengths: (N, 2) tokens of the better and the worse answer, without the prompt.
    """

    group: np.ndarray
    better: np.ndarray
    worse: np.ndarray
    differences: np.ndarray
    weights: np.ndarray
    lengths: np.ndarray


def list_pairs(scores: Sequence[np.ndarray], lengths: Sequence[np.ndarray]) -> Pairs:
    """List the pairs of each group in the order of its answers.

    Args:
        scores: G arrays of K scores.
        lengths: G arrays of K token counts.
    """
    places = [
        (group, better, worse)
        for group, row in enumerate(scores)
        for better, worse in combinations(range(len(row)), 2)
    ]
    group, better, worse = np.asarray(places, dtype=np.int64).reshape(-1, 3).T
    sizes = np.asarray([len(row) for row in scores])[group]
    return Pairs(
        group,
        better,
        worse,
        np.asarray([scores[g][b] - scores[g][w] for g, b, w in places]),
        2.0 / (sizes * (sizes - 1.0)),
        np.asarray([(lengths[g][b], lengths[g][w]) for g, b, w in places]),
    )


def win_probabilities(differences: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Sigmoid of d / temperature, (N,), without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -differences / temperature)))


def pair_loss(differences: np.ndarray, weights: np.ndarray) -> float:
    """Mean of -log sigmoid(d) in nats per pair, without margin and smoothing."""
    return float(np.average(np.logaddexp(0.0, -differences), weights=weights))


def brier_score(differences: np.ndarray, weights: np.ndarray, temperature: float = 1.0) -> float:
    """Mean squared distance of sigmoid(d / temperature) from 1; always 0.5 scores 0.25.

    Source:
        Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    return float(
        np.average((1 - win_probabilities(differences, temperature)) ** 2, weights=weights)
    )


def pair_calibration_error(
    differences: np.ndarray, weights: np.ndarray, temperature: float = 1.0
) -> float:
    """Expected calibration error of the answer a model holds for the better one.

    Its stated probability, sigmoid(|d| / temperature) >= 0.5, against the share of the pairs where
    it is the better one indeed; a tie is half right.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3: 15 bins of equal
        width.
    """
    stated = win_probabilities(np.abs(differences), temperature)
    was_right = (np.sign(differences) + 1) / 2
    bins = np.clip(np.ceil(stated * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    gaps = np.bincount(bins, weights=weights * (was_right - stated), minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def fit_temperature(differences: np.ndarray, weights: np.ndarray) -> float | None:
    """Find the temperature T for which sigmoid(d / T) is likeliest.

    The loss is convex in 1 / T; the zero of its slope is found by bisection.

    Returns:
        T, or None where the likeliest is none between 0.001 and 1000: all pairs are right, or the
        scores are worse than chance.

    Source:
        Guo et al. 2017, section 4.2.
    """

    def slope(inverse: float) -> float:
        probabilities = win_probabilities(-differences * inverse)
        return -float(np.average(differences * probabilities, weights=weights))

    low, high = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]
    if slope(low) >= 0 or slope(high) <= 0:
        return None
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def bootstrap_interval(right: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over groups, whose pairs are not independent.

    Args:
        right: (G,) share of each group's pairs that is right.
        seed: Of the draw.

    Source:
        Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    values, counts = np.unique(right, return_counts=True)
    # How often each value is drawn is all that matters: the same as drawing groups, and less work.
    draw = np.random.default_rng(seed)
    drawn = draw.multinomial(len(right), counts / len(right), NUM_RESAMPLES)
    low, high = np.quantile(drawn @ values / len(right), [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation of two figures of M answers; equal values share a mean rank.

    Returns:
        In [-1, 1]; None where one of the two is the same for all.
    """
    ranks = np.stack([_ranks(first), _ranks(second)])
    if bool((ranks == ranks[:, :1]).all(axis=1).any()):
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place])
