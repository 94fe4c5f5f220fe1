"""Signals that ask a process to stop: at once, or when the step under way is done and saved."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

_SAME_REQUEST_SECONDS = 1.0
"""A launcher forwards a signal that its processes have got from the terminal or the scheduler."""


@dataclass(slots=True)
class StopRequest:
    """Whether this process was asked to stop.

    Attributes:
        signal_number: 0 while nobody has asked.
        seconds: Monotonic time of the first signal.
    """

    signal_number: int = 0
    seconds: float = 0.0


@contextmanager
def end_on_terminate() -> Iterator[None]:
    """Have SIGTERM end a block at once, with a line and exit code 143; Ctrl-C does so by itself.

    The block is unwound as by an error, so that nothing half-written is left; a second signal does
    not wait for that.
    """
    request = StopRequest()

    def end(number: int) -> None:
        if request.signal_number:
            _exit_if_asked_again(request, number)
            return
        request.signal_number, request.seconds = number, time.monotonic()
        _tell("stopped by SIGTERM; a run with checkpoints continues with `--resume`")
        raise SystemExit(exit_code(number))

    with _handled_by(end, signal.SIGTERM):
        yield


@contextmanager
def catch_stop_signals(promise: str) -> Iterator[StopRequest]:
    """Note the first SIGTERM or SIGINT instead of ending the block; a second one ends the process.

    Whoever yields to this looks at the request when something is complete. A signal that was noted
    when nobody looked any more counts after the block.

    Args:
        promise: What is done before the process ends, for the line that is printed.
    """
    request = StopRequest()

    def note(number: int) -> None:
        if request.signal_number:
            _exit_if_asked_again(request, number)
            return
        request.signal_number, request.seconds = number, time.monotonic()
        _tell(f"{signal.Signals(number).name}: {promise}; again: stop at once")

    with _handled_by(note, signal.SIGTERM, signal.SIGINT):
        yield request
    if request.signal_number:
        signal.raise_signal(request.signal_number)


def exit_code(signal_number: int) -> int:
    """Exit code of a process that a signal has ended, as a shell counts: 130 of Ctrl-C."""
    return 128 + signal_number


@contextmanager
def _handled_by(handler: Callable[[int], None], *numbers: int) -> Iterator[None]:
    """Hand signals to a handler, in this process and not in those forked from it.

    One that is ignored, as of a background job, stays so; a thread can't set handlers at all.
    """
    owner = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == owner:
            handler(number)
        elif number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        # A worker that the terminal interrupts too goes on: the step still needs its rows.

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = [one for one in numbers if signal.getsignal(one) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _exit_if_asked_again(request: StopRequest, number: int) -> None:
    if time.monotonic() - request.seconds > _SAME_REQUEST_SECONDS:
        _exit_now(number)


def _exit_now(number: int) -> NoReturn:
    _tell(f"{signal.Signals(number).name}: stopped at once")
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(exit_code(number))


def _tell(text: str) -> None:
    # Not by sys.stderr: the signal may have come while that was writing.
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, f"\n{text}\n".encode())
