"""Corrupted rows to padded batches. Shapes: B rows, T tokens of the longest, D of its labels."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from sft_kit.data.corpus.rows import Corrupted, Ids
from sft_kit.data.rows import IGNORED

Numbers = Literal["input_ids", "labels", "documents", "position_ids", "token_type_ids"]


def pad_corrupted(
    rows: Sequence[Corrupted],
    *,
    pad_token_id: int,
    decoder_start_token_id: int | None = None,
    token_multiple: int | None = None,
    mark_labels: bool = False,
) -> dict[str, torch.Tensor]:
    """Pad rows on the right to the longest one.

    Padding is known by its place (the attention mask), never by its id. A decoder beside an encoder
    needs no mask: it looks left, and its padding is on the right.

    Args:
        rows: All of one objective.
        pad_token_id: Any id; masked positions are never read.
        decoder_start_token_id: First token a decoder is given; null where there is no decoder, or
            where the model shifts the labels itself.
        token_multiple: Round T and D up to a multiple of this.
        mark_labels: Say where labels are, for a model that answers there and nowhere else.

    Returns:
        `input_ids` and `attention_mask`, (B, T) int64, and `labels`, (B, T) or (B, D) int64, -100
        in the padding. Where rows have them, `position_ids`, `token_type_ids` and `documents`, (B,
        T) int64, 0 in the padding, `prefix_lengths` and `next_sentence_label`, (B,) int64. For a
        decoder `decoder_input_ids` (B, D) int64; if marked `label_mask`, of the shape of `labels`,
        bool.
    """
    fills: dict[Numbers, int] = {
        "input_ids": pad_token_id, "labels": IGNORED, "documents": 0, "position_ids": 0,
        "token_type_ids": 0,
    }  # fmt: skip
    batch: dict[str, torch.Tensor] = {}
    for name, fill in fills.items():
        if name in rows[0]:
            batch[name] = _pad([row[name] for row in rows], fill, token_multiple)
    lengths = torch.tensor([row["input_ids"].size for row in rows])
    places = torch.arange(batch["input_ids"].shape[1])
    batch["attention_mask"] = (places < lengths[:, None]).long()
    if "prefix_length" in rows[0]:
        batch["prefix_lengths"] = torch.tensor([row["prefix_length"] for row in rows])
    if "next_sentence_label" in rows[0]:
        batch["next_sentence_label"] = torch.tensor([row["next_sentence_label"] for row in rows])
    if decoder_start_token_id is not None:
        batch["decoder_input_ids"] = shift_right(
            batch["labels"], pad_token_id, decoder_start_token_id
        )
    if mark_labels:
        batch["label_mask"] = batch["labels"] != IGNORED
    return batch


def shift_right(
    labels: torch.Tensor, pad_token_id: int, decoder_start_token_id: int
) -> torch.Tensor:
    """Give the decoder the token before each label.

    Args:
        labels: (B, D) label ids; -100 becomes padding.
        pad_token_id: The padding.
        decoder_start_token_id: What stands before the first label.

    Returns:
        (B, D) token ids.
    """
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = decoder_start_token_id
    return shifted.masked_fill(shifted == IGNORED, pad_token_id)


def _pad(rows: Sequence[Ids], fill: int, token_multiple: int | None) -> torch.Tensor:
    width = max(row.size for row in rows)
    if token_multiple is not None:
        width = -(-width // token_multiple) * token_multiple
    padded = np.full((len(rows), width), fill, np.int64)
    for index, row in enumerate(rows):
        padded[index, : row.size] = row
    return torch.from_numpy(padded)
