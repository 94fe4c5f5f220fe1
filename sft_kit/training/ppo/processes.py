"""Several processes that hold the same model: few collectives, the same on every process.

Gradients are summed by hand, once per update: no wrapper around the model, so that processes may
have different numbers of forwards. Nothing here does anything where there is one process.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed, nn

from sft_kit.errors import SftKitError

T = TypeVar("T")


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Add a tensor up over all processes, in place."""
    if PartialState().num_processes > 1:
        distributed.all_reduce(tensor, op=distributed.ReduceOp.SUM)
    return tensor


def largest_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Take the largest value over all processes, element by element, in place."""
    if PartialState().num_processes > 1:
        distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return tensor


def gathered(items: list[T]) -> list[T]:
    """Join the lists of all processes, in the order of their ranks."""
    return cast("list[T]", gather_object(items)) if PartialState().num_processes > 1 else items


def from_main_process(make: Callable[[], T]) -> T:
    """Let the main process make something and hand it to all.

    Raises:
        SftKitError: In every process, where the main one raised it: none waits for ever.
    """
    state = PartialState()
    if state.num_processes == 1:
        return make()
    box: list[tuple[T | None, SftKitError | None]] = [(None, None)]
    if state.is_main_process:
        try:
            box = [(make(), None)]
        except SftKitError as error:
            box = [(None, error)]
    broadcast_object_list(box)
    item, failure = box[0]
    if failure is not None:
        raise failure
    return cast("T", item)


def flat_gradient(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """Join the gradients of parameters into one float32 vector; 0 where there is none."""
    return torch.cat(
        [
            (torch.zeros_like(one) if one.grad is None else one.grad).float().flatten()
            for one in parameters
        ]
    )


def set_gradient(parameters: Sequence[nn.Parameter], flat: torch.Tensor) -> None:
    """Hand a vector out as the gradients of parameters."""
    pieces = torch.split(flat, [one.numel() for one in parameters])
    for one, piece in zip(parameters, pieces, strict=True):
        one.grad = piece.view_as(one).to(one.dtype)
