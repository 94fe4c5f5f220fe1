import math

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    EvalPrediction,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)
from transformers.trainer_pt_utils import nested_concat

from sft_kit.data.corpus.collators import pad_corrupted
from sft_kit.data.corpus.rows import Corrupted
from sft_kit.models.labelled_outputs import LabelledOutput, answer_where_labelled
from sft_kit.training.pretraining import label_figures, make_pretraining_loss, pretraining_metrics

NUM_TOKENS = 40
SIZES = {
    "vocab_size": NUM_TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 32, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3,
}  # fmt: skip


@pytest.fixture
def arguments(tmp_path):
    """Training arguments with a number of rows per step."""

    def make(size: int = 1, number: int = 1) -> TrainingArguments:
        return TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=number,
            use_cpu=True,
            report_to="none",
        )

    return make


def model_of(kind: str):
    torch.manual_seed(2)
    sizes = {"vocab_size": NUM_TOKENS, "d_model": 32, "pad_token_id": 0, "eos_token_id": 1}
    if kind == "t5":
        config = T5Config(
            **sizes, d_kv=16, d_ff=48, num_layers=2, num_heads=2, dropout_rate=0.0,
            decoder_start_token_id=0,
        )  # fmt: skip
        return T5ForConditionalGeneration(config)
    if kind == "bart":
        config = BartConfig(
            **sizes, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, dropout=0.0,
            max_position_embeddings=32, decoder_start_token_id=1, forced_eos_token_id=None,
            init_std=0.3,
        )  # fmt: skip
        return BartForConditionalGeneration(config)
    return (BertForPreTraining if kind == "pairs" else BertForMaskedLM)(BertConfig(**SIZES))


def rows_of(kind: str, seed: int = 0, num_rows: int = 5) -> list[Corrupted]:
    """Rows of unequal lengths with unequal shares of labels; a pair in all but one."""
    draw = np.random.default_rng(seed)
    rows: list[Corrupted] = []
    for index in range(num_rows):
        length = 6 + 3 * index
        ids = draw.integers(4, NUM_TOKENS, length)
        labels = np.where(draw.random(length) < 0.15 + 0.1 * index, ids, -100)
        labels[2] = ids[2]
        row = Corrupted(input_ids=ids, labels=labels)
        if kind in ("t5", "bart"):
            row["labels"] = draw.integers(4, NUM_TOKENS, 2 + 4 * index % 7)
        if kind == "pairs":
            row["token_type_ids"] = (np.arange(length) > 3).astype(np.int64)
            row["next_sentence_label"] = -100 if index == 1 else index % 2
        rows.append(row)
    return rows


def batch_of(kind: str, rows: list[Corrupted]) -> dict[str, torch.Tensor]:
    start = {"t5": 0, "bart": 1}.get(kind)
    return pad_corrupted(rows, pad_token_id=0, decoder_start_token_id=start, mark_labels=True)


def ask(model, batch: dict[str, torch.Tensor]) -> LabelledOutput:
    return model(**{name: tensor for name, tensor in batch.items() if name != "labels"})


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


# --- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["masked", "pairs", "t5", "bart"])
def test_loss_and_gradients_are_those_of_transformers(arguments, kind):
    model, rows = model_of(kind), rows_of(kind)
    batch = batch_of(kind, rows)
    plain = {
        name: tensor
        for name, tensor in batch.items()
        if name not in ("label_mask", "decoder_input_ids")
    }
    theirs = model(**plain).loss
    theirs.backward()
    expected = gradients(model)

    answer_where_labelled(model)
    ours = make_pretraining_loss(arguments())(ask(model, batch), batch["labels"], None)
    if kind == "pairs":  # theirs is a mean over pairs that are asked, ours over all rows
        asked = batch["next_sentence_label"] != -100
        with torch.no_grad():
            output = model(**{k: v for k, v in plain.items() if k not in ("labels",)})
            pair = torch.nn.functional.cross_entropy(
                output.seq_relationship_logits, batch["next_sentence_label"]
            )
        assert ours.item() == pytest.approx((theirs - pair * (~asked).float().mean()).item())
        batch["next_sentence_label"][~asked] = 1
        model.zero_grad()
        plain["next_sentence_label"] = batch["next_sentence_label"]
        theirs = model(**plain).loss
        theirs.backward()
        expected = gradients(model)
        ours = make_pretraining_loss(arguments())(ask(model, batch), batch["labels"], None)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    ours.backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["masked", "pairs", "t5"])
def test_shares_of_micro_batches_sum_to_the_loss_and_gradient_of_one_batch(arguments, kind):
    model, rows = model_of(kind), rows_of(kind, num_rows=6)
    answer_where_labelled(model)
    whole = batch_of(kind, rows)
    num_labels = (whole["labels"] != -100).sum()
    full = make_pretraining_loss(arguments(6, 1))(ask(model, whole), whole["labels"], num_labels)
    full.backward()
    expected = gradients(model)
    loss = make_pretraining_loss(arguments(2, 3))
    total = 0.0
    for first in (0, 2, 4):
        part = batch_of(kind, rows[first : first + 2])
        share = loss(ask(model, part), part["labels"], num_labels)
        share.backward()
        total += share.item()
    assert total == pytest.approx(full.item(), abs=1e-6)
    found = gradients(model)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


# --- figures -------------------------------------------------------------------------------------


def brute_force(kind: str, model, rows: list[Corrupted], frequent: int) -> dict[str, float]:
    """Row by row, label by label, in plain Python."""
    nats: list[float] = []
    right: list[bool] = []
    pair_nats: list[float] = []
    pair_right: list[bool] = []
    answers: list[int] = []
    for row in rows:
        batch = {k: v for k, v in batch_of(kind, [row]).items() if k != "label_mask"}
        labels = batch.pop("labels")[0].tolist()
        follows = batch.pop("next_sentence_label", torch.tensor([-100])).item()
        with torch.no_grad():
            output = model(**batch)
        logits = output.prediction_logits if kind == "pairs" else output.logits
        for scores, label in zip(logits[0].tolist(), labels, strict=True):
            if label != -100:
                total = math.fsum(math.exp(score) for score in scores)
                nats.append(math.log(total) - scores[label])
                right.append(max(scores) == scores[label])
                answers.append(label)
        if follows != -100:
            zero, one = output.seq_relationship_logits[0].tolist()
            chosen, other = (one, zero) if follows else (zero, one)
            pair_nats.append(math.log1p(math.exp(other - chosen)))
            pair_right.append(chosen > other)
    mean = sum(nats) / len(nats)
    metrics = {"loss": mean, "perplexity": math.exp(mean), "accuracy": sum(right) / len(right)}
    metrics["unigram_accuracy"] = answers.count(frequent) / len(answers)
    if pair_nats:
        pair = sum(pair_nats) / len(pair_nats)
        accuracy = sum(pair_right) / len(pair_right)
        metrics |= {"next_sentence_loss": pair, "next_sentence_accuracy": accuracy}
        metrics |= {"masked_loss": mean, "loss": mean + pair}
    return metrics


@pytest.mark.parametrize("kind", ["masked", "pairs", "t5"])
def test_figures_of_ragged_batches_are_those_of_a_brute_force(kind):
    """Joined as the Trainer joins evaluation batches of unequal lengths: -100 in the new places."""
    model, rows = model_of(kind).eval(), rows_of(kind, num_rows=7)
    frequent = int(next(label for label in rows[3]["labels"] if label != -100))
    expected = brute_force(kind, model, rows, frequent)
    answer_where_labelled(model)
    figures = labels = None
    widths = set()
    for part in (rows[:3], rows[3:6], rows[6:]):
        batch = batch_of(kind, part)
        with torch.no_grad():
            output = ask(model, batch)
        logits = tuple(value for value in output.values() if value is not None)
        given: torch.Tensor | tuple[torch.Tensor, ...] = batch["labels"]
        if kind == "pairs":
            given = (batch["labels"], batch["next_sentence_label"])
        found = label_figures(logits if kind == "pairs" else logits[0], given)
        assert found.shape == (len(part), 1 + batch["labels"].shape[1], 2)
        widths.add(found.shape[1])
        figures = found if figures is None else nested_concat(figures, found, padding_index=-100)
        labels = given if labels is None else nested_concat(labels, given, padding_index=-100)
    assert len(widths) > 1
    kept = tuple(one.numpy() for one in labels) if isinstance(labels, tuple) else labels.numpy()
    metrics = pretraining_metrics(EvalPrediction(figures.numpy(), kept), most_frequent=frequent)
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert 0 < metrics["unigram_accuracy"] < 1
    assert metrics.keys() == expected.keys()


def test_a_pair_that_is_not_asked_counts_nowhere():
    pair_logits = torch.tensor([[5.0, 0.0], [0.0, 5.0], [0.0, 5.0]])
    pair_labels = torch.tensor([0, -100, 0])
    labels = torch.tensor([[1, -100], [2, 3], [-100, 0]])
    logits = torch.zeros(4, 8)
    figures = label_figures((logits, pair_logits, pair_labels), (labels, pair_labels))
    assert figures[:, 0, 0].isnan().tolist() == [False, True, False]
    metrics = pretraining_metrics(EvalPrediction(figures.numpy(), labels.numpy()))
    assert metrics["next_sentence_accuracy"] == 0.5
    expected = (math.log1p(math.exp(-5)) + math.log1p(math.exp(5))) / 2
    assert metrics["next_sentence_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["masked_loss"] == pytest.approx(math.log(8))
    assert metrics["accuracy"] == 0.25  # of equal scores the first is taken, which is token 0


def test_held_out_rows_without_a_label_have_no_figures():
    labels = np.full((2, 3), -100)
    figures = label_figures(torch.zeros(0, 8), torch.from_numpy(labels))
    assert pretraining_metrics(EvalPrediction(figures.numpy(), labels)) == {}
    assert "unigram_accuracy" not in pretraining_metrics(
        EvalPrediction(np.ones((1, 2, 2)), np.array([[3]]))
    )


def test_a_hopeless_loss_has_a_finite_perplexity():
    figures = np.array([[[np.nan, np.nan], [5000.0, 0.0]]])
    metrics = pretraining_metrics(EvalPrediction(figures, np.array([[3]])))
    assert metrics["loss"] == 5000
    assert math.isfinite(metrics["perplexity"])
