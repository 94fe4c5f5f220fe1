"""A signal while a run goes up: the push ends at once, and is repeated by the same command."""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from huggingface_hub.utils._xet import get_xet_session

from sft_kit.artifacts.publishing import push_run
from sft_kit.command import run_recipe
from sft_kit.hub.deadline import Patience
from sft_kit.hub.push import Target

from ...hub_stand_in.hub_server import Fault, HubServer

TARGET = Target("me/run")
PATIENCE_SECONDS = 30.0
MOMENTS = {
    "looking": ("info", "GET info"),
    "sending a large file": ("put", "PUT put"),
    "committing": ("commit", "POST commit"),
}
"""Moment -> endpoint that does not answer then, and its request."""


def push_and_exit(run: Path, patience: Patience, said: Path) -> NoReturn:
    code = 70
    try:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stderr = os.fdopen(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by background jobs
        get_xet_session()  # of this process: one that another test began can't be ended in a child
        run_recipe(lambda: push_run(run, TARGET, patience=patience) and None)
        code = 0
    except SystemExit as end:
        code = int(str(end.code))
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for(hub: HubServer, request: str) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while request not in hub.requests:
        assert time.monotonic() < until, hub.requests
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("sending a large file", signal.SIGTERM),
        ("committing", signal.SIGINT),
        pytest.param("sending a large file", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("committing", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("looking", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("looking", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_push_that_is_stopped_leaves_no_part_and_the_next_one_sends_all(
    hub: HubServer, run: Path, patience: Patience, tmp_path: Path, moment: str,
    number: signal.Signals,
):  # fmt: skip
    endpoint, request = MOMENTS[moment]
    hub.faults = {endpoint: [Fault("stall")]}
    said = tmp_path / "said.txt"
    patient = replace(patience, read_seconds=60.0, total_seconds=60.0)
    child = os.fork()
    if not child:
        push_and_exit(run, patient, said)
    wait_for(hub, request)
    asked_at = time.monotonic()
    os.kill(child, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert time.monotonic() - asked_at < 5
    assert code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert "stopped by" in said.read_text()
    assert "Traceback" not in said.read_text()
    if "me/run" in hub.repositories:
        assert hub.files("me/run") == {}

    hub.faults = {}
    pushed = push_run(run, TARGET, patience=patience)
    held = hub.files("me/run")
    assert set(held) == {*pushed.uploaded, *pushed.unchanged}
    assert (
        held["adapter_model.safetensors"].content
        == (run / "adapter_model.safetensors").read_bytes()
    )
    assert len(hub.repositories["me/run"].messages) == 2
