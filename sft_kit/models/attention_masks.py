"""One Transformer under different attention masks. Shapes: B batch, T tokens."""

from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

DOCUMENTS = "documents"
"""Input (B, T): number of each token's document, from 1; 0 is padding."""

PREFIX_LENGTHS = "prefix_lengths"
"""Input (B,): tokens at the beginning of each row that see each other both ways."""


def attention_mask_of(
    documents: torch.Tensor, prefix_lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Say which token sees which.

    A token sees those of its own document that don't come after it or belong to the prefix. Padding
    sees itself and nothing else, so that no row of the attention is empty.

    Args:
        documents: (B, T) number of each token's document, from 1; 0 is padding.
        prefix_lengths: (B,) tokens at the beginning that see each other both ways.

    Returns:
        (B, 1, T, T) bool: row, any head, the token that looks, the token it sees.
    """
    places = torch.arange(documents.shape[1], device=documents.device)
    visible = (places[None, :] <= places[:, None])[None]
    if prefix_lengths is not None:
        visible = visible | (places < prefix_lengths[:, None])[:, None, :]
    is_token = (documents > 0)[:, None, :]
    same = documents[:, :, None] == documents[:, None, :]
    itself = torch.eye(documents.shape[1], dtype=torch.bool, device=documents.device)
    return ((visible & same & is_token) | itself)[:, None]


def take_documents(model: PreTrainedModel | PeftModel) -> None:
    """Have a model's forward take `documents` or `prefix_lengths` and see by them.

    The mask of T x T is made where it is used: batches stay small on their way to the device, and
    `attention_mask` stays (B, T), which the Trainer counts tokens by. A call without the two inputs
    is the model's own. Nothing of this is saved.

    Args:
        model: With its adapter, if it gets one; changed in place.
    """
    model.register_forward_pre_hook(_mask_by_documents, with_kwargs=True)


def _mask_by_documents(
    model: nn.Module, args: tuple[object, ...], inputs: dict[str, Any]
) -> tuple[tuple[object, ...], dict[str, Any]]:
    documents, prefixes = inputs.get(DOCUMENTS), inputs.get(PREFIX_LENGTHS)
    if documents is None and prefixes is None:
        return args, inputs
    rest = {
        name: value for name, value in inputs.items() if name not in (DOCUMENTS, PREFIX_LENGTHS)
    }
    if documents is None:
        documents = rest["attention_mask"]
    mask = attention_mask_of(documents, prefixes)
    rest["attention_mask"] = _as_scores(mask, model) if _adds_masks(model) else mask
    return args, rest


def _adds_masks(model: nn.Module) -> bool:
    """Whether the attention adds its mask to the scores; other kernels take bool."""
    return bool(cast("Any", model).config._attn_implementation == "eager")


def _as_scores(mask: torch.Tensor, model: nn.Module) -> torch.Tensor:
    dtype = cast("Any", model).dtype
    hidden = torch.finfo(dtype).min
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, hidden)
