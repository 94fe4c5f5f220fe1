"""Losses and gradients that are not numbers: found before the update, and said where.

A gradient has to be looked at before it is clipped: clipping divides by the norm of all, and makes
every gradient NaN where one is.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from accelerate import PartialState
from torch import nn
from torch.nn.utils import get_total_norm
from transformers import Trainer

from sft_kit.errors import NonFiniteError
from sft_kit.training.ppo.processes import gathered, largest_over_processes
from sft_kit.training.row_numbers import name_rows

_MAX_ROWS = 32


@dataclass(frozen=True, slots=True)
class Finding:
    """What is not a number.

    Attributes:
        what: In words.
        rows: Names of the rows that it came from.
        is_own: It came up in this process, and not from another by way of the summed gradients.
    """

    what: str
    rows: tuple[str, ...]
    is_own: bool


@dataclass(slots=True)
class StepRecord:
    """What is known of the optimizer step under way, on this process.

    Attributes:
        rows: Numbers of the rows of each micro-batch, (rows,) int64; empty where not known.
        losses: Of the micro-batches that were gone through.
        longest_row: Tokens of the widest micro-batch.
        norm: Scalar norm of all gradients of the step together, once they were looked at; of this
            process's part where they are sharded.
    """

    rows: list[torch.Tensor] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    longest_row: int = 0
    norm: torch.Tensor | None = None

    def finding(
        self, model: nn.Module, dataset: object, engine_norm: float | None = None
    ) -> Finding | None:
        """Look for what is not a number, once all gradients of the step are there.

        Args:
            model: After its backward passes.
            dataset: Of the rows.
            engine_norm: Norm of all gradients, where DeepSpeed has used them up for its update.
        """
        bad = nonfinite_losses(self.losses)
        if engine_norm is None:
            self.norm = gradient_norm(model)
            gradient = nonfinite_gradient(model, self.norm)
        else:
            gradient = None if math.isfinite(engine_norm) else "some parameter"
        if not bad and gradient is None:
            return None
        blamed = [self.rows[index] for index in bad if index < len(self.rows)] or self.rows
        numbers = [int(number) for rows in blamed for number in rows]
        parameter = nonfinite_parameter(model) if engine_norm is None else None
        if parameter is not None:
            what = f"{parameter} was not finite before the step"
        elif bad:
            what = f"the loss is {float(self.losses[bad[0]])}"
        else:
            what = f"the gradient of {gradient} is not finite"
        return Finding(what, tuple(name_rows(dataset, numbers)), is_own=bool(bad))


def gathered_findings(found: Finding | None) -> list[Finding]:
    """Gather what any process has found, on all of them; all call this after the same step."""
    if PartialState().num_processes > 1:
        flag = torch.tensor(found is not None, dtype=torch.int, device=PartialState().device)
        if not int(largest_over_processes(flag)):
            return []
    findings = [one for one in gathered([found]) if one is not None]
    return [one for one in findings if one.is_own] or findings


def check_numbers(record: StepRecord, trainer: Trainer) -> None:
    """Check losses and gradients of a step whose micro-batches were all gone through.

    DeepSpeed makes its update within the last backward pass: it is stopped before it is saved.

    Raises:
        NonFiniteError: In every process, where one has found something.
    """
    model = cast("nn.Module", trainer.model)  # never the wrapped one
    engine = getattr(trainer.accelerator, "deepspeed_engine_wrapped", None)
    norm = None if engine is None else float(engine.get_global_grad_norm())
    findings = gathered_findings(record.finding(model, trainer.train_dataset, norm))
    if findings:
        step, folder = trainer.state.global_step + 1, str(trainer.args.output_dir)
        raise nonfinite_error(step, findings, folder, is_updated=engine is not None)


def gradient_norm(model: nn.Module) -> torch.Tensor | None:
    """Norm of all gradients of this process together, a scalar; None where there are none."""
    gradients = [_own_part(one.grad) for one in model.parameters() if one.grad is not None]
    return get_total_norm(gradients) if gradients else None


def nonfinite_gradient(model: nn.Module, norm: torch.Tensor | None) -> str | None:
    """Name the first parameter whose gradient is NaN or infinite.

    Args:
        model: After its backward passes.
        norm: Of all its gradients. It is one transfer from the GPU, and exact: where the norm alone
            overflows, every gradient is looked at.
    """
    if norm is None or bool(norm.isfinite()):
        return None
    named = ((name, one.grad) for name, one in model.named_parameters())
    return _first((name, _own_part(grad)) for name, grad in named if grad is not None)


def nonfinite_parameter(model: nn.Module) -> str | None:
    """Name the first parameter that has NaN or infinity in it."""
    return _first((name, _own_part(one)) for name, one in model.named_parameters())


def nonfinite_losses(losses: Sequence[torch.Tensor]) -> list[int]:
    """Number, from 0, the micro-batches whose loss is NaN or infinite."""
    flags = torch.stack([loss.reshape(()) for loss in losses]).isfinite()
    return [index for index, is_finite in enumerate(flags.tolist()) if not is_finite]


def nonfinite_error(
    step: int, findings: Sequence[Finding], folder: str, *, is_updated: bool = False
) -> NonFiniteError:
    """Say what was found at a step, in which rows, and what to do.

    Args:
        step: From 1.
        findings: Of every process that has one.
        folder: Of the run.
        is_updated: The step's update was made, by DeepSpeed; else the weights are as before.
    """
    rows = [row for finding in findings for row in finding.rows]
    shown = ", ".join(rows[:_MAX_ROWS])
    if len(rows) > _MAX_ROWS:
        shown += f" and {len(rows) - _MAX_ROWS} more"
    came_from = f" It came from these rows of the training data: {shown}." if rows else ""
    done = "were not saved any more" if is_updated else "were left as they were"
    return NonFiniteError(
        f"step {step}: {findings[0].what}, so the weights {done}.{came_from} "
        "Look at the rows, lower train.learning_rate or raise train.warmup_steps, and start anew; "
        f"checkpoints in {folder} are from before, and --resume goes on from the last one"
    )


def _own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that may be sharded."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if to_local else tensor


def _first(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None
