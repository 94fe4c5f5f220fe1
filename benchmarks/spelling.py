"""Misspelt characters of learners of Chinese, found and corrected, with and without pretraining.

    python benchmarks/spelling.py --data FOLDER
    python benchmarks/spelling.py --table

FOLDER holds `sighan/sighan2015_train.tsv` (wrong and right sentences) and modern Chinese text:
`tnews/`, `chnsenticorp/`, `medicalgpt/` and `llamafactory_demo/`. A small BERT with rotary
positions is pretrained on that text with `pretrain.objective` mlm, and another with spell, for
equal numbers of steps. Both, and one with random weights, are then fine-tuned on four fifths of the
pairs to write the right character at every place, and read the rest: each wrong sentence and each
right one. `recipes/results/spelling_sighan.json` gets the figures; `--table` writes them into the
table of `recipes/results/README.md`. No sentence stands on both sides, nor a held-out one in the
text.

A sentence is a case of the bake-off's (Tseng et al. 2015, "Introduction to SIGHAN 2015 Bake-off for
Chinese Spelling Check"): found if exactly its wrong places are flagged, corrected if the characters
written there are right too, a false alarm if it is right and anything is flagged.
"""

import argparse
import csv
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pretraining_runs import (
    RESULTS,
    command_of,
    replaced,
    train,
    train_tokenizer,
    write_result,
    write_table,
    write_texts,
)
from spelling_model import fine_tune, score_all, score_untuned
from spelling_scores import Pair, Scores
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

NAME = "spelling_sighan"
TABLE = "figures of spelling"
MAX_CHARACTERS = 62
HELD_OUT_FRACTION = 0.2
STARTS = ("none", "mlm", "spell")
SETTINGS = (
    "data.path=$WORK/corpus.jsonl",
    "data.eval_fraction=0.01",
    "data.max_length=64",
    "model.tokenizer=$WORK/tokenizer",
    "model.architecture=roformer",  # BERT with rotary positions
    "train.per_device_train_batch_size=8",
    "train.learning_rate=2e-3",
    "train.max_steps=4000",
    "train.eval_strategy=no",
    "train.save_strategy=no",
)
NUM_EPOCHS = 15


def main() -> None:
    """Pretrain, fine-tune, read the held-out sentences."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the pairs and texts")
    parser.add_argument("--work", type=Path, default=Path("runs/spelling"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the file written")
    parser.add_argument("--steps", type=int, help="fewer steps of pretraining, for a try")
    parser.add_argument("--epochs", type=int, default=NUM_EPOCHS, help="of fine-tuning")
    parser.add_argument("--keep", action="store_true", help="take pretrained models of --work")
    parser.add_argument("--table", action="store_true", help="write the table and end")
    options = parser.parse_args()
    if options.table:
        write_table(TABLE, table())
        return
    if options.data is None or not options.data.is_dir():
        parser.error("--data names the folder of the data")
    data, work = options.data.resolve(), options.work.resolve()
    pairs, held_out = split_pairs(read_pairs(data))
    pretrained = pretrain(data, work, pairs, held_out, options.steps, keep=options.keep)
    starts = {}
    for start in STARTS:
        model, tokenizer = load_start(start, work)
        found = {}
        if start != "none":
            found["before"] = score_untuned(model, tokenizer, pairs, held_out)
        bonus = fine_tune(model, tokenizer, pairs, options.epochs)
        found["after"] = score_all(model, tokenizer, held_out, bonus)
        starts[start] = found
        print(start, json.dumps(found), flush=True)
    result = {
        "command": command_of([*SETTINGS, "pretrain.objective=spell"]),
        "num_pairs": len(pairs),
        "num_held_out_pairs": len(held_out),
        "num_epochs": options.epochs,
        "pretraining": pretrained,
        "starts": starts,
    }
    print(write_result(options.results, NAME, result))


def read_pairs(data: Path) -> list[Pair]:
    """Read wrong and right sentences of equal length."""
    text = (data / "sighan" / "sighan2015_train.tsv").read_text(encoding="utf-8")
    pairs = [line.split("\t") for line in text.splitlines()]
    return [(a, b) for a, b in pairs if len(a) == len(b) <= MAX_CHARACTERS]


def split_pairs(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Hold out a fifth; what has a sentence of these is left out of training."""
    pairs = list(pairs)
    random.Random(42).shuffle(pairs)
    num_held_out = round(HELD_OUT_FRACTION * len(pairs))
    hidden = {sentence for pair in pairs[:num_held_out] for sentence in pair}
    return [pair for pair in pairs[num_held_out:] if not hidden & {*pair}], pairs[:num_held_out]


def read_corpus(data: Path, held_out: Sequence[Pair]) -> list[str]:
    """Read modern Chinese: headlines, reviews, chats, instructions and answers."""
    hidden = [sentence for pair in held_out for sentence in pair]
    texts = [
        text
        for text in dict.fromkeys(map(str.strip, _texts(data)))
        if sum("一" <= one <= "鿿" for one in text) > len(text) / 2
    ]
    random.Random(42).shuffle(texts)
    everything = "\n".join(texts)
    known = [sentence for sentence in hidden if sentence in everything]
    return [text for text in texts if not any(sentence in text for sentence in known)]


def _texts(data: Path) -> Iterator[str]:
    for name in ("tnews", "chnsenticorp"):
        with (data / name / "train.tsv").open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                yield row[0]
    chats = (data / "medicalgpt" / "sharegpt_zh_1K_format.jsonl").read_text(encoding="utf-8")
    for line in chats.splitlines():
        yield from (turn["value"] for turn in json.loads(line)["conversations"])
    alpaca = data / "llamafactory_demo" / "alpaca_zh_demo.json"
    for row in json.loads(alpaca.read_text(encoding="utf-8")):
        yield from (row[field] for field in ("instruction", "input", "output"))


def pretrain(
    data: Path,
    work: Path,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    steps: int | None,
    *,
    keep: bool,
) -> dict[str, Scores]:
    """Train a tokenizer, and a model on each objective, and collect the figures."""
    file = work / "pretraining.json"
    found: dict[str, Scores] = {}
    if keep and file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
    else:
        corpus = read_corpus(data, held_out)
        write_texts(work / "corpus.jsonl", corpus)
        known = [*corpus, *(sentence for pair in pairs for sentence in pair)]
        path = write_texts(work / "known.jsonl", known)
        words = ["--family", "characters", "--min-count", "3"]
        train_tokenizer(path, work / "tokenizer", words)
    for start in STARTS[1:]:
        if start in found:
            continue
        settings = [*replaced(SETTINGS, {"$WORK": work}), f"pretrain.objective={start}"]
        metrics = train(settings, work / start, steps)
        names = ("num_steps", "tokens_seen", "train_seconds", "cpu_seconds")
        found[start] = {
            "accuracy": round(metrics["eval_accuracy"], 4),
            "unigram_accuracy": round(metrics["eval_unigram_accuracy"], 4),
            "loss": round(metrics["eval_loss"], 4),
            **{name: round(metrics[name]) for name in names},
        }
        file.write_text(json.dumps(found), encoding="utf-8")
    return found


def load_start(start: str, work: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load what was pretrained, or make the same model with random weights."""
    folder = work / (STARTS[-1] if start == "none" else start)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_seed(42)
    if start != "none":
        return AutoModelForMaskedLM.from_pretrained(folder), tokenizer
    return AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder)), tokenizer


def table() -> str:
    """The figures of the result file as a Markdown table."""
    lines = [
        "| pretraining | fine-tuned | detection P | R | F1 | correction F1 | sentence detection F1 "
        "| sentence correction F1 | false alarms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    result = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
    starts: Mapping[str, Mapping[str, Scores]] = result["starts"]
    shown = (
        "character_detection_precision",
        "character_detection_recall",
        "character_detection_f1",
        "character_correction_f1",
        "sentence_detection_f1",
        "sentence_correction_f1",
        "false_alarm_rate",
    )
    for when, fine_tuned in (("before", "no"), ("after", "yes")):
        for start, found in starts.items():
            if when in found:
                figures = " | ".join(f"{found[when][name]:.3f}" for name in shown)
                lines.append(f"| {start} | {fine_tuned} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
