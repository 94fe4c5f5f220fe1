"""The log of a run: every figure as it came, one JSON object a line."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from sft_kit.disk import telling_full_disk

LOG_FILE = "log.jsonl"


def append_log(folder: Path, figures: Mapping[str, float | None]) -> None:
    """Append one line to the log of a run: seconds since 1970 and the figures."""
    line = json.dumps({"time": time.time(), **figures}) + "\n"
    with (
        telling_full_disk(folder, LOG_FILE),
        (folder / LOG_FILE).open("a", encoding="utf-8") as file,
    ):
        file.write(line)


def cut_log(folder: Path, step: int, num_last: int | None = None) -> None:
    """Drop what an interrupted run logged after the checkpoint that is resumed.

    Args:
        folder: Run folder.
        step: Step of the checkpoint. Later lines go, and so does a line that was cut off.
        num_last: Lines of that very step which the checkpoint knows of; None keeps all.
    """
    path = folder / LOG_FILE
    if not path.is_file():
        return
    kept: list[str] = []
    before: list[set[str]] = []
    last = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            figures = dict(json.loads(line))
            logged = int(figures["step"])
        except (ValueError, KeyError, TypeError):
            break
        if not last <= logged <= step or (logged == step and num_last == 0):
            break
        if logged == step and num_last is not None:
            num_last -= 1
        if logged == 0:
            if set(figures) in before:  # each session evaluates anew before it resumes
                continue
            before.append(set(figures))
        kept.append(f"{line}\n")
        last = logged
    path.write_text("".join(kept), encoding="utf-8")
