"""Memory that a step frees, kept for the next one."""

from torch import nn

from sft_kit.host_memory import keep_freed_blocks

_LARGE = 32 << 20
"""Bytes of a block from which on glibc takes new pages for each, and gives them back when freed."""


def keep_freed_memory(model: nn.Module) -> bool:
    """Have what is freed kept, where weights train whose gradients are large blocks on a CPU.

    The system clears new pages, which takes longer than what is computed in them: of GPT-2's 124 M
    weights, all trained with batches of 380 tokens, two steps take as long as three (measured).
    Memory that other programs could use stays with this one until it ends.

    Returns:
        Whether it was done; not without such weights, nor where `keep_freed_blocks` can't.
    """
    trained = (one for one in model.parameters() if one.requires_grad and one.device.type == "cpu")
    return any(one.nbytes > _LARGE for one in trained) and keep_freed_blocks()
