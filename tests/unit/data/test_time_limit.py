import signal
import threading
import time

import pytest

from sft_kit.data.time_limit import time_limit


def spin(seconds: float) -> None:
    with time_limit(seconds):
        while True:
            pass


def test_what_takes_longer_is_interrupted():
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"longer than 0\.05 seconds"):
        spin(0.05)
    assert time.monotonic() - started < 5


def test_what_is_quick_ends_and_leaves_no_alarm():
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(30):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_other_threads_are_left_alone():
    ended = []

    def work() -> None:
        with time_limit(0.01):
            time.sleep(0.05)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [True]
