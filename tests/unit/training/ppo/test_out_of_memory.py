"""PPO on a machine that is too small for it: what it took, and what to change."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_kit.errors import TrainingError
from sft_kit.training.ppo import loop
from sft_kit.training.ppo.loop import train_ppo

from .tiny import tiny_llama, tiny_roles, tiny_run


def fails_at(call: int, original: Any) -> Any:
    """A function that asks torch for 4 EiB when it is called for the n-th time."""
    calls = [0]

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            torch.empty(1 << 60, dtype=torch.float32)
        return original(*args, **kwargs)

    return watched


def out_of_memory_in(patch: pytest.MonkeyPatch, place: str, run: Any) -> TrainingError:
    patch.setattr(loop, place, fails_at(2, getattr(loop, place)))
    with pytest.raises(TrainingError) as caught:
        train_ppo(run)
    return caught.value


@pytest.mark.parametrize("place", ["collect", "optimize"])
def test_it_says_in_which_rollout_what_it_took_and_what_to_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    roles = tiny_roles("lora shared", tiny_llama())
    was_training = roles.policy.model.training
    run = tiny_run(roles, max_new_tokens=6, folder=tmp_path)
    error = out_of_memory_in(monkeypatch, place, run)
    said = error.summary
    assert said.startswith("rollout 2: out of memory on cpu with 4 episodes at once of up to 6 new")
    peak, free = (float(one) for one in re.findall(r"([\d.]+) GiB", said))
    assert 0.1 < peak < 100
    assert free > 0
    assert f"Checkpoints in {tmp_path} are kept" in said
    assert [(one.message, one.todo) for one in error.problems] == [
        ("train.per_device_train_batch_size=2", "slower; start anew with --overwrite"),
        ("train.activation_checkpointing=true", "slower; --resume accepts it"),
        ("ppo.max_new_tokens=3", "shorter completions; start anew with --overwrite"),
    ]
    assert roles.policy.model.training == was_training


def test_what_is_as_small_as_can_be_is_not_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    args = {"per_device_train_batch_size": 1, "activation_checkpointing": True}
    run = tiny_run(tiny_roles("lora shared", tiny_llama()), args=args, folder=tmp_path)
    error = out_of_memory_in(monkeypatch, "collect", run)
    assert [one.message for one in error.problems] == ["ppo.max_new_tokens=2"]
