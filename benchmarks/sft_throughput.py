r"""LoRA fine-tuning of GPT-2's shape: the recipe beside TRL's SFTTrainer and a bare loop.

    python benchmarks/sft_throughput.py                            # rows of this project: short
    python benchmarks/sft_throughput.py --data conversations.json --tokenizer gpt2  # its folder
    python benchmarks/sft_throughput.py ... --rows prompt-heavy    # a fifth is learnt
    python benchmarks/sft_throughput.py ... --rows long --max-length 1024 --plot cost.png
    python benchmarks/sft_throughput.py ... --quantization nf4
    python benchmarks/sft_throughput.py ... --ablate               # the recipe, single keys changed
    python benchmarks/sft_throughput.py ... --shape tiny --steps 3 --rounds 1    # does it run?

Weights are random, from a fixed seed, of GPT-2's shape whatever the tokenizer. All sides train on
the same tokenized rows, each row once, with the same adapter, learning rate, batch size and
threads; what else they do is theirs. First the losses of TRL in float32 and of the recipe are
compared, without dropout, over the same batches. Then the sides run in turn, each in a process of
its own; figures are medians of the rounds. Batches of similar length are chosen among the rows of
50: with fewer steps their rows are less alike.

Tokens are those of the rows: padding does not count. The limit is what `torch.mm` does in the same
processes with the products of whole steps, in the faster of float32 and bfloat16, divided by the
operations that no implementation can do without (`flops_per_token` in sft_workload.py). Memory is
the peak of the whole process, libraries included; on a GPU, of what torch has allocated there.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sft_sides import REPOSITORY, Job, run_job
from sft_workload import CONTEXT, KINDS, SHAPES, Workload, write_workload

from sft_kit.devices import usable_cores
from sft_kit.errors import SftKitError

DATA = REPOSITORY / "data" / "instructions.jsonl"
TOKENIZER = REPOSITORY / "data" / "checkpoints" / "tiny-gpt2"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "trl")
SIDES = ("trl-default", "trl-best", "trl-fp32", "bare-fp32", "ours")
OPTIONAL = ("trl-tuned",)
UNQUANTIZED = ("trl-fp32", "bare-fp32")
ABLATIONS = (
    "model.dtype=float32",
    "model.attention=sdpa",
    "model.dropout=keep",
    "model.fused=false",
    "train.train_sampling_strategy=random",
    "train.activation_checkpointing=true",
    "train.torch_compile=true",
)
"""The recipe's keys that force a choice, each to what it does not pick on a CPU."""
TOLD = (
    *("shape", "rows", "batch", "max_length", "quantization", "steps", "warmup", "rounds"),
    "peak_flops",
)
MEASURED = ("tokens_per_second", "cpu_seconds_per_1000_tokens", "peak_bytes", "padding_share")
MOST_APART, MOST_MEAN_APART = 0.01, 0.003
"""Nats that losses in bfloat16, with 8 bits for a number, may be off: TRL's own, over ten steps of
two rows of 128 tokens, were 0.0008 and 0.0003 off those in float32, the recipe's 0.0012 and 0.0006.
"""
Figures = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure round by round, print the table, write the JSON."""
    options = parse(arguments)
    if options.job:
        print(json.dumps(run_job(Job(**json.loads(options.job)))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        job = first_job(Path(folder), options)
        workload = Workload(**job.workload)
        check = compare_losses(job, options.check_steps) if options.check_steps else None
        rounds = [
            {side: run_side(replace(job, side=side)) for side in options.sides}
            for _ in range(options.rounds)
        ]
    figures = {side: medians([turn[side] for turn in rounds]) for side in options.sides}
    found = [one["limits"] for turn in rounds for one in turn.values()]
    limits = {name: statistics.median(one[name] for one in found) for name in found[0]}
    for row in figures.values():
        flops = row["tokens_per_second"] * workload.flops_per_token
        row["share_of_limit"] = flops / max(limits.values())
        if options.peak_flops:
            row["model_flops_utilisation"] = flops / options.peak_flops
    record = {
        "options": {name: getattr(options, name) for name in TOLD},
        "threads": options.threads,
        "processor": processor(),
        "versions": {name: version(name) for name in PACKAGES},
        "workload": asdict(workload),
        "limits": limits,
        "check": check,
        "figures": figures,
        "steps": {side: [turn[side]["steps"] for turn in rounds] for side in options.sides},
    }
    show(record)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        draw(options.plot, record["steps"])
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add(
        "--data", type=Path, default=DATA, help="conversations, in any format that the recipe reads"
    )
    add("--tokenizer", type=Path, default=TOKENIZER, help="folder of a tokenizer, such as gpt2's")
    add("--shape", choices=SHAPES, default="gpt2", help="of the model")
    add("--rows", choices=KINDS, default="as-is", help="what to make of the conversations")
    add("--batch", type=int, default=8, help="rows of a step")
    add("--max-length", type=int, default=512, help="tokens of a row, at most")
    add("--quantization", choices=("none", "nf4", "int8"), default="none")
    add("--sides", nargs="+", metavar="SIDE", help=f"of {', '.join((*SIDES, *OPTIONAL))}")
    add("--ablate", action="store_true", help="add the recipe with single keys changed")
    add("--ours", action="append", default=[], metavar="KEY=VALUE", help="add it with this key")
    add("--steps", type=int, default=20, help="optimizer steps that are timed")
    add("--warmup", type=int, default=2, help="steps before them")
    add("--rounds", type=int, default=3)
    add("--check-steps", type=int, default=10, help="whose losses are compared first; 0 for none")
    add("--threads", type=int, default=usable_cores())
    add("--peak-flops", type=float, help="of the GPU in bfloat16, to print the share of it")
    add("--json", type=Path, help="write the figures to this file")
    add("--plot", type=Path, help="draw the cost of every step to this PNG file")
    add("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.job:
        options.sides = choose_sides(options)
        for problem in problems(options):
            parser.error(problem)
    return options


def choose_sides(options: argparse.Namespace) -> list[str]:
    """Names of the sides, the recipe with other keys last."""
    known = [side for side in SIDES if options.quantization == "none" or side not in UNQUANTIZED]
    changed = [*(ABLATIONS if options.ablate else ()), *options.ours]
    return [*(options.sides or known), *(f"ours {key}" for key in changed)]


def problems(options: argparse.Namespace) -> Iterator[str]:
    """Say what can't be measured."""
    for name in ("data", "tokenizer"):
        given = getattr(options, name)
        if not given.exists():
            yield f"--{name}: found no {given}, accepts an existing file or folder"
    accepted = [*SIDES, *OPTIONAL]
    for side in options.sides:
        if side.split()[0] not in accepted:
            yield f"--sides: found {side}, accepts {', '.join(accepted)}"
        if options.quantization != "none" and side in UNQUANTIZED:
            yield f"--sides: found {side}, which is never quantized"
    if not 2 <= options.max_length <= CONTEXT:
        yield f"--max-length: found {options.max_length}, accepts 2 to {CONTEXT}"
    for name, least in (("batch", 1), ("steps", 1), ("warmup", 1), ("rounds", 1), ("threads", 1)):
        if getattr(options, name) < least:
            yield f"--{name}: found {getattr(options, name)}, accepts {least} or more"
    if options.check_steps == 1 or options.check_steps < 0:
        yield f"--check-steps: found {options.check_steps}, accepts 0, and 2 or more"
    try:
        version("trl")
    except PackageNotFoundError:
        yield "TRL is not installed; install what CONTRIBUTING.md says for development"


def processor() -> str:
    """Name of what computes."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


# --- running -------------------------------------------------------------------------------------


def first_job(work: Path, options: argparse.Namespace) -> Job:
    """Write what all sides read, and say what they share."""
    try:
        workload = write_workload(
            work,
            data=options.data,
            tokenizer=options.tokenizer,
            shape=options.shape,
            kind=options.rows,
            num_rows=options.batch * (options.warmup + options.steps),
            max_length=options.max_length,
        )
    except SftKitError as error:
        raise SystemExit(str(error)) from None
    return Job(
        side="",
        work=str(work),
        steps=options.steps,
        warmup=options.warmup,
        batch=options.batch,
        max_length=options.max_length,
        quantization=options.quantization,
        threads=options.threads,
        workload=asdict(workload),
    )


def run_side(job: Job) -> Figures:
    """Run one side in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if "ACCELERATE" not in name}
    environment |= {"HF_HOME": str(Path(job.work, "home")), "HF_HUB_OFFLINE": "1"}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(Path(job.work, "compiled"))
    environment["OMP_NUM_THREADS"] = str(job.threads)
    command = [sys.executable, __file__, "--job", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{job.side}: {done.stderr[-4000:]}")
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    said = {name: round(found[name], 3) for name in MEASURED}
    print(f"{job.side}{' (losses)' if job.is_check else ''}: {said}", file=sys.stderr)
    return found


def compare_losses(job: Job, num_steps: int) -> Figures:
    """Train TRL in float32, TRL in bfloat16 and the recipe over the same batches.

    Raises:
        SystemExit: They did not see the same batches, or the recipe's losses are another curve.
    """
    job = replace(job, warmup=1, steps=num_steps - 1, is_check=True)
    is_exact = job.quantization == "none"
    names = [*(["trl-fp32"] if is_exact else []), "trl-best", "ours"]
    found = {side: run_side(replace(job, side=side)) for side in names}
    reference = found[names[0]]
    gaps = {}
    for side in names[1:]:
        if found[side]["digests"] != reference["digests"]:
            raise SystemExit(f"{side} was given other rows than {names[0]}")
        apart = [
            abs(mine - theirs)
            for mine, theirs in zip(found[side]["losses"], reference["losses"], strict=True)
        ]
        gaps[side] = {"max": max(apart), "mean": statistics.fmean(apart)}
    check = {"steps": num_steps, "reference": names[0], "gaps": gaps}
    print(told_gaps(check))
    if not (gaps["ours"]["max"] <= MOST_APART and gaps["ours"]["mean"] <= MOST_MEAN_APART):
        raise SystemExit(
            f"the recipe learns something else: accepts {MOST_APART} nats at most and "
            f"{MOST_MEAN_APART} in the mean, the noise of bfloat16"
        )
    return check | {"losses": {side: one["losses"] for side, one in found.items()}}


def told_gaps(check: Figures) -> str:
    """Say how far the losses are apart."""
    gaps = ", ".join(
        f"{side} {gap['max']:.2g} at most and {gap['mean']:.2g} in the mean"
        for side, gap in check["gaps"].items()
    )
    return f"losses of {check['steps']} steps beside {check['reference']}, nats per token: {gaps}"


# --- what came out -------------------------------------------------------------------------------


def medians(turns: Sequence[Figures]) -> Figures:
    """Medians over the rounds."""
    return {name: statistics.median(turn[name] for turn in turns) for name in MEASURED}


def show(record: Figures) -> None:
    """Print the table."""
    options, workload, limits = (record[name] for name in ("options", "workload", "limits"))
    table = Table(
        title=f"{options['shape']}, LoRA, batch {options['batch']}, rows {options['rows']}: "
        f"{workload['mean_tokens']:.0f} tokens in the mean and {workload['longest']} at most, "
        f"{workload['label_share']:.0%} learnt; quantization {options['quantization']}; "
        f"{record['processor']}, {record['threads']} thread(s)",
        caption=f"medians of {options['rounds']} round(s) of {options['steps']} steps; "
        f"{workload['flops_per_token'] / 1e9:.3g} GFLOP per token; torch.mm: "
        + ", ".join(f"{value / 1e9:,.0f} GFLOP/s {name}" for name, value in limits.items())
        + f", so {max(limits.values()) / workload['flops_per_token']:,.0f} tokens/s at the limit",
    )
    figures = record["figures"]
    bases = [side for side in ("trl-default", "trl-best") if side in figures] or [
        next(iter(figures))
    ]
    beside = [f"x {base}" for base in bases]
    names = ["side", "tokens/s", *beside, "CPU s/1,000", "peak GB", f"x {bases[-1]}", "of limit"]
    for name in [*names, *(["MFU"] if options["peak_flops"] else [])]:
        table.add_column(name, justify="left" if name == "side" else "right")
    for side, row in figures.items():
        speed, memory = row["tokens_per_second"], row["peak_bytes"]
        cells = [
            f"{speed:,.0f}",
            *(f"{speed / figures[base]['tokens_per_second']:.2f}" for base in bases),
            f"{row['cpu_seconds_per_1000_tokens']:.2f}",
            f"{memory / 1e9:.2f}",
            f"{memory / figures[bases[-1]]['peak_bytes']:.2f}",
            f"{row['share_of_limit']:.0%}",
        ]
        if options["peak_flops"]:
            cells.append(f"{row['model_flops_utilisation']:.1%}")
        table.add_row(side, *cells)
    Console(width=130).print(table)


def draw(file: Path, steps: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> None:
    """Draw the seconds of every step over its tokens, with a straight line for each side."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="tokens of the step, padding aside", ylabel="seconds")
    for side, rounds in steps.items():
        every = [step for turn in rounds for step in turn]
        tokens = np.array([step["tokens"] for step in every])
        seconds = np.array([step["seconds"] for step in every])
        slope, start = np.polyfit(tokens, seconds, 1)
        fit = np.corrcoef(tokens, seconds)[0, 1] ** 2
        (dots,) = axes.plot(tokens, seconds, ".", label=f"{side}, r² {fit:.3f}")
        ends = np.array([0, tokens.max()])
        axes.plot(ends, start + slope * ends, color=dots.get_color(), linewidth=1)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
