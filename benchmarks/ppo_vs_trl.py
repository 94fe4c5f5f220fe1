"""PPO here beside the last TRL that has it: what is reached at each beta, and the CPU time.

    python benchmarks/ppo_vs_trl.py --install DIR       # makes TRL's environment, then measures
    python benchmarks/ppo_vs_trl.py --trl DIR           # measures with one made before
    python benchmarks/ppo_vs_trl.py --trl DIR --betas 0.1 --seeds 0 --rounds 1 --updates 4

TRL 1.12.0 was the last to have PPO. It is installed into an environment of its own, with the other
versions of constraints.txt, from the package index that pip is set up with. Where it can't be had,
the script says so and measures nothing.

Both learn in the enumerated world of ppo_worlds.py without stop bonus, with equal episodes, epochs,
learning rate and optimizer updates, and are judged by the exact J = E[R] - beta * KL: the median
over seeds must be no more than 0.005 below TRL's. CPU time is that of the process around training
alone, in the long world, the sides in turn; the median over rounds of our share of TRL's must be at
most 0.6 with values from a model or adapter of their own, and 0.4 with a shared head.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ppo_worlds import Task, checkpoint, world_of
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
TRL = "1.12.0"
BETAS = (0.05, 0.1, 0.2, 0.5)
TOLERANCE = 0.005
MOST_CPU = {"model": 0.6, "adapter": 0.6, "shared": 0.4}
PACKAGES = ("torch", "transformers", "peft", "accelerate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON; 1 where a bound is missed."""
    options = parse(arguments)
    console = Console()
    try:
        python = trl_python(options)
    except NoTrlError as error:
        console.print(f"skipped: {error}", markup=False, highlight=False, soft_wrap=True)
        return 0
    frontier = [reach(beta, python, options) for beta in options.betas]
    speed = cpu_times(python, options) if options.rounds else []
    show(console, frontier, speed, options)
    if options.json:
        record = {
            "options": {name: str(value) for name, value in vars(options).items()},
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
            "versions": {name: version(name) for name in PACKAGES} | {"trl": TRL},
            "frontier": frontier,
            "speed": speed,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["within"] for row in [*frontier, *speed]) else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--install", type=Path, help="make TRL's environment in this new folder")
    where.add_argument("--trl", type=Path, help="folder of an environment made by --install")
    parser.add_argument("--betas", type=float, nargs="*", default=list(BETAS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=40, help="rollouts per training")
    parser.add_argument("--minibatches", type=int, default=1, help="ours; TRL's have no effect")
    parser.add_argument("--values", nargs="+", choices=list(MOST_CPU), default=list(MOST_CPU))
    parser.add_argument("--rounds", type=int, default=3, help="of timing; 0 for none")
    parser.add_argument("--speed-world", choices=["enumerated", "long", "wide"], default="long")
    parser.add_argument("--speed-updates", type=int, default=8, help="rollouts per timed training")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args(arguments)


# --- TRL's environment ---------------------------------------------------------------------------


class NoTrlError(Exception):
    """TRL can't be had; the message says why and what to do."""


def trl_python(options: argparse.Namespace) -> Path:
    """Return the interpreter of an environment with TRL, made if asked for.

    Raises:
        NoTrlError: There is none.
    """
    folder = options.install or options.trl
    if folder is None:
        raise NoTrlError(
            f"name an environment with --trl DIR, or make one with --install DIR ({TRL=})"
        )
    python = folder.absolute() / "bin" / "python"
    if options.install:
        install(folder, python)
    if not python.is_file():
        raise NoTrlError(f"{folder} is no environment; make it with --install {folder}")
    asked = "from importlib.metadata import version; print(version('trl'))"
    found = subprocess.run([str(python), "-c", asked], capture_output=True, text=True)
    if found.returncode or found.stdout.strip() != TRL:
        what = found.stdout.strip() or "none"
        raise NoTrlError(f"{folder} has TRL {what}, not {TRL}; make one with --install DIR")
    return python


def install(folder: Path, python: Path) -> None:
    """Make an environment with TRL and otherwise the versions of constraints.txt.

    Raises:
        NoTrlError: The folder is taken or inside the repository, or pip failed.
    """
    if HERE.parent in folder.absolute().parents:
        raise NoTrlError(f"{folder} is inside the repository; choose another folder")
    if folder.exists() and any(folder.iterdir()):
        raise NoTrlError(
            f"{folder} is not empty; use it with --trl {folder}, or choose another folder"
        )
    lines = (HERE.parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("trl==")]
    venv.create(folder, with_pip=True)
    with tempfile.TemporaryDirectory() as work:
        constraints = Path(work) / "constraints.txt"
        constraints.write_text("\n".join([*pinned, f"trl=={TRL}"]) + "\n", encoding="utf-8")
        wanted = [f"trl=={TRL}", f"torch=={version('torch').partition('+')[0]}", "transformers"]
        pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), *wanted]
        done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise NoTrlError(f"pip could not install TRL {TRL} in {folder}: {reason}")


# --- measuring -----------------------------------------------------------------------------------


def run_side(task: Task, python: Path | None) -> dict[str, Any]:
    """Run a task in a process of its own: TRL's where an interpreter is given, else ours."""
    checkpoint(world_of(task).language)  # made here, so that no side is timed making it
    with tempfile.TemporaryDirectory() as work:
        asked, answer = Path(work) / "task.json", Path(work) / "result.json"
        asked.write_text(json.dumps(asdict(task)), encoding="utf-8")
        if python is None:
            script = [sys.executable, str(HERE / "ppo_exact_optimum.py"), "--task", str(asked)]
            command = [*script, "--json", str(answer)]
        else:
            command = [str(python), str(HERE / "ppo_trl_side.py"), str(asked), str(answer)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found


def task_for(value: str, task: Task) -> Task:
    """Return a task for one of our ways to have values; an adapter goes with an adapter policy."""
    return replace(task, value=value, lora=value == "adapter")


def reach(beta: float, python: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train both at a beta with every seed; the policies are trained whole."""
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "trl": []}
    for seed in options.seeds:
        task = Task(stop_bonus=0.0, beta=beta, seed=seed, updates=options.updates)
        sides["trl"].append(run_side(task, python))
        sides["ours"].append(run_side(replace(task, minibatches=options.minibatches), None))
        check_same_world(sides["ours"][-1], sides["trl"][-1])
    row: dict[str, Any] = {"beta": beta, "best_j": sides["ours"][0]["best_j"]}
    for side, results in sides.items():
        row[side] = [
            {key: result[key] for key in ("expected_reward", "kl", "j", "norm", "optimizer_steps")}
            for result in results
        ]
        row[f"{side}_j"] = statistics.median(result["j"] for result in results)
    row["within"] = row["ours_j"] >= row["trl_j"] - TOLERANCE
    return row


def check_same_world(ours: dict[str, Any], trl: dict[str, Any]) -> None:
    """Stop where the two environments disagree on what is given: reference and optimum."""
    for key in ("reference_j", "best_j"):
        if abs(ours[key] - trl[key]) > 1e-5:
            raise SystemExit(f"not the same world: {key} is {ours[key]} here, {trl[key]} in TRL's")


def cpu_times(python: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time TRL and each of our ways to have values, in turn."""
    start = Task(world=options.speed_world, beta=0.02, updates=options.speed_updates)
    seconds: dict[str, list[float]] = {"trl": [], **{value: [] for value in options.values}}
    steps: dict[str, int] = {}
    for turn in range(options.rounds):
        task = replace(start, seed=turn)
        for side, times in seconds.items():
            is_trl = side == "trl"
            found = run_side(task if is_trl else task_for(side, task), python if is_trl else None)
            times.append(found["cpu_seconds_per_update"])
            steps[side] = found["optimizer_steps"]
    rows = []
    for value in options.values:
        shares = [ours / trl for ours, trl in zip(seconds[value], seconds["trl"], strict=True)]
        rows.append(
            {
                "value": value,
                "world": options.speed_world,
                "cpu_seconds_per_update": seconds[value],
                "trl_cpu_seconds_per_update": seconds["trl"],
                "optimizer_steps": steps[value],
                "trl_optimizer_steps": steps["trl"],
                "share": statistics.median(shares),
                "most": MOST_CPU[value],
                "within": statistics.median(shares) <= MOST_CPU[value],
            }
        )
    return rows


def show(
    console: Console,
    frontier: Sequence[dict[str, Any]],
    speed: Sequence[dict[str, Any]],
    options: argparse.Namespace,
) -> None:
    """Print both tables."""
    seeds = len(options.seeds)
    table = Table(
        title=f"enumerated world, {options.updates} rollouts, {seeds} seed(s)",
        caption="J = E[R] - beta * KL, exact; medians of the seeds",
    )
    for column in ("beta", "best J", "ours", "TRL", "ours E[R] / KL", "TRL E[R] / KL", "verdict"):
        table.add_column(column, no_wrap=True)
    for row in frontier:
        pairs = [
            f"{median(row[side], 'expected_reward'):.3f} / {median(row[side], 'kl'):.2f}"
            for side in ("ours", "trl")
        ]
        figures = [f"{row[key]:.4f}" for key in ("best_j", "ours_j", "trl_j")]
        table.add_row(str(row["beta"]), *figures, *pairs, verdict(row))
    if frontier:
        console.print(table)
    if not speed:
        return
    table = Table(
        title=f"{options.speed_world} world, CPU seconds per rollout",
        caption=f"{torch.get_num_threads()} thread(s), medians of {options.rounds} round(s)",
    )
    for column in ("our values", "ours", "TRL", "share", "at most", "verdict"):
        table.add_column(column, no_wrap=True)
    for row in speed:
        times = [
            f"{statistics.median(row[key]):.3f}"
            for key in ("cpu_seconds_per_update", "trl_cpu_seconds_per_update")
        ]
        table.add_row(row["value"], *times, f"{row['share']:.2f}", str(row["most"]), verdict(row))
    console.print(table)


def median(results: Sequence[dict[str, float]], key: str) -> float:
    """Return the median of a figure over the seeds."""
    return statistics.median(result[key] for result in results)


def verdict(row: dict[str, Any]) -> str:
    """Say whether a bound is kept."""
    return "kept" if row["within"] else "missed"


if __name__ == "__main__":
    sys.exit(main())
