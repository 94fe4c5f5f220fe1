"""What two processes of a run decide together: when to stop, and whether a checkpoint is one."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from sft_kit.manifest import broken_parts
from sft_kit.training.checkpoint_writer import write_checkpoint
from sft_kit.training.trainer import SafeTrainer

from .two_processes import in_two_processes

MakeTrainer = Callable[..., SafeTrainer]
MakeModel = Callable[[float], GPT2LMHeadModel]
SETTINGS = {
    "per_device_train_batch_size": 2, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2,
    "save_strategy": "steps", "save_steps": 4, "rows": 16, "ddp_find_unused_parameters": False,
}  # fmt: skip


def send_sigterm_at(trainer: SafeTrainer, method: str, call: int) -> None:
    original, calls = getattr(trainer, method), [0]

    def watched(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    setattr(trainer, method, watched)


@pytest.mark.parametrize(
    ("method", "call", "asked"),
    [
        ("training_step", 2, 1),
        pytest.param("training_step", 2, 0, marks=pytest.mark.slow),
        pytest.param("prediction_step", 1, 0, marks=pytest.mark.slow),
        pytest.param("prediction_step", 1, 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_process_stops_both_after_the_same_step_and_the_run_goes_on_bit_by_bit(
    make_trainer: MakeTrainer, tiny_model: MakeModel, tmp_path: Path,
    method: str, call: int, asked: int,
):  # fmt: skip
    def train(folder: str, checkpoint: str | None = None) -> Callable[[int], None]:
        def main(rank: int) -> None:
            place = str(tmp_path / folder)
            trainer = make_trainer(model=tiny_model(0.2), **SETTINGS, output_dir=place)
            if folder == "stopped" and checkpoint is None and rank == asked:
                send_sigterm_at(trainer, method, call)
            trainer.train(resume_from_checkpoint=checkpoint)
            weights = {name: one.detach() for name, one in trainer.model.named_parameters()}
            torch.save(weights, tmp_path / f"{folder}-{rank}.pt")

        return main

    ended = in_two_processes(train("stopped"), tmp_path)
    assert [text.partition(":")[0] for text in ended] == ["StoppedError", "StoppedError"], ended
    for text in ended:
        assert "stopped by SIGTERM after step 2" in text
    (checkpoint,) = (tmp_path / "stopped").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-2"
    assert broken_parts(checkpoint) == []
    assert in_two_processes(train("stopped", str(checkpoint)), tmp_path) == ["", ""]
    assert in_two_processes(train("straight"), tmp_path) == ["", ""]
    for rank in (0, 1):
        resumed, straight = (
            torch.load(tmp_path / f"{name}-{rank}.pt") for name in ("stopped", "straight")
        )
        assert all(torch.equal(resumed[name], straight[name]) for name in straight)


FAILURES = {
    "an error": RuntimeError("no such device"),
    "a full disk": OSError(errno.ENOSPC, "No space left on device"),
}


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("name", FAILURES)
def test_where_one_process_fails_to_write_both_end_and_there_is_no_half_checkpoint(
    tmp_path: Path, failing: int, name: str
):
    run = tmp_path / "run"

    def main(rank: int) -> None:
        def write(stage: Path) -> None:
            (stage / f"part-{rank}").write_bytes(b"weights")
            if rank == failing and step == 2:
                raise FAILURES[name]

        for step in (1, 2):
            write_checkpoint(
                run / f"checkpoint-{step}", write, run="a" * 32, num_bytes=9, is_writer=rank == 0
            )

    ended = in_two_processes(main, tmp_path)
    assert all(ended), ended
    assert "hangs" not in ended
    told = "checkpoint-2" if name == "a full disk" else "no such device"
    assert all(told in text for text in ended), ended
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-1"]
    assert broken_parts(run / "checkpoint-1") == []
    names = {path.name for path in (run / "checkpoint-1").iterdir()}
    assert names == {"manifest.json", "part-0", "part-1"}
