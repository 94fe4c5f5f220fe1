"""How long to wait for the Hub: for an answer, between two attempts, and for all of it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from huggingface_hub.utils._xet import abort_xet_session

T = TypeVar("T")

_SLOWEST_BYTES_PER_SECOND = 250_000
_SECONDS_BESIDE_BYTES = 600.0


class OutOfTimeError(Exception):
    """The deadline has passed, or the user has stopped waiting."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, and how often to try.

    Attributes:
        connect_seconds: For a connection.
        read_seconds: For the next bytes of an answer.
        total_seconds: For everything that was asked for; None goes by its size.
        attempts: Tries of one request.
        first_wait_seconds: Before the second try; each further wait is twice as long.
        longest_wait_seconds: Between two tries, unless the Hub asks for more.
    """

    connect_seconds: float = 10.0
    read_seconds: float = 120.0
    total_seconds: float | None = None
    attempts: int = 6
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 30.0

    def deadline(self, num_bytes: int = 0) -> "Deadline":
        """Start the clock.

        Args:
            num_bytes: To be transferred.
        """
        total = self.total_seconds
        if total is None:
            total = _SECONDS_BESIDE_BYTES + num_bytes / _SLOWEST_BYTES_PER_SECOND
        return Deadline(total)


class Deadline:
    """A moment after which nothing is asked any more.

    Args:
        total_seconds: From now on.
    """

    def __init__(self, total_seconds: float) -> None:
        self.total_seconds = total_seconds
        self._end = time.monotonic() + total_seconds
        self._is_over = threading.Event()

    def seconds_left(self) -> float:
        """Seconds until the end; 0 when it has passed or was cancelled."""
        return 0.0 if self._is_over.is_set() else max(0.0, self._end - time.monotonic())

    def cancel(self) -> None:
        """Let it end now; whoever pauses wakes up."""
        self._is_over.set()

    def check(self) -> None:
        """Raise `OutOfTimeError` where the time is over."""
        if not self.seconds_left():
            raise OutOfTimeError

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end.

        Raises:
            OutOfTimeError: The end came first.
        """
        self._is_over.wait(min(seconds, self.seconds_left()))
        self.check()

    def run(self, work: Callable[[], T]) -> T:
        """Do something that may hang, and stop waiting for it at the end.

        It runs in a thread of its own, since neither a trickle of bytes nor the Xet client knows of
        any deadline; what hangs is left behind with its requests refused.

        Raises:
            OutOfTimeError: It was not done in time.
        """
        answers: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

        def answer() -> None:
            try:
                answers.put((work(), None))
            except BaseException as error:
                answers.put((None, error))

        threading.Thread(target=answer, name="sft-kit-hub", daemon=True).start()
        try:
            result, error = answers.get(timeout=self.seconds_left())
        except Empty:
            self._give_up()
            raise OutOfTimeError from None
        except BaseException:  # Ctrl-C, or a signal to stop
            self._give_up()
            raise
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _give_up(self) -> None:
        self.cancel()
        abort_xet_session()  # type: ignore[no-untyped-call]
