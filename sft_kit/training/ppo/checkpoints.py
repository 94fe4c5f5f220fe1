"""Checkpoints of PPO: everything the next rollout depends on, to the last bit, without a pickle.

They are written between rollouts, so there is never half a rollout to keep. Tensors are stored as
safetensors, all else as JSON, whose shortest decimal for a float reads back as the same float.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sft_kit.disk import check_space, telling_full_disk
from sft_kit.errors import CheckpointError, Problem
from sft_kit.manifest import broken_parts, tidy_up, write_folder
from sft_kit.run_record import read_run_id
from sft_kit.training.checkpoint_writer import keep_best_and_newest, last_bytes
from sft_kit.training.randomness import RandomState, capture_random_state

STATE_FILE = "state.json"
TENSOR_FILES = {
    "tensors": "tensors.safetensors",
    "optimizer": "optimizer.safetensors",
    "random": "random.safetensors",
}
_VERSION = 1


@dataclass(slots=True)
class TrainingState:
    """What a run needs to go on as if it had never stopped.

    Attributes:
        num_rollouts_done: Also the number of the checkpoint.
        tensors: Trainable parameters by role and name, and their moving average.
        optimizer: `state_dict()` of the optimizer.
        scheduler: `state_dict()` of the learning rate's schedule.
        kl_coefficient: Beta of the next rollout.
        score_moments: State of the running moments of the scores.
        return_moments: The same of the returns.
        counters: Episodes and updates done, and the cursors of the prompts and of PTX.
        history: What was logged, one entry per rollout.
        identity: What the run was started from, by fingerprint: base, reference policy, prompts.
        random: The global random generators of the process that saves.
    """

    num_rollouts_done: int
    tensors: dict[str, torch.Tensor]
    optimizer: dict[str, object]
    scheduler: dict[str, object]
    kl_coefficient: float
    score_moments: dict[str, float] = field(default_factory=dict)
    return_moments: dict[str, float] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    history: list[dict[str, object]] = field(default_factory=list)
    identity: dict[str, str] = field(default_factory=dict)
    random: RandomState = field(default_factory=capture_random_state)


def save_state(folder: Path, state: TrainingState, *, keep: int | None) -> Path:
    """Write `checkpoint-<rollouts done>`; it appears when it is whole, never before.

    Only one process may call this; the others wait.

    Args:
        folder: Run folder.
        state: What to keep.
        keep: Checkpoints to leave there, the newest; older ones are deleted. None keeps all.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: The disk is full; the checkpoints that stand there are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tidy_up(folder, "checkpoint-*")
    checkpoint = folder / f"checkpoint-{state.num_rollouts_done}"
    num_bytes = last_bytes(folder)
    check_space(folder, num_bytes, checkpoint.name)
    with telling_full_disk(folder, checkpoint.name, num_bytes or None):
        write_folder(checkpoint, partial(_write_files, state=state), read_run_id(folder))
    keep_best_and_newest(checkpoint, None, None if keep is None else max(keep, 1))
    return checkpoint


def load_state(folder: Path) -> TrainingState:
    """Read a checkpoint back; its tensors come to the CPU.

    Args:
        folder: The checkpoint itself.

    Raises:
        CheckpointError: A file is missing, cut off or changed, or another version wrote it.
    """
    broken = broken_parts(folder)
    if broken:
        todo = "resume from an older checkpoint, or bring back the file as it was"
        problems = [Problem(str(folder), "", sentence, todo) for sentence in broken]
        raise CheckpointError(f"{folder} is not whole:", problems)
    if not (folder / STATE_FILE).is_file():
        raise CheckpointError(f"{folder} is no checkpoint of PPO: it has no {STATE_FILE}")
    stored = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    if stored.get("version") != _VERSION:
        raise CheckpointError(
            f"{folder / STATE_FILE}: found version {stored.get('version')!r} of PPO's checkpoints, "
            f"accepts {_VERSION}; resume with the version of sft_kit that wrote it"
        )
    parts = {
        name: _unpack(stored[name], load_file(folder / file)) for name, file in TENSOR_FILES.items()
    }
    values = cast("dict[str, object]", _unpack(stored["values"], {}))
    random = RandomState(**cast("dict[str, object]", parts.pop("random")))  # type: ignore[arg-type]
    return TrainingState(**values, **parts, random=random)  # type: ignore[arg-type]


def check_identity(
    saved: Mapping[str, str], now: Mapping[str, str], where: str = "checkpoint"
) -> None:
    """Refuse to go on with another base, reference policy or other prompts than the run had.

    Args:
        saved: `identity` of the checkpoint.
        now: The same of what was loaded now.
        where: The checkpoint, for the message.

    Raises:
        CheckpointError: All differences.
    """
    problems = [
        Problem(
            where,
            name,
            f"found {_shortened(now.get(name))}, accepts {_shortened(saved.get(name))} "
            "as at the start of the run",
        )
        for name in dict.fromkeys([*saved, *now])
        if saved.get(name) != now.get(name)
    ]
    if problems:
        raise CheckpointError(
            "the run can't be resumed: what it was trained on has changed. Bring it back, or start "
            "anew with --overwrite or another train.output_dir",
            problems,
        )


def _shortened(fingerprint: str | None) -> str:
    return "none" if fingerprint is None else repr(fingerprint[:12])


def _write_files(folder: Path, state: TrainingState) -> None:
    random = state.random
    parts = {
        "tensors": state.tensors,
        "optimizer": state.optimizer,
        "random": {
            "python": random.python,
            "numpy": random.numpy,
            "cpu": random.cpu,
            "cuda": random.cuda,
        },
    }
    values = {
        "num_rollouts_done": state.num_rollouts_done,
        "scheduler": state.scheduler,
        "kl_coefficient": state.kl_coefficient,
        "score_moments": state.score_moments,
        "return_moments": state.return_moments,
        "counters": state.counters,
        "history": state.history,
        "identity": state.identity,
    }
    stored: dict[str, object] = {"version": _VERSION, "values": _pack(values, None, "values")}
    for name, file in TENSOR_FILES.items():
        tensors: dict[str, torch.Tensor] = {}
        stored[name] = _pack(parts[name], tensors, name)
        save_file(tensors, folder / file)
    (folder / STATE_FILE).write_text(json.dumps(stored), encoding="utf-8")


def _pack(value: object, tensors: dict[str, torch.Tensor] | None, path: str) -> object:
    """Turn a value into what JSON holds, tensors set apart by their path.

    A list or a dictionary with text keys stays one; all else that JSON has no word for becomes a
    dictionary with a single key that begins with `!`.

    Raises:
        TypeError: A value that could not be read back as it was.
    """
    if isinstance(value, torch.Tensor) and tensors is not None:
        assert path not in tensors, "two tensors of one path"
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"!tensor": path}
    if isinstance(value, np.ndarray):
        return {"!array": [str(value.dtype), value.tolist()]}
    if isinstance(value, tuple):
        return {"!tuple": _pack(list(value), tensors, path)}
    if isinstance(value, list):
        return [_pack(item, tensors, f"{path}.{index}") for index, item in enumerate(value)]
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("!") for key in value):
            return {key: _pack(item, tensors, f"{path}.{key}") for key, item in value.items()}
        items = [[key, _pack(item, tensors, f"{path}.{key}")] for key, item in value.items()]
        return {"!items": items}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} can't be kept in a checkpoint")


def _unpack(value: object, tensors: Mapping[str, torch.Tensor]) -> object:
    """Undo `_pack`."""
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (kind := next(iter(value))).startswith("!"):
        inner = value[kind]
        if kind == "!tensor":
            return tensors[inner]
        if kind == "!array":
            return np.array(inner[1], dtype=inner[0])
        if kind == "!tuple":
            return tuple(cast("list[object]", _unpack(inner, tensors)))
        return {key: _unpack(item, tensors) for key, item in inner}
    return {key: _unpack(item, tensors) for key, item in value.items()}
