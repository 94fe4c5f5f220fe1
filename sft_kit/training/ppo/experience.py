"""A rollout from prompts to advantages: draw, score, reward.

Processes share the work episode by episode and atom by atom; then each holds all of it, and works
out rewards and advantages of the whole rollout, the same everywhere. Shapes: B episodes of the
rollout, C completion tokens of the longest one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, cast

import torch

from sft_kit.data.preference.rows import Prompt
from sft_kit.models.roles import Roles
from sft_kit.objectives.advantages import (
    RunningMoments,
    gae,
    penalised_rewards,
    scale_advantages,
    whiten_rewards,
)
from sft_kit.settings import PpoSettings
from sft_kit.training.ppo.atoms import Atom, atom_rows, deal, make_atom
from sft_kit.training.ppo.phases import Phases
from sft_kit.training.ppo.processes import gathered
from sft_kit.training.ppo.rollout import Episode, Rollout
from sft_kit.training.ppo.sampling import Sampling, draw_completions, uniforms
from sft_kit.training.ppo.scores import Scorer, Scores, finish_scores, score_completions
from sft_kit.training.ppo.scoring import (
    Precision,
    policy_outputs,
    reference_logprobs,
    reward_scores,
    value_outputs,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAMES = ("logprobs", "ref_logprobs", "entropies", "values")


@dataclass(slots=True)
class Collector:
    """What makes rollouts: the same object for all of a run.

    Attributes:
        roles: All four.
        scorer: Reward model and functions.
        tokenizer: Decodes completions; None gives reward functions the ids as text.
        settings: The `ppo` section.
        sampling: How completions are drawn.
        precision: Autocast of every forward.
        seed: Decides every draw.
        atom_size: Episodes of one forward at most.
        device: Of the models.
        returns: Moments of all returns so far.
        num_processes: Of the run.
        process: Rank of this one.
    """

    roles: Roles
    scorer: Scorer
    tokenizer: "PreTrainedTokenizerBase | None"
    settings: PpoSettings
    sampling: Sampling
    precision: Precision
    seed: int
    atom_size: int
    device: torch.device
    returns: RunningMoments
    num_processes: int = 1
    process: int = 0


@dataclass(frozen=True, slots=True)
class Experience:
    """A rollout with its atoms.

    Attributes:
        rollout: Scored, with advantages.
        rows: Episode numbers of every atom.
        atom_of: Index of an atom -> the atom.
    """

    rollout: Rollout
    rows: list[list[int]]
    atom_of: Callable[[int], Atom]


def collect(
    collector: Collector,
    index: int,
    chosen: Sequence[int],
    prompts: Sequence[Prompt],
    kl_coefficient: float,
    phases: Phases,
) -> Experience:
    """Draw completions for some prompts and work out what to learn from them.

    Args:
        collector: Its running moments take the rollout in.
        index: Number of the rollout: decides the draws.
        chosen: B indices of prompts.
        prompts: All of the data.
        kl_coefficient: Beta of this rollout.
        phases: Counts the seconds.
    """
    with phases.phase("generate"):
        chances = uniforms(collector.seed, index, len(chosen), collector.sampling.max_new_tokens)
        episodes = draw_episodes(collector, chosen, prompts, chances, collector.sampling)
    with phases.phase("score"):
        rows = atom_rows(episodes, collector.atom_size, collector.settings.num_minibatches)
        atom_of = cache(lambda number: make_atom(episodes, rows[number], collector.device))
        rollout = _run_roles(collector, index, episodes, rows, atom_of)
        scores = score_episodes(collector, episodes, prompts)
    _reward(collector, rollout, scores, kl_coefficient)
    return Experience(rollout, rows, atom_of)


def draw_episodes(
    collector: Collector,
    chosen: Sequence[int],
    prompts: Sequence[Prompt],
    chances: torch.Tensor,
    sampling: Sampling,
) -> list[Episode]:
    """Draw one completion per prompt; every process draws its share and gets all.

    Args:
        collector: The policy draws.
        chosen: B indices of prompts.
        prompts: All of the data.
        chances: (B, C) float64 in [0, 1).
        sampling: How to draw.
    """
    order = sorted(range(len(chosen)), key=lambda row: len(prompts[chosen[row]].input_ids))
    own = order[collector.process :: collector.num_processes]
    drawn = []
    if own:
        with collector.precision.autocast():
            drawn = draw_completions(
                collector.roles.policy,
                [prompts[chosen[row]].input_ids for row in own],
                chances[own],
                sampling,
                batch_size=collector.settings.generation_batch_size,
            )
    episodes = [
        Episode(
            row, chosen[row], prompts[chosen[row]].input_ids, one.ids, one.logprobs, one.stopped
        )
        for row, one in zip(own, drawn, strict=True)
    ]
    return sorted(gathered(episodes), key=lambda episode: episode.number)


@torch.no_grad()
def _run_roles(
    collector: Collector,
    index: int,
    episodes: list[Episode],
    rows: Sequence[Sequence[int]],
    atom_of: Callable[[int], Atom],
) -> Rollout:
    """Let policy, reference and values read every episode."""
    roles, temperature = collector.roles, collector.settings.temperature
    roles.policy.model.train()  # as in the updates: dropout is off, and the kernels are the same
    roles.value.model.train()
    results: list[tuple[int, dict[str, torch.Tensor]]] = []
    for number in deal(len(rows), collector.num_processes)[collector.process]:
        atom = atom_of(number)
        with collector.precision.autocast():
            outputs = policy_outputs(roles, atom, temperature, with_entropy=True)
            found = {
                "logprobs": outputs.logprobs,
                "entropies": cast("torch.Tensor", outputs.entropies),
                "ref_logprobs": reference_logprobs(roles, atom, temperature),
            }
            values = outputs.values
            found["values"] = value_outputs(roles, atom) if values is None else values
        results.append((number, {name: value.float().cpu() for name, value in found.items()}))
    width = max(len(episode.completion_ids) for episode in episodes)
    full = {name: torch.zeros(len(episodes), width) for name in _NAMES}
    for number, found in gathered(results):
        for name, value in found.items():
            full[name][rows[number], : value.shape[1]] = value
    lengths = torch.tensor([len(episode.completion_ids) for episode in episodes])
    mask = torch.arange(width) < lengths[:, None]
    stopped = torch.tensor([episode.stopped for episode in episodes])
    masks_unstopped = collector.scorer.settings.no_stop == "mask"
    sampled = torch.zeros(len(episodes), width)
    for row, episode in enumerate(episodes):
        sampled[row, : len(episode.sampled_logprobs)] = torch.tensor(episode.sampled_logprobs)
    empty = torch.zeros(len(episodes))
    return Rollout(
        index=index,
        episodes=episodes,
        mask=mask,
        policy_mask=mask & stopped[:, None] if masks_unstopped else mask,
        sampled_logprobs=sampled,
        scores=empty,
        final_scores=empty,
        logprobs=full["logprobs"],
        ref_logprobs=full["ref_logprobs"],
        entropies=full["entropies"],
        values=full["values"],
    )


def score_episodes(
    collector: Collector, episodes: Sequence[Episode], prompts: Sequence[Prompt]
) -> Scores:
    """Ask the reward model and all functions.

    Args:
        collector: What scores.
        episodes: B.
        prompts: All of the data.
    """
    from_role = None
    if collector.roles.reward is not None:
        from_role = _reward_role(collector, episodes)
    return score_completions(
        collector.scorer,
        [prompts[episode.prompt] for episode in episodes],
        episodes,
        [completion_text(collector, episode) for episode in episodes],
        from_role=from_role,
    )


@torch.no_grad()
def _reward_role(collector: Collector, episodes: Sequence[Episode]) -> torch.Tensor:
    role = collector.roles.reward
    assert role is not None
    rows = atom_rows(episodes, collector.atom_size, 1)
    results: list[tuple[int, torch.Tensor]] = []
    for number in deal(len(rows), collector.num_processes)[collector.process]:
        with collector.precision.autocast():
            stop = collector.sampling.stop_token_ids[0]
            found = reward_scores(role, episodes, rows[number], stop)
        results.append((number, found.float().cpu()))
    scores = torch.zeros(len(episodes))
    for number, found in gathered(results):
        scores[rows[number]] = found
    return scores


def completion_text(collector: Collector, episode: Episode) -> str:
    """A completion as reward functions get it: without its stop token and other special ones."""
    ids = episode.completion_ids[:-1] if episode.stopped else episode.completion_ids
    if collector.tokenizer is None:
        return " ".join(map(str, ids))
    return cast("str", collector.tokenizer.decode(list(ids), skip_special_tokens=True))


def _reward(collector: Collector, rollout: Rollout, scores: Scores, kl_coefficient: float) -> None:
    """Fill in scores, rewards, advantages and returns of the whole rollout."""
    settings = collector.settings
    stopped = torch.tensor([episode.stopped for episode in rollout.episodes])
    final, per_token = finish_scores(collector.scorer, scores, stopped)
    rollout.scores, rollout.score_parts, rollout.gold = scores.total, scores.parts, scores.gold
    rollout.final_scores, rollout.token_scores = final, per_token
    rollout.kl_coefficient = kl_coefficient
    penalty = kl_coefficient if settings.kl_in == "reward" else 0.0
    kl = rollout.logprobs - rollout.ref_logprobs
    rewards = penalised_rewards(final, kl, rollout.mask, penalty, per_token)
    if settings.whiten_rewards:
        rewards = whiten_rewards(rewards, rollout.mask)
    rollout.rewards = rewards
    estimate = (rewards, rollout.values, rollout.mask, settings.gamma)
    advantages, returns = gae(*estimate, settings.gae_lambda)
    if settings.value_lambda is not None:
        _, returns = gae(*estimate, settings.value_lambda)
    rollout.advantages = scale_advantages(
        advantages, rollout.policy_mask, settings.advantage_scaling, settings.advantage_epsilon
    )
    rollout.returns = returns
    collector.returns.update(returns[rollout.mask])
    rollout.return_std = collector.returns.std


def greedy(sampling: Sampling) -> Sampling:
    """The same sampling at temperature 0."""
    return replace(sampling, temperature=0.0)
