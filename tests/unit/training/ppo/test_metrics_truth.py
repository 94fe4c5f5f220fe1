"""What a run logs, worked out again from its files and from its weights at each update."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.optim.optimizer import register_optimizer_step_post_hook

from sft_kit.models.roles import Roles, activate
from sft_kit.training.ppo.loop import train_ppo
from sft_kit.training.ppo.rollout import Episode

from .tiny import row_logprobs, stir, tiny_gpt2, tiny_roles, tiny_run

NUM_ROLLOUTS, NUM_EPOCHS, TEMPERATURE, CLIP = 2, 3, 0.8, 0.1
STOPS = (2, 5, 9)


@dataclass
class Dump:
    """One rollout as its files tell it, and what the log says of it."""

    index: int
    kl_coefficient: float
    episodes: list[Episode]
    tensors: dict[str, np.ndarray]
    logged: dict[str, float]

    def tokens(self, name: str) -> np.ndarray:
        """All completion tokens of a tensor (B, C), one row after the other."""
        rows = zip(self.tensors[name], self.episodes, strict=True)
        return np.concatenate([row[: len(one.completion_ids)] for row, one in rows])


@dataclass
class Traced:
    """A finished run: its rollouts, and its trained tensors before and after each update."""

    roles: Roles
    dumps: list[Dump]
    snapshots: list[dict[str, torch.Tensor]]

    def load(self, snapshot: int) -> None:
        for name, one in trained(self.roles).items():
            one.data.copy_(self.snapshots[snapshot][name])

    def epochs(self, dump: Dump) -> Iterator[int]:
        """Snapshots that the updates of a rollout started from: one update is one epoch."""
        for epoch in range(NUM_EPOCHS):
            self.load(dump.index * NUM_EPOCHS + epoch)
            yield epoch


def trained(roles: Roles) -> dict[str, torch.nn.Parameter]:
    return roles.policy_parameters() | roles.value_parameters()


def read_dump(folder: Path, index: int, logged: dict[str, float]) -> Dump:
    from safetensors.numpy import load_file

    place = folder / "rollouts" / f"{index:05d}"
    told: dict[str, Any] = json.loads(place.with_suffix(".json").read_text())
    tensors = {
        name: tensor if tensor.dtype == bool else tensor.astype(np.float64)
        for name, tensor in load_file(place.with_suffix(".safetensors")).items()
    }
    episodes = [
        Episode(**{**one, **{key: tuple(one[key]) for key in ("prompt_ids", "completion_ids")}})
        for one in told["episodes"]
    ]
    return Dump(told["index"], told["kl_coefficient"], episodes, tensors, logged)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """A run whose policy moves a lot: one update an epoch, over the whole rollout."""
    folder = tmp_path_factory.mktemp("run")
    # Not the reference policy: the first divergence is not 0.
    roles = stir(tiny_roles("lora adapter", tiny_gpt2()))
    run = tiny_run(
        roles, folder=folder, stop_token_ids=STOPS, num_rollouts=NUM_ROLLOUTS,
        num_epochs=NUM_EPOCHS, num_minibatches=1, temperature=TEMPERATURE, clip_low=CLIP,
        clip_high=CLIP, value_clip=None, kl_target=1.0, kl_horizon=50, dump_rollouts=True,
        self_checks=False, args={"learning_rate": 0.02},
    )  # fmt: skip
    snapshots: list[dict[str, torch.Tensor]] = []

    def keep(*_: object) -> None:
        snapshots.append({name: one.detach().clone() for name, one in trained(roles).items()})

    keep()
    handle = register_optimizer_step_post_hook(keep)
    try:
        train_ppo(run)
    finally:
        handle.remove()
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(log) == NUM_ROLLOUTS
    assert len(snapshots) == 1 + NUM_ROLLOUTS * NUM_EPOCHS
    dumps = [read_dump(folder, index, logged) for index, logged in enumerate(log)]
    return Traced(roles, dumps, snapshots)


def same(logged: float, expected: float) -> bool:
    return logged == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


def test_scores_follow_from_the_tokens_in_the_file(traced: Traced):
    for dump in traced.dumps:
        ids = [one.completion_ids for one in dump.episodes]
        scores = np.array([np.mean([3 <= token <= 8 for token in one]) for one in ids])
        lengths = [len(one) for one in ids]
        assert same(dump.logged["score_mean"], scores.mean())
        assert same(dump.logged["score_std"], scores.std())
        assert same(dump.logged["score_max"], scores.max())
        assert same(dump.logged["completion_length_mean"], np.mean(lengths))
        correlation = spearmanr(scores.astype(np.float32), lengths).statistic
        assert same(dump.logged["score_length_correlation"], correlation)
        stopped = [one[-1] in STOPS for one in ids]
        assert same(dump.logged["stop_fraction"], np.mean(stopped))
        assert len(set(lengths)) > 1
        assert 0 < np.mean(stopped) < 1


def test_divergence_and_entropy_follow_from_the_weights(traced: Traced):
    for dump in traced.dumps:
        traced.load(dump.index * NUM_EPOCHS)
        model = traced.roles.policy.model
        kl, entropies = [], []
        with torch.no_grad():
            for one in dump.episodes:
                activate(traced.roles.policy)
                policy = row_logprobs(model, one, TEMPERATURE).numpy()
                ids = torch.tensor([one.prompt_ids + one.completion_ids])
                logits = model(ids).logits[0, len(one.prompt_ids) - 1 : -1].double()
                spread = (logits / TEMPERATURE).softmax(-1).numpy()
                activate(traced.roles.reference)
                kl.append(policy - row_logprobs(model, one, TEMPERATURE).numpy())
                entropies.append(-(spread * np.log(spread)).sum(-1))
        assert same(dump.logged["kl"], np.mean([one.sum() for one in kl]))
        assert same(dump.logged["kl_per_token"], np.concatenate(kl).mean())
        k3 = np.concatenate([np.exp(-one) - 1 + one for one in kl])
        assert same(dump.logged["kl_k3_per_token"], k3.mean())
        assert same(dump.logged["entropy"], np.concatenate(entropies).mean())
        assert abs(dump.logged["kl"]) > 0.01


def test_moments_follow_from_the_tensors_in_the_file(traced: Traced):
    for dump in traced.dumps:
        values, returns = dump.tokens("values"), dump.tokens("returns")
        for name, numbers in (("value", values), ("return", returns)):
            assert same(dump.logged[f"{name}_mean"], numbers.mean())
            assert same(dump.logged[f"{name}_std"], numbers.std())
        explained = 1 - (returns - values).var() / returns.var()
        assert same(dump.logged["explained_variance"], explained)
        assert same(dump.logged["advantage_mean"], 0.0)
        assert same(dump.logged["advantage_std"], dump.tokens("advantages").std())
        gap = np.abs(dump.tokens("logprobs") - dump.tokens("sampled_logprobs"))
        assert same(dump.logged["sampler_gap_max"], gap.max())
        assert dump.logged["kl_coefficient"] == dump.kl_coefficient
    assert traced.dumps[0].kl_coefficient != traced.dumps[1].kl_coefficient


def test_losses_clip_fractions_and_steps_follow_from_the_weights_of_each_update(traced: Traced):
    for dump in traced.dumps:
        advantages, old = dump.tokens("advantages"), dump.tokens("logprobs")
        moved, low, high, losses, value_losses = [], [], [], [], []
        for _ in traced.epochs(dump):
            with torch.no_grad():
                activate(traced.roles.policy)
                model = traced.roles.policy.model
                rows = [row_logprobs(model, one, TEMPERATURE) for one in dump.episodes]
                values = [row_values(traced.roles, one) for one in dump.episodes]
            ratio = np.exp(torch.cat(rows).numpy() - old)
            clipped = np.clip(ratio, 1 - CLIP, 1 + CLIP)
            moved.append((ratio - 1 - np.log(ratio)).mean())
            low.append(((ratio < 1 - CLIP) & (advantages < 0)).mean())
            high.append(((ratio > 1 + CLIP) & (advantages > 0)).mean())
            losses.append(np.maximum(-advantages * ratio, -advantages * clipped).mean())
            error = torch.cat(values).numpy() - dump.tokens("returns")
            value_losses.append((error**2).mean() / 2)
        for epoch, expected in enumerate(moved, start=1):
            assert same(dump.logged[f"approx_kl/epoch_{epoch}"], expected)
        assert same(dump.logged["approx_kl"], np.mean(moved))
        assert same(dump.logged["clip_low_fraction"], np.mean(low))
        assert same(dump.logged["clip_high_fraction"], np.mean(high))
        assert same(dump.logged["policy_loss"], np.mean(losses))
        assert same(dump.logged["value_loss"], np.mean(value_losses))
        assert dump.logged["first_ratio_error"] == 0.0
        assert dump.logged["num_updates"] == NUM_EPOCHS
        assert min(np.mean(low), np.mean(high), moved[1], moved[2]) > 1e-3


def row_values(roles: Roles, one: Episode) -> torch.Tensor:
    """Values of a completion by transformers' own hidden states, one row and no padding: (C,)."""
    activate(roles.value)
    ids = torch.tensor([one.prompt_ids + one.completion_ids])
    hidden = roles.value.model(ids, output_hidden_states=True).hidden_states[-1]
    assert roles.value.head is not None
    return roles.value.head(hidden[0, len(one.prompt_ids) - 1 : -1])[:, 0].double()
