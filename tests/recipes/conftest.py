"""Recipes run in this process: the file is imported, `sys.argv` is set, `main` is called."""

import importlib.util
import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
RANDOM_WEIGHTS_SEED = 1234
WORDS = ("good", "fine", "dull", "bad", "room", "food", "film", "very", "not", "the", "天", "气")
Change = Callable[[ModuleType], None]
Words = dict[str, object]


def run(
    stem: str, settings: Mapping[str, object], *flags: str, change: Change | None = None
) -> ModuleType:
    """Run a recipe's `main` with a command line.

    Args:
        stem: File name without `.py`.
        settings: Dotted keys and values.
        *flags: `--resume` and the like.
        change: Called with the recipe's module before it runs, to replace one of its parts.

    Returns:
        The module that ran.
    """
    words = [*(f"{key}={value}" for key, value in settings.items()), *flags]
    path = RECIPES / f"{stem}.py"
    spec = importlib.util.spec_from_file_location(f"recipe_{stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
            patch.delenv(name)  # set by an earlier run in this process, it would mean a launcher
        patch.setitem(sys.modules, spec.name, module)
        patch.setattr(sys, "argv", [str(path), *words])
        spec.loader.exec_module(module)
        if change is not None:
            change(module)
        module.main()
    return module


def write_rows(path: Path, num_rows: int = 40) -> Path:
    """Write questions and answers of very unequal lengths, both languages."""
    rows = [
        {
            "instruction": f"Question {index}:{' why' * (index * 5 % 13)}{'为什么' * (index % 3)}?",
            "output": f"Answer {index}{' because' * (index * index % 29)}.",
        }
        for index in range(num_rows)
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def save_checkpoint(folder: Path, tokenizer: "PreTrainedTokenizerFast", dropout: float) -> Path:
    """Save a random GPT-2 (2 layers, hidden size 64, context 256) and its tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    end = tokenizer.eos_token_id
    torch.manual_seed(RANDOM_WEIGHTS_SEED)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=64, n_layer=2, n_head=2,
        attn_pdrop=dropout, embd_pdrop=dropout, resid_pdrop=dropout,
        bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_labelled(path: Path, num_rows: int = 40) -> Path:
    """Write texts of very unequal lengths in three classes of very unequal sizes."""
    draw = random.Random(5)
    lines = ["text\tlabel"]
    for index in range(num_rows):
        words = draw.choices(WORDS, k=1 + (index * index) % 37)
        label = ("low", "mid", "high")[(index % 7 > 3) + (index % 7 > 5)]
        lines.append(f"{index} {' '.join(words)}\t{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def save_bert(folder: Path, dropout: float) -> Path:
    """Save a random BERT (2 layers, hidden size 32) and a tokenizer over a few words."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    folder.mkdir(parents=True)
    digits = [str(digit) for digit in range(10)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *WORDS, *digits, *(f"##{digit}" for digit in digits)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run_recipe() -> Callable[..., ModuleType]:
    """The function `run`."""
    return run


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, trained_tokenizer: "PreTrainedTokenizerFast"
) -> Path:
    """Random GPT-2 with dropout 0.1, shared by all tests; nobody writes to it."""
    return save_checkpoint(tmp_path_factory.mktemp("base") / "tiny-gpt2", trained_tokenizer, 0.1)


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows of instruction and output."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="session")
def small(checkpoint: Path, rows_file: Path) -> Words:
    """Settings of six small steps of a recipe with an adapter; dropout everywhere."""
    return {
        "model.checkpoint": checkpoint,
        "model.quantization": "none",
        "data.path": rows_file,
        "train.per_device_train_batch_size": 4,
        "train.max_steps": 6,
        "train.logging_steps": 1,
    }


@pytest.fixture(scope="session")
def small_lora(small: Words) -> Words:
    """The same for `sft_gpt2_lora`, with an evaluation and a checkpoint every second step."""
    return small | {
        "train.per_device_eval_batch_size": 4,
        "train.eval_steps": 2,
        "train.save_steps": 2,
        "train.save_total_limit": 3,
        "train.disable_tqdm": "true",
        "sample.prompts": "[]",
    }


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, small_lora: Words) -> Path:
    """Run folder of six steps of `sft_gpt2_lora` with two prompts; copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    prompts = {"sample.prompts": '["What does a cow eat?", 奶牛吃什么]', "sample.max_new_tokens": 4}
    run("sft_gpt2_lora", small_lora | prompts | {"train.output_dir": folder})
    return folder


@pytest.fixture(scope="session")
def labelled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 texts in three classes."""
    return write_labelled(tmp_path_factory.mktemp("rows") / "rows.tsv", 60)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random BERT with dropout 0.1, shared by all tests; nobody writes to it."""
    return save_bert(tmp_path_factory.mktemp("base") / "tiny-bert", 0.1)


@pytest.fixture(scope="session")
def small_classifier(bert: Path, labelled_file: Path) -> Words:
    """Settings of six small steps of `classify_bert_chinese_lora`, evaluated at every second."""
    return {
        "model.checkpoint": bert,
        "data.path": labelled_file,
        "data.eval_fraction": 0.2,
        "data.max_length": 48,
        "train.per_device_train_batch_size": 4,
        "train.per_device_eval_batch_size": 4,
        "train.learning_rate": 5e-3,
        "train.max_steps": 6,
        "train.logging_steps": 1,
        "train.eval_strategy": "steps",
        "train.eval_steps": 2,
        "train.save_strategy": "steps",
        "train.save_steps": 2,
        "train.save_total_limit": 3,
        "train.metric_for_best_model": "loss",
        "train.disable_tqdm": "true",
    }


@pytest.fixture(scope="session")
def classifier_run(tmp_path_factory: pytest.TempPathFactory, small_classifier: Words) -> Path:
    """Run folder of `classify_bert_chinese_lora`; copy it before changing it."""
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    run("classify_bert_chinese_lora", small_classifier | {"train.output_dir": folder})
    return folder
