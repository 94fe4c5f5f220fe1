"""Blanks that are filled one token at a time: GLM's objective.

T tokens of a row, K blanks, H tokens in them.
"""

import math
from functools import cache

import numpy as np

from sft_kit.data.corpus.rows import Corrupted, Ids, Row, Vocabulary
from sft_kit.data.corruption.draws import generator_of, round_at_random
from sft_kit.data.corruption.spans import fit_lengths, join_spans, place_spans, replace_spans
from sft_kit.data.rows import IGNORED


def infill(
    row: Row,
    seed: int,
    *,
    vocabulary: Vocabulary,
    mask_fraction: float = 0.15,
    mean_span_length: float = 3.0,
    max_span_length: int | None = None,
) -> Corrupted:
    """Put blanks into a text and the missing spans, in random order, behind it.

    The number of spans follows from the share and is rounded up or down at random, and their
    lengths are drawn from a Poisson distribution without 0; so the share is right on average, and
    the result has T + 2 K tokens, at most `infilled_length` of T.

    Args:
        row: (T,) tokens; special ones are never in a span.
        seed: All that chance depends on.
        vocabulary: Its mask token, and the tokens that begin and end a span.
        mask_fraction: Share of the ordinary tokens in spans, on average.
        mean_span_length: Mean of the Poisson distribution, in tokens; without 0 the mean is
            `mean_span_length / (1 - exp(-mean_span_length))`.
        max_span_length: Longer spans are cut to this many tokens, and there are more of them for
            it, so that the share stays; None cuts none. A model with a `type_vocab_size` of this
            and 2 knows all second positions.

    Returns:
        See `apply_blanks`.

    Source:
        Du et al. 2021, "GLM: General Language Model Pretraining with Autoregressive Blank
        Infilling", section 2.1; the Poisson distribution without 0 is that of its code.
    """
    generator = generator_of(seed)
    num_tokens = row.is_special.size - int(np.count_nonzero(row.is_special))
    mean = _mean_length(mean_span_length, max_span_length)
    num_spans = round_at_random(num_tokens * mask_fraction / mean, generator)
    lengths = _draw_lengths(num_spans, mean_span_length, generator)
    if max_span_length is not None:
        lengths = np.minimum(lengths, max_span_length)
    lengths = fit_lengths(lengths, num_tokens)
    starts, lengths = place_spans(lengths, row.is_special, generator)
    order = generator.permutation(starts.size)
    return apply_blanks(row.input_ids, starts, lengths, order, vocabulary)


def apply_blanks(
    input_ids: Ids, starts: Ids, lengths: Ids, order: Ids, vocabulary: Vocabulary
) -> Corrupted:
    """Replace given spans by mask tokens and write them behind the text in a given order.

    Args:
        input_ids: (T,) token ids.
        starts: (K,) first token of each span, ascending.
        lengths: (K,) tokens of each span, at least 1.
        order: (K,) numbers of the spans in the order in which they are written.
        vocabulary: Its mask, start and end token.

    Returns:
        `input_ids` (T + 2 K,): the text with one mask token for each span, then of each span a
        start token and its tokens. `labels`: of these the next one, the end token for the last.
        `position_ids`: in a span, the place of its mask token. `token_type_ids`, which are GLM's
        second positions: 0 in the text, 1, 2, ... in a span. `prefix_length`: tokens of the text.
    """
    text, places = replace_spans(input_ids, starts, lengths, vocabulary.mask)
    starts, lengths = starts[order], lengths[order]
    spans, firsts = join_spans(input_ids, starts, lengths, vocabulary.start)
    next_tokens = np.append(spans[1:], vocabulary.end)[: spans.size]
    next_tokens[firsts + lengths] = vocabulary.end
    within = np.arange(1, spans.size + 1) - firsts.repeat(lengths + 1)
    blanks = places[order].repeat(lengths + 1)
    return {
        "input_ids": np.concatenate([text, spans]),
        "labels": np.concatenate([np.full(text.size, IGNORED), next_tokens]),
        "position_ids": np.concatenate([np.arange(text.size), blanks]),
        "token_type_ids": np.concatenate([np.zeros(text.size, np.int64), within]),
        "prefix_length": text.size,
    }


def infilled_length(
    num_tokens: int,
    *,
    mask_fraction: float = 0.15,
    mean_span_length: float = 3.0,
    max_span_length: int | None = None,
) -> int:
    """Give the most tokens that a row of `num_tokens` may have with its blanks filled behind it."""
    mean = _mean_length(mean_span_length, max_span_length)
    return num_tokens + 2 * math.ceil(num_tokens * mask_fraction / mean)


def longest_row(
    max_length: int,
    *,
    mask_fraction: float = 0.15,
    mean_span_length: float = 3.0,
    max_span_length: int | None = None,
) -> int:
    """Give the most tokens a row may have so that it never has more than `max_length` when filled.

    >>> longest_row(128), infilled_length(longest_row(128))
    (116, 128)
    """
    num_tokens = max_length
    while num_tokens and max_length < infilled_length(
        num_tokens,
        mask_fraction=mask_fraction,
        mean_span_length=mean_span_length,
        max_span_length=max_span_length,
    ):
        num_tokens -= 1
    return num_tokens


@cache
def _mean_length(mean: float, most: int | None) -> float:
    """Mean of a Poisson distribution without 0 whose larger numbers count as `most`.

    It is the sum, over all numbers from 0 to below `most`, of the chance to draw a larger one.
    """
    not_0 = -math.expm1(-mean)
    if most is None:
        return mean / not_0
    at_most = np.cumsum(
        [math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(1, most)]
    )
    return most - float(at_most.sum()) / not_0


def _draw_lengths(num_spans: int, mean: float, generator: np.random.Generator) -> Ids:
    """Draw from a Poisson distribution without 0: (K,).

    The first event of a Poisson process that has one before the time `mean` comes at `first`, the
    others after it.
    """
    first = -np.log1p(generator.random(num_spans) * math.expm1(-mean))
    return 1 + generator.poisson(np.maximum(mean - first, 0.0))
