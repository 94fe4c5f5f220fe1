"""Configurations of classifier training that must agree, in full precision on the CPU."""

import functools
from pathlib import Path

import pytest

from ..recipes.conftest import run, save_bert, write_labelled
from .conftest import NUM_STEPS, assert_same_bits, assert_same_curve, train
from .test_sft import LAUNCHERS, assert_same_run, free_port, launch, micro_batches

BERT = "classify_bert_chinese_lora"
GPT2 = "classify_gpt2_head"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return write_labelled(tmp_path_factory.mktemp("rows") / "rows.tsv")


@pytest.fixture(scope="module")
def bases(tmp_path_factory, smooth_checkpoint, rough_checkpoint):
    """Base by recipe and by whether it has dropout."""
    folder = tmp_path_factory.mktemp("bases")
    return {
        (BERT, False): save_bert(folder / "smooth", 0.0),
        (BERT, True): save_bert(folder / "rough", 0.1),
        (GPT2, False): smooth_checkpoint,
        (GPT2, True): rough_checkpoint,
    }


def twenty_steps(base: Path, rows: Path, folder: Path) -> dict[str, object]:
    return {
        "model.checkpoint": base,
        "data.path": rows,
        "data.eval_fraction": 0,
        "data.group": "null",
        "data.num_rows": 37,
        "data.max_length": 48,
        "classify.class_weights": "balanced",
        "classify.label_smoothing": 0.1,
        "classify.early_stopping_patience": "null",
        "train.output_dir": folder,
        "train.per_device_train_batch_size": 8,
        "train.learning_rate": 2e-3,
        "train.max_steps": NUM_STEPS,
        "train.logging_steps": 1,
        "train.eval_strategy": "no",
        "train.save_strategy": "no",
        "train.load_best_model_at_end": "false",
        "train.disable_tqdm": "true",
    }


def settings_of(stem: str, bases, rows, folder, *, dropout: bool = False) -> dict[str, object]:
    settings = twenty_steps(bases[stem, dropout], rows, folder)
    return settings | ({"adapter.lora_dropout": 0.1 * dropout} if stem == BERT else {})


@pytest.fixture(scope="module")
def one_batch(bases, labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        stem: train(settings_of(stem, bases, labelled, folder / stem), stem=stem)
        for stem in (BERT, GPT2)
    }


@pytest.mark.parametrize("stem", [BERT, GPT2])
def test_accumulated_micro_batches_equal_one_batch(bases, labelled, one_batch, tmp_path, stem):
    settings = settings_of(stem, bases, labelled, tmp_path / "run") | micro_batches(2, 4)
    assert_same_curve(one_batch[stem], train(settings, stem=stem))


def test_a_mean_of_micro_batch_means_is_noticed(bases, labelled, one_batch, tmp_path):
    def plant(recipe):
        def mean_of_means(outputs, labels, num_items_in_batch=None, **rest):
            from torch.nn.functional import cross_entropy

            return cross_entropy(outputs.logits, labels) / 4

        recipe.make_loss = lambda *_: mean_of_means

    settings = settings_of(BERT, bases, labelled, tmp_path / "run") | micro_batches(2, 4)
    with pytest.raises(AssertionError):
        assert_same_curve(one_batch[BERT], train(settings, plant, BERT))


def test_left_padding_equals_right_padding_for_a_decoder(bases, labelled, one_batch, tmp_path):
    def swap(recipe):
        recipe.pad_labelled = functools.partial(recipe.pad_labelled, side="left")

    settings = settings_of(GPT2, bases, labelled, tmp_path / "run")
    assert_same_curve(one_batch[GPT2], train(settings, swap, GPT2))


@pytest.mark.parametrize("stem", [BERT, GPT2])
def test_evaluating_every_step_leaves_every_bit_as_it_was(bases, labelled, tmp_path, stem):
    settings = settings_of(stem, bases, labelled, tmp_path / "run", dropout=True)
    settings |= {"data.eval_fraction": 0.2}
    evaluated = {"train.eval_strategy": "steps", "train.eval_steps": 1}
    assert_same_bits(train(settings, stem=stem), train(settings | evaluated, stem=stem))


def test_a_run_resumed_in_the_middle_of_an_epoch_ends_with_the_same_bits(bases, labelled, tmp_path):
    class KilledError(Exception):
        pass

    def die_at_step_7(recipe):
        from transformers import TrainerCallback

        class Die(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 7:
                    raise KilledError

        recipe.early_stopping = lambda settings: [Die()]

    saving = {"train.save_strategy": "steps", "train.save_steps": 3, "train.max_steps": 12}
    settings = settings_of(BERT, bases, labelled, tmp_path / "run", dropout=True) | saving
    straight = settings | {"train.output_dir": tmp_path / "straight"}
    run(BERT, straight)
    with pytest.raises(KilledError):
        run(BERT, settings, change=die_at_step_7)
    run(BERT, settings, "--resume")
    for name in ("adapter_model.safetensors", "metrics.json"):
        assert (tmp_path / "run" / name).is_file()
    resumed, expected = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("run", "straight")
    )
    assert resumed == expected


@pytest.mark.slow  # the same seam is held by the fine-tuning recipe in the default suite
def test_two_processes_give_the_curve_and_the_adapter_of_one(bases, labelled, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    settings = settings_of(BERT, bases, labelled, one)
    settings |= {"data.num_rows": 40, "train.max_steps": 8}
    run(BERT, settings)
    words = [*LAUNCHERS["torchrun"], str(free_port())]
    done = launch(words, settings | micro_batches(4, 1) | {"train.output_dir": two}, BERT)
    assert done.returncode == 0, done.stderr
    assert_same_run(two, one)
