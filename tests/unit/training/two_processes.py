"""Two forked processes that train as one run, as a launcher would start them."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

PATIENCE_SECONDS = 60.0


def in_two_processes(main: Callable[[int], object], folder: Path) -> list[str]:
    """Call a function with 0 and with 1, each in a process of one group.

    Args:
        main: Of each process.
        folder: For notes on how they end.

    Returns:
        What each ended with: empty, an exception's name and message, "died" where it ended by
        itself, or "hangs" where it had to be killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    notes = [folder / f"ended-{rank}.txt" for rank in (0, 1)]
    children = []
    for rank, note in enumerate(notes):
        child = os.fork()
        if not child:
            _run_and_exit(main, rank, port, note)
        children.append(child)
    return [_end_of(child, note) for child, note in zip(children, notes, strict=True)]


def _run_and_exit(main: Callable[[int], object], rank: int, port: int, note: Path) -> NoReturn:
    text = ""
    try:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true",
        )  # fmt: skip
        from accelerate.state import AcceleratorState, PartialState

        AcceleratorState._reset_state(reset_partial_state=True)
        assert PartialState(cpu=True).num_processes == 2
        main(rank)
        torch.distributed.barrier()
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
    finally:
        note.write_text(text, encoding="utf-8")
        os._exit(0)


def _end_of(child: int, note: Path) -> str:
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return note.read_text(encoding="utf-8") if note.is_file() else "died"
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"
