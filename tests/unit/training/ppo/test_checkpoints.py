"""Checkpoints read back bit by bit, and a kill at any moment leaves one to go on from."""

import dataclasses
import json
import math
import os
import pickle
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sft_kit.checkpoints import newest_checkpoint
from sft_kit.errors import CheckpointError
from sft_kit.training.ppo.checkpoints import TrainingState, check_identity, load_state, save_state
from sft_kit.training.randomness import capture_random_state, restore_random_state

ODD_FLOATS = (0.1, 1 / 3, 5e-324, -0.0, 1.7976931348623157e308, math.inf, -math.inf, math.nan)


def bits(value: object) -> object:
    """Bring a value into a form in which only equal bits, types and shapes compare as equal."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: bits(getattr(value, name)) for name in names}
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return ("tensor", str(value.dtype), tuple(value.shape), str(value.device), raw)
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, dict):
        return {(type(key).__name__, key): bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (type(value).__name__, [bits(item) for item in value])
    if isinstance(value, float):
        return ("float", value.hex())
    return (type(value).__name__, value)


def train(
    steps: int, state: TrainingState | None = None
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Train a little with two parameter groups, from a state where one is given."""
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 3e-3}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-5)
    if state is not None:
        model.load_state_dict(state.tensors)
        optimizer.load_state_dict(state.optimizer)
        restore_random_state(state.random)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def make_state(number: int = 3, **changes: object) -> TrainingState:
    model, optimizer = train(steps=2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    state = TrainingState(
        num_rollouts_done=number,
        tensors=dict(model.state_dict()),
        optimizer=optimizer.state_dict(),
        scheduler=schedule.state_dict(),
        kl_coefficient=0.1 + 0.2,
        score_moments={"count": 7.0, "mean": 1 / 3, "m2": 2 / 3},
        return_moments={"count": 0.0, "mean": 0.0, "m2": 0.0},
        counters={"episodes": 192, "updates": 24, "prompt_cursor": 10**20},
        history=[{"score": value, "note": "天气 \u2028", "on": True} for value in ODD_FLOATS],
        identity={"base": "abc"},
    )
    return dataclasses.replace(state, **changes)


def test_a_state_reads_back_equal_in_every_bit_and_type(tmp_path: Path):
    state = make_state()
    assert bits(load_state(save_state(tmp_path, state, keep=None))) == bits(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_tensors_of_any_layout_read_back_equal_in_every_bit(tmp_path: Path, dtype: torch.dtype):
    base = torch.randint(-9, 9, (4, 6)).to(dtype)
    tensors = {"turned": base.T, "part": base[1:, ::2], "same": base, "one": base[0, 0]}
    tensors |= {"none": base[:0], "policy.layers.0/!odd.weight": base + 1}
    if dtype.is_floating_point:
        odd = [math.inf, math.nan, -0.0]
        tensors["odd"] = torch.tensor(odd, dtype=dtype, requires_grad=True)
    loaded = load_state(save_state(tmp_path, make_state(tensors=tensors), keep=None))
    assert bits(loaded.tensors) == bits(tensors)


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(tmp_path: Path):
    model, optimizer = train(steps=3)
    saved = make_state(
        tensors=dict(model.state_dict()),
        optimizer=optimizer.state_dict(),
        random=capture_random_state(),
    )
    checkpoint = save_state(tmp_path, saved, keep=None)
    straight, straight_optimizer = train(steps=8)
    resumed, resumed_optimizer = train(steps=5, state=load_state(checkpoint))
    assert bits(dict(resumed.state_dict())) == bits(dict(straight.state_dict()))
    assert bits(resumed_optimizer.state_dict()) == bits(straight_optimizer.state_dict())


def test_all_random_generators_go_on_with_the_same_numbers(tmp_path: Path):
    state = make_state()
    random.gauss(0, 1)  # leaves a second number waiting inside the generator
    np.random.standard_normal()
    state.random = capture_random_state()
    checkpoint = save_state(tmp_path, state, keep=None)

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), float(np.random.standard_normal()),
                float(np.random.rand()), float(torch.randn(()))]  # fmt: skip

    expected = draw()
    draw()
    restore_random_state(load_state(checkpoint).random)
    assert draw() == expected


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path):
    checkpoint = save_state(tmp_path, make_state(), keep=None)
    files = sorted(path.name for path in checkpoint.iterdir())
    assert files == ["manifest.json", "optimizer.safetensors", "random.safetensors", "state.json",
                     "tensors.safetensors"]  # fmt: skip
    for path in checkpoint.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"PK", pickle.PROTO))
        if path.suffix == ".json":
            json.loads(content)


def test_what_could_not_be_read_back_is_refused_and_leaves_no_checkpoint(tmp_path: Path):
    with pytest.raises(TypeError, match=r"values\.history\.0\.score: a set can't be kept"):
        save_state(tmp_path, make_state(history=[{"score": {1}}]), keep=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("keep", "left"), [(None, [1, 2, 3]), (2, [2, 3]), (1, [3])])
def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, keep: int | None, left: list[int]):
    for number in (1, 2, 3):
        save_state(tmp_path, make_state(number), keep=keep)
    (tmp_path / "checkpoint-best").mkdir()
    names = sorted(path.name for path in tmp_path.glob("checkpoint-[0-9]*"))
    assert names == [f"checkpoint-{number}" for number in left]
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-3", [])


def test_a_broken_newer_checkpoint_takes_no_place_of_a_whole_one(tmp_path: Path):
    for number in (1, 2, 4):
        save_state(tmp_path, make_state(number), keep=None)
    (tmp_path / "checkpoint-4" / "state.json").unlink()
    save_state(tmp_path, make_state(3), keep=2)
    found, skipped = newest_checkpoint(tmp_path)
    assert found == tmp_path / "checkpoint-3"
    assert skipped == [f"{tmp_path / 'checkpoint-4'} was passed over: state.json is missing"]
    assert load_state(tmp_path / "checkpoint-2").num_rollouts_done == 2
    assert not (tmp_path / "checkpoint-1").exists()


def test_a_damaged_checkpoint_is_refused_with_every_damage(tmp_path: Path):
    checkpoint = save_state(tmp_path, make_state(), keep=None)
    tensors = checkpoint / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1  # one bit of one weight
    tensors.write_bytes(content)
    (checkpoint / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_state(checkpoint)
    said = [problem.message for problem in caught.value.problems]
    assert said == ["optimizer.safetensors is missing", "tensors.safetensors is changed"]


def test_a_checkpoint_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sft_kit.training.ppo.checkpoints._VERSION", 2)
    checkpoint = save_state(tmp_path, make_state(), keep=None)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="found version 2 of PPO's checkpoints, accepts 1"):
        load_state(checkpoint)


def test_every_difference_of_identity_is_told():
    same = {"base": "b" * 64, "reference": "none", "prompts": "p" * 64}
    check_identity(same, dict(same))
    now = {"base": "c" * 64, "prompts": "p" * 64, "reward": "r"}
    with pytest.raises(CheckpointError) as caught:
        check_identity(same, now, "run/checkpoint-3")
    assert [(problem.where, problem.key) for problem in caught.value.problems] == [
        ("run/checkpoint-3", key) for key in ("base", "reference", "reward")
    ]
    assert "found 'cccccccccccc', accepts 'bbbbbbbbbbbb'" in str(caught.value)


# --- killed in the middle of a save ---------------------------------------------------------------

EVENTS = ((os, "replace"), (os, "fsync"), (os, "mkdir"), (os, "unlink"), (os, "rmdir"),
          (os, "open"), (Path, "write_text"))  # fmt: skip


def save_in_a_child(folder: Path, state: TrainingState, *, killed_at: int) -> bool:
    """Save in a process that kills itself at the n-th file event; says whether it came to its end.

    The process is a fork: a new one would spend seconds on imports, for each of some forty events.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    try:
        signal.alarm(30)
        num_left = [killed_at]
        for owner, name in EVENTS:
            setattr(owner, name, deadly(getattr(owner, name), num_left))
        save_state(folder, state, keep=2)
        os._exit(0)
    finally:
        os._exit(1)


def deadly(original: Callable[..., object], num_left: list[int]) -> Callable[..., object]:
    def call(*args: object, **kwargs: object) -> object:
        num_left[0] -= 1
        if not num_left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    return call


def killed_saves(tmp_path: Path, state: TrainingState) -> Iterator[Path]:
    """Run folders with checkpoints 1 and 2, each with a save killed one event later; one whole."""
    before = tmp_path / "before"
    for number in (1, 2):
        save_state(before, make_state(number), keep=None)
    for event in range(1, 200):
        folder = tmp_path / str(event)
        shutil.copytree(before, folder)
        finished = save_in_a_child(folder, state, killed_at=event)
        yield folder
        if finished:
            assert event > 20, "a save has more events than that"
            return
    pytest.fail("the save never came to its end")


def test_a_kill_at_any_event_of_a_save_leaves_a_checkpoint_to_go_on_from(tmp_path: Path):
    saved = {2: make_state(2), 3: make_state(3, kl_coefficient=9.0)}
    following = make_state(4)
    numbers = []
    for folder in killed_saves(tmp_path, saved[3]):
        found, skipped = newest_checkpoint(folder)
        assert found is not None
        assert not skipped, "what stands under its own name is whole"
        state = load_state(found)
        numbers.append(state.num_rollouts_done)
        assert bits(state.tensors) == bits(saved[numbers[-1]].tensors)
        assert state.kl_coefficient == saved[numbers[-1]].kl_coefficient
        save_state(folder, following, keep=2)  # the resumed run cleans up
        names = {path.name for path in folder.iterdir()}
        assert names == {f"checkpoint-{numbers[-1]}", "checkpoint-4"}
    assert numbers == sorted(numbers)
    assert set(numbers) == {2, 3}


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_replaced_leaves_the_old_or_the_new_one(tmp_path: Path):
    coefficients = []
    for folder in killed_saves(tmp_path, make_state(2, kl_coefficient=9.0)):
        found, skipped = newest_checkpoint(folder)
        assert found is not None
        assert not skipped
        state = load_state(found)
        assert state.num_rollouts_done == 2
        coefficients.append(state.kl_coefficient)
    assert coefficients == sorted(coefficients)
    assert set(coefficients) == {0.1 + 0.2, 9.0}
