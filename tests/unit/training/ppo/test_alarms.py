"""When an alarm is raised, when it is not, and what it says."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from sft_kit.settings import PpoSettings
from sft_kit.training.ppo.alarms import find_alarms
from sft_kit.training.ppo.metrics import rollout_metrics
from sft_kit.training.ppo.rollout import Rollout

HEALTHY = {
    "score_mean": 0.5, "score_std": 0.2, "final_score_mean": 0.5, "final_score_std": 0.2,
    "kl": 2.0, "completion_length_mean": 20.0, "score_length_correlation": 0.1,
    "repeated_ngram_fraction": 0.1, "distinct_completion_fraction": 0.9, "stop_fraction": 0.8,
    "shared_completion_fraction": 0.1, "num_updates": 6.0, "num_skipped_updates": 0.0,
    "value_mean": 0.3, "explained_variance": 0.4,
    "sampler_gap_mean": 0.001, "sampler_gap_max": 0.01,
}  # fmt: skip
History = Sequence[Mapping[str, float]]


def rollouts(number: int, **changes: float | Sequence[float]) -> list[dict[str, float]]:
    """Healthy rollouts; a changed figure is one number for the last, or one for each."""
    history = [dict(HEALTHY) for _ in range(number)]
    for name, values in changes.items():
        if isinstance(values, float):
            history[-1][name] = values
            continue
        assert len(values) == number
        for entry, value in zip(history, values, strict=True):
            entry[name] = value
    return history


def keys(history: History, **settings: object) -> list[str]:
    return [alarm.key for alarm in find_alarms(history, PpoSettings(**settings))]


def text(history: History, **settings: object) -> str:
    (alarm,) = find_alarms(history, PpoSettings(**settings))
    return alarm.text


def evaluated(scores: Sequence[float], gold: Sequence[float]) -> list[dict[str, float]]:
    """A rollout and an evaluation in turn."""
    history: list[dict[str, float]] = []
    for score, watched in zip(scores, gold, strict=True):
        history += [dict(HEALTHY), {"eval_score_mean": score, "eval_gold_mean": watched}]
    return history


def test_a_healthy_run_raises_no_alarm():
    assert keys([]) == []
    assert keys([{"step": 0, "eval_score_mean": 1.0}]) == []
    assert keys(rollouts(1)) == keys(rollouts(60)) == []


def test_a_score_that_rises_three_times_while_gold_falls_is_hacked():
    history = evaluated([0.9, 0.1, 0.2, 0.3, 0.4], [9, 5, 4, 3, 2.5])
    assert keys(history) == ["gold_falls"]
    said = text(history)
    assert "on held-out prompts it rose 3 times in a row, from 0.1 to 0.4" in said
    assert "fell from 5 to 2.5" in said
    assert "ppo.num_rollouts" in said, "there are no earlier policies to go back to"
    assert "checkpoint" not in said


@pytest.mark.parametrize(
    ("scores", "gold"),
    [
        ([0.1, 0.2, 0.3], [5, 4, 3]),
        ([0.1, 0.2, 0.3, 0.4], [5, 4, 4, 3]),
        ([0.1, 0.2, 0.2, 0.4], [5, 4, 3, 2]),
        ([0.1, 0.2, 0.3, 0.4, 0.5], [5, 4, 3, 2, 2.1]),
        ([0.4, 0.3, 0.2, 0.1], [2, 3, 4, 5]),
    ],
)
def test_fewer_falls_of_gold_are_chance(scores: list[float], gold: list[float]):
    assert keys(evaluated(scores, gold)) == []


def test_without_held_out_prompts_gold_is_watched_in_blocks_of_rollouts():
    noise = [0.5, -0.5, 0.3, -0.3, 0.0] * 4
    scores = [0.1 * (index // 5) + 0.01 * noise[index] for index in range(20)]
    gold = [3 - (index // 5) + noise[index] for index in range(20)]
    falling = rollouts(20, score_mean=scores, gold_mean=gold)
    assert keys(falling, eval_rollouts=5) == ["gold_falls"]
    assert "in training it rose 3 times in a row, from 0 to 0.3" in text(falling, eval_rollouts=2)
    assert keys(falling, eval_rollouts=10) == [], "two blocks only"
    steady = rollouts(20, score_mean=scores, gold_mean=noise)
    assert keys(steady, eval_rollouts=1) == [], "single rollouts are noise"


def test_a_score_that_goes_by_length_is_told_once_lengths_have_moved():
    for sign in (1, -1):
        correlations = [0.1, 0.7 * sign, 0.8 * sign, 0.9 * sign]
        moved = rollouts(
            4,
            score_length_correlation=correlations,
            completion_length_mean=20.0 * (1 + 0.31 * sign),
        )
        assert keys(moved) == ["length"]
        assert f"{0.9 * sign:.2f}, and completions went from 20.0 to" in text(moved)
    assert keys(rollouts(4, score_length_correlation=[0.9] * 4)) == [], "lengths stay"
    still = rollouts(4, score_length_correlation=[0.9] * 4, completion_length_mean=25.9)
    assert keys(still) == [], "a change by less than 30 %"
    once = rollouts(4, score_length_correlation=0.9, completion_length_mean=40.0)
    assert keys(once) == [], "one rollout may be chance"


@pytest.mark.parametrize(
    ("key", "changes", "words"),
    [
        ("repeated", {"repeated_ngram_fraction": 0.31}, "31% of three tokens"),
        (
            "alike",
            {"distinct_completion_fraction": 0.44, "shared_completion_fraction": 0.51},
            "51% of a rollout's completions also answer another prompt, and 44% are distinct, 90%",
        ),
        ("skipped_updates", {"num_skipped_updates": 2.0}, "2 of 8 updates of a rollout"),
        ("values_lost", {"value_mean": math.nan}, "what is not a finite number"),
        ("no_spread", {"score_std": 0.0}, "the same score, 0.5: there is only the stop to learn"),
        ("stop", {"stop_fraction": 0.39}, "39% of the completions end by themselves, 80%"),
        ("no_spread", {"final_score_std": 0.0}, "same final score, 0.5"),
        ("sampler", {"sampler_gap_mean": 0.06, "sampler_gap_max": 0.7}, "0.06 nats on average"),
        ("kl_budget", {"kl": 10.1}, "10.1 nats per episode"),
    ],
)
def test_what_the_latest_rollout_shows_is_told_with_figures(
    key: str, changes: dict[str, float], words: str
):
    history = rollouts(3, **changes)
    assert keys(history, kl_budget=10.0) == [key]
    assert words in text(history, kl_budget=10.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"repeated_ngram_fraction": 0.29},
        {"distinct_completion_fraction": 0.45, "shared_completion_fraction": 1.0},
        {"distinct_completion_fraction": 0.01, "shared_completion_fraction": 0.5},
        {"score_std": 0.0, "token_score_std": 0.1},
        {"stop_fraction": 0.4},
        {"final_score_std": 0.0, "token_score_std": 0.1},
        {"sampler_gap_mean": 0.05},
        {"kl": 10.0},
    ],
)
def test_figures_at_the_limit_raise_no_alarm(changes: dict[str, float]):
    assert keys(rollouts(3, **changes), kl_budget=10.0) == []


def test_a_limit_that_is_not_set_is_not_watched():
    assert keys(rollouts(2, kl=1e6)) == []


def test_a_policy_that_never_stopped_has_not_forgotten_it():
    assert keys(rollouts(2, stop_fraction=[0.05, 0.0])) == []


def test_a_value_head_is_useless_after_five_bad_rollouts_in_a_row():
    def found(*last: float, num_first: int = 10) -> list[str]:
        variances = [-9.0] * num_first + list(last)
        return keys(rollouts(len(variances), explained_variance=variances))

    assert found(0.4, -0.1, -0.1, -0.1, -0.1) == []
    assert found(0.4, *[-0.1] * 5) == ["values"]
    assert found(*[-0.1] * 5, 0.1) == []
    assert found(*[-0.1] * 5, num_first=9) == [], "the head learns its task first"
    assert found(-0.9, -0.7, -0.8, -0.3, -0.2) == [], "it is on its way"
    unknown = rollouts(15, explained_variance=[-0.1] * 15)
    del unknown[-1]["explained_variance"]
    assert keys(unknown) == []
    assert "ppo.value (shared)" in text(unknown[:10] + [unknown[0]] * 5, value="shared")


def test_advice_fits_the_settings():
    gap = rollouts(1, sampler_gap_mean=0.5)
    assert "ppo.top_k=0" in text(gap, top_k=5)
    assert "ppo.top_k=0" in text(gap, top_p=0.9)
    assert "ppo.sampler_correction" in text(gap)
    silent = rollouts(2, stop_fraction=0.1)
    for rule, advice in (
        ("none", "Set reward.no_stop to"),
        ("mask", "Set reward.no_stop to"),
        ("penalise", "Raise reward.no_stop_value"),
        ("replace", "Lower reward.no_stop_value"),
    ):
        (alarm,) = find_alarms(silent, PpoSettings(), no_stop=rule)
        assert advice in alarm.text
    same = rollouts(1, final_score_std=0.0)
    assert "noise" in text(same)
    assert "noise" not in text(same, advantage_scaling="mean")


def test_several_alarms_come_together_and_stay_while_they_hold():
    history = rollouts(
        2,
        repeated_ngram_fraction=0.9,
        distinct_completion_fraction=0.1,
        shared_completion_fraction=0.9,
    )
    assert keys(history) == ["repeated", "alike"]
    assert keys([*history, history[-1]]) == ["repeated", "alike"]
    assert keys([*history, HEALTHY]) == []


def test_the_figures_of_a_rollout_are_those_that_are_watched(
    make_rollout: Callable[..., Rollout],
):
    rollout = make_rollout([[1, 7]] * 4)
    rollout.final_scores[:] = 2.0
    rollout.sampled_logprobs -= 1.0
    rollout.episodes = [
        replace(one, prompt_ids=(number % 2,)) for number, one in enumerate(rollout.episodes)
    ]
    history = [rollout_metrics(make_rollout([[1, 7], [2, 7], [3, 7], [4, 7]]))]
    history.append(rollout_metrics(rollout))
    found = keys(history, kl_budget=1e-9, episodes_per_rollout=4)
    assert {"alike", "no_spread", "sampler"} <= set(found)
    assert "no_spread" not in keys([rollout_metrics(rollout)], episodes_per_rollout=1)
