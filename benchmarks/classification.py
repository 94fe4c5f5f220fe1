"""Real data sets through the classification recipe: what comes out, and what it took.

    python benchmarks/classification.py --data FOLDER [NAME ...]
    python benchmarks/classification.py --table

FOLDER holds `sst2/`, `fin_phrasebank/`, `mctaco/`, `chnsenticorp/`, `tokenizers/bert-base-chinese`
and `checkpoints/minilm_l6_fp16`. Each experiment runs the recipe in a process of its own, as a user
would, and writes `recipes/results/NAME.json`: commands, figures, seconds, versions. `--table`
writes the table of `recipes/results/README.md` from these files.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "recipes" / "results"
RECIPE = "recipes/classify_bert_chinese_lora.py"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
FIGURES = ("eval_accuracy", "eval_macro_f1", "eval_weighted_f1", "eval_mcc", "eval_loss")
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"

FIXED_LENGTH = (  # nothing is chosen on the rows that are reported
    "train.load_best_model_at_end=false",
    "classify.early_stopping_patience=null",
    "train.eval_strategy=no",
    "train.save_strategy=no",
)
MINILM = ("model.checkpoint=$DATA/checkpoints/minilm_l6_fp16", *FIXED_LENGTH, "train.bf16=true")
LORA = ("model.dtype=bfloat16", "train.learning_rate=1e-3")
FULL = ("adapter=null", "train.learning_rate=5e-5")
SST2 = (
    *MINILM,
    "data.path=$DATA/sst2/train.tsv",
    "data.eval_path=$DATA/sst2/dev.tsv",
    "data.eval_fraction=0",
    'data.label_names={"0": negative, "1": positive}',
    "train.num_train_epochs=3",
)
PHRASEBANK = (
    *MINILM,
    "data.path=$DATA/fin_phrasebank/Sentences_AllAgree.txt",
    "data.num_folds=5",
    *LORA,
    "train.num_train_epochs=3",
)
MCTACO = (
    *MINILM,
    "data.path=$DATA/mctaco/dev_3783.tsv",
    "data.text=1",
    "data.text_pair=[2, 3]",
    "data.label=4",
    "data.group=2",
    "data.eval_fraction=0.2",
    *LORA,
    "train.num_train_epochs=3",
)
CHNSENTICORP = (
    "model.checkpoint=$WORK/small-encoder",
    *FIXED_LENGTH,
    "adapter=null",
    "data.path=$DATA/chnsenticorp/train.tsv",
    "data.eval_path=$DATA/chnsenticorp/dev.tsv",
    "data.eval_fraction=0",
    "data.deduplicate=false",
    "data.on_overlap=keep",
    "data.max_length=192",
    "train.learning_rate=5e-4",
    "train.num_train_epochs=2",
)
EXPERIMENTS: Mapping[str, tuple[str, ...]] = {
    "sst2_lora": (*SST2, *LORA),
    "sst2_full": (*SST2, *FULL),
    "sst2_nf4": (*SST2, *LORA, "model.quantization=nf4"),
    "sst2_int8": (*SST2, *LORA, "model.quantization=int8"),
    "phrasebank_5_fold": PHRASEBANK,
    "mctaco_by_question": MCTACO,
    "chnsenticorp_from_scratch": CHNSENTICORP,
}


def main() -> None:
    """Run the experiments that were named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--data", type=Path, help="folder of the data sets and checkpoints")
    parser.add_argument("--work", type=Path, default=Path("runs/classification"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files written")
    parser.add_argument("--table", action="store_true", help="write the table and end")
    options = parser.parse_args()
    if options.table:
        write_table()
        return
    unknown = sorted(set(options.names) - set(EXPERIMENTS))
    if unknown or options.data is None or not options.data.is_dir():
        parser.error(f"unknown: {unknown}" if unknown else "--data names the folder of the data")
    for name in options.names or EXPERIMENTS:
        result = run_experiment(name, options.data.resolve(), options.work.resolve())
        path = options.results / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path}: {result['figures']}", flush=True)


def run_experiment(name: str, data: Path, work: Path) -> dict[str, object]:
    """Train (every fold, where there are folds) and collect the figures."""
    words = EXPERIMENTS[name]
    folds = [f"data.fold={fold}" for fold in range(1, 6)] if "5_fold" in name else [""]
    if any("$WORK/small-encoder" in word for word in words):
        new_encoder(data / "tokenizers" / "bert-base-chinese", work / "small-encoder")
    metrics, reports, seconds = [], [], []
    for number, fold in enumerate(folds):
        folder = work / f"{name}_{number}"
        command = [*words, *([fold] if fold else []), f"train.output_dir={folder}"]
        places = {"$DATA": str(data), "$WORK": str(work)}
        seconds.append(train([_replaced(word, places) for word in command]))
        metrics.append(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        reports.append(json.loads((folder / "evaluation.json").read_text(encoding="utf-8")))
    figures = _means(metrics, FIGURES)
    if len(folds) > 1:
        scores = [round(run["eval_macro_f1"], 4) for run in metrics]
        figures |= {"macro_f1_of_folds": scores, "macro_f1_stdev": statistics.stdev(scores)}
    first = [*words, *filter(None, folds[:1])]
    return {
        "command": f"accelerate launch {RECIPE} " + " ".join(map(quoted, first)),
        "num_runs": len(folds),
        "figures": figures | extra_figures(name, folder, data),
        "majority": _means(reports, ("majority_accuracy", "majority_macro_f1")),
        "seconds_per_run": [round(value) for value in seconds],
        "train_seconds": [round(run["train_seconds"]) for run in metrics],
        "peak_memory_mb": round(max(run["peak_memory_bytes"] for run in metrics) / 2**20),
        "num_cores": os.cpu_count(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def _means(runs: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, object]:
    return {name: round(statistics.fmean(run[name] for run in runs), 4) for name in names}


def train(words: Sequence[str]) -> float:
    """Run the recipe; returns seconds from the command to its end."""
    start = time.monotonic()
    command = [sys.executable, RECIPE, *words, "--overwrite"]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return time.monotonic() - start


def new_encoder(tokenizer: Path, folder: Path) -> None:
    """Write a small BERT with random weights and the tokenizer of bert-base-chinese."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(42)
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    config = BertConfig(
        vocab_size=len(loaded),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
    )
    BertModel(config).save_pretrained(folder)
    loaded.save_pretrained(folder)


def extra_figures(name: str, folder: Path, data: Path) -> dict[str, object]:
    """What a data set asks for beside the usual figures."""
    if name.startswith("chnsenticorp"):
        return without_known_rows(folder, data)
    return question_scores(folder) if name.startswith("mctaco") else {}


def without_known_rows(folder: Path, data: Path) -> dict[str, object]:
    """Evaluate again without the held-out rows that stand in the training file."""
    dev = data / "chnsenticorp" / "dev.tsv"
    out = folder / "evaluation" / "dev"
    command = ["sft-kit", "evaluate", str(folder), "--data", str(dev), "--output", str(out)]
    subprocess.run([str(Path(sys.executable).with_name(command[0])), *command[1:]], check=True)
    report = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    honest = report["not_trained_on"]
    names = ("num_rows", "accuracy", "macro_f1")
    return {
        "all_rows": {name: report[name] for name in names},
        "rows_not_trained_on": {name: honest[name] for name in names},
        "rows_not_trained_on_majority_accuracy": honest["majority_accuracy"],
    }


def question_scores(folder: Path) -> dict[str, object]:
    """MC-TACO's own figures: F1 of the plausible answers and exact match, question by question."""
    from sft_kit.artifacts import load_classifier_run
    from sft_kit.data.labelled.splits import load_labelled
    from sft_kit.data.labelled.tokenization import tokenize_labelled
    from sft_kit.inference.classify import predict_logits

    run = load_classifier_run(str(folder))
    rows = load_labelled(run.data).eval
    examples = tokenize_labelled(rows, run.tokenizer, run.label_names, run.data)
    logits = predict_logits(run.model, examples, pad_token_id=run.tokenizer.pad_token_id)
    guesses = [run.label_names[index] for index in logits.argmax(-1)]
    truths = [row.labels[0] for row in rows]
    questions = [(row.texts[0], row.group) for row in rows]
    scored = {"model": guesses, "always_no": ["no"] * len(rows), "always_yes": ["yes"] * len(rows)}
    return {
        f"{figure}_{who}": round(value, 4)
        for who, answers in scored.items()
        for figure, value in _by_question(questions, truths, answers).items()
    }


def _by_question(
    questions: Sequence[object], truths: Sequence[str], guesses: Sequence[str]
) -> dict[str, float]:
    groups: dict[object, list[tuple[bool, bool]]] = {}
    for question, truth, guess in zip(questions, truths, guesses, strict=True):
        groups.setdefault(question, []).append((truth == "yes", guess == "yes"))
    f1, exact = [], []
    for pairs in groups.values():
        hits = sum(truth and guess for truth, guess in pairs)
        # As in Zhou et al. 2019: nothing to find counts as found, nothing guessed as right.
        recall = hits / sum(truth for truth, _ in pairs) if any(t for t, _ in pairs) else 1.0
        precision = hits / sum(guess for _, guess in pairs) if any(g for _, g in pairs) else 1.0
        f1.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
        exact.append(float(all(truth == guess for truth, guess in pairs)))
    return {"question_f1": statistics.fmean(f1), "exact_match": statistics.fmean(exact)}


def _replaced(word: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        word = word.replace(name, value)
    return word


def quoted(word: str) -> str:
    """A word of a command line, in quotes where a shell needs them."""
    return f"'{word}'" if set(word) & set(' {}[]"') else word


def table() -> str:
    """The figures of all result files as a Markdown table."""
    lines = [
        "| experiment | accuracy | macro F1 | majority accuracy | train seconds | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name in EXPERIMENTS:
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        figures = result["figures"]
        seconds = statistics.fmean(result["train_seconds"])
        lines.append(
            f"| `{name}` | {figures['eval_accuracy']:.3f} | {figures['eval_macro_f1']:.3f} | "
            f"{result['majority']['majority_accuracy']:.3f} | {seconds:.0f} | "
            f"{result['peak_memory_mb'] / 1024:.1f} GB |"
        )
    return "\n".join(lines)


def write_table() -> None:
    """Put the table between its two marks in `recipes/results/README.md`."""
    path = RESULTS / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
