"""What `sft-kit plan` predicts of every recipe, and what the recipe then takes.

    OMP_NUM_THREADS=1 python benchmarks/plan_accuracy.py [RECIPE ...] [--json FILE]

Each recipe is shortened, planned, and run with the same settings; checkpoints and data are those
that come with the project or are made by its scripts. On a machine that others use too, `--clock
cpu_seconds` compares CPU time instead of wall time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

from sft_kit.disk import folder_bytes
from sft_kit.plan.forecast import Forecast, forecast
from sft_kit.plan.running import measure

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = ROOT / "data" / "checkpoints"
GPT2 = f"model.checkpoint={CHECKPOINTS / 'tiny-gpt2'}"
SHORT = ["train.max_steps=60", "train.logging_steps=10"]
BY_STEPS = ["train.eval_strategy=steps", "train.eval_steps=20"]
BY_STEPS += ["train.save_strategy=steps", "train.save_steps=20"]
PRETRAIN = [*SHORT, *BY_STEPS, "train.warmup_steps=5"]
CLASSIFY = [*SHORT, *BY_STEPS, "classify.early_stopping_patience=null"]
SETTINGS = {
    "sft_gpt2_lora": [GPT2, *SHORT, *BY_STEPS],
    "sft_chatglm2_int4_lora": [
        f"model.checkpoint={CHECKPOINTS / 'tiny-chatglm2-int4'}", *SHORT, *BY_STEPS,
    ],
    "classify_bert_chinese_lora": [
        f"model.checkpoint={CHECKPOINTS / 'tiny-bert-chinese'}", *CLASSIFY,
    ],
    "classify_gpt2_head": [GPT2, *CLASSIFY],
    "reward_gpt2_lora": [GPT2, *SHORT, *BY_STEPS],
    "ppo_gpt2_lora": [
        GPT2, "ppo.num_rollouts=9", "ppo.eval_rollouts=3", "ppo.save_rollouts=3",
    ],
    "pretrain_gpt2_clm": PRETRAIN,
    "pretrain_bert_mlm": PRETRAIN,
    "pretrain_prefix_lm": PRETRAIN,
    "pretrain_t5_span": PRETRAIN,
    "pretrain_bart_denoise": PRETRAIN,
    "seq2seq_t5_lora": [f"model.checkpoint={CHECKPOINTS / 'tiny-t5'}", *SHORT, *BY_STEPS],
}  # fmt: skip


def main() -> None:
    """Plan, run, compare."""
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [compare(stem, folder, options.clock) for stem in options.recipes]
    print(table(rows))
    if options.json:
        record = {"clock": options.clock, "threads": os.environ.get("OMP_NUM_THREADS")}
        record["versions"] = {name: version(name) for name in ("torch", "transformers", "peft")}
        Path(options.json).write_text(json.dumps(record | {"recipes": rows}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="*", default=list(SETTINGS), metavar="RECIPE")
    parser.add_argument("--clock", choices=["seconds", "cpu_seconds"], default="seconds")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


def compare(stem: str, folder: Path, clock: str) -> dict[str, object]:
    """Plan a recipe, run it, and put the figures side by side."""
    words = list(SETTINGS[stem])
    if stem == "ppo_gpt2_lora":
        words.append(f"reward.model={earlier_run('reward_gpt2_lora', folder, num_steps=5)}")
        # The base itself never stops, and what it learns first is to write less and less.
        sft = earlier_run("sft_gpt2_lora", folder, num_steps=200)
        words.append(f"ppo.sft_adapter={sft}")
    if stem.startswith("pretrain_"):
        write_corpus()
    if stem == "pretrain_bart_denoise":
        words.append(f"model.tokenizer={bart_tokenizer(folder)}")
    recipe = ROOT / "recipes" / f"{stem}.py"
    began = time.monotonic()
    planned = forecast(measure(recipe, words, clock=clock))
    plan_seconds = time.monotonic() - began
    taken = run(recipe, [*words, f"train.output_dir={folder / stem}"], folder / stem)
    row = _row(stem, planned, taken, taken[clock], plan_seconds)
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def earlier_run(stem: str, folder: Path, num_steps: int) -> Path:
    """Train a recipe that another one begins with."""
    path = folder / f"{stem}_before"
    if not path.is_dir():
        words = [GPT2, f"train.max_steps={num_steps}", f"train.output_dir={path}"]
        run(ROOT / "recipes" / f"{stem}.py", words, path)
    return path


def write_corpus() -> None:
    """Write the texts of the pretraining recipes, which do not come with the project."""
    if not (ROOT / "data" / "corpus.jsonl").is_file():
        subprocess.run([sys.executable, str(ROOT / "data" / "make_corpus.py")], check=True)


def bart_tokenizer(folder: Path) -> Path:
    """Make the tokenizer that BART begins with."""
    path = folder / "tokenizer"
    command = ["sft-kit", "tokenizer", "train", str(ROOT / "data" / "corpus.jsonl")]
    command += ["--family", "bart", "--vocab-size", "2048", "--output", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def run(recipe: Path, words: list[str], folder: Path) -> dict[str, float]:
    """Run a recipe to its end and take its time, its memory and its disk."""
    largest = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            try:
                largest[0] = max(largest[0], folder_bytes(folder))
            except FileNotFoundError:  # deleted while it was looked at
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, str(recipe), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert child.stderr is not None
    said = child.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - began
    done.set()
    watcher.join()
    if status:
        raise SystemExit(f"{recipe.name} failed:\n{said[-2000:]}")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "host_bytes": usage.ru_maxrss * 1024,
        "disk_bytes": largest[0],
    }


def _row(
    stem: str, planned: Forecast, taken: dict[str, float], seconds: float, plan_seconds: float
) -> dict[str, object]:
    return {
        "recipe": stem,
        "memory_planned": round(planned.host.value),
        "memory_error": round(planned.host.error),
        "memory_taken": round(taken["host_bytes"]),
        "seconds_planned": round(planned.seconds.value, 2),
        "seconds_error": round(planned.seconds.error, 2),
        "seconds_taken": round(seconds, 2),
        "disk_planned": round(planned.disk.value),
        "disk_taken": round(taken["disk_bytes"]),
        "plan_seconds": round(plan_seconds, 1),
        "parts": {name: round(part.value, 2) for name, part in planned.parts.items()},
    }


def table(rows: list[dict[str, object]]) -> str:
    """Planned by taken, as percentages."""
    lines = [f"{'recipe':<28} {'memory':>18} {'off':>7} {'seconds':>18} {'off':>7} {'disk off':>9}"]
    for row in rows:
        figures = {key: float(str(value)) for key, value in row.items() if key not in _WORDS}
        memory = f"{figures['memory_planned'] / 1e9:.3f} / {figures['memory_taken'] / 1e9:.3f}"
        seconds = f"{figures['seconds_planned']:.1f} / {figures['seconds_taken']:.1f}"
        off = [
            figures[f"{name}_planned"] / figures[f"{name}_taken"] - 1
            for name in ("memory", "seconds", "disk")
        ]
        lines.append(
            f"{row['recipe']:<28} {memory:>18} {off[0]:>+7.1%} {seconds:>18} {off[1]:>+7.1%} "
            f"{off[2]:>+9.1%}"
        )
    return "\n".join(lines)


_WORDS = {"recipe", "parts"}


if __name__ == "__main__":
    main()
