"""Spans of tokens that one token stands for: where they lie, and T5's objective.

T tokens of a row, N of them ordinary, K spans, H hidden tokens, D labels.
"""

from dataclasses import replace

import numpy as np

from sft_kit.data.corpus.rows import Corrupted, Flags, Ids, Row, Vocabulary
from sft_kit.data.corruption.draws import generator_of, round_at_random

NUM_PLACEMENTS = 8
"""Draws of all places of a row's spans at once, until none runs into a special token."""


def hide_spans(
    row: Row,
    seed: int,
    *,
    vocabulary: Vocabulary,
    mask_fraction: float = 0.15,
    mean_span_length: float = 3.0,
) -> Corrupted:
    """Hide spans, each behind a sentinel of its own, for the decoder to write.

    The numbers of hidden tokens and of spans are rounded up or down at random, so both are right on
    average. A row with more spans than there are sentinels gets fewer, longer ones. A sentinel that
    a text brings along stands for no span.

    Args:
        row: (T,) tokens; special ones stay, also the end token that closes the row.
        seed: All that chance depends on.
        vocabulary: Its sentinels and its end token.
        mask_fraction: Share of the ordinary tokens that is hidden.
        mean_span_length: Tokens per span.

    Returns:
        `input_ids` (T - H + K,) and `labels` (H + K + 1,), see `apply_sentinels`.

    Source:
        Raffel et al. 2019, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
        Transformer", sections 3.1.4 and 3.3.4. The code published with it begins every row with a
        kept token and ends it with a hidden one; here all places of separate spans are equally
        likely.
    """
    generator = generator_of(seed)
    vocabulary = _without_used_sentinels(vocabulary, row)
    num_tokens = row.is_special.size - int(np.count_nonzero(row.is_special))
    num_hidden = min(round_at_random(num_tokens * mask_fraction, generator), num_tokens)
    wanted = max(round_at_random(num_hidden / mean_span_length, generator), 1)
    most = min(num_hidden, num_tokens - num_hidden + 1, len(vocabulary.sentinels))
    lengths = random_parts(num_hidden, min(wanted, most), generator)
    starts, lengths = place_spans(lengths, row.is_special, generator)
    return apply_sentinels(row.input_ids, starts, lengths, vocabulary)


def _without_used_sentinels(vocabulary: Vocabulary, row: Row) -> Vocabulary:
    used = set(row.input_ids[row.is_special].tolist())
    if used.isdisjoint(vocabulary.sentinels):
        return vocabulary
    free = tuple(sentinel for sentinel in vocabulary.sentinels if sentinel not in used)
    return replace(vocabulary, sentinels=free)


def apply_sentinels(input_ids: Ids, starts: Ids, lengths: Ids, vocabulary: Vocabulary) -> Corrupted:
    """Replace given spans by sentinels.

    Args:
        input_ids: (T,) token ids.
        starts: (K,) first token of each span, ascending.
        lengths: (K,) tokens of each span.
        vocabulary: With at least K sentinels.

    Returns:
        `input_ids`: the text with a sentinel for each span, in order. `labels`: each sentinel, the
        tokens it stands for, and one end token; no further sentinel closes them (the paper's figure
        2 has one, its code and transformers' `run_t5_mlm_flax.py` don't).
    """
    sentinels = np.array(vocabulary.sentinels[: starts.size], np.int64)
    text, _ = replace_spans(input_ids, starts, lengths, sentinels)
    spans, _ = join_spans(input_ids, starts, lengths, sentinels)
    return {"input_ids": text, "labels": np.append(spans, vocabulary.end)}


def random_parts(total: int, num_parts: int, generator: np.random.Generator) -> Ids:
    """Cut a number into parts of at least 1, all ways to do it being equally likely.

    Returns:
        (num_parts,) numbers that add up to `total`.
    """
    if num_parts == 0:
        return np.zeros(0, np.int64)
    edges = np.empty(num_parts + 1, np.int64)
    edges[0], edges[-1] = 0, total
    edges[1:-1] = generator.permutation(total - 1)[: num_parts - 1] + 1
    edges.sort()
    return edges[1:] - edges[:-1]


def fit_lengths(lengths: Ids, num_tokens: int) -> Ids:
    """Cut drawn lengths to what a row holds with one token left between each two spans.

    Args:
        lengths: (K,) tokens per span.
        num_tokens: Ordinary tokens of the row.

    Returns:
        The lengths themselves where they fit, as they nearly always do; else fewer, the last of
        which is cut.
    """
    ends = (lengths + 1).cumsum() - 1
    if not lengths.size or ends[-1] <= num_tokens:
        return lengths
    num_whole = int(np.searchsorted(ends, num_tokens, side="right"))
    room = num_tokens - (int(ends[num_whole - 1]) + 1 if num_whole else 0)
    return np.append(lengths[:num_whole], room) if room > 0 else lengths[:num_whole]


def place_spans(lengths: Ids, is_special: Flags, generator: np.random.Generator) -> tuple[Ids, Ids]:
    """Lay spans over a row: at least one token lies between each two, and none holds a special one.

    All such places are equally likely, unless special tokens stand so close that drawing all places
    at once finds none: then the spans are laid one by one, the longest first, each on any place
    that is left, and cut if it is longer than that.

    Args:
        lengths: (K,) tokens per span, 0 or more; their sum and K - 1 tokens between them fit into
            the row.
        is_special: (T,) True where no span may be.
        generator: Draws the places.

    Returns:
        First token of each span (K,), ascending, and their lengths (K,). The first token of an
        empty span is the one it stands before.
    """
    if not lengths.size:
        return lengths, lengths
    ordinary = (~is_special).nonzero()[0]
    places = np.empty(ordinary.size + 1, np.int64)
    places[:-1], places[-1] = ordinary, ordinary[-1] + 1
    shifts, widths = lengths.cumsum(), np.maximum(lengths, 1)
    num_places = ordinary.size - int(shifts[-1]) + 1
    shifts -= lengths
    for _ in range(NUM_PLACEMENTS):
        starts = generator.permutation(num_places)[: lengths.size]
        starts.sort()
        starts += shifts
        firsts, lasts = places[starts], places[starts + widths - 1]
        if (lasts - firsts < widths).all():
            return firsts, lengths
    return _place_one_by_one(lengths, is_special, generator)


def _place_one_by_one(
    lengths: Ids, is_special: Flags, generator: np.random.Generator
) -> tuple[Ids, Ids]:
    is_taken = is_special.copy()
    placed = []
    for longest in np.sort(lengths)[::-1].tolist():
        before = np.append(0, is_taken.cumsum())
        for length in range(longest, min(longest, 1) - 1, -1):
            width = max(length, 1)
            free = (before[width:] == before[:-width]).nonzero()[0]
            if free.size:
                start = int(generator.choice(free))
                is_taken[max(start - 1, 0) : start + length + 1] = True
                placed.append((start, length))
                break
    ordered = np.array(sorted(placed), np.int64).reshape(-1, 2)
    return ordered[:, 0], ordered[:, 1]


def replace_spans(
    input_ids: Ids, starts: Ids, lengths: Ids, stand_ins: Ids | int
) -> tuple[Ids, Ids]:
    """Put one token in the place of each span; an empty span gets one in front of its start.

    Args:
        input_ids: (T,) token ids.
        starts: (K,) first token of each span, ascending.
        lengths: (K,) tokens of each span.
        stand_ins: (K,) token ids, or one for all.

    Returns:
        The new ids (T - H + K,), and the places of the stand-ins in them (K,).
    """
    is_kept = np.ones(input_ids.size, np.bool_)
    is_kept[_inside(starts, lengths)] = False
    kept = input_ids[is_kept]
    places = starts - lengths.cumsum() + lengths + np.arange(starts.size)
    text = np.empty(kept.size + starts.size, np.int64)
    is_text = np.ones(text.size, np.bool_)
    is_text[places] = False
    text[places] = stand_ins
    text[is_text] = kept
    return text, places


def join_spans(input_ids: Ids, starts: Ids, lengths: Ids, heads: Ids | int) -> tuple[Ids, Ids]:
    """Write spans one after the other, each behind a head.

    Args:
        input_ids: (T,) token ids.
        starts: (K,) first token of each span, in the order in which to write them.
        lengths: (K,) tokens of each span.
        heads: (K,) token ids, or one for all.

    Returns:
        Heads and hidden tokens (H + K,), and the places of the heads in them (K,).
    """
    hidden = input_ids[_inside(starts, lengths)]
    places = (lengths + 1).cumsum() - lengths - 1
    spans = np.empty(hidden.size + starts.size, np.int64)
    is_token = np.ones(spans.size, np.bool_)
    is_token[places] = False
    spans[places] = heads
    spans[is_token] = hidden
    return spans, places


def _inside(starts: Ids, lengths: Ids) -> Ids:
    """Places of the tokens of all spans, one span after the other: (H,)."""
    places: Ids = (starts - lengths.cumsum() + lengths).repeat(lengths)
    places += np.arange(places.size)
    return places
