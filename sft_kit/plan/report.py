"""A plan in plain words."""

from collections.abc import Iterator, Sequence

from sft_kit.disk import in_bytes
from sft_kit.plan.changes import Option
from sft_kit.plan.costs import Estimate
from sft_kit.plan.forecast import Forecast
from sft_kit.plan.measurement import Measurement

_BUSY = 0.8
_LABEL = 9


def plan_lines(
    found: Measurement, planned: Forecast, *, num_threads: int, free_disk: int
) -> Iterator[str]:
    """Say what a run is made of and what it will take.

    Args:
        found: What was measured.
        planned: What follows from it.
        num_threads: That it computed with, on a CPU.
        free_disk: Bytes that are free where the run folder will be.
    """
    yield from _tokens(found, planned)
    if planned.device is not None:
        free = in_bytes(found.free_device_bytes)
        yield _line("device", f"{in_words(planned.device)} at the peak ({free} are free)")
    free = in_bytes(found.free_host_bytes)
    yield _line("memory", f"{in_words(planned.host)} at the peak ({free} are free)")
    yield _line("time", time_in_words(planned.seconds))
    for name, part in planned.parts.items():
        count = found.run.get(f"num_{name}", "")
        if part.value or count:
            yield _line("", f"{f'{count} {name}'.strip():<16} {time_in_words(part)}")
    yield _line("disk", f"{_disk(found, planned)} ({in_bytes(free_disk)} are free)")
    if planned.disk.upper > free_disk:
        yield "note: the disk will be full: train.output_dir, or a smaller train.save_total_limit"
    yield from _notes(found, num_threads)


def option_lines(options: Sequence[Option], limit: float) -> Iterator[str]:
    """Say what makes a run fit, the cheapest first."""
    yield f"more than {in_bytes(round(limit))}. What makes it fit, the cheapest first:"
    for option in options:
        memory, seconds = option.forecast.memory, option.forecast.seconds
        how = "measured" if option.is_measured else "worked out"
        yield f"  {' '.join(option.words)}"
        yield f"    {in_words(memory)}, {time_in_words(seconds)} ({how}); {option.price}"


def in_words(size: Estimate) -> str:
    """Write bytes with their error."""
    return f"{in_bytes(round(size.value))} ± {in_bytes(round(size.error))}"


def time_in_words(seconds: Estimate) -> str:
    """Write seconds with their error, in the unit that suits them."""
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds.value >= 2 * unit:
            return f"{seconds.value / unit:.1f} {name} ± {seconds.error / unit:.1f}"
    return f"{seconds.value:.1f} s ± {seconds.error:.1f}"


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL}}{text}"


def _tokens(found: Measurement, planned: Forecast) -> Iterator[str]:
    run = found.run
    if found.rollouts:
        prompts = run["prompt_lengths"]
        drawn = sum(count for _, count in found.rollouts) / len(found.rollouts)
        text = f"{len(prompts):,} prompts of {sum(prompts) / len(prompts):.0f} tokens on average"
        yield _line("tokens", f"{text}, {max(prompts):,} at most")
        episodes = run["episodes"]
        text = f"{planned.num_steps:,} of {episodes:,} episodes, {drawn:,.0f} tokens drawn in each"
        yield _line("rollouts", text)
        return
    shapes = found.shapes
    padded = sum(shape.padded for shape in shapes)
    real = sum(shape.real for shape in shapes)
    labelled = sum(shape.labelled for shape in shapes)
    widest = max(shapes, key=lambda shape: shape.padded)
    num_rows = sum(len(shape.lengths) for shape in shapes)
    seen = len(shapes) / run["accumulation"] / run["steps_per_epoch"]
    which = "an epoch" if seen >= 0.99 else f"the first {len(shapes):,} batches"
    text = f"{real:,} in {num_rows:,} rows ({which}), {labelled / max(real, 1):.0%} labelled"
    yield _line("tokens", text)
    text = f"{1 - real / padded:.0%} of what is computed; widest batch "
    yield _line("padding", f"{text}{len(widest.lengths)} x {widest.width:,}")
    epochs = planned.num_steps / run["steps_per_epoch"]
    each = padded / len(shapes) * run["accumulation"]
    text = f"{planned.num_steps:,} ({epochs:.2g} epochs) of {each:,.0f} tokens with padding"
    yield _line("steps", text)


def _disk(found: Measurement, planned: Forecast) -> str:
    text = f"{in_words(planned.disk)} in the run folder"
    count = found.run.get("num_checkpoints", 0)
    if not count:
        return text
    kept = found.run.get("kept_checkpoints") or count
    size = in_bytes(found.checkpoint_bytes)
    return f"{text} at its largest: {min(count, kept)} checkpoints of {size} stay"


def _notes(found: Measurement, num_threads: int) -> Iterator[str]:
    if found.died:
        yield f"note: {found.died} at its widest batches; what follows from the others stands here"
    if found.end_seconds is None and not found.died:
        yield "note: the end of the run takes long: its time is worked out, its memory left out"
    if found.run.get("stops_early"):
        yield "note: early stopping may end the run sooner"
    share = found.cpu_share / num_threads
    if not found.uses_device and share < _BUSY:
        yield (
            f"note: the machine was busy: {share:.0%} of the processor time was this run's. Where "
            "it is left alone the run is faster"
        )
    if found.run.get("num_processes", 1) > 1:
        yield "note: memory is that of one process"
