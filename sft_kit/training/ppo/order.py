"""In which order a run goes through its prompts and rows: a function of the seed, not a memory.

The data is a cycle, shuffled anew in every epoch. A cursor counts what was taken since the start of
the run, so that a resumed run goes on where it stopped with one number.
"""

import hashlib
import random
from functools import lru_cache


def prompt_batch(num_prompts: int, cursor: int, count: int, seed: int) -> list[int]:
    """Choose the next prompts.

    After any number of batches each prompt was taken as often as any other, or once more. A batch
    may be larger than the data.

    Args:
        num_prompts: Prompts in the data, at least 1.
        cursor: Prompts taken so far.
        count: Prompts to take.
        seed: Of the run.

    Returns:
        Indexes of `count` prompts.
    """
    assert num_prompts > 0, "there is nothing to choose from"
    chosen: list[int] = []
    while len(chosen) < count:
        epoch, start = divmod(cursor + len(chosen), num_prompts)
        chosen += _permutation(num_prompts, seed, epoch)[start : start + count - len(chosen)]
    return chosen


@lru_cache(maxsize=4)  # prompts and rows, and the end of an epoch
def _permutation(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    # Through a hash, so that seed 1 in epoch 0 has nothing in common with seed 0 in epoch 1.
    key = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    order = list(range(size))
    random.Random(int.from_bytes(key, "little")).shuffle(order)
    return tuple(order)
