"""Comparisons to padded batches. Shapes: B answers of all groups, T tokens, G groups."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch


def pad_answers(
    rows: Sequence[Mapping[str, Any]],
    *,
    pad_token_id: int,
    side: Literal["left", "right"] = "right",
) -> dict[str, torch.Tensor]:
    """Pad the answers of several prompts to the longest one.

    Args:
        rows: G groups, each with `input_ids` (K lists of token ids, the best answer's first) and
            `margin` in units of the score.
        pad_token_id: Any id; masked positions are never read.
        side: Where the padding goes.

    Returns:
        `input_ids` and `attention_mask`, both (B, T) int64, one group after the other; `labels`,
        (G, 2) float32: K and the margin of each group.
    """
    answers = [ids for row in rows for ids in row["input_ids"]]
    shape = (len(answers), max(map(len, answers)))
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for index, ids in enumerate(answers):
        start = shape[1] - len(ids) if side == "left" else 0
        place = slice(start, start + len(ids))
        input_ids[index, place] = torch.as_tensor(ids, dtype=torch.long)
        attention_mask[index, place] = 1
    labels = torch.tensor(
        [[len(row["input_ids"]), row["margin"]] for row in rows], dtype=torch.float32
    )
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
