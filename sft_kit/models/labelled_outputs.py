"""Logits only where there is a label: a vocabulary's worth of numbers at one token in seven.

Shapes: B batch, T tokens (of the decoder where there is one), N labels that count, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

LABEL_MASK = "label_mask"
"""Input (B, T) bool: True where the logits are wanted."""

NEXT_SENTENCE_LABEL = "next_sentence_label"

_ROWS_AT_ONCE = 64
"""The output layer sees a multiple of so many rows, the last of them zeros.

oneDNN prepares a product for each number of rows and keeps what it has prepared: with a vocabulary
of 8,192 about 12 MB for every new number of labels, measured with torch 2.13 on bf16 instructions.
"""


@dataclass
class LabelledOutput(ModelOutput):
    """What a model answers where it is asked.

    Attributes:
        logits: (N, V), in the order of the True values of `label_mask`.
        next_sentence_logits: (B, 2); None without the second task.
        next_sentence_label: (B,) as it was given; None without the second task.
    """

    logits: torch.Tensor | None = None
    next_sentence_logits: torch.Tensor | None = None
    next_sentence_label: torch.Tensor | None = None


def answer_where_labelled(model: PreTrainedModel | PeftModel) -> None:
    """Have a model's forward take `label_mask` and answer a `LabelledOutput`.

    The output layer sees the hidden states of those positions only; what is computed for them is
    the same. A call without `label_mask` is the model's own. Nothing of this is saved.

    Args:
        model: With its adapter, if it gets one; changed in place.
    """
    asked = _Asked()
    head = cast("nn.Module", cast("Any", model).get_output_embeddings())
    model.register_forward_pre_hook(asked.take, with_kwargs=True)
    head.register_forward_pre_hook(asked.select)
    model.register_forward_hook(asked.give, always_call=True)


class _Asked:
    """What one forward was asked for, on its way from the model's inputs to its output layer."""

    def __init__(self) -> None:
        self.mask: torch.Tensor | None = None
        self.next_sentence_label: torch.Tensor | None = None
        self.num_labels = 0

    def take(
        self, _model: nn.Module, args: tuple[object, ...], options: dict[str, Any]
    ) -> tuple[tuple[object, ...], dict[str, Any]]:
        self.mask = options.get(LABEL_MASK)
        self.next_sentence_label = options.get(NEXT_SENTENCE_LABEL)
        if self.mask is None:
            return args, options
        ours = (LABEL_MASK, NEXT_SENTENCE_LABEL)
        return args, {name: value for name, value in options.items() if name not in ours}

    def select(
        self, _head: nn.Module, args: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...] | None:
        if self.mask is None:
            return None
        states = args[0][self.mask]
        self.num_labels = len(states)
        filled = functional.pad(states, (0, 0, 0, -len(states) % _ROWS_AT_ONCE))
        return (filled, *args[1:])

    def give(
        self, _model: nn.Module, _args: tuple[object, ...], output: ModelOutput | None
    ) -> ModelOutput | None:
        was_asked, self.mask = self.mask is not None, None
        if not was_asked or output is None:  # None: the forward has failed
            return output
        has_pairs = "prediction_logits" in output
        return LabelledOutput(
            logits=output["prediction_logits" if has_pairs else "logits"][: self.num_labels],
            next_sentence_logits=output["seq_relationship_logits"] if has_pairs else None,
            next_sentence_label=self.next_sentence_label,
        )
