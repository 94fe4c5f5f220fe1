"""Decoders as classifiers: the state of the last real token goes to the head.

transformers' own classes look for the last token that is not the padding token and count positions
from the left edge. Where texts are padded with the end-of-text token, as GPT-2's are, a text that
ends in it is pooled one token early; and padding on the left shifts every position. Here both
follow the attention mask. In training, padding is left out of the backbone where the attention
kernel can do without. Shapes: B batch, T tokens, H hidden, K classes, V vocabulary.
"""

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
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
from sft_kit.objectives.classification import (
    classification_loss,
    last_token_index,
    mean_token_nll,
)

_PROBE_TOKENS = 8


@dataclass
class ClassifierOutput(ModelOutput):
    """What a decoder with a classification head answers.

    Attributes:
        loss: Scalar, where labels were given.
        logits: (B, K).
        lm_nll: (B,) mean negative log-likelihood of each row's tokens in nats, where the model
            learns language beside the labels.
        hidden_states: Where asked for, as the backbone gives them.
        attentions: Where asked for, as the backbone gives them.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    lm_nll: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a decoder is run: its head's name, what its backbone is told, what it answers."""

    head: str
    takes_positions: bool
    options: dict[str, object]
    learns_language: bool


def pool_last_token(
    model: PreTrainedModel, head: str, *, learns_language: bool = False, fused: bool = False
) -> None:
    """Make a decoder pool at the last real token by the attention mask.

    The class becomes a subclass under the same name, so that names in `config.json` and in adapters
    stay those of transformers, which can load them without this package.

    Args:
        model: A decoder with a linear classification head, as transformers made it.
        head: Name of the head, a child of the model.
        learns_language: Answer `lm_nll` too; the embeddings must be the output layer.
        fused: Leave out padding in training, where the rows then see nothing of each other; three
            forwards of five tokens tell.
    """
    stock = type(model)
    known = inspect.signature(type(model.base_model).forward).parameters
    options: dict[str, object] = {"use_cache": False} if "use_cache" in known else {}
    members = {
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
        "__doc__": stock.__doc__,
        "forward": _forward,
        "accepts_loss_kwargs": False,
    }
    model.__class__ = type(stock.__name__, (stock,), members)
    backbone = cast("PreTrainedModel", model.base_model)
    mark_padding_free(model, is_padding_free=fused and can_leave_out_padding(backbone))
    cast("Any", model).sft_kit_pooling = Pooling(
        head,
        "position_ids" in known,
        options,
        learns_language,
    )


def padding_of(model: PreTrainedModel) -> str:
    """Say what training does with the padding of a classifier or a reward model."""
    return padding_note(is_left_out=leaves_out_padding(model))


def _forward(
    self: Any,  # noqa: ANN401 - any class of transformers
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    output_attentions: bool | None = None,
    output_hidden_states: bool | None = None,
    return_dict: bool | None = None,
) -> ClassifierOutput | tuple[object, ...]:
    """Compute the logits (B, K) of each row's last real token.

    Args:
        self: The model.
        input_ids: (B, T).
        attention_mask: (B, T), nonzero at real tokens; padding on either side. None: all are real.
        inputs_embeds: (B, T, H) in the place of `input_ids`.
        labels: (B,) class ids or (B, K) floats, for a loss in the answer.
        output_attentions: Answer the attentions too.
        output_hidden_states: Answer the hidden states too.
        return_dict: False for a tuple.
    """
    pooling: Pooling = self.sft_kit_pooling
    options = dict(pooling.options)
    wanted = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
    options |= {name: value for name, value in wanted.items() if value is not None}
    if attention_mask is not None and pooling.takes_positions:
        options["position_ids"] = attention_mask.ne(0).long().cumsum(dim=1).sub(1).clamp(min=0)
    if inputs_embeds is not None:
        options["inputs_embeds"] = inputs_embeds
    options |= {"input_ids": input_ids, "attention_mask": attention_mask}
    mask = attention_mask if _can_shrink(self, options) else None
    if mask is not None:
        options = leave_out_padding(options, attention_of(self))
    answer = self.base_model(**options)
    hidden: torch.Tensor = answer.last_hidden_state
    if mask is not None:
        hidden = hidden.new_zeros(*mask.shape, hidden.shape[-1]).index_put(
            (mask.ne(0),), hidden[0, : int(mask.sum())]
        )
    # Every token gets logits before one is picked: transformers' order, so that the bits agree too.
    head = self.get_submodule(pooling.head)
    with torch.autocast(hidden.device.type, enabled=False):
        # In 16 bits scores near 8 would be rounded to sixteenths, and many would be equal.
        every = head(hidden.to(next(head.parameters()).dtype))
    if attention_mask is None:
        logits = every[:, -1]
    else:
        rows = torch.arange(len(every), device=every.device)
        logits = every[rows, last_token_index(attention_mask).to(every.device)]
    output = ClassifierOutput(
        loss=None if labels is None else classification_loss(logits, labels),
        logits=logits,
        hidden_states=answer.get("hidden_states"),
        attentions=answer.get("attentions"),
    )
    if pooling.learns_language and input_ids is not None:
        embedding = self.get_input_embeddings().weight
        output["lm_nll"] = mean_token_nll(hidden, embedding, input_ids, attention_mask)
    return output.to_tuple() if return_dict is False else output


def _can_shrink(model: Any, options: dict[str, Any]) -> bool:  # noqa: ANN401
    """Whether there is padding to leave out of a backbone's forward, and nothing else is asked."""
    mask: torch.Tensor | None = options["attention_mask"]
    return (
        leaves_out_padding(model)
        and model.training
        and options["input_ids"] is not None
        and mask is not None
        and has_much_padding(mask)
        and not options.get("output_attentions")
        and not options.get("output_hidden_states")
    )


@torch.no_grad()
def is_language_model(model: PreTrainedModel, config: PreTrainedConfig) -> bool:
    """Whether a decoder's embeddings are its output layer, and nothing is done to those logits.

    The architecture's language model is built around this backbone, without memory of its own, and
    asked: some scale their logits, cap them or add a bias.

    Args:
        model: A decoder with a classification head.
        config: As the checkpoint brought it, not quantized.
    """
    embedding = model.get_input_embeddings().weight
    with torch.device("meta"):
        language = cast("Any", AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    output = language.get_output_embeddings()
    if not config.get_text_config().tie_word_embeddings or not isinstance(output, nn.Linear):
        return False
    if output.bias is not None or output.weight.shape != embedding.shape:
        return False
    setattr(language, language.base_model_prefix, model.base_model)
    output.weight = cast("nn.Parameter", embedding)
    ids = torch.arange(1, _PROBE_TOKENS + 1, device=embedding.device).remainder(len(embedding))
    expected = language.eval()(input_ids=ids.unsqueeze(0)).logits.float()
    hidden = model.base_model(ids.unsqueeze(0)).last_hidden_state
    found = nn.functional.linear(hidden, embedding.to(hidden.dtype)).float()
    tolerance = 1e-5 if hidden.dtype == torch.float32 else 1e-2
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())
