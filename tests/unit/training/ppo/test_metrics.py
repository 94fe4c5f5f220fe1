"""Figures of a rollout against numpy over its tensors, episode by episode."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import explained_variance_score

from sft_kit.training.ppo.metrics import (
    UpdateSums,
    completion_metrics,
    rank_correlation,
    rollout_metrics,
)
from sft_kit.training.ppo.rollout import Rollout

COMPLETIONS = [
    [5, 6, 5, 6, 5, 7],
    [7],
    [4, 4, 4, 4, 4, 4, 4, 4],
    [9, 8, 7],
    [9, 8, 7],
    [1, 2, 3, 4, 5, 6, 9],
]
MakeRollout = Callable[..., Rollout]


def tokens(rollout: Rollout, name: str) -> list[np.ndarray]:
    """A tensor of a rollout, cut episode by episode to the tokens of its completion."""
    rows = getattr(rollout, name).double().numpy()
    return [row[: len(one.completion_ids)] for row, one in zip(rows, rollout.episodes, strict=True)]


@pytest.fixture
def rollout(make_rollout: MakeRollout) -> Rollout:
    made = make_rollout(COMPLETIONS)
    made.gold = torch.linspace(-1, 3, 6)
    made.policy_mask[4] = False
    return made


@pytest.fixture
def metrics(rollout: Rollout) -> dict[str, float]:
    return rollout_metrics(rollout)


def test_scores_are_described_raw_final_and_by_source(rollout: Rollout, metrics: dict[str, float]):
    for name in ("score", "final_score"):
        scores = getattr(rollout, f"{name}s").numpy().astype(np.float64)
        for figure in ("mean", "std", "min", "max"):
            assert metrics[f"{name}_{figure}"] == pytest.approx(getattr(np, figure)(scores))
    assert metrics["final_score_max"] < metrics["score_max"]
    assert metrics["score_mean/model"] == pytest.approx(2 * metrics["score_mean"])
    words = rollout.score_parts["words.py:happy"].numpy()
    assert metrics["score_mean/words.py:happy"] == pytest.approx(words.mean())
    assert metrics["gold_mean"] == pytest.approx(1.0)


def test_kl_is_the_sum_over_the_tokens_of_an_episode(rollout: Rollout, metrics: dict[str, float]):
    both = zip(tokens(rollout, "logprobs"), tokens(rollout, "ref_logprobs"), strict=True)
    k1 = [policy - reference for policy, reference in both]
    k3 = [np.exp(-one) - 1 + one for one in k1]
    for name, estimate in (("kl", k1), ("kl_k3", k3)):
        per_episode = np.mean([one.sum() for one in estimate])
        assert metrics[name] == pytest.approx(per_episode, rel=1e-5)
        per_token = np.concatenate(estimate).mean()
        assert metrics[f"{name}_per_token"] == pytest.approx(per_token, rel=1e-5)
    assert metrics["kl_coefficient"] == 0.05


def test_token_figures_are_means_over_tokens_and_not_over_episodes(
    rollout: Rollout, metrics: dict[str, float]
):
    entropies = tokens(rollout, "entropies")
    assert metrics["entropy"] == pytest.approx(np.concatenate(entropies).mean())
    assert abs(metrics["entropy"] - np.mean([one.mean() for one in entropies])) > 0.01
    for name in ("value", "return"):
        flat = np.concatenate(tokens(rollout, f"{name}s"))
        assert metrics[f"{name}_mean"] == pytest.approx(flat.mean(), rel=1e-5)
        assert metrics[f"{name}_std"] == pytest.approx(flat.std())
    values, returns = (np.concatenate(tokens(rollout, name)) for name in ("values", "returns"))
    expected = explained_variance_score(returns, values)
    assert metrics["explained_variance"] == pytest.approx(expected, abs=1e-5)


def test_advantages_are_those_of_the_tokens_that_enter_the_policy_loss(
    rollout: Rollout, metrics: dict[str, float]
):
    advantages = tokens(rollout, "advantages")
    flat = np.concatenate([*advantages[:4], advantages[5]])
    assert metrics["advantage_mean"] == pytest.approx(flat.mean())
    assert metrics["advantage_std"] == pytest.approx(flat.std())


def test_the_gap_between_drawing_and_training_is_measured_token_by_token(
    rollout: Rollout, metrics: dict[str, float]
):
    trained, drawn = (
        np.concatenate(tokens(rollout, name)) for name in ("logprobs", "sampled_logprobs")
    )
    gap = trained - drawn
    assert metrics["sampler_gap_max"] == pytest.approx(np.abs(gap).max(), rel=1e-5)
    assert metrics["sampler_gap_mean"] == pytest.approx(np.abs(gap).mean(), rel=1e-5)
    assert metrics["sampler_ratio_mean"] == pytest.approx(np.exp(gap).mean(), rel=1e-5)


def test_completions_are_described_by_length_repetition_and_variety(metrics: dict[str, float]):
    lengths = [len(completion) for completion in COMPLETIONS]
    assert metrics["completion_length_mean"] == np.mean(lengths)
    assert metrics["completion_length_p10"] == pytest.approx(np.percentile(lengths, 10))
    assert metrics["completion_length_p50"] == np.median(lengths)
    assert metrics["completion_length_p90"] == pytest.approx(np.percentile(lengths, 90))
    assert metrics["completion_length_max"] == 8
    # 565 656 | 565 657; none; 444 five times more; 987; 987; five distinct ones
    assert metrics["repeated_ngram_fraction"] == pytest.approx((1 + 5) / (4 + 0 + 6 + 1 + 1 + 5))
    assert metrics["distinct_completion_fraction"] == pytest.approx(5 / 6)
    assert metrics["stop_fraction"] == pytest.approx(4 / 6)


def test_the_correlation_of_score_and_length_is_spearmans(
    rollout: Rollout, metrics: dict[str, float]
):
    lengths = [len(completion) for completion in COMPLETIONS]
    expected = spearmanr(rollout.scores.numpy(), lengths).statistic
    assert metrics["score_length_correlation"] == pytest.approx(expected)
    ties = [1.0, 2.0, 2.0, 5.0, 5.0, 5.0], [3.0, 3.0, 1.0, 7.0, 8.0, 8.0]
    assert rank_correlation(*ties) == pytest.approx(spearmanr(*ties).statistic)


def test_nothing_outside_the_completions_is_read(rollout: Rollout, metrics: dict[str, float]):
    for name in ("logprobs", "ref_logprobs", "sampled_logprobs", "entropies", "values", "returns"):
        changed = torch.where(rollout.mask, getattr(rollout, name), 1e9)
        setattr(rollout, name, torch.nn.functional.pad(changed, (0, 3), value=-1e9))
    for name in ("mask", "policy_mask", "advantages"):
        padding = torch.nn.functional.pad(getattr(rollout, name), (0, 3))
        setattr(rollout, name, padding)
    assert rollout_metrics(rollout) == pytest.approx(metrics, abs=1e-12)
    assert all(np.isfinite(figure) for figure in metrics.values())


def test_what_is_not_known_is_left_out(make_rollout: MakeRollout):
    plain = make_rollout([[1, 7], [2, 7]])
    metrics = rollout_metrics(plain)
    left_out = {"gold_mean", "token_score_mean", "score_length_correlation"}
    assert not left_out & metrics.keys()
    plain.policy_mask[:] = False
    assert metrics.keys() - rollout_metrics(plain).keys() == {"advantage_mean", "advantage_std"}
    assert rank_correlation([1.0, 2.0], [3.0, 3.0]) is None


def test_values_that_are_no_numbers_explain_nothing(rollout: Rollout, metrics: dict[str, float]):
    rollout.values[0, 0] = torch.nan
    found = rollout_metrics(rollout)
    assert metrics.keys() - found.keys() == {"explained_variance"}
    assert np.isnan(found["value_mean"])


def test_completions_are_shared_when_they_answer_different_prompts(rollout: Rollout):
    # The two episodes [9, 8, 7] are the only ones alike.
    for prompts, expected in (
        ([1, 1, 1, 2, 3, 3], 2 / 6),
        ([1, 2, 3, 4, 4, 5], 0.0),
        ([1, 1, 1, 1, 1, 1], None),
    ):
        rollout.episodes = [
            replace(one, prompt_ids=(prompt,))
            for one, prompt in zip(rollout.episodes, prompts, strict=True)
        ]
        assert rollout_metrics(rollout).get("shared_completion_fraction") == expected


def test_scores_per_token_are_added_up_over_an_episode(make_rollout: MakeRollout):
    dense = torch.tensor([[1.0, 2.0, 3.0], [4.0, torch.nan, torch.nan]])
    metrics = rollout_metrics(make_rollout([[1, 2, 3], [7]], token_scores=dense))
    assert metrics["token_score_mean"] == 5.0
    assert metrics["token_score_std"] == 1.0


def test_one_episode_of_one_token_has_figures(make_rollout: MakeRollout):
    metrics = rollout_metrics(make_rollout([[7]]))
    assert all(np.isfinite(figure) for figure in metrics.values())
    assert metrics["score_std"] == metrics["repeated_ngram_fraction"] == 0.0
    assert completion_metrics([[7]])["distinct_completion_fraction"] == 1.0


# --- updates -------------------------------------------------------------------------------------


def test_means_over_minibatches_weigh_every_token_alike():
    updates = UpdateSums()
    generator = np.random.default_rng(5)
    everything: dict[str, list[np.ndarray]] = {"policy": [], "value": []}
    for epoch, (policy_tokens, value_tokens) in enumerate([(3, 5), (40, 41), (1, 7)]):
        policy, value = generator.normal(size=policy_tokens), generator.normal(size=value_tokens)
        everything["policy"].append(policy)
        everything["value"].append(value)
        sums = {
            "policy_loss": policy.sum(), "approx_kl": (policy**2).sum(),
            "clipped_low": float((policy < -1).sum()), "clipped_high": float((policy > 1).sum()),
            "entropy": np.abs(policy).sum(), "value_loss": value.sum(),
            "value_clipped": float((value > 0).sum()),
        }  # fmt: skip
        updates.add_minibatch(
            epoch=epoch // 2,
            sums=sums,
            num_policy_tokens=policy_tokens,
            num_value_tokens=value_tokens,
            ratio_error=float(epoch),
        )
    metrics = updates.metrics()
    policy, value = (np.concatenate(everything[name]) for name in ("policy", "value"))
    first = np.concatenate(everything["policy"][:2])
    expected = {
        "policy_loss": policy.mean(),
        "approx_kl": (policy**2).mean(),
        "approx_kl/epoch_1": (first**2).mean(),
        "approx_kl/epoch_2": (everything["policy"][2] ** 2).mean(),
        "clip_low_fraction": (policy < -1).mean(),
        "clip_high_fraction": (policy > 1).mean(),
        "update_entropy": np.abs(policy).mean(),
        "value_loss": value.mean(),
        "value_clip_fraction": (value > 0).mean(),
        "first_ratio_error": 0.0,
        "num_updates": 0.0,
        "num_skipped_updates": 0.0,
        "stopped_early": 0.0,
    }
    assert metrics == pytest.approx(expected)
    mean_of_means = np.mean([one.mean() for one in everything["policy"]])
    assert abs(metrics["policy_loss"] - mean_of_means) > 0.01


def test_a_loss_that_is_a_mean_over_completions_is_divided_by_them():
    updates = UpdateSums()
    for total, completions in ((6.0, 2), (1.0, 5)):
        updates.add_minibatch(
            epoch=0,
            sums={"policy_loss": total, "approx_kl": total},
            num_policy_tokens=20,
            num_value_tokens=20,
            num_policy_terms=completions,
        )
    metrics = updates.metrics()
    assert metrics["policy_loss"] == 1.0
    assert metrics["approx_kl"] == 7 / 40


def test_the_language_loss_has_its_own_tokens():
    updates = UpdateSums()
    for total, labels in ((10.0, 4), (2.0, 2)):
        updates.add_minibatch(
            epoch=0,
            sums={"ptx_loss": total},
            num_policy_tokens=0,
            num_value_tokens=0,
            num_ptx_tokens=labels,
        )
    assert updates.metrics()["ptx_loss"] == 2.0


def test_gradient_norms_are_averaged_over_the_updates_that_were_made():
    updates = UpdateSums(stopped_early=True)
    updates.add_update(
        policy_grad_norm=1.0, value_grad_norm=4.0, ptx_grad_norm=0.5, ppo_grad_norm=2.0
    )
    updates.add_update(
        policy_grad_norm=3.0, value_grad_norm=2.0, ptx_grad_norm=1.5, ppo_grad_norm=2.0
    )
    updates.add_update(policy_grad_norm=float("inf"), value_grad_norm=9.0, skipped=True)
    assert updates.metrics() == {
        "policy_grad_norm": 2.0,
        "value_grad_norm": 3.0,
        "ptx_grad_norm": 1.0,
        "ppo_grad_norm": 2.0,
        "ptx_to_ppo_grad_norm": 0.5,
        "num_updates": 2.0,
        "num_skipped_updates": 1.0,
        "stopped_early": 1.0,
    }


def test_no_token_and_no_policy_update_is_no_error():
    updates = UpdateSums()
    sums = {"policy_loss": 0.0, "value_loss": 3.0}
    updates.add_minibatch(epoch=0, sums=sums, num_policy_tokens=0, num_value_tokens=2)
    updates.add_update(policy_grad_norm=None, value_grad_norm=1.0)
    metrics = updates.metrics()
    assert metrics["value_loss"] == 1.5
    assert not {"policy_loss", "policy_grad_norm", "first_ratio_error"} & metrics.keys()
