"""Cross entropy of a frozen output layer, a few rows of logits at a time.

Shapes: N labels, H hidden, V vocabulary.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

_ROWS = 512
"""Rows multiplied at once, at most: each product rearranges the whole weight first."""
_MULTIPLE = 64
"""Rows are filled up to a multiple of it: oneDNN keeps kernels for each number of rows."""
_ROOM = 1 << 26
"""Bytes of logits at most, unless they are of 128 rows."""
_LOGITS_ON_CPU = 1 << 20
"""Logits looked at in one go: 4 MB as float32, which stay in the cache."""
_LOGITS_ELSEWHERE = 1 << 27


# A loop over as many rows as have labels: compiled, it would be compiled anew for each number.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Negative log-likelihood of each label under `softmax(hidden @ weight.T + bias)`.

    No more than a few rows of the (N, V) logits are ever there. The gradient of the hidden states
    is made in the forward already, from the logits that are at hand; it is exact for any gradient
    of the losses, because each loss depends on its own row only. None reaches `weight` and `bias`.

    Products are in the type of the autocast, where there is one, else of `hidden`; sums, exponents
    and losses in float32.

    Args:
        hidden: (N, H).
        weight: (V, H).
        labels: (N,) int64, each in [0, V).
        bias: (V,).

    Returns:
        (N,) float32 in nats.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    bias = None if bias is None else bias.to(dtype)
    losses: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden.to(dtype), weight.to(dtype), labels, bias
    )
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        count = len(hidden)
        filled = -count % _MULTIPLE
        hidden, labels = (
            functional.pad(hidden, (0, 0, 0, filled)),
            functional.pad(labels, (0, filled)),
        )
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = _rows_at_once(weight)
        room = hidden.new_empty(min(size, len(hidden)), len(weight))
        for rows in _slices(len(hidden), size):
            logits = torch.mm(hidden[rows], weight.t(), out=room[: len(labels[rows])])
            if bias is not None:
                logits += bias
            _to_errors(logits, labels[rows], losses[rows])
            if gradient is not None:
                torch.mm(logits, weight, out=gradient[rows])
        ctx.save_for_backward(None if gradient is None else gradient[:count])
        return losses[:count]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None].to(gradient.dtype), None, None, None


def _rows_at_once(weight: torch.Tensor) -> int:
    return min(_ROWS, max(128, _ROOM // (len(weight) * weight.element_size())))


def _to_errors(logits: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor) -> None:
    """Turn logits into the gradient of their losses, in place: probability minus one at the label.

    Args:
        logits: (N, V); overwritten.
        labels: (N,).
        losses: (N,) float32; filled.
    """
    room = _LOGITS_ON_CPU if logits.device.type == "cpu" else _LOGITS_ELSEWHERE
    for rows in _slices(len(logits), max(1, room // logits.shape[1])):
        places = labels[rows, None]
        part = logits[rows].float()
        highest = part.amax(-1, keepdim=True)
        at_label = part.gather(1, places)
        total = part.sub_(highest).exp_().sum(-1, keepdim=True)
        losses[rows] = (total.log() + highest - at_label)[:, 0]
        part.div_(total).scatter_add_(1, places, part.new_full(places.shape, -1.0))
        logits[rows] = part


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
