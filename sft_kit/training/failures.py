"""Failures of the machine under a training, in words: memory, worker processes, other machines."""

from peft import PeftModel
from transformers import Trainer

from sft_kit.errors import TrainingError
from sft_kit.training.lost_process import is_lost_process, lost_process_error
from sft_kit.training.out_of_memory import MemoryUse, is_out_of_memory, out_of_memory_error
from sft_kit.training.workers import is_worker_death, worker_death_error


def failure_in_words(
    error: Exception, trainer: Trainer, longest_row: int, *, is_evaluating: bool
) -> TrainingError | None:
    """Say what failed, how much was used and what to do; None where it is another kind of error.

    Args:
        error: As it came out of the training.
        trainer: Whose it was.
        longest_row: Tokens of the longest row of the step, 0 where it had none yet.
        is_evaluating: It was in an evaluation within training.
    """
    args = trainer.args
    step, folder = trainer.state.global_step + 1, str(args.output_dir)
    if is_worker_death(error):
        return worker_death_error(step, args.dataloader_num_workers, folder)
    if is_lost_process(error):
        return lost_process_error(step, args.world_size, folder)
    if not is_out_of_memory(error):
        return None
    use = MemoryUse(
        args.device,
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        0 if is_evaluating else longest_row,
        checkpoints_activations=bool(args.activation_checkpointing),
        is_quantized=bool(getattr(trainer.model, "is_quantized", False)),
        has_adapter=isinstance(trainer.model, PeftModel),
        is_evaluating=is_evaluating,
        eval_batch_size=args.per_device_eval_batch_size,
    )
    return out_of_memory_error(step, use, folder)
