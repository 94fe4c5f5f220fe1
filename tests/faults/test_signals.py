"""Signals at named moments of real runs: the exit code, what the run says, and how it goes on."""

import importlib
import inspect
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import pytest

from ..hub_stand_in.here import stand_in
from . import harness
from .harness import Job

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
PHASES = {
    "tokenize": ("sft_kit.data.tokenization", "encode_segments"),
    "load": ("transformers", "PreTrainedModel.from_pretrained"),
    "forward": ("sft_kit.training.trainer", "SafeTrainer.training_step"),
    "evaluate": ("sft_kit.training.trainer", "SafeTrainer.prediction_step"),
    "save": ("sft_kit.training.trainer", "SafeTrainer._save_rng_state"),
    "log": ("sft_kit.training.trainer", "SafeTrainer.log"),
    "roll out": ("sft_kit.training.ppo.loop", "collect"),
    "learn": ("sft_kit.training.ppo.loop", "optimize"),
    "save a rollout": ("sft_kit.training.ppo.checkpoints", "save_file"),
    "finish": ("sft_kit.artifacts.save", "reload_difference"),
    "push": ("sft_kit.artifacts.publishing", "push_run"),
    "commit": ("sft_kit.hub.push", "_commit"),
}
"""What is called in a phase: module, and function or method."""
OF_TRAINER = {"forward", "evaluate", "save", "log"}


@dataclass(frozen=True)
class Moment:
    """When a signal comes: at the n-th call of what a phase calls."""

    job: str
    phase: str
    call: int
    number: signal.Signals


def send_at(phase: str, call: int, act: Callable[[], None]) -> Callable[[], None]:
    """Make what arms a process: something happens at the n-th call of a phase's function."""

    def arm() -> None:
        # A shell has its background jobs ignore it, and they hand that on.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        module_name, path = PHASES[phase]
        holder: object = importlib.import_module(module_name)
        *classes, name = path.split(".")
        for one in classes:
            holder = getattr(holder, one)
        original = inspect.getattr_static(holder, name)
        bare = original.__func__ if isinstance(original, classmethod) else original
        calls = [0]

        def watched(*args: object, **kwargs: object) -> object:
            in_train = phase not in OF_TRAINER or getattr(args[0], "is_in_train", False)
            calls[0] += in_train
            if in_train and calls[0] == call:
                act()
            return bare(*args, **kwargs)

        is_class = isinstance(original, classmethod)
        setattr(holder, name, classmethod(watched) if is_class else watched)

    return arm


def signal_itself(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def moments(job: str, phases: dict[str, int], count: int) -> Iterator[Moment]:
    """Go round the phases, each time at another call, with either signal."""
    signals = cycle((signal.SIGTERM, signal.SIGINT))
    rounds = ((phase, 1 + turn % most) for turn in range(100) for phase, most in phases.items())
    for phase, call in islice(rounds, count):
        yield Moment(job, phase, call, next(signals))


SFT = {"forward": 7, "evaluate": 6, "save": 2, "log": 4, "tokenize": 2, "load": 1, "finish": 1}
CLASSIFY = {"forward": 7, "evaluate": 3, "save": 2, "log": 4, "load": 1, "finish": 1}
PPO = {"roll out": 3, "learn": 3, "save a rollout": 6, "load": 1, "finish": 1}
ALL = [*moments("sft", SFT, 26), *moments("classify", CLASSIFY, 18), *moments("ppo", PPO, 16)]


def in_words(moment: Moment) -> str:
    return f"{moment.job}, {moment.phase} {moment.call}, {moment.number.name}"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Small runs; two micro-batches a step, and losses logged every third step."""
    found = harness.make_jobs(tmp_path_factory.mktemp("data"))
    changes = {
        "train.gradient_accumulation_steps": 2,
        "train.logging_steps": 3,
        "train.per_device_eval_batch_size": 2,
    }
    for name, fraction in (("sft", 0.5), ("classify", 0.2)):
        held_out = {"data.eval_fraction": fraction}
        found[name] = replace(found[name], settings={**found[name].settings, **changes, **held_out})
    return found


@pytest.fixture(scope="module")
def straight(
    jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The run folder of a job that nobody stopped."""
    place, done = tmp_path_factory.mktemp("straight"), set()

    def folder_of(name: str) -> Path:
        if name not in done:
            ended = harness.run(jobs[name], place / name)
            assert ended.code == 0, ended.said[-2000:]
            done.add(name)
        return place / name

    return folder_of


@pytest.mark.slow
@pytest.mark.parametrize("moment", ALL, ids=in_words)
def test_a_run_that_is_asked_to_stop_says_so_and_goes_on_to_the_same_weights(
    moment: Moment, jobs: dict[str, Job], straight: Callable[[str], Path], tmp_path: Path
):
    job, folder = jobs[moment.job], tmp_path / "run"
    arm = send_at(moment.phase, moment.call, signal_itself(moment.number))
    stopped = harness.run(job, folder, first=arm)
    assert stopped.code == CODES[moment.number], stopped.said[-2000:]
    assert "stopped by" in stopped.said
    assert "Traceback" not in stopped.said
    if moment.phase in OF_TRAINER | {"roll out", "learn", "save a rollout"}:
        assert "--resume" in stopped.said
        assert list(folder.glob("checkpoint-*"))
    flags = ["--resume"] if folder.exists() and any(folder.iterdir()) else []
    resumed = harness.run(job, folder, *flags)
    assert harness.compare(job, folder, straight(moment.job), resumed) == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub 2.4
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", ["push", "commit"])
def test_a_run_that_is_stopped_while_it_is_pushed_is_finished_and_goes_up_later(
    phase: str,
    number: signal.Signals,
    jobs: dict[str, Job],
    straight: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from sft_kit.artifacts.publishing import push_run
    from sft_kit.hub.push import Target
    from sft_kit.run_record import read_record

    pushed = {"train.push_to_hub": "true", "train.hub_model_id": "me/run"}
    job, folder = replace(jobs["sft"], settings={**jobs["sft"].settings, **pushed}), tmp_path / "my"
    with stand_in(monkeypatch, tmp_path / "home") as hub:
        stopped = harness.run(job, folder, first=send_at(phase, 1, signal_itself(number)))
        assert stopped.code == CODES[number], stopped.said[-2000:]
        assert "stopped by" in stopped.said
        assert "Traceback" not in stopped.said
        assert hub.files("me/run") == {} if "me/run" in hub.repositories else phase == "push"
        assert read_record(folder)["status"] == "finished"
        assert harness.digest(folder, job) == harness.digest(straight("sft"), job)
        ended = push_run(folder, Target("me/run"))
        assert {job.weights, "README.md", "adapter_config.json"} <= set(ended.uploaded)
        assert set(hub.files("me/run")) == {*ended.uploaded, *ended.unchanged}


def stop_itself_twice() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1.2)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["forward", "evaluate", "save"])
def test_a_second_signal_ends_a_training_at_once(
    phase: str, jobs: dict[str, Job], straight: Callable[[str], Path], tmp_path: Path
):
    job, folder = jobs["sft"], tmp_path / "run"
    stopped = harness.run(job, folder, first=send_at(phase, 2, stop_itself_twice))
    assert stopped.code == 130
    assert "SIGINT: stopped at once" in stopped.said
    assert harness.compare(job, folder, straight("sft"), harness.finish(job, folder)) == ""


@pytest.mark.slow
def test_a_run_that_keeps_no_checkpoints_keeps_one_when_it_is_asked_to_stop(
    jobs: dict[str, Job], straight: Callable[[str], Path], tmp_path: Path
):
    job, folder = jobs["sft"], tmp_path / "run"
    job = replace(job, settings={**job.settings, "train.save_strategy": "no"})
    arm = send_at("forward", 6, signal_itself(signal.SIGTERM))
    assert harness.run(job, folder, first=arm).code == 143
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-3"]
    assert harness.compare(job, folder, straight("sft"), harness.finish(job, folder)) == ""


BEST = {
    "train.load_best_model_at_end": "true",
    "train.metric_for_best_model": "loss",
    "train.greater_is_better": "false",
    "train.eval_steps": 1,
    "train.save_steps": 2,
    "train.save_total_limit": 1,
    "train.max_steps": 6,
    "train.learning_rate": 0.5,
}
"""Learnt so fast that the last weights are not the best."""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["steps", "best", "epoch"])
@pytest.mark.parametrize("call", [1, 8, 13, 17])
@pytest.mark.parametrize("phase", ["evaluate", "forward"])
def test_the_best_model_is_that_of_the_straight_run(
    strategy: str, call: int, phase: str, jobs: dict[str, Job], tmp_path: Path
):
    changes = BEST | {"train.save_strategy": strategy}
    if strategy == "epoch":
        changes |= {"train.eval_strategy": "epoch"}
    call = min(call, 11) if phase == "forward" else call
    job = replace(jobs["classify"], settings={**jobs["classify"].settings, **changes})
    assert harness.run(job, tmp_path / "straight").code == 0
    arm = send_at(phase, call, signal_itself(signal.SIGTERM))
    stopped = harness.run(job, tmp_path / "run", first=arm)
    assert stopped.code in (0, 143), stopped.said[-2000:]
    if stopped.code == 143:
        resumed = harness.finish(job, tmp_path / "run")
        assert harness.compare(job, tmp_path / "run", tmp_path / "straight", resumed) == ""
