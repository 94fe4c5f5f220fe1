"""Examples to padded batches. Shapes: B batch, T tokens of the longest row."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch.nn import functional

from sft_kit.data.rows import IGNORED


def pad_batch(
    rows: Sequence[Mapping[str, Sequence[int]]],
    *,
    pad_token_id: int,
    side: Literal["left", "right"] = "right",
    next_tokens: bool = False,
) -> dict[str, torch.Tensor]:
    """Pad rows to the longest one.

    Padding is known by position (the attention mask), never by id, so a padding token that is also
    the stop token keeps its label inside the row.

    Args:
        rows: Each with `input_ids` and `labels` of equal length.
        pad_token_id: Any id; masked positions are never read.
        side: Where the padding goes. Positions are counted from each row's first real token.
        next_tokens: Give the labels a second time, as `next_tokens`: each where it is predicted,
            one place earlier.

    Returns:
        `input_ids`, `attention_mask`, `position_ids` and `labels`, each (B, T) int64.
    """
    shape = (len(rows), max(len(row["input_ids"]) for row in rows))
    batch = {
        "input_ids": torch.full(shape, pad_token_id, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "position_ids": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED, dtype=torch.long),
    }
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        place = slice(shape[1] - length, shape[1]) if side == "left" else slice(0, length)
        batch["input_ids"][index, place] = torch.as_tensor(row["input_ids"], dtype=torch.long)
        batch["attention_mask"][index, place] = 1
        batch["position_ids"][index, place] = torch.arange(length)
        batch["labels"][index, place] = torch.as_tensor(row["labels"], dtype=torch.long)
    if next_tokens:
        batch["next_tokens"] = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    return batch


def pad_labelled(
    rows: Sequence[Mapping[str, Any]],
    *,
    pad_token_id: int,
    side: Literal["left", "right"] = "right",
) -> dict[str, torch.Tensor]:
    """Pad labelled texts to the longest one.

    Encoders take the first position for the text's, so theirs are padded on the right, whatever the
    tokenizer prefers; decoders may have it either way.

    Args:
        rows: Each with `input_ids`, `labels` (a class id, or K numbers) and perhaps
            `token_type_ids`.
        pad_token_id: Any id; masked positions are never read.
        side: Where the padding goes.

    Returns:
        `input_ids`, `attention_mask` and perhaps `token_type_ids`, each (B, T) int64; `labels`, (B)
        int64 or (B, K) float32.
    """
    shape = (len(rows), max(len(row["input_ids"]) for row in rows))
    batch = {
        "input_ids": torch.full(shape, pad_token_id, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
    }
    if "token_type_ids" in rows[0]:
        batch["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        place = slice(shape[1] - length, shape[1]) if side == "left" else slice(0, length)
        batch["attention_mask"][index, place] = 1
        for name in batch.keys() - {"attention_mask"}:
            batch[name][index, place] = torch.as_tensor(row[name], dtype=torch.long)
    batch["labels"] = torch.as_tensor([row["labels"] for row in rows])
    return batch
