"""Where a run stands beyond weights, optimizer and random state: callbacks, loss not yet logged."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import nested_gather

_OWN = "SafeTrainer"


@dataclass(frozen=True, slots=True)
class Unlogged:
    """The loss of the steps since the last logged one.

    Upstream forgets it: the first line of a resumed run would be the mean of fewer steps.

    Attributes:
        loss: Sum over these steps, mean over the processes.
        last_logged_step: Step of the last line.
    """

    loss: float
    last_logged_step: int

    @classmethod
    def of(cls, trainer: Trainer) -> "Unlogged":
        """Read it; all processes call this."""
        loss = nested_gather(trainer._tr_loss, trainer.args.parallel_mode).mean().item()
        return cls(float(loss), trainer._globalstep_last_logged)

    @classmethod
    def from_state(cls, states: Mapping[str, Any]) -> "Unlogged | None":
        """Find it in what a checkpoint holds; None where it is not of this class."""
        stored = states.get(_OWN)
        return None if stored is None else cls(**stored["attributes"])

    def as_state(self) -> dict[str, dict[str, Any]]:
        """Write it as the states of callbacks are written."""
        return {_OWN: {"args": {}, "attributes": asdict(self)}}

    def put_back(self, trainer: Trainer) -> None:
        """Let the next line count these steps; the mean of the session stays that of its own."""
        trainer._tr_loss += self.loss
        trainer._total_loss_scalar -= self.loss
        trainer._globalstep_last_logged = self.last_logged_step


def callback_states(callbacks: Sequence[ExportableState]) -> dict[str, Any]:
    """Gather the states of callbacks by class name; a list where several are of one class."""
    states: dict[str, Any] = {}
    for callback in callbacks:
        states.setdefault(type(callback).__name__, []).append(callback.state())
    return {name: found[0] if len(found) == 1 else found for name, found in states.items()}


def restore_callbacks(callbacks: Iterable[ExportableState], states: Mapping[str, Any]) -> None:
    """Give callbacks the attributes that they had, in their order where several are of one class.

    Their settings stay those of now.
    """
    left = {
        name: list(found) if isinstance(found, list) else [found] for name, found in states.items()
    }
    for callback in callbacks:
        stored = left.get(type(callback).__name__)
        if stored:
            for name, value in stored.pop(0)["attributes"].items():
                setattr(callback, name, value)


def has_stopped_early(callbacks: Iterable[TrainerCallback]) -> bool:
    """Whether early stopping has run out of patience."""
    return any(
        isinstance(one, EarlyStoppingCallback)
        and one.early_stopping_patience_counter >= one.early_stopping_patience
        for one in callbacks
    )


def logged_loss(history: Sequence[Mapping[str, float]]) -> float:
    """Mean loss per step over all lines of a log; 0 where there are none."""
    total, last = 0.0, 0
    for entry in history:
        if "loss" in entry:
            total += entry["loss"] * (entry["step"] - last)
            last = int(entry["step"])
    return total / last if last else 0.0
