"""A language model that answers the loss of each label, and makes logits for labels only.

Shapes: B batch, T tokens, N labels that count, H hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from sft_kit.models.padding_free import (
    attention_of,
    can_leave_out_padding,
    has_much_padding,
    leave_out_padding,
    leaves_out_padding,
    mark_padding_free,
    padding_note,
)
from sft_kit.objectives.language import IGNORED, cross_entropy
from sft_kit.objectives.linear_cross_entropy import linear_cross_entropy

NEXT_TOKENS = "next_tokens"
"""Input (B, T) int64: the label that each position predicts, -100 where nothing counts."""


@dataclass
class TokenLosses(ModelOutput):
    """What a model answers where it is asked for losses.

    Attributes:
        nll: (B, T) float32 in nats, of the token at each position given those before it; 0 where
            nothing counts, and at position 0.
    """

    nll: torch.Tensor | None = None


def answer_losses(model: PreTrainedModel | PeftModel, *, fused: bool = True) -> list[str]:
    """Have a model's forward take `next_tokens` and answer `TokenLosses`.

    The output layer sees the hidden states of labelled positions only. In training, padding is left
    out of the whole forward, where the attention kernel can do without. A call without
    `next_tokens` is the model's own. Nothing of this is saved.

    Args:
        model: With its adapter, if it gets one; changed in place.
        fused: Never hold all those logits, where the output layer is frozen and the model's logits
            are its product and nothing more; a forward of three tokens tells. Leave out padding,
            where the rows then see nothing of each other; three forwards of five tokens tell.

    Returns:
        What was found out, for the one who runs it.
    """
    head = cast("nn.Module", cast("Any", model).get_output_embeddings())
    asked = _Asked(is_fused=fused and _is_bare(model, head))
    mark_padding_free(model, is_padding_free=fused and can_leave_out_padding(model))
    model.register_forward_pre_hook(asked.take, with_kwargs=True)
    head.register_forward_pre_hook(asked.select)
    head.register_forward_hook(asked.answer)
    model.register_forward_hook(asked.give, always_call=True)
    return [padding_note(is_left_out=leaves_out_padding(model))]


class _Asked:
    """What one forward was asked for, on its way from the model's inputs to its output layer."""

    def __init__(self, *, is_fused: bool) -> None:
        self.is_fused = is_fused
        self.labels: torch.Tensor | None = None
        self.flat_labels: torch.Tensor | None = None
        self.hidden: torch.Tensor | None = None
        self.losses: torch.Tensor | None = None

    def take(
        self, model: nn.Module, args: tuple[object, ...], options: dict[str, Any]
    ) -> tuple[tuple[object, ...], dict[str, Any]]:
        self.labels = options.get(NEXT_TOKENS)
        if self.labels is None:
            return args, options
        mask = options.get("attention_mask")
        is_left_out = leaves_out_padding(model) and model.training
        if is_left_out and mask is not None and has_much_padding(mask):
            attention = attention_of(cast("PreTrainedModel", model))
            places = mask.ne(0).long().cumsum(1).sub(1).clamp(min=0)
            options = {"position_ids": places} | options
            options = leave_out_padding(options, attention, ignored={NEXT_TOKENS: IGNORED})
        self.flat_labels = options[NEXT_TOKENS]
        return args, {name: value for name, value in options.items() if name != NEXT_TOKENS}

    def select(
        self, head: nn.Module, args: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...] | None:
        if self.flat_labels is None:
            return None
        self.hidden = args[0][self.flat_labels.ne(IGNORED)]
        # DeepSpeed's ZeRO-3 has the weight together while the layer's own forward runs only.
        self.is_fused = self.is_fused and not hasattr(head.weight, "ds_id")
        return (self.hidden[:0] if self.is_fused else self.hidden, *args[1:])

    def answer(self, head: nn.Module, _args: tuple[object, ...], _logits: torch.Tensor) -> None:
        # Here and not later: sharded weights are whole while their module runs.
        if self.labels is not None and self.is_fused:
            assert self.hidden is not None
            labels = self.labels[self.labels.ne(IGNORED)]
            layer = cast("nn.Linear", head)
            self.losses = linear_cross_entropy(self.hidden, layer.weight, labels, layer.bias)

    def give(
        self, _model: nn.Module, _args: tuple[object, ...], output: ModelOutput | None
    ) -> ModelOutput | None:
        labels, losses = self.labels, self.losses
        self.labels = self.flat_labels = self.hidden = self.losses = None
        if labels is None or output is None:  # None: the forward has failed
            return output
        counts = labels.ne(IGNORED)
        if losses is None:
            losses = cross_entropy(output["logits"], labels[counts])
        nll = losses.new_zeros(labels.shape)
        return TokenLosses(nll=nll.masked_scatter(counts, losses).roll(1, dims=1))


def _is_bare(model: PreTrainedModel | PeftModel, head: nn.Module) -> bool:
    """Whether the logits of a model are those of a frozen linear layer, unscaled and uncapped."""
    if type(head) is not nn.Linear or any(one.requires_grad for one in head.parameters()):
        return False
    seen: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda _head, _args, logits: seen.append(logits.clone()))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            tokens = torch.arange(3, device=head.weight.device)[None]
            mask = torch.ones_like(tokens)
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    finally:
        hook.remove()
        model.train(was_training)
    return (
        len(seen) == 1
        and seen[0].shape == logits.shape
        and torch.equal(seen[0].float(), logits.float())
    )
