"""Classification and reward recipes against a bare `transformers.Trainer`, side by side.

    python benchmarks/stage_throughput.py --work FOLDER --gpt2-tokenizer F1 --bert-tokenizer F2

Both sides run the recipe itself, up to the point where it would save. "bare" puts transformers'
Trainer and PEFT's layers in, float32, torch's attention, the model's own dropout and rows in random
order: what one has without this project. The models have the shapes of GPT-2 and BERT-base with
random weights, made once in FOLDER. Sides take turns; the table has medians over the rounds, and
the loss of held-out rows, which are the same for both.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    Trainer,
)

from sft_kit.devices import peak_memory_bytes

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES = {
    "classify_bert": ("classify_bert_chinese_lora", "bert", "data/topics.csv"),
    "classify_gpt2": ("classify_gpt2_head", "gpt2", "data/topics.csv"),
    "reward_gpt2": ("reward_gpt2_lora", "gpt2", "data/preferences.jsonl"),
}
BARE = ("train.bf16=false", "model.dtype=float32", "model.attention=sdpa", "model.dropout=keep",
        "model.fused=false", "train.train_sampling_strategy=random")  # fmt: skip
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
    parser.add_argument("--stage", action="append", choices=list(STAGES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=12, help="fewer for a trial")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stages = options.stage or list(STAGES)
    if options.side:
        print(json.dumps(run_side(stages[0], options)))
        return
    make_models(options)
    figures = [one for stage in stages for one in compare(stage, options)]
    show(figures)
    if options.json:
        versions = {name: version(name) for name in PACKAGES}
        record = {"threads": options.threads, "steps": options.steps, "versions": versions}
        options.json.write_text(json.dumps(record | {"figures": figures}, indent=2) + "\n")


def make_models(options: argparse.Namespace) -> None:
    """Write both models with random weights, once."""
    for kind, auto in (("gpt2", AutoModelForCausalLM), ("bert", AutoModelForMaskedLM)):
        folder = options.work / f"{kind}-{options.layers}"
        if folder.exists():
            continue
        config = AutoConfig.for_model(kind)
        source = getattr(options, f"{kind}_tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(source, config=config)
        layers = {"n_layer" if kind == "gpt2" else "num_hidden_layers": options.layers}
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **layers)
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


def run_side(stage: str, options: argparse.Namespace) -> dict[str, float]:
    """Train as the recipe does, with its Trainer timed, and evaluate."""
    stem, kind, data = STAGES[stage]
    recipe = load_recipe(stem)
    is_bare = options.side == "bare"
    figures: dict[str, float] = {}
    base = Trainer if is_bare else recipe.SafeTrainer

    class Timed(base):  # type: ignore[misc, valid-type]
        def __init__(self, **options: Any) -> None:  # noqa: ANN401
            collate, self.tokens = options.pop("data_collator"), list[int]()

            def collate_and_count(rows: object) -> dict[str, torch.Tensor]:
                batch: dict[str, torch.Tensor] = collate(rows)
                self.tokens.append(int(batch["attention_mask"].sum()))
                return batch

            super().__init__(data_collator=collate_and_count, **options)

        def train(self, *_: object, **__: object) -> None:
            cpu, wall = time.process_time(), time.perf_counter()
            super().train()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            tokens = sum(self.tokens[: self.state.global_step])  # one batch is made ahead
            figures["tokens_per_second"] = tokens / wall
            figures["cpu_seconds_per_1000_tokens"] = 1000 * cpu / tokens
            figures["peak_bytes"] = float(peak_memory_bytes())
            figures["held_out_loss"] = self.evaluate()["eval_loss"]
            raise StopAsyncIteration

    recipe.SafeTrainer = Timed  # type: ignore[attr-defined]
    words = [*COMMON, *(BARE if is_bare else ()), f"data.path={data}"]
    words += [f"model.checkpoint={options.work / f'{kind}-{options.layers}'}"]
    words += [f"train.max_steps={options.steps}", f"train.output_dir={options.work / 'run'}"]
    if stem.startswith("classify"):
        words.append("classify.early_stopping_patience=null")
    if is_bare:
        recipe.attach_lora = plain_lora  # type: ignore[attr-defined]
    sys.argv = [str(recipe.__file__), *words, "--overwrite"]
    try:
        recipe.main()
    except StopAsyncIteration:
        return figures
    raise AssertionError("the recipe did not train")


def plain_lora(model: Any, config: Any, **_: object) -> Any:  # noqa: ANN401
    """Attach an adapter as PEFT does; none where the whole model trains."""
    return model if config is None else get_peft_model(model, config)


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
    table = Table("stage", "side", "tokens/s", "times", "CPU s / 1,000 tokens", "memory",
                  "held-out loss")  # fmt: skip
    for one in figures:
        bare = next(x for x in figures if x["stage"] == one["stage"] and x["side"] == "bare")
        table.add_row(
            one["stage"],
            one["side"],
            f"{one['tokens_per_second']:.0f}",
            f"{one['tokens_per_second'] / bare['tokens_per_second']:.2f}",
            f"{one['cpu_seconds_per_1000_tokens']:.2f}",
            f"{one['peak_bytes'] / 1e9:.2f} GB",
            f"{one['held_out_loss']:.4f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
