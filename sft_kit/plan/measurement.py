"""What a measured run has told, read back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sft_kit.plan.shapes import Kind, Shape

Clock = Literal["seconds", "cpu_seconds"]

PHASES = ("started", "trained", "end")
"""What the time of a run is cut into; each is written when it is over."""


@dataclass(frozen=True, slots=True)
class MicroStep:
    """A micro-batch that was tried.

    Attributes:
        shape: What it was made of.
        seconds: Forward and backward.
        host_bytes: Peak of resident memory.
        device_bytes: Peak on the accelerator; 0 without one.
        is_rising: From the series that goes from narrow to wide.
    """

    shape: Shape
    seconds: float
    host_bytes: int
    device_bytes: int
    is_rising: bool


@dataclass(slots=True)
class Measurement:
    """Everything that was measured of one recipe.

    Attributes:
        clock: Which clock the seconds are of.
        run: Sizes of the whole run, as the child wrote them with `batches` or `rollouts`.
        shapes: Batches of an epoch, or of its beginning; none of PPO.
        later_kinds: What the later epochs of the run have that those are not.
        micro_steps: As they were tried.
        step_seconds: Of each step beside its micro-batches: clipping, optimizer, logging.
        rollouts: Seconds and drawn tokens of each rollout; PPO only.
        collating_seconds: Of all `shapes` together.
        start_seconds: From the process to the training, all held-out rows counted.
        end_seconds: From the training to the end; None where it was not waited for.
        evaluation_seconds: Of all held-out rows; one entry for each time.
        checkpoint_seconds: Of one checkpoint.
        checkpoint_bytes: Of one checkpoint.
        folder_bytes: Of the run folder without checkpoints.
        host_peaks: Phase -> peak of resident memory.
        device_peaks: Phase -> peak on the accelerator.
        free_host_bytes: Free before anything was loaded.
        free_device_bytes: The same on the accelerator; 0 without one.
        cpu_share: CPU time by wall time of the steps.
        died: How the process ended, where it did not by itself.
    """

    clock: Clock
    run: dict[str, Any] = field(default_factory=dict)
    shapes: list[Shape] = field(default_factory=list)
    later_kinds: set[Kind] = field(default_factory=set)
    micro_steps: list[MicroStep] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    rollouts: list[tuple[float, int]] = field(default_factory=list)
    collating_seconds: float = 0.0
    start_seconds: float = 0.0
    end_seconds: float | None = None
    evaluation_seconds: list[float] = field(default_factory=list)
    checkpoint_seconds: float = 0.0
    checkpoint_bytes: int = 0
    folder_bytes: int = 0
    host_peaks: dict[str, int] = field(default_factory=dict)
    device_peaks: dict[str, int] = field(default_factory=dict)
    free_host_bytes: int = 0
    free_device_bytes: int = 0
    cpu_share: float = 1.0
    died: str = ""

    @property
    def uses_device(self) -> bool:
        """Whether the model was on an accelerator."""
        return any(self.device_peaks.values()) or any(one.device_bytes for one in self.micro_steps)


def read_measurement(path: Path, clock: Clock = "seconds") -> Measurement:
    """Read the figures of a measured run, whole or cut off.

    Args:
        path: What `Recorder` wrote.
        clock: Wall time, or CPU time of all cores.
    """
    found = Measurement(clock)
    unmeasured = 0.0  # of the phase under way: held-out rows that were left out
    busy = [0.0, 0.0]
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        event = line["event"]
        if event in ("micro_step", "rollout"):
            busy[0] += line["cpu_seconds"]
            busy[1] += line["seconds"]
        if event == "evaluation":
            whole = line[clock] * line["rows_per_measured"]
            found.evaluation_seconds.append(whole)
            unmeasured += whole - line[clock]
        elif event in PHASES:
            _take_phase(found, line, unmeasured)
            unmeasured = 0.0
        else:
            _take(found, line)
        if "host_bytes" in line:
            _raise_peak(found.host_peaks, event, line["host_bytes"])
            _raise_peak(found.device_peaks, event, line["device_bytes"])
    found.cpu_share = busy[0] / busy[1] if busy[1] else 1.0
    return found


def _raise_peak(peaks: dict[str, int], event: str, num_bytes: int) -> None:
    peaks[event] = max(peaks.get(event, 0), num_bytes)


def _take_phase(found: Measurement, line: Mapping[str, Any], unmeasured: float) -> None:
    seconds = line[found.clock] + unmeasured
    if line["event"] == "started":
        found.start_seconds = seconds
    elif line["event"] == "end":
        found.end_seconds = seconds


def _take(found: Measurement, line: Mapping[str, Any]) -> None:
    event, clock = line["event"], found.clock
    if event == "batches":
        found.run = dict(line)
        found.shapes = [_shape(one) for one in line["shapes"]]
        found.later_kinds = {(rows, width, padded) for rows, width, padded in line["later_kinds"]}
        found.collating_seconds = line[clock]
    elif event == "machine":
        found.free_host_bytes = line["free_host_bytes"]
        found.free_device_bytes = line["free_device_bytes"]
    elif event == "rollouts":
        found.run = dict(line)
    elif event == "micro_step":
        peaks = line["host_bytes"], line["device_bytes"]
        is_rising = line["kind"] == "rising"
        step = MicroStep(_shape(line["shape"]), line[clock], *peaks, is_rising)
        found.micro_steps.append(step)
    elif event == "step":
        found.step_seconds.append(line[clock])
    elif event == "rollout":
        found.rollouts.append((line[clock], line["drawn"]))
    elif event == "exit":
        found.end_seconds = (found.end_seconds or 0.0) + line[clock]
    elif event == "checkpoint":
        found.checkpoint_seconds, found.checkpoint_bytes = line[clock], line["bytes"]


def _shape(described: Mapping[str, Any]) -> Shape:
    return Shape(**{**described, "lengths": tuple(described["lengths"])})
