"""What happens around the Trainer's steps."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft_kit.data.corpus.corrupted import CorruptedRows
from sft_kit.data.corpus.streaming import StreamedRows
from sft_kit.errors import TrainingError
from sft_kit.run_log import append_log, cut_log
from sft_kit.training.randomness import RandomState, capture_random_state, restore_random_state


class LogFile(TrainerCallback):
    """Appends every logged figure to `log.jsonl` in the output folder, one JSON object a line."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Make the log of a resumed run that of one run."""
        if state.is_world_process_zero and state.global_step > 0:
            cut_log(Path(str(args.output_dir)), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Write one line: step, epoch and the figures."""
        if state.is_world_process_zero and logs is not None:
            figures = {"step": state.global_step, "epoch": state.epoch, **logs}
            append_log(Path(str(args.output_dir)), figures)


class IsolatedEvaluation(TrainerCallback):
    """Keeps evaluation from changing what is trained.

    An evaluation's data loader draws a seed from the global generator, and every dropout mask
    after it is another one. The state is set aside when a step ends with an evaluation to come, and
    put back when the evaluation is over.
    """

    def __init__(self) -> None:
        self._state: RandomState | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Set the random state aside for an evaluation before the first step."""
        self._state = capture_random_state() if args.eval_on_start else None

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Set the random state aside."""
        self._state = capture_random_state() if control.should_evaluate else None

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Set the random state aside."""
        self._state = capture_random_state() if control.should_evaluate else None

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Put the random state back."""
        if self._state is not None:
            restore_random_state(self._state)
            self._state = None


class StopOnNonFinite(TrainerCallback):
    """Stops before an update that would write NaN or infinity into the weights.

    The Trainer itself logs such a loss as 0.0 and goes on. fp16 training is left to its gradient
    scaler, which skips such steps on purpose.
    """

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """Check every gradient.

        Raises:
            TrainingError: Names the step and the first parameter hit.
        """
        if args.fp16 or model is None:
            return
        gradients = {
            name: parameter.grad
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        # One pass and one transfer from the GPU. It is exact: where the norm alone overflows, every
        # gradient is looked at.
        if not gradients or bool(get_total_norm(gradients.values()).isfinite()):
            return
        flags = [bool(torch.isfinite(gradient).all()) for gradient in gradients.values()]
        for name, is_finite in zip(gradients, flags, strict=True):
            if not is_finite:
                raise TrainingError(
                    f"step {state.global_step + 1}: the gradient of {name} is not finite, so the "
                    "weights were left as they were. Lower train.learning_rate, raise "
                    "train.warmup_steps, or look at the rows of this step; checkpoints in "
                    f"{args.output_dir} are from before"
                )


class FreshCorruption(TrainerCallback):
    """Tells the training rows which epoch it is, before they are asked for.

    A resumed run begins in the middle of an epoch, which counts as a fraction.
    """

    def __init__(self, rows: CorruptedRows | StreamedRows) -> None:
        self._rows = rows

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Set the epoch; a stream counts its passes itself."""
        if isinstance(self._rows, CorruptedRows):
            self._rows.epoch = int(state.epoch or 0)
