"""Memory of this machine: what a process may take, containers' limits included, and keeps."""

import ctypes
import gc
import os
import re
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
_NAMES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat",
     "total_inactive_file"),
)  # fmt: skip
"""Limit, usage, and the part of the usage that is given up when needed: version 2, then 1."""
_KEEP = {-4: 0, -1: -1}
"""`M_MMAP_MAX`: no block of its own from the system; `M_TRIM_THRESHOLD`: none given back."""


def free_host_bytes(cgroups: Path = CGROUPS) -> int:
    """Bytes that are available on the machine, and to the container that this runs in.

    Args:
        cgroups: Where the kernel tells a container's limits.
    """
    import psutil

    available = int(psutil.virtual_memory().available)
    for names in _NAMES:
        limit, used, statistics = (cgroups / name for name in names[:3])
        if limit.is_file() and limit.read_text("ascii").strip().isdecimal():
            cached = re.search(rf"^{names[3]} (\d+)$", statistics.read_text("ascii"), re.MULTILINE)
            taken = int(used.read_text("ascii")) - (int(cached[1]) if cached else 0)
            available = min(available, max(0, int(limit.read_text("ascii")) - taken))
    return available


def keep_freed_blocks() -> bool:
    """Have glibc keep what this process frees for what it takes next, large blocks too.

    Returns:
        Whether it was done: not with another C library, nor where the environment sets options of
        glibc's malloc by itself.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc." in tunables or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(option, value) for option, value in _KEEP.items())


def give_back_memory() -> None:
    """Give freed memory back to the system, where the C library can be asked to."""
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
