"""The Trainer's seams for causal language models: loss, per-token figures, metrics.

Shapes: B batch, T tokens, V vocabulary, N examples.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from accelerate import PartialState
from transformers import EvalPrediction, Trainer
from transformers.modeling_outputs import CausalLMOutput

from sft_kit.devices import peak_memory_bytes
from sft_kit.models.token_losses import TokenLosses
from sft_kit.objectives.language import IGNORED, next_token_loss, token_nll
from sft_kit.training.progress import logged_loss
from sft_kit.training.randomness import isolated_randomness
from sft_kit.training.sharding import needs_optimizer

_NOT_OF_THE_MODEL = ("epoch", "_runtime", "_per_second", "_preparation_time", "_tokens_seen")


def causal_lm_loss(
    outputs: CausalLMOutput | TokenLosses,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Loss for `Trainer(compute_loss_func=...)`.

    Args:
        outputs: With logits (B, T, V), or with the losses (B, T) of a model that answers those.
        labels: (B, T).
        num_items_in_batch: Supervised tokens of the global batch, counted by the Trainer.

    Returns:
        Scalar in nats per supervised token of the global batch.
    """
    if isinstance(outputs, TokenLosses):
        assert outputs.nll is not None
        count = (
            labels[:, 1:].ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        )
        return outputs.nll.sum() / count
    assert outputs.logits is not None
    return next_token_loss(outputs.logits, labels, num_items_in_batch)


def label_nll(
    logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor
) -> torch.Tensor:
    """For `Trainer(preprocess_logits_for_metrics=...)`: keep one number a token, not V logits.

    Returns:
        (B, T) negative log-likelihoods in nats, 0 where the label is ignored.
    """
    return token_nll(logits[0] if isinstance(logits, tuple) else logits, labels)


def language_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """For `Trainer(compute_metrics=...)`: loss and perplexity per supervised token.

    The Trainer's own `eval_loss` averages the means of batches, so a short answer weighs as much as
    a long one. The key `loss` here takes its place.
    """
    nll = np.asarray(prediction.predictions)
    labels = np.asarray(prediction.label_ids)[:, 1:]
    loss = float(nll[:, 1:][labels != IGNORED].astype(np.float64).mean())
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def held_out_metrics(trainer: Trainer, prefix: str) -> dict[str, float]:
    """Evaluate outside the training loop, without a trace in the random state.

    Returns:
        The loss in nats and what the recipe's metrics function makes of the held-out rows, keys
        with `prefix`; empty when there are no such rows, and before training where the launcher
        asked for FSDP or DeepSpeed, which make their parts for an optimizer only.
    """
    if not trainer.eval_dataset:
        return {}
    if trainer.optimizer is None and needs_optimizer(trainer.accelerator):
        PartialState().print("held-out rows: not evaluated before training under FSDP or DeepSpeed")
        return {}
    with isolated_randomness():
        metrics = trainer.evaluate(metric_key_prefix=prefix)
    _forget_evaluation(trainer)
    return of_the_model(metrics)


def _forget_evaluation(trainer: Trainer) -> None:
    """Have training prepare a model that was evaluated before the first step.

    accelerate 1.15 marks what it prepares for an evaluation as prepared for good: it would not be
    wrapped for several processes, and each would train on its own rows alone.
    """
    accelerator, model = trainer.accelerator, trainer.model
    if trainer.optimizer is None and model is not None and model in accelerator._models:
        accelerator._models.remove(model)
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        model._is_accelerate_prepared = False  # type: ignore[assignment]


def of_the_model(metrics: Mapping[str, float]) -> dict[str, float]:
    """Leave out the keys with which the Trainer says how an evaluation went."""
    return {key: value for key, value in metrics.items() if not key.endswith(_NOT_OF_THE_MODEL)}


def run_metrics(trainer: Trainer) -> dict[str, float]:
    """Sum up a finished training: steps, seconds, tokens per second, peak memory.

    The loss is the mean over all steps. Seconds and tokens are those of this process's session: a
    resumed run counts from its checkpoint, whose step is told then. Evaluations and checkpoints on
    the way are part of the time.
    """
    logged: dict[str, float] = {}
    for entry in trainer.state.log_history:
        logged.update({key: entry[key] for key in ("train_loss", "train_runtime") if key in entry})
    metrics = {
        "train_loss": logged["train_loss"],
        "train_seconds": logged["train_runtime"],
        "num_steps": float(trainer.state.global_step),
        "peak_memory_bytes": float(peak_memory_bytes()),
    }
    if trainer._initial_global_step:  # upstream's mean is over the steps of this session
        metrics["train_loss"] = logged_loss(trainer.state.log_history)
        metrics["resumed_from_step"] = float(trainer._initial_global_step)
    num_tokens = trainer.state.num_input_tokens_seen - trainer._initial_num_input_tokens_seen
    if num_tokens and logged["train_runtime"]:
        metrics["tokens_per_second"] = num_tokens / logged["train_runtime"]
    return metrics
