"""Signals, each sent to a forked process of its own."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from sft_kit.command import run_recipe

START = "import os, signal, sys, time\n"


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def end_of(tmp_path: Path):
    """Run lines of code as a recipe's `main`, in a fork."""

    def run(body: str, environment: Mapping[str, str] = MappingProxyType({})) -> Ended:
        files = [tmp_path / "stdout", tmp_path / "stderr"]
        child = os.fork()
        if not child:
            run_and_exit(START + body, files, environment)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Ended(code, *(file.read_text() for file in files))

    return run


def run_and_exit(body: str, files: list[Path], environment: Mapping[str, str]) -> None:
    code = 70
    try:
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by background jobs
        os.environ.pop("LOCAL_RANK", None)
        os.environ.update(environment)
        run_recipe(lambda: exec(compile(body, "main", "exec"), {}))
        code = 0
    except SystemExit as end:
        code = int(str(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def is_dead(pid: int) -> bool:
    """Whether a process has ended, or does so within seconds."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(250):
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_sigterm_outside_of_training_ends_a_command_at_once_and_unwinds_it(end_of, tmp_path: Path):
    body = f"""
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
except Exception:
    print("swallowed")
finally:
    open({str(tmp_path / "unwound")!r}, "w").close()
"""
    ended = end_of(body)
    assert ended.returncode == 143
    assert "stopped by SIGTERM" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert (tmp_path / "unwound").exists()


def test_ctrl_c_outside_of_training_ends_a_command_at_once(end_of):
    ended = end_of("os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)")
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr


CATCH = """
from sft_kit.stopping import catch_stop_signals
with catch_stop_signals("finishing the step") as request:
{}
print("after")
"""


@pytest.fixture
def caught(end_of):
    """Run lines of code while signals are noted."""

    def run(block: str, environment: Mapping[str, str] = MappingProxyType({})) -> Ended:
        lines = "".join(f"    {line}\n" for line in block.strip().splitlines())
        return end_of(CATCH.format(lines), environment)

    return run


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_first_signal_is_noted_and_told(caught, name: str):
    ended = caught(
        f"os.kill(os.getpid(), signal.{name})\nprint(request.signal_number)\nos._exit(0)"
    )
    assert f"{name}: finishing the step; again: stop at once" in ended.stderr
    assert ended.returncode == 0


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_second_signal_ends_the_process_at_once_and_its_children(
    caught, name: str, code: int, tmp_path: Path
):
    block = f"""
import multiprocessing
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
child.start()
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(1.2)
os.kill(os.getpid(), signal.{name})
print("still here")
"""
    ended = caught(block)
    assert ended.returncode == code
    assert ended.stdout == ""
    assert f"{name}: stopped at once" in ended.stderr
    assert is_dead(int((tmp_path / "pid").read_text()))


def test_a_signal_that_a_launcher_forwards_at_once_is_the_same_request(caught):
    block = """
os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGTERM)
print("still here", request.signal_number, flush=True)
os._exit(0)
"""
    ended = caught(block)
    assert ended.stdout == f"still here {int(signal.SIGINT)}\n"
    assert ended.stderr.count("finishing the step") == 1


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_that_nobody_looked_at_any_more_counts_after_the_block(
    caught, name: str, code: int
):
    ended = caught(f"os.kill(os.getpid(), signal.{name})")
    assert ended.returncode == code
    assert "after" not in ended.stdout


def test_only_the_first_process_of_a_machine_tells(caught):
    block = "os.kill(os.getpid(), signal.SIGTERM)\nos._exit(0)"
    assert "SIGTERM" in caught(block, {"LOCAL_RANK": "0"}).stderr
    assert caught(block, {"LOCAL_RANK": "1"}).stderr == ""


def test_a_worker_is_not_interrupted_by_the_terminal_and_can_be_terminated(caught):
    block = """
child = os.fork()
if not child:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), request.signal_number, flush=True)
"""
    ended = caught(block)
    assert ended.stdout == f"{-signal.SIGTERM} 0\nafter\n"
    assert ended.stderr == ""
    assert ended.returncode == 0


def test_a_signal_that_is_ignored_stays_ignored(end_of):
    before = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    inside = "    os.kill(os.getpid(), signal.SIGINT)\n    print(request.signal_number)\n"
    ended = end_of(before + CATCH.format(inside).strip())
    assert ended.stdout == "0\nafter\n"


def test_handlers_are_put_back(end_of):
    body = """
from sft_kit.stopping import catch_stop_signals
before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
with catch_stop_signals("x"):
    assert signal.getsignal(signal.SIGINT) is not before[0]
print(before == [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)])
"""
    assert end_of(body).stdout == "True\n"


def test_a_thread_that_is_not_the_main_one_can_train_without_handlers(end_of):
    body = """
import threading
from sft_kit.stopping import catch_stop_signals
def work():
    with catch_stop_signals("x") as request:
        print(request.signal_number)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    ended = end_of(body)
    assert (ended.stdout, ended.returncode) == ("0\n", 0)


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ('StoppedError("stopped by SIGTERM after step 3", 15)', 143, "stopped by SIGTERM after"),
        ('StoppedError("stopped by SIGINT after step 3", 2)', 130, "stopped by SIGINT after"),
        ('NonFiniteError("step 3: the loss is nan")', 3, "error: step 3: the loss is nan"),
        ('TrainingError("no memory")', 2, "error: no memory"),
    ],
)
def test_how_a_run_ended_is_its_exit_code(end_of, raised: str, code: int, said: str):
    ended = end_of(f"from sft_kit.errors import *\nraise {raised}")
    assert ended.returncode == code
    assert ended.stderr.startswith(said)


def test_sigterm_ends_a_command_of_the_command_line_with_its_code(end_of):
    body = """
from sft_kit import cli
from sft_kit.config import run_recipe
def answer() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
cli.app.command("answer")(answer)
sys.argv = ["sft-kit", "answer"]
cli.main()
"""
    ended = end_of(body)
    assert ended.returncode == 143
    assert "Traceback" not in ended.stderr
