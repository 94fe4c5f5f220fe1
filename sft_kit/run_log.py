"""The log of a run: every figure as it came, one JSON object a line."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

LOG_FILE = "log.jsonl"


def append_log(folder: Path, figures: Mapping[str, float | None]) -> None:
    """Append one line to the log of a run: seconds since 1970 and the figures."""
    with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.time(), **figures}) + "\n")


def cut_log(folder: Path, step: int) -> None:
    """Drop what an interrupted run logged after the checkpoint that is resumed.

    Args:
        folder: Run folder.
        step: Step of the checkpoint. Later lines go, and so does a line that was cut off.
    """
    path = folder / LOG_FILE
    if not path.is_file():
        return
    kept: list[str] = []
    last = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            logged = int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            break
        if not last <= logged <= step:
            break
        kept.append(f"{line}\n")
        last = logged
    path.write_text("".join(kept), encoding="utf-8")
