"""Small runs of four recipes, trained once: what attacks and wrong bases are tried on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..recipes.conftest import run, save_bert, save_checkpoint, write_labelled, write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHORT = {
    "train.per_device_train_batch_size": 4,
    "train.max_steps": 2,
    "train.learning_rate": 1e-2,
    "train.eval_strategy": "no",
    "train.save_strategy": "no",
    "train.disable_tqdm": "true",
}


@dataclass(frozen=True)
class TrainedRun:
    """A finished run and what it was trained with.

    Attributes:
        folder: The run.
        base: Its base checkpoint.
        data: Rows that a command can read.
    """

    folder: Path
    base: Path
    data: Path


def write_pairs(path: Path, num_rows: int = 30) -> Path:
    """Write compared answers."""
    rows = [
        {"prompt": f"Question {index}?", "chosen": "Yes, of course.", "rejected": f"no {index}!"}
        for index in range(num_rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def train_sft(place: Path, tokenizer: "PreTrainedTokenizerFast") -> TrainedRun:
    """Fine-tune for two steps, with a checkpoint after each."""
    base = save_checkpoint(place / "sft-base", tokenizer, 0.1)
    data = write_rows(place / "rows.jsonl", 24)
    words = {
        "model.checkpoint": base,
        "model.quantization": "none",
        "data.path": data,
        "train.output_dir": place / "sft",
        "train.save_strategy": "steps",
        "train.save_steps": 1,
        "sample.prompts": "[]",
    }
    run("sft_gpt2_lora", SHORT | words)
    return TrainedRun(place / "sft", base, data)


def train_classifier(place: Path) -> TrainedRun:
    """Train a BERT with an adapter for two steps."""
    base = save_bert(place / "bert-base", 0.1)
    data = write_labelled(place / "rows.tsv", 40)
    words = {
        "model.checkpoint": base,
        "data.path": data,
        "data.max_length": 48,
        "classify.early_stopping_patience": "null",
        "train.metric_for_best_model": "null",
        "train.load_best_model_at_end": "false",
        "train.output_dir": place / "classifier",
    }
    run("classify_bert_chinese_lora", SHORT | words)
    return TrainedRun(place / "classifier", base, data)


def train_reward(place: Path, tokenizer: "PreTrainedTokenizerFast") -> TrainedRun:
    """Train a reward model for two steps."""
    base = save_checkpoint(place / "reward-base", tokenizer, 0.1)
    data = write_pairs(place / "pairs.jsonl")
    words = {
        "model.checkpoint": base,
        "data.path": data,
        "adapter.r": 4,
        "train.output_dir": place / "reward",
    }
    run("reward_gpt2_lora", SHORT | words)
    return TrainedRun(place / "reward", base, data)


def train_policy(place: Path, tokenizer: "PreTrainedTokenizerFast") -> TrainedRun:
    """Train a policy for two rollouts on a rule that likes short answers."""
    base = save_checkpoint(place / "policy-base", tokenizer, 0.1)
    data = write_pairs(place / "prompts.jsonl")
    rule = place / "rule.py"
    rule.write_text(
        "def short(completions, **_):\n    return [-float(len(text)) for text in completions]\n",
        encoding="utf-8",
    )
    words = {
        "model.checkpoint": base,
        "data.path": data,
        "adapter.r": 4,
        "reward.model": "null",
        "reward.normalise": "none",
        "reward.clip": "null",
        "reward.functions": json.dumps({f"{rule}:short": 1.0}),
        "ppo.sft_adapter": "null",
        "ppo.num_rollouts": 2,
        "ppo.episodes_per_rollout": 4,
        "ppo.num_minibatches": 2,
        "ppo.num_epochs": 1,
        "ppo.max_new_tokens": 6,
        "ppo.eval_rollouts": 0,
        "ppo.save_rollouts": 2,
        "train.output_dir": place / "policy",
        "train.per_device_train_batch_size": 2,
        "train.learning_rate": 1e-2,
        "train.disable_tqdm": "true",
        "sample.prompts": "[]",
    }
    run("ppo_gpt2_lora", words)
    return TrainedRun(place / "policy", base, data)
