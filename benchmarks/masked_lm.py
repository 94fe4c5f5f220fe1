"""Masked words of real English and classical Chinese: what a small encoder learns to fill in.

    python benchmarks/masked_lm.py --data FOLDER [NAME ...]
    python benchmarks/masked_lm.py --table

FOLDER holds `wikitext2_part/valid.txt` and `poetry_zh/poet.tang.*.json`. Each experiment trains a
tokenizer and then a new model on 25 %, 50 % and all of the training texts, for the same number of
epochs, in processes of their own. Whole texts are held out; what is hidden of them is the same in
all runs of an experiment. `recipes/results/NAME.json` gets the figures: accuracy at the hidden
tokens beside that of always answering the most frequent token (`unigram_accuracy`), both also
without punctuation, where they are counted a second time, token by token. `--table` writes the
table of `recipes/results/README.md` from these files.

WikiText's blanks around hyphens and in numbers (` @-@ `) are undone. Its `<unk>` becomes the
special token [UNK], which is never hidden: three tokens that predict each other would flatter.
"""

import argparse
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from sft_kit.artifacts.plain import LoadedPlain
    from sft_kit.data.corpus.datasets import Datasets

SHARES = (0.25, 0.5, 1.0)
NUM_POEMS = 10_000
HELD_OUT_FRACTION = 0.1
TABLE = "figures of masked words"
TOKENIZER = {"wikitext": ["--lowercase", "--vocab-size", "8000"], "tang": []}
NUM_EPOCHS = {"wikitext": 6, "tang": 3}
PROMPTS = {"wikitext": "He was [MASK] to the city.", "tang": "明月[MASK]高樓，"}
COMMON = (
    "data.path=$WORK/train.jsonl",
    "data.eval_path=$WORK/eval.jsonl",
    "data.eval_fraction=0",
    "data.max_length=64",
    "model.tokenizer=$WORK/tokenizer",
    "model.architecture=roformer",  # BERT with rotary positions
    "model.config.num_hidden_layers=2",
    "train.per_device_train_batch_size=8",
    "train.learning_rate=2e-3",
    "train.max_steps=-1",
    "train.eval_strategy=no",
    "train.save_strategy=no",
)
EXPERIMENTS: Mapping[str, tuple[str, ...]] = {
    f"masked_{text}_{objective}": (
        *COMMON,
        f"train.num_train_epochs={NUM_EPOCHS[text]}",
        f"pretrain.objective={objective}",
        f'sample.prompts=["{PROMPTS[text]}"]',
    )
    for text in ("wikitext", "tang")
    for objective in ("mlm", "wwm")
}


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts, each a list of its lines.

    Attributes:
        train: In a random order.
        held_out: Others.
        for_tokenizer: The training texts without what the tokenizer shall not learn.
    """

    train: list[list[str]]
    held_out: list[list[str]]
    for_tokenizer: list[list[str]]


def main() -> None:
    """Run the experiments that were named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--data", type=Path, help="folder of the texts")
    parser.add_argument("--work", type=Path, default=Path("runs/masked_lm"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files written")
    parser.add_argument("--steps", type=int, help="fewer steps, for a try")
    parser.add_argument("--table", action="store_true", help="write the table and end")
    options = parser.parse_args()
    if options.table:
        write_table(TABLE, table())
        return
    unknown = sorted(set(options.names) - set(EXPERIMENTS))
    if unknown or options.data is None or not options.data.is_dir():
        parser.error(f"unknown: {unknown}" if unknown else "--data names the folder of the data")
    for name in options.names or EXPERIMENTS:
        work = options.work.resolve() / name
        result = run_experiment(name, options.data.resolve(), work, options.steps)
        path = write_result(options.results, name, result)
        print(f"{path}: {result['runs']}", flush=True)


def run_experiment(
    name: str, data: Path, work: Path, steps: int | None = None
) -> dict[str, object]:
    """Train on each share of the texts and collect the figures."""
    kind = name.split("_")[1]
    corpus = read_wikitext(data) if kind == "wikitext" else read_poems(data)
    write_texts(work / "train.jsonl", corpus.train)
    write_texts(work / "eval.jsonl", corpus.held_out)
    path = write_texts(work / "for_tokenizer.jsonl", corpus.for_tokenizer)
    train_tokenizer(path, work / "tokenizer", ["--family", "bert", *TOKENIZER[kind]])
    runs = []
    for share in SHARES:
        words = [*EXPERIMENTS[name], f"data.num_rows={round(share * len(corpus.train))}"]
        folder = work / f"{share:g}"
        metrics = train(replaced(words, {"$WORK": work}), folder, steps)
        counted = count_right(folder)
        check(metrics, counted)
        runs.append({"share": share, **counted, **figures(metrics)})
    return {
        "command": command_of(EXPERIMENTS[name]),
        "num_texts": len(corpus.train),
        "num_held_out_texts": len(corpus.held_out),
        "runs": runs,
    }


def read_wikitext(data: Path) -> Corpus:
    """Read articles, of which each paragraph is a line."""
    articles: list[list[str]] = []
    text = (data / "wikitext2_part" / "valid.txt").read_text(encoding="utf-8")
    for line in text.split("\n"):
        if re.fullmatch(r" = [^=].* = ", line):
            articles.append([])
        if line.strip():
            articles[-1].append(re.sub(r" @(.)@ ", r"\1", line.strip()))
    random.Random(42).shuffle(articles)
    num_held_out = round(HELD_OUT_FRACTION * len(articles))
    shown, plain = (
        [[line.replace("<unk>", by) for line in article] for article in articles]
        for by in ("[UNK]", "")
    )
    return Corpus(shown[num_held_out:], shown[:num_held_out], plain[num_held_out:])


def read_poems(data: Path) -> Corpus:
    """Read the first 10,000 Tang poems, in their traditional characters."""
    files = sorted((data / "poetry_zh").glob("poet.tang.*.json"), key=lambda path: path.stem)
    rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    poems = [row["paragraphs"] for row in rows if any(map(str.strip, row["paragraphs"]))]
    poems = poems[:NUM_POEMS]
    random.Random(42).shuffle(poems)
    num_held_out = round(HELD_OUT_FRACTION * len(poems))
    return Corpus(poems[num_held_out:], poems[:num_held_out], poems[num_held_out:])


def count_right(folder: Path) -> dict[str, float]:
    """Count the right answers of a finished run one by one, without Trainer and metrics of ours.

    Returns:
        Accuracy of the model, and of always answering the token that is most frequent in the
        training texts: at all hidden tokens, and at those that are no punctuation.
    """
    import torch

    from sft_kit.artifacts.plain import load_plain_run

    run = load_plain_run(str(folder))
    rows = rows_of(run)
    tokens = run.tokenizer.convert_ids_to_tokens(list(range(len(run.tokenizer))))
    special = run.tokenizer.all_special_ids
    is_word = torch.tensor([any(map(str.isalnum, token)) for token in tokens])
    is_word[special] = False
    counts = torch.from_numpy(rows.train.rows.stream.ids).bincount(minlength=len(tokens))
    counts[special] = 0
    labels, guesses = [], []
    with torch.inference_mode():
        for row in (rows.eval[index] for index in range(len(rows.eval))):
            label = torch.from_numpy(row["labels"])
            ids = torch.from_numpy(row["input_ids"])[None].to(run.model.device)
            logits = run.model(input_ids=ids).logits[0].cpu()
            labels.append(label[label >= 0])
            guesses.append(logits.argmax(-1)[label >= 0])
    truth, guess = torch.cat(labels), torch.cat(guesses)
    word = is_word[truth]
    found = {
        "accuracy": guess == truth,
        "unigram_accuracy": truth == counts.argmax(),
        "word_accuracy": (guess == truth)[word],
        "unigram_word_accuracy": (truth == (counts * is_word).argmax())[word],
    }
    means = {name: round(right.double().mean().item(), 4) for name, right in found.items()}
    return {"num_hidden": len(truth), "num_hidden_words": int(word.sum()), **means}


def rows_of(run: "LoadedPlain") -> "Datasets":
    """Make the rows of a run once more."""
    from sft_kit.artifacts.load import recorded_settings
    from sft_kit.data.corpus.datasets import make_datasets
    from sft_kit.data.corpus.texts import load_texts
    from sft_kit.data.corpus.vocabulary import vocabulary_of
    from sft_kit.data.corruption.choose import corruption_of, objective_of
    from sft_kit.settings import MaskedSettings, TextDataSettings

    sections = run.info["settings"]
    data = recorded_settings(TextDataSettings, sections["data"])
    pretrain = recorded_settings(MaskedSettings, sections["pretrain"])
    objective = objective_of(pretrain, data.max_length)
    vocabulary = vocabulary_of(run.tokenizer, objective.needs)
    corrupt = corruption_of(pretrain, vocabulary, run.tokenizer)
    texts = load_texts(data)
    seed = sections["train"]["seed"]
    return make_datasets(texts, run.tokenizer, vocabulary, data, objective, corrupt, seed)


def check(metrics: Mapping[str, float], counted: Mapping[str, float]) -> None:
    """End where the recipe's own accuracy is not the one that was counted.

    Its `unigram_accuracy` is of another token at times: it looks at a sample of the rows only.
    """
    own, again = metrics["eval_accuracy"], counted["accuracy"]
    if abs(own - again) > 1e-3:  # in a batch a near tie may go the other way
        raise SystemExit(f"accuracy: {own} in metrics.json, counted {again}")


def figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """Take what is reported of a run."""
    exact = {"loss": metrics["eval_loss"], "perplexity": metrics["eval_perplexity"]}
    whole = ("num_steps", "tokens_seen", "train_seconds", "cpu_seconds")
    return {
        **{name: round(value, 4) for name, value in exact.items()},
        **{name: round(metrics[name]) for name in whole},
        "peak_memory_mb": round(metrics["peak_memory_bytes"] / 2**20),
    }


def table() -> str:
    """The figures of all result files as a Markdown table."""
    lines = [
        "| experiment | share of the texts | accuracy | most frequent token | difference | "
        "without punctuation | most frequent word | perplexity | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in EXPERIMENTS:
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            continue
        for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
            more = run["accuracy"] - run["unigram_accuracy"]
            lines.append(
                f"| `{name}` | {run['share']:.0%} | {run['accuracy']:.3f} | "
                f"{run['unigram_accuracy']:.3f} | {more:+.3f} | {run['word_accuracy']:.3f} | "
                f"{run['unigram_word_accuracy']:.3f} | {run['perplexity']:.1f} | "
                f"{run['cpu_seconds']} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
