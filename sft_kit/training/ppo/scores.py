"""Completions to scores: a reward model, Python functions, or a weighted sum of both.

Shapes: B completions, C tokens of the longest one.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from sft_kit.data.preference.rows import Prompt
from sft_kit.objectives.advantages import RunningMoments
from sft_kit.settings import ScoreSettings
from sft_kit.training.ppo.processes import from_main_process
from sft_kit.training.ppo.reward_functions import (
    RewardFunction,
    call_reward_function,
    check_signature,
    load_reward_function,
)
from sft_kit.training.ppo.rollout import Episode

MODEL = "reward model"
TextScorer = Callable[[Sequence[Prompt], Sequence[str]], torch.Tensor]
"""A reward model on a base of its own: prompts and completions as text to scores (B,)."""


@dataclass(slots=True)
class Scorer:
    """Everything that scores.

    Attributes:
        settings: The `reward` section.
        functions: Name -> function, as in the settings.
        gold: The function that is only watched.
        model: A reward model on a base of its own; one on the shared base is a role.
        scale: Mean and standard deviation of the reward model's scores on its own data.
        moments: Of all scores so far, for the running scale.
    """

    settings: ScoreSettings
    functions: Mapping[str, RewardFunction] = field(default_factory=dict)
    gold: RewardFunction | None = None
    model: TextScorer | None = None
    scale: tuple[float, float] = (0.0, 1.0)
    moments: RunningMoments = field(default_factory=RunningMoments)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of B completions as the sources gave them.

    Attributes:
        parts: Source -> (B,), before its weight.
        total: (B,) weighted sum.
        at_end: (B,) the part of it that is given at a completion's end.
        per_token: (B, C) weighted sum of what is given per token, or None.
        gold: (B,) or None.
    """

    parts: dict[str, torch.Tensor]
    total: torch.Tensor
    at_end: torch.Tensor
    per_token: torch.Tensor | None
    gold: torch.Tensor | None


def load_scorer(
    settings: ScoreSettings,
    columns: Collection[str],
    *,
    model: TextScorer | None = None,
    scale: tuple[float, float] = (0.0, 1.0),
) -> Scorer:
    """Load the functions that a run names, and check that they can be called.

    Args:
        settings: The `reward` section.
        columns: Names of the data's other columns.
        model: A reward model on a base of its own.
        scale: Mean and standard deviation of the reward model's scores.

    Raises:
        ConfigError: A function is not there, or asks for what it can't get.
        TrainingError: Its module fails while it is imported.
    """
    functions = {name: load_reward_function(name) for name in settings.functions}
    for name, function in functions.items():
        check_signature(function, columns, name=name)
    gold = None
    if settings.gold is not None:
        gold = load_reward_function(settings.gold, key="reward.gold")
        check_signature(gold, columns, name=settings.gold, key="reward.gold")
    return Scorer(settings, functions, gold, model, scale)


def score_completions(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    episodes: Sequence[Episode],
    texts: Sequence[str],
    *,
    from_role: torch.Tensor | None = None,
) -> Scores:
    """Ask every source. Functions run in the main process, on the whole rollout.

    Args:
        scorer: What scores.
        prompts: B, those that the episodes answer.
        episodes: B.
        texts: B completions as text.
        from_role: (B,) of the reward model on the shared base.
    """
    parts: dict[str, torch.Tensor] = {}
    if from_role is not None:
        parts[MODEL] = from_role
    found, dense, gold = from_main_process(lambda: _ask(scorer, prompts, episodes, texts))
    parts |= found
    weights = {**scorer.settings.functions, MODEL: scorer.settings.model_weight}
    total = torch.zeros(len(episodes))
    at_end = torch.zeros(len(episodes))
    for name, part in parts.items():
        total += weights[name] * part
        if name not in dense:
            at_end += weights[name] * part
    per_token = None
    if dense:
        width = max(len(episode.completion_ids) for episode in episodes)
        per_token = torch.zeros(len(episodes), width)
        for name, rows in dense.items():
            for row, numbers in enumerate(rows):
                per_token[row, : len(numbers)] += weights[name] * torch.tensor(numbers)
    return Scores(parts, total, at_end, per_token, gold)


def _ask(
    scorer: Scorer, prompts: Sequence[Prompt], episodes: Sequence[Episode], texts: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, list[list[float]]], torch.Tensor | None]:
    names = sorted({name for prompt in prompts for name in prompt.columns})
    given: dict[str, list[object]] = {
        name: [prompt.columns.get(name) for prompt in prompts] for name in names
    }
    parts: dict[str, torch.Tensor] = {}
    dense: dict[str, list[list[float]]] = {}
    if scorer.model is not None:
        parts[MODEL] = scorer.model(prompts, texts)

    def call(name: str, function: RewardFunction) -> torch.Tensor:
        answer = call_reward_function(
            name,
            function,
            prompts=[prompt.text for prompt in prompts],
            completions=list(texts),
            completion_ids=[list(episode.completion_ids) for episode in episodes],
            columns=given,
        )
        if answer.token_scores is not None:
            dense[name] = answer.token_scores
        return answer.scores

    for name, function in scorer.functions.items():
        parts[name] = call(name, function)
    gold = None
    if scorer.gold is not None:
        gold = call(str(scorer.settings.gold), scorer.gold)
    return parts, {name: dense[name] for name in scorer.functions if name in dense}, gold


def finish_scores(
    scorer: Scorer, scores: Scores, stopped: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Apply the no-stop rule, the scale and the clip, in this order.

    Args:
        scorer: Its running moments take these scores in.
        scores: Of a rollout.
        stopped: (B,) bool: the completion ends with a stop token.

    Returns:
        (B,) what is given at each completion's end, and (B, C) what is given per token or None.
    """
    settings = scorer.settings
    final, per_token = scores.at_end.clone(), scores.per_token
    if settings.no_stop == "penalise":
        final = torch.where(stopped, final, final - settings.no_stop_value)
    elif settings.no_stop == "replace":
        final = torch.where(stopped, final, torch.full_like(final, settings.no_stop_value))
        if per_token is not None:
            per_token = torch.where(stopped[:, None], per_token, 0.0)
    shift, divisor = 0.0, 1.0
    if settings.normalise == "reference":
        mean, std = scorer.scale
        shift, divisor = settings.model_weight * mean, abs(settings.model_weight) * std or 1.0
    elif settings.normalise == "running":
        scorer.moments.update(final if per_token is None else final + per_token.sum(dim=1))
        divisor = scorer.moments.std
    final = (final - shift) / divisor
    if settings.clip is not None:
        final = final.clamp(-settings.clip, settings.clip)
    if per_token is not None:
        per_token = per_token / divisor
        if settings.clip is not None:
            per_token = per_token.clamp(-settings.clip, settings.clip)
    return final, per_token
