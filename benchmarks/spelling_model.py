"""A masked language model that learns to write the right character at every place.

Shapes: B sentences, T tokens of the longest.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from spelling_scores import Pair, Scores, cases, corrected, scores
from torch.nn import functional
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

BATCH_SIZE = 16
LEARNING_RATE = 1e-3
LEARNING_RATE_OF_BONUS = 1e-2
FIRST_BONUS = 8.0
"""Nats by which the character that stands there is likelier than the model says, to begin with."""
WEIGHT_OF_WRONG = 8.0
"""How much a character to correct weighs beside one to keep; there are 23 of these to one. F1 is
best where all are flagged whose probability is half that F1 or more (Lipton et al. 2014, "Optimal
Thresholding of Classifiers to Maximize F1 Measure"): 1 to 8 for an F1 of 0.22."""


def encode(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode sentences, a token for each character.

    Returns:
        (B, T) ids with the special tokens at both ends, and (B, T) True where a character stands.
    """
    ids = tokenizer(list(sentences), add_special_tokens=False)["input_ids"]
    assert [len(one) for one in ids] == [len(sentence) for sentence in sentences]
    width = max(map(len, ids)) + 2
    rows = torch.full((len(ids), width), tokenizer.pad_token_id)
    for row, one in zip(rows, ids, strict=True):
        row[: len(one) + 2] = torch.tensor([tokenizer.cls_token_id, *one, tokenizer.sep_token_id])
    places = torch.arange(width)
    lengths = torch.tensor([len(one) for one in ids])[:, None]
    return rows, (places > 0) & (places <= lengths)


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    num_epochs: int,
) -> float:
    """Train a model to write the right character at every place.

    A learnt number is added to the logit of the character that stands there: pretraining rewards
    other ones only, and a small model takes long to learn to copy.

    Returns:
        That number, in nats.
    """
    model.train()
    bonus = torch.nn.Parameter(torch.tensor(FIRST_BONUS))
    groups = [
        {"params": list(model.parameters()), "lr": LEARNING_RATE, "weight_decay": 0.01},
        {"params": [bonus], "lr": LEARNING_RATE_OF_BONUS, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    num_steps = num_epochs * -(-len(pairs) // BATCH_SIZE)
    schedule = get_linear_schedule_with_warmup(optimizer, num_steps // 10, num_steps)
    draw = random.Random(42)
    for _ in range(num_epochs):
        order = draw.sample(pairs, len(pairs))
        for first in range(0, len(order), BATCH_SIZE):
            wrong, right = zip(*order[first : first + BATCH_SIZE], strict=True)
            ids, is_character = encode(tokenizer, wrong)
            labels, _ = encode(tokenizer, right)
            logits = model(input_ids=ids, attention_mask=_seen(ids, tokenizer)).logits
            read = ids[is_character][:, None]
            logits = logits[is_character].scatter_add(-1, read, bonus.expand(len(read), 1))
            losses = functional.cross_entropy(logits, labels[is_character], reduction="none")
            weights = torch.where(ids != labels, WEIGHT_OF_WRONG, 1.0)[is_character]
            ((losses * weights).sum() / weights.sum()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
    return bonus.item()


def _seen(ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    return (ids != tokenizer.pad_token_id).long()


def proposals(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]
) -> list[list[tuple[str, float]]]:
    """Ask for the likeliest character at every place.

    Returns:
        For each character the likeliest one, and how many nats likelier it is than the character
        itself.
    """
    model.eval()
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = torch.tensor(tokenizer.all_special_ids)
    found = []
    for first in range(0, len(sentences), BATCH_SIZE):
        ids, is_character = encode(tokenizer, sentences[first : first + BATCH_SIZE])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=_seen(ids, tokenizer)).logits
        own = logits.gather(-1, ids[..., None])[..., 0]
        logits[..., special] = -torch.inf  # an unknown character is kept or becomes a known one
        best, place = logits.max(-1)
        for row in range(len(ids)):
            counts = is_character[row]
            chosen = place[row][counts].tolist()
            more = (best - own)[row][counts].tolist()
            found.append([(tokens[one], gap) for one, gap in zip(chosen, more, strict=True)])
    return found


def score_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[Pair],
    threshold: float,
) -> Scores:
    """Correct the held-out sentences where a character is likelier by a threshold, and compare."""
    asked = cases(held_out)
    proposed = proposals(model, tokenizer, [wrong for wrong, _ in asked])
    written = [
        corrected(wrong, one, threshold) for (wrong, _), one in zip(asked, proposed, strict=True)
    ]
    return scores(asked, written) | {"threshold": round(threshold, 4)}


def score_untuned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
) -> Scores:
    """Correct without fine-tuning, where a character is likelier by a threshold.

    The threshold is the one of the best F1 of found characters on the training pairs.
    """
    asked = cases(pairs)
    proposed = proposals(model, tokenizer, [wrong for wrong, _ in asked])
    gaps = np.array([gap for one in proposed for _, gap in one])
    is_wrong = np.array(
        [a != b for wrong, right in asked for a, b in zip(wrong, right, strict=True)]
    )
    order = np.argsort(-gaps)
    hits = np.cumsum(is_wrong[order])
    # F1 of flagging the first k characters: 2 hits / (k + all that are wrong).
    best = int(np.argmax(2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])))
    return score_all(model, tokenizer, held_out, float(gaps[order[best]]) - 1e-6)
