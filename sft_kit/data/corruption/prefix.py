"""Left to right, alone or behind a prefix that is seen from both sides: UniLM's objectives.

T tokens of a row.
"""

import numpy as np

from sft_kit.data.corpus.rows import Corrupted, Flags, Ids, Row, Vocabulary
from sft_kit.data.corruption.draws import generator_of
from sft_kit.data.rows import IGNORED

NUM_ADDED_TOKENS = 1
"""Tokens that `prefix_lm` puts into a row: make rows this much shorter than the context."""


def left_to_right(row: Row, seed: int, *, vocabulary: Vocabulary) -> Corrupted:
    """Predict every next token; nothing is hidden and nothing left to chance.

    Args:
        row: (T,) tokens.
        seed: Not used; all objectives are called alike.
        vocabulary: Not used either.

    Returns:
        `input_ids` (T,), `labels` (T,): the next token, nothing for the last; `prefix_length` 0.

    Source:
        Dong et al. 2019, "Unified Language Model Pre-training", section 2.3, unidirectional.
    """
    del seed, vocabulary
    labels = np.append(row.input_ids[1:], IGNORED)
    return {"input_ids": row.input_ids, "labels": labels, "prefix_length": 0}


def prefix_lm(
    row: Row, seed: int, *, vocabulary: Vocabulary, mask_fraction: float = 0.15
) -> Corrupted:
    """Cut a row in two: a prefix with hidden tokens, and a rest that is written left to right.

    The cut is equally likely before each ordinary token but the first, so that both parts have one.

    Args:
        row: (T,) tokens.
        seed: All that chance depends on.
        vocabulary: Its mask token, and its end token, which closes the prefix.
        mask_fraction: Share of the prefix' ordinary tokens that mask tokens hide.

    Returns:
        See `apply_prefix`: one token more than the row has.

    Source:
        Dong et al. 2019, "Unified Language Model Pre-training", sections 2.3 and 2.4,
        sequence-to-sequence, with the rest learnt token by token instead of masked.
    """
    generator = generator_of(seed)
    ordinary = np.flatnonzero(~row.is_special)
    cut = 1
    if ordinary.size:
        cut = int(ordinary[generator.integers(1, ordinary.size) if ordinary.size > 1 else 0])
    is_hidden = (generator.random(cut) < mask_fraction) & ~row.is_special[:cut]
    return apply_prefix(row.input_ids, cut, is_hidden, vocabulary)


def apply_prefix(input_ids: Ids, cut: int, is_hidden: Flags, vocabulary: Vocabulary) -> Corrupted:
    """Close the prefix at a given place and hide given tokens of it.

    Args:
        input_ids: (T,) token ids.
        cut: Tokens before the cut.
        is_hidden: (cut,) True where a mask token stands for a token of the prefix.
        vocabulary: Its mask and end token.

    Returns:
        `input_ids` (T + 1,): prefix, end token, rest. `labels`: what is hidden, at its place; from
        the end token on the next token, nothing for the last. `prefix_length`: `cut` + 1.
    """
    prefix, rest = input_ids[:cut], input_ids[cut:]
    seen = np.where(is_hidden, vocabulary.mask, prefix)
    learnt = np.where(is_hidden, prefix, IGNORED)
    return {
        "input_ids": np.concatenate([seen, [vocabulary.end], rest]),
        "labels": np.concatenate([learnt, rest, [IGNORED]]),
        "prefix_length": cut + 1,
    }
