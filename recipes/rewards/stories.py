"""Reward functions for stories, to be named in the YAML of a PPO recipe.

    reward.functions="{recipes/rewards/stories.py:happy: 1.0}"

A reward function gets the texts of a whole rollout by keyword and answers one number for each.
"""

import re

HAPPY = frozenset(
    {"best", "friend", "friends", "fun", "glad", "happy", "hug", "hugged", "joy", "kind", "laugh"}
    | {"laughed", "love", "loved", "nice", "played", "proud", "smile", "smiled", "thank"}
    | {"thanked", "together"}
)
SAD = frozenset(
    {"afraid", "alone", "angry", "bad", "broke", "broken", "cried", "cry", "fell", "hurt", "lost"}
    | {"mad", "mean", "pain", "sad", "scared", "sorry", "worried"}
)

FULL_LENGTH = 60


def happy(completions: list[str], **_: object) -> list[float]:
    """Score a story by its words: happy ones count for it, sad ones twice against it.

    A word counts once, however often it is written, so that repeating it does not help; and a story
    of less than 60 words gets its share of the score only, or the happiest one would be a single
    short sentence.

    Args:
        completions: B stories.

    Returns:
        B numbers in [-1, 1]; 0 for a story with no such word.
    """
    scores = []
    for text in completions:
        words = re.findall(r"[a-z]+", text.lower())
        num_happy, num_sad = len(HAPPY.intersection(words)), len(SAD.intersection(words))
        balance = (num_happy - 2 * num_sad) / max(1, num_happy + 2 * num_sad)
        scores.append(balance * min(1.0, len(words) / FULL_LENGTH))
    return scores
