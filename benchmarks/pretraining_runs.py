"""What the benchmarks of pretraining share: texts to files, tokenizers, runs, tables."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "recipes" / "results"
RECIPE = "recipes/pretrain_bert_mlm.py"
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy")


def write_texts(path: Path, texts: Iterable[str | Sequence[str]]) -> Path:
    """Write texts, or lists of their lines, as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def train_tokenizer(path: Path, folder: Path, words: Sequence[str]) -> None:
    """Run `sft-kit tokenizer train` on a file."""
    command = [str(Path(sys.executable).with_name("sft-kit")), "tokenizer", "train", str(path)]
    subprocess.run([*command, *words, "--output", str(folder), "--overwrite"], check=True)


def train(words: Sequence[str], folder: Path, steps: int | None = None) -> dict[str, float]:
    """Run the recipe in a process of its own, as a user would.

    Args:
        words: Settings of the command line.
        folder: Of the run.
        steps: Instead of the number in `words`, for a try.

    Returns:
        Its metrics, and `tokens_seen`, `wall_seconds` and `cpu_seconds` of the whole command.
    """
    kept = [word for word in words if steps is None or not word.startswith(SHORTENED)]
    short = [] if steps is None else [f"train.max_steps={steps}", "train.warmup_steps=0"]
    command = [sys.executable, RECIPE, *kept, *short, f"train.output_dir={folder}", "--overwrite"]
    before, start = _cpu_seconds(), time.monotonic()
    subprocess.run(command, cwd=REPOSITORY, check=True)
    seconds = {"wall_seconds": time.monotonic() - start, "cpu_seconds": _cpu_seconds() - before}
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    tokens = round(metrics["tokens_per_second"] * metrics["train_seconds"])
    return {**metrics, **seconds, "tokens_seen": tokens}


SHORTENED = ("train.max_steps=", "train.warmup_steps=")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_result(folder: Path, name: str, result: dict[str, object]) -> Path:
    """Write the figures of an experiment, with what they were made on."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    made_on = {
        "num_threads": os.environ.get("OMP_NUM_THREADS"),
        "num_cores": os.cpu_count(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    text = json.dumps(result | made_on, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
    return path


def command_of(words: Sequence[str]) -> str:
    """Spell the recipe's command out, for a shell."""
    quoted = (f"'{word}'" if set(word) & set(" {}[]") else word for word in words)
    return f"accelerate launch {RECIPE} " + " ".join(quoted)


def replaced(words: Sequence[str], places: dict[str, Path]) -> list[str]:
    """Put folders in the place of `$WORK` and the like."""
    found = []
    for word in words:
        for name, place in places.items():
            word = word.replace(name, str(place))
        found.append(word)
    return found


def marks(name: str) -> tuple[str, str]:
    """Say between which two lines of `recipes/results/README.md` a table stands."""
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def write_table(name: str, table: str) -> None:
    """Put a table between its two marks in `recipes/results/README.md`."""
    path = RESULTS / "README.md"
    begin, end = marks(name)
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    path.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")
