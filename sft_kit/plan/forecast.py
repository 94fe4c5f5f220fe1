"""From what was measured to the whole run: tokens, memory, time, disk."""

from collections.abc import Sequence
from dataclasses import dataclass

from sft_kit.plan.costs import Estimate, fit_cost, mean_cost, mean_of
from sft_kit.plan.measurement import Measurement, MicroStep
from sft_kit.plan.shapes import Kind, Shape, shorten, split

_SAME_AGAIN = 0.05
"""A machine does not do the same in the same time twice; nor does an allocator."""
_LEARNS = 0.15
"""A policy that learns writes longer or shorter completions than at its beginning."""
_ENOUGH_NEW = 3
_AROUND = ("started", "evaluation", "checkpoint", "end")
"""What takes memory beside the micro-batches."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is done to a recipe that was measured, without measuring it again.

    Attributes:
        num_parts: Micro-batches that one is cut into; accumulation keeps the global batch.
        max_length: Tokens that rows are cut to; None leaves them.
    """

    num_parts: int = 1
    max_length: int | None = None

    def shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """The micro-batches that a sequence of them becomes."""
        if self.max_length is not None:
            shapes = [shorten(shape, self.max_length) for shape in shapes]
        return [part for shape in shapes for part in split(shape, self.num_parts)]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take.

    Attributes:
        host: Peak of resident memory in bytes.
        device: Peak on the accelerator in bytes; None without one.
        seconds: In all, from the start of the process to its end.
        parts: Seconds of the start, the steps, evaluations, checkpoints and the end.
        disk: Largest size of the run folder in bytes.
        num_steps: Optimizer steps, or rollouts.
    """

    host: Estimate
    device: Estimate | None
    seconds: Estimate
    parts: dict[str, Estimate]
    disk: Estimate
    num_steps: int

    @property
    def memory(self) -> Estimate:
        """Of the two memories the one that decides: the accelerator's where there is one."""
        return self.host if self.device is None else self.device


def forecast(found: Measurement, change: Change | None = None) -> Forecast:
    """Predict a run from what was measured of it.

    Args:
        found: With micro-steps or rollouts.
        change: What will be different.
    """
    change = change or Change()
    parts = {
        "start": Estimate(found.start_seconds, 2 * _SAME_AGAIN * found.start_seconds),
        "steps": _rollouts(found) if found.rollouts else _steps(found, change),
        "evaluations": _times(found, "num_evaluations", _evaluation(found)),
        "checkpoints": _times(found, "num_checkpoints", _once(found.checkpoint_seconds)),
        "end": _end(found),
    }
    total = sum(parts.values(), Estimate(0.0, 0.0))
    seconds = Estimate(total.value, total.error + _SAME_AGAIN * total.value)
    return Forecast(
        host=_memory(found, change, on_device=False),
        device=_memory(found, change, on_device=True) if found.uses_device else None,
        seconds=seconds,
        parts=parts,
        disk=_disk(found),
        num_steps=_num_steps(found),
    )


def _num_steps(found: Measurement) -> int:
    return int(found.run.get("num_steps") or found.run.get("num_rollouts") or 0)


def _steps(found: Measurement, change: Change) -> Estimate:
    """Seconds of all optimizer steps, and of getting warm."""
    mixed = [one for one in found.micro_steps if not one.is_rising]
    warm = found.micro_steps[2:] or found.micro_steps
    # Batches as the run has them tell its time best; what is changed may be unlike all of them.
    tried = mixed if len(mixed) >= 3 and change == Change() else warm
    shapes, values = [one.shape for one in tried], [one.seconds for one in tried]
    wanted = change.shapes(found.shapes)
    micro = mean_cost(shapes, values, wanted)
    steps_per_epoch = found.run["steps_per_epoch"]
    accumulation = found.run["accumulation"]
    seen_steps = max(1.0, min(len(found.shapes) / accumulation, steps_per_epoch))
    per_step = len(wanted) / seen_steps
    rest = mean_of(found.step_seconds[-len(mixed) :] or [0.0])
    collating = found.collating_seconds / len(found.shapes) * min(per_step, accumulation)
    step = micro.times(per_step) + rest + Estimate(collating, collating / 4)
    cost = fit_cost(shapes, values)
    warming = sum(one.seconds - cost.of(one.shape) for one in found.micro_steps if one.is_rising)
    warming = max(0.0, warming)
    return step.times(_num_steps(found)) + Estimate(warming, warming)


def _rollouts(found: Measurement) -> Estimate:
    count = _num_steps(found)
    mean = mean_of([seconds for seconds, _ in found.rollouts])
    return Estimate(mean.value * count, (mean.error + _LEARNS * mean.value) * count)


def _times(found: Measurement, name: str, one: Estimate) -> Estimate:
    return one.times(found.run.get(name, 0))


def _once(seconds: float) -> Estimate:
    return Estimate(seconds, seconds / 4)


def _evaluation(found: Measurement) -> Estimate:
    """Seconds of one evaluation; the first of a process is slower, and is part of the start."""
    later = found.evaluation_seconds[-2:]
    return mean_of(later) if later else Estimate(0.0, 0.0)


def _end(found: Measurement) -> Estimate:
    """Seconds after the training; where they were not waited for, what is known to be in them."""
    if found.end_seconds is not None:
        return Estimate(found.end_seconds, 2 * _SAME_AGAIN * found.end_seconds)
    known = found.start_seconds + found.checkpoint_seconds + _evaluation(found).value
    return Estimate(known, known / 2)


def _memory(found: Measurement, change: Change, *, on_device: bool) -> Estimate:
    """Peak in bytes: of the widest micro-batch, or of what stands around the training."""
    peaks = found.device_peaks if on_device else found.host_peaks
    steps = found.micro_steps
    if not steps:
        return _with_slack(max(peaks.values(), default=0), 0.0)
    values = [one.device_bytes if on_device else one.host_bytes for one in steps]
    repeats = _repeats(found, values)
    per_shape = _growth(repeats)
    alone = [peak - per_shape * count for count, peak in repeats]
    spread = max(alone) - min(alone) if alone else 0
    if change == Change() and repeats:
        to_come = per_shape * _num_unseen(found)
        return _with_slack(max([*values, *peaks.values()]) + to_come, spread + to_come / 2)
    around = max((peaks.get(name, 0) for name in _around(change)), default=0)
    modelled = _modelled(found, change, values, per_shape)
    return _with_slack(max(around, modelled.value), max(spread, modelled.error))


def _around(change: Change) -> Sequence[str]:
    """Phases beside the steps; evaluations shrink with the micro-batches that hide them."""
    return [one for one in _AROUND if one != "evaluation" or change.num_parts == 1]


def _modelled(
    found: Measurement, change: Change, values: Sequence[int], per_shape: float
) -> Estimate:
    """Peak of the costliest micro-batch that was not tried itself."""
    before = _num_different(found.micro_steps)
    peaks = [peak - per_shape * count for peak, count in zip(values, before, strict=True)]
    pairs = list(zip(found.micro_steps, peaks, strict=True))
    rising = [(step, peak) for step, peak in pairs if step.is_rising] or pairs
    cost = fit_cost([step.shape for step, _ in rising], [peak for _, peak in rising])
    shapes = change.shapes(found.shapes)
    all_epochs = len(_kinds(found)) / len({shape.kind for shape in found.shapes})
    kept = per_shape * len({shape.kind for shape in shapes}) * all_epochs
    peak = max(map(cost.of, shapes)) + kept
    if change.num_parts > 1 and found.run["accumulation"] == 1:
        peak += found.run["gradient_bytes"]  # they are there while the next part goes forward
    return Estimate(peak, 2 * cost.residual + kept / 2)


def _repeats(found: Measurement, values: Sequence[int]) -> list[tuple[int, int]]:
    """Each time of the widest batch: how many shapes had been tried, and its peak."""
    widest = max(found.shapes, key=lambda shape: shape.padded)
    steps = found.micro_steps
    tried = zip(steps, _num_different(steps), values, strict=True)
    return [(count, peak) for one, count, peak in tried if one.shape == widest]


def _growth(repeats: Sequence[tuple[int, int]]) -> float:
    """Bytes that stay for every new shape of a batch.

    Libraries keep what they have prepared for a shape. It shows where the widest batch comes again
    after others that were new.
    """
    if len(repeats) < 3:
        return 0.0
    (before, low), (after, high) = repeats[1], repeats[-1]  # at first the optimizer has no states
    num_new = after - before
    return max(0, high - low) / num_new if num_new >= _ENOUGH_NEW else 0.0


def _kinds(found: Measurement) -> set[Kind]:
    """Shapes that the run will have, as far as its epochs were looked at."""
    num_micro = _num_steps(found) * int(found.run["accumulation"])
    return {shape.kind for shape in found.shapes[:num_micro]} | found.later_kinds


def _num_unseen(found: Measurement) -> int:
    """Number of shapes that the run will have and that were not tried."""
    return len(_kinds(found) - {one.shape.kind for one in found.micro_steps})


def _num_different(steps: Sequence[MicroStep]) -> list[int]:
    """Number of different shapes up to each step, its own included."""
    seen: set[Kind] = set()
    counts = []
    for step in steps:
        seen.add(step.shape.kind)
        counts.append(len(seen))
    return counts


def _with_slack(value: float, error: float) -> Estimate:
    return Estimate(value, max(error, _SAME_AGAIN * value))


def _disk(found: Measurement) -> Estimate:
    """Bytes of the run folder when it is largest.

    That is when a new checkpoint stands beside those it replaces, or at the end.
    """
    count = found.run.get("num_checkpoints", 0)
    kept = found.run.get("kept_checkpoints") or count
    in_training = min(count, kept + 1) * found.checkpoint_bytes
    at_the_end = min(count, kept) * found.checkpoint_bytes + found.folder_bytes
    size = max(in_training, at_the_end)
    return Estimate(size, _SAME_AGAIN * size)
