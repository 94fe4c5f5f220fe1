"""What a report on a reward model shows of its data: the wrongest pairs, the extreme prompts.

Shapes: G groups of answers to one prompt, K answers of a group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sft_kit.data.preference.rows import PreferenceExample
from sft_kit.evaluation.preference_scores import Pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_ERRORS = 20
"""Wrong pairs that a report shows."""

MAX_PROMPTS = 10
"""Prompts that a report shows at either end."""


@dataclass(frozen=True, slots=True)
class WrongPair:
    """A pair whose worse answer has the higher score."""

    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float
    where: str


@dataclass(frozen=True, slots=True)
class PromptScore:
    """Mean score of the answers to one prompt."""

    prompt: str
    score: float
    where: str


def extreme_prompts(
    means: np.ndarray, examples: Sequence[PreferenceExample], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[tuple[PromptScore, ...], tuple[PromptScore, ...]]:
    """List the groups with the highest mean scores, and those with the lowest.

    Args:
        means: (G,) mean score of each group's answers.
        examples: The G groups.
        tokenizer: Decodes what has no turns.
    """
    order = np.argsort(-means, kind="stable").tolist()
    highest, lowest = order[:MAX_PROMPTS], order[::-1][:MAX_PROMPTS]

    def told(index: int) -> PromptScore:
        where = str(examples[index].comparison.where)
        return PromptScore(prompt_text(examples[index], tokenizer), float(means[index]), where)

    return tuple(map(told, highest)), tuple(map(told, lowest))


def wrongest_pairs(
    pairs: Pairs,
    scores: Sequence[np.ndarray],
    examples: Sequence[PreferenceExample],
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[WrongPair, ...]:
    """List the wrong pairs, those with the largest difference first.

    Args:
        pairs: Of all groups.
        scores: G arrays of K scores.
        examples: The G groups.
        tokenizer: Decodes the answers.
    """
    wrong = np.flatnonzero(pairs.differences < 0)
    wrongest = wrong[np.argsort(pairs.differences[wrong], kind="stable")][:MAX_ERRORS]
    found = []
    for pair in wrongest.tolist():
        group, better, worse = (int(row[pair]) for row in (pairs.group, pairs.better, pairs.worse))
        example = examples[group]
        answers = answer_texts(example, tokenizer)
        found.append(
            WrongPair(
                prompt_text(example, tokenizer),
                answers[better],
                answers[worse],
                float(scores[group][better]),
                float(scores[group][worse]),
                str(example.comparison.where),
            )
        )
    return tuple(found)


def prompt_text(example: PreferenceExample, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Write a prompt's turns below each other, each with its role.

    Of plain texts: what they have in common.
    """
    turns = example.comparison.prompt
    if turns:
        return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    ids = list(example.input_ids[0][: example.num_prompt_tokens])
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def answer_texts(example: PreferenceExample, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Write the answers as they were scored; of a long list some may have been dropped."""
    return [
        str(tokenizer.decode(list(ids[example.num_prompt_tokens :]), skip_special_tokens=True))
        for ids in example.input_ids
    ]
