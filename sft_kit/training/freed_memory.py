"""Memory that a step frees, kept for the next one."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from torch import nn

from sft_kit.host_memory import give_back_memory, keep_freed_blocks

_LARGE = 32 << 20
"""Bytes of a block from which on glibc takes new pages for each, and gives them back when freed."""
_NOTE = "memory: what a step frees is kept for the next (MALLOC_TRIM_THRESHOLD_)"


@contextmanager
def kept_memory(model: nn.Module, *, says: bool) -> Iterator[bool]:
    """Have what is freed kept, where weights train whose gradients are large blocks on a CPU.

    The system clears new pages, which takes longer than what is computed in them: of GPT-2's 124 M
    weights, all trained with batches of 380 tokens, two steps take as long as three (measured).

    Args:
        model: All of its weights are where they are trained.
        says: Print that it is done.

    Yields:
        Whether it was done; not without such weights, nor where `keep_freed_blocks` can't. At the
        end what is free is given back, once; the process goes on keeping what it frees.
    """
    trained = (one for one in model.parameters() if one.requires_grad and one.device.type == "cpu")
    is_kept = any(one.nbytes > _LARGE for one in trained) and keep_freed_blocks()
    if is_kept and says:
        Console(stderr=True).print(_NOTE)
    try:
        yield is_kept
    finally:
        if is_kept:
            give_back_memory()
