"""Classification, reward and text-to-text recipes against a bare `transformers.Trainer`.

    python benchmarks/stage_throughput.py --work FOLDER --gpt2-tokenizer F1 --bert-tokenizer F2 \
        --t5-tokenizer F3 [--data FOLDER]

Both sides run the recipe itself, up to the point where it would save. "bare" puts transformers'
Trainer and PEFT's layers in, float32, torch's attention, the model's own dropout, rows in random
order and logits at every position: what one has without this project. The models have the shapes of
GPT-2, BERT-base and T5-small with random weights, made once in FOLDER. Both train one epoch of the
same rows, as many as the steps need. Sides take turns, each in a process of its own; speed is that
after the first step; the table has medians over the rounds, and the loss of the same held-out rows.
Texts are the recipes' own, which are short; `--data` names a folder with `chnsenticorp/train.tsv`,
`sst2/train.tsv`, `derived/hh_harmless_dev2000.jsonl` and `llamafactory_demo/alpaca_en_demo.json`.
`--same-batches` takes chance out, so that the losses must agree: both sides train without dropout
and in the order of the file, which costs ours its batches of similar length.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from torch.utils.data import Subset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
)

from sft_kit.devices import peak_memory_bytes
from sft_kit.models.head_adapters import save_head_with

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Stage:
    """A recipe, the shape it trains, and texts for it: its own, and longer ones of `--data`."""

    recipe: str
    kind: str
    own: str
    longer: str


STAGES = {
    "classify_bert": Stage(
        "classify_bert_chinese_lora", "bert", "data/sentiment_zh.tsv", "chnsenticorp/train.tsv"
    ),
    "classify_gpt2": Stage("classify_gpt2_head", "gpt2", "data/topics.csv", "sst2/train.tsv"),
    "reward_gpt2": Stage(
        "reward_gpt2_lora", "gpt2", "data/preferences.jsonl", "derived/hh_harmless_dev2000.jsonl"
    ),
    "seq2seq_t5": Stage(
        "seq2seq_t5_lora", "t5", "data/instructions.jsonl", "llamafactory_demo/alpaca_en_demo.json"
    ),
}
SHAPES = {
    "gpt2": (AutoModelForCausalLM, "n_layer"),
    "bert": (AutoModelForMaskedLM, "num_hidden_layers"),
    "t5": (AutoModelForSeq2SeqLM, "num_layers"),
}
SETTINGS = {
    "classify": ("classify.early_stopping_patience=null",),
    "reward": (),
    "seq2seq": ("writing.num_rows=0", "writing.num_samples=0"),
}
IGNORED = -100
BARE = ("train.bf16=false", "model.dtype=float32", "model.attention=sdpa", "model.dropout=keep",
        "model.fused=false", "train.train_sampling_strategy=random")  # fmt: skip
SAME = ("train.train_sampling_strategy=sequential", "model.dropout=none")
COMMON = ("model.quantization=none", "train.eval_strategy=no", "train.save_strategy=no",
          "train.load_best_model_at_end=false", "train.disable_tqdm=true",
          "train.logging_steps=1000", "train.warmup_steps=0")  # fmt: skip
SIDES = ("bare", "ours")
PACKAGES = ("torch", "transformers", "peft", "accelerate")


def main() -> None:
    """Run all sides in turn, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--gpt2-tokenizer", type=Path)
    parser.add_argument("--bert-tokenizer", type=Path)
    parser.add_argument("--t5-tokenizer", type=Path)
    parser.add_argument("--data", type=Path, help="folder of public data sets, with longer texts")
    parser.add_argument("--stage", action="append", choices=list(STAGES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--eval-rows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=12, help="fewer for a trial")
    parser.add_argument("--same-batches", action="store_true", help="compare the losses")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stages = options.stage or list(STAGES)
    if options.side:
        print(json.dumps(run_side(STAGES[stages[0]], options)))
        return
    make_models({STAGES[stage].kind for stage in stages}, options)
    figures = [one for stage in stages for one in compare(stage, options)]
    show(figures)
    if options.json:
        versions = {name: version(name) for name in PACKAGES}
        record = {"threads": options.threads, "steps": options.steps, "versions": versions}
        options.json.write_text(json.dumps(record | {"figures": figures}, indent=2) + "\n")


def make_models(kinds: set[str], options: argparse.Namespace) -> None:
    """Write models with random weights, each once; T5 has half as many layers on either side."""
    for kind in kinds:
        auto, num_layers = SHAPES[kind]
        folder = options.work / f"{kind}-{options.layers}"
        if folder.exists():
            continue
        config = AutoConfig.for_model(kind)
        tokenizer = AutoTokenizer.from_pretrained(
            getattr(options, f"{kind}_tokenizer"), config=config
        )
        sizes = {num_layers: options.layers // 2 if kind == "t5" else options.layers}
        if kind == "t5":
            sizes["decoder_start_token_id"] = tokenizer.pad_token_id
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes)
        torch.manual_seed(0)
        auto.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def compare(stage: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run both sides in turn, each in a process of its own."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side in SIDES:
            command = [
                *(sys.executable, __file__, "--work", str(options.work), "--stage", stage),
                *("--side", side, "--steps", str(options.steps)),
                *("--threads", str(options.threads), "--layers", str(options.layers)),
                *("--eval-rows", str(options.eval_rows)),
                *(("--data", str(options.data)) if options.data else ()),
                *(("--same-batches",) if options.same_batches else ()),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{stage}, {side}: {done.stderr[-2000:]}")
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    keys = found["ours"][0]
    return [
        {"stage": stage, "side": side}
        | {key: statistics.median(one[key] for one in rounds) for key in keys}
        for side, rounds in found.items()
    ]


def run_side(stage: Stage, options: argparse.Namespace) -> dict[str, float]:
    """Train as the recipe does, with its Trainer timed, and evaluate."""
    recipe = load_recipe(stage.recipe)
    is_bare = options.side == "bare"
    figures: dict[str, float] = {}
    base = Trainer if is_bare else recipe.SafeTrainer

    class Timed(base):  # type: ignore[misc, valid-type]
        def __init__(self, **given: Any) -> None:  # noqa: ANN401
            given["train_dataset"] = first_rows(
                given["train_dataset"], options.steps * given["args"].train_batch_size
            )
            given["eval_dataset"] = first_rows(given["eval_dataset"], options.eval_rows)
            self.clock = Clock(given["data_collator"])
            given["data_collator"] = self.clock.collate
            super().__init__(**given)
            self.add_callback(self.clock)

        def train(self, *_: object, **__: object) -> None:
            super().train()
            figures.update(self.clock.speed(), peak_bytes=float(peak_memory_bytes()))
            figures["held_out_loss"] = self.evaluate()["eval_loss"]
            raise StopAsyncIteration

    recipe.SafeTrainer = Timed  # type: ignore[attr-defined]
    if is_bare:
        strip(recipe)
    sys.argv = [str(recipe.__file__), *settings_of(stage, options), "--overwrite"]
    try:
        recipe.main()
    except StopAsyncIteration:
        return figures
    raise AssertionError("the recipe did not train")


class Clock(TrainerCallback):
    """Counts tokens as they are batched, and takes the time after each step."""

    def __init__(self, collate: Any) -> None:  # noqa: ANN401
        self._collate = collate
        self.tokens: list[int] = []
        self.marks: list[tuple[float, float]] = []

    def collate(self, rows: object) -> dict[str, torch.Tensor]:
        """Make a batch; its padding does not count, what a decoder writes does."""
        batch: dict[str, torch.Tensor] = self._collate(rows)
        count = int(batch["attention_mask"].sum())
        if "decoder_input_ids" in batch:
            count += int(batch["labels"].ne(IGNORED).sum())
        self.tokens.append(count)
        return batch

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Forget what was evaluated before."""
        self.tokens.clear()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Take the time."""
        self.marks.append((time.process_time(), time.perf_counter()))

    def speed(self) -> dict[str, float]:
        """Sum up all steps but the first."""
        tokens = sum(self.tokens[1 : len(self.marks)])  # one batch may have been made ahead
        cpu, wall = (end - begin for begin, end in zip(self.marks[0], self.marks[-1], strict=True))
        return {
            "tokens_per_second": tokens / wall,
            "cpu_seconds_per_1000_tokens": 1e3 * cpu / tokens,
        }


def settings_of(stage: Stage, options: argparse.Namespace) -> list[str]:
    """Overrides for one side of a stage."""
    data = options.data / stage.longer if options.data else stage.own
    has_adapter = "lora" in stage.recipe
    words = [
        *COMMON,
        *(BARE if options.side == "bare" else ()),
        *(SAME if options.same_batches else ()),
        *(["adapter.lora_dropout=0"] if options.same_batches and has_adapter else ()),
        *SETTINGS[stage.recipe.partition("_")[0]],
        f"data.path={data}",
        *(["data.group=null"] if options.data and stage.kind == "gpt2" else ()),
        f"model.checkpoint={options.work / f'{stage.kind}-{options.layers}'}",
        f"train.max_steps={options.steps}",
        f"train.output_dir={options.work / 'run'}",
    ]
    last = {word.partition("=")[0]: word for word in words}
    return list(last.values())


def first_rows(rows: Any, count: int) -> Any:  # noqa: ANN401
    """Take as many rows, so that one epoch of them is the whole run."""
    assert len(rows) >= min(count, 8), "too few rows"
    chosen = range(min(count, len(rows)))
    return rows.select(chosen) if isinstance(rows, Dataset) else Subset(rows, chosen)


def strip(recipe: Any) -> None:  # noqa: ANN401
    """Take out of a recipe what this project has put in to make it fast."""
    recipe.attach_lora = plain_lora
    if not hasattr(recipe, "answer_where_labelled"):
        return
    collate, figure = recipe.pad_corrupted, recipe.label_figures
    recipe.answer_where_labelled = lambda _model: None
    recipe.pad_corrupted = lambda rows, mark_labels, **ids: collate(rows, **ids)  # noqa: ARG005
    recipe.make_pretraining_loss = lambda _args: None
    recipe.label_figures = lambda logits, labels: figure(logits[0][labels.ne(IGNORED)], labels)


def plain_lora(model: Any, config: Any, **_: object) -> Any:  # noqa: ANN401
    """Attach an adapter as PEFT does; none where the whole model trains.

    PEFT alone would leave the new pooler of a BERT as it was drawn; both sides train it.
    """
    if config is None:
        return model
    save_head_with(model, config)
    return get_peft_model(model, config)


def load_recipe(stem: str) -> ModuleType:
    """Import a recipe from its file."""
    spec = importlib.util.spec_from_file_location(stem, REPOSITORY / "recipes" / f"{stem}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[stem] = module
    spec.loader.exec_module(module)
    return module


def show(figures: list[dict[str, Any]]) -> None:
    """Print a table, ours as a multiple of bare."""
    table = Table("stage", "side", "tokens/s", "times", "CPU s / 1,000 tokens", "times", "memory",
                  "held-out loss")  # fmt: skip
    for one in figures:
        bare = next(x for x in figures if x["stage"] == one["stage"] and x["side"] == "bare")
        table.add_row(
            one["stage"],
            one["side"],
            f"{one['tokens_per_second']:.0f}",
            f"{one['tokens_per_second'] / bare['tokens_per_second']:.2f}",
            f"{one['cpu_seconds_per_1000_tokens']:.2f}",
            f"{bare['cpu_seconds_per_1000_tokens'] / one['cpu_seconds_per_1000_tokens']:.2f}",
            f"{one['peak_bytes'] / 1e9:.2f} GB",
            f"{one['held_out_loss']:.4f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
