"""Checkpoints of the Trainer: whole or not there, resumed exactly, refused where damaged."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import EarlyStoppingCallback, GPT2LMHeadModel, TrainerCallback

from sft_kit.checkpoints import list_checkpoints, newest_checkpoint, why_not_resumable
from sft_kit.errors import CheckpointError
from sft_kit.manifest import MANIFEST_FILE, read_manifest
from sft_kit.run_record import write_record

if TYPE_CHECKING:
    from sft_kit.training.trainer import SafeTrainer

MakeTrainer = Callable[..., "SafeTrainer"]
MakeModel = Callable[[float], GPT2LMHeadModel]
DROPOUT = 0.3
EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
RUN = "c" * 32


def slow(value: int) -> object:
    """A parameter for the long suite; the default one has another of its kind."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.fixture
def make(make_trainer: MakeTrainer, tiny_model: MakeModel) -> MakeTrainer:
    """Builds a Trainer with dropout and an adapter, as most recipes have."""

    def build(**settings: object) -> "SafeTrainer":
        torch.manual_seed(0)
        lora = LoraConfig(r=2, lora_dropout=DROPOUT, target_modules=["c_attn"], fan_in_fan_out=True)
        model = get_peft_model(tiny_model(DROPOUT), lora)
        return make_trainer(model=model, **(EVERY_STEP | settings))

    return build


def folder_of(trainer: "SafeTrainer") -> Path:
    return Path(str(trainer.args.output_dir))


def weights(trainer: "SafeTrainer") -> dict[str, bytes]:
    return {
        name: parameter.detach().numpy().tobytes()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }


def losses(trainer: "SafeTrainer") -> list[tuple[float, float]]:
    return [(one["step"], one["loss"]) for one in trainer.state.log_history if "loss" in one]


def steps_left(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


# --- writing --------------------------------------------------------------------------------------


def test_a_checkpoint_holds_what_resuming_needs_and_no_pickle_of_the_settings(make: MakeTrainer):
    trainer = make(max_steps=1)
    trainer.train()
    checkpoint = folder_of(trainer) / "checkpoint-1"
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt"}
    assert names >= {"scheduler.pt", "rng_state.pth", "trainer_state.json", MANIFEST_FILE}
    assert "training_args.bin" not in names
    assert why_not_resumable(checkpoint) == []


def test_every_file_reaches_the_disk_and_then_its_manifest_before_the_name(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
):
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".part"):
            events.append(f"{Path(source).name} -> {Path(target).name}")
        replace(source, target)

    trainer = make(max_steps=1)
    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    trainer.train()
    renamed = events.index(".checkpoint-1.part -> checkpoint-1")
    before = events[:renamed]
    listed = read_manifest(folder_of(trainer) / "checkpoint-1")
    assert listed is not None
    assert set(listed.files) <= set(before)
    assert before.index(MANIFEST_FILE) > max(before.index(name) for name in listed.files)
    assert before[-1] == ".checkpoint-1.part"
    assert events[renamed + 1] == "run", "the name itself must reach the disk"


def test_the_id_of_the_run_stands_in_its_checkpoints(make: MakeTrainer):
    trainer = make(max_steps=1)
    folder_of(trainer).mkdir(exist_ok=True)
    write_record(folder_of(trainer), {"status": "running", "settings": {}, "run_id": RUN})
    trainer.train()
    manifest = read_manifest(folder_of(trainer) / "checkpoint-1")
    assert manifest is not None
    assert manifest.run == RUN


EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def test_a_kill_at_any_event_of_a_save_leaves_a_whole_checkpoint(make: MakeTrainer):
    """The save at step 3 is tried in forks of this process, each killed one event later."""
    trainer = make(max_steps=3, save_total_limit=2)
    folder = folder_of(trainer)
    newest: list[int] = []
    save = trainer._save_checkpoint

    def save_and_die(event: int) -> int:
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            signal.alarm(300)
            arm(folder, event)
            save(trainer.model, None)
            os._exit(0)
        finally:
            os._exit(1)

    def tried(model: torch.nn.Module, trial: object) -> None:
        if trainer.state.global_step < 3:
            return save(model, trial)
        before = folder.with_name("before")
        shutil.copytree(folder, before)
        for event in range(1, 300):
            code = save_and_die(event)
            found, skipped = newest_checkpoint(folder)
            assert found is not None
            assert not skipped, "what stands under its own name is whole"
            newest.append(int(found.name.split("-")[1]))
            assert all(not why_not_resumable(one) for one in list_checkpoints(folder))
            if code == 0:
                return None
            assert code == -signal.SIGKILL
            shutil.rmtree(folder)
            shutil.copytree(before, folder)
        return pytest.fail("the save never came to its end")

    trainer._save_checkpoint = tried  # type: ignore[method-assign]
    trainer.train()
    assert newest == sorted(newest)
    assert set(newest) == {2, 3}
    assert len(newest) > 20, "a save has more events than that"
    assert steps_left(folder) == [2, 3]


def arm(folder: Path, event: int) -> None:
    """Kill this process before the n-th change to a file below a folder."""
    import sys

    left, fsync = [event], os.fsync

    def happen() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(name: str, args: tuple[object, ...]) -> None:
        if name in EVENTS and str(args[0]).startswith(str(folder)):
            reads = name == "open" and not int(args[2]) & (os.O_WRONLY | os.O_RDWR)  # type: ignore[call-overload]
            if not reads:
                happen()

    def watched(descriptor: int) -> None:
        happen()
        fsync(descriptor)

    sys.addaudithook(hook)
    os.fsync = watched


# --- the best and the newest ----------------------------------------------------------------------


class Metric(TrainerCallback):
    """Replaces the held-out loss by figures that are given."""

    def __init__(self, *figures: float) -> None:
        self.figures = list(figures)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        metrics["eval_loss"] = self.figures[state.global_step - 1]


BEST = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True,
        "metric_for_best_model": "loss", "save_total_limit": 2}  # fmt: skip


def test_the_best_stays_beside_the_newest_and_is_named_by_its_final_place(make: MakeTrainer):
    trainer = make(max_steps=5, callbacks=(Metric(3.0, 1.0, 2.0, 5.0, 4.0),), **BEST)
    folder = folder_of(trainer)
    trainer.train()
    assert steps_left(folder) == [2, 5]
    assert trainer.state.best_model_checkpoint == str(folder / "checkpoint-2")
    state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(folder / "checkpoint-2")


@pytest.mark.slow
def test_with_room_for_one_the_best_and_the_newest_stay_until_the_run_is_saved(make: MakeTrainer):
    trainer = make(
        max_steps=3, callbacks=(Metric(1.0, 2.0, 3.0),), **(BEST | {"save_total_limit": 1})
    )
    trainer.train()
    assert steps_left(folder_of(trainer)) == [1, 3]
    assert trainer.args.save_total_limit == 1


@pytest.mark.slow
def test_the_best_is_found_again_in_a_folder_that_was_moved(make: MakeTrainer, tmp_path: Path):
    figures = Metric(1.0, 2.0, 3.0, 4.0)
    straight = make(max_steps=4, callbacks=(figures,), **BEST)
    straight.train()
    shutil.rmtree(folder_of(straight))
    stopped = make(max_steps=4, callbacks=(figures, stop_after(2)), **BEST)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    moved = Path(shutil.move(folder_of(stopped), tmp_path / "moved"))
    resumed = make(max_steps=4, callbacks=(figures,), output_dir=str(moved), **BEST)
    resumed.train(resume_from_checkpoint=str(moved / "checkpoint-2"))
    assert resumed.state.best_model_checkpoint == str(moved / "checkpoint-1")
    assert weights(resumed) == weights(straight)


def test_a_best_checkpoint_that_was_damaged_is_not_loaded(make: MakeTrainer):
    class Damage(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                path = Path(args.output_dir) / "checkpoint-1" / "adapter_model.safetensors"
                content = bytearray(path.read_bytes())
                content[-1] ^= 1
                path.write_bytes(content)

    trainer = make(max_steps=3, callbacks=(Metric(1.0, 2.0, 3.0), Damage()), **BEST)
    with pytest.raises(CheckpointError, match=r"checkpoint-1 .*adapter_model\.safetensors is chan"):
        trainer.train()


def test_an_older_one_is_deleted_only_when_its_successor_stands(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
):
    from sft_kit.training import checkpoint_writer

    seen: list[tuple[str, list[int]]] = []
    remove = checkpoint_writer.remove_folder

    def watched(folder: Path) -> None:
        seen.append((folder.name, steps_left(folder.parent)))
        remove(folder)

    monkeypatch.setattr(checkpoint_writer, "remove_folder", watched)
    make(max_steps=3, save_total_limit=1).train()
    assert seen == [("checkpoint-1", [1, 2]), ("checkpoint-2", [2, 3])]


# --- going on -------------------------------------------------------------------------------------


def stop_after(step: int) -> TrainerCallback:
    """Presses Ctrl-C in the step after the one whose checkpoint is to be the last."""

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise KeyboardInterrupt

    return Stop()


def resumed_and_straight(make: MakeTrainer, step: int, **settings: object):
    callbacks = settings.pop("callbacks", lambda: ())
    straight = make(callbacks=callbacks(), **settings)
    straight.train()
    shutil.rmtree(folder_of(straight))
    stopped = make(callbacks=(*callbacks(), stop_after(step)), **settings)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = make(callbacks=callbacks(), **settings)
    resumed.train(resume_from_checkpoint=str(folder_of(resumed) / f"checkpoint-{step}"))
    return resumed, straight


@pytest.mark.parametrize("step", [slow(2), slow(3), 4])
def test_a_resumed_run_is_the_straight_one_to_the_last_bit_and_line(make: MakeTrainer, step: int):
    """3 steps an epoch; a line of the log is the mean of steps before and after the stop."""
    settings = {"max_steps": 6, "logging_steps": 3}
    resumed, straight = resumed_and_straight(make, step, **settings)
    assert weights(resumed) == weights(straight)
    assert losses(resumed) == losses(straight)
    assert len(losses(straight)) == 2


@pytest.mark.slow
def test_early_stopping_remembers_its_patience(make: MakeTrainer):
    def callbacks():
        return (Metric(1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0), EarlyStoppingCallback(3))

    settings = BEST | {"max_steps": 7, "save_total_limit": 9, "callbacks": callbacks}
    resumed, straight = resumed_and_straight(make, 2, **settings)
    assert straight.state.global_step == resumed.state.global_step == 4


def resume_at_the_end(make: MakeTrainer, **settings: object):
    """Train to the end, then again from the last checkpoint, as after a kill while results save."""
    callbacks = settings.pop("callbacks", lambda: ())
    straight = make(callbacks=callbacks(), **settings)
    straight.train()
    after = torch.get_rng_state().numpy().tobytes()
    last = list_checkpoints(folder_of(straight))[0]
    torch.manual_seed(99)
    resumed = make(callbacks=callbacks(), **settings)
    resumed.train(resume_from_checkpoint=str(last))
    assert torch.get_rng_state().numpy().tobytes() == after
    return resumed, straight


@pytest.mark.parametrize("max_steps", [2, 3, slow(4)])
def test_a_run_that_was_complete_trains_no_further_step(make: MakeTrainer, max_steps: int):
    """2 and 4 end within an epoch, 3 at its end."""
    resumed, straight = resume_at_the_end(make, max_steps=max_steps)
    assert weights(resumed) == weights(straight)
    assert resumed.state.global_step == max_steps
    assert losses(resumed) == losses(straight)
    summaries = [one.state.log_history[-1]["train_loss"] for one in (resumed, straight)]
    assert summaries[0] == pytest.approx(summaries[1], rel=1e-6)


def test_a_run_that_was_stopped_early_trains_no_further_step(make: MakeTrainer):
    def callbacks():
        return (Metric(1.0, 2.0, 2.0, 2.0, 2.0), EarlyStoppingCallback(1))

    settings = BEST | {"max_steps": 5, "save_total_limit": 9, "callbacks": callbacks}
    resumed, straight = resume_at_the_end(make, **settings)
    assert resumed.state.global_step == straight.state.global_step == 2
    assert weights(resumed) == weights(straight)


@pytest.mark.slow
def test_new_intervals_of_a_resumed_run_count(make: MakeTrainer):
    first = make(max_steps=4, callbacks=(stop_after(2),))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed = make(max_steps=4, save_steps=4, logging_steps=2)
    resumed.train(resume_from_checkpoint=str(folder_of(resumed) / "checkpoint-2"))
    assert steps_left(folder_of(resumed)) == [1, 2, 4]
    assert [step for step, _ in losses(resumed)] == [1, 2, 4]


def test_a_damaged_checkpoint_is_refused_before_any_of_it_is_read(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch
):
    make(max_steps=1).train()
    trainer = make(max_steps=2)
    checkpoint = folder_of(trainer) / "checkpoint-1"
    content = bytearray((checkpoint / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (checkpoint / "optimizer.pt").write_bytes(content)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match=r"optimizer\.pt is changed\. Start .* --resume"):
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_of_another_run_is_refused(make: MakeTrainer):
    make(max_steps=1).train()
    trainer = make(max_steps=2)
    write_record(folder_of(trainer), {"status": "running", "settings": {}, "run_id": RUN})
    with pytest.raises(CheckpointError, match="it is of no run, not of run cccccccc"):
        trainer.train(resume_from_checkpoint=str(folder_of(trainer) / "checkpoint-1"))


# --- a full disk ----------------------------------------------------------------------------------


def fail_as_torch(*_: object, **__: object) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")


def fail_as_the_system(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("part", "fail"),
    [("torch.save", fail_as_torch), ("sft_kit.manifest.force_to_disk", fail_as_the_system),
     ("peft.PeftModel.save_pretrained", fail_as_the_system)],
)  # fmt: skip
def test_a_disk_that_fills_up_leaves_the_older_checkpoint_and_no_half_one(
    make: MakeTrainer, monkeypatch: pytest.MonkeyPatch, part: str, fail: Callable[..., None]
):
    class FillUp(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                monkeypatch.setattr(part, fail)

    trainer = make(max_steps=3, callbacks=(FillUp(),))
    with pytest.raises(CheckpointError) as caught:
        trainer.train()
    monkeypatch.undo()
    assert [path.name for path in folder_of(trainer).iterdir()] == ["checkpoint-1"]
    assert newest_checkpoint(folder_of(trainer)) == (folder_of(trainer) / "checkpoint-1", [])
    assert str(folder_of(trainer)) in str(caught.value)
    assert "checkpoint-2 needs about" in str(caught.value)


def test_what_would_not_fit_is_not_begun(make: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    usage = SimpleNamespace(total=10**9, used=10**9 - 5000, free=5000)
    trainer = make(max_steps=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(trainer, "_write_files", lambda _: pytest.fail("it was begun"))
    with pytest.raises(CheckpointError, match="and 5000 bytes are free"):
        trainer.train()
    assert list(folder_of(trainer).iterdir()) == []
