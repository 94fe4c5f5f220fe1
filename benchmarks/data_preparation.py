r"""Conversations read, rendered, tokenized and checked: this kit beside TRL's SFTTrainer.

    python benchmarks/data_preparation.py --data sharegpt.json --tokenizer gpt2    # a folder
    python benchmarks/data_preparation.py ... --grow 64 512 2048                   # memory, in MB

Both sides start from the same file in the ShareGPT shape and end with rows that a trainer takes,
with labels on the answers only. TRL's `SFTTrainer` is built with `assistant_only_loss` and a model
of a few weights; turning the file's roles into its own is part of the work. The chat template is
the same text, with TRL's marks around the answers. First the tokens and labels of both are compared
row by row: they differ only where merges would cross the border of an answer, which this kit keeps.

A side runs in a process of its own, the sides in turn; figures are medians of the rounds, without
imports. `again` is a second start with what the first one left in the cache. With `--grow` the file
is repeated with changed texts, as JSON Lines and as one list, and the peak memory is told.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "trl")
SIDES = ("ours", "theirs")
MAX_LENGTH = 1024
MIN_EQUAL = 0.95
"""Share of rows that must come out the same on both sides."""
MARKED = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n' }}
{%- elif message['role'] == 'user' -%}{{ 'Human: ' + message['content'] + '\\n' }}
{%- else -%}{{ 'Assistant:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}
{%- endgeneration %}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"""
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, measure round by round, print the tables, write the JSON."""
    options = parse(arguments)
    if options.side:
        print(json.dumps(measure(options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        equal = compare(options, Path(folder, "compare"))
        rounds = [
            {side: child(options, side, Path(folder, f"{side}{number}")) for side in SIDES}
            for number in range(options.rounds)
        ]
        figures = {side: medians([turn[side] for turn in rounds]) for side in SIDES}
        memory = [grown(options, size, Path(folder)) for size in options.grow]
    record = {
        "options": {"rounds": options.rounds, "max_length": MAX_LENGTH},
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in PACKAGES},
        "equal_rows": equal,
        "figures": figures,
        "memory": memory,
    }
    show(record)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; the real data set's folder gives the defaults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    real = os.environ.get("SFT_KIT_REAL_DATA")
    for name, place in (
        ("data", "derived/sharegpt_gpt4_like.json"),
        ("tokenizer", "tokenizers/gpt2"),
    ):
        parser.add_argument(f"--{name}", type=Path, default=Path(real, place) if real else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grow", type=int, nargs="*", default=[], help="megabytes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--side", choices=(*SIDES, "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in ("data", "tokenizer"):
        place = getattr(options, name)
        if place is None or not place.exists():
            parser.error(f"--{name}: found nothing; accepts a ShareGPT file, a tokenizer's folder")
    return options


def child(options: argparse.Namespace, side: str, work: Path, *more: str) -> dict[str, float]:
    """Run one side in a process of its own, with an empty cache of its own."""
    work.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--side", side, "--work", str(work), *more]
    command += ["--data", str(options.data.resolve())] if "--data" not in more else []
    command += ["--tokenizer", str(options.tokenizer.resolve())]
    places = {"HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **places})
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{side}: {found}", file=sys.stderr)
    return found


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Take the median of each figure."""
    return {name: statistics.median(turn[name] for turn in rounds) for name in rounds[0]}


# --- the sides -----------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Prepare twice: with an empty cache, and with what that left behind."""
    prepare_rows = our_rows(options) if options.side in ("ours", "memory") else their_rows(options)
    figures: dict[str, float] = {}
    for name in ("first", "again") if options.side != "memory" else ("first",):
        start, cpu_start = time.perf_counter(), time.process_time()
        rows = prepare_rows()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        figures |= {
            f"{name}_seconds": seconds,
            f"{name}_cpu_seconds": cpu,
            f"{name}_rows_per_second": len(rows) / seconds,
            f"{name}_rows_per_cpu_second": len(rows) / cpu,
        }
    if options.keep:
        content = [list(rows["input_ids"]), list(rows["labels"])]
        options.keep.write_text(json.dumps(content), encoding="utf-8")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return figures | {"num_rows": len(rows), "peak_bytes": peak * 1024}


def our_rows(options: argparse.Namespace) -> Callable[[], Any]:
    """What the recipes do."""
    import datasets  # noqa: F401
    from transformers import AutoTokenizer

    from sft_kit.data.checks import check_examples
    from sft_kit.data.preparation import prepare
    from sft_kit.data.templates import choose_template
    from sft_kit.data.tokenization import to_dataset
    from sft_kit.settings import DataSettings

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    settings = DataSettings(
        path=str(options.data),
        template="human-assistant",
        max_length=MAX_LENGTH,
        eval_fraction=0.0,
        cache=str(options.work / "rows"),
    )

    def prepare_rows() -> Any:  # noqa: ANN401
        template = choose_template(tokenizer, settings.template)
        rows = prepare(settings, tokenizer, template)
        check_examples(rows.train, template, tokenizer, settings)
        return to_dataset(rows.train)

    return prepare_rows


def their_rows(options: argparse.Namespace) -> Callable[[], Any]:
    """What TRL's example script does, with the file's roles turned into TRL's."""
    import datasets
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
    from trl import SFTConfig, SFTTrainer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    tokenizer.pad_token, tokenizer.chat_template = tokenizer.eos_token, MARKED
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1))
    settings = SFTConfig(
        output_dir=str(options.work / "run"),
        assistant_only_loss=True,
        max_length=MAX_LENGTH,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )

    def prepare_rows() -> Any:  # noqa: ANN401
        rows = datasets.load_dataset("json", data_files=str(options.data), split="train")
        rows = rows.map(as_messages, remove_columns=rows.column_names)
        trainer = SFTTrainer(
            model=model, args=settings, train_dataset=rows, processing_class=tokenizer
        )
        return trainer.train_dataset

    return prepare_rows


def as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """Turn a row in the ShareGPT shape into TRL's."""
    turns = row.get("items") or row["conversations"]
    return {"messages": [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns]}


def compare(options: argparse.Namespace, folder: Path) -> float:
    """Say which share of the rows has the same tokens and labels on both sides."""
    folder.mkdir()
    for side in SIDES:
        child(options, side, folder / side, "--keep", str(folder / f"{side}.json"))
    ours, theirs = (
        list(zip(*json.loads((folder / f"{side}.json").read_text()), strict=True)) for side in SIDES
    )
    equal = sum(map(list.__eq__, map(list, ours), map(list, theirs))) / max(1, len(theirs))
    if len(ours) != len(theirs) or equal < MIN_EQUAL:
        raise SystemExit(f"{len(ours)} and {len(theirs)} rows, {equal:.1%} of them equal")
    return equal


# --- memory --------------------------------------------------------------------------------------


def grown(options: argparse.Namespace, megabytes: int, folder: Path) -> dict[str, float]:
    """Measure the peak memory of a file of that size, as lines and as one list."""
    found: dict[str, float] = {"megabytes": megabytes}
    for shape in ("lines", "list"):
        path = folder / f"rows.{'jsonl' if shape == 'lines' else 'json'}"
        write_grown(options.data, path, megabytes * 10**6, is_list=shape == "list")
        work = folder / f"grown-{megabytes}-{shape}"
        figures = child(options, "memory", work, "--data", str(path))
        found |= {
            f"{shape}_rows": figures["num_rows"],
            f"{shape}_peak_bytes": figures["peak_bytes"],
            f"{shape}_rows_per_second": figures["first_rows_per_second"],
        }
        path.unlink()
    return found


def write_grown(data: Path, path: Path, num_bytes: int, *, is_list: bool) -> None:
    """Repeat the rows, each time with another first word, until the file is large enough."""
    text = data.read_text(encoding="utf-8")
    listed = (
        json.loads(text) if text.lstrip().startswith("[") else map(json.loads, text.split("\n"))
    )
    rows = list(listed)
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for number in count():
            for row in rows:
                if size >= num_bytes:
                    file.write("]" if is_list else "\n")
                    return
                key = "items" if "items" in row else "conversations"
                turns = [{**turn, "value": f"{number} {turn['value']}"} for turn in row[key]]
                between = (", " if size else "[") if is_list else ("\n" if size else "")
                size += file.write(between + json.dumps({key: turns}, ensure_ascii=False))


def show(record: dict[str, Any]) -> None:
    """Print the tables."""
    names = ("rows/s", "rows/CPU s", "again rows/s", "peak MB")
    table = Table("", *names, title=f"equal rows {record['equal_rows']:.2%}")
    for side, row in record["figures"].items():
        speeds = ("first_rows_per_second", "first_rows_per_cpu_second", "again_rows_per_second")
        table.add_row(
            side, *(f"{row[name]:,.0f}" for name in speeds), f"{row['peak_bytes'] / 1e6:,.0f}"
        )
    Console().print(table)
    if record["memory"]:
        table = Table("file MB", "lines, peak MB", "rows/s", "list, peak MB", "rows/s")
        for row in record["memory"]:
            cells = [f"{row['megabytes']:,}"]
            for shape in ("lines", "list"):
                cells.append(f"{row[f'{shape}_peak_bytes'] / 1e6:,.0f}")
                cells.append(f"{row[f'{shape}_rows_per_second']:,.0f}")
            table.add_row(*cells)
        Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
