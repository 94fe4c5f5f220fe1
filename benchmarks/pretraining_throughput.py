r"""Pretraining recipes beside transformers' example scripts: the same model, text and batches.

    python benchmarks/pretraining_throughput.py --text valid.txt \
        --bert bert-base-uncased --gpt2 gpt2                # a text, and folders of tokenizers
    python benchmarks/pretraining_throughput.py ... --shape base --objectives mlm --steps 5
    python benchmarks/pretraining_throughput.py ... --shape tiny --steps 3 --rounds 1   # runs?

The other side is what `run_mlm.py` and `run_clm.py` do: `datasets` tokenizes and groups, a
collator masks, the Trainer trains with the model's own loss. Both have the same new model, batch
size and length, and each the precision that it picks by itself: the recipes bfloat16 where the CPU
has instructions for it, the Trainer float32; `--bf16` makes them the same. Before anything is
timed, both losses are taken of one batch, and their gradients.

A side runs in a process of its own, the sides in turn; figures are medians of steps, then of
rounds. `all s` is from the text to the last step, imports and saving aside.
"""

import argparse
import importlib
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
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from sft_kit.data.corpus.collators import pad_corrupted
from sft_kit.data.corpus.datasets import make_datasets
from sft_kit.data.corpus.texts import load_texts
from sft_kit.data.corpus.vocabulary import vocabulary_of
from sft_kit.data.corruption.choose import corruption_of, objective_of
from sft_kit.devices import peak_memory_bytes
from sft_kit.objectives.language import labelled_loss
from sft_kit.settings import CausalSettings, MaskedSettings, TextDataSettings

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "accelerate", "datasets")
OBJECTIVES = {"mlm": "pretrain_bert_mlm", "clm": "pretrain_gpt2_clm"}
TOKENIZERS = {"mlm": "bert", "clm": "gpt2"}
SIDES = ("ours", "theirs")
LENGTH, BATCH, MASKED = 128, 8, 0.15
SHAPES = {"tiny": (32, 1, 2), "small": (256, 4, 4), "base": (768, 12, 12)}
"""Width, layers, heads."""
PRECISIONS = {
    "default": "each in the precision that it picks by itself",
    "none": "float32",
    "both": "bfloat16 autocast",
}
TOLERANCE = 2e-6
"""Two orders of adding up the same numbers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure round by round, print the table, write the JSON."""
    options = parse(arguments)
    if options.side:
        found = check(options) if options.side == "check" else measure(options)
        print(json.dumps(found))
        return 0
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for objective in options.objectives:
            work = Path(folder, objective)
            work.mkdir()
            child(options, objective, "check", work)
            rounds = [
                {side: child(options, objective, side, work) for side in SIDES}
                for _ in range(options.rounds)
            ]
            figures[objective] = {side: medians([turn[side] for turn in rounds]) for side in SIDES}
    record = {
        "options": {
            name: getattr(options, name) for name in ("shape", "dropout", "steps", "rounds", "bf16")
        },
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "figures": figures,
    }
    show(record)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; the real data set's folder gives the defaults."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    real = os.environ.get("SFT_KIT_REAL_DATA")

    def place(name: str) -> Path | None:
        return Path(real, name) if real else None

    parser.add_argument("--text", type=Path, default=place("wikitext2_part/valid.txt"))
    for name, folder in (("bert", "bert-base-uncased"), ("gpt2", "gpt2")):
        folder_help = f"folder of a tokenizer, such as {folder}'s"
        default = place(f"tokenizers/{folder}")
        parser.add_argument(f"--{name}", type=Path, default=default, help=folder_help)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the model")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bf16", choices=PRECISIONS, default="default", help="bfloat16 autocast")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--side", choices=(*SIDES, "check"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    needed = ["text", *(TOKENIZERS[objective] for objective in options.objectives)]
    missing = [
        name for name in needed if not (value := getattr(options, name)) or not value.exists()
    ]
    if missing:
        parser.error(
            f"found nothing at --{', --'.join(missing)}; --text accepts a text file, the others "
            "folders of tokenizers (leave objectives out with --objectives)"
        )
    return options


def child(options: argparse.Namespace, objective: str, side: str, work: Path) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--work", str(work)]
    command += ["--objectives", objective, "--text", str(options.text.resolve())]
    tokenizer = TOKENIZERS[objective]
    command += [f"--{tokenizer}", str(getattr(options, tokenizer).resolve())]
    for name in ("shape", "dropout", "steps", "bf16"):
        command += [f"--{name}", str(getattr(options, name))]
    places = {"HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **places})
    if done.returncode:
        raise SystemExit(f"{objective}, {side}: {done.stderr[-4000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{objective}, {side}: {found}", file=sys.stderr)
    return found


# --- the sides -----------------------------------------------------------------------------------


class Clock(TrainerCallback):
    """Takes the time at the end of every step."""

    def __init__(self) -> None:
        self.begin = 0.0
        self.ends: list[tuple[float, float]] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Data and model are ready."""
        self.begin = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Passed seconds, and those of the processor."""
        self.ends.append((time.perf_counter(), time.process_time()))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Train one side; figures are of the median step."""
    clock = Clock()
    start = time.perf_counter()
    if options.side == "ours":
        run_recipe(options, clock)
    else:
        example_trainer(options, clock).train()
    steps = [
        (end - begin, cpu_end - cpu_begin)
        for (begin, cpu_begin), (end, cpu_end) in zip(clock.ends, clock.ends[1:], strict=False)
    ]
    seconds, cpu_seconds = (statistics.median(values) for values in zip(*steps, strict=True))
    num_tokens = BATCH * LENGTH
    return {
        "tokens_per_second": num_tokens / seconds,
        "cpu_seconds_per_1000_tokens": cpu_seconds / num_tokens * 1000,
        "preparation_seconds": clock.begin - start,
        "all_seconds": clock.ends[-1][0] - start,
        "peak_bytes": float(peak_memory_bytes()),
    }


def run_recipe(options: argparse.Namespace, clock: Clock) -> None:
    """Run the recipe as a user would, with a clock among the callbacks."""
    recipe = load_recipe(options.objectives[0])

    class Watched(recipe.SafeTrainer):  # type: ignore[name-defined,misc]
        def __init__(self, *args: object, callbacks: list[TrainerCallback], **rest: object) -> None:
            super().__init__(*args, callbacks=[*callbacks, clock], **rest)

    recipe.SafeTrainer = Watched
    sys.argv = [str(recipe.__file__), "--overwrite"]
    sys.argv += [f"{key}={json.dumps(value)}" for key, value in recipe_keys(options).items()]
    standard_output, sys.stdout = sys.stdout, sys.stderr
    recipe.main()
    sys.stdout = standard_output


def load_recipe(objective: str) -> Any:  # noqa: ANN401 - a module whose names are replaced
    """Import a recipe."""
    sys.path.insert(0, str(REPOSITORY / "recipes"))
    return importlib.import_module(OBJECTIVES[objective])


def recipe_keys(options: argparse.Namespace) -> dict[str, object]:
    """Say the setting in the recipe's words."""
    return {
        "model.tokenizer": str(tokenizer_folder(options)),
        "model.config": shape_of(options),
        "data.path": str(options.text),
        "data.unit": "line",
        "data.eval_fraction": 0,
        "data.max_length": LENGTH,
        **{f"train.{name}": value for name, value in training(options).items()},
        "train.eval_strategy": "no",
        "train.warmup_steps": 0,
        "train.output_dir": str(options.work / "ours"),
        "sample.prompts": [],
    } | ({"pretrain.objective": "mlm"} if options.objectives[0] == "mlm" else {})


def training(options: argparse.Namespace) -> dict[str, object]:
    """What both sides are trained with; the rest is each side's default."""
    return {
        "per_device_train_batch_size": BATCH,
        "max_steps": options.steps,
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
    } | ({} if options.bf16 == "default" else {"bf16": options.bf16 == "both"})


def shape_of(options: argparse.Namespace) -> dict[str, object]:
    """Fields of the model's config."""
    width, layers, heads = SHAPES[options.shape]
    drop = options.dropout
    if options.objectives[0] == "mlm":
        return {
            "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": 4 * width, "max_position_embeddings": LENGTH,
            "initializer_range": 0.02, "hidden_dropout_prob": drop,
            "attention_probs_dropout_prob": drop,
        }  # fmt: skip
    return {
        "n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": LENGTH,
        "initializer_range": 0.02, "resid_pdrop": drop, "embd_pdrop": drop, "attn_pdrop": drop,
    }  # fmt: skip


def tokenizer_folder(options: argparse.Namespace) -> Path:
    """A folder that `AutoTokenizer` reads; BERT's may hold nothing but its words."""
    given: Path = getattr(options, TOKENIZERS[options.objectives[0]])
    if any((given / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return given
    from transformers import BertTokenizerFast

    folder: Path = options.work / "tokenizer"
    if not folder.is_dir():
        BertTokenizerFast.from_pretrained(given).save_pretrained(folder)
    return folder


def new_model(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Make the model that both sides train."""
    set_seed(42)
    fields = shape_of(options) | {"vocab_size": len(tokenizer)}
    if options.objectives[0] == "mlm":
        return BertForMaskedLM(BertConfig(**fields))
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    return GPT2LMHeadModel(GPT2Config(**fields, **ends))


def example_trainer(options: argparse.Namespace, clock: Clock) -> Trainer:
    """Prepare what the example scripts prepare."""
    import datasets

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(options))
    is_masked = options.objectives[0] == "mlm"
    lines = datasets.load_dataset("text", data_files=str(options.text), split="train")
    tokens = lines.map(
        lambda rows: tokenizer(rows["text"], return_special_tokens_mask=is_masked),
        batched=True, remove_columns=["text"],
    )  # fmt: skip
    windows = tokens.map(grouped, batched=True)
    if not is_masked:
        windows = windows.map(lambda rows: {**rows, "labels": rows["input_ids"]}, batched=True)
    collate: Any = default_data_collator
    if is_masked:
        collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
    arguments = TrainingArguments(output_dir=str(options.work / "theirs"), **training(options))
    return Trainer(
        model=new_model(options, tokenizer),
        args=arguments,
        train_dataset=windows,
        data_collator=collate,
        callbacks=[clock],
    )


def grouped(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Join the rows of a batch and cut them into windows; a rest is left out."""
    joined = {name: list(chain.from_iterable(values)) for name, values in rows.items()}
    size = len(next(iter(joined.values()))) // LENGTH * LENGTH
    return {
        name: [values[first : first + LENGTH] for first in range(0, size, LENGTH)]
        for name, values in joined.items()
    }


def check(options: argparse.Namespace) -> dict[str, float]:
    """Take both losses and gradients of one batch, and stop where they are not the same."""
    recipe = load_recipe(options.objectives[0])
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(options))
    batch = recipe_batch(options, tokenizer)
    label_mask = {name: batch.pop(name) for name in ("label_mask",) if name in batch}
    model = new_model(options, tokenizer).eval()
    theirs = model(**batch).loss
    theirs.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if label_mask:
        recipe.answer_where_labelled(model)
        ours = labelled_loss(model(**inputs, **label_mask).logits, batch["labels"])
    else:
        ours = recipe.causal_lm_loss(model(**inputs), batch["labels"])
    ours.backward()
    apart = abs(float(ours - theirs)) / float(theirs)
    size = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    pairs = zip(gradients, model.parameters(), strict=True)
    error = torch.cat([(mine.grad - given).flatten() for given, mine in pairs]).norm() / size
    if not (apart <= TOLERANCE and float(error) <= 10 * TOLERANCE):
        raise SystemExit(f"other losses: {apart:.2g} apart, gradients {float(error):.2g}")
    return {"loss": float(theirs), "apart": apart, "gradients_apart": float(error)}


def recipe_batch(
    options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase
) -> dict[str, torch.Tensor]:
    """Make the first rows as the recipe makes them."""
    is_masked = options.objectives[0] == "mlm"
    settings = TextDataSettings(
        str(options.text), unit="line", eval_fraction=0, max_length=LENGTH, num_rows=500
    )
    asked = MaskedSettings() if is_masked else CausalSettings()
    objective = objective_of(asked, LENGTH)
    vocabulary = vocabulary_of(tokenizer, objective.needs)
    corrupt = corruption_of(asked, vocabulary, tokenizer)
    texts = load_texts(settings)
    rows = make_datasets(texts, tokenizer, vocabulary, settings, objective, corrupt, 42).train
    first = [rows[index] for index in range(BATCH)]
    return pad_corrupted(first, pad_token_id=0, mark_labels=is_masked)


# --- what came out -------------------------------------------------------------------------------


def medians(turns: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians over the rounds."""
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def show(record: dict[str, Any]) -> None:
    """Print the table."""
    options = record["options"]
    width, layers, heads = SHAPES[options["shape"]]
    table = Table(
        title=f"width {width}, {layers} layers, {heads} heads, dropout {options['dropout']}, "
        f"{PRECISIONS[options['bf16']]}, CPU with {record['threads']} "
        "thread(s)",
        caption=f"medians of {options['rounds']} rounds of {options['steps']} steps of {BATCH} x "
        f"{LENGTH} tokens; `all` is from the text to the last step",
    )
    columns = (
        "objective",
        "side",
        "tokens/s",
        "x",
        "CPU s/1,000",
        "x",
        "prepare s",
        "all s",
        "x",
        "MB",
    )
    for column in columns:
        justify = "left" if column in columns[:2] else "right"
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for objective, sides in record["figures"].items():
        theirs = sides["theirs"]
        for side, row in sides.items():
            cost, given = "cpu_seconds_per_1000_tokens", theirs["cpu_seconds_per_1000_tokens"]
            table.add_row(
                objective, side,
                f"{row['tokens_per_second']:,.0f}",
                f"{row['tokens_per_second'] / theirs['tokens_per_second']:.2f}",
                f"{row[cost]:.3f}", f"{given / row[cost]:.2f}",
                f"{row['preparation_seconds']:.1f}", f"{row['all_seconds']:.1f}",
                f"{theirs['all_seconds'] / row['all_seconds']:.2f}",
                f"{row['peak_bytes'] / 2**20:,.0f}",
            )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
