"""The Trainer's seams for reward models, and what they learn of preferences with a known cause."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from sft_kit.models.reward_model import ScoreScale, load_reward_model
from sft_kit.objectives.preference import pairwise_loss
from sft_kit.settings import ModelSettings, RewardSettings
from sft_kit.training.preference import (
    ScoredGroups,
    make_reward_loss,
    measure_scale,
    reward_loss,
    scores_by_group,
)

LABELS = torch.tensor([[2.0, 0.5], [4.0, 0.0], [3.0, 0.0]])
ONES = np.ones


def test_scores_of_a_batch_are_put_into_rows_of_their_groups():
    logits = torch.arange(1.0, 10.0).unsqueeze(1)
    expected = torch.tensor([[1.0, 2, 0, 0], [3, 4, 5, 6], [7, 8, 9, 0]])
    assert torch.equal(scores_by_group(logits, LABELS), expected)
    assert torch.equal(scores_by_group((logits, logits), LABELS), expected)
    labels = np.asarray(LABELS)
    groups = ScoredGroups(expected.numpy(), labels, {}).by_group()
    assert [row.tolist() for row in groups] == [[1, 2], [3, 4, 5, 6], [7, 8, 9]]


def test_the_loss_divides_by_the_groups_that_the_trainer_counts():
    outputs = SimpleNamespace(logits=torch.randn(9, 1))
    counted = LABELS.ne(-100).sum()  # as the Trainer counts items
    whole = pairwise_loss(outputs.logits, LABELS)
    torch.testing.assert_close(reward_loss(outputs, LABELS, counted), whole)
    torch.testing.assert_close(reward_loss(outputs, LABELS, counted * 4), whole / 4)
    torch.testing.assert_close(reward_loss(outputs, LABELS), whole)


def test_the_section_reward_is_what_the_loss_uses():
    outputs = SimpleNamespace(logits=torch.randn(9, 1))
    found = make_reward_loss(RewardSettings(label_smoothing=0.2, center_weight=0.5))
    expected = pairwise_loss(outputs.logits, LABELS, label_smoothing=0.2, center_weight=0.5)
    assert torch.equal(found(outputs, LABELS), expected)
    assert not torch.equal(found(outputs, LABELS), reward_loss(outputs, LABELS))


def test_the_scale_is_of_the_first_answers():
    groups = ScoredGroups(np.asarray([[1.0, 9.0], [3.0, -9.0]]), np.asarray(LABELS[:2]), {})
    scale = measure_scale(SimpleNamespace(), groups)
    assert scale == ScoreScale(mean=2.0, std=1.0, num=2, rows="held-out")


# --- preferences with a known cause --------------------------------------------------------------

NUM_WORDS = 16
FIRST_WORD = 10


class World:
    """Answers of 3 to 9 words; the mean of their words' weights is how good they are."""

    def __init__(self, seed: int) -> None:
        self.draw = np.random.default_rng(seed)
        self.weights = np.random.default_rng(0).normal(0, 4, size=NUM_WORDS)

    def pairs(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw pairs.

        Returns:
            Ids (2 N, 10) padded with 0, lengths (2 N) and latent scores (2 N); the answer that won
            stands before the other one.
        """
        lengths = self.draw.integers(3, 10, size=2 * count)
        words = self.draw.integers(0, NUM_WORDS, size=(2 * count, 9))
        inside = np.arange(9) < lengths[:, None]
        latent = (self.weights[words] * inside).sum(axis=1) / lengths
        ids = np.where(inside, words + FIRST_WORD, 0)
        ids = np.pad(ids, ((0, 0), (0, 1)))
        ids[np.arange(2 * count), lengths] = 1  # the stop token
        first, second = np.arange(0, 2 * count, 2), np.arange(1, 2 * count, 2)
        wins = self.draw.random(count) < 1 / (1 + np.exp(latent[second] - latent[first]))
        order = np.stack([np.where(wins, first, second), np.where(wins, second, first)], axis=1)
        order = order.ravel()
        return ids[order], lengths[order] + 1, latent[order]


def forward(model, ids: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    mask = torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None]).long()
    return model(input_ids=torch.from_numpy(ids), attention_mask=mask).logits[:, 0]


def learn(folder: Path, num_pairs: int, num_epochs: int, center_weight: float):
    """Train a tiny GPT-2 on noisy pairs, and score 4,000 pairs that it has not seen.

    Returns:
        Scores, lengths and latent scores, each (8,000), the winner before the other one.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=64, n_layer=2, n_head=2, bos_token_id=1,
        eos_token_id=1,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    model = load_reward_model(ModelSettings(checkpoint=str(folder)), pad_token_id=None).train()
    ids, lengths, _ = World(1).pairs(num_pairs)
    steps = num_epochs * num_pairs // 128
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    labels = torch.tensor([[2.0, 0.0]] * 128)
    for step in range(steps):
        rows = np.arange(step * 256, (step + 1) * 256) % len(ids)
        scores = forward(model, ids[rows], lengths[rows])
        pairwise_loss(scores, labels, center_weight=center_weight).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    ids, lengths, latent = World(2).pairs(4_000)
    with torch.no_grad():
        return forward(model.eval(), ids, lengths).double().numpy(), lengths, latent


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Without centring: it draws the scores of answers to different prompts together."""
    return learn(tmp_path_factory.mktemp("world"), 16_000, 2, center_weight=0.0)


@pytest.mark.slow
def test_preferences_with_a_known_cause_are_learnt_as_well_as_can_be(learnt):
    from sft_kit.evaluation.preference_scores import pair_calibration_error

    scores, _, latent = learnt
    true = latent[::2] - latent[1::2]
    # The best one can do: pick the answer that is better indeed.
    best = (1 / (1 + np.exp(-np.abs(true)))).mean()
    found = scores[::2] - scores[1::2]
    print(f"accuracy {(found > 0).mean():.4f}, Bayes {best:.4f}")
    error = pair_calibration_error(found, ONES(len(found)))
    correlation = spearmanr(scores, latent).statistic
    print(f"calibration error {error:.4f}, rank correlation {correlation:.4f}")
    assert best < 0.9, "a world without noise shows nothing"
    assert abs((found > 0).mean() - best) < 0.02
    assert error < 0.03
    assert correlation > 0.95


@pytest.mark.slow
def test_length_is_no_cause_where_preferences_do_not_depend_on_it(learnt):
    scores, lengths, latent = learnt
    correlation = spearmanr(scores, lengths).statistic
    print(f"rank correlation with length {correlation:.4f}")
    assert abs(spearmanr(latent, lengths).statistic) < 0.05
    assert abs(correlation) < 0.1


@pytest.mark.slow
def test_centred_scores_lie_around_zero(tmp_path):
    scores, _, _ = learn(tmp_path, 8_000, 1, center_weight=0.01)
    print(f"mean {scores.mean():.4f}, standard deviation {scores.std():.4f}")
    assert abs(scores.mean()) < 0.1
    assert scores.std() > 0.5
    assert math.isfinite(scores.max())
