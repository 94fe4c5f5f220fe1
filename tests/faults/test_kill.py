"""Killed at any moment, a run that is started again with `--resume` ends as if it never was.

`SFT_KIT_KILLS` says how many kills at random moments are spread over the recipes (default 200), and
`SFT_KIT_EVENTS` how many file events are left between two kills (default 1: every event).
"""

import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from .harness import (
    Ended,
    Job,
    Report,
    compare,
    die_at,
    finish,
    make_jobs,
    on_file_event,
    random_moments,
    run,
)

NUM_KILLS = int(os.environ.get("SFT_KIT_KILLS", "200"))
EVENT_STEP = int(os.environ.get("SFT_KIT_EVENTS", "1"))
RECIPES = ("sft", "classify", "reward", "ppo")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=RECIPES)
def straight(request, tmp_path_factory) -> tuple[Job, Path, float]:
    """A job, the folder of a run that nothing stopped, and its seconds."""
    place = tmp_path_factory.mktemp(request.param)
    job = make_jobs(place / "data")[request.param]
    ended = run(job, place / "straight")
    assert ended.code == 0, ended.said
    return job, place / "straight", ended.seconds


def judge(report: Report, job: Job, folder: Path, straight: Path, ended: Ended) -> None:
    """Resume what was killed once, compare, and clear away what is right."""
    report.trials += 1
    if ended.code == -signal.SIGKILL:
        report.killed += 1
        ended = finish(job, folder)
    failure = compare(job, folder, straight, ended)
    if failure:
        report.failures.append(failure)
    else:
        shutil.rmtree(folder)


def test_a_run_killed_at_a_random_moment_ends_bit_identical(straight, tmp_path):
    job, whole, seconds = straight
    report = Report()
    for index, moment in enumerate(random_moments(NUM_KILLS // len(RECIPES), seconds, seed=7)):
        folder = tmp_path / f"run-{index}"
        judge(report, job, folder, whole, run(job, folder, kill_after=moment))
        print(report.line(f"{job.stem}, random moments"), flush=True)
    assert not report.failures, "\n".join(report.failures)
    assert report.killed >= report.trials // 2, "the kills came too late"


def test_a_run_killed_at_any_file_event_ends_bit_identical(straight, tmp_path):
    job, whole, _ = straight
    report = Report()
    for event in range(1, 1000, EVENT_STEP):
        folder = tmp_path / f"run-{event}"
        ended = run(job, folder, first=partial(on_file_event, folder, die_at(event)))
        if ended.code == 0:
            break
        judge(report, job, folder, whole, ended)
        print(report.line(f"{job.stem}, file events"), flush=True)
    assert not report.failures, "\n".join(report.failures)
    assert report.trials >= 60 // EVENT_STEP
