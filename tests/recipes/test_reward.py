"""Runs of reward models: what they leave behind, and that their scores come back."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .test_recipes import (
    ADAPTER,
    RECORD,
    TOKENIZER,
    WHOLE_MODEL,
    checkpoints,
    files_in,
    read_log,
    read_record,
)

REWARD = "reward_gpt2_lora"
REPORT = {"evaluation.json", "evaluation.md", "margins.png"}
FILES = TOKENIZER | RECORD | REPORT
GOOD = ("Yes.", "A good answer.", "It is 4, of course, my friend.")
BAD = ("no no no no no no no", "Go away!", "bad")

PLAIN = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder, base, rows, is_adapter, is_nf4 = json.loads(sys.argv[1])
options = {}
if is_nf4:
    from transformers import BitsAndBytesConfig
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["score"],
    )
    options = {"quantization_config": nf4, "device_map": {"": "cpu"}}
tokenizer = AutoTokenizer.from_pretrained(folder)
if is_adapter:
    from peft import PeftModel
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, pad_token_id=None, **options
    )
    model = PeftModel.from_pretrained(model, folder)
else:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
for module in model.modules():  # a CPU with AVX512-BF16 would re-pack the weights otherwise
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False
scores = []
for messages in rows:
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    text = text.rpartition(tokenizer.eos_token)[0] + tokenizer.eos_token
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        scores.append(model.eval()(**inputs).logits[0, 0].double().item().hex())
assert "sft_kit" not in sys.modules
print(json.dumps(scores))
"""


def write_preferences(path: Path, num_rows: int = 30, *, lists: bool = False) -> Path:
    """Write compared answers; with `lists` two to four to a prompt, the best first."""
    draw = random.Random(3)
    rows = []
    for index in range(num_rows):
        prompt = f"Question {index}:{' why' * (index * 5 % 7)}?"
        good, bad = draw.choice(GOOD), draw.choice(BAD)
        if lists:
            answers = [good, bad, f"{bad} {index}", f"{bad} {bad}!"][: 2 + index % 3]
            rows.append({"prompt": prompt, "answers": answers})
        else:
            rows.append({"prompt": prompt, "chosen": good, "rejected": bad})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    return write_preferences(tmp_path_factory.mktemp("rows") / "pairs.jsonl")


@pytest.fixture(scope="module")
def small_reward(checkpoint, preferences):
    """Settings of six small steps, evaluated at every third."""
    return {
        "model.checkpoint": checkpoint,
        "data.path": preferences,
        "data.eval_fraction": 0.2,
        "adapter.r": 4,
        "train.per_device_train_batch_size": 4,
        "train.per_device_eval_batch_size": 4,
        "train.max_steps": 6,
        "train.logging_steps": 1,
        "train.eval_strategy": "steps",
        "train.eval_steps": 3,
        "train.save_strategy": "steps",
        "train.save_steps": 3,
        "train.disable_tqdm": "true",
    }


@pytest.fixture(scope="module")
def reward_run(run_recipe, small_reward, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "reward"
    run_recipe(REWARD, small_reward | {"train.output_dir": folder})
    return folder


def held_out(folder: Path):
    from sft_kit.artifacts import load_reward_run
    from sft_kit.data.preference.splits import load_preferences

    return load_preferences(load_reward_run(str(folder)).data).eval


def plain_scores(
    folder: Path, base: Path, rows: list, *, is_adapter: bool, is_nf4: bool = False
) -> list[float]:
    """Ask transformers and PEFT alone, in a process of their own; numbers arrive bit for bit."""
    words = json.dumps([str(folder), str(base), rows, is_adapter, is_nf4])
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [float.fromhex(number) for number in json.loads(done.stdout.splitlines()[-1])]


def one_by_one(folder: Path, rows: list) -> list[float]:
    """Load the run as sft_kit does; each row alone and without padding."""
    import torch

    from sft_kit.artifacts import load_reward_run
    from sft_kit.data.rows import Conversation, Where
    from sft_kit.data.tokenization import encode_conversation

    loaded = load_reward_run(str(folder))
    scores = []
    for row in rows:
        conversation = Conversation(tuple(row), Where("", 0))
        ids, _ = encode_conversation(loaded.tokenizer, loaded.template, conversation)
        with torch.no_grad():
            scores.append(loaded.model(input_ids=torch.tensor([ids])).logits.item())
    return scores


def answers_of(comparisons) -> list[list]:
    return [[*row.prompt, *answer] for row in comparisons for answer in row.answers]


# --- what a run leaves ---------------------------------------------------------------------------


def test_a_reward_run_leaves_exactly_its_files(reward_run):
    from matplotlib.image import imread

    weights = ADAPTER | {"README.md"}
    assert files_in(reward_run) == FILES | ADAPTER | checkpoints([3, 6], weights)
    record = read_record(reward_run)
    assert record["status"] == "finished"
    assert "new (score)" in record["reward_model"]["head"]
    assert imread(reward_run / "margins.png")[..., :3].std() > 0.01


def test_plain_peft_gives_the_same_bits(reward_run, checkpoint):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, num_labels=1, pad_token_id=None
    )
    model = PeftModel.from_pretrained(base, str(reward_run)).eval()
    tokenizer = AutoTokenizer.from_pretrained(reward_run)
    rows = answers_of(held_out(reward_run))
    scores = []
    for messages in rows:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        text = text.rpartition(tokenizer.eos_token)[0] + tokenizer.eos_token
        inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            scores.append(model(**inputs).logits.item())
    assert np.std(scores) > 1e-3
    assert scores == one_by_one(reward_run, rows)


@pytest.mark.slow
def test_plain_peft_in_a_fresh_process_gives_the_same_bits(reward_run, checkpoint):
    rows = answers_of(held_out(reward_run))
    assert len(rows) == 12
    expected = one_by_one(reward_run, rows)
    assert np.std(expected) > 1e-3
    assert plain_scores(reward_run, checkpoint, rows, is_adapter=True) == expected


@pytest.mark.slow
def test_a_reward_model_on_four_bits_gives_the_same_bits_in_a_fresh_process(
    run_recipe, small_reward, checkpoint, reward_run, tmp_path
):
    folder = tmp_path / "run"
    changes = {"model.quantization": "nf4", "train.output_dir": folder}
    run_recipe(REWARD, small_reward | changes)
    rows = answers_of(held_out(folder))
    expected = one_by_one(folder, rows)
    assert np.abs(np.subtract(expected, one_by_one(reward_run, rows))).min() > 0
    assert plain_scores(folder, checkpoint, rows, is_adapter=True, is_nf4=True) == expected


@pytest.mark.slow
def test_a_whole_model_is_a_plain_checkpoint_with_the_same_scores(
    run_recipe, small_reward, checkpoint, tmp_path
):
    folder = tmp_path / "run"
    changes = {"adapter": "null", "train.learning_rate": 1e-3, "train.output_dir": folder}
    settings = {key: value for key, value in small_reward.items() if key != "adapter.r"}
    run_recipe(REWARD, settings | changes)
    whole = WHOLE_MODEL - {"generation_config.json"}
    assert files_in(folder) == FILES | whole | checkpoints([3, 6], whole)
    rows = answers_of(held_out(folder))
    expected = one_by_one(folder, rows)
    assert plain_scores(folder, checkpoint, rows, is_adapter=False) == expected


def test_scale_and_figures_are_those_of_the_held_out_answers_one_by_one(reward_run):
    scores = np.asarray(one_by_one(reward_run, answers_of(held_out(reward_run)))).reshape(-1, 2)
    scale = read_record(reward_run)["score_scale"]
    assert (scale["num"], scale["rows"]) == (6, "held-out")
    assert scale["mean"] == pytest.approx(scores[:, 0].mean(), abs=1e-6)
    assert scale["std"] == pytest.approx(scores[:, 0].std(), abs=1e-6)
    metrics = json.loads((reward_run / "metrics.json").read_text())
    assert (metrics["score_mean"], metrics["score_std"]) == (scale["mean"], scale["std"])
    report = json.loads((reward_run / "evaluation.json").read_text())
    found = scores[:, 0] - scores[:, 1]
    assert report["differences"] == pytest.approx(found.tolist(), abs=1e-6)
    assert metrics["eval_accuracy"] == report["accuracy"] == (found > 0).mean()
    assert metrics["eval_loss"] == pytest.approx(np.log1p(np.exp(-found)).mean(), abs=1e-6)
    assert metrics["reload_max_logit_difference"] == 0


def test_without_held_out_rows_the_scale_is_of_the_training_rows(
    run_recipe, small_reward, tmp_path
):
    folder = tmp_path / "run"
    changes = {
        "data.eval_fraction": 0, "train.eval_strategy": "no", "train.max_steps": 1,
        "train.output_dir": folder,
    }  # fmt: skip
    run_recipe(REWARD, small_reward | changes)
    scale = read_record(folder)["score_scale"]
    assert (scale["num"], scale["rows"]) == (30, "training")
    assert not REPORT & files_in(folder)


def test_the_card_says_how_plain_transformers_reads_a_score(reward_run):
    card = (reward_run / "README.md").read_text(encoding="utf-8")
    assert "num_labels=1, pad_token_id=None" in card
    assert "sft-kit score" in card
    assert "reward-model" in card


# --- what the loss is ----------------------------------------------------------------------------


def curve(run_recipe, settings, folder: Path) -> list[tuple[float, float]]:
    run_recipe(REWARD, settings | {"train.output_dir": folder})
    return [(line["loss"], line["grad_norm"]) for line in read_log(folder) if "loss" in line]


def test_accumulated_lists_of_mixed_length_equal_one_batch(run_recipe, small_reward, tmp_path):
    lists = write_preferences(tmp_path / "lists.jsonl", 24, lists=True)
    settings = small_reward | {
        "data.path": lists,
        "data.eval_fraction": 0,
        "reward.label_smoothing": 0.1,
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
    whole = np.asarray(curves[0])
    assert whole.shape == (3, 2)
    assert (whole[:, 1] > 0.1).all()
    for other in map(np.asarray, curves[1:]):
        difference = np.abs(other - whole) / whole
        assert difference.max() < 1e-4
        assert difference.mean() < 1e-5


# --- the command line ----------------------------------------------------------------------------


def command(monkeypatch, capsys, *words: object) -> tuple[int, str, str]:
    from sft_kit.cli import main

    monkeypatch.setattr(sys, "argv", ["sft-kit", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    code = end.value.code
    out, err = capsys.readouterr()
    return (0 if code is None else int(code)), out, err


def words_in(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_the_score_command_gives_the_scores_of_the_model(
    reward_run, preferences, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "scores.jsonl"
    code, out, err = command(
        monkeypatch, capsys, "score", reward_run, "--data", preferences, "--output", output,
        "--batch-size", 7,
    )  # fmt: skip
    assert code == 0
    assert "30 rows read, 30 comparisons to score" in err
    assert not {"train", "learn", "held"} & words_in(err)
    assert "baseline: the longer answer wins" in out
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    rows = [json.loads(line) for line in preferences.read_text().splitlines()]
    assert [line["rank"] for line in lines] == [1, 2] * 30
    assert [line["line"] for line in lines] == [1 + index // 2 for index in range(60)]
    texts = [row[key] for row in rows for key in ("chosen", "rejected")]
    assert [line["completion"].strip() for line in lines] == texts
    messages = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[key]}]
        for row in rows
        for key in ("chosen", "rejected")
    ]
    expected = one_by_one(reward_run, messages)
    assert [line["score"] for line in lines] == pytest.approx(expected, abs=1e-5)


def test_single_answers_are_scored_too(reward_run, tmp_path, monkeypatch, capsys):
    data = tmp_path / "rows.jsonl"
    chats = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]
        for text in ("Hello!", "Go away!", "x" * 400)
    ]
    data.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    code, out, err = command(monkeypatch, capsys, "score", reward_run, "--data", data, "--json")
    assert code == 0
    found = json.loads(out)
    assert [line["completion"] for line in found] == ["Hello!", "Go away!"]
    assert [line["score"] for line in found] == pytest.approx(one_by_one(reward_run, chats[:2]))
    assert "3 rows read, 2 answers to score" in err
    assert "1 row of more than 256 tokens left out" in err
    assert not {"train", "learn", "held"} & words_in(err)


def test_other_commands_refuse_a_reward_run_and_say_what_to_do(
    reward_run, tmp_path, monkeypatch, capsys
):
    for words in (
        ("chat", reward_run),
        ("merge", reward_run, "--output", tmp_path / "merged"),
        ("classify", reward_run, "--text", "hi"),
    ):
        code, _, err = command(monkeypatch, capsys, *words)
        assert code == 2
        assert "trained a reward model" in err
        assert f"sft-kit score {reward_run} --data FILE" in err


def test_a_run_that_is_no_reward_model_is_refused(finished_run, preferences, monkeypatch, capsys):
    code, _, err = command(monkeypatch, capsys, "score", finished_run, "--data", preferences)
    assert code == 2
    assert "trained no reward model" in err


def test_scores_never_overwrite_unasked(reward_run, preferences, tmp_path, monkeypatch, capsys):
    there = tmp_path / "there.jsonl"
    there.write_text("mine")
    for output, word in ((there, "--overwrite"), (preferences, "found the file of --data")):
        code, _, err = command(
            monkeypatch, capsys, "score", reward_run, "--data", preferences, "--output", output
        )
        assert code == 2
        assert word in err
    assert there.read_text() == "mine"


def test_an_unknown_format_is_refused_with_the_nearest_name(
    reward_run, preferences, monkeypatch, capsys
):
    code, _, err = command(
        monkeypatch, capsys, "score", reward_run, "--data", preferences, "--format", "ranket"
    )
    assert code == 2
    assert "did you mean 'ranked'" in err
