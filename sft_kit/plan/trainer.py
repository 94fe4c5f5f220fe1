"""A Trainer that tries a few batches out instead of training, and tells what they cost."""

import copy
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback
from transformers.trainer_utils import SaveStrategy, TrainOutput

from sft_kit.devices import free_memory_bytes
from sft_kit.disk import folder_bytes, free_bytes
from sft_kit.host_memory import give_back_memory
from sft_kit.manifest import force_to_disk
from sft_kit.models.padding_free import leaves_out_padding
from sft_kit.plan.course import Batch, Sampled, spread_batches
from sft_kit.plan.recorder import Recorder
from sft_kit.plan.shapes import Kind, Shape
from sft_kit.training.length_groups import group_rows
from sft_kit.training.trainer import SafeTrainer

_LOOKED_AT_SECONDS = 20.0
_MAX_BATCHES = 5_000
_MIXED_SECONDS = 5.0
"""Of the main thread: on a busy machine they last longer, but no longer than twice that."""
_MIN_MIXED = 4
_MAX_MIXED = 60
_MANY = 10_000
"""Steps and epochs that are never reached."""
_MAX_SHARE = 0.9
_MAX_WRITTEN_BYTES = 2_000_000_000
_PROBE_BYTES = 128_000_000


class MeasuringTrainer(SafeTrainer):
    """Goes through the steps of the real Trainer over batches of its own choice.

    The narrowest batches come first and the widest last, for the peaks of memory; then batches as
    the run would have them, for the time; and the widest once more, for what has stayed of those.
    Evaluations see a part of the rows.

    Args:
        recorder: Takes the figures.
        *args: As for `SafeTrainer`.
        **kwargs: As for `SafeTrainer`.
    """

    def __init__(self, recorder: Recorder, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._recorder = recorder
        self._num_steps = 0
        self._sampled = Sampled(leaves_out_padding(self.model))
        self._rising: list[Batch] = []
        self._mixed: Iterator[Batch] = iter(())
        self._kinds: list[str] = []  # of the micro-batches of the step under way
        self._num_mixed = 0
        self._mixed_since: tuple[float, float] | None = None
        self._seen_widest_again = self._is_closing = False
        self._step_began: tuple[float, float] | None = None
        self._in_micro_steps = [0.0, 0.0]
        self._last_padded, self._last_peak, self._peak_before = 1, 0, 0

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:  # noqa: ANN401
        """Try batches, an evaluation and a checkpoint."""
        self._recorder.phase("started")
        trained = super().train(*args, **kwargs)
        give_back_memory()  # or what the steps have freed would count for what follows
        if self.eval_dataset:
            self.evaluate()
        self._write_once()
        self._recorder.phase("trained")
        return trained

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:  # noqa: ANN401
        """Note how long the run would be; here it ends when enough has been tried."""
        epochs, *sizes, num_steps = super().set_initial_training_values(*args, **kwargs)
        self._num_steps = num_steps
        return max(epochs, _MANY), *sizes, max(num_steps, _MANY)

    def _run_epoch(self, **where: Any) -> None:  # type: ignore[override]  # noqa: ANN401
        """Look at the batches of the first epoch before any of them is trained on."""
        if not self._sampled.shapes:
            self._look_at(where["train_dataloader"], where["num_update_steps_per_epoch"])
            self._rising, self._mixed = self._sampled.rising(), self._sampled.mixed()
        super()._run_epoch(**where)

    def _look_at(self, batches: Any, steps_per_epoch: int) -> None:  # noqa: ANN401
        """Count the tokens of an epoch's batches, of a long one those of its beginning."""
        deadline = time.perf_counter() + _LOOKED_AT_SECONDS
        with self._recorder.part() as part:
            for batch in islice(batches, _MAX_BATCHES):
                self._sampled.see(batch)
                if time.perf_counter() > deadline:
                    break
        later = self._later_kinds(batches, steps_per_epoch, deadline)
        counts = count_events(self.args, self.state, self._num_steps, steps_per_epoch)
        self._recorder.write(
            "batches",
            part,
            shapes=[_described(shape) for shape in self._sampled.shapes],
            later_kinds=sorted(later),
            num_steps=self._num_steps,
            stops_early=any(map(_stops_early, self.callback_handler.callbacks)),
            steps_per_epoch=steps_per_epoch,
            accumulation=self.args.gradient_accumulation_steps,
            micro_batch=self.args.per_device_train_batch_size,
            eval_batch=self.args.per_device_eval_batch_size if self.eval_dataset else 0,
            num_evaluations=counts[0] if self.eval_dataset else 0,
            num_checkpoints=counts[1],
            kept_checkpoints=self.args.save_total_limit,
            num_processes=self.args.world_size,
            gradient_bytes=_gradient_bytes(cast("nn.Module", self.model)),
        )

    def _later_kinds(
        self, batches: Iterable[Batch], steps_per_epoch: int, deadline: float
    ) -> set[Kind]:
        """Look for what later epochs bring that the first did not, until one brings nothing.

        Rows that are shuffled anew meet others, and a batch is as wide as its longest.
        """
        first = {shape.kind for shape in self._sampled.shapes}
        seen = set(first)
        num_epochs = self._num_steps / steps_per_epoch
        num_left = round(len(self._sampled.shapes) * (num_epochs - 1))
        for epoch in count(1):
            num_before = len(seen)
            order_epoch(batches, self.args, epoch)
            for batch in islice(batches, max(num_left, 0)):
                if time.perf_counter() > deadline:
                    break
                seen.add(self._sampled.shape_of(batch).kind)
                num_left -= 1
            if len(seen) == num_before:
                break
        order_epoch(batches, self.args, 0)
        return seen - first

    def get_batch_samples(
        self,
        epoch_iterator: Any,  # noqa: ANN401, ARG002
        num_batches: int,
        device: torch.device,
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Get the micro-batches of a step from the course."""
        chosen = [self._next_batch() for _ in range(num_batches)]
        self._step_began, self._in_micro_steps = _now(), [0.0, 0.0]
        return super().get_batch_samples(iter(chosen), num_batches, device)

    def _next_batch(self) -> Batch:
        if self._rising:
            self._kinds.append("rising")
            return dict(self._rising.pop(0))
        if self.state.global_step and not self._seen_widest_again:
            # The optimizer has its states now, and the allocator its holes.
            self._seen_widest_again = True
            self._kinds.append("rising")
            assert self._sampled.widest is not None
            return dict(self._sampled.widest)
        self._num_mixed += 1
        self._kinds.append("mixed")
        self._mixed_since = self._mixed_since or (time.perf_counter(), time.thread_time())
        return dict(next(self._mixed))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        """Take the time and the peak of a micro-batch."""
        shape = self._sampled.shape_of(args[1])
        with self._recorder.part() as part:
            loss = super().training_step(*args, **kwargs)
        self._in_micro_steps[0] += part.seconds
        self._in_micro_steps[1] += part.cpu_seconds
        kind = self._kinds.pop(0)
        self._recorder.write("micro_step", part, shape=_described(shape), kind=kind)
        self._last_padded = shape.padded
        self._last_peak = part.device_bytes or part.host_bytes
        self._peak_before = self._peak_before or self._last_peak
        return loss

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Log as the run would; evaluations and checkpoints are measured by themselves."""
        self.control.should_evaluate = self.control.should_save = False
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self._step_began is None:  # the end of an epoch, not of a step
            return
        host, device = self._recorder.peaks()
        wall, cpu = _now()
        self._recorder.write(
            "step",
            seconds=wall - self._step_began[0] - self._in_micro_steps[0],
            cpu_seconds=cpu - self._step_began[1] - self._in_micro_steps[1],
            host_bytes=host,
            device_bytes=device,
        )
        self._step_began = None
        self.control.should_training_stop = self._is_enough()

    def _is_enough(self) -> bool:
        if self._rising:
            return self._would_not_fit(self._sampled.shape_of(self._rising[0]))
        if self._mixed_since is None or self._num_mixed < _MIN_MIXED:
            return False
        wall, own = self._mixed_since
        passed = time.perf_counter() - wall, time.thread_time() - own
        is_late = passed[0] > 2 * _MIXED_SECONDS or passed[1] > _MIXED_SECONDS
        if self._is_closing or not (is_late or self._num_mixed >= _MAX_MIXED):
            return self._is_closing
        self._is_closing = True
        self._rising = self._sampled.closing()
        return not self._rising

    def _would_not_fit(self, shape: Shape) -> bool:
        """Whether the next batch, by the last one, would take more memory than there is."""
        grown = self._last_peak - self._peak_before
        needed = grown * (shape.padded / self._last_padded - 1)
        return needed > _MAX_SHARE * free_memory_bytes(self.args.device)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ANN401
        """Evaluate a few batches, spread over the held-out rows."""
        rows = self.eval_dataset
        self.eval_dataset = spread_batches(rows, self.args.eval_batch_size)
        try:
            with self._recorder.part() as part:
                metrics = super().evaluate(*args, **kwargs)
        finally:
            chosen, self.eval_dataset = self.eval_dataset, rows
        num_rows = len(cast("Sequence[object]", rows)) if chosen is not rows else 1
        num_chosen = len(cast("Sequence[object]", chosen)) if chosen is not rows else 1
        self._recorder.write("evaluation", part, rows_per_measured=num_rows / num_chosen)
        return metrics

    def _write_once(self) -> None:
        """Write a checkpoint and delete it; one of many gigabytes is only counted."""
        folder = Path(str(self.args.output_dir))
        num_bytes = self._estimated_bytes()
        if num_bytes > min(_MAX_WRITTEN_BYTES, free_bytes(folder) // 2):
            probe = folder / "probe"
            with self._recorder.part() as part:
                probe.write_bytes(bytes(_PROBE_BYTES))
                force_to_disk(probe)
            probe.unlink()
            part.seconds *= num_bytes / _PROBE_BYTES
            part.cpu_seconds *= num_bytes / _PROBE_BYTES
        else:
            with self._recorder.part() as part:
                self._save_checkpoint(self.model_wrapped, None)
            written = folder / f"checkpoint-{self.state.global_step}"
            num_bytes = folder_bytes(written)
            shutil.rmtree(written)
        self._recorder.write("checkpoint", part, bytes=num_bytes)


def order_epoch(batches: Any, args: TrainingArguments, epoch: int) -> None:  # noqa: ANN401
    """Make batches be drawn as in an epoch of the run."""
    if hasattr(batches, "set_epoch"):
        batches.set_epoch(epoch)
    group_rows(batches, args, epoch)


def count_events(
    args: TrainingArguments, state: TrainerState, num_steps: int, steps_per_epoch: int
) -> tuple[int, int]:
    """Ask the Trainer's own flow after each step and epoch what is due.

    Returns:
        Evaluations and checkpoints of the whole run, at most: with `save_strategy: best` each
        evaluation counts as a checkpoint.
    """
    flow, stand_in = DefaultFlowCallback(), copy.copy(state)
    stand_in.max_steps = num_steps
    stand_in.compute_steps(args, num_steps)
    evaluations, checkpoints = int(args.eval_on_start), 0
    for step in range(1, num_steps + 1):
        stand_in.global_step, stand_in.epoch = step, step / steps_per_epoch
        due = [flow.on_step_end(args, stand_in, TrainerControl())]
        if step % steps_per_epoch == 0 or step == num_steps:
            due.append(flow.on_epoch_end(args, stand_in, TrainerControl()))
        evaluations += sum(one.should_evaluate for one in due)
        checkpoints += sum(one.should_save for one in due)
    if args.save_strategy == SaveStrategy.BEST:
        checkpoints = evaluations
    return evaluations, checkpoints


def _stops_early(callback: object) -> bool:
    return isinstance(callback, EarlyStoppingCallback)


def _gradient_bytes(model: nn.Module) -> int:
    trained = [one for one in model.parameters() if one.requires_grad]
    return sum(one.numel() * one.element_size() for one in trained)


def _described(shape: Shape) -> dict[str, object]:
    return asdict(shape)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
