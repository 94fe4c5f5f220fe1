"""Rollouts made without a model: ragged, with garbage where nothing may be read."""

from collections.abc import Callable

import pytest

from sft_kit.training.ppo.rollout import Rollout

MakeRollout = Callable[..., Rollout]
STOP = 7


@pytest.fixture
def make_rollout() -> MakeRollout:
    """Makes a rollout from completions; other figures are drawn at random, fields replace them."""
    import dataclasses

    import torch

    from sft_kit.training.ppo.rollout import Episode

    def build(completions: list[list[int]], **fields: object) -> Rollout:
        generator = torch.Generator().manual_seed(17)
        shape = (len(completions), max(map(len, completions)))
        lengths = torch.tensor([len(completion) for completion in completions])
        mask = torch.arange(shape[1]) < lengths[:, None]

        def drawn(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator)

        def ragged() -> torch.Tensor:
            return torch.where(mask, drawn(*shape), torch.nan)

        logprobs = ragged() - 2
        episodes = [
            Episode(
                number=number,
                prompt=number % 2,
                prompt_ids=(1, 2),
                completion_ids=tuple(completion),
                sampled_logprobs=tuple([-1.0] * len(completion)),
                stopped=completion[-1] == STOP,
            )
            for number, completion in enumerate(completions)
        ]
        scores = drawn(shape[0])
        rollout = Rollout(
            index=3,
            episodes=episodes,
            mask=mask,
            policy_mask=mask.clone(),
            logprobs=logprobs,
            ref_logprobs=logprobs + ragged() / 2,
            sampled_logprobs=logprobs + ragged() / 10,
            entropies=ragged().abs(),
            values=ragged(),
            scores=scores,
            final_scores=scores.clamp(-1, 1),
            score_parts={"model": scores * 2, "words.py:happy": drawn(shape[0])},
            kl_coefficient=0.05,
            rewards=ragged(),
            advantages=ragged(),
            returns=ragged(),
        )
        return dataclasses.replace(rollout, **fields)

    return build
