"""What compared answers teach beside what is meant: lengths, and whether length decides."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from sft_kit.data.inspection import nearest_rank
from sft_kit.data.preference.rows import PreferenceExample


@dataclass(frozen=True, slots=True)
class PreferenceFigures:
    """What is known about the examples of one split.

    Attributes:
        num_comparisons: Comparisons, of two or more answers each.
        num_pairs: Pairs of a better and a worse answer.
        num_prompts: Different prompts, by token ids.
        group_sizes: K -> number of comparisons with K answers.
        sources: File -> number of comparisons.
        prompt_lengths: Tokens of each comparison's prompt.
        better_lengths: Tokens of each pair's better answer, without the prompt.
        worse_lengths: Tokens of each pair's worse answer, without the prompt.
    """

    num_comparisons: int
    num_pairs: int
    num_prompts: int
    group_sizes: dict[int, int]
    sources: dict[str, int]
    prompt_lengths: tuple[int, ...]
    better_lengths: tuple[int, ...]
    worse_lengths: tuple[int, ...]

    @property
    def longer_wins_fraction(self) -> float:
        """Share of pairs whose better answer has more tokens; 0 without pairs."""
        return self._fraction(sum(map(int.__gt__, self.better_lengths, self.worse_lengths)))

    @property
    def shorter_wins_fraction(self) -> float:
        """Share of pairs whose better answer has fewer tokens; 0 without pairs."""
        return self._fraction(sum(map(int.__lt__, self.better_lengths, self.worse_lengths)))

    def _fraction(self, count: int) -> float:
        return count / self.num_pairs if self.num_pairs else 0.0


def inspect_preferences(examples: Sequence[PreferenceExample]) -> PreferenceFigures:
    """Count what the comparisons of a split are made of."""
    pairs = [
        (len(better) - example.num_prompt_tokens, len(worse) - example.num_prompt_tokens)
        for example in examples
        for better, worse in combinations(example.input_ids, 2)
    ]
    sizes = Counter(len(example.input_ids) for example in examples)
    prompts = {example.input_ids[0][: example.num_prompt_tokens] for example in examples}
    return PreferenceFigures(
        num_comparisons=len(examples),
        num_pairs=len(pairs),
        num_prompts=len(prompts),
        group_sizes=dict(sorted(sizes.items())),
        sources=dict(Counter(example.comparison.source for example in examples)),
        prompt_lengths=tuple(example.num_prompt_tokens for example in examples),
        better_lengths=tuple(better for better, _ in pairs),
        worse_lengths=tuple(worse for _, worse in pairs),
    )


def spread(lengths: Sequence[int]) -> tuple[int, int, int, int]:
    """Tokens of the shortest, the median, the 90 % and the longest one; 0 without any."""
    shortest, median, p90, longest = (nearest_rank(lengths, at) for at in (0.0, 0.5, 0.9, 1.0))
    return shortest, median, p90, longest


def choose_comparisons(
    examples: Sequence[PreferenceExample], count: int, seed: int
) -> list[PreferenceExample]:
    """Draw comparisons to look at, in the order of the file."""
    chosen = random.Random(seed).sample(range(len(examples)), min(count, len(examples)))
    return [examples[index] for index in sorted(chosen)]
