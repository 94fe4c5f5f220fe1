"""Random state set aside while something happens that training must not feel."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class RandomState:
    """State of every global generator that training draws from."""

    python: object
    numpy: dict[str, object]
    cpu: torch.Tensor
    cuda: list[torch.Tensor]


def capture_random_state() -> RandomState:
    """Copy the state of Python's, NumPy's and torch's global generators."""
    return RandomState(
        python=random.getstate(),
        numpy=np.random.get_state(legacy=False),
        cpu=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def restore_random_state(state: RandomState) -> None:
    """Put the generators back to a captured state."""
    random.setstate(state.python)  # type: ignore[arg-type]
    np.random.set_state(state.numpy)
    torch.set_rng_state(state.cpu)
    if state.cuda:
        torch.cuda.set_rng_state_all(state.cuda)


@contextmanager
def isolated_randomness() -> Iterator[None]:
    """Run a block without a trace in the global random state."""
    state = capture_random_state()
    try:
        yield
    finally:
        restore_random_state(state)
