"""A forward without padding: the rows of a batch one behind the other, each seeing itself only.

Shapes: B rows, T tokens of the longest one, N tokens of all of them and a few, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import PeftModel
from torch.nn import functional
from transformers import PreTrainedModel

from sft_kit.models.block_attention import BLOCKS

_FLASH = ("flash_attention_2", "flash_attention_3")
_CLOSE = 0.02
"""Share of the largest logit by which rounding in bfloat16 may move one."""
_CHUNKS = "attention_chunk_size"
_ROW, _OTHER, _CHANGED = [1, 2, 3], [4, 5], [6, 2, 3]
_SIZES_PER_OCTAVE = 16
"""Numbers of tokens that batches are filled up to, from one power of two to the next.

oneDNN makes kernels for each number of rows of a matrix product and keeps them for good: 90 numbers
took 0.9 GB in a model of 1 MB (torch 2.13, bfloat16). So few cost 2 % more tokens.
"""
_LEAST_STEP = 8
_MARK = "sft_kit_leaves_out_padding"
_WORTH = 0.1
"""Share of padding from which on it is left out: below, attention row by row costs more."""


def leave_out_padding(
    inputs: Mapping[str, Any], attention: str, *, ignored: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Put the rows of a padded batch one behind the other, and a short one of zeros behind them.

    Args:
        inputs: Of a forward: `attention_mask` (B, T), 1 where a token stands, `position_ids` of the
            same shape, and whatever else; what has that shape loses its padding.
        ignored: What to fill up with, by name, where zeros would be read.
        attention: Kernel of the model. `blocks` takes the borders of the rows as they are told, the
            flash kernels want to be given no mask besides.

    Returns:
        The inputs with (1, N) instead of (B, T), and the borders as `cu_seq_lens_q` and
        `cu_seq_lens_k`, int32, `max_length_q` and `max_length_k`, as transformers calls them. N has
        few different values: what is missing to the next one is a row of its own, at the end.
    """
    mask = inputs["attention_mask"]
    stands = mask.bool()
    lengths = stands.sum(1)
    missing = _missing(int(lengths.sum()))
    flat = dict(inputs)
    for name, one in inputs.items():
        if isinstance(one, torch.Tensor) and one.shape == mask.shape:
            value = (ignored or {}).get(name, 0)
            flat[name] = functional.pad(one[stands], (0, missing), value=value)[None]
    if attention in _FLASH:
        flat["attention_mask"] = None
    else:
        flat["attention_mask"] = torch.ones_like(flat["attention_mask"])
    if missing:
        lengths = functional.pad(lengths, (0, 1), value=missing)
    return flat | _borders(lengths)


def size_without_padding(mask: torch.Tensor) -> int:
    """Tokens that are computed for an attention mask (B, T): its own, filled up to a few sizes."""
    count = int(mask.ne(0).sum())
    return count + _missing(count)


def _missing(count: int) -> int:
    """Tokens to the next of the few sizes."""
    step = max(_LEAST_STEP, (1 << count.bit_length() - 1) // _SIZES_PER_OCTAVE)
    return -count % step


def _borders(lengths: torch.Tensor) -> dict[str, Any]:
    borders = functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    names = {"cu_seq_lens": borders, "max_length": longest}
    return {f"{name}_{side}": one for name, one in names.items() for side in ("q", "k")}


def leaves_out_padding(model: object) -> bool:
    """Whether the training of a model leaves out padding, where there is much of it."""
    return bool(getattr(model, _MARK, False))


def mark_padding_free(model: object, *, is_padding_free: bool) -> None:
    """Note on a model what `leaves_out_padding` answers."""
    setattr(model, _MARK, is_padding_free)


def attention_of(model: PreTrainedModel | PeftModel) -> str:
    """Name of a model's attention kernel, as transformers calls it."""
    return str(getattr(cast("Any", model).config, "_attn_implementation", ""))


def has_much_padding(mask: torch.Tensor) -> bool:
    """Whether leaving out the padding of an attention mask (B, T) saves more than it costs."""
    return float(mask.ne(0).float().mean()) < 1 - _WORTH


def padding_note(*, is_left_out: bool) -> str:
    """Say what training does with padding, for the one who runs it."""
    padding = "left out where there is much" if is_left_out else "computed, and not read"
    return f"padding: {padding} (model.attention, model.fused)"


def can_leave_out_padding(model: PreTrainedModel | PeftModel) -> bool:
    """Try whether the rows of such a forward see nothing of each other, and know their positions.

    Not every model hands the borders on to its kernel, and some look back by other means. The
    answers of a row must stay the same, bit by bit, when the row before it changes, and must be
    close when the rows change places. What is cut into chunks by the place in the batch, not in the
    row, shows in rows longer than a chunk only: such models keep their padding.
    """
    config = cast("Any", model).config.get_text_config()
    if attention_of(model) not in (BLOCKS, *_FLASH) or getattr(config, _CHUNKS, None):
        return False
    was_training = model.training
    model.eval()
    try:
        (row, other), (_, same), (second, first) = (
            _answers(model, rows) for rows in ([_ROW, _OTHER], [_CHANGED, _OTHER], [_OTHER, _ROW])
        )
    except (TypeError, RuntimeError, ValueError):  # it does not take the borders, or rows like this
        return False
    finally:
        model.train(was_training)
    is_seen_alone = torch.equal(other, same)
    return is_seen_alone and _are_close(row, first) and _are_close(other, second)


def _answers(model: PreTrainedModel | PeftModel, rows: list[list[int]]) -> tuple[torch.Tensor, ...]:
    """Logits (T, V) of each row; of a backbone, which makes none, its hidden states."""
    lengths = [len(row) for row in rows]
    tokens = torch.zeros(len(rows), max(lengths), dtype=torch.long, device=model.device)
    mask = torch.zeros_like(tokens)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    positions = torch.arange(max(lengths), device=model.device).expand_as(tokens)
    inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
    with torch.enable_grad():  # without it the kernel would be the one for answering
        flat = leave_out_padding(inputs, attention_of(model))
        answer = cast("Any", model)(**flat, use_cache=False)
        logits = (answer.logits if "logits" in answer else answer.last_hidden_state)[0]
    there = logits[: sum(lengths)].detach().float()
    return cast("tuple[torch.Tensor, ...]", there.split(lengths))


def _are_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= _CLOSE * one.abs().max())
