"""The Trainer's seams for classifiers: loss, logits, early stopping.

Shapes: B batch, K classes, N examples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from transformers import EarlyStoppingCallback, Trainer

from sft_kit.data.labelled.rows import LabelledExample
from sft_kit.errors import ConfigError, Problem
from sft_kit.objectives.classification import (
    balanced_weights,
    classification_loss,
    rescaled_weights,
)
from sft_kit.settings import ClassifySettings
from sft_kit.training.metrics import of_the_model
from sft_kit.training.randomness import isolated_randomness


class ClassifierOutput(Protocol):
    """What a classifier's forward returns: logits (B, K) and, of a decoder, `lm_nll` (B)."""

    logits: torch.Tensor
    lm_nll: torch.Tensor | None


def classifier_loss(
    outputs: ClassifierOutput,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    lm_weight: float = 0.0,
) -> torch.Tensor:
    """Loss for `Trainer(compute_loss_func=...)`: L3 = L2 + lambda * L1.

    Args:
        outputs: With logits (B, K); `lm_nll` (B) where `lm_weight` is not 0.
        labels: (B) class ids, or (B, K) numbers that are 0 or 1.
        num_items_in_batch: Labels of the global batch, counted by the Trainer.
        class_weights: (K).
        label_smoothing: Share of each label that is spread over all classes.
        lm_weight: Lambda.

    Returns:
        Scalar in nats per label of the global batch.

    Source:
        Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section
        3.2; the mean over a row's tokens first, then over rows: openai/finetune-transformer-lm.
    """
    num_labels = labels.numel() if num_items_in_batch is None else num_items_in_batch
    loss = classification_loss(
        outputs.logits,
        labels,
        num_labels,
        class_weights=class_weights,
        label_smoothing=label_smoothing,
    )
    if lm_weight:
        assert outputs.lm_nll is not None
        labels_per_row = labels.numel() // labels.shape[0]
        loss = loss + lm_weight * outputs.lm_nll.sum() * labels_per_row / num_labels
    return loss


def make_loss(
    settings: ClassifySettings, examples: Sequence[LabelledExample], label_names: Sequence[str]
) -> Callable[..., torch.Tensor]:
    """Make the loss that the section `classify` describes, for `Trainer(compute_loss_func=...)`.

    Args:
        settings: Class weights, label smoothing, weight of the language model.
        examples: Training rows; their labels are counted for the class weights.
        label_names: Class id -> name.

    Raises:
        ConfigError: A weight is for a class that the data has not.
    """
    return partial(
        classifier_loss,
        class_weights=choose_class_weights(settings, examples, label_names),
        label_smoothing=settings.label_smoothing,
        lm_weight=settings.lm_weight,
    )


def choose_class_weights(
    settings: ClassifySettings, examples: Sequence[LabelledExample], label_names: Sequence[str]
) -> torch.Tensor | None:
    """Work out what `classify.class_weights` asks for.

    With one label a text these are weights of rows, with a mean of 1 over the training rows. With
    any number of labels they are weights of the answer yes; balanced, yes and no weigh the same.

    Args:
        settings: `class_weights`.
        examples: Training rows; their labels are counted.
        label_names: Class id -> name.

    Returns:
        (K) float32, or None where all weigh the same.

    Raises:
        ConfigError: A weight is for a class that the data has not.
    """
    chosen = settings.class_weights
    if chosen == "equal":
        return None
    labels = torch.as_tensor([example.label for example in examples])
    if isinstance(chosen, dict):
        _check_names(chosen, label_names)
        weights = torch.as_tensor([chosen.get(name, 1.0) for name in label_names])
    if labels.dim() == 2:
        num_yes = labels.sum(dim=0)
        balanced = (len(labels) - num_yes) / num_yes.clamp(min=1)
        balanced = balanced.masked_fill(balanced == 0, 1.0)  # yes everywhere is to be learnt too
        return balanced if chosen == "balanced" else weights
    counts = torch.bincount(labels, minlength=len(label_names))
    return balanced_weights(counts) if chosen == "balanced" else rescaled_weights(weights, counts)


def _check_names(weights: Mapping[str, float], label_names: Sequence[str]) -> None:
    accepted = f"accepts {', '.join(label_names)}"
    problems = [
        Problem("classify", f"class_weights.{name}", f"found {name!r}, {accepted}")
        for name in weights
        if name not in label_names
    ]
    if problems:
        raise ConfigError("these class weights can't be used", problems)


def class_logits(
    logits: torch.Tensor | tuple[torch.Tensor, ...],
    labels: torch.Tensor,  # noqa: ARG001  (the Trainer passes it)
) -> torch.Tensor:
    """For `Trainer(preprocess_logits_for_metrics=...)`: the class logits (B, K) alone."""
    return logits[0] if isinstance(logits, tuple) else logits


def early_stopping(settings: ClassifySettings) -> list[EarlyStoppingCallback]:
    """The callback that `classify.early_stopping_patience` asks for, or none."""
    patience = settings.early_stopping_patience
    return [] if patience is None else [EarlyStoppingCallback(patience)]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a classifier says of the held-out rows.

    Attributes:
        logits: (N, K), in the order of the rows.
        labels: (N) class ids, or (N, K) numbers.
        metrics: What the recipe's metrics function makes of them, keys with `eval_`.
    """

    logits: np.ndarray
    labels: np.ndarray
    metrics: dict[str, float]


def predict_held_out(trainer: Trainer) -> HeldOut | None:
    """Predict the held-out rows, without a trace in the random state; None where there are none."""
    dataset = trainer.eval_dataset
    if not dataset:
        return None
    args, strategy = trainer.args, trainer.args.train_sampling_strategy
    args.train_sampling_strategy = "random"  # transformers 5.23 groups held-out rows by length too
    try:
        with isolated_randomness():
            output = trainer.predict(dataset, metric_key_prefix="eval")  # type: ignore[arg-type]
    finally:
        args.train_sampling_strategy = strategy
    return HeldOut(
        np.asarray(output.predictions),
        np.asarray(output.label_ids),
        of_the_model(output.metrics or {}),
    )
