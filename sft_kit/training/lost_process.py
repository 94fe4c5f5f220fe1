"""Processes, on this machine or another, that are gone while the others wait for them."""

from torch import distributed

from sft_kit.errors import TrainingError

_GLOO = ("Connection closed by peer", "Connection reset by peer", "gloo/transport/tcp")


def is_lost_process(error: BaseException) -> bool:
    """Whether the backend says that it can't reach another process."""
    network = (distributed.DistBackendError, distributed.DistNetworkError)
    if isinstance(error, network):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _GLOO)


def lost_process_error(step: int, num_processes: int, folder: str) -> TrainingError:
    """Say what happened and what to do.

    Args:
        step: From 1; it was not finished.
        num_processes: As they were started, on all machines.
        folder: Of the run.
    """
    return TrainingError(
        f"step {step}: another process was lost of the {num_processes} that train together; the "
        "reason stands in its own output, on its own machine. End what is left, and start all of "
        f"them again with --resume: {folder} keeps its checkpoints"
    )
