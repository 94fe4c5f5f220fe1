"""PPO gives the same policy with one process as with several, whatever their share of the work."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .test_sft import LAUNCHERS, REPOSITORY, free_port

if TYPE_CHECKING:
    from .ppo_runs import SmallRun

SECONDS = 180


def small_run(folder: Path) -> "SmallRun":
    from .ppo_runs import SmallRun

    return SmallRun(str(folder))


def assert_same_result(several: Path, one: Path, num_processes: int) -> None:
    """Hold several processes to one: what was drawn, what was logged, what was learnt."""
    from .ppo_runs import largest_difference, parameters, told, without_clock

    expected = told(one)
    start = parameters(one)
    for rank in range(num_processes):
        found = told(several, rank)
        assert found["rollouts"] == expected["rollouts"]
        assert found["num_steps"] == expected["num_steps"] > 0
        histories = [without_clock(each["history"]) for each in (found, expected)]
        assert [entry.keys() for entry in histories[0]] == [entry.keys() for entry in histories[1]]
        for theirs, ours in zip(*histories, strict=True):
            assert theirs == pytest.approx(ours, abs=1e-5, rel=1e-5)
        assert largest_difference(parameters(several, rank), start) <= 1e-5
        # On all ranks alike to the last bit, or they would drift apart.
        assert largest_difference(parameters(several, rank), parameters(several)) == 0


def both(small: "SmallRun", folder: Path, num_processes: int) -> tuple[Path, Path]:
    """Run in one process and in several."""
    from .ppo_runs import execute, in_new_processes

    one, several = folder / "one", folder / "several"
    execute(small.but(folder=str(one)))
    ended = in_new_processes(small.but(folder=str(several)), num_processes)
    assert ended == [0] * num_processes
    return one, several


@pytest.mark.slow
def test_two_processes_give_the_policy_and_the_figures_of_one(tmp_path: Path) -> None:
    one, two = both(small_run(tmp_path), tmp_path, 2)
    assert_same_result(two, one, 2)


@pytest.mark.slow
def test_two_processes_agree_with_one_on_dense_scores_language_and_running_moments(
    tmp_path: Path,
) -> None:
    small = small_run(tmp_path).but(
        is_dense=True,
        ptx_coefficient=0.2,
        ppo={"kl_target": 0.05, "kl_horizon": 20, "ema_decay": 0.9, "value_warmup_rollouts": 1},
        reward={"normalise": "running", "no_stop": "mask"},
    )
    one, two = both(small, tmp_path, 2)
    assert_same_result(two, one, 2)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["shared", "model"])
def test_two_processes_agree_with_one_on_a_policy_without_adapter(
    tmp_path: Path, value: str
) -> None:
    one, two = both(small_run(tmp_path).but(value=value), tmp_path, 2)
    assert_same_result(two, one, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "num_episodes"),
    [(2, 7), (3, 8), (3, 2)],
    ids=["odd episodes", "fewer atoms than processes", "fewer episodes than processes"],
)
def test_processes_may_have_unequal_shares_or_none(
    tmp_path: Path, num_processes: int, num_episodes: int
) -> None:
    # Two atoms per minibatch with 7 and 8 episodes, one with 2: a rank without work must neither
    # hang nor count.
    ppo = {"episodes_per_rollout": num_episodes, "generation_batch_size": 2}
    small = small_run(tmp_path).but(ppo=ppo, ptx_coefficient=0.1)
    one, several = both(small, tmp_path, num_processes)
    assert_same_result(several, one, num_processes)


@pytest.mark.slow
def test_a_policy_that_moved_too_far_stops_both_processes_at_the_same_update(
    tmp_path: Path,
) -> None:
    from .ppo_runs import largest_difference, parameters, told

    small = small_run(tmp_path).but(
        ppo={"num_epochs": 4, "kl_stop": 0.02, "num_rollouts": 3},
        args={"learning_rate": 1e-1, "lr_scheduler_type": "constant"},
    )
    one, two = both(small, tmp_path, 2)
    ranks = [told(two, rank) for rank in range(2)]
    for rank in ranks:
        assert rank["num_steps"] == ranks[0]["num_steps"] == told(one)["num_steps"]
        for entry in rank["history"]:
            assert entry["stopped_early"] == 1
            assert 1 <= entry["num_updates"] < 4 * 2
    assert sum(entry["num_updates"] for entry in ranks[0]["history"]) == ranks[0]["num_steps"]
    assert largest_difference(parameters(two, 0), parameters(two, 1)) == 0


@pytest.mark.slow
def test_torchrun_starts_processes_that_give_the_policy_of_one(tmp_path: Path) -> None:
    from .ppo_runs import as_json, execute

    small = small_run(tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    execute(small.but(folder=str(one)))
    # The module's name goes where a script's would; its argument follows.
    launcher = [*LAUNCHERS["torchrun"], str(free_port()), "-m", "tests.equivalence.ppo_runs"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [*launcher, as_json(small.but(folder=str(two)))]
    assert command[0] == sys.executable
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_result(two, one, 2)
