"""Every update, prompt and figure of a run of PPO is counted again, by other means."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .ppo_runs import SmallRun

    Floats = NDArray[np.float64]

EPISODES, EPOCHS, MINIBATCHES = 8, 2, 2


def small_run(folder: Path, **changes: Any) -> "SmallRun":
    from .ppo_runs import SmallRun

    return SmallRun(str(folder)).but(**changes)


# --- updates and prompts -------------------------------------------------------------------------


@pytest.mark.parametrize("num_prompts", [1, EPISODES - 1, EPISODES, EPISODES + 1, 4 * EPISODES])
def test_updates_and_prompts_are_as_many_as_asked_for(tmp_path: Path, num_prompts: int) -> None:
    from sft_kit.training.ppo.checkpoints import load_state

    from .ppo_runs import execute, told

    num_rollouts = 3
    # A learning rate that falls to 0 after the last rollout shows how often it was stepped.
    small = small_run(
        tmp_path, num_prompts=num_prompts, value="shared", ppo={"num_rollouts": num_rollouts}
    )
    execute(small)
    seen = told(tmp_path)
    assert seen["num_steps"] == num_rollouts * EPOCHS * MINIBATCHES
    assert [entry["num_updates"] for entry in seen["history"]] == [EPOCHS * MINIBATCHES] * 3
    assert [entry["step"] for entry in seen["history"]] == [1, 2, 3]
    state = load_state(tmp_path / f"checkpoint-{num_rollouts}")
    assert state.scheduler["last_epoch"] == num_rollouts
    assert state.counters["num_updates"] == seen["num_steps"]
    rates = [entry["learning_rate"] for entry in seen["history"]]
    assert rates == pytest.approx([3e-3, 2e-3, 1e-3])
    taken = [prompt for rollout in seen["rollouts"] for prompt in rollout["prompts"]]
    counts = np.bincount(taken, minlength=num_prompts)
    assert counts.sum() == num_rollouts * EPISODES
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("num_epochs", "num_minibatches", "micro_batch"), [(3, 4, 8), (1, 3, 1)])
def test_the_size_of_a_forward_does_not_change_the_number_of_updates(
    tmp_path: Path, num_epochs: int, num_minibatches: int, micro_batch: int
) -> None:
    from .ppo_runs import execute, told

    ppo = {"num_rollouts": 2, "num_epochs": num_epochs, "num_minibatches": num_minibatches}
    small = small_run(tmp_path, value="shared", ppo=ppo)
    execute(small.but(args={"per_device_train_batch_size": micro_batch}))
    assert told(tmp_path)["num_steps"] == 2 * num_epochs * num_minibatches


def test_a_policy_that_moved_too_far_ends_the_updates_of_its_rollout(tmp_path: Path) -> None:
    from .ppo_runs import execute, told

    ppo = {"num_rollouts": 2, "num_epochs": 4, "kl_stop": 0.02}
    fast = small_run(tmp_path / "fast", value="shared", ppo=ppo, args={"learning_rate": 1e-1})
    execute(fast)
    seen = told(tmp_path / "fast")
    for entry in seen["history"]:
        assert entry["stopped_early"] == 1
        assert 1 <= entry["num_updates"] < 4 * MINIBATCHES
        # The epoch in which the limit was passed says so; all epochs before it stayed below.
        moved = [value for name, value in entry.items() if name.startswith("approx_kl/epoch_")]
        assert max(moved) == moved[-1] > 0.02
    assert seen["num_steps"] == sum(entry["num_updates"] for entry in seen["history"])
    execute(small_run(tmp_path / "slow", value="shared", ppo=ppo, args={"learning_rate": 1e-6}))
    slow = told(tmp_path / "slow")
    assert [entry["stopped_early"] for entry in slow["history"]] == [0, 0]
    assert slow["num_steps"] == 2 * 4 * MINIBATCHES


# --- figures -------------------------------------------------------------------------------------


class Dump:
    """A rollout as `dump_rollouts` wrote it, in float64; ragged rows are lists."""

    def __init__(self, folder: Path, index: int) -> None:
        from safetensors.numpy import load_file

        place = folder / "rollouts"
        said = json.loads((place / f"{index:05d}.json").read_text(encoding="utf-8"))
        self.episodes = said["episodes"]
        self.beta: float = said["kl_coefficient"]
        self.return_std: float = said["return_std"]
        self._tensors = load_file(place / f"{index:05d}.safetensors")
        self.lengths = [len(episode["completion_ids"]) for episode in self.episodes]

    def rows(self, name: str) -> "list[Floats]":
        """Values of a tensor at the tokens of each completion: what pads them is not read."""
        tensor = self._tensors[name].astype(np.float64)
        return [row[:length] for row, length in zip(tensor, self.lengths, strict=True)]

    def tokens(self, name: str) -> "Floats":
        return np.concatenate(self.rows(name))

    def column(self, name: str) -> "Floats":
        return self._tensors[name].astype(np.float64)

    @property
    def kl(self) -> "list[Floats]":
        pairs = zip(self.rows("logprobs"), self.rows("ref_logprobs"), strict=True)
        return [ours - theirs for ours, theirs in pairs]


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three rollouts with penalties, clipped and running scores, and dense ones."""
    from .ppo_runs import execute

    folder = tmp_path_factory.mktemp("runs") / "dumped"
    execute(
        small_run(
            folder,
            is_dense=True,
            ppo={"num_rollouts": 3, "dump_rollouts": True, "kl_target": 0.05, "kl_horizon": 20},
            reward={
                "no_stop": "penalise", "no_stop_value": 0.7, "normalise": "running", "clip": 1.5,
            },
            args={"learning_rate": 2e-2},
        )
    )  # fmt: skip
    return folder


def log_of(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_logged_scores_are_those_of_the_dumped_completions(dumped: Path) -> None:
    from .ppo_runs import STOPS, WANTED

    before: list[float] = []
    for index, entry in enumerate(log_of(dumped)):
        dump = Dump(dumped, index)
        at_end = []
        dense = []
        for episode in dump.episodes:
            ids = episode["completion_ids"]
            stopped = ids[-1] in STOPS
            assert episode["stopped"] == stopped
            liked = sum(1 for token in ids if token in WANTED)
            at_end.append(liked / 4 + 0.5 * stopped + 0.1 * episode["prompt"])
            dense.append(sum(-token / 50 for token in ids))
        raw = np.array(at_end) + np.array(dense)
        ruled = np.array(at_end) - 0.7 * ~np.array([one["stopped"] for one in dump.episodes])
        before += (ruled + np.array(dense)).tolist()
        std = np.std(before)
        final = np.clip(ruled / std, -1.5, 1.5)
        assert entry["score_mean"] == pytest.approx(raw.mean(), abs=1e-5)
        assert entry["score_std"] == pytest.approx(raw.std(), abs=1e-5)
        assert entry["final_score_mean"] == pytest.approx(final.mean(), abs=1e-5)
        assert entry["token_score_mean"] == pytest.approx(np.mean(dense) / std, abs=1e-5)
        np.testing.assert_allclose(dump.column("final_scores"), final, atol=1e-5)
        stop_fraction = np.mean([one["stopped"] for one in dump.episodes])
        assert entry["stop_fraction"] == pytest.approx(stop_fraction)


def test_logged_divergence_and_values_are_those_of_the_dumped_tensors(dumped: Path) -> None:
    beta = 0.1
    for index, entry in enumerate(log_of(dumped)):
        dump = Dump(dumped, index)
        per_episode = np.array([row.sum() for row in dump.kl])
        every = np.concatenate(dump.kl)
        k3 = np.exp(-every) - 1 + every
        assert entry["kl"] == pytest.approx(per_episode.mean(), abs=1e-5)
        assert entry["kl_per_token"] == pytest.approx(every.mean(), abs=1e-5)
        assert entry["kl_k3_per_token"] == pytest.approx(k3.mean(), abs=1e-5)
        assert entry["kl_k3"] == pytest.approx(k3.sum() / EPISODES, abs=1e-5)
        assert entry["kl_coefficient"] == dump.beta == pytest.approx(beta, rel=1e-9)
        beta *= 1 + np.clip(per_episode.mean() / 0.05 - 1, -0.2, 0.2) * EPISODES / 20
        returns, values = dump.tokens("returns"), dump.tokens("values")
        explained = 1 - np.var(returns - values) / np.var(returns)
        assert entry["explained_variance"] == pytest.approx(explained, abs=1e-5)
        assert entry["return_std"] == pytest.approx(returns.std(), abs=1e-5)
        assert entry["value_mean"] == pytest.approx(values.mean(), abs=1e-5)
        assert entry["entropy"] == pytest.approx(dump.tokens("entropies").mean(), abs=1e-5)
        gap = np.abs(dump.tokens("logprobs") - dump.tokens("sampled_logprobs"))
        assert entry["sampler_gap_max"] == pytest.approx(gap.max(), abs=1e-5)
    assert index == 2
    assert abs(entry["kl"]) > 1e-2


def test_dumped_advantages_follow_from_the_other_dumped_tensors(dumped: Path) -> None:
    for index in range(3):
        dump = Dump(dumped, index)
        found = [by_hand(dump, row, dump.column("final_scores")[row]) for row in range(EPISODES)]
        raw = np.concatenate([advantages for _, advantages in found])
        np.testing.assert_allclose(
            dump.tokens("rewards"), np.concatenate([rewards for rewards, _ in found]), atol=1e-5
        )
        np.testing.assert_allclose(dump.tokens("returns"), raw + dump.tokens("values"), atol=1e-5)
        scaled = (raw - raw.mean()) / np.sqrt(raw.var() + 1e-4**2)
        np.testing.assert_allclose(dump.tokens("advantages"), scaled, atol=1e-4)


def by_hand(dump: Dump, row: int, final: float) -> "tuple[Floats, Floats]":
    """Rewards, and advantages as the double sum of discounted temporal differences."""
    rewards = -dump.beta * dump.kl[row] + dump.rows("token_scores")[row]
    rewards[-1] += final
    values = np.append(dump.rows("values")[row], 0.0)
    deltas = rewards + values[1:] - values[:-1]
    num = len(rewards)
    advantages = [sum(0.95 ** (k - t) * deltas[k] for k in range(t, num)) for t in range(num)]
    return rewards, np.array(advantages)


@pytest.fixture(scope="module")
def one_update(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of two runs: one update of a rollout, and the same update with one more after it."""
    from .ppo_runs import execute

    folder = tmp_path_factory.mktemp("runs")
    small = small_run(
        folder,
        ppo={
            "num_rollouts": 1, "num_minibatches": 1, "dump_rollouts": True,
            "entropy_coefficient": 0.01,
        },
        args={"learning_rate": 3e-2},
    )  # fmt: skip
    execute(small.but(folder=str(folder / "one"), ppo={"num_epochs": 1}))
    execute(small.but(folder=str(folder / "two"), ppo={"num_epochs": 2}))
    return folder / "one", folder / "two"


def read_again(dump: Dump, parameters: Path | None) -> "tuple[Floats, Floats]":
    """Logprobs and entropies of all tokens: transformers' model and PEFT's adapter, row by row."""
    import torch
    from peft import get_peft_model

    from .ppo_runs import lora, random_gpt2
    from .ppo_runs import parameters as read

    model = get_peft_model(random_gpt2(0), lora()).eval()
    if parameters is not None:
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in read(parameters).items():
                if name in own:
                    own[name].copy_(value)
    logprobs, entropies = [], []
    for episode in dump.episodes:
        prompt, completion = episode["prompt_ids"], episode["completion_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0].double()
        every = logits.log_softmax(-1)[len(prompt) - 1 : -1].numpy()
        logprobs += [row[token] for row, token in zip(every, completion, strict=True)]
        entropies += [-(np.exp(row) * row).sum() for row in every]
    return np.array(logprobs), np.array(entropies)


def test_dumped_logprobs_and_entropies_are_those_of_transformers(
    one_update: tuple[Path, Path],
) -> None:
    dump = Dump(one_update[1], 0)
    logprobs, entropies = read_again(dump, None)
    np.testing.assert_allclose(dump.tokens("logprobs"), logprobs, atol=1e-5)
    np.testing.assert_allclose(dump.tokens("entropies"), entropies, atol=1e-5)
    assert log_of(one_update[1])[0]["entropy"] == pytest.approx(entropies.mean(), abs=1e-5)


def test_figures_of_an_update_are_those_of_the_policy_before_it(
    one_update: tuple[Path, Path],
) -> None:
    one, two = one_update
    dump, entry = Dump(two, 0), log_of(two)[0]
    old, first_entropies = read_again(dump, None)
    new, entropies = read_again(dump, one)  # what the second update of the longer run starts from
    log_ratio = new - old
    ratio, advantages = np.exp(log_ratio), dump.tokens("advantages")
    approx_kl = ratio - 1 - log_ratio
    assert entry["approx_kl/epoch_1"] == pytest.approx(0, abs=1e-9)
    assert entry["approx_kl/epoch_2"] == pytest.approx(approx_kl.mean(), abs=1e-5)
    assert entry["approx_kl"] == pytest.approx(approx_kl.mean() / 2, abs=1e-5)
    # Clipped where that lowers the objective: nothing in the first of the two updates.
    low = (ratio < 0.8) & (advantages < 0)
    high = (ratio > 1.2) & (advantages > 0)
    assert low.sum() > 0
    assert high.sum() > 0
    assert entry["clip_low_fraction"] == pytest.approx(low.mean() / 2, abs=1e-5)
    assert entry["clip_high_fraction"] == pytest.approx(high.mean() / 2, abs=1e-5)
    mean_entropy = (first_entropies.mean() + entropies.mean()) / 2
    assert entry["update_entropy"] == pytest.approx(mean_entropy, abs=1e-5)
    objective = np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages)
    mean_loss = -(advantages.mean() + objective.mean()) / 2
    assert entry["policy_loss"] == pytest.approx(mean_loss, abs=1e-5)
    assert entry["first_ratio_error"] == 0
