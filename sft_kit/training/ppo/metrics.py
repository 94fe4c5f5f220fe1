"""The figures of a rollout, and of the updates made from it.

Shapes: B episodes of the whole rollout, C completion tokens of the longest one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from sft_kit.objectives.advantages import explained_variance
from sft_kit.objectives.kl import kl_estimates
from sft_kit.training.ppo.rollout import Rollout

_NGRAM_TOKENS = 3
_LENGTH_QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Work out what is logged of a rollout: every figure over all episodes of all processes.

    A figure that nothing is known about (the gold score without a gold function, the spread of
    advantages where no token enters the policy loss, a correlation with something constant, what
    values explain when they are not numbers) is left out.

    Args:
        rollout: Scored, with rewards, advantages and returns.

    Returns:
        In units of the score: `score_*` as the sources gave them, `score_mean/SOURCE`,
        `final_score_*` after rule, scale and clip, `token_score_*` per episode, `gold_mean`. In
        nats: `kl` and `kl_k3` per episode, the same `_per_token`, `entropy` per token,
        `sampler_gap_*` between drawing and training. In tokens: `completion_length_*`. In [0, 1]:
        `*_fraction`, where `shared_completion_fraction` is the share of episodes whose completion
        also answers another prompt. In units of a return: `value_*`, `return_*`. Means
        are over episodes for scores and over all tokens of completions else; standard deviations
        are biased.

    Source:
        The estimators k1 and k3: Schulman, "Approximating KL Divergence" (2020).
    """
    return {
        **_score_metrics(rollout),
        **_kl_metrics(rollout),
        "entropy": _mean(rollout.entropies, rollout.mask),
        **_value_metrics(rollout),
        **completion_metrics([episode.completion_ids for episode in rollout.episodes]),
        **_shared_completions(rollout),
        "stop_fraction": sum(one.stopped for one in rollout.episodes) / len(rollout.episodes),
        **_length_correlation(rollout),
        **_sampler_metrics(rollout),
    }


def completion_metrics(completions: Sequence[Sequence[int]]) -> dict[str, float]:
    """Describe completions without their scores: lengths, repetition, and how many are distinct.

    Args:
        completions: Token ids of each, stop token included.

    Returns:
        `completion_length_mean` and quantiles in tokens; `repeated_ngram_fraction`, the share of
        three tokens in a row that stand earlier in the same completion; and
        `distinct_completion_fraction`.
    """
    lengths = np.array([len(completion) for completion in completions])
    figures = {"completion_length_mean": float(lengths.mean())}
    for name, share in _LENGTH_QUANTILES.items():
        figures[f"completion_length_{name}"] = float(np.quantile(lengths, share))
    num_ngrams = num_repeated = 0
    for completion in completions:
        shifted = [completion[start:] for start in range(_NGRAM_TOKENS)]
        ngrams = list(zip(*shifted, strict=False))
        num_ngrams += len(ngrams)
        num_repeated += len(ngrams) - len(set(ngrams))
    figures["repeated_ngram_fraction"] = num_repeated / max(1, num_ngrams)
    figures["distinct_completion_fraction"] = len(set(map(tuple, completions))) / len(completions)
    return figures


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's correlation, ties at their mean rank.

    Returns:
        In [-1, 1]; None where one of the two is constant.
    """
    ranks = [_ranks(np.asarray(numbers, dtype=np.float64)) for numbers in (first, second)]
    one, other = (numbers - numbers.mean() for numbers in ranks)
    size = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / size if size > 0 else None


def _ranks(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _score_metrics(rollout: Rollout) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, scores in (("score", rollout.scores), ("final_score", rollout.final_scores)):
        figures |= _spread(name, scores)
        figures[f"{name}_min"] = float(scores.min())
        figures[f"{name}_max"] = float(scores.max())
    for source, scores in rollout.score_parts.items():
        figures[f"score_mean/{source}"] = float(scores.double().mean())
    if rollout.token_scores is not None:
        figures |= _spread("token_score", _kept(rollout.token_scores, rollout.mask).sum(dim=1))
    if rollout.gold is not None:
        figures["gold_mean"] = float(rollout.gold.double().mean())
    return figures


def _kl_metrics(rollout: Rollout) -> dict[str, float]:
    estimates = kl_estimates(rollout.logprobs, rollout.ref_logprobs)
    figures: dict[str, float] = {}
    for name, estimate in (("kl", estimates.k1), ("kl_k3", estimates.k3)):
        figures[name] = float(_kept(estimate, rollout.mask).sum(dim=1).mean())
        figures[f"{name}_per_token"] = _mean(estimate, rollout.mask)
    return {**figures, "kl_coefficient": rollout.kl_coefficient}


def _value_metrics(rollout: Rollout) -> dict[str, float]:
    mask = rollout.mask
    figures = {
        **_spread("value", rollout.values[mask]),
        **_spread("return", rollout.returns[mask]),
    }
    if math.isfinite(figures["value_mean"]) and math.isfinite(figures["return_mean"]):
        explained = explained_variance(rollout.values, rollout.returns, mask)
        figures["explained_variance"] = explained
    if rollout.policy_mask.any():
        figures |= _spread("advantage", rollout.advantages[rollout.policy_mask])
    return figures


def _shared_completions(rollout: Rollout) -> dict[str, float]:
    """Count completions that also answer another prompt, where there is more than one."""
    episodes = rollout.episodes
    answered: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for episode in episodes:
        answered.setdefault(episode.completion_ids, set()).add(episode.prompt_ids)
    if len({episode.prompt_ids for episode in episodes}) == 1:
        return {}
    num_shared = sum(len(answered[episode.completion_ids]) > 1 for episode in episodes)
    return {"shared_completion_fraction": num_shared / len(episodes)}


def _length_correlation(rollout: Rollout) -> dict[str, float]:
    lengths = [float(len(episode.completion_ids)) for episode in rollout.episodes]
    correlation = rank_correlation(rollout.scores.tolist(), lengths)
    return {} if correlation is None else {"score_length_correlation": correlation}


def _sampler_metrics(rollout: Rollout) -> dict[str, float]:
    gap = (rollout.logprobs - rollout.sampled_logprobs)[rollout.mask].double()
    return {
        "sampler_gap_max": float(gap.abs().max()),
        "sampler_gap_mean": float(gap.abs().mean()),
        "sampler_ratio_mean": float(gap.exp().mean()),
    }


def _spread(name: str, numbers: torch.Tensor) -> dict[str, float]:
    """Mean and biased standard deviation."""
    numbers = numbers.double()
    return {
        f"{name}_mean": float(numbers.mean()),
        f"{name}_std": float(numbers.std(correction=0)),
    }


def _kept(numbers: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Float64 with 0 outside the mask, whatever stands there."""
    return torch.where(mask, numbers, 0.0).double()


def _mean(numbers: torch.Tensor, mask: torch.Tensor) -> float:
    return float(numbers[mask].double().mean())


@dataclass(slots=True)
class UpdateSums:
    """What the optimizer saw in the updates of one rollout, added up minibatch by minibatch.

    Attributes:
        sums: Figure -> sum over its tokens.
        counts: Figure -> number of these tokens.
        norms: Gradient -> its norm in every update that was made.
        first_ratio_error: Largest |ratio - 1| of the first minibatch, where every ratio has to be
            1; None before it.
        num_updates: Optimizer steps made.
        num_skipped_updates: Steps not made because the gradient was no number.
        stopped_early: The policy moved so far that the other updates were left out.
    """

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    norms: dict[str, list[float]] = field(default_factory=dict)
    first_ratio_error: float | None = None
    num_updates: int = 0
    num_skipped_updates: int = 0
    stopped_early: bool = False

    def add_minibatch(
        self,
        *,
        epoch: int,
        sums: Mapping[str, float],
        num_policy_tokens: int,
        num_value_tokens: int,
        num_policy_terms: int | None = None,
        num_ptx_tokens: int = 0,
        ratio_error: float | None = None,
    ) -> None:
        """Add a minibatch of all processes.

        Args:
            epoch: Number of the epoch in the rollout, from 0.
            sums: Sums over all processes, of those there are: `policy_loss`, `approx_kl`,
                `clipped_low`, `clipped_high`, `entropy` over the tokens of the policy loss,
                `value_loss`, `value_clipped` over those of the value loss, `ptx_loss` over those
                of the language loss.
            num_policy_tokens: Tokens of the policy loss.
            num_value_tokens: Tokens of the value loss.
            num_policy_terms: What `policy_loss` is a sum of, where that is not tokens: the
                completions of a loss that is the mean over completions.
            num_ptx_tokens: Tokens of the language loss.
            ratio_error: Largest |ratio - 1|; only that of the first minibatch is kept.
        """
        policy_terms = num_policy_tokens if num_policy_terms is None else num_policy_terms
        special = {
            "policy_loss": policy_terms,
            "value_loss": num_value_tokens,
            "value_clipped": num_value_tokens,
            "ptx_loss": num_ptx_tokens,
        }
        for name, total in sums.items():
            self._add(name, total, special.get(name, num_policy_tokens))
        if "approx_kl" in sums:
            self._add(f"approx_kl/epoch_{epoch + 1}", sums["approx_kl"], num_policy_tokens)
        if self.first_ratio_error is None:
            self.first_ratio_error = ratio_error

    def add_update(
        self,
        *,
        policy_grad_norm: float | None,
        value_grad_norm: float | None,
        ptx_grad_norm: float | None = None,
        ppo_grad_norm: float | None = None,
        skipped: bool = False,
    ) -> None:
        """Add an update; norms are those before clipping.

        Args:
            policy_grad_norm: Of everything the policy's parameters got; None where they rest.
            value_grad_norm: Of what belongs to values only; None where there is no such thing.
            ptx_grad_norm: Of the language loss alone, its coefficient included.
            ppo_grad_norm: Of the policy without the language loss.
            skipped: The step was not made.
        """
        norms = {
            "policy_grad_norm": policy_grad_norm,
            "value_grad_norm": value_grad_norm,
            "ptx_grad_norm": ptx_grad_norm,
            "ppo_grad_norm": ppo_grad_norm,
        }
        for name, norm in norms.items():
            if norm is not None and not skipped:
                self.norms.setdefault(name, []).append(norm)
        self.num_updates += not skipped
        self.num_skipped_updates += skipped

    def metrics(self) -> dict[str, float]:
        """Divide the sums by their counts.

        Returns:
            `policy_loss`, `value_loss` and `ptx_loss` per term; `approx_kl`, also per epoch, in
            nats per token; `clip_low_fraction`, `clip_high_fraction`, `value_clip_fraction` of the
            tokens; `update_entropy` in nats per token; the mean over updates of gradient norms,
            `ptx_to_ppo_grad_norm`, the ratio of two of them; counts.
        """
        figures = {
            _LOGGED_AS.get(name, name): total / self.counts[name]
            for name, total in self.sums.items()
            if self.counts[name]
        }
        figures |= {name: math.fsum(norms) / len(norms) for name, norms in self.norms.items()}
        ppo = math.fsum(self.norms.get("ppo_grad_norm", []))
        if ppo > 0 and "ptx_grad_norm" in self.norms:
            figures["ptx_to_ppo_grad_norm"] = math.fsum(self.norms["ptx_grad_norm"]) / ppo
        if self.first_ratio_error is not None:
            figures["first_ratio_error"] = self.first_ratio_error
        return {
            **figures,
            "num_updates": float(self.num_updates),
            "num_skipped_updates": float(self.num_skipped_updates),
            "stopped_early": float(self.stopped_early),
        }

    def _add(self, name: str, total: float, count: int) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + total
        self.counts[name] = self.counts.get(name, 0) + count


_LOGGED_AS = {
    "clipped_low": "clip_low_fraction",
    "clipped_high": "clip_high_fraction",
    "value_clipped": "value_clip_fraction",
    "entropy": "update_entropy",
}
