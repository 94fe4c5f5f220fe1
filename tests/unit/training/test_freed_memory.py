"""Large blocks that are freed are used again, where large weights train."""

import json
import os
import subprocess
import sys

import pytest
from torch import nn

from sft_kit.training.freed_memory import kept_memory

_LARGE_WEIGHT = 9 << 20
"""Numbers of float32 that take 36 MiB."""
_COUNT_FAULTS = """
import json, resource, sys
import torch
from torch import nn
from sft_kit.training.freed_memory import kept_memory

def take():
    torch.ones(16 << 20)

def count():
    for _ in range(8):
        take()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        take()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

left = count()
with kept_memory(nn.Linear(1 << 10, 9 << 10, bias=False), says=True) as done:
    kept = count()
    resident = [int(line.split()[1]) for line in open("/proc/self/status") if "VmRSS" in line]
resident += [int(line.split()[1]) for line in open("/proc/self/status") if "VmRSS" in line]
print(json.dumps([done, left, kept, *resident]))
"""
_TRAIN = """
import hashlib, sys
import torch
from torch import nn
from sft_kit.training.freed_memory import kept_memory

torch.manual_seed(0)
model = nn.Embedding(9 << 10, 1 << 10)
optimizer = torch.optim.AdamW(model.parameters())
with kept_memory(model, says=False) as done:
    assert done == (sys.argv[1] == "keep")
    for step in range(3):
        model(torch.arange(step, 400)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
print(hashlib.sha256(model.weight.detach().numpy().tobytes()).hexdigest())
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")


def run(script: str, *words: str, **environment: str) -> str:
    clean = {name: one for name, one in os.environ.items()
             if not name.startswith(("MALLOC_", "GLIBC_"))}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        capture_output=True, text=True, check=True, env=clean | environment,
    )  # fmt: skip
    return done.stderr.partition("memory: ")[2] + done.stdout


def test_a_block_that_was_freed_is_used_again_and_given_back_at_the_end():
    note, figures = run(_COUNT_FAULTS).splitlines()
    assert note.startswith("what a step frees is kept")
    done, left, kept, resident, resident_after = json.loads(figures)
    assert done is True
    # Pages may be large, but five times 64 MiB are more than a few of them.
    assert left > 100
    assert kept < left / 3
    assert resident - resident_after > 60_000  # kB


def test_what_is_learnt_is_the_same():
    kept, left = run(_TRAIN, "keep"), run(_TRAIN, "leave", MALLOC_ARENA_MAX="2")
    assert kept == left
    assert len(kept.strip()) == 64


def test_what_the_user_sets_stays():
    for name, value in {
        "MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.malloc.arena_max=2",
    }.items():  # fmt: skip
        assert json.loads(run(_COUNT_FAULTS, **{name: value}))[0] is False


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(4, 4),
        nn.Linear(1, _LARGE_WEIGHT, bias=False).requires_grad_(requires_grad=False),
        nn.Linear(1, _LARGE_WEIGHT, bias=False, device="meta"),
    ],
    ids=["small", "frozen", "elsewhere"],
)
def test_without_large_gradients_on_the_cpu_nothing_is_changed(model):
    with kept_memory(model, says=True) as done:
        assert done is False
