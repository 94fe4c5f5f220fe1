"""The figures of a measured run, written one JSON object a line while it goes on.

A run that is killed for want of memory leaves what it has measured.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from sft_kit.devices import host_peak_bytes
from sft_kit.host_memory import free_host_bytes

_FORGET_PEAK = "5"
"""What Linux takes for "the peak of resident memory begins anew"."""


@dataclass(slots=True)
class Part:
    """What a part of the run took.

    Attributes:
        seconds: Of wall time.
        cpu_seconds: Of all cores together.
        host_bytes: Peak of resident memory.
        device_bytes: Peak of what was reserved on the accelerator; 0 without one.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    host_bytes: int = 0
    device_bytes: int = 0


class Recorder:
    """Takes time and peaks of the parts of a run.

    Args:
        path: File to write; a phase of the run follows the other there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._host = self._device = 0  # peaks of this phase that were forgotten since
        self.write("machine", None, **_memory())
        age = time.time() - psutil.Process().create_time()
        self._began = time.perf_counter() - age, 0.0

    @contextmanager
    def part(self) -> Iterator[Part]:
        """Time a block, with a peak of its own."""
        self._fold()
        part = Part()
        wall, cpu = _now()
        try:
            yield part
        finally:
            ended = _now()
            part.seconds, part.cpu_seconds = ended[0] - wall, ended[1] - cpu
            part.host_bytes, part.device_bytes = self.peaks()
            self._fold()

    def phase(self, event: str) -> None:
        """Write what the run has taken since its last phase; the first begins with the process."""
        self._fold()
        wall, cpu = _now()
        taken = Part(wall - self._began[0], cpu - self._began[1], self._host, self._device)
        self.write(event, taken)
        self._host = self._device = 0
        self._began = wall, cpu

    def write(self, event: str, part: Part | None = None, **figures: object) -> None:
        """Append one line."""
        taken = {} if part is None else {name: getattr(part, name) for name in part.__slots__}
        line = {"event": event, "time": time.time(), **taken, **figures}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def peaks(self) -> tuple[int, int]:
        """Peaks of host and accelerator since they were last forgotten, in bytes."""
        device = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
        return host_peak_bytes(), device

    def _fold(self) -> None:
        """Keep the peaks for the phase under way, and let them begin anew."""
        host, device = self.peaks()
        self._host, self._device = max(self._host, host), max(self._device, device)
        with suppress(OSError):  # not Linux: the peak is that of the whole run so far
            Path("/proc/self/clear_refs").write_text(_FORGET_PEAK, encoding="ascii")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


def _memory() -> dict[str, int]:
    """Bytes that are free on the host and on the accelerator, before anything is loaded."""
    device = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    return {"free_host_bytes": free_host_bytes(), "free_device_bytes": device}


def _now() -> tuple[float, float]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()
