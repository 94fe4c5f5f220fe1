"""Batches of similar length, the same whenever and on however many processes they are drawn."""

import itertools

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from sft_kit.training.length_groups import SeededLengthGroups, find_grouped_batches

LENGTHS = [3 + (index * 37) % 41 for index in range(200)]


class Processes(TrainingArguments):
    """Arguments that say how many processes there are, without starting any."""

    num_processes = 1

    @property
    def world_size(self) -> int:
        return self.num_processes


def arguments(tmp_path, batch: int, accumulation: int = 1, num_processes: int = 1, **changes):
    args = Processes(
        output_dir=str(tmp_path),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        use_cpu=True,
        report_to="none",
        **changes,
    )
    args.num_processes = num_processes
    return args


def batches_of_epoch(args, epoch: float, rank: int = 0) -> list[list[int]]:
    """Draw one epoch as the Trainer does: the sampler of one process, sharded by accelerate."""
    per_process = args.train_batch_size * args.gradient_accumulation_steps
    sampler = LengthGroupedSampler(per_process, lengths=LENGTHS)
    batches = BatchSampler(sampler, args.train_batch_size, drop_last=False)
    if args.world_size > 1:
        batches = BatchSamplerShard(batches, args.world_size, rank)
    loader = DataLoader(LENGTHS, batch_sampler=batches)
    state = TrainerState(epoch=epoch)
    SeededLengthGroups().on_epoch_begin(args, state, TrainerControl(), train_dataloader=loader)
    return list(batches)


def test_the_order_does_not_depend_on_the_global_random_state(tmp_path):
    args = arguments(tmp_path, 8)
    torch.manual_seed(1)
    first = batches_of_epoch(args, 0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert batches_of_epoch(args, 0) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_a_resumed_epoch_has_the_order_it_began_with(tmp_path):
    args = arguments(tmp_path, 8)
    assert batches_of_epoch(args, 2.48) == batches_of_epoch(args, 2)


def test_each_epoch_and_each_seed_has_an_order_of_its_own(tmp_path):
    args = arguments(tmp_path, 8)
    orders = [batches_of_epoch(args, epoch) for epoch in (0, 1, 2)]
    orders.append(batches_of_epoch(arguments(tmp_path, 8, data_seed=5), 0))
    orders.append(batches_of_epoch(arguments(tmp_path, 8, seed=7), 0))
    assert len({str(order) for order in orders}) == 5
    for order in orders:
        assert sorted(index for batch in order for index in batch) == list(range(200))


def test_rows_of_a_batch_have_similar_lengths(tmp_path):
    grouped = batches_of_epoch(arguments(tmp_path, 8), 0)
    spread = [
        max(lengths) - min(lengths) for batch in grouped if (lengths := [LENGTHS[i] for i in batch])
    ]
    random_order = torch.randperm(200).tolist()
    apart = [random_order[start : start + 8] for start in range(0, 200, 8)]
    random_spread = [
        max(LENGTHS[i] for i in batch) - min(LENGTHS[i] for i in batch) for batch in apart
    ]
    assert sum(spread) < sum(random_spread) / 3


def test_long_and_short_batches_take_turns_and_only_the_last_one_is_smaller(tmp_path):
    whole = batches_of_epoch(arguments(tmp_path, 16), 0)
    assert [len(batch) for batch in whole] == [16] * 12 + [8]
    means = [sum(LENGTHS[index] for index in batch) / len(batch) for batch in whole]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)
    rises = sum(second > first for first, second in itertools.pairwise(means))
    assert 3 <= rises <= 9  # of 12: neither all the way up nor all the way down


@pytest.mark.parametrize(
    ("batch", "accumulation", "num_processes"), [(2, 4, 1), (4, 1, 2), (1, 2, 4)]
)
def test_a_global_batch_has_the_same_rows_however_it_is_laid_out(
    tmp_path, batch, accumulation, num_processes
):
    whole = batches_of_epoch(arguments(tmp_path, 8), 0)
    args = arguments(tmp_path, batch, accumulation, num_processes)
    ranks = [batches_of_epoch(args, 0, rank) for rank in range(num_processes)]
    for step, expected in enumerate(whole):
        places = range(step * accumulation, (step + 1) * accumulation)
        rows = [index for rank in ranks for place in places for index in rank[place]]
        assert sorted(rows) == sorted(expected)


def test_other_samplers_are_left_alone(tmp_path):
    loader = DataLoader(LENGTHS, sampler=RandomSampler(LENGTHS), batch_size=8)
    assert find_grouped_batches(loader) is None
    assert find_grouped_batches(None) is None
    SeededLengthGroups().on_epoch_begin(
        arguments(tmp_path, 8), TrainerState(epoch=0), TrainerControl(), train_dataloader=loader
    )
    assert loader.sampler.generator is None
