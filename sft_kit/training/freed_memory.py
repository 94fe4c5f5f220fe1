"""Memory that a step frees, kept for the next one."""

import ctypes
import os

from torch import nn

_LARGE = 32 << 20
"""Bytes of a block from which on glibc takes new pages for each, and gives them back when freed."""
_NEVER = 2**31 - 1
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of two options of glibc's `mallopt`, as numbers: see malloc.h."""


def keep_freed_memory(model: nn.Module) -> bool:
    """Have glibc keep what is freed, where weights train whose gradients are large blocks on a CPU.

    The system clears new pages, which takes longer than what is computed in them: of GPT-2's 124 M
    weights, all trained with batches of 380 tokens, two steps take as long as three (measured).
    Memory that other programs could use stays with this one until it ends.

    Returns:
        Whether it was done. It is not without such weights or glibc, nor where the environment
        sets options of glibc's malloc by itself.
    """
    trained = (one for one in model.parameters() if one.requires_grad and one.device.type == "cpu")
    if not any(one.nbytes > _LARGE for one in trained) or _is_set_by_user():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _NEVER) and mallopt(_TRIM_THRESHOLD, _NEVER))


def _is_set_by_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "glibc.malloc." in tunables or any(name.startswith("MALLOC_") for name in os.environ)
