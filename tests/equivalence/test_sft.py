"""Configurations of supervised fine-tuning that must agree, in full precision on the CPU."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ..recipes.conftest import run
from .conftest import assert_same_bits, assert_same_curve, train, twenty_steps

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH_SECONDS = 180


@pytest.fixture(scope="module")
def one_batch_of_eight(smooth_checkpoint, rows, tmp_path_factory):
    return train(twenty_steps(smooth_checkpoint, rows, tmp_path_factory.mktemp("runs")))


def micro_batches(size: int, number: int) -> dict[str, object]:
    return {
        "train.per_device_train_batch_size": size,
        "train.gradient_accumulation_steps": number,
    }


# --- accumulation --------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "number"), [(2, 4), (1, 8)])
def test_accumulated_micro_batches_equal_one_batch(settings, one_batch_of_eight, size, number):
    assert_same_curve(one_batch_of_eight, train(settings | micro_batches(size, number)))


def test_a_mean_of_micro_batch_means_is_noticed(settings, one_batch_of_eight):
    def plant(recipe):
        def mean_of_means(outputs, labels, num_items_in_batch=None):
            return outputs.nll.sum() / labels[:, 1:].ne(-100).sum() / 4

        recipe.causal_lm_loss = mean_of_means

    wrong = train(settings | micro_batches(2, 4), plant)
    with pytest.raises(AssertionError):
        assert_same_curve(one_batch_of_eight, wrong)


def test_rows_have_very_unequal_lengths(rows, trained_tokenizer):
    texts = [json.loads(line)["output"] for line in rows.read_text(encoding="utf-8").splitlines()]
    lengths = [len(trained_tokenizer(text)["input_ids"]) for text in texts]
    assert max(lengths) > 8 * min(lengths)


# --- what must not matter ------------------------------------------------------------------------


def test_left_padding_equals_right_padding(settings, one_batch_of_eight):
    def swap(recipe):
        recipe.pad_batch = functools.partial(recipe.pad_batch, side="left")

    assert_same_curve(one_batch_of_eight, train(settings, swap))


def test_activation_checkpointing_changes_nothing(settings, rough_checkpoint):
    dropout = {"model.checkpoint": rough_checkpoint, "adapter.lora_dropout": 0.05}
    kept = train(settings | dropout)
    recomputed = train(settings | dropout | {"train.activation_checkpointing": "true"})
    assert recomputed.model.get_base_model().is_activation_checkpointing
    assert not kept.model.get_base_model().is_activation_checkpointing
    assert_same_curve(kept, recomputed)


def test_evaluating_every_step_leaves_every_bit_as_it_was(settings, rough_checkpoint):
    shared = settings | {
        "model.checkpoint": rough_checkpoint,
        "adapter.lora_dropout": 0.05,
        "data.eval_fraction": 0.1,
    }
    evaluated = {"train.eval_strategy": "steps", "train.eval_steps": 1}
    assert_same_bits(train(shared), train(shared | evaluated))


def test_the_adapter_switched_off_is_the_base_to_the_last_bit(
    one_batch_of_eight, smooth_checkpoint
):
    import torch
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(smooth_checkpoint).eval()
    model = one_batch_of_eight.model.eval()
    ids = torch.arange(1, 65).unsqueeze(0)
    with torch.no_grad():
        expected = base(input_ids=ids).logits
        with model.disable_adapter():
            assert (model(input_ids=ids).logits - expected).abs().max() == 0
        assert (model(input_ids=ids).logits - expected).abs().max() > 1e-3


# --- the flat loop -------------------------------------------------------------------------------


LOOP_DOES_NOT_READ = {
    *("sample.prompts", "train.disable_tqdm", "train.eval_strategy", "train.save_strategy"),
}


IN_RANDOM_ORDER = {"train.train_sampling_strategy": "random"}  # as the loop reads its rows


def loop_settings(settings: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key not in LOOP_DOES_NOT_READ}


@pytest.mark.parametrize("dropout", [False, True])
def test_the_flat_loop_gives_the_curve_of_the_trainer(settings, rough_checkpoint, dropout):
    changes = {"adapter.lora_dropout": 0.05, "model.checkpoint": rough_checkpoint}
    settings = settings | (changes if dropout else {})
    trainer = train(settings | IN_RANDOM_ORDER)
    loop = train(loop_settings(settings), stem="sft_gpt2_loop")
    assert_same_curve(trainer, loop)
    for name, tensor in trainer.trained().items():
        assert (tensor - loop.trained()[name]).abs().max() <= 1e-5, name


def test_the_flat_loop_accumulates_like_one_batch(settings):
    settings = loop_settings(settings)
    whole = train(settings, stem="sft_gpt2_loop")
    assert_same_curve(whole, train(settings | micro_batches(2, 4), stem="sft_gpt2_loop"))


# --- other people's losses -----------------------------------------------------------------------


@pytest.fixture
def tokenized(rows, trained_tokenizer):
    """Eight rows as token ids and labels."""
    import copy

    from sft_kit import DataSettings, choose_template, load_conversations, tokenize
    from sft_kit.data.tokenization import to_dataset

    tokenizer = copy.deepcopy(trained_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    template = choose_template(tokenizer, "auto")
    data = DataSettings(path=str(rows), eval_fraction=0.0, max_length=128, num_rows=8)
    examples = tokenize(load_conversations(data).train, tokenizer, template, data)
    return tokenizer, to_dataset(examples)


def our_loss(model, tokenizer, dataset):
    from sft_kit import pad_batch
    from sft_kit.training.metrics import causal_lm_loss

    batch = pad_batch(list(dataset), pad_token_id=tokenizer.pad_token_id)
    labels = batch.pop("labels")
    num_labels = labels[:, 1:].ne(-100).sum()
    return causal_lm_loss(model(**batch), labels, num_labels)


def test_our_loss_is_that_of_trl(tokenized, gpt2_model, tmp_path):
    import torch
    from trl import SFTConfig, SFTTrainer

    tokenizer, dataset = tokenized
    with torch.no_grad():
        ours = our_loss(gpt2_model, tokenizer, dataset)
    args = SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None,
        activation_checkpointing=False,
    )  # fmt: skip
    trainer = SFTTrainer(gpt2_model, args, train_dataset=dataset, processing_class=tokenizer)
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model.eval(), dict(batch))
    assert float(theirs) > 1
    assert abs(float(ours - theirs)) <= 1e-5


def test_our_loss_is_that_of_bare_transformers(tokenized, gpt2_model):
    import torch

    tokenizer, dataset = tokenized
    with torch.no_grad():
        ours = our_loss(gpt2_model, tokenizer, dataset)
        total, count = 0.0, 0
        for row in dataset:
            labels = torch.tensor([row["labels"]])
            # The mean over this row's supervised tokens, so a row counts by how many it has.
            mean = gpt2_model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss
            num_labels = int((labels[:, 1:] != -100).sum())
            total += float(mean) * num_labels
            count += num_labels
    assert abs(float(ours) - total / count) <= 1e-5


# --- several processes ---------------------------------------------------------------------------


def launch(
    launcher: list[str], settings: dict[str, object], stem: str = "sft_gpt2_lora"
) -> subprocess.CompletedProcess[str]:
    words = [f"{key}={value}" for key, value in settings.items()]
    command = [*launcher, f"recipes/{stem}.py", *words]
    with subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=LAUNCH_SECONDS)
        except subprocess.TimeoutExpired:
            # torchrun's workers are sessions of their own: ask it to end them, don't kill it.
            process.terminate()
            process.communicate(timeout=60)
            pytest.fail(f"the processes did not end within {LAUNCH_SECONDS} s")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def logged(folder: Path, figure: str) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line[figure] for line in lines if "loss" in line]


def assert_same_run(two: Path, one: Path) -> None:
    from safetensors.torch import load_file

    losses = logged(two, "loss")
    assert len(losses) == 8
    assert losses == pytest.approx(logged(one, "loss"), abs=1e-5)
    assert logged(two, "grad_norm") == pytest.approx(logged(one, "grad_norm"), rel=1e-4)
    expected = load_file(one / "adapter_model.safetensors")
    found = load_file(two / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) <= 1e-5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


ACCELERATE = [str(Path(sys.executable).parent / "accelerate"), "launch"]
LAUNCHERS = {
    "torchrun": [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"),
    ],
    "accelerate": [
        *(*ACCELERATE, "--config_file", "recipes/launch/ddp_cpu.yaml", "--main_process_port"),
    ],
}


@pytest.fixture(scope="module")
def eight_steps(smooth_checkpoint, rows, tmp_path_factory):
    """Settings of eight steps in which no batch is smaller, and the run folder of one process."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    changes = {"data.num_rows": 40, "train.max_steps": 8, "train.output_dir": folder}
    settings = twenty_steps(smooth_checkpoint, rows, folder) | changes
    run("sft_gpt2_lora", settings)
    return settings, folder


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_give_the_curve_and_the_adapter_of_one(eight_steps, tmp_path, launcher):
    settings, one = eight_steps
    two = tmp_path / "two"
    words = [*LAUNCHERS[launcher], str(free_port())]
    changes = micro_batches(4, 1) | {"train.output_dir": two}
    if launcher == "torchrun":  # held-out rows are evaluated before training begins
        held_out = tmp_path / "held_out.jsonl"
        held_out.write_text('{"instruction": "Held out?", "output": "Yes."}\n' * 4)
        changes["data.eval_path"] = held_out
    done = launch(words, settings | changes)
    assert done.returncode == 0, done.stderr
    assert "4 examples x 2 processes x 1 accumulation = 8" in done.stdout + done.stderr
    assert_same_run(two, one)


def test_two_processes_of_the_flat_loop_that_accumulate_give_the_same(eight_steps, tmp_path):
    settings = loop_settings(eight_steps[0])
    one, two = tmp_path / "one", tmp_path / "two"
    run("sft_gpt2_loop", settings | {"train.output_dir": one})
    words = [*LAUNCHERS["torchrun"], str(free_port())]
    changes = micro_batches(2, 2) | {"train.output_dir": two}
    done = launch(words, settings | changes, "sft_gpt2_loop")
    assert done.returncode == 0, done.stderr
    assert_same_run(two, one)


def test_accelerate_that_starts_fewer_processes_than_asked_is_stopped(eight_steps, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("with a GPU, accelerate starts what it is asked for")
    folder = tmp_path / "run"
    settings = eight_steps[0] | {"train.output_dir": folder}
    done = launch([*ACCELERATE, "--num_processes", "2"], settings)
    assert done.returncode != 0
    assert "the launcher was asked for 2 processes and started 1" in done.stderr
    assert "torchrun --nproc_per_node 2" in done.stderr
    assert "--config_file recipes/launch/ddp_cpu.yaml --num_processes 2" in done.stderr
    assert not folder.exists()
