"""Batches of similar length that are the same whenever, and on however many processes, they run."""

from typing import TYPE_CHECKING, cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class SeededLengthGroups(TrainerCallback):
    """Draws the order of `train_sampling_strategy: group_by_length` from seed and epoch.

    transformers 5.23 draws it from the global random state, so that a resumed run continues with
    other batches than it began with, and groups by the batch of one process, so that two processes
    see other batches than one. Nothing happens with another sampling strategy.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: "DataLoader[object] | None" = None,
        **kwargs: object,
    ) -> None:
        """Seed the sampler, before it is asked for its order."""
        sampler = find_length_sampler(train_dataloader)
        if sampler is None:
            return
        # A resumed run begins in the middle of an epoch, which counts as a fraction.
        epoch = int(state.epoch or 0)
        seed = args.seed if args.data_seed is None else args.data_seed
        sampler.generator = torch.Generator().manual_seed(seed + epoch)
        per_process = args.train_batch_size * args.gradient_accumulation_steps
        sampler.batch_size = per_process * args.world_size


def find_length_sampler(dataloader: "DataLoader[object] | None") -> LengthGroupedSampler | None:
    """Find the sampler under what accelerate wraps around it."""
    batches = getattr(dataloader, "batch_sampler", None)
    while batches is not None:
        if isinstance(getattr(batches, "sampler", None), LengthGroupedSampler):
            return cast("LengthGroupedSampler", batches.sampler)
        batches = getattr(batches, "batch_sampler", None)
    return None
