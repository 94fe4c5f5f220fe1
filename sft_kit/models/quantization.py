"""What bitsandbytes needs around it to be right."""

import logging

from bitsandbytes.nn.modules import Linear4bit
from torch import nn

# bitsandbytes asks the Hub for an optional kernel at import and says so when it can't have it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def guard_cpu_packing(model: nn.Module) -> int:
    """Keep 4-bit weights in the layout that training and merging read.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 re-packs a `Linear4bit`'s weight in place at the
    first evaluation forward; everything that reads it afterwards (the training forward,
    `dequantize_4bit`, so merging) silently computes with scrambled weights. Upstream:
    bitsandbytes-foundation/bitsandbytes#2078 describes one of its consequences.

    Returns:
        Number of layers guarded.
    """
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def freeze(model: nn.Module) -> None:
    """Stop training every parameter; adapters added later train."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
