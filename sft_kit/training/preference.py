"""The Trainer's seams for reward models: loss, scores by group, held-out scores, their scale.

Shapes: B answers, G groups of answers to one prompt, K answers of the largest group, N groups of a
whole data set.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Protocol, cast

import numpy as np
import torch
from accelerate.utils import pad_across_processes
from transformers import Trainer

from sft_kit.errors import TrainingError
from sft_kit.models.reward_model import ScoreScale
from sft_kit.objectives.preference import pairwise_loss
from sft_kit.settings import RewardSettings
from sft_kit.training.metrics import of_the_model
from sft_kit.training.randomness import isolated_randomness


class RewardOutput(Protocol):
    """What a reward model's forward returns: logits (B, 1)."""

    logits: torch.Tensor


def reward_loss(
    outputs: RewardOutput,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    label_smoothing: float = 0.0,
    center_weight: float = 0.0,
) -> torch.Tensor:
    """Loss for `Trainer(compute_loss_func=...)`.

    Args:
        outputs: With logits (B, 1).
        labels: (G, 2) number of answers and margin of each group.
        num_items_in_batch: Entries of the labels of the global batch, counted by the Trainer.
        label_smoothing: Share of the preferences that are taken to be wrong.
        center_weight: Weight of the squared sum of a pair's scores.

    Returns:
        Scalar in nats per group of the global batch.
    """
    num_groups = None if num_items_in_batch is None else num_items_in_batch / labels.shape[1]
    return pairwise_loss(
        outputs.logits,
        labels,
        num_groups=num_groups,
        label_smoothing=label_smoothing,
        center_weight=center_weight,
    )


def make_reward_loss(settings: RewardSettings) -> Callable[..., torch.Tensor]:
    """Make the loss that the section `reward` describes, for `Trainer(compute_loss_func=...)`."""
    return partial(reward_loss, **asdict(settings))


def scores_by_group(
    logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor
) -> torch.Tensor:
    """For `Trainer(preprocess_logits_for_metrics=...)`: one row a group, as the labels have.

    Args:
        logits: (B, 1).
        labels: (G, 2) number of answers and margin of each group.

    Returns:
        (G, K) float32, the best answer's score first; 0 beyond a group's answers. K is that of all
        processes, which gather these as they are.
    """
    scores = (logits[0] if isinstance(logits, tuple) else logits).float().reshape(-1)
    sizes = labels[:, 0].long()
    places = torch.arange(int(sizes.max()), device=scores.device)
    found = scores.new_zeros(len(sizes), len(places))
    found = found.masked_scatter(places < sizes.unsqueeze(1), scores)
    return cast("torch.Tensor", pad_across_processes(found, dim=1))


@dataclass(frozen=True, slots=True)
class ScoredGroups:
    """What a reward model says of the answers of a data set.

    Attributes:
        scores: (N, K) in the order of the rows; what is beyond a group's answers is undefined.
        labels: (N, 2) number of answers and margin of each group.
        metrics: What the recipe's metrics function makes of them, keys with a prefix.
    """

    scores: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]

    def by_group(self) -> list[np.ndarray]:
        """The scores of each group, (its K,), without what is beyond."""
        sizes = self.labels[:, 0].astype(np.int64).tolist()
        return [row[:size] for row, size in zip(self.scores, sizes, strict=True)]


def score_held_out(trainer: Trainer) -> ScoredGroups | None:
    """Score the held-out rows, without a trace in the random state; None where there are none."""
    return _score(trainer, trainer.eval_dataset, "eval") if trainer.eval_dataset else None


def measure_scale(trainer: Trainer, held_out: ScoredGroups | None) -> ScoreScale:
    """Measure where the scores of chosen answers lie.

    Args:
        trainer: Trained.
        held_out: From `score_held_out`. None: the training rows are scored.

    Raises:
        TrainingError: A score is not a number.
    """
    scored = held_out or _score(trainer, trainer.train_dataset, "train")
    chosen = scored.scores[:, 0].astype(np.float64)
    if not np.isfinite(chosen).all():
        raise TrainingError(
            "the scores of chosen answers are not finite: the training has diverged; train again "
            "with a lower train.learning_rate"
        )
    rows = "training" if held_out is None else "held-out"
    return ScoreScale(float(chosen.mean()), float(chosen.std()), len(chosen), rows)


def _score(trainer: Trainer, dataset: object, prefix: str) -> ScoredGroups:
    with isolated_randomness():
        output = trainer.predict(dataset, metric_key_prefix=prefix)  # type: ignore[arg-type]
    return ScoredGroups(
        np.asarray(output.predictions),
        np.asarray(output.label_ids),
        of_the_model(output.metrics or {}),
    )
