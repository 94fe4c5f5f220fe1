"""Penalties to be given a negative weight beside a reward model.

reward.functions="{recipes/rewards/penalties.py:repeated: -1.0}"
"""

NGRAM_TOKENS = 3


def repeated(completion_ids: list[list[int]], **_: object) -> list[float]:
    """Measure repetition: the share of three tokens in a row that stand earlier in the completion.

    Args:
        completion_ids: B lists of token ids.

    Returns:
        B numbers in [0, 1].
    """
    shares = []
    for ids in completion_ids:
        ngrams = list(zip(*(ids[start:] for start in range(NGRAM_TOKENS)), strict=False))
        shares.append(1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0)
    return shares


def length(completion_ids: list[list[int]], **_: object) -> list[float]:
    """Measure length, in hundreds of tokens.

    Args:
        completion_ids: B lists of token ids.

    Returns:
        B numbers.
    """
    return [len(ids) / 100 for ids in completion_ids]
