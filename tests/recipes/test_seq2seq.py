"""Pairs of texts with T5 and BART: what a run leaves, and what its loss and its texts are."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .test_recipes import ADAPTER, RECORD, checkpoints, files_in, read_log, read_record

RECIPE = "seq2seq_t5_lora"
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
REPORT = {"evaluation.json", "evaluation.md", "samples.md"}
CURVES = {"accuracy.png", "perplexity.png"}
LETTERS = "abcdefgh"


def save_model(folder: Path, family: str, dropout: float = 0.1) -> Path:
    """Save a random T5 or BART (2 layers a side, hidden size 32) with a token a letter."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    special = ["<pad>", "</s>", "<unk>", "<s>"]
    vocabulary = {token: index for index, token in enumerate([*special, *LETTERS, *"0123456789:"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    begin = "" if family == "t5" else "<s> "
    core.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A </s>", special_tokens=[("<s>", 3), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        bos_token="<s>",
    )  # fmt: skip
    torch.manual_seed(11)
    size = {"vocab_size": len(vocabulary), "d_model": 32, "pad_token_id": 0, "eos_token_id": 1}
    if family == "t5":
        config = T5Config(
            **size, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=dropout,
            decoder_start_token_id=0,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
    else:
        config = BartConfig(
            **size, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, dropout=dropout,
            max_position_embeddings=64, bos_token_id=3, decoder_start_token_id=1,
            forced_eos_token_id=None,
        )  # fmt: skip
        model = BartForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_pairs(path: Path, num_rows: int = 40, length: tuple[int, int] = (1, 9)) -> Path:
    """Write letters and the same letters backwards, no source twice."""
    draw = random.Random(2)
    rows: dict[str, str] = {}
    while len(rows) < num_rows:
        letters = draw.choices(LETTERS, k=draw.randint(*length))
        rows[" ".join(letters)] = " ".join(reversed(letters))
    lines = [json.dumps({"source": one, "target": other}) for one, other in rows.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Folders of a random T5 and a random BART with dropout 0.1; nobody writes to them."""
    folder = tmp_path_factory.mktemp("base")
    return {family: save_model(folder / f"tiny-{family}", family) for family in ("t5", "bart")}


@pytest.fixture(scope="module")
def small_pairs(tmp_path_factory, families):
    """Settings of six small steps on T5, evaluated and saved at every second."""
    return {
        "model.checkpoint": families["t5"],
        "data.path": write_pairs(tmp_path_factory.mktemp("rows") / "pairs.jsonl"),
        "data.eval_fraction": 0.2,
        "adapter.r": 4,
        "writing.max_new_tokens": 12,
        "writing.num_samples": 2,
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
        "train.disable_tqdm": "true",
    }


@pytest.fixture(scope="module")
def runs(run_recipe, small_pairs, families, tmp_path_factory):
    """Run folders of six steps on T5 and on BART; nobody writes to them."""
    folder = tmp_path_factory.mktemp("runs")
    for family, checkpoint in families.items():
        changes = {"model.checkpoint": checkpoint, "train.output_dir": folder / family}
        run_recipe(RECIPE, small_pairs | changes)
    return {family: folder / family for family in families}


def held_out(folder: Path):
    """Tokenized held-out pairs, longest first, as the run had them."""
    from sft_kit.artifacts.plain import load_plain_run
    from sft_kit.data.pairs.splits import load_pairs
    from sft_kit.data.pairs.tokenization import tokenize_pairs
    from sft_kit.settings import PairDataSettings

    loaded = load_plain_run(str(folder))
    settings = PairDataSettings(**loaded.info["settings"]["data"])
    return loaded, tokenize_pairs(load_pairs(settings).eval, loaded.tokenizer, settings)


# --- what a run leaves ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_run_leaves_exactly_its_files(runs, family):
    weights = ADAPTER | {"README.md"}
    expected = RECORD | TOKENIZER | ADAPTER | REPORT | checkpoints([2, 4, 6], weights)
    found = files_in(runs[family])
    assert found - CURVES - {"loss_by_tokens.png"} == expected
    assert found >= CURVES
    record = read_record(runs[family])
    assert record["status"] == "finished"
    assert record["pretraining"]["kind"] == "seq2seq"
    assert (record["data"]["num_train_rows"], record["data"]["num_eval_rows"]) == (32, 8)
    metrics = json.loads((runs[family] / "metrics.json").read_text())
    assert metrics["reload_max_logit_difference"] == 0
    assert metrics["eval_loss"] < metrics["base_loss"]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_all_linear_puts_the_adapter_on_every_linear_layer_but_the_output(runs, family):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForSeq2SeqLM

    saved = load_file(runs[family] / "adapter_model.safetensors")
    found = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in saved}
    base = read_record(runs[family])["base"]["folder"]
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    linear = {name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert found == linear - {"lm_head"}
    assert len(found) > 20


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_plain_peft_gives_the_held_out_figures_with_transformers_own_loss(runs, families, family):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    base = AutoModelForSeq2SeqLM.from_pretrained(families[family])
    plain = PeftModel.from_pretrained(base, str(runs[family])).eval()
    loaded, examples = held_out(runs[family])
    nats, num_right, num_labels = 0.0, 0, 0
    for example in examples:  # one by one, without padding; the labels are shifted by the model
        ids, labels = (torch.tensor([row]) for row in (example.input_ids, example.labels))
        with torch.no_grad():
            output = plain(input_ids=ids, labels=labels)
            ours = loaded.model(input_ids=ids, labels=labels)
        assert torch.equal(output.logits, ours.logits)
        nats += output.loss.item() * labels.numel()
        num_right += int((output.logits.argmax(-1) == labels).sum())
        num_labels += labels.numel()
    metrics = json.loads((runs[family] / "metrics.json").read_text())
    assert metrics["eval_loss"] == pytest.approx(nats / num_labels, abs=1e-6)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(nats / num_labels), rel=1e-5)
    assert metrics["eval_accuracy"] == pytest.approx(num_right / num_labels)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_what_was_written_is_what_step_by_step_argmax_writes(runs, family):
    import torch

    loaded, examples = held_out(runs[family])
    report = json.loads((runs[family] / "evaluation.json").read_text(encoding="utf-8"))
    assert len(report["rows"]) == len(examples) == 8
    start = loaded.model.config.decoder_start_token_id
    for example, row in zip(examples, report["rows"], strict=True):
        ids = [start]
        while len(ids) <= 12 and (len(ids) == 1 or ids[-1] != loaded.tokenizer.eos_token_id):
            with torch.no_grad():
                logits = loaded.model(
                    input_ids=torch.tensor([example.input_ids]),
                    decoder_input_ids=torch.tensor([ids]),
                ).logits
            ids.append(int(logits[0, -1].argmax()))
        text = loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert row["written"] == text
        assert row["stopped"] == (ids[-1] == loaded.tokenizer.eos_token_id)


def test_figures_of_written_texts_and_samples_stand_in_the_folder(runs):
    from sft_kit.evaluation.writing import score_texts

    report = json.loads((runs["t5"] / "evaluation.json").read_text(encoding="utf-8"))
    metrics = json.loads((runs["t5"] / "metrics.json").read_text())
    written = [row["written"] for row in report["rows"]]
    figures = score_texts(written, [row["target"] for row in report["rows"]], "words")
    for name, value in figures.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value)
    samples = (runs["t5"] / "samples.md").read_text(encoding="utf-8")
    assert [line[3:] for line in samples.splitlines() if line.startswith("## ")] == [
        row["source"] for row in report["rows"][:2]
    ]
    assert samples.count("**Before training**") == samples.count("**Trained model**") == 2


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_loss_of_a_batch_is_transformers_own(families, small_pairs, tmp_path, family):
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, TrainingArguments

    from sft_kit.data.corpus.collators import pad_corrupted
    from sft_kit.data.pairs.splits import load_pairs
    from sft_kit.data.pairs.tokenization import to_pair_dataset, tokenize_pairs
    from sft_kit.models.labelled_outputs import answer_where_labelled
    from sft_kit.settings import PairDataSettings
    from sft_kit.training.pretraining import make_pretraining_loss

    tokenizer = AutoTokenizer.from_pretrained(families[family])
    model = AutoModelForSeq2SeqLM.from_pretrained(families[family]).eval()
    settings = PairDataSettings(str(small_pairs["data.path"]))
    rows = to_pair_dataset(tokenize_pairs(load_pairs(settings).train, tokenizer, settings))
    start = model.config.decoder_start_token_id
    batch = pad_corrupted(rows, pad_token_id=0, decoder_start_token_id=start, mark_labels=True)
    labels = batch.pop("labels")
    assert (labels == -100).any()
    answer_where_labelled(model)
    loss = make_pretraining_loss(TrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    with torch.no_grad():
        ours = loss(model(**batch), labels, None)
        theirs = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    num_labels = int((labels != -100).sum())
    with torch.no_grad():
        half = loss(model(**batch), labels, torch.tensor(2 * num_labels))
    assert half.item() == pytest.approx(theirs.item() / 2, abs=1e-6)


def curve(run_recipe, settings, folder: Path, *flags, change=None) -> list[tuple[float, float]]:
    run_recipe(RECIPE, settings | {"train.output_dir": folder}, *flags, change=change)
    return [(line["loss"], line["grad_norm"]) for line in read_log(folder) if "loss" in line]


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def test_accumulated_targets_of_mixed_length_equal_one_batch(run_recipe, small_pairs, tmp_path):
    base = save_model(tmp_path / "plain", "t5", dropout=0.0)
    settings = small_pairs | {
        "model.checkpoint": base,
        "adapter.lora_dropout": 0,
        "writing.num_rows": 0,
        "train.eval_strategy": "no",
        "train.save_strategy": "no",
        "train.max_steps": 3,
    }
    curves = []
    for micro, accumulated in ((8, 1), (2, 4)):
        batch = {
            "train.per_device_train_batch_size": micro,
            "train.gradient_accumulation_steps": accumulated,
        }
        curves.append(curve(run_recipe, settings | batch, tmp_path / f"run{micro}"))
    whole, parts = map(np.asarray, curves)
    assert whole.shape == (3, 2)
    assert (whole[:, 1] > 0.01).all()
    difference = np.abs(parts - whole) / whole
    assert difference.max() < 1e-4
    assert difference.mean() < 1e-5
    assert not REPORT & files_in(tmp_path / "run8")


class KilledError(Exception):
    pass


def die_before_step_5(recipe):
    class Die(recipe.LogFile):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KilledError

    recipe.LogFile = Die


def test_a_resumed_run_is_the_straight_one_bit_by_bit(run_recipe, small_pairs, runs, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KilledError):
        run_recipe(RECIPE, small_pairs | {"train.output_dir": folder}, change=die_before_step_5)
    curve(run_recipe, small_pairs, folder, "--resume")
    assert adapter_bytes(folder) == adapter_bytes(runs["t5"])
    straight, resumed = (
        [line["loss"] for line in read_log(one) if "loss" in line] for one in (runs["t5"], folder)
    )
    assert straight == resumed
    assert len(straight) == 6


def test_evaluating_and_writing_changes_nothing_of_what_is_trained(
    run_recipe, small_pairs, runs, tmp_path
):
    changes = {"train.eval_strategy": "no", "writing.num_rows": 0}
    curve(run_recipe, small_pairs | changes, tmp_path / "run")
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(runs["t5"])


@pytest.mark.slow
def test_two_processes_with_an_evaluation_before_training_give_the_curve_of_one(
    run_recipe, small_pairs, tmp_path
):
    settings = small_pairs | {
        "model.checkpoint": save_model(tmp_path / "plain", "t5", dropout=0.0),
        "adapter.lora_dropout": 0,
        "train.max_steps": 4,
        "train.save_strategy": "no",
    }
    one = curve(run_recipe, settings | {"train.per_device_train_batch_size": 8}, tmp_path / "one")
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        f"recipes/{RECIPE}.py",
        *(f"{key}={value}" for key, value in settings.items()),
        f"train.output_dir={tmp_path / 'two'}",
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    lines = read_log(tmp_path / "two")
    two = [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]
    assert len(two) == 4
    assert np.asarray(two) == pytest.approx(np.asarray(one), rel=1e-4)


@pytest.mark.slow
def test_grouping_by_length_is_the_same_order_after_a_resume(run_recipe, small_pairs, tmp_path):
    settings = small_pairs | {
        "train.train_sampling_strategy": "group_by_length",
        "train.eval_strategy": "no",
        "writing.num_rows": 0,
    }
    straight = curve(run_recipe, settings, tmp_path / "straight")
    with pytest.raises(KilledError):
        run_recipe(
            RECIPE, settings | {"train.output_dir": tmp_path / "run"}, change=die_before_step_5
        )
    assert curve(run_recipe, settings, tmp_path / "run", "--resume") == straight


# --- what is learnt ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_model_learns_to_write_letters_backwards(run_recipe, small_pairs, tmp_path, family):
    settings = small_pairs | {
        "model.checkpoint": save_model(tmp_path / family, family, dropout=0.0),
        "data.path": write_pairs(tmp_path / "pairs.jsonl", 3000, length=(2, 5)),
        "data.eval_fraction": 0.05,
        "adapter": "null",
        "writing.num_rows": 100,
        "train.per_device_train_batch_size": 64,
        "train.learning_rate": 5e-3,
        "train.max_steps": 500,
        "train.eval_strategy": "no",
        "train.save_strategy": "no",
        "train.output_dir": tmp_path / "run",
    }
    settings = {key: value for key, value in settings.items() if key != "adapter.r"}
    run_recipe(RECIPE, settings)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["eval_rougeL"] > 0.95
    assert metrics["eval_exact_match"] > 0.9
    assert metrics["eval_bleu"] > 90
    assert metrics["eval_stopped_fraction"] == 1
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert report["copied"]["rougeL"] < 0.7
    assert report["copied"]["exact_match"] < 0.2
