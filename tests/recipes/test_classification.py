"""Classifier runs: what they leave behind, and that their heads come back or are refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .test_recipes import (
    ADAPTER,
    RECORD,
    TOKENIZER,
    WHOLE_MODEL,
    checkpoints,
    files_in,
    read_record,
)

BERT = "classify_bert_chinese_lora"
GPT2 = "classify_gpt2_head"
REPORT = {"evaluation.json", "evaluation.md", "confusion.png"}
FILES = TOKENIZER - {"chat_template.jinja"} | RECORD | REPORT
CLASSES = ["high", "low", "mid"]
TEXTS = ["12 good food", "7 dull bad bad bad film not good 天", "0", "3 the the the"]

PLAIN = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder, base, texts, is_adapter = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(folder)
if is_adapter:
    from peft import PeftModel
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=3, pad_token_id=tokenizer.pad_token_id
    )
    model = PeftModel.from_pretrained(model, folder)
else:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert [model.config.id2label[number] for number in range(3)] == ["high", "low", "mid"]
batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
with torch.no_grad():
    logits = model.eval()(**batch).logits
assert "sft_kit" not in sys.modules
print(json.dumps([[number.hex() for number in row] for row in logits.double().tolist()]))
"""


def plain_logits(folder: Path, base: Path, *, is_adapter: bool) -> list[list[float]]:
    """Ask transformers and PEFT alone, in a process of their own; numbers arrive bit for bit."""
    words = json.dumps([str(folder), str(base), TEXTS, is_adapter])
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    return [[float.fromhex(number) for number in row] for row in rows]


def our_logits(folder: Path) -> list[list[float]]:
    """Load the run as sft_kit does, and encode the texts as transformers would."""
    import torch

    from sft_kit.artifacts import load_classifier_run

    loaded = load_classifier_run(str(folder))
    batch = loaded.tokenizer(TEXTS, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        return loaded.model(**batch).logits.double().tolist()


def changed(run: Path, folder: Path, **record: object) -> Path:
    """Copy a run and change its record."""
    shutil.copytree(run, folder)
    found = read_record(folder)
    (folder / "run.yaml").write_text(yaml.safe_dump(found | record, allow_unicode=True))
    return folder


def test_a_classifier_run_leaves_exactly_its_files(classifier_run):
    weights = ADAPTER | {"README.md"}
    assert files_in(classifier_run) == FILES | ADAPTER | checkpoints([2, 4, 6], weights)
    record = read_record(classifier_run)
    assert record["status"] == "finished"
    assert record["labels"] == {"names": CLASSES, "multi_label": False}


def test_the_saved_head_is_the_trained_one(classifier_run, bert):
    from safetensors.torch import load_file

    tensors = load_file(classifier_run / "adapter_model.safetensors")
    heads = {name.removeprefix("base_model.model.") for name in tensors if "lora" not in name}
    assert heads == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight",
        "classifier.bias",
    }  # fmt: skip
    assert tensors["base_model.model.classifier.weight"].shape == (3, 32)


def test_plain_peft_in_a_fresh_process_gives_the_same_bits(classifier_run, bert):
    assert plain_logits(classifier_run, bert, is_adapter=True) == our_logits(classifier_run)


@pytest.fixture(scope="module")
def gpt2_run(run_recipe, small_classifier, checkpoint, tmp_path_factory):
    """Six steps of the whole GPT-2, its language model learnt beside the labels."""
    folder = tmp_path_factory.mktemp("runs") / "gpt2"
    changes = {"model.checkpoint": checkpoint, "data.group": "null", "train.output_dir": folder}
    run_recipe(GPT2, small_classifier | changes)
    return folder


def test_the_whole_decoder_is_saved_as_a_plain_checkpoint(gpt2_run, checkpoint):
    whole = WHOLE_MODEL - {"generation_config.json"}
    assert files_in(gpt2_run) == FILES | whole | checkpoints([2, 4, 6], whole)
    assert plain_logits(gpt2_run, checkpoint, is_adapter=False) == our_logits(gpt2_run)


def test_a_decoder_with_an_adapter_comes_back_too(
    run_recipe, small_classifier, checkpoint, tmp_path
):
    folder = tmp_path / "run"
    changes = {
        "model.checkpoint": checkpoint,
        "data.group": "null",
        "adapter": "{task_type: SEQ_CLS, r: 4, target_modules: all-linear}",
        "train.output_dir": folder,
    }
    run_recipe(GPT2, small_classifier | changes)
    assert plain_logits(folder, checkpoint, is_adapter=True) == our_logits(folder)


def test_the_figures_are_those_of_scikit_learn_on_the_held_out_rows(classifier_run):
    import torch
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    from sft_kit.artifacts import load_classifier_run
    from sft_kit.data.labelled.splits import load_labelled

    loaded = load_classifier_run(str(classifier_run))
    rows = load_labelled(loaded.data).eval
    assert len(rows) == 12
    guesses = []
    for row in rows:  # one by one: no padding, no batches
        batch = loaded.tokenizer(row.texts[0], return_tensors="pt")
        with torch.no_grad():
            guesses.append(CLASSES[int(loaded.model(**batch).logits.argmax())])
    truths = [row.labels[0] for row in rows]
    metrics = json.loads((classifier_run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["eval_accuracy"] == pytest.approx(accuracy_score(truths, guesses))
    macro = f1_score(truths, guesses, average="macro", labels=CLASSES, zero_division=0)
    assert metrics["eval_macro_f1"] == pytest.approx(macro)
    assert metrics["eval_mcc"] == pytest.approx(matthews_corrcoef(truths, guesses))
    assert metrics["reload_max_logit_difference"] == 0


def test_each_wrong_answer_is_listed_with_its_own_text(classifier_run, labelled_file):
    lines = labelled_file.read_text(encoding="utf-8").split("\n")
    report = json.loads((classifier_run / "evaluation.json").read_text(encoding="utf-8"))
    assert len(report["wrong"]) >= 3
    for wrong in report["wrong"]:
        number = int(wrong["where"].rpartition(":")[2])
        assert lines[number - 1] == f"{wrong['texts'][0]}\t{wrong['true'][0]}"


def test_the_best_checkpoint_is_the_one_that_is_kept(classifier_run):
    state = json.loads((classifier_run / "checkpoint-6" / "trainer_state.json").read_text())
    scores = {
        entry["step"]: entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry
    }
    best = min(scores, key=scores.__getitem__)
    assert len(set(scores.values())) == 3
    saved = (classifier_run / "adapter_model.safetensors").read_bytes()
    name = f"checkpoint-{best}"
    assert saved == (classifier_run / name / "adapter_model.safetensors").read_bytes()
    metrics = json.loads((classifier_run / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["eval_loss"] == pytest.approx(scores[best])


def test_training_stops_when_evaluations_get_no_better(run_recipe, small_classifier, tmp_path):
    changes = {
        "classify.early_stopping_patience": 2,
        "train.learning_rate": 1e-12,
        "train.max_steps": 20,
        "train.output_dir": tmp_path / "run",
    }
    run_recipe(BERT, small_classifier | changes)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["num_steps"] == 6  # the first of the three evaluations is the best


def test_a_resumed_run_goes_on_counting_evaluations_that_are_no_better(
    run_recipe, small_classifier, tmp_path
):
    class KilledError(Exception):
        pass

    def die_at_step_5(recipe):
        from transformers import TrainerCallback

        class Die(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step == 5:
                    raise KilledError

        chosen = recipe.early_stopping
        recipe.early_stopping = lambda settings: [*chosen(settings), Die()]

    settings = small_classifier | {
        "classify.early_stopping_patience": 2,
        "train.learning_rate": 1e-12,
        "train.max_steps": 20,
        "train.output_dir": tmp_path / "run",
    }
    with pytest.raises(KilledError):
        run_recipe(BERT, settings, change=die_at_step_5)
    run_recipe(BERT, settings, "--resume")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["num_steps"] == 6


def test_any_number_of_labels_a_text_goes_the_whole_way(run_recipe, small_classifier, tmp_path):
    rows = [
        {"text": f"{index} good food", "labels": ["a", "b"][: index % 3], "id": index}
        for index in range(60)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes = {
        "data.path": path,
        "data.multi_label": "true",
        "data.deduplicate": "false",
        "classify.class_weights": "balanced",
        "train.output_dir": tmp_path / "run",
    }
    run_recipe(BERT, small_classifier | changes)
    record = read_record(tmp_path / "run")
    assert record["labels"] == {"names": ["a", "b"], "multi_label": True}
    assert files_in(tmp_path / "run") >= FILES

    import torch
    from sklearn.metrics import f1_score

    from sft_kit.artifacts import load_classifier_run
    from sft_kit.data.labelled.splits import load_labelled

    loaded = load_classifier_run(str(tmp_path / "run"))
    truths, guesses = [], []
    for row in load_labelled(loaded.data).eval:
        with torch.no_grad():
            logits = loaded.model(**loaded.tokenizer(row.texts[0], return_tensors="pt")).logits[0]
        guesses.append((logits > 0).int().tolist())
        truths.append([int(name in row.labels) for name in ("a", "b")])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    for average in ("micro", "macro"):
        expected = f1_score(truths, guesses, average=average, zero_division=0)
        assert metrics[f"eval_{average}_f1"] == pytest.approx(expected)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_an_adapter_on_a_quantized_encoder_comes_back(
    run_recipe, small_classifier, tmp_path, quantization
):
    changes = {"model.quantization": quantization, "train.output_dir": tmp_path / "run"}
    run_recipe(BERT, small_classifier | changes)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["reload_max_logit_difference"] == 0


def test_both_recipes_do_the_same_steps():
    import ast

    from .conftest import RECIPES

    bodies = [
        ast.dump(ast.Module(ast.parse((RECIPES / f"{stem}.py").read_text()).body[1:], []))
        for stem in (BERT, GPT2)
    ]
    assert bodies[0] == bodies[1]


# --- what is refused -----------------------------------------------------------------------------


def test_the_same_shapes_with_other_weights_are_refused_by_both_names(
    classifier_run, tmp_path, bert
):
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from sft_kit.artifacts import load_classifier_run
    from sft_kit.errors import CheckpointError

    model = AutoModelForMaskedLM.from_pretrained(bert)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight += 0.01
    other = tmp_path / "other-bert"
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(bert).save_pretrained(other)
    with pytest.raises(CheckpointError) as caught:
        load_classifier_run(str(classifier_run), str(other))
    assert str(other) in str(caught.value)
    assert str(bert) in str(caught.value)


def test_another_number_of_labels_is_refused_with_both_numbers(classifier_run, tmp_path):
    from sft_kit.artifacts import load_classifier_run
    from sft_kit.errors import CheckpointError

    labels = {"names": ["up", "down"], "multi_label": False}
    folder = changed(classifier_run, tmp_path / "run", labels=labels)
    with pytest.raises(
        CheckpointError, match=r"for 3 labels, the model's for 2 labels \(up, down\)"
    ):
        load_classifier_run(str(folder))


def test_an_adapter_on_a_model_with_other_labels_is_refused_with_all_names(classifier_run, bert):
    from sft_kit.errors import CheckpointError
    from sft_kit.models.adapters import load_adapter
    from sft_kit.models.heads import load_classifier
    from sft_kit.settings import ModelSettings

    model = load_classifier(ModelSettings(checkpoint=str(bert)), ["up", "down"])
    both = r"for 3 labels \(high, low, mid\), the model's for 2 labels \(up, down\)"
    with pytest.raises(CheckpointError, match=both):
        load_adapter(model, classifier_run, CLASSES)


def test_a_missing_head_is_refused_by_name(classifier_run, tmp_path):
    from safetensors.torch import load_file, save_file

    from sft_kit.artifacts import load_classifier_run
    from sft_kit.errors import CheckpointError
    from sft_kit.run_record import weight_digests

    folder = tmp_path / "run"
    shutil.copytree(classifier_run, folder)
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if "lora" in name}
    save_file(tensors, path, metadata={"format": "pt"})
    record = read_record(folder) | {"weights": weight_digests(folder)}
    (folder / "run.yaml").write_text(yaml.safe_dump(record, allow_unicode=True))
    with pytest.raises(CheckpointError, match="classifier"):
        load_classifier_run(str(folder))


def test_chat_and_classify_send_to_each_other(classifier_run, finished_run):
    from sft_kit.artifacts import load_classifier_run, load_run
    from sft_kit.errors import CheckpointError

    with pytest.raises(CheckpointError, match="sft-kit classify"):
        load_run(str(classifier_run))
    with pytest.raises(CheckpointError, match="sft-kit chat"):
        load_classifier_run(str(finished_run))


# --- planted faults ------------------------------------------------------------------------------


def test_a_head_that_is_not_saved_does_not_end_as_a_finished_run(
    run_recipe, small_classifier, tmp_path
):
    from sft_kit.errors import CheckpointError

    def plant(recipe):
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=4, target_modules=["query", "value"])
        recipe.attach_lora = lambda model, _, **_options: get_peft_model(model, config)

    folder = tmp_path / "run"
    with pytest.raises(CheckpointError, match="classifier"):
        run_recipe(BERT, small_classifier | {"train.output_dir": folder}, change=plant)
    assert read_record(folder)["status"] == "running"


def test_a_head_swapped_after_the_adapter_was_attached_does_not_end_as_a_finished_run(
    run_recipe, small_classifier, tmp_path
):
    from sft_kit.errors import CheckpointError

    def plant(recipe):
        attach = recipe.attach_lora

        def attach_then_swap(model, config, **options):
            from torch import nn

            attached = attach(model, config, **options)
            base = attached.get_base_model()
            base.classifier = nn.Linear(32, 3)
            return attached

        recipe.attach_lora = attach_then_swap

    folder = tmp_path / "run"
    with pytest.raises(CheckpointError, match="classifier"):
        run_recipe(BERT, small_classifier | {"train.output_dir": folder}, change=plant)
    assert read_record(folder)["status"] == "running"
