"""What a batch is made of, and what is left of it when it is cut."""

import torch

from sft_kit.data.collators import pad_batch
from sft_kit.plan.course import Sampled, shape_of
from sft_kit.plan.shapes import Shape, shorten, split


def batch_of(*lengths: int) -> dict[str, torch.Tensor]:
    rows = [
        {"input_ids": [7] * length, "labels": [-100] * (length - 1) + [7]} for length in lengths
    ]
    return dict(pad_batch(rows, pad_token_id=0))


def test_a_padded_batch_tells_rows_padding_and_labels() -> None:
    assert shape_of(batch_of(3, 9, 4)) == Shape((3, 9, 4), 9, 27, 3)


def test_without_padding_a_batch_costs_its_own_tokens_filled_up_to_a_few_sizes() -> None:
    batch = batch_of(3, 9, 4, 30)
    shape = shape_of(batch, is_padding_free=True)
    assert (shape.lengths, shape.width, shape.padded, shape.is_flat) == (
        (3, 9, 4, 30),
        30,
        48,
        True,
    )
    assert shape.kind == shape_of(batch_of(9, 3, 4, 27), is_padding_free=True).kind
    assert [part.padded for part in split(shape, 2)] == [round(48 * 12 / 46), round(48 * 34 / 46)]
    hardly_padded = batch_of(20, 20, 20, 19)
    assert shape_of(hardly_padded, is_padding_free=True) == shape_of(hardly_padded)


def test_the_widest_batch_without_padding_is_the_one_with_the_most_tokens() -> None:
    sampled = Sampled(is_padding_free=True)
    for lengths in ((500, 9, 9, 9), (300, 300, 300, 20), (40, 40, 40, 20)):
        sampled.see(batch_of(*lengths))
    assert sampled.widest is not None
    assert sampled.widest["input_ids"].shape == (4, 300)


def test_a_decoder_counts_with_its_encoder() -> None:
    batch = {
        "input_ids": torch.zeros(2, 5, dtype=torch.long),
        "attention_mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]),
        "labels": torch.tensor([[1, 2, 3], [4, -100, -100]]),
        "decoder_input_ids": torch.zeros(2, 3, dtype=torch.long),
    }
    assert shape_of(batch) == Shape((8, 3), 5, 16, 4)


def test_a_row_that_has_a_class_counts_as_one_label() -> None:
    batch = {"input_ids": torch.zeros(4, 6, dtype=torch.long), "labels": torch.tensor([0, 1, 1, 0])}
    assert shape_of(batch) == Shape((6, 6, 6, 6), 6, 24, 4)


def test_cut_micro_batches_keep_every_token_and_are_as_wide_as_their_longest_row() -> None:
    parts = split(shape_of(batch_of(3, 9, 4, 2)), 2)
    assert [part.lengths for part in parts] == [(3, 9), (4, 2)]
    assert [part.padded for part in parts] == [18, 8]
    assert [part.width for part in parts] == [9, 4]
    assert split(shape_of(batch_of(3, 9, 4, 2)), 4)[0].padded == 3


def test_rows_are_shortened_to_the_new_limit_and_only_those_that_are_longer() -> None:
    short = shorten(shape_of(batch_of(3, 9, 4, 2)), 6)
    assert (short.lengths, short.width, short.padded) == ((3, 6, 4, 2), 6, 24)


def test_the_course_rises_from_the_narrowest_batch_to_the_widest() -> None:
    sampled = Sampled()
    widths = [9, 3, 12, 7, 30, 5, 8, 11]
    for width in widths:
        sampled.see(batch_of(width, width))
    rising = [shape_of(batch).padded for batch in sampled.rising()]
    assert rising == sorted(rising)
    assert rising[:2] == [2 * min(widths)] * 2  # to warm up, and to measure
    assert max(widths) in rising  # half of the widest
    assert rising[-1] == 2 * max(widths)
    assert [shape.width for shape in sampled.shapes] == widths


def test_pieces_of_equal_batches_tell_what_fewer_rows_cost() -> None:
    sampled = Sampled()
    for _ in range(5):
        sampled.see(batch_of(*[6] * 8))
    rising = [shape_of(batch) for batch in sampled.rising()]
    assert [len(shape.lengths) for shape in rising] == [2, 2, 4, 8, 8, 8, 8, 8]
    assert [shape.labelled for shape in rising] == [len(shape.lengths) for shape in rising]


def test_a_batch_with_parts_of_other_sizes_is_not_cut() -> None:
    sampled = Sampled()
    sampled.see(batch_of(*[6] * 8) | {"labels": torch.zeros(4, 2)})
    assert {len(batch["input_ids"]) for batch in sampled.rising()} == {8}


def test_a_long_epoch_is_sampled_evenly_and_its_widest_batch_is_never_lost() -> None:
    sampled = Sampled()
    for number in range(1, 1_001):
        sampled.see({"input_ids": torch.zeros(1, 5_000 if number == 17 else number)})
    assert sampled.widest is not None
    assert shape_of(sampled.widest).padded == 5_000
    widths = [shape_of(batch).width for batch in sampled.batches]
    assert len(widths) == 48
    assert 300 < sum(widths) / len(widths) < 700  # 500 is even; 24 the first ones, 976 the last
