"""Tiny Shakespeare by characters: the causal recipe beside a plain loop of the same model.

    python benchmarks/tiny_shakespeare.py --data input.txt
    python benchmarks/tiny_shakespeare.py --data input.txt --steps 40 --rounds 1    # does it run?

nanoGPT's setting for a CPU: 4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps, no
dropout; its README says what comes out, a loss of 1.88 on the last tenth of the text. There it is
an estimate from 20 random batches; here every character of that tenth is predicted once. The
weights begin as the recipe has them, with a deviation of 0.04.

The plain loop begins with the same weights, sees the same windows in the same order and takes the
same steps, without Trainer. `plain` has torch's default AdamW, which is nanoGPT's choice on a CPU,
`fused` the fused one, which is the Trainer's default. All take turns, round by round, each in a
process of its own and each round with a seed of its own. Training alone is timed.
"""

import argparse
import importlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedModel, set_seed

from sft_kit.models.new_tokenizer import train_tokenizer
from sft_kit.models.tokenizer_options import TokenizerOptions

Result = TypeVar("Result")

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED = 1.88
PACKAGES = ("torch", "transformers", "accelerate")
SIDES = ("recipe", "plain", "fused")
SHAPE = {
    "n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64, "activation_function": "gelu",
    "initializer_range": 0.04, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
CONTEXT, BATCH, WARMUP, EVALUATE_EVERY = 64, 12, 100, 25
LEARNING_RATE, LEAST_RATE, BETAS, WEIGHT_DECAY, CLIP = 1e-3, 1e-4, (0.9, 0.99), 0.1, 1.0
HELD_OUT = 0.1
SAME_LOSS, SAME_UNTIL = 2e-3, 100
"""Two roundings of one training: so near are their losses in the first steps."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train all sides round by round, print the table, write the JSON."""
    options = parse(arguments)
    if options.side:
        print(json.dumps(SIDE[options.side](options.work, options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text = options.data.read_text(encoding="utf-8")
        train_tokenizer([text], TokenizerOptions("characters")).save_pretrained(work / "tokenizer")
        rounds = [run_round(work, options, options.seed + turn) for turn in range(options.rounds)]
    record = {
        "options": {"steps": options.steps, "rounds": options.rounds, "seed": options.seed},
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "published_loss": PUBLISHED,
        "figures": {side: summary([turn[side] for turn in rounds]) for side in options.sides},
    }
    show(record)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    real = os.environ.get("SFT_KIT_REAL_DATA")
    default = Path(real, "tinyshakespeare", "input.txt") if real else None
    parser.add_argument("--data", type=Path, default=default, help="the text, in one file")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1337, help="of the first round")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.data is None or not options.data.is_file():
        found = "nothing" if options.data is None else f"no file {options.data}"
        parser.error(
            f"--data: found {found}; accepts a text file, such as input.txt of tiny Shakespeare "
            "(https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare)"
        )
    return options


def run_round(work: Path, options: argparse.Namespace, seed: int) -> dict[str, dict[str, object]]:
    """Train every side with one seed, and see that they train alike."""
    script = [sys.executable, __file__, "--data", str(options.data.resolve()), "--work", str(work)]
    script += ["--steps", str(options.steps), "--seed", str(seed)]
    found: dict[str, dict[str, object]] = {}
    for side in options.sides:
        done = subprocess.run([*script, "--side", side], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{side}: {done.stderr[-4000:]}")
        found[side] = json.loads(done.stdout.splitlines()[-1])
        print(f"seed {seed}, {side}: {found[side]['seconds']:.1f} s", file=sys.stderr)
    losses = [turn.pop("losses")[: SAME_UNTIL // EVALUATE_EVERY] for turn in found.values()]
    for side, other in zip(found, losses, strict=True):
        apart = max(abs(a - b) for a, b in zip(losses[0], other, strict=True))
        if not apart <= SAME_LOSS:
            raise SystemExit(f"{side} trains something else: its losses are {apart:.2g} apart")
    return found


# --- the sides -----------------------------------------------------------------------------------


def train_recipe(work: Path, options: argparse.Namespace) -> dict[str, object]:
    """Run the recipe as a user would, with a clock around `Trainer.train`."""
    sys.path.insert(0, str(REPOSITORY / "recipes"))
    recipe = importlib.import_module("pretrain_gpt2_clm")
    measured: dict[str, object] = {}

    class Timed(recipe.SafeTrainer):  # type: ignore[name-defined,misc]
        def train(self, **known: object) -> object:
            result, taken = timed(lambda: super(Timed, self).train(**known))
            logged = [row["loss"] for row in self.state.log_history if "loss" in row]
            measured.update(taken, losses=logged, model=self.model)
            return result

    recipe.SafeTrainer = Timed
    yaml = {"train.warmup_steps": min(WARMUP, options.steps // 2), "train.max_steps": options.steps}
    sys.argv = [str(REPOSITORY / "recipes" / "pretrain_gpt2_clm.py"), "--overwrite"]
    sys.argv += [
        f"{key}={json.dumps(value)}" for key, value in (recipe_keys(work, options) | yaml).items()
    ]
    standard_output, sys.stdout = sys.stdout, sys.stderr
    recipe.main()
    sys.stdout = standard_output
    model = measured.pop("model")
    assert isinstance(model, PreTrainedModel)
    return measured | {"loss": held_out_loss(model, token_ids(work, options)[1])}


def recipe_keys(work: Path, options: argparse.Namespace) -> dict[str, object]:
    """Say nanoGPT's setting in the recipe's words."""
    return {
        "model.tokenizer": str(work / "tokenizer"),
        "model.config": SHAPE,
        "data.path": str(options.data),
        "data.unit": "file",
        "data.hold_out": "end",
        "data.eval_fraction": HELD_OUT,
        "data.max_length": CONTEXT,
        "train.per_device_train_batch_size": BATCH,
        "train.learning_rate": LEARNING_RATE,
        "train.lr_scheduler_type": "cosine_with_min_lr",
        "train.lr_scheduler_kwargs": {"min_lr": LEAST_RATE},
        "train.adam_beta2": BETAS[1],
        "train.weight_decay": WEIGHT_DECAY,
        "train.max_grad_norm": CLIP,
        "train.bf16": False,  # as the plain loop
        "train.logging_steps": EVALUATE_EVERY,
        "train.eval_strategy": "no",
        "train.save_strategy": "no",
        "train.seed": options.seed,
        "train.output_dir": str(work / "run"),
        "train.disable_tqdm": True,
        "sample.prompts": ["ROMEO:"],
    }


def train_plain(
    work: Path, options: argparse.Namespace, *, fused: bool = False
) -> dict[str, object]:
    """Train in a plain loop."""
    train_ids, eval_ids = token_ids(work, options)
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    set_seed(options.seed)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=len(tokenizer), **ends, **SHAPE))
    model.train()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=fused)

    def run() -> list[float]:
        losses: list[float] = []
        batches = windows(torch.cat([train_ids, torch.tensor([tokenizer.eos_token_id])]), options)
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = rate(step, options.steps)
            logits = model(batch, use_cache=False).logits[:, :-1]
            loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
        return losses

    losses, taken = timed(run)
    # The recipe logs the mean of as many steps at a time.
    parts = [
        losses[first : first + EVALUATE_EVERY] for first in range(0, len(losses), EVALUATE_EVERY)
    ]
    means = [statistics.fmean(part) for part in parts if len(part) == EVALUATE_EVERY]
    return taken | {"losses": means, "loss": held_out_loss(model, eval_ids)}


def train_fused(work: Path, options: argparse.Namespace) -> dict[str, object]:
    """Train in a plain loop with the fused optimizer."""
    return train_plain(work, options, fused=True)


SIDE: dict[str, Callable[[Path, argparse.Namespace], dict[str, object]]] = {
    "recipe": train_recipe,
    "plain": train_plain,
    "fused": train_fused,
}


def timed(run: Callable[[], Result]) -> tuple[Result, dict[str, object]]:
    """Run with a clock for the time that passes and one for that of the processor."""
    start, cpu_start = time.perf_counter(), time.process_time()
    result = run()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return result, {"seconds": seconds, "cpu_seconds": cpu_seconds}


def token_ids(work: Path, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode the part that is learnt and the part that is held out."""
    text = options.data.read_text(encoding="utf-8")
    cut = int((1 - HELD_OUT) * len(text))
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    first, second = (
        tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text[:cut], text[cut:])
    )
    return torch.tensor(first), torch.tensor(second)


def windows(ids: torch.Tensor, options: argparse.Namespace) -> Iterator[torch.Tensor]:
    """Yield (12, 64) windows, in each epoch in the order in which accelerate's sampler has them."""
    rows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    step = 0
    for epoch in range(options.steps):
        order = torch.randperm(
            len(rows), generator=torch.Generator().manual_seed(options.seed + epoch)
        )
        for places in order.split(BATCH):
            if step == options.steps:
                return
            step += 1
            yield rows[places]


def rate(step: int, num_steps: int) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine."""
    warmup = min(WARMUP, num_steps // 2)
    if step < warmup:
        return LEARNING_RATE * step / warmup
    share = (step - warmup) / (num_steps - warmup)
    return LEAST_RATE + (LEARNING_RATE - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * share))


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Nats per character of the held-out text, every one but the first predicted once."""
    model.eval()
    num_rows = (len(ids) - 1) // (CONTEXT - 1)
    places = torch.arange(num_rows)[:, None] * (CONTEXT - 1) + torch.arange(CONTEXT)
    rest = ids[num_rows * (CONTEXT - 1) :]
    total = 0.0
    for rows in (*ids[places].split(128), *([rest[None]] if len(rest) > 1 else [])):
        logits = model(rows, use_cache=False).logits[:, :-1].flatten(0, 1)
        total += float(functional.cross_entropy(logits, rows[:, 1:].flatten(), reduction="sum"))
    return total / (len(ids) - 1)


# --- what came out -------------------------------------------------------------------------------


def summary(turns: Sequence[dict[str, object]]) -> dict[str, object]:
    """Medians over the rounds, with the losses of all."""
    middle = {
        name: statistics.median(float(str(turn[name])) for turn in turns)
        for name in ("seconds", "cpu_seconds", "loss")
    }
    return middle | {"losses": [turn["loss"] for turn in turns]}


def show(record: dict[str, object]) -> None:
    """Print the table."""
    figures: dict[str, dict[str, float]] = record["figures"]  # type: ignore[assignment]
    table = Table(
        title=f"tiny Shakespeare, CPU with {record['threads']} thread(s)",
        caption="medians; loss in nats per character of the held-out tenth (published: "
        f"{PUBLISHED}); times of training alone, beside those of the plain loop",
    )
    for column in ("side", "loss", "seconds", "of plain", "CPU seconds", "of plain"):
        table.add_column(column, justify="left" if column == "side" else "right", no_wrap=True)
    plain = figures.get("plain", next(iter(figures.values())))
    for side, row in figures.items():
        table.add_row(
            side, f"{row['loss']:.4f}",
            f"{row['seconds']:.1f}", f"{row['seconds'] / plain['seconds']:.3f}",
            f"{row['cpu_seconds']:.1f}", f"{row['cpu_seconds'] / plain['cpu_seconds']:.3f}",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    sys.exit(main())
