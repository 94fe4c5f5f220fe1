"""Looking at a model while it trains changes nothing: weights with evaluation are those without.

Each recipe of the Trainer runs four steps twice, with dropout: once evaluated, saved and logged at
every step, once never.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from . import harness
from .harness import REPOSITORY, TINY_BERT, TINY_GPT2, Job

RECIPES = REPOSITORY / "recipes"
CHECKPOINTS = REPOSITORY / "data" / "checkpoints"
TINY_T5 = CHECKPOINTS / "tiny-t5"
SMALL = {
    "train.per_device_train_batch_size": 2,
    "train.per_device_eval_batch_size": 4,
    "train.gradient_accumulation_steps": 1,
    "train.max_steps": 4,
    "train.warmup_steps": 0,
    "train.disable_tqdm": "true",
    "train.load_best_model_at_end": "false",
    "train.metric_for_best_model": "null",
}
OFTEN = {
    "train.logging_steps": 1,
    "train.eval_strategy": "steps",
    "train.eval_steps": 1,
    "train.save_strategy": "steps",
    "train.save_steps": 1,
}
NEVER = {"train.logging_steps": 1, "train.eval_strategy": "no", "train.save_strategy": "no"}
TEXTS = {"data.max_length": 48, "data.eval_fraction": 0.2, "sample.prompts": "[]"}


def new_model(architecture: str, tokenizer: object, sizes: str) -> dict[str, object]:
    return TEXTS | {
        "model.architecture": architecture, "model.tokenizer": tokenizer, "model.config": sizes,
    }  # fmt: skip


BERT = (
    "{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64, "
    "max_position_embeddings: 64, type_vocab_size: 16, hidden_dropout_prob: 0.2}"
)
T5 = "{d_model: 32, d_kv: 16, d_ff: 64, num_layers: 2, num_heads: 2, dropout_rate: 0.2}"
BART = (
    "{d_model: 32, encoder_layers: 2, decoder_layers: 2, encoder_attention_heads: 2, "
    "decoder_attention_heads: 2, encoder_ffn_dim: 64, decoder_ffn_dim: 64, "
    "max_position_embeddings: 64, dropout: 0.2}"
)
GPT2 = "{n_embd: 32, n_layer: 2, n_head: 2, n_positions: 64, resid_pdrop: 0.2}"


def jobs_of(folder: Path) -> dict[str, Job]:
    """A small job of each recipe that uses the Trainer; of one with an adapter also in 4 bits."""
    made = harness.make_jobs(folder)
    texts = folder / "texts.jsonl"
    rows = [{"text": f"The room {n} is good. The food is {'very ' * (n % 5)}fine."}
            for n in range(40)]  # fmt: skip
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = {"data.path": texts, "data.streaming": "false"}
    whole, bart = "model.safetensors", folder / "bart-tokenizer"
    save_bart_tokenizer(bart)
    labels = made["classify"].settings
    kept = ("data.path", "data.eval_fraction", "data.max_length")
    quantized = {**made["sft"].settings, "model.quantization": "nf4"}
    sampled = {"data.eval_fraction": 0.25, "sample.prompts": "[Why?]", "sample.max_new_tokens": 4}
    return {
        "sft": replace(made["sft"], settings={**made["sft"].settings, **sampled}),
        "sft nf4": replace(made["sft"], settings={**quantized, **sampled}),
        "classify": replace(
            made["classify"], settings={**labels, "classify.early_stopping_patience": "null"}
        ),
        "head": Job(
            "classify_gpt2_head",
            {**{key: labels[key] for key in kept}, "model.checkpoint": TINY_GPT2,
             "data.group": "null", "classify.early_stopping_patience": "null"},
            whole,
        ),
        "reward": made["reward"],
        "chatglm": Job(
            "sft_chatglm2_int4_lora",
            {"model.checkpoint": CHECKPOINTS / "tiny-chatglm2-int4",
             "data.path": made["sft"].settings["data.path"], "sample.prompts": "[]",
             "data.eval_fraction": 0.25, "adapter.r": 2},
        ),
        "seq2seq": Job(
            "seq2seq_t5_lora",
            {"model.checkpoint": TINY_T5, "data.eval_fraction": 0.25,
             "data.path": made["sft"].settings["data.path"], "writing.num_rows": 2,
             "writing.num_samples": 1, "writing.max_new_tokens": 4, "adapter.r": 2},
        ),
        "mlm": Job("pretrain_bert_mlm", new_model("bert", TINY_BERT, BERT) | path, whole),
        "prefix": Job("pretrain_prefix_lm", new_model("bert", TINY_BERT, BERT) | path, whole),
        "spans": Job("pretrain_t5_span", new_model("t5", TINY_T5, T5) | path, whole),
        "denoise": Job(
            "pretrain_bart_denoise", new_model("bart", bart, BART) | path, whole
        ),
        "clm": Job("pretrain_gpt2_clm", new_model("gpt2", TINY_GPT2, GPT2) | path, whole),
    }  # fmt: skip


def save_bart_tokenizer(folder: Path) -> None:
    """Save the byte tokens of tiny-gpt2 with the special tokens of BART."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY_GPT2)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    tokenizer.add_special_tokens(names)
    tokenizer.save_pretrained(folder)


NAMES = ("sft", "sft nf4", "classify", "head", "reward", "chatglm", "seq2seq", "mlm", "prefix",
         "spans", "denoise", "clm")  # fmt: skip


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    return jobs_of(tmp_path_factory.mktemp("data"))


def weights_after(job: Job, folder: Path, changes: dict[str, object]) -> str:
    plain = {key: value for key, value in job.settings.items() if not key.startswith("train.")}
    job = replace(job, settings=plain | SMALL | changes)
    ended = harness.run(job, folder)
    assert ended.code == 0, ended.said[-3000:]
    files = sorted(folder.glob(f"{job.weights.partition('.')[0]}*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_evaluating_and_saving_at_every_step_changes_no_weight(
    name: str, jobs: dict[str, Job], tmp_path: Path
):
    never = weights_after(jobs[name], tmp_path / "never", NEVER)
    assert weights_after(jobs[name], tmp_path / "often", OFTEN) == never
    assert sum("eval_loss" in line for line in harness.logged(tmp_path / "often")) >= 4


def test_every_recipe_of_the_trainer_is_looked_at(jobs: dict[str, Job]):
    stems = {path.stem for path in RECIPES.glob("*.py") if "SafeTrainer(" in path.read_text()}
    assert {job.stem for job in jobs.values()} == stems
    assert set(jobs) == set(NAMES)


@pytest.mark.slow
def test_dropout_makes_the_order_of_draws_matter(
    jobs: dict[str, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without the isolation the weights differ, so that the test above can fail."""
    from contextlib import nullcontext

    from sft_kit.training import trainer

    never = weights_after(jobs["sft"], tmp_path / "never", NEVER)
    monkeypatch.setattr(trainer, "isolated_randomness", nullcontext)
    assert weights_after(jobs["sft"], tmp_path / "often", OFTEN) != never


KILL_WORKERS = Callable[[], None]


def kill_a_worker_at(call: int) -> KILL_WORKERS:
    """Make what kills one of the worker processes before the n-th forward."""

    def arm() -> None:
        import multiprocessing
        import warnings

        from sft_kit.training.trainer import SafeTrainer

        calls, original = [0], SafeTrainer.compute_loss

        def watched(*args: object, **kwargs: object) -> object:
            calls[0] += 1
            if calls[0] == call:
                os.kill(multiprocessing.active_children()[0].pid or 0, 9)
            return original(*args, **kwargs)  # type: ignore[arg-type]

        SafeTrainer.compute_loss = watched  # type: ignore[method-assign]
        # torch counts cores; on a machine with one, two workers are too many for its taste.
        warnings.filterwarnings("ignore", message="This DataLoader will create")

    return arm


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_in_words_and_the_run_goes_on(
    jobs: dict[str, Job], tmp_path: Path
):
    workers = {"train.dataloader_num_workers": 2, "train.save_steps": 1, "train.max_steps": 8}
    settings = {**jobs["sft"].settings, "data.eval_fraction": 0, "train.eval_strategy": "no"}
    job = replace(jobs["sft"], settings=settings | workers)
    ended = harness.run(job, tmp_path / "run", first=kill_a_worker_at(3))
    assert ended.code == 2, ended.said[-3000:]
    assert "one of the 2 worker processes that read the rows was killed" in ended.said
    assert "Traceback" not in ended.said
    without = replace(job, settings=job.settings | {"train.dataloader_num_workers": 0})
    straight = harness.run(without, tmp_path / "straight")
    assert straight.code == 0
    resumed = harness.finish(without, tmp_path / "run")
    assert harness.compare(job, tmp_path / "run", tmp_path / "straight", resumed) == ""
