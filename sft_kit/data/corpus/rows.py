"""The shapes of a row of tokens before and after it is corrupted. T tokens of a row."""

from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one example, before anything is hidden.

    Attributes:
        input_ids: (T,) token ids, special tokens included.
        is_special: (T,) True where a special token stands, which is never hidden or changed.
        words: (T,) number of the word each token belongs to; tokens of one word stand together.
        sentences: (T,) number of the sentence each token belongs to, from 0.
        documents: (T,) number of the document each token belongs to, from 1.
        token_type_ids: (T,) 0 in the first part and 1 in the second; None where there is one part.
        next_sentence_label: 0 the second part follows the first, 1 it does not, -100 not asked.
    """

    input_ids: Ids
    is_special: Flags
    words: Ids
    sentences: Ids
    documents: Ids
    token_type_ids: Ids | None = None
    next_sentence_label: int | None = None


class Corrupted(TypedDict, total=False):
    """What the model sees of a row, and what it learns.

    `input_ids` (T,); `labels`: what each position predicts, -100 where nothing is learnt, (T,) for
    one Transformer, (D,) for a decoder. The rest only where an objective needs it: `documents` (T,)
    that can't see each other, from 1; `prefix_length`, tokens at the beginning that see each other
    both ways while the rest looks left only; `position_ids` (T,); `token_type_ids` (T,);
    `next_sentence_label`.
    """

    input_ids: Ids
    labels: Ids
    documents: Ids
    prefix_length: int
    position_ids: Ids
    token_type_ids: Ids
    next_sentence_label: int


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token ids that corruption needs; -1 where a tokenizer has no such token.

    Attributes:
        size: Number of tokens.
        pad: Padding.
        mask: Stands for what is hidden.
        start: Begins a text: the tokenizer's `cls_token`, else `bos_token`.
        end: Ends a text: the tokenizer's `sep_token`, else `eos_token`; the other way round where a
            decoder writes it.
        sentinels: `<extra_id_0>`, `<extra_id_1>`, ... in this order.
        ordinary: Ids of all tokens that are not special, ascending.
    """

    size: int
    pad: int
    mask: int
    start: int
    end: int
    sentinels: tuple[int, ...]
    ordinary: Ids
