import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, GPT2LMHeadModel, Trainer
from transformers.modeling_outputs import CausalLMOutput

from sft_kit.training.metrics import (
    causal_lm_loss,
    held_out_metrics,
    label_nll,
    language_metrics,
    run_metrics,
)

MakeTrainer = Callable[..., Trainer]


def row_by_row(model: GPT2LMHeadModel, rows: list[dict[str, list[int]]]) -> tuple[float, float]:
    """Mean loss per supervised token and mean of row means, one unpadded row at a time."""
    sums, counts = [], []
    model.eval()
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0].double()
        chosen = [
            -torch.log_softmax(before, dim=0)[label].item()
            for before, label in zip(logits[:-1], row["labels"][1:], strict=True)
            if label != -100
        ]
        sums.append(math.fsum(chosen))
        counts.append(len(chosen))
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    return math.fsum(sums) / sum(counts), math.fsum(means) / len(means)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_eval_loss_is_the_mean_over_supervised_tokens_whatever_the_batch(
    make_trainer: MakeTrainer, batch: int
):
    trainer = make_trainer(per_device_eval_batch_size=batch)
    expected, mean_of_means = row_by_row(trainer.model, trainer.eval_dataset)
    assert abs(expected - mean_of_means) > 1e-3, "rows too alike to tell the two apart"
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)


def test_the_trainers_own_eval_loss_is_another_number(make_trainer: MakeTrainer):
    """Shows that the test above can fail; when this fails, `language_metrics` need not say loss."""
    trainer = make_trainer()
    expected, _ = row_by_row(trainer.model, trainer.eval_dataset)
    trainer.compute_metrics = None
    assert abs(trainer.evaluate()["eval_loss"] - expected) > 1e-4


def test_held_out_metrics_leave_no_trace_in_the_random_state(make_trainer: MakeTrainer):
    trainer = make_trainer()
    expected, _ = row_by_row(trainer.model, trainer.eval_dataset)
    torch.manual_seed(9)
    np.random.seed(9)
    undisturbed = (torch.rand(3), np.random.rand(3))
    torch.manual_seed(9)
    np.random.seed(9)
    metrics = held_out_metrics(trainer, "before")
    assert metrics == {
        "before_loss": pytest.approx(expected, rel=1e-5),
        "before_perplexity": pytest.approx(math.exp(expected), rel=1e-4),
    }
    assert torch.equal(torch.rand(3), undisturbed[0])
    assert np.array_equal(np.random.rand(3), undisturbed[1])


def test_without_held_out_rows_there_are_no_held_out_metrics(make_trainer: MakeTrainer):
    assert held_out_metrics(make_trainer(eval_rows=0), "eval") == {}


def test_padding_of_batches_joined_by_the_trainer_does_not_count():
    labels = np.array([[5, 6, -100], [-100, 7, 8]])
    nll = np.array([[99.0, 1.0, -100.0], [99.0, 2.0, 6.0]], dtype=np.float32)
    metrics = language_metrics(EvalPrediction(predictions=nll, label_ids=labels))
    assert metrics == {"loss": 3.0, "perplexity": pytest.approx(math.exp(3.0))}


def test_a_hopeless_loss_has_a_finite_perplexity():
    prediction = EvalPrediction(predictions=np.array([[0.0, 1e6]]), label_ids=np.array([[1, 2]]))
    assert math.isfinite(language_metrics(prediction)["perplexity"])


def test_the_mean_is_taken_in_double_precision():
    """Ten million float32 figures whose running sum in float32 would be off by far more."""
    count = 2_000_000
    nll = np.concatenate([[0.0], np.full(count, 0.1), [1000.0]]).astype(np.float32)[None]
    labels = np.ones_like(nll, dtype=np.int64)
    expected = math.fsum(nll[0, 1:].tolist()) / (count + 1)
    loss = language_metrics(EvalPrediction(predictions=nll, label_ids=labels))["loss"]
    assert loss == pytest.approx(expected, rel=1e-12)


def test_token_figures_are_kept_instead_of_logits(gpt2_model: GPT2LMHeadModel):
    ids = torch.randint(300, (2, 7))
    with torch.no_grad():
        output = gpt2_model(input_ids=ids, labels=ids)
    found = label_nll(output.logits, ids)
    assert found.shape == ids.shape
    torch.testing.assert_close(found[:, 1:].mean(), output.loss)
    assert torch.equal(label_nll((output.logits, torch.zeros(1)), ids), found)


def test_the_loss_of_a_micro_batch_is_its_share_of_the_global_mean(gpt2_model: GPT2LMHeadModel):
    ids = torch.randint(300, (2, 7))
    with torch.no_grad():
        output = gpt2_model(input_ids=ids, labels=ids)
    found = CausalLMOutput(logits=output.logits)
    torch.testing.assert_close(causal_lm_loss(found, ids), output.loss)
    torch.testing.assert_close(causal_lm_loss(found, ids, 24), output.loss / 2)


def test_the_sum_of_a_run_is_that_of_the_trainer(make_trainer: MakeTrainer):
    trainer = make_trainer(include_num_input_tokens_seen="non_padding", logging_steps=1)
    output = trainer.train()
    metrics = run_metrics(trainer)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert metrics["num_steps"] == 3
    assert metrics["train_loss"] == pytest.approx(sum(losses) / 3, rel=1e-3)
    assert metrics["train_seconds"] == output.metrics["train_runtime"] > 0
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)  # one epoch
    assert metrics["tokens_per_second"] == pytest.approx(tokens / metrics["train_seconds"])
    assert metrics["peak_memory_bytes"] > 50e6


def test_tokens_per_second_of_a_resumed_run_are_of_its_own_session(make_trainer: MakeTrainer):
    settings = {"include_num_input_tokens_seen": "all", "save_strategy": "steps", "save_steps": 2}
    first = make_trainer(max_steps=2, **settings)
    first.train()
    resumed = make_trainer(max_steps=3, **settings)
    resumed.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-2")
    tokens = resumed.state.num_input_tokens_seen - first.state.num_input_tokens_seen
    metrics = run_metrics(resumed)
    assert tokens > 0
    assert metrics["tokens_per_second"] == pytest.approx(tokens / metrics["train_seconds"])


def test_the_loss_of_a_resumed_run_is_the_mean_over_all_its_steps(make_trainer: MakeTrainer):
    settings = {"logging_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    straight = make_trainer(**settings)
    straight.train()
    whole = run_metrics(straight)
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=f"{straight.args.output_dir}/checkpoint-2")
    metrics = run_metrics(resumed)
    assert metrics["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-3)
    assert metrics["resumed_from_step"] == 2
    assert "resumed_from_step" not in whole


def test_without_counted_tokens_no_speed_is_made_up(make_trainer: MakeTrainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert "tokens_per_second" not in run_metrics(trainer)
