"""Losses of classifiers. Shapes: B batch, K classes, T tokens, H hidden, V vocabulary."""

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sft_kit.objectives.language import IGNORED

_CHUNK_TOKENS = 512
"""Tokens whose logits over the vocabulary are in memory at the same time."""


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    num_labels: torch.Tensor | int | None = None,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross entropy of one class a row, or binary cross entropy of any number of classes a row.

    Args:
        logits: (B, K).
        labels: (B,) class ids; or (B, K) floats, 1 where the row has the class and 0 elsewhere.
            `IGNORED` where nothing counts.
        num_labels: Labels of the *global* batch, all micro-batches and processes: rows, or rows
            times K. The loss of a micro-batch is then its share of the global mean, so that
            accumulating gradients over unequal micro-batches equals one large batch. None: those
            of `labels`.
        class_weights: (K,) weight of a row by its class. With any number of classes a row: weight
            of the answer yes, as in torch's `pos_weight`; no always weighs 1.
        label_smoothing: Share of each label that is spread evenly over all classes, where each
            class's part weighs by the weight of that class, not of the row's; or over yes and no.

    Returns:
        Scalar float32 in nats per label.
    """
    counts = labels.ne(IGNORED)
    if num_labels is None:
        num_labels = counts.sum()
    weights = None if class_weights is None else class_weights.to(logits.device, torch.float32)
    if not labels.is_floating_point():
        total = functional.cross_entropy(
            logits.float(),
            labels,
            weight=weights,
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
        return total / num_labels
    answers = labels.float() * (1.0 - label_smoothing) + label_smoothing / 2
    terms = functional.binary_cross_entropy_with_logits(
        logits.float(), answers, pos_weight=weights, reduction="none"
    )
    return terms.masked_fill(~counts, 0.0).sum() / num_labels


def balanced_weights(counts: torch.Tensor) -> torch.Tensor:
    """Weigh each class by the inverse of its frequency, `N / (K n_k)`.

    Args:
        counts: (K,) training rows of each class.

    Returns:
        (K,) float32; their mean over the training rows is 1. A class without rows weighs nothing,
        and is not one of the K.
    """
    counts = counts.float()
    present = counts > 0
    weights = counts.sum() / (present.sum() * counts.clamp(min=1.0))
    return weights.masked_fill(~present, 0.0)


def rescaled_weights(weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Rescale class weights so that their mean over the training rows is 1.

    Otherwise they would act as a factor on the learning rate as well.

    Args:
        weights: (K,) in proportion to each other; none is negative.
        counts: (K,) training rows of each class.

    Returns:
        (K,) float32.

    Raises:
        ValueError: A weight is negative or not finite, or no row weighs anything.
    """
    weights, counts = weights.float(), counts.float()
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ValueError(f"class weights must be finite and not negative, found {weights.tolist()}")
    total = (weights * counts).sum()
    if not bool(total > 0):
        raise ValueError("no training row has a class whose weight is above 0")
    return weights * counts.sum() / total


def last_token_index(attention_mask: torch.Tensor) -> torch.Tensor:
    """Find the last real token of every row, whichever side is padded.

    Args:
        attention_mask: (B, T), nonzero at real tokens.

    Returns:
        (B,) int64; 0 for a row without real tokens.
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask.ne(0) * positions).amax(dim=1)


def mean_token_nll(
    hidden: torch.Tensor,
    embedding: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean negative log-likelihood of each row's tokens, given those before them.

    This is L1 of the GPT paper as its code computes it: mean over a row's tokens, so that a long
    text counts as much as a short one. Logits are made for real tokens only, chunk by chunk, and
    made again in the backward pass.

    Args:
        hidden: (B, T, H) last hidden states; position t predicts token t + 1.
        embedding: (V, H) embeddings that are the output layer's weights too.
        input_ids: (B, T).
        attention_mask: (B, T), nonzero at real tokens. None: all are real.

    Returns:
        (B,) float32 in nats per token; 0 for a row of one token, which nothing predicts.

    Source:
        Radford et al. 2018, equation 1 and section 3.2; openai/finetune-transformer-lm,
        `train.py`, `model`.
    """
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    is_predicted = real[:, 1:].ne(0) & real[:, :-1].ne(0)
    states = hidden[:, :-1][is_predicted]
    targets = input_ids[:, 1:][is_predicted]
    parts = [
        checkpoint(_nll, some, embedding, ids, use_reentrant=False, preserve_rng_state=False)
        for some, ids in zip(
            torch.split(states, _CHUNK_TOKENS), torch.split(targets, _CHUNK_TOKENS), strict=True
        )
    ]
    nll = torch.zeros(is_predicted.shape, dtype=torch.float32, device=hidden.device)
    nll = nll.masked_scatter(is_predicted, torch.cat(parts))
    return nll.sum(dim=1) / is_predicted.sum(dim=1).clamp(min=1)


def _nll(states: torch.Tensor, embedding: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = functional.linear(states, embedding.to(states.dtype)).float()
    return functional.cross_entropy(logits, targets, reduction="none")
