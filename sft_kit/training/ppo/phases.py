"""Seconds of the phases of a rollout."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Phases:
    """Adds up the wall time of named phases.

    Attributes:
        seconds: Phase -> seconds.
    """

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a block to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + passed

    def metrics(self) -> dict[str, float]:
        """Return `seconds` in all, and `seconds/PHASE`."""
        return {
            "seconds": sum(self.seconds.values()),
            **{f"seconds/{name}": value for name, value in self.seconds.items()},
        }
