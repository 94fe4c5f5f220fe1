"""Labels for texts: many at once, each as if it were alone."""

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from peft import PeftModel

from sft_kit.data.collators import pad_labelled
from sft_kit.data.labelled.rows import LabelledExample
from sft_kit.errors import CheckpointError
from sft_kit.inference.encoder import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a classifier says about a text.

    Attributes:
        labels: The likeliest class; with several labels a text, every one with a probability of 0.5
            or more, which may be none.
        probability: Of the class; with several labels a text, of the least sure decision for or
            against one of them.
        probabilities: Of each class by name.
    """

    labels: tuple[str, ...]
    probability: float
    probabilities: dict[str, float]


def predict(
    model: "PreTrainedModel | PeftModel",
    examples: Sequence[LabelledExample],
    label_names: Sequence[str],
    *,
    pad_token_id: int,
    multi_label: bool = False,
    batch_size: int = 32,
    on_rows: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """Classify texts.

    Args:
        model: Classifier; its training mode is put back afterwards.
        examples: Tokenized texts; their labels are not read.
        label_names: Class id -> name, as many as the model has classes.
        pad_token_id: Any id; masked positions are never read.
        multi_label: A text may have any number of labels.
        batch_size: Texts per forward pass; changes the speed only.
        on_rows: Called after each forward pass with the number of its texts.

    Raises:
        CheckpointError: A logit is not a number.
    """
    logits = torch.from_numpy(
        predict_logits(
            model, examples, pad_token_id=pad_token_id, batch_size=batch_size, on_rows=on_rows
        )
    ).double()
    shares = (logits.sigmoid() if multi_label else logits.softmax(dim=-1)).tolist()
    return [_prediction(row, label_names, multi_label=multi_label) for row in shares]


def predict_logits(
    model: "PreTrainedModel | PeftModel",
    examples: Sequence[LabelledExample],
    *,
    pad_token_id: int,
    batch_size: int = 32,
    on_rows: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Compute the class logits of texts.

    Texts of similar length share a batch, the longest ones first: what does not fit into memory
    fails at once.

    Args:
        model: Classifier; its training mode is put back afterwards.
        examples: N tokenized texts, at least one; their labels are not read, nor are segments that
            the model does not tell apart.
        pad_token_id: Any id; masked positions are never read.
        batch_size: Texts per forward pass; changes the speed only.
        on_rows: Called after each forward pass with the number of its texts.

    Returns:
        (N, K) float32, in the order of the texts.

    Raises:
        CheckpointError: A logit is not a number.
    """
    order = sorted(range(len(examples)), key=lambda index: -len(examples[index].input_ids))
    found: list[torch.Tensor] = []
    accepted = _accepted_names(model)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            batch = [examples[index] for index in order[start : start + batch_size]]
            found.append(_logits(model, batch, pad_token_id, accepted))
            if on_rows is not None:
                on_rows(len(batch))
    logits = torch.cat(found).numpy()
    if not np.isfinite(logits).all():
        raise CheckpointError(
            "the model's scores are not numbers (NaN or infinite): its weights are broken, or its "
            "training has diverged; train again with a lower train.learning_rate"
        )
    in_order = np.empty_like(logits)
    in_order[order] = logits
    return in_order


def _accepted_names(model: "PreTrainedModel | PeftModel") -> Collection[str]:
    """Names that the forward of the model itself, under any adapter, asks for."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return inspect.signature(type(base).forward).parameters.keys() - {"labels"}


def _logits(
    model: "PreTrainedModel | PeftModel",
    examples: Sequence[LabelledExample],
    pad_token_id: int,
    accepted: Collection[str],
) -> torch.Tensor:
    """Logits (B, K) of one batch, as float32 on the CPU."""
    batch = pad_labelled([_row(example) for example in examples], pad_token_id=pad_token_id)
    inputs = {name: values.to(model.device) for name, values in batch.items() if name in accepted}
    return cast("torch.Tensor", cast("Any", model)(**inputs).logits.float().cpu())


def _row(example: LabelledExample) -> dict[str, object]:
    row: dict[str, object] = {"input_ids": example.input_ids, "labels": example.label}
    if example.token_type_ids:
        row["token_type_ids"] = example.token_type_ids
    return row


def _prediction(
    shares: Sequence[float], label_names: Sequence[str], *, multi_label: bool
) -> Prediction:
    probabilities = dict(zip(label_names, shares, strict=True))
    if multi_label:
        labels = tuple(name for name, share in probabilities.items() if share >= 0.5)
        probability = min(max(share, 1 - share) for share in shares)
    else:
        labels = (max(probabilities, key=probabilities.__getitem__),)
        probability = max(shares)
    return Prediction(labels, probability, probabilities)
