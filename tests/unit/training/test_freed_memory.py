"""Large blocks that are freed are used again, where large weights train."""

import json
import os
import subprocess
import sys

import pytest
from torch import nn

from sft_kit.training.freed_memory import keep_freed_memory

_LARGE_WEIGHT = 9 << 20
"""Numbers of float32 that take 36 MiB."""
_COUNT_FAULTS = """
import json, resource, sys
import torch
from torch import nn
from sft_kit.training.freed_memory import keep_freed_memory

model = nn.Linear(1 << 10, 9 << 10, bias=False)
done = keep_freed_memory(model) if sys.argv[1] == "keep" else None

def take():
    torch.ones(16 << 20)

for _ in range(8):
    take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    take()
print(json.dumps([done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")


def count_faults(word: str, **environment: str) -> tuple[bool | None, int]:
    """Pages that the system gave while five blocks of 64 MiB were taken and freed."""
    clean = {name: one for name, one in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_FAULTS, word],
        capture_output=True, text=True, check=True, env=clean | environment,
    )  # fmt: skip
    kept, faults = json.loads(done.stdout)
    return kept, faults


def test_a_block_that_was_freed_is_used_again():
    _, left = count_faults("leave")
    done, kept = count_faults("keep")
    assert done is True
    # Pages may be large, but five times 64 MiB are more than a few of them.
    assert left > 100
    assert kept < left / 10


def test_what_the_user_sets_stays():
    assert count_faults("keep", MALLOC_ARENA_MAX="2")[0] is False
    assert count_faults("keep", GLIBC_TUNABLES="glibc.malloc.arena_max=2")[0] is False


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
    assert keep_freed_memory(model) is False
