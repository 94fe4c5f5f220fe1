"""Language-modelling losses. Shapes: B batch, T tokens, V vocabulary, N labels."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

IGNORED = -100
"""Ignore index of torch's cross entropy: a label that is not learnt."""

_LOGITS_ON_CPU = 1 << 20
"""Logits looked at in one go: 4 MB, which stay in the cache."""
_LOGITS_ELSEWHERE = 1 << 27
_FEW_LOGITS = 1 << 17
"""So few that torch's own function, in fewer calls, is faster, and its memory does not matter."""


def token_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of every label given the tokens before it.

    Args:
        logits: (B, T, V); position t predicts token t + 1.
        labels: (B, T) token ids, `IGNORED` where nothing counts.

    Returns:
        (B, T) float32 in nats, aligned with `labels`: 0 at position 0, which nothing predicts, and
        wherever the label is ignored.
    """
    following = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    nll = cross_entropy(logits.flatten(0, 1), following.flatten())
    return nll.view(labels.shape).roll(1, dims=1)


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


def labelled_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of labels that stand where they are predicted.

    Args:
        logits: (N, V), one row for each label that counts, in their order.
        labels: (B, T); position t predicts `labels[:, t]`; `IGNORED` where nothing counts.

    Returns:
        (B, T) float32 in nats, 0 wherever the label is ignored.
    """
    counts = labels.ne(IGNORED)
    nll = logits.new_zeros(labels.shape, dtype=torch.float32)
    return nll.masked_scatter(counts, cross_entropy(logits, labels[counts]))


def labelled_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_labels: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross entropy per label, for labels that stand where they are predicted.

    Args:
        logits: (N, V), one row for each label that counts, in their order.
        labels: (B, T); `IGNORED` where nothing counts.
        num_labels: Labels of the *global* batch, as for `next_token_loss`. None: those of `labels`.

    Returns:
        Scalar float32 in nats per label; 0 where there is none.
    """
    found = labels[labels.ne(IGNORED)]
    total = cross_entropy(logits, found).sum()
    count = found.numel() if num_labels is None else num_labels
    return total / (count.clamp(min=1) if isinstance(count, torch.Tensor) else max(1, count))


def next_sentence_nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each pair's class: 0 follows, 1 does not.

    Args:
        logits: (B, 2).
        labels: (B,); `IGNORED` where nothing is asked.

    Returns:
        (B,) float32 in nats, 0 wherever the label is ignored.

    Source:
        Devlin et al. 2018, arXiv 1810.04805, section 3.1, task 2.
    """
    return functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each label, with half the memory of torch's own and in less time.

    torch's keeps the logits, as float32, their logarithmic softmax and two gradients of that size.
    Here it is the logits and their gradient; the rest is made for a few rows at a time.

    Args:
        logits: (N, V) of any float type; float32 is what it is computed in.
        labels: (N,) ids, `IGNORED` where nothing counts.

    Returns:
        (N,) float32 in nats, 0 wherever the label is ignored.
    """
    if logits.numel() <= _FEW_LOGITS:
        return functional.cross_entropy(
            logits.float(), labels, reduction="none", ignore_index=IGNORED
        )
    nll: torch.Tensor = _CrossEntropy.apply(logits, labels)  # type: ignore[no-untyped-call]
    return nll


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        places = labels.clamp(min=0)[:, None]
        size = _rows(logits)
        normalizers = torch.cat([part.float().logsumexp(-1) for part in torch.split(logits, size)])
        ctx.save_for_backward(logits, labels, normalizers)
        nll = normalizers - logits.gather(-1, places)[:, 0].float()
        return nll.masked_fill(labels.eq(IGNORED), 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        logits, labels, normalizers = ctx.saved_tensors
        places = labels.clamp(min=0)[:, None]
        gradient = gradient.masked_fill(labels.eq(IGNORED), 0.0)[:, None]
        result = torch.empty_like(logits)
        size = _rows(logits)
        parts = (result, logits, places, normalizers[:, None], gradient)
        for out, part, place, normalizer, weight in zip(
            *(torch.split(part, size) for part in parts), strict=True
        ):
            own = out if out.dtype == torch.float32 else None
            softmax = torch.sub(part.float(), normalizer, out=own).exp_().mul_(weight)
            softmax.scatter_add_(-1, place, -weight)
            if own is None:
                out.copy_(softmax)
        return result, None


def _rows(logits: torch.Tensor) -> int:
    """Rows looked at in one go."""
    room = _LOGITS_ON_CPU if logits.device.type == "cpu" else _LOGITS_ELSEWHERE
    return max(1, room // max(1, logits.shape[-1]))
