"""Objects that stand before training begins, kept out of garbage collection meanwhile."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def settled_objects() -> Iterator[None]:
    """Let the garbage collector pass over what is there now, while a block runs.

    Importing the libraries leaves hundreds of thousands of objects that never go away. A full round
    of the collector looks at every one, and accelerate asks for several before the first step.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
