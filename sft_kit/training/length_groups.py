"""Batches of similar length that are the same whenever, and on however many processes, they run."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_BATCHES_PER_GROUP = 50
"""As in transformers: rows are sorted by length within groups of that many global batches."""


class LengthGroups(Sampler[int]):
    """Rows in an order that puts those of similar length into one batch, the batches shuffled.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of a global batch.
        seed: Of this epoch's order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yield every row once; only the last batch may be smaller."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        rows = list(
            chain.from_iterable(
                sorted(group, key=self.lengths.__getitem__)
                for group in _cut(rows, self.batch_size * _BATCHES_PER_GROUP)
            )
        )
        batches = _cut(rows, self.batch_size)
        num_whole = len(rows) // self.batch_size
        order = torch.randperm(num_whole, generator=generator).tolist()
        order += range(num_whole, len(batches))
        return chain.from_iterable(batches[index] for index in order)


class SeededLengthGroups(TrainerCallback):
    """Draws the order of `train_sampling_strategy: group_by_length` from seed and epoch.

    transformers 5.23 draws it from the global random state, so that a resumed run continues with
    other batches than it began with; groups by the batch of one process, so that two processes see
    other batches than one; and goes from long rows to short ones, again and again. Where length
    tells something of the label, so do the batches then, and a small encoder trained from scratch
    on ChnSentiCorp learnt nothing (loss 0.693); with the batches shuffled it did. Nothing happens
    with another sampling strategy.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: "DataLoader[object] | None" = None,
        **kwargs: object,
    ) -> None:
        """Put a sampler of this epoch in, before it is asked for its order."""
        # A resumed run begins in the middle of an epoch, which counts as a fraction.
        group_rows(train_dataloader, args, int(state.epoch or 0))


def group_rows(
    dataloader: "DataLoader[object] | None", args: TrainingArguments, epoch: int
) -> None:
    """Put the order of an epoch into what groups rows by length, if anything does."""
    batches = find_grouped_batches(dataloader)
    if batches is None:
        return
    seed = args.seed if args.data_seed is None else args.data_seed
    per_process = args.train_batch_size * args.gradient_accumulation_steps
    batches.sampler = LengthGroups(
        batches.sampler.lengths, per_process * args.world_size, seed + epoch
    )


def find_grouped_batches(dataloader: "DataLoader[object] | None") -> Any:  # noqa: ANN401
    """Find the batch sampler over rows grouped by length, under what accelerate wraps around it."""
    batches = getattr(dataloader, "batch_sampler", None)
    while batches is not None:
        sampler = getattr(batches, "sampler", None)
        if isinstance(sampler, LengthGroupedSampler | LengthGroups):
            return batches
        batches = getattr(batches, "batch_sampler", None)
    return None


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
