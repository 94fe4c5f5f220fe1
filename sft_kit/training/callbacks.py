"""What happens around the Trainer's steps."""

from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sft_kit.data.corpus.corrupted import CorruptedRows
from sft_kit.data.corpus.streaming import StreamedRows
from sft_kit.run_log import append_log, cut_log


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
            num_last = sum(entry["step"] == state.global_step for entry in state.log_history)
            cut_log(Path(str(args.output_dir)), state.global_step, num_last)

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
