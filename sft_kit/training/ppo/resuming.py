"""Where a run stands, to a checkpoint and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from sft_kit.objectives.advantages import RunningMoments
from sft_kit.training.ppo.checkpoints import TrainingState, check_identity, load_state
from sft_kit.training.ppo.experience import Collector
from sft_kit.training.ppo.learner import Learner
from sft_kit.training.randomness import restore_random_state


@dataclass(slots=True)
class Progress:
    """How far a run has come.

    Attributes:
        kl_coefficient: Beta of the next rollout.
        num_rollouts: Done.
        num_episodes: Done; also where the prompts stand.
        num_updates: Done.
        history: Figures of every rollout and evaluation.
        alarms: Key -> text of what was said.
        kept: Copies of the policy: "previous", before the last rollout's updates, where there is a
            KL budget; "best", the one with the best held-out score, where it is wanted.
        best_score: Held-out score of that.
        best_rollout: Rollouts done when it was best.
    """

    kl_coefficient: float
    num_rollouts: int = 0
    num_episodes: int = 0
    num_updates: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    alarms: dict[str, str] = field(default_factory=dict)
    kept: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    best_score: float | None = None
    best_rollout: int = 0

    def add_rollout(self, num_episodes: int, num_updates: int) -> None:
        """Count one more."""
        self.num_rollouts += 1
        self.num_episodes += num_episodes
        self.num_updates += num_updates


def capture_state(
    progress: Progress,
    learner: Learner,
    collector: Collector,
    schedule: Any,  # noqa: ANN401 - torch's and transformers' schedules have no common type
    identity: Mapping[str, str],
) -> TrainingState:
    """Gather what a checkpoint holds."""
    tensors = {f"policy.{name}": one for name, one in learner.roles.policy_parameters().items()}
    tensors |= {f"value.{name}": one for name, one in learner.roles.value_parameters().items()}
    kept = {name: tensor.detach() for name, tensor in tensors.items()}
    kept |= {f"ema.{name}": tensor for name, tensor in learner.ema.items()}
    kept |= {
        f"kept.{name}.{index:06d}": one
        for name, copy in progress.kept.items()
        for index, one in enumerate(copy)
    }
    return TrainingState(
        num_rollouts_done=progress.num_rollouts,
        tensors=kept,
        optimizer=learner.optimizer.state_dict(),
        scheduler=schedule.state_dict(),
        kl_coefficient=progress.kl_coefficient,
        score_moments=asdict(collector.scorer.moments),
        return_moments=asdict(collector.returns),
        counters={
            "num_episodes": progress.num_episodes,
            "num_updates": progress.num_updates,
            "ptx_cursor": learner.ptx_cursor,
        },
        history=cast("list[dict[str, object]]", [*progress.history, _beside(progress)]),
        identity=dict(identity),
    )


def restore_state(
    folder: Path,
    progress: Progress,
    learner: Learner,
    collector: Collector,
    schedule: Any,  # noqa: ANN401 - torch's and transformers' schedules have no common type
    identity: Mapping[str, str],
) -> None:
    """Put everything back to where a checkpoint stands.

    Raises:
        CheckpointError: It is damaged, or of a run on something else.
    """
    state = load_state(folder)
    check_identity(state.identity, identity, str(folder))
    parameters = {f"policy.{name}": one for name, one in learner.roles.policy_parameters().items()}
    parameters |= {f"value.{name}": one for name, one in learner.roles.value_parameters().items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state.tensors[name])
        for name, tensor in learner.ema.items():
            tensor.copy_(state.tensors[f"ema.{name}"])
    learner.optimizer.load_state_dict(state.optimizer)
    learner.ptx_cursor = state.counters["ptx_cursor"]
    schedule.load_state_dict(state.scheduler)
    collector.scorer.moments = RunningMoments(**state.score_moments)
    collector.returns = RunningMoments(**state.return_moments)
    *history, last = state.history
    progress.history = cast("list[dict[str, float]]", history)
    progress.alarms = cast("dict[str, str]", last["alarms"])
    progress.best_score = cast("float | None", last["best_score"])
    progress.best_rollout = cast("int", last["best_rollout"])
    progress.kl_coefficient = state.kl_coefficient
    progress.num_rollouts = state.num_rollouts_done
    progress.num_episodes = state.counters["num_episodes"]
    progress.num_updates = state.counters["num_updates"]
    for key in sorted(name for name in state.tensors if name.startswith("kept.")):
        name = key.split(".")[1]
        progress.kept.setdefault(name, []).append(state.tensors[key].to(collector.device))
    restore_random_state(state.random)


def _beside(progress: Progress) -> dict[str, object]:
    """What the history does not tell."""
    return {
        "alarms": progress.alarms,
        "best_score": progress.best_score,
        "best_rollout": progress.best_rollout,
    }
