"""Checkpoints written by one process or by many: all of it stands, or nothing does.

Every process writes its files into one hidden folder. When all have said that theirs are there, one
of them lists and names it. An error of one is an error of all: none trains on alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from sft_kit.checkpoints import list_checkpoints, step_of, why_not_resumable
from sft_kit.disk import check_space, telling_full_disk
from sft_kit.errors import CheckpointError
from sft_kit.manifest import (
    close_stage,
    drop_stage,
    open_stage,
    read_manifest,
    remove_folder,
    stage_of,
    tidy_up,
)

_STATE_BYTES = 1 << 20
"""Room for what is not a tensor: states as JSON, random generators, a tokenizer."""


def write_checkpoint(
    folder: Path,
    write: Callable[[Path], None],
    *,
    run: str,
    num_bytes: int,
    is_writer: bool = True,
) -> None:
    """Write a checkpoint that appears when it is whole, never before.

    All processes call this.

    Args:
        folder: `checkpoint-<step>` in the run folder.
        write: Writes this process's files into the folder it is given.
        run: Id of the run.
        num_bytes: What it will take; less free space is refused before anything is written.
        is_writer: Whether this process makes and names the folder; one of each disk does.

    Raises:
        CheckpointError: The disk is full, or another process failed; nothing is left of it.
    """
    stage, what = stage_of(folder), folder.name
    try:
        with _together(), telling_full_disk(folder.parent, what, num_bytes):
            if is_writer:
                folder.parent.mkdir(parents=True, exist_ok=True)
                tidy_up(folder.parent, "checkpoint-*")
                check_space(folder.parent, num_bytes, what)
                open_stage(folder)
        with _together(), telling_full_disk(folder.parent, what, num_bytes):
            if not stage.is_dir():
                raise CheckpointError(
                    f"{stage}, which the main process made, is not seen by process "
                    f"{PartialState().process_index}: train.output_dir must be on a disk that all "
                    "machines share"
                )
            write(stage)
        with _together(), telling_full_disk(folder.parent, what, num_bytes):
            if is_writer:
                close_stage(stage, folder, run)
    except BaseException:
        if is_writer:
            drop_stage(stage)
        raise


def keep_best_and_newest(newest: Path, best: Path | None, limit: int | None) -> None:
    """Delete the oldest checkpoints of a run beyond a number.

    One with a higher number than the newest is broken or of another run, or the run would have gone
    on from there: it is not counted, and replaced in its turn.

    Args:
        newest: The checkpoint just written.
        best: The one to load at the end of training; it stays.
        limit: Checkpoints to leave there; None keeps all.
    """
    if limit is None or limit <= 0:
        return
    older = [one for one in list_checkpoints(newest.parent) if step_of(one) < step_of(newest)]
    kept = {newest} if best is None else {newest, best}
    num_left = max(limit - len(kept), 0)
    for folder in [one for one in older if one not in kept][num_left:]:
        remove_folder(folder)


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None, *, adapter: bool) -> int:
    """Estimate what a checkpoint takes: the weights that are saved, and the optimizer's state.

    Args:
        model: Whose parameters count once each.
        optimizer: After its first step; its state is measured.
        adapter: Only what is trained is saved.
    """
    weights = [one for one in model.parameters() if one.requires_grad or not adapter]
    states = optimizer.state.values() if optimizer is not None else ()
    moments = [one for state in states for one in state.values() if isinstance(one, torch.Tensor)]
    return sum(one.numel() * one.element_size() for one in [*weights, *moments]) + _STATE_BYTES


def last_bytes(output_dir: Path) -> int:
    """Size of the newest checkpoint that has a manifest; 0 where there is none."""
    manifests = (read_manifest(folder) for folder in list_checkpoints(output_dir))
    return next((manifest.num_bytes for manifest in manifests if manifest is not None), 0)


def check_checkpoint(folder: Path, run: str = "") -> None:
    """Refuse a checkpoint that is not as it was written; the main process reads for all.

    Raises:
        CheckpointError: Every damage.
    """
    problems = [why_not_resumable(folder, run) if PartialState().is_main_process else []]
    if PartialState().use_distributed:
        broadcast_object_list(problems)
    if problems[0]:
        raise CheckpointError(
            f"{folder} can't be used: {', '.join(problems[0])}. Start the run again with --resume: "
            "it takes the newest checkpoint that is whole"
        )


@contextmanager
def _together() -> Iterator[None]:
    """Run a block on every process; where one fails, all do."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if PartialState().use_distributed:
        texts = gather_object([str(error) if error is not None else ""])
        if error is None and any(texts):
            error = CheckpointError(next(text for text in texts if text))
    if error is not None:
        raise error
