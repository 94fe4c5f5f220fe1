"""How fast rows are corrupted on one core, beside transformers' masking collator.

    python benchmarks/masking_speed.py [--text FILE] [--json FILE]

`corrupt` is the corruption alone, `batch` all that happens between the tokens in memory and a
padded batch: cutting the row, corrupting it, padding. The collator of transformers gets lists of
ids, as `datasets` gives them. Each is timed in turn, round by round; the figures are medians.

The tokenizer is made on the spot, one token a character with all special tokens, so that one text
serves every objective. Before anything is timed, the shares of hidden tokens are compared.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from sft_kit.data.corpus.collators import pad_corrupted
from sft_kit.data.corpus.corrupted import CorruptedRows
from sft_kit.data.corpus.datasets import make_datasets
from sft_kit.data.corpus.texts import load_texts
from sft_kit.data.corpus.vocabulary import vocabulary_of
from sft_kit.data.corruption.choose import ObjectiveSettings, corruption_of, objective_of
from sft_kit.models.new_tokenizer import train_tokenizer
from sft_kit.models.tokenizer_options import TokenizerOptions
from sft_kit.settings import (
    CausalSettings,
    DenoiseSettings,
    MaskedSettings,
    PrefixSettings,
    SpanSettings,
    TextDataSettings,
)

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "torch", "transformers")
LENGTH, BATCH, MASKED = 128, 32, 0.15
LEAST = 1_000_000
OBJECTIVES: dict[str, ObjectiveSettings] = {
    "mlm": MaskedSettings(),
    "wwm": MaskedSettings("wwm"),
    "spell": MaskedSettings("spell"),
    "mlm, next sentence": MaskedSettings(next_sentence=True),
    "clm": CausalSettings(),
    "clm, document mask": CausalSettings(document_mask=True),
    "prefix": PrefixSettings("prefix"),
    "infill": PrefixSettings("infill"),
    "spans": SpanSettings(),
    "denoise": DenoiseSettings(delete_fraction=0.1),
}
Run = Callable[[], int]
"""Does the work once and returns the number of tokens."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure round by round, print the table, write the JSON."""
    options = parse(arguments)
    torch.set_num_threads(1)
    texts = load_texts(TextDataSettings(str(options.text), eval_fraction=0)).train
    wanted = TokenizerOptions("characters", num_sentinels=100)
    tokenizer = train_tokenizer([text.text for text in texts], wanted)
    rows = {name: make_rows(options, tokenizer, asked) for name, asked in OBJECTIVES.items()}
    collators = {
        "transformers": DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED),
        "transformers, whole words": DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=MASKED, whole_word_mask=True
        ),
    }
    features = {name: make_features(rows, whole="words" in name) for name in collators}
    check(rows["mlm"], collators["transformers"], features["transformers"])
    figures = measure(rows, collators, features, options)
    record = {
        "options": {"rows": options.rows, "rounds": options.rounds, "length": LENGTH},
        "processor": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "tokens_per_second": figures,
    }
    show(record)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    default = REPOSITORY / "data" / "corpus.jsonl"
    parser.add_argument("--text", type=Path, default=default, help="as data.path of a recipe")
    parser.add_argument("--rows", type=int, default=1024, help=f"of {LENGTH} tokens, per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    if not options.text.exists():
        parser.error(
            f"--text: found nothing at {options.text}; accepts a file of texts, such "
            "as the one that `python data/make_corpus.py` makes"
        )
    return options


# --- what is measured ----------------------------------------------------------------------------


def make_rows(
    options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, asked: ObjectiveSettings
) -> CorruptedRows:
    """Make the rows of an objective as a recipe makes them."""
    settings = TextDataSettings(str(options.text), eval_fraction=0, max_length=LENGTH)
    objective = objective_of(asked, LENGTH)
    vocabulary = vocabulary_of(tokenizer, objective.needs)
    corrupt = corruption_of(asked, vocabulary, tokenizer)
    texts = load_texts(settings)
    made = make_datasets(texts, tokenizer, vocabulary, settings, objective, corrupt, 42)
    assert isinstance(made.train, CorruptedRows)
    return made.train


def make_features(
    rows: dict[str, CorruptedRows], *, whole: bool
) -> Callable[[int], dict[str, list[Any]]]:
    """Make rows as `datasets` gives them to the collator: lists of numbers."""

    def features(index: int) -> dict[str, list[Any]]:
        row = rows["wwm" if whole else "mlm"].rows.row(index, 0)
        found = {
            "input_ids": row.input_ids.tolist(),
            "special_tokens_mask": row.is_special.astype(int).tolist(),
        }
        if (
            whole
        ):  # the collator takes a token for a new word where its text does not touch the last
            places = row.words + np.arange(len(row.words))
            found["offset_mapping"] = np.stack([places, places + 1], axis=1).tolist()
        return found

    return features


def check(
    rows: CorruptedRows,
    collator: DataCollatorForLanguageModeling,
    features: Callable[[int], dict[str, list[Any]]],
) -> None:
    """See that both hide as much: shares of learnt and of masked tokens within 4 sigma."""
    count = min(len(rows), 500)
    torch.manual_seed(0)
    theirs = collator([features(index) for index in range(count)])
    ours = pad_corrupted([rows[index] for index in range(count)], pad_token_id=0)
    num_tokens = count * (LENGTH - 2)
    mask = collator.tokenizer.mask_token_id
    for share, found, expected in (
        (MASKED, ours["labels"] != -100, theirs["labels"] != -100),
        (0.8 * MASKED, ours["input_ids"] == mask, theirs["input_ids"] == mask),
    ):
        sigma = math.sqrt(2 * share * (1 - share) / num_tokens)
        apart = abs(int(found.sum()) - int(expected.sum())) / num_tokens
        if not apart <= 4 * sigma:
            raise SystemExit(f"the two hide other shares: {apart:.4f} apart, sigma {sigma:.4f}")


def measure(
    rows: dict[str, CorruptedRows],
    collators: dict[str, DataCollatorForLanguageModeling],
    features: dict[str, Callable[[int], dict[str, list[Any]]]],
    options: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Median tokens per second of processor time; one warm-up before."""
    runs: dict[tuple[str, str], Run] = {}
    for name, data in rows.items():
        count = min(options.rows, len(data))
        runs[name, "corrupt"] = corrupt_alone(data, count)
        runs[name, "batch"] = batches(lambda i, data=data: data[i], pad, count)
    for name, collator in collators.items():
        count = min(options.rows, len(rows["mlm"]))
        kept = [features[name](index) for index in range(count)]
        kept = [row for row in kept if len(row["input_ids"]) == LENGTH]  # it can't pad offsets
        runs[name, "batch"] = batches(kept.__getitem__, collator, len(kept))
    speeds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for turn in range(options.rounds + 1):
        for key, run in runs.items():
            start = time.process_time()
            num_tokens = run()
            if turn:
                speeds[key].append(num_tokens / (time.process_time() - start))
    figures: dict[str, dict[str, float]] = {}
    for (name, what), values in speeds.items():
        figures.setdefault(name, {})[what] = statistics.median(values)
    return figures


def corrupt_alone(data: CorruptedRows, count: int) -> Run:
    """Corrupt rows that are cut already."""
    made = [data.rows.row(index, index) for index in range(count)]
    num_tokens = sum(len(row.input_ids) for row in made)

    def run() -> int:
        for seed, row in enumerate(made):
            data.corrupt(row, seed)
        return num_tokens

    return run


def batches(row_of: Callable[[int], Any], collate: Callable[[Any], Any], count: int) -> Run:
    """Ask for rows and make batches of them."""

    def run() -> int:
        num_tokens = 0
        for first in range(0, count, BATCH):
            batch = collate([row_of(index) for index in range(first, min(first + BATCH, count))])
            num_tokens += (
                int(batch["attention_mask"].sum())
                if "attention_mask" in batch
                else (batch["input_ids"].numel())
            )
        return num_tokens

    return run


def pad(rows: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Pad as the recipes do."""
    return pad_corrupted(rows, pad_token_id=0, mark_labels=True)


def show(record: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(
        title=f"million tokens per second of one core, rows of {LENGTH} tokens",
        caption=f"medians of {record['options']['rounds']} rounds; batches of {BATCH}",
    )
    for column in ("objective", "corrupt", "batch"):
        table.add_column(column, justify="left" if column == "objective" else "right")
    for name, row in record["tokens_per_second"].items():
        alone = f"{row['corrupt'] / 1e6:.2f}" if "corrupt" in row else ""
        table.add_row(name, alone, f"{row['batch'] / 1e6:.2f}")
    Console(width=100).print(table)
    slow = [
        name
        for name, row in record["tokens_per_second"].items()
        if row.get("corrupt", LEAST) < LEAST
    ]
    if slow:
        print(f"below {LEAST / 1e6:.0f} million: {', '.join(slow)}")


if __name__ == "__main__":
    sys.exit(main())
