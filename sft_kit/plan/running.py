"""The process that is measured: started, waited for, and cleaned up after."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from sft_kit.disk import folder_bytes
from sft_kit.errors import SftKitError
from sft_kit.plan.measurement import PHASES, Clock, Measurement, read_measurement

END_SECONDS = 60.0
"""The end of a run is waited for so long; where others use the machine, by CPU time."""
_LONGEST = 600.0
_LOOK_EVERY = 0.1
_RAISED = re.compile(r"[\w.]*(Error|Exception|Exit)\b.*")
"""The last line of a traceback."""


def measure(
    recipe: Path, words: Sequence[str], *, clock: Clock = "seconds", to_the_end: bool = True
) -> Measurement:
    """Run a recipe in a process of its own with a few steps, in a folder that is deleted again.

    Args:
        recipe: Its Python file.
        words: Its command line: `--config FILE` and overrides.
        clock: Which clock to read.
        to_the_end: Wait for what comes after the training too.

    Raises:
        SftKitError: What the recipe itself refuses, or that it failed.
    """
    with tempfile.TemporaryDirectory(prefix="sft-kit-plan-") as name:
        folder = Path(name)
        figures = folder / "figures.jsonl"
        command = [sys.executable, "-m", "sft_kit.plan.child", str(recipe), str(figures), name]
        words = [*words, f"train.output_dir={folder / 'run'}"]
        cpu_before = _cpu_of_children()
        with _started([*command, *words], folder / "output.txt") as child:
            _wait(child, figures, to_the_end=to_the_end)
        ended = child.returncode
        _note_exit(figures, _cpu_of_children() - cpu_before)
        _raise_refusal(recipe, figures, folder / "output.txt", ended)
        found = read_measurement(figures, clock)
        found.folder_bytes = folder_bytes(folder / "run")
        if ended == -signal.SIGKILL and "trained" not in found.host_peaks:
            found.died = "the system ended the process for want of memory"
        return found


@contextmanager
def _started(command: Sequence[str], output: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a process that a signal to this one does not reach, and end it with the block.

    It ends by itself when the pipe to it is closed, which this process can't fail to do.
    """
    environ = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    with output.open("wb") as file:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        assert child.stdin is not None
        child.stdin.close()


def _wait(child: "subprocess.Popen[bytes]", figures: Path, *, to_the_end: bool) -> None:
    """Wait until the process is done, or has told all that is wanted."""
    process = psutil.Process(child.pid)
    began: tuple[float, float] | None = None
    while child.poll() is None:
        time.sleep(_LOOK_EVERY)
        if began is None:
            if _has_trained(figures):
                began = time.monotonic(), _cpu_of(process)
            continue
        if not to_the_end:
            return
        passed = time.monotonic() - began[0]
        if passed > _LONGEST or min(passed, _cpu_of(process) - began[1]) > END_SECONDS:
            return


def _cpu_of(process: psutil.Process) -> float:
    """CPU seconds of a process so far; infinite where it is gone."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return math.inf
    return float(times.user + times.system)


def _has_trained(figures: Path) -> bool:
    return figures.is_file() and b'{"event": "trained"' in figures.read_bytes()


def _note_exit(figures: Path, cpu_seconds: float) -> None:
    """Write how long the process went on after its last word: what it has loaded is taken down."""
    lines = figures.read_text(encoding="utf-8").splitlines() if figures.is_file() else []
    phases = [line for line in map(json.loads, lines) if line["event"] in PHASES]
    if not phases or phases[-1]["event"] != PHASES[-1]:
        return
    line = {
        "event": "exit",
        "seconds": time.time() - phases[-1]["time"],
        "cpu_seconds": max(0.0, cpu_seconds - sum(one["cpu_seconds"] for one in phases)),
    }
    with figures.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _cpu_of_children() -> float:
    """CPU seconds of all processes that were started here and have ended."""
    import resource  # only Unix has it

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _raise_refusal(recipe: Path, figures: Path, output: Path, code: int | None) -> None:
    """Raise what the recipe has refused, in its own words."""
    lines = figures.read_text(encoding="utf-8").splitlines() if figures.is_file() else []
    for line in map(json.loads, lines):
        if line["event"] == "error":
            raise SftKitError(line["text"])
    if code in (0, -signal.SIGKILL):
        return
    said = output.read_text(encoding="utf-8", errors="replace")
    reasons = [line for line in said.splitlines() if _RAISED.match(line)]  # a bar may follow
    raise SftKitError(
        f"{recipe.name} failed while it was measured: {(reasons or [f'exit code {code}'])[-1]}. "
        "Start the recipe itself to see where"
    )
