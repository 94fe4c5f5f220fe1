"""From the command to the first optimizer step, beside the bare import of the libraries.

    python benchmarks/start_time.py
    python benchmarks/start_time.py --rounds 9 --json figures.json

`imports` is a Python that imports torch, transformers, peft and datasets and ends. `first step` is
the recipe on the embedded checkpoint, ended behind its first optimizer step: until then it has read
and checked the data, loaded the model, answered the sample prompts and evaluated the held-out rows.
`check` is `sft-kit check` of the same recipe. All in turn; figures are medians of the rounds, after
one that warms the disk's cache. Seconds by the clock need an idle machine; those of the processor
need none.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "peft", "datasets")
RECIPE = REPOSITORY / "recipes" / "sft_gpt2_lora"
SETTINGS = (
    "--overwrite",  # the run before was ended in its first step
    "model.checkpoint=data/checkpoints/tiny-gpt2",
    "model.quantization=none",
)
STEPPED = 77
HOOK = f"""
import os, runpy, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit({STEPPED}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Ends the process when an optimizer has made a step."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure round by round, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        output = f"train.output_dir={folder}/run"
        recipe = [f"{RECIPE}.py", *SETTINGS, output]
        check = "from sft_kit.cli import main; main()"
        sides = {
            "imports": ([sys.executable, "-c", f"import {', '.join(PACKAGES)}"], 0),
            "first step": ([sys.executable, "-c", HOOK, *recipe], STEPPED),
            "check": ([sys.executable, "-c", check, "check", f"{RECIPE}.yaml"], 0),
        }
        rounds = [
            {name: run(*command, cwd=Path(folder, name)) for name, command in sides.items()}
            for _ in range(options.rounds + 1)
        ][1:]
    figures = {
        name: {
            unit: statistics.median(turn[name][unit] for turn in rounds)
            for unit in ("seconds", "cpu_seconds")
        }
        for name in sides
    }
    record = {
        "rounds": options.rounds,
        "processor": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "figures": figures,
    }
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def run(command: Sequence[str], expected: int, cwd: Path) -> dict[str, float]:
    """Run a command in the repository; returns its seconds, and those of the processor."""
    cwd.mkdir(exist_ok=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd)}
    with (cwd / "output.txt").open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=REPOSITORY, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected:
        raise SystemExit((cwd / "output.txt").read_text(encoding="utf-8")[-4000:])
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime}


def show(figures: dict[str, Any]) -> None:
    """Print the table, with each side's share of the bare imports."""
    table = Table("", "s", "x imports", "CPU s", "x imports")
    for name, row in figures.items():
        cells = []
        for unit in ("seconds", "cpu_seconds"):
            cells += [f"{row[unit]:.2f}", f"{row[unit] / figures['imports'][unit]:.2f}"]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
