"""Attention by matrix products over blocks of queries, for 16-bit training on a CPU.

torch 2.13's fused kernel for CPUs goes backward in bfloat16 two to three times slower than the
matrix products that it is made of. Shapes: B batch, N heads, T tokens, S tokens they
look at, D head dimension.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import (
    create_position_bias_mask,
    repeat_kv,
    sdpa_attention_forward,
)
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from sft_kit.models.seeded_dropout import (
    clear_numbers,
    draw_bits,
    draw_seed,
    keep_numbers,
    read_mask,
)

BLOCKS = "blocks"
"""Name of this kernel among transformers' attention implementations."""

_BLOCK = 128
"""Queries looked at in one go."""
_MULTIPLE = 16
"""Lengths are filled up to a multiple of it: oneDNN keeps kernels for each length."""
_HALF = (torch.bfloat16, torch.float16)


def register_blocks() -> None:
    """Tell transformers of the kernel; `attn_implementation="blocks"` then picks it."""
    AttentionInterface.register(BLOCKS, _blocks_forward)
    AttentionMaskInterface.register(BLOCKS, _blocks_mask)


# Its dropout draws numpy's random numbers, and its blocks differ from length to length.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def block_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: float,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Softmax attention. Probabilities are made anew in the backward, a block at a time.

    Args:
        query: (B, N, T, D).
        key: (B, N, S, D).
        value: (B, N, S, D).
        mask: (B or 1, N or 1, T, S) bool, True where a query may look; or numbers that are added to
            the products and get no gradient.
        scale: Factor of the products.
        is_causal: S is T, and a query sees no later key; blocks that nobody sees are not computed.
        dropout: Share of the attention weights that are set to 0.

    Returns:
        (B, N, T, D). A query that may look nowhere gets the mean of all values.

    Source:
        Rabe and Staats 2021, arXiv 2112.05682 (attention in blocks, recomputed in the backward).
    """
    return cast(
        "torch.Tensor",
        _BlockAttention.apply(  # type: ignore[no-untyped-call]
            query, key, value, mask, scale, is_causal, dropout
        ),
    )


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        is_causal: bool,
        dropout: float,
    ) -> torch.Tensor:
        heads, length, num_keys = query.shape[:2], query.shape[2], key.shape[2]
        # What is filled up stands behind all, where nobody looks.
        missing = -length % _MULTIPLE if is_causal and mask is None else 0
        query, key, value = (_by_head(one, missing) for one in (query, key, value))
        result = torch.empty_like(query)
        ctx.options, ctx.dropout = (heads, scale, is_causal), dropout
        ctx.missing, ctx.lengths = missing, (length, num_keys, num_keys)
        ctx.seed = draw_seed() if dropout else None
        for block, seen in _blocks(query.shape[1], key.shape[1], is_causal):
            weights = _weights(query, key, mask, block, seen, ctx.options)
            weights = clear_numbers(weights, _mask_of(weights, block, ctx))
            result[:, block] = torch.bmm(weights, value[:, :seen])
        if dropout:
            result.div_(1 - dropout)
        ctx.save_for_backward(query, key, value, mask)
        return result.view(*heads, *result.shape[1:])[:, :, :length]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        query, key, value, mask = ctx.saved_tensors
        heads, scale, is_causal = ctx.options
        gradient = _by_head(gradient, ctx.missing)
        if ctx.dropout:
            gradient = gradient / (1 - ctx.dropout)
        of_query = torch.empty_like(query)
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        for block, seen in _blocks(query.shape[1], key.shape[1], is_causal):
            weights = _weights(query, key, mask, block, seen, ctx.options)
            upstream = gradient[:, block]
            keep = _mask_of(weights, block, ctx)
            of_weights = torch.bmm(upstream, value[:, :seen].transpose(1, 2))
            of_weights = clear_numbers(of_weights, keep)
            of_value[:, :seen].baddbmm_(keep_numbers(weights, keep).transpose(1, 2), upstream)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_query[:, block] = torch.bmm(of_scores, key[:, :seen])
            of_key[:, :seen].baddbmm_(of_scores.transpose(1, 2), query[:, block], alpha=scale)
        parts = zip((of_query.mul_(scale), of_key, of_value), ctx.lengths, strict=True)
        given = (one.view(*heads, *one.shape[1:])[:, :, :length] for one, length in parts)
        return (*given, None, None, None, None)


def _by_head(given: torch.Tensor, missing: int) -> torch.Tensor:
    """Turn (B, N, T, D) into (B * N, T and what is missing, D)."""
    if missing:
        given = functional.pad(given, (0, 0, 0, missing))
    return given.reshape(-1, *given.shape[2:])


def _mask_of(weights: torch.Tensor, block: slice, ctx: Any) -> torch.Tensor | None:  # noqa: ANN401
    """Draw the dropout of one block; the same one forward and backward."""
    seed = None if ctx.seed is None else ctx.seed + block.start
    return read_mask(draw_bits(weights, seed, ctx.dropout), weights)


def _blocks(length: int, num_keys: int, is_causal: bool) -> list[tuple[slice, int]]:
    """List blocks of queries, each with the number of keys that it may see."""
    ends = [min(length, start + _BLOCK) for start in range(0, length, _BLOCK)]
    starts = range(0, length, _BLOCK)
    return [
        (slice(start, end), end if is_causal else num_keys)
        for start, end in zip(starts, ends, strict=True)
    ]


def _weights(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    block: slice,
    seen: int,
    options: tuple[torch.Size, float, bool],
) -> torch.Tensor:
    """Attention weights (B * N, block, seen) of one block of queries."""
    heads, scale, is_causal = options
    query = query[:, block]
    bias = query.new_zeros(query.shape[1], seen)
    if is_causal:
        own, lowest = bias[:, block], torch.finfo(bias.dtype).min
        own.masked_fill_(torch.ones_like(own, dtype=torch.bool).triu_(1), lowest)
    # Added within the product: filling in by a mask takes longer than both.
    scores = torch.baddbmm(bias, query, key[:, :seen].transpose(1, 2), alpha=scale)
    by_head = scores.view(*heads, *scores.shape[1:])
    if mask is not None and mask.dtype == torch.bool:
        lowest = torch.finfo(scores.dtype).min
        by_head.masked_fill_(mask[:, :, block, :seen].logical_not(), lowest)
    elif mask is not None:
        by_head += mask[:, :, block, :seen]
    return scores.softmax(-1)


def _blocks_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,  # noqa: ANN401
) -> tuple[torch.Tensor, None]:
    """Attend by blocks where that is faster, else as transformers' `sdpa` does.

    A model that answers without learning takes the latter, so that its answers are those of any
    copy of it, bit by bit. Rows that stand one behind the other, with `cu_seq_lens_q` (see
    `padding_free.py`), are attended one by one.
    """
    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    borders, bias = options.get("cu_seq_lens_q"), options.get("position_bias")
    is_plain = borders is not None or (
        query.dtype in _HALF
        and query.device.type == "cpu"
        and (query.shape[2] == key.shape[2] or not causal)
        and query.shape[3] == value.shape[3]
        and (attention_mask is None or attention_mask.dtype == torch.bool)
        and (bias is None or not bias.requires_grad)
        # Reentrant checkpointing goes forward without gradients first, and must do the same again.
        and (module.training or torch.is_grad_enabled())
    )
    if not is_plain:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **options
        )
    if bias is not None:  # T5 adds numbers to the products by how far apart two tokens are
        attention_mask = create_position_bias_mask(
            bias, attention_mask, causal and query.shape[2] > 1, query, key
        )
    if borders is not None:  # norms answer float32 also where the products are in 16 bits
        kind = query.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    groups = int(getattr(module, "num_key_value_groups", 1))
    attended = [
        block_attention(
            *row,
            mask,
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            is_causal=causal and attention_mask is None and query.shape[2] > 1,
            dropout=dropout,
        )
        for row, mask in _cut_rows(
            (query, repeat_kv(key, groups), repeat_kv(value, groups)), attention_mask, borders
        )
    ]
    whole = torch.cat(attended, 2) if len(attended) > 1 else attended[0]
    return whole.transpose(1, 2).contiguous(), None


def _cut_rows(
    given: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    borders: torch.Tensor | None,
) -> Iterator[tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor | None]]:
    """Give query, key, value and mask (B, N, T, T) of each row that stands behind another."""
    if borders is None:
        yield given, mask
        return
    ends = borders.tolist()
    # Split at once: of a slice, autograd would fill up the gradient to the size of the whole.
    query, key, value = (torch.split(one, borders.diff().tolist(), 2) for one in given)
    for number, row in enumerate(zip(query, key, value, strict=True)):
        place = slice(ends[number], ends[number + 1])
        yield row, None if mask is None else mask[:, :, place, place]


def _blocks_mask(*args: Any, **options: Any) -> torch.Tensor | None:  # noqa: ANN401
    """Make the mask as for `sdpa`, but none where rows are padded on the right and look back.

    What stands left of the padding never sees it, and what the padding computes is not read.
    """
    mask = options.get("attention_mask")
    is_causal = (
        torch.is_grad_enabled()
        and options.get("allow_is_causal_skip", True)
        and options.get("mask_function", causal_mask_function) is causal_mask_function
        and options.get("q_length") == options.get("kv_length")
        and not options.get("q_offset", 0)
        and options.get("local_size") is None
    )
    if is_causal and mask is not None and _is_padded_right(mask):
        options = options | {"attention_mask": None}
    return sdpa_mask(*args, **options)


def _is_padded_right(mask: torch.Tensor) -> bool:
    """Whether each row of (B, T) is True up to some place and False from there on."""
    return mask.ndim == 2 and bool((mask[:, 1:].long() <= mask[:, :-1].long()).all())
