"""Worker processes of a data loader that die under a training."""

from sft_kit.errors import TrainingError

_WORDS = "DataLoader worker (pid"


def is_worker_death(error: BaseException) -> bool:
    """Whether a data loader says that one of its processes was killed."""
    return isinstance(error, RuntimeError) and _WORDS in str(error)


def worker_death_error(step: int, num_workers: int, folder: str) -> TrainingError:
    """Say what happened and what to do.

    Args:
        step: From 1; its rows did not come.
        num_workers: Worker processes.
        folder: Of the run.
    """
    return TrainingError(
        f"step {step}: one of the {num_workers} worker processes that read the rows was killed, "
        "mostly for want of memory (of the machine, or of /dev/shm in a container). Go on with "
        "--resume; if it happens again, lower train.dataloader_num_workers, to 0 for rows that "
        f"are tokenized already. Checkpoints in {folder} are kept"
    )
