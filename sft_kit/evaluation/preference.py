"""How good a reward model is: every figure of a report, from the scores of compared answers.

Shapes: G groups of answers to one prompt, K answers of a group, N pairs. A pair of a group of K
weighs 1 / C(K, 2), so that every group weighs the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sft_kit.data.preference.rows import PreferenceExample
from sft_kit.errors import DataError, TrainingError
from sft_kit.evaluation.preference_examples import (
    PromptScore,
    WrongPair,
    extreme_prompts,
    wrongest_pairs,
)
from sft_kit.evaluation.preference_scores import (
    Pairs,
    bootstrap_interval,
    brier_score,
    fit_temperature,
    list_pairs,
    pair_calibration_error,
    pair_loss,
    rank_correlation,
)

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase

NUM_LENGTH_BINS = 4


@dataclass(frozen=True, slots=True)
class Share:
    """Accuracy in a part of the pairs.

    Attributes:
        name: What part.
        num_pairs: Its pairs.
        accuracy: Share of them that is right.
    """

    name: str
    num_pairs: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far stated probabilities of a pair are from what happens, at a temperature."""

    temperature: float
    brier: float
    calibration_error: float


@dataclass(frozen=True, slots=True)
class RewardReport:
    """All figures of a reward model on compared answers. Shares are in [0, 1].

    Attributes:
        num_groups: G.
        num_pairs: N.
        loss: Nats per group, without margin, smoothing and centring.
        accuracy: Share of the pairs whose better answer has the higher score.
        accuracy_interval: Its 95 % bootstrap interval, groups drawn.
        ties_fraction: Share of the pairs whose scores are equal; they are not right.
        longer_accuracy: Accuracy of always taking the longer answer (in tokens); of equally long
            ones half are right.
        shorter_accuracy: Accuracy of always taking the shorter one.
        score_length_correlation: Spearman's, of the scores and lengths of all answers; None where
            either is constant.
        by_source: Accuracy by the file the pairs come from.
        by_length: Accuracy by tokens of a pair's longer answer, in quarters of the pairs.
        by_longer: Accuracy where the better answer is the longer one, the shorter one, or neither.
        calibration: As the scores are.
        fitted: At the temperature that suits these very pairs best; None where none does.
        chosen_mean: Mean score of the best answers of the groups.
        chosen_std: Its standard deviation.
        score_mean: Mean of all scores.
        prompt_std: Standard deviation of the mean scores of the groups.
        answer_std: Root mean square distance of the scores from their group's mean.
        highest: Prompts whose answers score highest.
        lowest: Prompts whose answers score lowest.
        differences: (N,) of the scores of the pairs, better minus worse.
        num_wrong: Pairs whose worse answer has the higher score.
        wrong: The wrongest of them.
    """

    num_groups: int
    num_pairs: int
    loss: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    ties_fraction: float
    longer_accuracy: float
    shorter_accuracy: float
    score_length_correlation: float | None
    by_source: tuple[Share, ...]
    by_length: tuple[Share, ...]
    by_longer: tuple[Share, ...]
    calibration: Calibration
    fitted: Calibration | None
    chosen_mean: float
    chosen_std: float
    score_mean: float
    prompt_std: float
    answer_std: float
    highest: tuple[PromptScore, ...]
    lowest: tuple[PromptScore, ...]
    differences: tuple[float, ...]
    num_wrong: int
    wrong: tuple[WrongPair, ...]


def evaluate_preferences(
    scores: Sequence[np.ndarray],
    examples: Sequence[PreferenceExample],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    seed: int = 0,
) -> RewardReport:
    """Judge a reward model.

    Args:
        scores: G arrays with the scores of each group's K answers, the best answer's first.
        examples: The G groups.
        tokenizer: Decodes the answers that are shown.
        seed: Of the bootstrap.

    Raises:
        DataError: There are no groups.
        TrainingError: A score is not a finite number.
    """
    if not len(examples):
        raise DataError("there are no comparisons to evaluate on")
    scores = [np.asarray(row, dtype=np.float64) for row in scores]
    if not all(np.isfinite(row).all() for row in scores):
        raise TrainingError(
            "the scores of the held-out answers are not finite: the training has diverged; train "
            "again with a lower train.learning_rate"
        )
    pairs = list_pairs(scores, [_answer_lengths(example) for example in examples])
    right = (pairs.differences > 0).astype(np.float64)
    by_group = np.bincount(pairs.group, weights=right * pairs.weights, minlength=len(scores))
    longer = np.sign(pairs.lengths[:, 0] - pairs.lengths[:, 1])
    longer_accuracy = float(np.average((longer + 1) / 2, weights=pairs.weights))
    means = np.asarray([row.mean() for row in scores])
    everything = np.concatenate(scores)
    lengths = np.concatenate([_answer_lengths(example) for example in examples])
    highest, lowest = extreme_prompts(means, examples, tokenizer)
    temperature = fit_temperature(pairs.differences, pairs.weights)
    return RewardReport(
        num_groups=len(scores),
        num_pairs=len(pairs.group),
        loss=pair_loss(pairs.differences, pairs.weights),
        accuracy=float(by_group.mean()),
        accuracy_interval=bootstrap_interval(by_group, seed),
        ties_fraction=float(np.average(pairs.differences == 0, weights=pairs.weights)),
        longer_accuracy=longer_accuracy,
        shorter_accuracy=1 - longer_accuracy,
        score_length_correlation=rank_correlation(everything, lengths),
        by_source=_by_source(pairs, examples),
        by_length=_by_length(pairs),
        by_longer=_by_longer(pairs, longer),
        calibration=_calibration(pairs, 1.0),
        fitted=None if temperature is None else _calibration(pairs, temperature),
        chosen_mean=float(np.mean([row[0] for row in scores])),
        chosen_std=float(np.std([row[0] for row in scores])),
        score_mean=float(everything.mean()),
        prompt_std=float(means.std()),
        answer_std=float(np.sqrt(np.mean(np.concatenate([r - r.mean() for r in scores]) ** 2))),
        highest=highest,
        lowest=lowest,
        differences=tuple(pairs.differences.tolist()),
        num_wrong=int((pairs.differences < 0).sum()),
        wrong=wrongest_pairs(pairs, scores, examples, tokenizer),
    )


def preference_metrics(prediction: "EvalPrediction") -> dict[str, float]:
    """For `Trainer(compute_metrics=...)`: the figures to watch while a reward model learns.

    Args:
        prediction: Scores (G, K), the best answer's first, and labels (G, 2): K and margin.

    Returns:
        `loss` in nats per group without margin, smoothing and centring; `accuracy`, the share of
        the pairs whose better answer has the higher score; `ties_fraction`, that of equal scores.
    """
    found, given = prediction.predictions, prediction.label_ids
    scores = np.asarray(found[0] if isinstance(found, tuple) else found, dtype=np.float64)
    sizes = np.asarray(given[0] if isinstance(given, tuple) else given)[:, 0].astype(np.int64)
    rows = [row[:size] for row, size in zip(scores, sizes.tolist(), strict=True)]
    pairs = list_pairs(rows, [np.zeros(len(row), dtype=np.int64) for row in rows])
    return {
        "loss": pair_loss(pairs.differences, pairs.weights),
        "accuracy": float(np.average(pairs.differences > 0, weights=pairs.weights)),
        "ties_fraction": float(np.average(pairs.differences == 0, weights=pairs.weights)),
    }


def _answer_lengths(example: PreferenceExample) -> np.ndarray:
    return np.asarray([len(ids) - example.num_prompt_tokens for ids in example.input_ids])


def _calibration(pairs: Pairs, temperature: float) -> Calibration:
    return Calibration(
        temperature,
        brier_score(pairs.differences, pairs.weights, temperature),
        pair_calibration_error(pairs.differences, pairs.weights, temperature),
    )


def _share(name: str, pairs: Pairs, chosen: np.ndarray) -> Share:
    accuracy = np.average(pairs.differences[chosen] > 0, weights=pairs.weights[chosen])
    return Share(name, int(chosen.sum()), float(accuracy))


def _by_source(pairs: Pairs, examples: Sequence[PreferenceExample]) -> tuple[Share, ...]:
    source = np.asarray([example.comparison.source for example in examples])[pairs.group]
    return tuple(_share(name, pairs, source == name) for name in np.unique(source).tolist())


def _by_length(pairs: Pairs) -> tuple[Share, ...]:
    """Cut the pairs at the quartiles of their longer answer's length; empty parts are left out."""
    longest = pairs.lengths.max(axis=1)
    edges = np.unique(
        np.quantile(longest, np.linspace(0, 1, NUM_LENGTH_BINS + 1), method="nearest")
    )
    parts = []
    low = int(edges[0])
    for high in edges[1:].tolist() or [low]:
        chosen = (longest >= low) & (longest <= high)
        if chosen.any():
            parts.append(_share(f"{low} to {high} tokens", pairs, chosen))
        low = int(high) + 1
    return tuple(parts)


def _by_longer(pairs: Pairs, longer: np.ndarray) -> tuple[Share, ...]:
    names = {1: "the better answer is longer", -1: "it is shorter", 0: "both are equally long"}
    return tuple(
        _share(name, pairs, longer == sign)
        for sign, name in names.items()
        if (longer == sign).any()
    )
