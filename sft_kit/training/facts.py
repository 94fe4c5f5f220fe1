"""What is known before step 1: derived once, printed once, and kept with the run."""

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Protocol

from torch import nn
from transformers import Trainer

from sft_kit.data.examples import Examples
from sft_kit.models.adapters import count_parameters

if TYPE_CHECKING:
    from sft_kit.data.corpus.rows import Corrupted
    from sft_kit.data.labelled.rows import LabelledExample
    from sft_kit.data.preference.rows import PreferenceExample
    from sft_kit.data.rows import Example

_MAX_MEASURED = 1_000


class CorruptedRows(Protocol):
    """Rows that are corrupted as they are asked for."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, index: int, /) -> "Corrupted":
        """One row."""


def derive_facts(
    trainer: Trainer,
    examples: "Sequence[Example] | Sequence[LabelledExample] | Sequence[PreferenceExample] "
    "| CorruptedRows | Iterable[Corrupted]",
    *,
    max_length: int | None = None,
) -> dict[str, object]:
    """Work out the size of a run from its settings.

    Args:
        trainer: Ready to train.
        examples: Tokenized training rows, padding not included. Of rows that are corrupted when
            they are asked for, at most 1,000 are measured. Of a stream nobody knows the length: it
            has no epochs, and every row counts as full.
        max_length: Tokens of a full row of a stream.

    Returns:
        Parameters, batch sizes (examples), steps, and tokens per step on average.
    """
    args = trainer.args
    model = trainer.model
    assert isinstance(model, nn.Module)
    parameters = count_parameters(model)
    batch = args.per_device_train_batch_size * max(1, args.n_gpu)
    global_batch = batch * args.world_size * args.gradient_accumulation_steps
    facts: dict[str, object] = {
        "trainable_parameters": parameters.trainable,
        "total_parameters": parameters.total,
        "num_processes": args.world_size,
        "micro_batch": batch,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "global_batch": global_batch,
    }
    if isinstance(trainer.train_dataset, Sized):
        assert isinstance(examples, Sized)
        return facts | _epochs(trainer, batch, _mean_tokens(examples))
    facts["num_steps"] = args.max_steps
    if max_length is not None:
        facts["tokens_per_step"] = max_length * global_batch
    return facts


def _epochs(trainer: Trainer, batch: int, mean_tokens: float) -> dict[str, object]:
    """Steps, epochs and tokens per step of rows that can be counted."""
    args = trainer.args
    num_rows = len(trainer.train_dataset)  # type: ignore[arg-type]
    round_batches = math.floor if args.dataloader_drop_last else math.ceil
    batches = round_batches(num_rows / (batch * args.world_size))
    steps_per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    num_steps = (
        args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    )
    rows_per_epoch = min(num_rows, batches * batch * args.world_size)
    return {
        "num_steps": num_steps,
        "epochs": round(num_steps / steps_per_epoch, 2),
        "tokens_per_step": round(mean_tokens * rows_per_epoch / steps_per_epoch),
    }


def _mean_tokens(examples: Sized) -> float:
    """Average the tokens of rows; of rows that are made when asked for, over an even sample."""
    count = len(examples)
    if isinstance(examples, Examples):
        return float(examples.lengths.sum()) / max(1, count)
    if isinstance(examples, Sequence):
        return sum(map(_num_tokens, examples)) / max(1, count)
    measured = min(count, _MAX_MEASURED)
    rows: CorruptedRows = examples  # type: ignore[assignment]
    chosen = (index * count // measured for index in range(measured))
    return sum(len(rows[index]["input_ids"]) for index in chosen) / max(1, measured)


def _num_tokens(example: "Example | LabelledExample | PreferenceExample") -> int:
    """Count the tokens of a row; those of compared answers all together."""
    return sum(len(ids) if isinstance(ids, tuple) else 1 for ids in example.input_ids)


def fact_lines(facts: Mapping[str, object]) -> list[str]:
    """Say the facts of `derive_facts` in plain sentences."""
    trainable, total = int(str(facts["trainable_parameters"])), int(str(facts["total_parameters"]))
    steps = f"steps: {facts['num_steps']}"
    if "epochs" in facts:
        steps += f" ({facts['epochs']} epochs)"
    if "tokens_per_step" in facts:
        steps += f", about {int(str(facts['tokens_per_step'])):,} tokens each"
    return [
        f"parameters: {trainable:,} of {total:,} train ({trainable / total:.2%})",
        f"global batch: {facts['micro_batch']} examples x {facts['num_processes']} processes x "
        f"{facts['gradient_accumulation_steps']} accumulation = {facts['global_batch']}",
        steps,
    ]
