"""The sides of `sft_throughput.py`, each in a process of its own: TRL, a bare loop, the recipe.

A side is called `trl-default`, `trl-best` and so on (see `TRL`), `bare-fp32`, or `ours`, after
which `section.key=value` may follow.
"""

import hashlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from sft_workload import Workload, lora_config, matmul_limit, settle
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GPT2Config,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
    set_seed,
)

from sft_kit.data.rows import IGNORED
from sft_kit.devices import peak_memory_bytes

REPOSITORY = Path(__file__).resolve().parents[1]
TRL: dict[str, dict[str, Any]] = {
    "trl-default": {},
    "trl-best": {"gradient_checkpointing": False},
    "trl-fp32": {"gradient_checkpointing": False, "bf16": False},
    "trl-tuned": {
        "gradient_checkpointing": False,
        "train_sampling_strategy": "group_by_length",
        "model_init_kwargs": {
            "dtype": "bfloat16", "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        },
    },
}  # fmt: skip
"""What is set beside TRL's defaults: bfloat16 autocast and checkpointing."""
COLUMNS = ("input_ids", "labels")
LEARNING_RATE, DROPOUT, CLIP, SEED = 2e-4, 0.05, 1.0, 42


@dataclass(frozen=True, slots=True)
class Job:
    """One side's task, as it is handed to its process.

    Attributes:
        side: Its name.
        work: Folder that `write_workload` has filled.
        steps: Optimizer steps that are timed.
        warmup: Steps before them.
        batch: Rows of a step.
        max_length: Tokens of the longest row.
        quantization: Of the frozen weights: `none`, `nf4` or `int8`.
        threads: Of torch.
        is_check: Train without dropout and in the order of the file, and log every loss.
    """

    side: str
    work: str
    steps: int
    warmup: int
    batch: int
    max_length: int
    quantization: str
    threads: int
    workload: dict[str, Any]
    is_check: bool = False

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint."""
        return Path(self.work, "smooth" if self.is_check else "rough")

    @property
    def lora_dropout(self) -> float:
        """Dropout of the adapter."""
        return 0.0 if self.is_check else DROPOUT


def run_job(job: Job) -> dict[str, Any]:
    """Train one side, and measure how fast this process can be."""
    torch.set_num_threads(job.threads)
    watch = Watch(job.warmup, is_check=job.is_check)
    if job.side in TRL:
        train_trl(job, watch)
    elif job.side == "bare-fp32":
        train_bare(job, watch)
    else:
        train_ours(job, watch)
    found = watch.figures()
    if not job.is_check:
        config = GPT2Config.from_pretrained(job.checkpoint)
        workload = Workload(**job.workload)
        found["limits"] = {
            str(dtype).removeprefix("torch."): matmul_limit(
                config, workload, job.batch, dtype, device()
            )
            for dtype in (torch.float32, torch.bfloat16)
        }
    return found


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# --- measuring -----------------------------------------------------------------------------------


class Watch(TrainerCallback):
    """Takes the time after every step and counts what the collator is given."""

    def __init__(self, warmup: int, *, is_check: bool) -> None:
        self.warmup = warmup
        self.is_check = is_check
        self.ends: list[tuple[float, float]] = []
        self.batches: list[tuple[int, int, int]] = []
        self.losses: list[float] = []
        self.peak_bytes = 0
        self.digests: list[str] = []

    def counting(self, collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        """Wrap a collator: rows go through it one batch after the other, in the order of steps."""

        def counted(rows: list[Any]) -> Any:  # noqa: ANN401
            batch = collate(rows)
            num_tokens = sum(len(row["input_ids"]) for row in rows)
            num_labels = sum(label != IGNORED for row in rows for label in row["labels"])
            self.batches.append((num_tokens, batch["input_ids"].numel(), num_labels))
            if self.is_check:
                pairs = [[[int(one) for one in row[name]] for name in COLUMNS] for row in rows]
                self.digests.append(hashlib.sha256(json.dumps(pairs).encode()).hexdigest())
            return batch

        return counted

    def tick(self) -> None:
        """A step has ended."""
        settle(device())
        self.ends.append((time.perf_counter(), time.process_time()))

    def on_step_end(self, *_: object, **__: object) -> None:
        """Of a Trainer."""
        self.tick()

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - a Trainer hands them by position
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: object,
    ) -> None:
        """Note the losses, and the memory before anything else needs some."""
        self.losses = [row["loss"] for row in state.log_history if "loss" in row]
        self.peak_bytes = peak_memory_bytes()

    def figures(self) -> dict[str, Any]:
        """Sum up the steps after the warm-up."""
        pairs = zip(self.ends, self.ends[1:], strict=False)
        times = [(end[0] - begin[0], end[1] - begin[1]) for begin, end in pairs]
        times = times[self.warmup - 1 :]
        batches = self.batches[self.warmup : len(self.ends)]
        seconds, cpu_seconds = (sum(values) for values in zip(*times, strict=True))
        num_tokens = sum(tokens for tokens, _, _ in batches)
        return {
            "tokens_per_second": num_tokens / seconds,
            "cpu_seconds_per_1000_tokens": cpu_seconds / num_tokens * 1000,
            "peak_bytes": self.peak_bytes,
            "padding_share": 1 - num_tokens / sum(padded for _, padded, _ in batches),
            "losses": self.losses,
            "digests": self.digests[: len(self.ends)],
            "steps": [
                {"seconds": time[0], "tokens": tokens, "padded": padded, "labels": labels}
                for time, (tokens, padded, labels) in zip(times, batches, strict=True)
            ],
        }


# --- training ------------------------------------------------------------------------------------


def training(job: Job) -> dict[str, Any]:
    """What every side is trained with; the rest is each side's default."""
    checked = {"train_sampling_strategy": "sequential", "logging_steps": 1}
    return {
        "per_device_train_batch_size": job.batch,
        "max_steps": job.warmup + job.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "max_grad_norm": CLIP,
        "logging_steps": 10,
        "save_strategy": "no",
        "seed": SEED,
        "disable_tqdm": True,
        "report_to": "none",
    } | (checked if job.is_check else {})


def start_adapter(model: PeftModel, job: Job) -> None:
    """Put the adapter's first weights in, the same on every side."""
    set_peft_model_state_dict(model, load_file(Path(job.work, "adapter.safetensors")))


def train_trl(job: Job, watch: Watch) -> None:
    """Train with TRL's SFTTrainer, which loads the model and attaches the adapter by itself."""
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    pairs = read_tokens(job)
    rows = Dataset.from_dict({"input_ids": [a for a, _ in pairs], "labels": [b for _, b in pairs]})
    quantization = quantization_config(job)
    trainer = SFTTrainer(
        model=str(job.checkpoint),
        args=SFTConfig(
            output_dir=str(Path(job.work, "trl")),
            max_length=job.max_length,
            use_cpu=device().type == "cpu",
            **(training(job) | TRL[job.side]),
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(job.checkpoint),
        quantization_config=quantization,
        peft_config=lora_config(job.lora_dropout, is_quantized=quantization is not None),
        callbacks=[watch],
    )
    trainer.data_collator = watch.counting(trainer.data_collator)
    start_adapter(trainer.model, job)
    trainer.train()


def quantization_config(job: Job) -> BitsAndBytesConfig | None:
    """Say the recipe's quantization in the words of transformers."""
    if job.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if job.quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    return None


def train_ours(job: Job, watch: Watch) -> None:
    """Run the recipe as a user would, with the watch among the callbacks."""
    sys.path.insert(0, str(REPOSITORY / "recipes"))
    recipe: Any = importlib.import_module("sft_gpt2_lora")

    class Watched(recipe.SafeTrainer):  # type: ignore[misc]
        def __init__(self, **parts: Any) -> None:  # noqa: ANN401
            parts["data_collator"] = watch.counting(parts["data_collator"])
            super().__init__(**parts | {"callbacks": [*parts["callbacks"], watch]})
            start_adapter(self.model, job)

    recipe.SafeTrainer = Watched
    sys.argv = [str(recipe.__file__), "--overwrite"]
    sys.argv += [f"{key}={json.dumps(value)}" for key, value in recipe_keys(job).items()]
    sys.argv += job.side.split()[1:]
    standard_output, sys.stdout = sys.stdout, sys.stderr
    recipe.main()
    sys.stdout = standard_output


def recipe_keys(job: Job) -> Mapping[str, object]:
    """Say the workload in the recipe's words."""
    return {
        "model.checkpoint": str(job.checkpoint),
        "model.quantization": job.quantization,
        "adapter.lora_dropout": job.lora_dropout,
        "data.path": str(Path(job.work, "rows.jsonl")),
        "data.eval_fraction": 0,
        "data.max_length": job.max_length,
        **{f"train.{name}": value for name, value in training(job).items()},
        "train.eval_strategy": "no",
        "train.output_dir": str(Path(job.work, "ours")),
        "sample.prompts": [],
    }


def train_bare(job: Job, watch: Watch) -> None:
    """Train in a plain loop: float32, GPT-2's dropout, the model's own loss."""
    set_seed(SEED)
    base = AutoModelForCausalLM.from_pretrained(job.checkpoint, dtype=torch.float32)
    model = get_peft_model(base.to(device()), lora_config(job.lora_dropout))
    start_adapter(model, job)
    model.train()
    pairs = read_tokens(job)
    rows = [{"input_ids": ids, "labels": labels} for ids, labels in pairs]
    collate = watch.counting(padded)
    loader = DataLoader(rows, batch_size=job.batch, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0)
    scheduler = get_scheduler("linear", optimizer, 0, job.warmup + job.steps)
    for batch in loader:
        loss = model(**{name: tensor.to(device()) for name, tensor in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, CLIP)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        watch.tick()
    watch.peak_bytes = peak_memory_bytes()


def padded(rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """Pad rows on the right to the longest one."""
    width = max(len(row["input_ids"]) for row in rows)

    def filled(values: Sequence[int], value: int) -> list[int]:
        return [*values, *[value] * (width - len(values))]

    return {
        "input_ids": torch.tensor([filled(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.tensor([filled([1] * len(row["labels"]), 0) for row in rows]),
        "labels": torch.tensor([filled(row["labels"], IGNORED) for row in rows]),
    }


def read_tokens(job: Job) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of every row."""
    pairs: list[tuple[list[int], list[int]]] = json.loads(
        Path(job.work, "tokens.json").read_text(encoding="utf-8")
    )
    return pairs
