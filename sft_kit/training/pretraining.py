"""The Trainer's seams for pretraining: losses and figures.

Shapes: B batch, T tokens (of the decoder where there is one), N labels that count, V vocabulary.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from transformers import EvalPrediction, TrainingArguments

from sft_kit.models.labelled_outputs import LabelledOutput
from sft_kit.objectives.language import (
    IGNORED,
    labelled_loss,
    labelled_nll,
    next_sentence_nll,
)

Loss = Callable[[LabelledOutput, torch.Tensor, torch.Tensor | int | None], torch.Tensor]
_MAX_EXPONENT = 700.0


def make_pretraining_loss(args: TrainingArguments) -> Loss:
    """Make the loss for `Trainer(compute_loss_func=...)`: nats per label, plus those per pair.

    Both are shares of the mean over the global batch, so that accumulating gradients over unequal
    micro-batches equals one large batch. Pairs are counted by the rows that a global batch has: one
    that asks nothing costs nothing, and an epoch's last batch, if it is smaller, weighs less.

    Args:
        args: Says how many rows a global batch has.
    """
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    def loss(
        outputs: LabelledOutput,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        assert outputs.logits is not None
        total = labelled_loss(outputs.logits, labels, num_items_in_batch)
        if outputs.next_sentence_logits is None or outputs.next_sentence_label is None:
            return total
        pairs = next_sentence_nll(outputs.next_sentence_logits, outputs.next_sentence_label)
        return total + pairs.sum() / (len(pairs) if num_items_in_batch is None else rows)

    return loss


def label_figures(
    logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor | tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """For `Trainer(preprocess_logits_for_metrics=...)`: two numbers a token, not V logits.

    Args:
        logits: (N, V), perhaps with the pairs' logits (B, 2) and labels (B,).
        labels: (B, T); the Trainer puts the pairs' behind where the model's forward knows them.

    Returns:
        (B, 1 + T, 2): nats, and whether the likeliest answer is the label. Column 0 is of the pair,
        NaN where none is asked; the others are of the tokens, 0 where the label is ignored.
    """
    parts = logits if isinstance(logits, tuple) else (logits,)
    labels = labels[0] if isinstance(labels, tuple) else labels
    counts = labels.ne(IGNORED)
    figures = parts[0].new_full((labels.shape[0], 1 + labels.shape[1], 2), torch.nan).float()
    figures[:, 1:, 0] = labelled_nll(parts[0], labels)
    figures[:, 1:, 1] = 0
    figures[:, 1:, 1][counts] = parts[0].argmax(-1).eq(labels[counts]).float()
    if len(parts) > 1:
        _, pair_logits, pair_labels = parts
        right = pair_logits.argmax(-1).eq(pair_labels).float()
        pair = torch.stack([next_sentence_nll(pair_logits, pair_labels), right], dim=-1)
        asked = pair_labels.ne(IGNORED)[:, None]
        figures[:, 0] = torch.where(asked, pair, figures[:, 0])
    return figures


def pretraining_metrics(
    prediction: EvalPrediction, *, most_frequent: int | None = None
) -> dict[str, float]:
    """For `Trainer(compute_metrics=...)`: loss, perplexity and accuracy per label.

    Where pairs are asked also `next_sentence_accuracy` and both losses; `loss` is then their sum.

    Args:
        prediction: Figures of `label_figures`, and labels.
        most_frequent: A token; `unigram_accuracy` is that of always answering it.
    """
    figures = np.asarray(prediction.predictions, dtype=np.float64)
    ids = prediction.label_ids
    labels = np.asarray(ids[0] if isinstance(ids, tuple) else ids)
    counts = labels != IGNORED
    if not counts.any():
        return {}
    nll, accuracy = (float(number) for number in figures[:, 1:][counts].mean(axis=0))
    perplexity = math.exp(min(nll, _MAX_EXPONENT))
    metrics = {"loss": nll, "perplexity": perplexity, "accuracy": accuracy}
    if most_frequent is not None:
        metrics["unigram_accuracy"] = float((labels[counts] == most_frequent).mean())
    pairs = figures[:, 0][~np.isnan(figures[:, 0, 0])]
    if len(pairs):
        pair_nll, pair_accuracy = (float(number) for number in pairs.mean(axis=0))
        metrics |= {"next_sentence_loss": pair_nll, "next_sentence_accuracy": pair_accuracy}
        metrics |= {"masked_loss": nll, "loss": nll + pair_nll}
    return metrics
