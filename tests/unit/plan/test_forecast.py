"""From measured steps to a run: sums that can be checked by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from sft_kit.plan.forecast import Change, forecast
from sft_kit.plan.measurement import Measurement, MicroStep, read_measurement
from sft_kit.plan.shapes import Shape

from .builders import (
    BYTES_PER_TOKEN,
    FIXED_BYTES,
    SECONDS_PER_STEP,
    SECONDS_PER_TOKEN,
    full,
    made_up,
    tried,
)

TOKENS = sum(8 * (10 + index) for index in range(10))  # of an epoch of `made_up`


def test_time_is_the_sum_of_start_steps_evaluations_checkpoints_and_end() -> None:
    planned = forecast(made_up())
    steps = 10 * TOKENS * SECONDS_PER_TOKEN + 100 * SECONDS_PER_STEP
    values = {name: part.value for name, part in planned.parts.items()}
    assert values == pytest.approx(
        {"start": 10, "steps": steps, "evaluations": 8, "checkpoints": 3, "end": 5}
    )
    assert planned.seconds.value == pytest.approx(26 + steps)
    assert planned.seconds.error >= 0.05 * planned.seconds.value


def test_accumulation_makes_a_step_of_several_micro_batches() -> None:
    found = made_up()
    found.run |= {"accumulation": 2, "steps_per_epoch": 5}
    steps = forecast(found).parts["steps"].value
    assert steps == pytest.approx(100 * (2 * TOKENS / 10 * SECONDS_PER_TOKEN + SECONDS_PER_STEP))


def test_padding_that_smaller_micro_batches_save_is_not_paid_for() -> None:
    ragged = [Shape((100, 10, 10, 10, 10, 10, 10, 10), 100, 800, 400)] * 10
    found = made_up(ragged)
    found.micro_steps.insert(2, tried(full(4, 50), is_rising=True))
    whole, halves = forecast(found), forecast(found, Change(num_parts=2))
    per_epoch = 10 * (4 * 100 + 4 * 10) * SECONDS_PER_TOKEN
    expected = 10 * per_epoch + 100 * SECONDS_PER_STEP
    assert halves.parts["steps"].value == pytest.approx(expected, rel=1e-6)
    assert halves.seconds.value < whole.seconds.value


def test_the_peak_as_measured_is_that_of_the_widest_batch() -> None:
    planned = forecast(made_up())
    assert planned.host.value == FIXED_BYTES + 8 * 19 * BYTES_PER_TOKEN
    assert planned.memory == planned.host


KEPT = 5_000_000


def keeping(shapes: list[Shape]) -> Measurement:
    """A run whose process keeps so many bytes for every new shape; the last is the widest."""
    order = [(shapes[0], True), (shapes[-1], True), (shapes[-1], True)]
    order += [(shapes[index], False) for index in (3, 5, 1, 5, 7)]
    order += [(shapes[-1], True)]
    seen: set[Shape] = set()
    steps = []
    for shape, is_rising in order:
        seen.add(shape)
        peak = FIXED_BYTES + BYTES_PER_TOKEN * shape.padded + KEPT * len(seen)
        steps.append(MicroStep(shape, 1.0, peak, 0, is_rising=is_rising))
    return replace(made_up(shapes), micro_steps=steps)


def test_what_stays_for_every_new_shape_is_counted_for_those_to_come() -> None:
    found = keeping([full(8, 10 + index) for index in range(10)])
    whole = FIXED_BYTES + 8 * 19 * BYTES_PER_TOKEN + KEPT * 10
    planned = forecast(found).host
    assert planned.value == whole
    # What has stayed is no doubt about the widest batch, which was seen with less of it.
    assert planned.error == pytest.approx(0.05 * whole)
    found.run["num_steps"] = 5  # half an epoch meets two of the four shapes that were not tried
    assert forecast(found).host.value == whole - 2 * KEPT


def test_shapes_of_later_epochs_stay_too() -> None:
    found = keeping([full(8, 10 + index) for index in range(10)])
    found.later_kinds = {full(8, width).kind for width in (3, 4, 5, 6)}
    whole = FIXED_BYTES + 8 * 19 * BYTES_PER_TOKEN + KEPT * 14
    assert forecast(found).host.value == whole
    halves = forecast(found, Change(num_parts=2)).host.value
    expected = FIXED_BYTES + 4 * 19 * BYTES_PER_TOKEN + KEPT * 14 + found.run["gradient_bytes"]
    assert halves == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_parts", [2, 4, 8])
def test_the_peak_of_smaller_micro_batches_follows_their_tokens(num_parts: int) -> None:
    found = made_up()
    expected = FIXED_BYTES + 8 * 19 * BYTES_PER_TOKEN / num_parts + found.run["gradient_bytes"]
    peak = forecast(found, Change(num_parts)).host.value
    assert peak == pytest.approx(expected, rel=1e-6)


def test_no_micro_batch_is_small_enough_to_go_below_what_stands_around_the_training() -> None:
    found = made_up()
    found.host_peaks["started"] = FIXED_BYTES + 500 * BYTES_PER_TOKEN
    assert forecast(found, Change(num_parts=8)).host.value == FIXED_BYTES + 500 * BYTES_PER_TOKEN


def test_shorter_rows_take_memory_by_their_new_length() -> None:
    peak = forecast(made_up(), Change(max_length=12)).host.value
    assert peak == pytest.approx(FIXED_BYTES + 8 * 12 * BYTES_PER_TOKEN, rel=1e-6)


def test_a_batch_that_was_too_wide_to_be_tried_is_worked_out_from_the_others() -> None:
    found = made_up()
    found.shapes.append(full(8, 100))
    peak = forecast(found).host.value
    assert peak == pytest.approx(FIXED_BYTES + 800 * BYTES_PER_TOKEN, rel=1e-6)


def test_slow_first_steps_are_paid_once_and_not_in_every_step() -> None:
    usual = forecast(made_up()).parts["steps"].value
    found = made_up()
    found.micro_steps[0] = replace(found.micro_steps[0], seconds=30.8)
    first = 80 * SECONDS_PER_TOKEN
    assert forecast(found).parts["steps"].value == pytest.approx(usual + 30.8 - first)


def test_noisy_steps_make_a_wide_bar_and_the_accelerator_decides_where_there_is_one() -> None:
    found = made_up()
    noisy = [
        replace(one, seconds=one.seconds * (1.4 if index % 2 else 0.6), device_bytes=7_000)
        for index, one in enumerate(found.micro_steps)
    ]
    planned = forecast(replace(found, micro_steps=noisy))
    assert planned.parts["steps"].error > 10 * forecast(found).parts["steps"].error
    assert planned.device == planned.memory
    assert planned.memory.value == 7_000


@pytest.mark.parametrize(
    ("count", "kept", "expected"),
    [(0, None, 500), (3, None, 3_500), (3, 1, 2_000), (3, 2, 3_000), (1, 2, 1_500)],
)
def test_disk_is_the_folder_and_the_checkpoints_that_stand_at_once(
    count: int, kept: int | None, expected: int
) -> None:
    found = made_up()
    found.run |= {"num_checkpoints": count, "kept_checkpoints": kept}
    assert forecast(found).disk.value == expected


def test_rollouts_take_their_mean_and_the_policy_may_change_that() -> None:
    found = made_up()
    found.run = {"num_rollouts": 40, "num_evaluations": 5, "num_checkpoints": 4}
    found = replace(found, micro_steps=[], rollouts=[(1.0, 90), (3.0, 110)])
    planned = forecast(found)
    assert planned.parts["steps"].value == 80
    assert planned.parts["steps"].error > 0.15 * 80
    assert planned.num_steps == 40


def test_held_out_rows_that_were_left_out_are_counted_where_they_belong(tmp_path: Path) -> None:
    lines = [
        '{"event": "evaluation", "seconds": 2, "cpu_seconds": 4, "rows_per_measured": 3}',
        '{"event": "started", "seconds": 10, "cpu_seconds": 12}',
        '{"event": "evaluation", "seconds": 1, "cpu_seconds": 2, "rows_per_measured": 3}',
        '{"event": "trained", "seconds": 50, "cpu_seconds": 60}',
        '{"event": "end", "seconds": 4, "cpu_seconds": 4}',
        '{"event": "exit", "seconds": 1, "cpu_seconds": 2}',
    ]
    file = tmp_path / "figures.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    wall, cpu = read_measurement(file), read_measurement(file, "cpu_seconds")
    assert (wall.start_seconds, wall.evaluation_seconds, wall.end_seconds) == (14, [6, 3], 5)
    assert (cpu.start_seconds, cpu.evaluation_seconds, cpu.end_seconds) == (20, [12, 6], 6)
