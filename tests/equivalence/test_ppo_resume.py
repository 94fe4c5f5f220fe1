"""A run of PPO that was killed ends as if it had never stopped, to the last bit."""

import json
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .ppo_runs import SmallRun

NUM_ROLLOUTS = 6
PARTS = "policy.", "value.", "ema.", "kept.previous.", "kept.best."
RUN_ENDED, KILLED, TIMED_OUT = 0, -signal.SIGKILL, -signal.SIGALRM


def small_run(folder: Path, **changes: Any) -> "SmallRun":
    """Everything that has a state is on: controller, moments, average, language, best policy."""
    from .ppo_runs import SmallRun

    small = SmallRun(
        str(folder),
        ptx_coefficient=0.2,
        ppo={
            "num_rollouts": NUM_ROLLOUTS, "kl_target": 0.05, "kl_horizon": 20, "ema_decay": 0.9,
            "kl_budget": 50.0, "value_warmup_rollouts": 1, "warmup_rollouts": 2,
            "eval_rollouts": 2, "keep": "best",
        },
        reward={"normalise": "running", "clip": 1.0},
    )  # fmt: skip
    return small.but(**changes)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nobody disturbed."""
    from .ppo_runs import execute

    folder = tmp_path_factory.mktemp("runs") / "straight"
    execute(small_run(folder))
    return folder


def assert_same_end(folder: Path, straight: Path) -> None:
    """Hold parameters, log and last checkpoint to those of the straight run, bit by bit."""
    import torch

    from sft_kit.training.ppo.checkpoints import load_state

    from .ppo_runs import parameters, told, without_clock

    expected = parameters(straight)
    for name, value in parameters(folder).items():
        assert torch.equal(value, expected[name]), name
    histories = [without_clock(told(each)["history"]) for each in (folder, straight)]
    assert histories[0] == histories[1]
    assert sum("kl" in entry for entry in histories[0]) == NUM_ROLLOUTS
    ours, theirs = (load_state(each / f"checkpoint-{NUM_ROLLOUTS}") for each in (folder, straight))
    assert bits(ours.tensors) == bits(theirs.tensors)
    for part in PARTS:
        assert any(name.startswith(part) for name in ours.tensors), part
    assert bits(ours.optimizer) == bits(theirs.optimizer)
    for name in ("kl_coefficient", "score_moments", "return_moments", "counters", "scheduler"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert logged(folder) == logged(straight)


def bits(value: Any) -> Any:
    """Write tensors as bytes, wherever they are."""
    import torch

    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [bits(each) for each in value]
    return value


def read_log(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def logged(folder: Path) -> list[dict[str, float]]:
    from .ppo_runs import without_clock

    entries = without_clock(read_log(folder))
    return [{name: entry[name] for name in entry if name != "time"} for entry in entries]


def test_three_rollouts_and_three_more_are_six(straight: Path, tmp_path: Path) -> None:
    import torch

    from sft_kit.training.ppo.loop import train_ppo

    from .ppo_runs import execute, make_run, told

    small = small_run(tmp_path / "run")
    run = make_run(small)

    class StopError(Exception):
        pass

    def stop(experience: Any, figures: dict[str, float]) -> None:
        if experience.rollout.index == 3:
            raise StopError  # after the fourth line of the log, and before its checkpoint

    run.on_rollout = stop
    with pytest.raises(StopError):
        train_ppo(run)
    assert logged(tmp_path / "run")[-1]["step"] == 4
    torch.manual_seed(99)  # nothing may depend on what the process drew so far
    random.seed(99)
    execute(small.but(resume=True))
    assert_same_end(tmp_path / "run", straight)
    rest = told(straight)["rollouts"][3:]
    assert told(tmp_path / "run")["rollouts"] == rest


def test_the_states_that_are_kept_do_move(straight: Path) -> None:
    from sft_kit.training.ppo.checkpoints import load_state

    before, after = (load_state(straight / f"checkpoint-{number}") for number in (5, 6))
    for name in ("kl_coefficient", "score_moments", "return_moments", "counters", "scheduler"):
        assert getattr(before, name) != getattr(after, name), name
    for part in PARTS[:-1]:
        names = [name for name in after.tensors if name.startswith(part)]
        assert any(bits(before.tensors[name]) != bits(after.tensors[name]) for name in names), part
    assert bits(before.optimizer) != bits(after.optimizer)


def test_the_kl_coefficient_follows_its_closed_form_through_a_resume(
    straight: Path, tmp_path: Path
) -> None:
    import shutil

    from .ppo_runs import execute

    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    execute(small_run(folder, ppo={"num_rollouts": NUM_ROLLOUTS + 3}, resume=True))
    entries = [entry for entry in logged(folder) if "kl" in entry]
    assert [entry["step"] for entry in entries] == list(range(1, NUM_ROLLOUTS + 4))
    expected = 0.1
    errors = []
    for entry in entries:
        assert entry["kl_coefficient"] == pytest.approx(expected, rel=1e-12)
        errors.append(min(max(entry["kl"] / 0.05 - 1, -0.2), 0.2))
        expected *= 1 + errors[-1] * 8 / 20
    assert len(set(errors)) > 1


@pytest.mark.slow
def test_a_new_process_goes_on_where_a_killed_one_stopped(straight: Path, tmp_path: Path) -> None:
    from .ppo_runs import in_new_processes

    small = small_run(tmp_path / "run")
    assert in_new_processes(small.but(kill_in_rollout=4)) == [KILLED]
    assert in_new_processes(small.but(resume=True)) == [RUN_ENDED]
    assert_same_end(tmp_path / "run", straight)


@pytest.mark.slow
def test_two_processes_go_on_from_the_checkpoint_of_one(straight: Path, tmp_path: Path) -> None:
    from .ppo_runs import in_new_processes, largest_difference, parameters

    small = small_run(tmp_path / "run")
    assert in_new_processes(small.but(kill_in_rollout=4)) == [KILLED]
    assert in_new_processes(small.but(resume=True), 2) == [RUN_ENDED] * 2
    found = parameters(tmp_path / "run", rank=1)
    assert largest_difference(found, parameters(straight)) <= 1e-5


@pytest.mark.slow
def test_kills_at_any_file_do_no_harm(straight: Path, tmp_path: Path) -> None:
    """A process is killed whenever it is about to write, rename or delete its n-th file."""
    from .ppo_runs import in_new_processes

    draw = random.Random(3)
    small = small_run(tmp_path / "run", resume=True)
    num_kills = 0
    while True:
        limit = draw.randint(1, 30) if num_kills < 12 else None
        (ended,) = in_new_processes(small.but(kill_at_file=limit))
        if ended == RUN_ENDED:
            break
        assert ended == KILLED
        num_kills += 1
    assert num_kills >= 5
    assert_same_end(tmp_path / "run", straight)


@pytest.mark.slow
def test_kills_at_any_time_do_no_harm(straight: Path, tmp_path: Path) -> None:
    from .ppo_runs import in_new_processes

    seconds = sum(entry.get("seconds", 0.0) for entry in read_log(straight))
    draw = random.Random(4)
    small = small_run(tmp_path / "run", resume=True)
    for _ in range(5):
        limit = draw.uniform(0.2, 0.7) * seconds
        assert in_new_processes(small.but(kill_after_seconds=limit)) in ([TIMED_OUT], [RUN_ENDED])
    assert in_new_processes(small) == [RUN_ENDED]
    assert_same_end(tmp_path / "run", straight)
