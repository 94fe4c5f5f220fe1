"""Scripted faults of the Hub: none hangs, none loses a file, each ends well or in one message.

A schedule says what goes wrong with the first requests of some endpoints: status codes, closed
connections, lost answers, silence, halves of answers, nonsense. Waiting is shrunk a hundred times.
Afterwards the same push without faults must succeed, send what is missing, and make no commit where
nothing is.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..hub_stand_in.here import SHRUNK, small_run, stand_in
from ..hub_stand_in.hub_server import Fault, HubServer

if TYPE_CHECKING:
    from sft_kit.errors import HubError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"  # huggingface_hub 2.4 sends files by LFS as `data`
)
NUM_IN_CI = 4
NUM_SCHEDULES = 300
TOTAL_SECONDS = 4.0
GRACE_SECONDS = 3.0
"""Beyond the deadline: for reading and hashing files on a busy machine."""
_ENDPOINTS = ("info", "create", "tree", "validate", "preupload", "batch", "put", "verify", "commit")
_XET_ENDPOINTS = ("info", "create", "tree", "validate", "preupload", "xet", "commit")
_PASSING = (408, 429, 500, 502, 503, 504)
_FINAL = (400, 401, 403, 404, 413)


def draw_schedule(seed: int, *, xet: bool) -> dict[str, list[Fault | None]]:
    """Draw what goes wrong: one to four endpoints, one to three of their first requests."""
    draw = random.Random(seed)
    schedule: dict[str, list[Fault | None]] = {}
    for endpoint in draw.sample(_XET_ENDPOINTS if xet else _ENDPOINTS, draw.randint(1, 4)):
        before: list[Fault | None] = [None] * draw.choice((0, 0, 0, 1, 2))
        schedule[endpoint] = before + [_draw_fault(draw) for _ in range(draw.randint(1, 3))]
    return schedule


def _draw_fault(draw: random.Random) -> Fault:
    kind = draw.choice(
        ("status",) * 5 + ("drop",) * 3 + ("lost", "lost", "stall", "cut", "nonsense")
    )
    if kind != "status":
        return Fault(kind)
    status = draw.choice(_PASSING * 3 + _FINAL)
    wait = draw.choice(({}, {}, {"Retry-After": "0"}, {"Retry-After": "600"}))
    return Fault("status", status, wait if status in (429, 503) else {})


@pytest.fixture(params=["lfs", "xet"])
def hub(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[HubServer]:
    with stand_in(monkeypatch, tmp_path / "home", xet=request.param == "xet") as server:
        yield server


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_message(error: "HubError") -> None:
    (problem,) = error.problems
    assert problem.message
    assert problem.todo
    assert "nothing on this machine was lost" in str(error)


def push_under_faults(hub: HubServer, run: Path, seed: int) -> str:
    """Push once under a schedule and once without; say how the first one ended."""
    from sft_kit.artifacts.publishing import push_run
    from sft_kit.errors import HubError
    from sft_kit.hub.deadline import Patience
    from sft_kit.hub.push import Target

    target, before = Target(f"me/run-{seed}"), files_in(run)
    hub.faults = draw_schedule(seed, xet=hub.xet_store is not None)
    start = time.monotonic()
    try:
        push_run(run, target, patience=Patience(**SHRUNK, total_seconds=TOTAL_SECONDS))
        end = "success"
    except HubError as error:
        end = "message"
        check_message(error)
    assert time.monotonic() - start < TOTAL_SECONDS + GRACE_SECONDS, seed
    assert files_in(run) == before, seed

    hub.faults = {}
    hub.requests.clear()
    again = push_run(run, target, patience=Patience(**SHRUNK, total_seconds=60.0))
    assert not (end == "success" and again.uploaded), seed
    assert ("POST commit" in hub.requests) == bool(again.uploaded), seed
    held = hub.files(target.repo)
    assert set(held) == {*again.uploaded, *again.unchanged}, seed
    assert len(hub.repositories[target.repo].messages) == 2, seed
    assert files_in(run) == before, seed
    return end


def push_all(hub: HubServer, folder: Path, seeds: range) -> Counter[str]:
    run = small_run(folder / "my-run")
    return Counter(push_under_faults(hub, run, seed) for seed in seeds)


def test_some_schedules_end_well_or_in_one_message(hub: HubServer, tmp_path: Path):
    ends = push_all(hub, tmp_path, range(NUM_IN_CI // 2))
    assert ends.total() == NUM_IN_CI // 2


@pytest.mark.slow
def test_all_schedules_end_well_or_in_one_message(hub: HubServer, tmp_path: Path):
    ends = push_all(hub, tmp_path, range(NUM_SCHEDULES // 2))
    print(f"{NUM_SCHEDULES // 2} schedules: {dict(ends)}")
    assert min(ends["success"], ends["message"]) >= NUM_SCHEDULES // 20


def test_schedules_hold_every_kind_of_fault():
    drawn = [
        fault
        for seed in range(NUM_SCHEDULES)
        for faults in draw_schedule(seed, xet=False).values()
        for fault in faults
        if fault
    ]
    assert {fault.kind for fault in drawn} == {"status", "drop", "lost", "stall", "cut", "nonsense"}
    assert {fault.status for fault in drawn if fault.kind == "status"} == {*_PASSING, *_FINAL}
