"""The one subclass of `transformers.Trainer`: safe checkpoints, stops and failures."""

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import nn
from torch.nn.utils import clip_grads_with_norm_
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, TrainOutput

from sft_kit.errors import SftKitError, StoppedError
from sft_kit.run_record import read_run_id
from sft_kit.stopping import catch_stop_signals
from sft_kit.training.checkpoint_writer import (
    check_checkpoint,
    keep_best_and_newest,
    last_bytes,
    state_bytes,
    write_checkpoint,
)
from sft_kit.training.failures import failure_in_words
from sft_kit.training.freed_memory import kept_memory
from sft_kit.training.length_groups import SeededLengthGroups
from sft_kit.training.nonfinite import StepRecord, check_numbers
from sft_kit.training.progress import (
    Unlogged,
    callback_states,
    has_stopped_early,
    logged_loss,
    restore_callbacks,
)
from sft_kit.training.randomness import isolated_randomness
from sft_kit.training.row_numbers import NumberedBatches, number_rows, take_row_numbers
from sft_kit.training.settled import settled_objects
from sft_kit.training.sharding import (
    choose_layers,
    give_weights_back,
    spreads_weights,
    take_weights,
)
from sft_kit.training.stop_when_asked import (
    PROMISE,
    EvaluationAbandonedError,
    StopWhenAsked,
    forget_best_of_unplanned,
    stopped_error,
)
from sft_kit.training.workers import is_worker_death

_EACH_HAS_ALL = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}
"""Launches in which every process has all gradients."""


class SafeTrainer(Trainer):
    """A Trainer whose checkpoints are whole or not there.

    It takes the same arguments and trains the same steps. A checkpoint appears by a rename when all
    of it is on the disk; it holds what upstream's holds, the states of the callbacks and the loss
    not yet logged, but no pickle of the settings, and goes to no Hub. A run that was killed after
    its last step trains no other.
    """

    _resumed_from: str | None = None
    _set_aside: nn.Module | None = None  # what the recipe built, while its weights are spread

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self._stopper = StopWhenAsked(self._do_what_was_put_off)
        self._record = StepRecord()
        self.add_callback(self._stopper)
        self.add_callback(SeededLengthGroups())

    # --- writing ---------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:  # noqa: ARG002
        """Write a checkpoint; then, and only then, delete what is too old."""
        self.store_flos()
        output_dir = Path(self._get_output_dir(trial))
        folder = output_dir / f"checkpoint-{self.state.global_step}"
        best = self._best_checkpoint(output_dir, folder)
        self.state.best_model_checkpoint = None if best is None else str(best)
        states = callback_states(self._exportable()) | self._unlogged().as_state()
        self.state.stateful_callbacks = states  # type: ignore[assignment]
        write_checkpoint(
            folder,
            self._write_files,
            run=self._run,
            num_bytes=last_bytes(output_dir) or self._estimated_bytes(),
            is_writer=self.args.should_save,
        )
        if self.args.should_save:
            keep_best_and_newest(folder, best, self.args.save_total_limit)

    def _write_files(self, stage: Path) -> None:
        """Write this process's files."""
        folder = str(stage)
        self.save_model(folder, _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(folder)
            self._save_scaler(folder)
            self._save_rng_state(folder)
        if self.args.should_save:
            self.state.save_to_json(str(stage / TRAINER_STATE_NAME))

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Save the weights without the settings, whose pickle would tell paths and tokens."""
        folder = output_dir or str(self.args.output_dir)
        if isinstance(self.model, PeftModel) and self.args.should_save:
            # "auto" would ask the Hub for the base's vocabulary size; embeddings are never resized.
            self.model.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)
            return
        super()._save(output_dir, state_dict)
        (Path(folder) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _best_checkpoint(self, output_dir: Path, newest: Path | None = None) -> Path | None:
        """Name the checkpoint with the best figure, also in a run folder that was moved."""
        names = [f"checkpoint-{self.state.best_global_step}"]
        if self.state.best_model_checkpoint is not None:  # the best of those that were saved
            names.append(Path(self.state.best_model_checkpoint).name)
        folders = [output_dir / name for name in names]
        return next((one for one in folders if one == newest or one.is_dir()), None)

    def _estimated_bytes(self) -> int:
        model = self.accelerator.unwrap_model(self.model)
        return state_bytes(model, self.optimizer, adapter=isinstance(model, PeftModel))

    # --- going on --------------------------------------------------------------------------------

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Load weights, and nothing before the checkpoint has shown that it is whole."""
        check_checkpoint(Path(resume_from_checkpoint), self._run)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Load the best checkpoint if it is still what was written."""
        check_checkpoint(Path(str(self.state.best_model_checkpoint)))
        super()._load_best_model()

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: object,
    ) -> tuple[int, int]:
        """Take up callbacks too, and settings that may have changed since."""
        begun = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self._resumed_from = resume_from_checkpoint
        if resume_from_checkpoint is not None:
            if self.is_deepspeed_enabled:  # which loads weights by a way of its own
                check_checkpoint(Path(resume_from_checkpoint), self._run)
            self.state.compute_steps(self.args, max_steps)
            restore_callbacks(self._exportable(), self._stored_states())
            best = self._best_checkpoint(Path(self._get_output_dir(trial)))
            self.state.best_model_checkpoint = None if best is None else str(best)
        return begun

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, Any]:  # noqa: ANN401
        """Wrap the model; where its weights are to be spread, a copy that takes them over."""
        if self._set_aside is None and spreads_weights(self.accelerator):
            self._set_aside = cast("nn.Module", self.model)
            self.model = self.model_wrapped = take_weights(self._set_aside)
            choose_layers(self.accelerator, self.model)
        prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[no-untyped-call]
        return cast("tuple[nn.Module, Any]", prepared)

    def _run_epoch(self, **where: Any) -> None:  # type: ignore[override]  # noqa: ANN401
        """Train an epoch, unless the checkpoint to go on from was the end."""
        if self._is_complete():
            self.control.should_training_stop = True
            return
        if self._resumed_from is not None and where["epoch"] == where["epochs_trained"]:
            unlogged = Unlogged.from_state(self._stored_states())
            if unlogged is not None:
                unlogged.put_back(self)
        super()._run_epoch(**where)  # type: ignore[no-untyped-call]

    def _is_complete(self) -> bool:
        return self._resumed_from is not None and (
            self.state.global_step >= self.state.max_steps
            or has_stopped_early(self.callback_handler.callbacks)
        )

    def _finalize_training(
        self,
        trial: object,
        num_train_samples: int,
        start_time: float,
    ) -> TrainOutput:
        """Sum up; where nothing was left to train, as the run would have that was not killed.

        Raises:
            StoppedError: A stop was asked for; nothing is summed up, loaded or deleted then.
        """
        if self._stopper.signal_number:
            raise self._stopped()
        if self._resumed_from is not None and self.state.global_step == self._initial_global_step:
            self._load_rng_state(self._resumed_from)
            # Upstream divides by the steps of this session, and by 0.001 where there were none.
            self._total_loss_scalar = 0.001 * logged_loss(self.state.log_history)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            # With a limit of 1 upstream would delete the newest checkpoint here, before the run's
            # results are saved.
            ended = super()._finalize_training(trial, num_train_samples, start_time)  # type: ignore[no-untyped-call]
            if self._set_aside is not None:
                give_weights_back(self.accelerator, self.model_wrapped, self._set_aside)
            return cast("TrainOutput", ended)
        finally:
            self.args.save_total_limit = limit

    def _unlogged(self) -> Unlogged:
        """Loss not yet logged; of a resumed run before its first step, what its checkpoint says."""
        has_begun = self.state.global_step > self._initial_global_step
        stored = None if has_begun else Unlogged.from_state(self._stored_states())
        return stored or Unlogged.of(self)

    @cached_property
    def _run(self) -> str:
        """Id of the run; stands in `run.yaml` before the first step."""
        return read_run_id(Path(str(self.args.output_dir)))

    def _stored_states(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.state.stateful_callbacks)

    def _exportable(self) -> list[Any]:
        return [one for one in self.callback_handler.callbacks if isinstance(one, ExportableState)]

    # --- stopping --------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:  # noqa: ANN401
        """Train; a signal ends it after a step, a failure of the machine with words.

        Raises:
            StoppedError: A signal came; the checkpoint is saved.
            NonFiniteError: A loss or a gradient is not a number; the weights are as before.
            TrainingError: Memory is too small, or a worker process died.
        """
        self._stopper.signal_number, self._stopper.is_evaluating = 0, False
        with catch_stop_signals(PROMISE) as self._stopper.request, settled_objects():
            try:
                with self._kept_memory():
                    return super().train(*args, **kwargs)
            except SftKitError:
                raise
            except (RuntimeError, MemoryError) as error:
                number = self._stopper.request.signal_number
                if number and is_worker_death(error):  # the same signal has ended it
                    step, folder = self.state.global_step, str(self.args.output_dir)
                    raise stopped_error(number, step, folder, num_new=0) from error
                told = failure_in_words(
                    error, self, self._record.longest_row, is_evaluating=self._stopper.is_evaluating
                )
                if told is None:
                    raise
                raise told from error

    def _kept_memory(self) -> AbstractContextManager[object]:
        if self.args.device.type != "cpu":  # weights may go to the device later
            return nullcontext()
        return kept_memory(cast("nn.Module", self.model), says=self.is_world_process_zero())

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ANN401
        """Evaluate without a trace in the random state; put it off where a stop is asked for."""
        metrics: dict[str, float] = {}
        self._stopper.is_evaluating = True
        try:
            with isolated_randomness():
                metrics = super()._evaluate(*args, **kwargs)
        except EvaluationAbandonedError:
            if self.state.global_step == self._initial_global_step:
                raise self._stopped() from None
            self._stopper.put_off_evaluation(self.control)
        self._stopper.is_evaluating = False
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:  # noqa: ANN401
        """Say whether to save as the best; an evaluation that was put off is saved in any case."""
        return self._stopper.evaluation or super()._determine_best_metric(metrics, trial)

    def _load_callback_state(self) -> None:
        """Leave callbacks as they are; their attributes are restored one by one."""

    def _do_what_was_put_off(self) -> None:
        """Evaluate what the stopped run did not, and save as it would have."""
        stopper, planned = self._stopper, self._stopper.save
        if self._resumed_from is None or not stopper.evaluation:
            stopper.evaluation = stopper.save = False
            return
        metrics = self._evaluate(None, None)
        stopper.evaluation = stopper.save = False
        is_best = self._determine_best_metric(metrics, None)
        planned = is_best if self.args.save_strategy == SaveStrategy.BEST else planned
        forget_best_of_unplanned(self.state, is_planned=planned)
        with isolated_randomness():
            self._load_rng_state(self._resumed_from)
            self._save_checkpoint(self.model_wrapped, None)

    def _stopped(self) -> StoppedError:
        step, begun = self.state.global_step, self._initial_global_step
        number, folder = self._stopper.signal_number, str(self.args.output_dir)
        return stopped_error(number, step, folder, num_new=step - begun)

    # --- failures --------------------------------------------------------------------------------

    def get_train_dataloader(self) -> "DataLoader[Any]":
        """Have training rows take their numbers along."""
        rows, self.train_dataset = self.train_dataset, number_rows(self.train_dataset)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = rows

    def _get_collator_with_removed_columns(
        self,
        data_collator: Any,  # noqa: ANN401
        description: str | None = None,
    ) -> Any:  # noqa: ANN401
        collate = super()._get_collator_with_removed_columns(data_collator, description)
        return NumberedBatches(collate) if description == "Training" else collate

    def get_batch_samples(
        self,
        epoch_iterator: Any,  # noqa: ANN401
        num_batches: int,
        device: torch.device,
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Get the micro-batches of a step; what they are made of is noted and taken out."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        numbers = [take_row_numbers(batch) for batch in batches]
        widths = [batch["input_ids"].shape[-1] for batch in batches if "input_ids" in batch]
        rows = [one for one in numbers if one is not None]
        self._record = StepRecord(rows, longest_row=max(widths, default=0))
        return batches, num_items

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401
        """Go forward and backward over a micro-batch; after the last one, check every gradient.

        fp16 is left to its gradient scaler, which skips such steps on purpose.

        Raises:
            NonFiniteError: In every process, where one has a loss or a gradient that is no number.
        """
        loss = super().training_step(*args, **kwargs)
        self._record.losses.append(loss)
        if self.accelerator.sync_gradients and not self.args.fp16:
            check_numbers(self._record, self)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor | None:
        """Clip by the norm that was found when the gradients were checked."""
        norm = self._record.norm
        if norm is None or self.accelerator.distributed_type not in _EACH_HAS_ALL:
            return cast("torch.Tensor | None", super()._clip_grad_norm(model))  # type: ignore[no-untyped-call]
        clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return norm
