"""Labels for many texts at once against plain transformers on each text alone."""

import csv
import io
import json
import math
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from sft_kit.data.labelled.reading import read_labelled
from sft_kit.data.labelled.rows import LabelledExample, LabelledText
from sft_kit.data.rows import IGNORED, Where
from sft_kit.errors import CheckpointError, DataError
from sft_kit.inference.classify import Prediction, predict, predict_logits
from sft_kit.inference.prediction_files import harmless_cell, prediction_rows, write_predictions
from sft_kit.models.pooling import pool_last_token
from sft_kit.settings import LabelledDataSettings

PAD = 3
NAMES = ("bad", "good", "=mixed")


@pytest.fixture
def model():
    """Random BERT with dropout and emphatic weights, in training mode."""
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, num_labels=3, initializer_range=0.4,
        hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3,
    )  # fmt: skip
    return BertForSequenceClassification(config).train()


@pytest.fixture
def examples():
    """Texts of 1 to 30 tokens, the pad token among them, half of each the second segment."""
    draw = np.random.default_rng(5)
    lengths = [*draw.integers(1, 31, size=23).tolist(), 1, 30]
    return [
        LabelledExample(
            draw.integers(0, 30, size=length).tolist(),
            [0] * (length - length // 2) + [1] * (length // 2),
            label=IGNORED,
            was_cut=False,
            where=Where("x.csv", length),
        )
        for length in lengths
    ]


def alone(model, example):
    """Logits (K) of one text, by plain transformers."""
    with torch.no_grad():
        output = model(
            input_ids=torch.tensor([example.input_ids]),
            attention_mask=torch.ones(1, len(example.input_ids), dtype=torch.long),
            token_type_ids=torch.tensor([example.token_type_ids]),
        )
    return output.logits[0].numpy()


# --- logits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_a_text_in_a_batch_has_the_logits_it_has_alone(model, examples, batch_size):
    found = predict_logits(model, examples, pad_token_id=PAD, batch_size=batch_size)
    expected = np.stack([alone(model.eval(), example) for example in examples])
    assert found.shape == (25, 3)
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(found - expected).mean() < 1e-6


def test_the_model_keeps_its_mode_and_its_random_state(model, examples):
    model.classifier.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    predict_logits(model, examples, pad_token_id=PAD)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)
    model.forward = None
    with pytest.raises(TypeError):
        predict_logits(model, examples, pad_token_id=PAD)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_texts_of_similar_length_share_a_batch_and_the_longest_come_first(model, examples):
    widths = []
    model.register_forward_pre_hook(
        lambda _, __, inputs: widths.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    counts = []
    predict_logits(model, examples, pad_token_id=PAD, batch_size=4, on_rows=counts.append)
    lengths = sorted((len(example.input_ids) for example in examples), reverse=True)
    expected = [
        (len(lengths[start : start + 4]), lengths[start]) for start in range(0, len(lengths), 4)
    ]
    assert widths == expected
    assert counts == [rows for rows, _ in expected]


def test_segments_reach_a_model_under_an_adapter(model, examples):
    expected = np.stack([alone(model.eval(), example) for example in examples])
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    found = predict_logits(adapted, examples, pad_token_id=PAD)
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("architecture", ["distilbert", "gpt2"])
def test_segments_are_kept_from_a_model_that_has_none(architecture, adapter):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    if architecture == "distilbert":
        options = DistilBertConfig(vocab_size=13, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
        model, linear = DistilBertForSequenceClassification(options), "q_lin"
    else:
        options = GPT2Config(vocab_size=13, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
        model, linear = GPT2ForSequenceClassification(options), "c_attn"
        pool_last_token(model, "score")
    if adapter:
        lora = LoraConfig(
            task_type="SEQ_CLS", target_modules=[linear], fan_in_fan_out="c_" in linear
        )
        model = get_peft_model(model, lora)
    pairs = [("a b c", "d"), ("e", "f g h a"), ("b", "c")]
    encoded = [tokenizer(*pair) for pair in pairs]
    assert all(1 in one["token_type_ids"] for one in encoded)
    examples = [
        LabelledExample(
            one["input_ids"], one["token_type_ids"], IGNORED, was_cut=False, where=Where("x", 1)
        )
        for one in encoded
    ]
    found = predict_logits(model, examples, pad_token_id=0)
    with torch.no_grad():
        alone = [model.eval()(torch.tensor([one["input_ids"]])).logits for one in encoded]
    assert np.allclose(found, torch.cat(alone), atol=1e-6)


def test_weights_that_are_not_numbers_are_refused(model, examples):
    with torch.no_grad():
        model.classifier.bias[1] = math.nan
    with pytest.raises(CheckpointError, match="not numbers"):
        predict_logits(model, examples, pad_token_id=PAD)


# --- predictions ---------------------------------------------------------------------------------


def test_a_prediction_is_the_likeliest_class_with_all_probabilities(model, examples):
    found = predict(model, examples, NAMES, pad_token_id=PAD)
    logits = np.stack([alone(model.eval(), example) for example in examples]).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [one.labels for one in found] == [(NAMES[row.argmax()],) for row in shares]
    assert len({one.labels for one in found}) > 1
    assert np.allclose([one.probability for one in found], shares.max(axis=1), atol=1e-5)
    assert np.allclose([list(one.probabilities.values()) for one in found], shares, atol=1e-5)
    assert tuple(found[0].probabilities) == NAMES


def test_with_several_labels_each_is_decided_by_itself(model, examples):
    found = predict(model, examples, NAMES, pad_token_id=PAD, multi_label=True)
    logits = np.stack([alone(model.eval(), example) for example in examples]).astype(np.float64)
    shares = 1 / (1 + np.exp(-logits))
    expected = [
        tuple(name for name, share in zip(NAMES, row, strict=True) if share >= 0.5)
        for row in shares
    ]
    assert [one.labels for one in found] == expected
    assert len({len(labels) for labels in expected}) > 2
    sure = np.maximum(shares, 1 - shares).min(axis=1)
    assert np.allclose([one.probability for one in found], sure, atol=1e-5)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [*"=+-@\t\r\n", *"＝＋－＠﹢⁺"])
@pytest.mark.parametrize("before", ["", " ", "\u3000", "\ufeff", "\u200b", "\xa0 ", "\x00"])
def test_a_cell_that_begins_like_a_formula_gets_an_apostrophe(sign, before):
    assert harmless_cell(f"{before}{sign}SUM(A1)") == f"'{before}{sign}SUM(A1)"


@pytest.mark.parametrize("text", ["", " ", "a=b", "1-2", "好=", "'=1", "（-）", "x\t=1", "1e5"])
def test_any_other_cell_stays_as_it_is(text):
    assert harmless_cell(text) == text


def test_a_negative_number_gets_an_apostrophe_too():
    assert harmless_cell("-5") == "'-5"
    assert harmless_cell("- not good") == "'- not good"


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("=+-@\t\r\n \u3000\ufeffa1好\"',"), max_size=8))
def test_no_cell_begins_like_a_formula_whatever_the_text(text):
    cell = harmless_cell(text)
    assert cell in (text, f"'{text}")
    visible = cell.strip("\ufeff \u3000")
    assert unicodedata.normalize("NFKC", visible)[:1] not in {*"=+-@\t\r\n"}


def read_csv(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def single(*texts):
    return LabelledText(texts, (), Where("x.csv", 2))


def test_a_csv_gives_back_every_text_but_for_the_apostrophe(tmp_path):
    texts = ['say "hi", twice', "two\nlines\r\nand more", "中文，句子", "=1+1", " - minus", "plain"]
    answer = Prediction(("=mixed",), 0.75, {"bad": 0.25, "good": 0.0, "=mixed": 0.75})
    path = tmp_path / "out.csv"
    write_predictions(path, list(map(single, texts)), [answer] * 6, with_probabilities=True)
    assert path.read_bytes()[:3] == b"\xef\xbb\xbf"
    header, *rows = read_csv(path)
    names = ["probability_bad", "probability_good", "probability_=mixed"]
    assert header == ["line", "text", "prediction", "probability", *names]
    assert [row[1] for row in rows] == [*texts[:3], "'=1+1", "' - minus", "plain"]
    assert {tuple(row[2:]) for row in rows} == {
        ("'=mixed", "0.750000", "0.250000", "0.000000", "0.750000")
    }
    assert list(tmp_path.iterdir()) == [path]


def test_pairs_and_several_labels_have_their_columns(tmp_path):
    rows = [single("one", "two"), single("three", "four")]
    answers = [Prediction(("a", "b"), 0.6, {}), Prediction((), 0.9, {})]
    write_predictions(tmp_path / "out.csv", rows, answers, label_separator="|")
    assert read_csv(tmp_path / "out.csv") == [
        ["line", "text", "text_pair", "prediction", "probability"],
        ["2", "one", "two", "a|b", "0.600000"],
        ["2", "three", "four", "", "0.900000"],
    ]
    write_predictions(tmp_path / "out.jsonl", rows, answers, label_separator="|")
    text = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines == [
        {
            "line": 2,
            "text": "one",
            "text_pair": "two",
            "prediction": ["a", "b"],
            "probability": 0.6,
        },
        {"line": 2, "text": "three", "text_pair": "four", "prediction": [], "probability": 0.9},
    ]


def test_json_lines_hold_exact_texts_and_half_characters(tmp_path):
    texts = ["=1+1", "线\u2028句", "half \ud83d", '"']
    answers = [Prediction(("好",), 0.5, {"好": 0.5, "坏": 0.5})] * 4
    path = tmp_path / "out.jsonl"
    write_predictions(path, list(map(single, texts)), answers, with_probabilities=True)
    lines = [json.loads(line) for line in io.StringIO(path.read_text("utf-8"), newline="\n")]
    assert [line["text"] for line in lines] == texts
    assert lines[0]["probabilities"] == {"好": 0.5, "坏": 0.5}
    assert "好" in path.read_text("utf-8")
    rows = list(map(single, texts))
    assert lines == list(prediction_rows(rows, answers, multi_label=False, with_places=True))


def test_written_labels_read_back_even_where_one_holds_the_separator(tmp_path):
    rows = [LabelledText((f"text {n}",), (), Where("in.csv", n)) for n in (3, 9, 12)]
    labels = [("a", "b"), ("a,b", "c"), ("[x]",)]
    answers = [Prediction(one, 0.9, {}) for one in labels]
    write_predictions(tmp_path / "out.csv", rows, answers, label_separator=",")
    settings = LabelledDataSettings(
        path=str(tmp_path / "out.csv"), text="text", label="prediction", multi_label=True
    )
    assert [row.labels for row in read_labelled(settings, settings.path).rows] == labels
    assert [line[0] for line in read_csv(tmp_path / "out.csv")] == ["line", "3", "9", "12"]


def test_rows_of_several_files_are_told_apart_by_their_file(tmp_path):
    rows = [LabelledText(("x",), (), Where(file, 2)) for file in ("d/one.csv", "d/two.csv")]
    write_predictions(tmp_path / "out.csv", rows, [Prediction(("a",), 0.5, {})] * 2)
    assert [line[:3] for line in read_csv(tmp_path / "out.csv")] == [
        ["file", "line", "text"],
        ["d/one.csv", "2", "x"],
        ["d/two.csv", "2", "x"],
    ]


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing_behind(tmp_path):
    answers = [Prediction(("a",), 0.5, {"a": 0.5})]
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(DataError, match=r"out\.csv can't be written"):
        write_predictions(tmp_path / "out.csv", [single("x")], answers)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    with pytest.raises(DataError, match="can't be written"):
        write_predictions(tmp_path / "absent" / "out.csv", [single("x")], answers)
