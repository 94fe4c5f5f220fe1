"""Texts with shuffled sentences, blanks and gaps, to be written anew: BART's objective.

T tokens of a row, K blanks.
"""

import numpy as np

from sft_kit.data.corpus.rows import Corrupted, Ids, Row, Vocabulary
from sft_kit.data.corruption.draws import generator_of, round_at_random
from sft_kit.data.corruption.spans import fit_lengths, place_spans, replace_spans


def denoise(
    row: Row,
    seed: int,
    *,
    vocabulary: Vocabulary,
    infill_fraction: float = 0.3,
    mean_span_length: float = 3.0,
    permute_sentences: bool = True,
    delete_fraction: float = 0.0,
) -> Corrupted:
    """Shuffle the sentences, then put blanks for spans, then leave out tokens.

    The lengths of the spans come from a Poisson distribution, and one mask token stands for each:
    the model has to find out how many tokens are missing, maybe none. Special tokens stay where
    they are: between two of them, sentences trade places among themselves only.

    Args:
        row: (T,) tokens with the numbers of their sentences.
        seed: All that chance depends on.
        vocabulary: Its mask token.
        infill_fraction: Share of the ordinary tokens in spans, on average.
        mean_span_length: Mean of the Poisson distribution, in tokens.
        permute_sentences: Whether to shuffle.
        delete_fraction: Share of the ordinary tokens that is left out beside those.

    Returns:
        `input_ids`, and as `labels` the row as it was (T,).

    Source:
        Lewis et al. 2019, "BART: Denoising Sequence-to-Sequence Pre-training", section 2.2.
    """
    generator = generator_of(seed)
    input_ids = shuffle_sentences(row, generator) if permute_sentences else row.input_ids
    num_tokens = row.is_special.size - int(np.count_nonzero(row.is_special))
    num_spans = round_at_random(num_tokens * infill_fraction / mean_span_length, generator)
    lengths = fit_lengths(generator.poisson(mean_span_length, num_spans), num_tokens)
    starts, lengths = place_spans(lengths, row.is_special, generator)
    text, _ = replace_spans(input_ids, starts, lengths, vocabulary.mask)
    if delete_fraction:
        stays, _ = replace_spans(row.is_special.astype(np.int64), starts, lengths, 1)
        # Of what the blanks have left, so that it is this share of all tokens.
        share = delete_fraction / (1 - infill_fraction)
        text = text[(generator.random(text.size) >= share) | (stays == 1)]
    return {"input_ids": text, "labels": row.input_ids}


def shuffle_sentences(row: Row, generator: np.random.Generator) -> Ids:
    """Put the sentences between two special tokens into a random order.

    Returns:
        (T,) token ids; special tokens have not moved.
    """
    ordinary = (~row.is_special).nonzero()[0]
    sentences = row.sentences[ordinary]
    is_first = np.ones(ordinary.size, np.bool_)
    is_first[1:] = (sentences[1:] != sentences[:-1]) | (ordinary[1:] - ordinary[:-1] > 1)
    firsts = is_first.nonzero()[0]
    # A sentence's key is the number of special tokens before it and a random fraction.
    keys = row.is_special.cumsum()[ordinary[firsts]] + generator.random(firsts.size)
    lengths = np.diff(firsts, append=ordinary.size)
    order = keys.repeat(lengths).argsort(kind="stable")
    shuffled = row.input_ids.copy()
    shuffled[ordinary] = row.input_ids[ordinary[order]]
    return shuffled
