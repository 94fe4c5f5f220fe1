"""Language-modelling losses. Shapes: B batch, T tokens, V vocabulary."""

import torch
from torch.nn import functional

IGNORED = -100
"""Ignore index of torch's cross entropy: a label that is not learnt."""


def token_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of every label given the tokens before it.

    Args:
        logits: (B, T, V); position t predicts token t + 1.
        labels: (B, T) token ids, `IGNORED` where nothing counts.

    Returns:
        (B, T) float32 in nats, aligned with `labels`: 0 at position 0, which nothing predicts, and
        wherever the label is ignored.
    """
    targets = labels[:, 1:]
    nll = functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return functional.pad(nll.view(targets.shape), (1, 0))


def next_token_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_labels: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross entropy per supervised token.

    Args:
        logits: (B, T, V); position t predicts token t + 1.
        labels: (B, T) token ids, `IGNORED` where nothing counts.
        num_labels: Supervised tokens of the *global* batch, all micro-batches and processes. The
            loss of a micro-batch is then its share of the global mean, so that accumulating
            gradients over unequal micro-batches equals one large batch. None: those of `labels`.

    Returns:
        Scalar float32 in nats per token.
    """
    if num_labels is None:
        num_labels = labels[:, 1:].ne(IGNORED).sum()
    return token_nll(logits, labels).sum() / num_labels
