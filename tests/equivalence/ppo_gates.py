"""Gates: what a right PPO passes and a wrong one does not, measured on a small run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

LEARNING_RATE, EPOCHS, CLIP = 1e-2, 3, 0.2
BETA, LAMBDA = 0.1, 0.95


class Found(NamedTuple):
    """What a gate measured, and whether that is good enough."""

    figure: float
    passes: bool


@dataclass(frozen=True)
class Evidence:
    """What is left of a small run: its log, its rollouts, and the roles it ended with."""

    history: list[dict[str, float]]
    rollouts: list[Any]
    roles: Any
    num_atoms: int


def small_evidence(folder: Path, micro_batch: int) -> Evidence:
    """Train a small random policy for three rollouts of three updates each."""
    from sft_kit.training.ppo.loop import train_ppo

    from .ppo_runs import SmallRun, make_run

    small = SmallRun(
        str(folder),
        value="model",
        ppo={
            "num_rollouts": 3, "num_minibatches": 1, "num_epochs": EPOCHS, "self_checks": False,
            "save_rollouts": 3, "kl_coefficient": BETA,
        },
        args={
            "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant",
            "per_device_train_batch_size": micro_batch,
        },
    )  # fmt: skip
    run = make_run(small)
    rollouts: list[Any] = []
    num_atoms = 0

    def keep(experience: Any, figures: dict[str, float]) -> None:
        nonlocal num_atoms
        rollouts.append(experience.rollout)
        num_atoms += len(experience.rows)

    run.on_rollout = keep
    result = train_ppo(run)
    return Evidence(result.history, rollouts, run.roles, num_atoms)


def first_ratio(large: Evidence, _: Evidence) -> Found:
    """The first update of every rollout finds each ratio to be 1."""
    figure = max(entry["first_ratio_error"] for entry in large.history)
    return Found(figure, figure == 0)


def sampler_gap(large: Evidence, _: Evidence) -> Found:
    """The sampler's probabilities are those of training."""
    figure = max(entry["sampler_gap_max"] for entry in large.history)
    return Found(figure, figure <= 1e-5)


def size_of_atoms(large: Evidence, small: Evidence) -> Found:
    """The number of episodes per forward changes nothing that is learnt."""
    import torch

    assert (large.num_atoms, small.num_atoms) == (3, 12)
    trained = [
        torch.cat([one.detach().flatten() for one in evidence.roles.policy_parameters().values()])
        for evidence in (large, small)
    ]
    figure = float((trained[0] - trained[1]).abs().max())
    return Found(figure, figure <= 1e-4)


def left_padding(large: Evidence, _: Evidence) -> Found:
    """More padding on the left changes no logprob."""
    import torch

    from sft_kit.training.ppo.atoms import make_atom
    from sft_kit.training.ppo.scoring import policy_outputs

    episodes = large.rollouts[0].episodes
    large.roles.policy.model.eval()  # the run has put dropout back to where it was
    with torch.no_grad():
        narrow, wide = (
            policy_outputs(
                large.roles, make_atom(episodes, range(8), torch.device("cpu"), pads), 1.0
            ).logprobs
            for pads in (0, 3)
        )
    figure = float((narrow - wide).abs().max())
    return Found(figure, figure <= 2e-6)  # a logprob of -8 has steps of 1e-6


def advantages_by_hand(large: Evidence, _: Evidence) -> Found:
    """Advantages and returns are double sums over rewards and values, in float64."""
    import numpy as np

    error = 0.0
    for rollout in large.rollouts:
        found, returns, expected, expected_returns = [], [], [], []
        for row, episode in enumerate(rollout.episodes):
            num = len(episode.completion_ids)
            kl = (rollout.logprobs - rollout.ref_logprobs)[row, :num].double().numpy()
            rewards = -BETA * kl
            rewards[-1] += float(rollout.final_scores[row])
            values = np.append(rollout.values[row, :num].double().numpy(), 0.0)
            deltas = rewards + values[1:] - values[:-1]
            sums = [sum(LAMBDA ** (k - t) * deltas[k] for k in range(t, num)) for t in range(num)]
            expected += sums
            expected_returns += list(np.array(sums) + values[:-1])
            found += rollout.advantages[row, :num].tolist()
            returns += rollout.returns[row, :num].tolist()
        scaled = (np.array(expected) - np.mean(expected)) / np.sqrt(np.var(expected) + 1e-8)
        error = max(error, np.abs(scaled - found).max())
        error = max(error, np.abs(np.array(expected_returns) - returns).max())
    return Found(error, error <= 1e-4)


def plain_updates(large: Evidence, _: Evidence) -> Found:
    """Updates written down in a few lines, row by row, give the same policy."""
    import torch

    from .ppo_runs import random_gpt2

    model = random_gpt2(0).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, eps=1e-5, weight_decay=0.0)
    for rollout in large.rollouts:
        old = None
        for _ in range(EPOCHS):
            logprobs = torch.cat([logprobs_of(model, one) for one in rollout.episodes])
            old = logprobs.detach() if old is None else old
            advantages = torch.cat(
                [rollout.advantages[row, : len(one.completion_ids)]
                 for row, one in enumerate(rollout.episodes)]
            )  # fmt: skip
            ratio = (logprobs - old).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            norm = torch.sqrt(sum(one.square().sum() for one in gradients))
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient / max(1.0, float(norm))
            optimizer.step()
    ours = dict(large.roles.policy.model.named_parameters())
    figure = max(
        float((one.detach() - ours[name].detach()).abs().max())
        for name, one in model.named_parameters()
    )
    return Found(figure, figure <= 1e-3)


def logprobs_of(model: Any, episode: Any) -> Any:
    """Log-probabilities of a completion as transformers' model has them, without padding."""
    import torch

    ids = torch.tensor([[*episode.prompt_ids, *episode.completion_ids]])
    every = model(input_ids=ids).logits[0].log_softmax(-1)[len(episode.prompt_ids) - 1 : -1]
    return every.gather(1, torch.tensor(episode.completion_ids)[:, None])[:, 0]


FAST = {
    "first ratio": first_ratio,
    "sampler gap": sampler_gap,
    "size of atoms": size_of_atoms,
    "left padding": left_padding,
    "advantages by hand": advantages_by_hand,
    "plain updates": plain_updates,
}
