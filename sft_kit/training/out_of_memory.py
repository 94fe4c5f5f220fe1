"""A step that memory is too small for: what it took, and what to change for it to fit."""

from dataclasses import dataclass

import torch
from transformers import TrainingArguments

from sft_kit.devices import free_memory_bytes, peak_memory_bytes
from sft_kit.errors import Problem, TrainingError

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAIL")
_NUM_CHANGES = 3
_LEAST_LENGTH = 64


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What stands behind the memory that a training takes.

    Attributes:
        device: Where it trains.
        batch_size: Rows of a forward on this process.
        accumulation: Forwards of a step.
        longest_row: Tokens of the longest row of the step, or 0.
        checkpoints_activations: Activations are computed again for the backward.
        is_quantized: The base is held in 4 or 8 bits.
        has_adapter: Only an adapter trains.
        is_evaluating: It happened in an evaluation.
        eval_batch_size: Rows of a forward there.
    """

    device: torch.device
    batch_size: int
    accumulation: int
    longest_row: int = 0
    checkpoints_activations: bool = False
    is_quantized: bool = False
    has_adapter: bool = False
    is_evaluating: bool = False
    eval_batch_size: int = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was too small, on a GPU or on this machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def out_of_memory_error(step: int, use: MemoryUse, folder: str) -> TrainingError:
    """Say how much memory was used, and what to change, the cheapest change first.

    Args:
        step: From 1.
        use: What stands behind it.
        folder: Of the run.
    """
    phase = "an evaluation" if use.is_evaluating else "a training step"
    rows = use.eval_batch_size if use.is_evaluating else use.batch_size
    longest = f", the longest row of {use.longest_row:,} tokens" if use.longest_row else ""
    summary = (
        f"step {step}: out of memory on {use.device.type} in {phase} with {rows} rows at once"
        f"{longest}: {_gib(peak_memory_bytes())} used at the peak, "
        f"{_gib(free_memory_bytes(use.device))} free now. Checkpoints in {folder} are kept. "
        "Change one of these, the cheapest first:"
    )
    return TrainingError(summary, memory_changes(use))


def rollout_out_of_memory_error(
    rollout: int, args: TrainingArguments, max_new_tokens: int, folder: str
) -> TrainingError:
    """Say the same of PPO.

    Args:
        rollout: From 1.
        args: Of the run.
        max_new_tokens: The longest completion.
        folder: Of the run.
    """
    rows, anew = args.per_device_train_batch_size, "start anew with --overwrite"
    changes = []
    if rows > 1:
        changes.append((f"train.per_device_train_batch_size={rows // 2}", f"slower; {anew}"))
    if not args.activation_checkpointing:
        changes.append(("train.activation_checkpointing=true", "slower; --resume accepts it"))
    half = max(1, max_new_tokens // 2)
    changes.append((f"ppo.max_new_tokens={half}", f"shorter completions; {anew}"))
    used, free = peak_memory_bytes(), free_memory_bytes(args.device)
    summary = (
        f"rollout {rollout}: out of memory on {args.device.type} with {rows} episodes at once of "
        f"up to {max_new_tokens:,} new tokens: {_gib(used)} used at the peak, {_gib(free)} free. "
        f"Checkpoints in {folder} are kept. Change one of these, the cheapest first:"
    )
    return TrainingError(summary, [Problem("", "", change, why) for change, why in changes])


def memory_changes(use: MemoryUse) -> list[Problem]:
    """Settings that take less memory, ready for the command line; at most three."""
    resumed, anew = "--resume accepts it", "start anew with --overwrite"
    found: list[tuple[str, str]] = []
    if use.is_evaluating and use.eval_batch_size > 1:
        half = use.eval_batch_size // 2
        found.append((f"train.per_device_eval_batch_size={half}", f"same figures; {resumed}"))
    elif use.is_evaluating:
        found.append(("train.eval_accumulation_steps=1", f"same figures; {resumed}"))
    elif use.batch_size > 1:
        by = next(by for by in range(2, use.batch_size + 1) if use.batch_size % by == 0)
        smaller = f"train.per_device_train_batch_size={use.batch_size // by}"
        more = f"train.gradient_accumulation_steps={use.accumulation * by}"
        found.append((f"{smaller} {more}", f"same global batch; {resumed}"))
    if not use.checkpoints_activations and not use.is_evaluating:
        found.append(("train.activation_checkpointing=true", f"slower by a third; {resumed}"))
    if use.longest_row >= 2 * _LEAST_LENGTH:
        shorter = use.longest_row // 2
        found.append((f"data.max_length={shorter}", f"longer rows are cut; {anew}"))
    if use.has_adapter and not use.is_quantized:
        found.append(("model.quantization=nf4", f"a base of a quarter of the size; {anew}"))
    if not found:
        found.append(("model.checkpoint=...", f"a smaller model; {anew}"))
    return [Problem("", "", change, why) for change, why in found[:_NUM_CHANGES]]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
