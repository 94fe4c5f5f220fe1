"""The tensors of a rollout in a file, so that every logged figure can be worked out again."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import save_file

from sft_kit.training.ppo.rollout import Rollout

FOLDER = "rollouts"


def dump_rollout(folder: Path, rollout: Rollout) -> None:
    """Write `rollouts/<number>.safetensors` (all tensors) and `.json` (the episodes).

    Args:
        folder: Run folder.
        rollout: Scored, with advantages.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    tensors = {
        of.name: value
        for of in fields(rollout)
        if isinstance(value := getattr(rollout, of.name), torch.Tensor)
    }
    tensors |= {f"score_parts/{name}": part for name, part in rollout.score_parts.items()}
    name = f"{rollout.index:05d}"
    save_file(
        {key: value.contiguous().clone() for key, value in tensors.items()},
        place / f"{name}.safetensors",
    )
    episodes = {
        "index": rollout.index,
        "kl_coefficient": rollout.kl_coefficient,
        "return_std": rollout.return_std,
        "episodes": [asdict(episode) for episode in rollout.episodes],
    }
    (place / f"{name}.json").write_text(json.dumps(episodes), encoding="utf-8")
