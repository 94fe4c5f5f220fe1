"""Signs that the score rises for the wrong reason, or that PPO has gone astray."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from sft_kit.settings import PpoSettings

History = Sequence[Mapping[str, float]]

_NUM_FALLS = 3
_DEFAULT_BLOCK_ROLLOUTS = 10
_MIN_BLOCK_ROLLOUTS = 5
_NUM_CORRELATIONS = 3
_MAX_CORRELATION = 0.6
_MAX_LENGTH_CHANGE = 0.3
_MAX_REPEATED_RISE = 0.2
_MAX_DISTINCT_CHANGE = 0.5
_MAX_SHARED_FRACTION = 0.5
_MIN_FIRST_STOP_FRACTION = 0.1
_NUM_FIRST_VALUES = 10
_NUM_NEGATIVE = 5
_MAX_SAMPLER_GAP = 0.05


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a user should look at.

    Attributes:
        key: The same for the same alarm, so that it need be said only once.
        text: What was seen, with figures, and what to do.
    """

    key: str
    text: str


def find_alarms(history: History, settings: PpoSettings, no_stop: str = "none") -> list[Alarm]:
    """Look at the latest rollout in the light of the earlier ones.

    Args:
        history: The figures of rollouts in order, from `rollout_metrics`; those of an evaluation
            (`eval_score_mean`, `eval_gold_mean`) in the same entries or between them.
        settings: Limits, and what was switched on.
        no_stop: The setting `reward.no_stop`, for advice.

    Returns:
        All that holds now, also what held before.
    """
    rollouts = [entry for entry in history if "score_mean" in entry]
    if not rollouts:
        return []
    found = [
        _skipped(rollouts[-1], settings),
        _gold_falls(history, settings),
        _length_hacked(rollouts),
        _repeats(rollouts),
        _alike(rollouts),
        _never_stops(rollouts, no_stop),
        _over_budget(rollouts[-1], settings),
        _no_spread(rollouts[-1], settings),
        _values_lost(rollouts[-1], settings),
        _values_useless(rollouts, settings),
        _sampler_off(rollouts[-1], settings),
    ]
    return [alarm for alarm in found if alarm is not None]


def _skipped(last: Mapping[str, float], settings: PpoSettings) -> Alarm | None:
    skipped = last.get("num_skipped_updates", 0.0)
    if not skipped:
        return None
    return Alarm(
        "skipped_updates",
        f"{skipped:.0f} of {skipped + last.get('num_updates', 0.0):.0f} updates of a rollout were "
        "left out, because their gradient is not a finite number. Lower train.learning_rate or "
        f"ppo.value_learning_rate ({settings.value_learning_rate:g})",
    )


def _gold_falls(history: History, settings: PpoSettings) -> Alarm | None:
    held_out = _pairs(history, "eval_score_mean", "eval_gold_mean")
    training = _block_means(_pairs(history, "score_mean", "gold_mean"), settings)
    for where, pairs in (("on held-out prompts", held_out), ("in training", training)):
        last = pairs[-_NUM_FALLS - 1 :]
        steps = list(pairwise(last))
        if len(steps) == _NUM_FALLS and all(
            after[0] > before[0] and after[1] < before[1] for before, after in steps
        ):
            return Alarm(
                "gold_falls",
                f"the score is being hacked: {where} it rose {_NUM_FALLS} times in a row, from "
                f"{last[0][0]:.3g} to {last[-1][0]:.3g}, while the gold score fell from "
                f"{last[0][1]:.3g} to {last[-1][1]:.3g}. Run fewer rollouts "
                "(ppo.num_rollouts), raise ppo.kl_coefficient, or set ppo.kl_budget",
            )
    return None


def _pairs(history: History, first: str, second: str) -> list[tuple[float, float]]:
    return [
        (entry[first], entry[second]) for entry in history if first in entry and second in entry
    ]


def _block_means(
    pairs: Sequence[tuple[float, float]], settings: PpoSettings
) -> list[tuple[float, float]]:
    """Means over blocks of rollouts: single ones answer other prompts each time and are noisy."""
    size = max(_MIN_BLOCK_ROLLOUTS, settings.eval_rollouts or _DEFAULT_BLOCK_ROLLOUTS)
    blocks = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return [
        (fmean(first for first, _ in block), fmean(second for _, second in block))
        for block in blocks
        if len(block) == size
    ]


def _length_hacked(rollouts: History) -> Alarm | None:
    found = [entry.get("score_length_correlation") for entry in rollouts[-_NUM_CORRELATIONS:]]
    known = [correlation for correlation in found if correlation is not None]
    before, now = (rollouts[index]["completion_length_mean"] for index in (0, -1))
    if len(known) < _NUM_CORRELATIONS or abs(now / before - 1) <= _MAX_LENGTH_CHANGE:
        return None
    if min(known) <= _MAX_CORRELATION and max(known) >= -_MAX_CORRELATION:
        return None
    return Alarm(
        "length",
        f"the score goes by length: their rank correlation is {known[-1]:.2f}, and completions "
        f"went from {before:.1f} to {now:.1f} tokens on average. Look at the best samples; score "
        "length apart, or train the reward model on pairs of like length",
    )


def _repeats(rollouts: History) -> Alarm | None:
    before, now = (rollouts[index]["repeated_ngram_fraction"] for index in (0, -1))
    if now - before <= _MAX_REPEATED_RISE:
        return None
    return Alarm(
        "repeated",
        f"completions repeat themselves: {now:.0%} of three tokens in a row stand earlier in the "
        f"same completion, {before:.0%} at the start. Raise ppo.kl_coefficient, or subtract a "
        "penalty in a function of reward.functions",
    )


def _alike(rollouts: History) -> Alarm | None:
    """Few distinct completions, and to different prompts: the same answer to one prompt is none."""
    before, now = (rollouts[index]["distinct_completion_fraction"] for index in (0, -1))
    shared = rollouts[-1].get("shared_completion_fraction", 0.0)
    if now >= before * _MAX_DISTINCT_CHANGE or shared <= _MAX_SHARED_FRACTION:
        return None
    return Alarm(
        "alike",
        f"the policy answers different prompts alike: {shared:.0%} of a rollout's completions also "
        f"answer another prompt, and {now:.0%} are distinct, {before:.0%} at the start. Check that "
        "the score depends on the prompt, raise ppo.kl_coefficient or ppo.entropy_coefficient, or "
        "lower train.learning_rate",
    )


def _never_stops(rollouts: History, no_stop: str) -> Alarm | None:
    before, now = (rollouts[index]["stop_fraction"] for index in (0, -1))
    if before < _MIN_FIRST_STOP_FRACTION or now >= before / 2:
        return None
    advice = {
        "penalise": "Raise reward.no_stop_value",
        "replace": "Lower reward.no_stop_value",
    }.get(no_stop, "Set reward.no_stop to penalise or replace")
    return Alarm(
        "stop",
        f"the policy forgets to stop: {now:.0%} of the completions end by themselves, {before:.0%} "
        f"at the start. {advice}, or raise ppo.max_new_tokens",
    )


def _over_budget(last: Mapping[str, float], settings: PpoSettings) -> Alarm | None:
    if settings.kl_budget is None or last["kl"] <= settings.kl_budget:
        return None
    return Alarm(
        "kl_budget",
        f"the policy is {last['kl']:.3g} nats per episode away from the reference policy, and "
        f"ppo.kl_budget allows {settings.kl_budget:g}. Run fewer rollouts (ppo.num_rollouts), "
        "or raise ppo.kl_coefficient",
    )


def _no_spread(last: Mapping[str, float], settings: PpoSettings) -> Alarm | None:
    if settings.episodes_per_rollout == 1 or last.get("token_score_std", 0.0) > 0:
        return None
    if last["final_score_std"] > 0 and last["score_std"] > 0:
        return None
    effect = (
        ", and scaling the advantages makes noise of that as large as a signal"
        if settings.advantage_scaling == "std"
        else ""
    )
    found = f"the same final score, {last['final_score_mean']:.3g}: there is nothing to learn"
    if last["final_score_std"] > 0:
        found = f"the same score, {last['score_mean']:.3g}: there is only the stop to learn"
        effect = ""
    return Alarm(
        "no_spread",
        f"all episodes of a rollout have {found}{effect}. Check the reward sources and reward.clip",
    )


def _values_lost(last: Mapping[str, float], settings: PpoSettings) -> Alarm | None:
    if math.isfinite(last.get("value_mean", 0.0)):
        return None
    return Alarm(
        "values_lost",
        "the value head gives what is not a finite number. Lower ppo.value_learning_rate "
        f"({settings.value_learning_rate:g}), or set model.dtype=float32",
    )


def _values_useless(rollouts: History, settings: PpoSettings) -> Alarm | None:
    """Below 0 for long and not on the way up; the first rollouts teach the head its task."""
    known = [entry.get("explained_variance", math.nan) for entry in rollouts[_NUM_FIRST_VALUES:]]
    last = known[-_NUM_NEGATIVE:]
    if len(last) < _NUM_NEGATIVE or not all(one < 0 for one in last) or last[-1] > last[0]:
        return None
    return Alarm(
        "values",
        f"the value head is worse than a constant: its explained variance was below 0 in "
        f"{_NUM_NEGATIVE} rollouts in a row, {last[-1]:.2g} now. Change ppo.value_learning_rate "
        f"({settings.value_learning_rate:g}) or ppo.value ({settings.value}), or set "
        "ppo.value_warmup_rollouts",
    )


def _sampler_off(last: Mapping[str, float], settings: PpoSettings) -> Alarm | None:
    gap = last["sampler_gap_mean"]
    if gap <= _MAX_SAMPLER_GAP:
        return None
    cut = settings.top_k > 0 or settings.top_p < 1
    advice = (
        "set ppo.top_k=0 and ppo.top_p=1"
        if cut
        else "set ppo.sampler_correction, or model.dtype=float32"
    )
    return Alarm(
        "sampler",
        f"tokens are drawn from another distribution than the one that is trained: their "
        f"log-probabilities differ by {gap:.3g} nats on average and {last['sampler_gap_max']:.3g} "
        f"at most, so ratios and KL are biased. To mend that, {advice}",
    )
