"""Scores for prompts with their answers: many at once, each as if it were alone."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from sft_kit.data.preference.collators import pad_answers
from sft_kit.errors import CheckpointError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def score_rows(
    model: "PreTrainedModel | PeftModel",
    rows: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    batch_size: int = 32,
    on_rows: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Compute the scores of tokenized prompts with their answers.

    Rows of similar length share a batch, the longest ones first: what does not fit into memory
    fails at once.

    Args:
        model: Reward model in evaluation mode.
        rows: N rows of token ids, at least one, each with its stop token.
        pad_token_id: Any id; masked positions are never read.
        batch_size: Rows per forward pass; changes the speed only.
        on_rows: Called after each forward pass with the number of its rows.

    Returns:
        (N,) float32, in the order of the rows.

    Raises:
        CheckpointError: A score is not a number.
    """
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    found: list[torch.Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = [rows[index] for index in order[start : start + batch_size]]
            group = {"input_ids": [list(ids) for ids in chosen], "margin": 0.0}
            batch = pad_answers([group], pad_token_id=pad_token_id)
            inputs = {
                name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")
            }
            found.append(cast("Any", model)(**inputs).logits.float().reshape(-1).cpu())
            if on_rows is not None:
                on_rows(len(chosen))
    scores = torch.cat(found).numpy()
    if not np.isfinite(scores).all():
        raise CheckpointError(
            "the model's scores are not numbers (NaN or infinite): its weights are broken, or its "
            "training has diverged; train again with a lower train.learning_rate"
        )
    in_order = np.empty_like(scores)
    in_order[order] = scores
    return in_order
