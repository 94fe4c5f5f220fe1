"""Ending a training where it can be resumed exactly: after a step, with what was still to do."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from sft_kit.errors import StoppedError
from sft_kit.stopping import StopRequest
from sft_kit.training.ppo.processes import largest_over_processes

PROMISE = "finishing the step, then saving a checkpoint"


class EvaluationAbandonedError(Exception):
    """An evaluation that was not gone through with, because a stop was asked for."""


def agreed_signal(request: StopRequest) -> int:
    """Signal number that any process was asked to stop with, the same on every process."""
    if PartialState().num_processes == 1:
        return request.signal_number
    own = torch.tensor(request.signal_number, device=PartialState().device)
    return int(largest_over_processes(own))


def stopped_error(
    signal_number: int, num_done: int, folder: str, *, num_new: int, unit: str = "step"
) -> StoppedError:
    """Say where a training that was asked to stop stands.

    Args:
        signal_number: What asked.
        num_done: Steps done, those of earlier sessions too.
        folder: Of the run.
        num_new: Steps done in this session.
        unit: What they are called.
    """
    name, way = signal.Signals(signal_number).name, "the same command with --resume goes on"
    if not num_new:
        return StoppedError(f"stopped by {name} before {unit} {num_done + 1}: {way}", signal_number)
    where = f"{folder}/checkpoint-{num_done}"
    told = f"stopped by {name} after {unit} {num_done}: {where} is saved, and {way} from there"
    return StoppedError(told, signal_number)


@dataclass(eq=False)
class StopWhenAsked(TrainerCallback, ExportableState):
    """Ends training after the step in which a stop was asked for, with a checkpoint.

    What is due at that step besides, its evaluation above all, is put off to the resumed run. With
    several processes all end after the same step.

    Attributes:
        take_up: Called when training begins; does what the run that is resumed has put off.
        request: Of the signals; a new one for each training.
        signal_number: What training ends for, the same on every process; 0 while it goes on.
        evaluation: Put off.
        save: Was due anyway.
        saved: Step of the last checkpoint, and what it says is put off.
        is_evaluating: An evaluation within training is under way.
    """

    take_up: Callable[[], None]
    request: StopRequest = field(default_factory=StopRequest)
    signal_number: int = 0
    evaluation: bool = False
    save: bool = False
    saved: tuple[int, bool] = (-1, False)
    is_evaluating: bool = False

    def state(self) -> dict[str, dict[str, object]]:
        """What a checkpoint keeps."""
        kept: dict[str, object] = {"evaluation": self.evaluation, "save": self.save}
        return {"args": {}, "attributes": kept}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Do what was put off."""
        self.take_up()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """End after this step, and leave its evaluation and checkpoint to the end of the epoch."""
        if self._is_asked(control):
            self._put_off(control)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Save what a run that ends needs; also called where training ends within an epoch."""
        if not self._is_asked(control):
            return
        if float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps:
            self._put_off(control)
        else:  # not an epoch's end: nothing that is done once an epoch is due
            control.should_log = control.should_evaluate = False
        control.should_save = self.saved != (state.global_step, self.evaluation)
        forget_best_of_unplanned(state, is_planned=self.save)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Leave an evaluation.

        Raises:
            EvaluationAbandonedError: A stop was asked for.
        """
        if self.is_evaluating and self._is_asked(control):
            raise EvaluationAbandonedError

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Note what is saved, and end if a stop was asked for meanwhile."""
        self.saved = (state.global_step, self.evaluation)
        self._is_asked(control)

    def put_off_evaluation(self, control: TrainerControl) -> None:
        """Put off the evaluation that was abandoned, and save before it instead of after it."""
        control.should_evaluate = True
        self._put_off(control)
        control.should_save = True

    def _is_asked(self, control: TrainerControl) -> bool:
        self.signal_number = self.signal_number or agreed_signal(self.request)
        if self.signal_number:
            control.should_training_stop = True
        return bool(self.signal_number)

    def _put_off(self, control: TrainerControl) -> None:
        self.evaluation |= control.should_evaluate
        self.save |= control.should_save
        control.should_evaluate = control.should_save = False


def forget_best_of_unplanned(state: TrainerState, *, is_planned: bool) -> None:
    """Keep a checkpoint that a straight run would not have from becoming the best model."""
    if not is_planned and state.best_global_step == state.global_step:
        state.best_global_step = None
