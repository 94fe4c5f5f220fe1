"""Held-out prompts answered during a run: greedily, and drawn with the same numbers every time."""

from collections.abc import Sequence
from typing import Literal

import torch

from sft_kit.data.preference.rows import Prompt
from sft_kit.training.ppo.experience import Collector, draw_episodes, greedy, score_episodes
from sft_kit.training.ppo.metrics import completion_metrics
from sft_kit.training.ppo.samples import SampleRow, evaluation_rows
from sft_kit.training.ppo.sampling import Sampling, uniforms
from sft_kit.training.randomness import isolated_randomness

_NO_ROLLOUT = (1 << 31) - 1
"""Stands for the number of a rollout in the draws: no rollout has it."""


def evaluate_prompts(
    collector: Collector, prompts: Sequence[Prompt], num_rollouts: int
) -> tuple[dict[str, float], list[SampleRow]]:
    """Answer and score held-out prompts, without a trace in the random state.

    Args:
        collector: As in training; its moments are left alone.
        prompts: As many as a rollout has episodes are used, the first.
        num_rollouts: Done.

    Returns:
        `eval_score_mean`, `eval_gold_mean`, `eval_stop_fraction` and `eval_completion_length_mean`
        of drawn completions, the same with `eval_greedy_` of the likeliest tokens; and rows for the
        sample table.
    """
    count = min(len(prompts), collector.settings.episodes_per_rollout)
    chances = uniforms(collector.seed, _NO_ROLLOUT, count, collector.sampling.max_new_tokens)
    figures: dict[str, float] = {}
    rows: list[SampleRow] = []
    ways: tuple[tuple[str, Literal["eval greedy", "eval drawn"], Sampling], ...] = (
        ("eval_greedy_", "eval greedy", greedy(collector.sampling)),
        ("eval_", "eval drawn", collector.sampling),
    )
    with isolated_randomness():
        for prefix, why, sampling in ways:
            episodes = draw_episodes(collector, range(count), prompts, chances, sampling)
            scores = score_episodes(collector, episodes, prompts)
            lengths = completion_metrics([episode.completion_ids for episode in episodes])
            stopped = torch.tensor([float(episode.stopped) for episode in episodes])
            figures[f"{prefix}score_mean"] = float(scores.total.mean())
            if scores.gold is not None:
                figures[f"{prefix}gold_mean"] = float(scores.gold.mean())
            figures[f"{prefix}stop_fraction"] = float(stopped.mean())
            name = "completion_length_mean"
            figures[f"{prefix}{name}"] = lengths[name]
            if collector.tokenizer is not None:
                rows += evaluation_rows(
                    num_rollouts,
                    why,
                    episodes,
                    prompts,
                    collector.tokenizer,
                    scores.total,
                    score_parts=scores.parts,
                    gold=scores.gold,
                )
    return figures, rows
