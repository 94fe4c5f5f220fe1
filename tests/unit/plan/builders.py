"""Measurements made up by a formula, so that a plan's arithmetic can be checked by hand."""

from collections.abc import Sequence

from sft_kit.plan.measurement import Measurement, MicroStep
from sft_kit.plan.shapes import Shape

FIXED_BYTES, BYTES_PER_TOKEN = 1_000_000_000, 1_000_000
SECONDS_PER_TOKEN, SECONDS_PER_STEP = 0.01, 0.5


def full(num_rows: int, width: int) -> Shape:
    """A micro-batch without padding, with half of its tokens labelled."""
    padded = num_rows * width
    return Shape((width,) * num_rows, width, padded, padded // 2)


def tried(shape: Shape, *, is_rising: bool, factor: float = 1.0) -> MicroStep:
    """A micro-step whose time and memory are proportional to its tokens."""
    seconds = SECONDS_PER_TOKEN * shape.padded * factor
    peak = FIXED_BYTES + round(BYTES_PER_TOKEN * shape.padded * factor)
    return MicroStep(shape, seconds, peak, 0, is_rising=is_rising)


def made_up(shapes: Sequence[Shape] | None = None, *, factor: float = 1.0) -> Measurement:
    """A run of 100 steps, 10 in an epoch, one micro-batch of 8 rows in each.

    Args:
        shapes: Of an epoch.
        factor: What the seconds and the memory of a token are multiplied by.
    """
    shapes = shapes or [full(8, 10 + index) for index in range(10)]
    by_tokens = sorted(shapes, key=lambda shape: shape.padded)
    return Measurement(
        "seconds",
        run={
            "num_steps": 100, "steps_per_epoch": 10, "accumulation": 1, "micro_batch": 8,
            "eval_batch": 4,
            "num_evaluations": 4, "num_checkpoints": 3, "kept_checkpoints": 1,
            "gradient_bytes": 2_000_000,
        },
        shapes=list(shapes),
        micro_steps=[
            *(tried(shape, is_rising=True, factor=factor) for shape in by_tokens[::3]),
            *(tried(shape, is_rising=False, factor=factor) for shape in shapes),
        ],
        step_seconds=[SECONDS_PER_STEP] * 14,
        start_seconds=10.0,
        end_seconds=5.0,
        evaluation_seconds=[2.0, 2.0],
        checkpoint_seconds=1.0,
        checkpoint_bytes=1_000,
        folder_bytes=500,
        host_peaks={"started": FIXED_BYTES, "evaluation": FIXED_BYTES},
        free_host_bytes=20_000_000_000,
    )  # fmt: skip
