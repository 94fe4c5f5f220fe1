"""Store a trained model as the embedded checkpoints are: half the size, loaded as before."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel


def store(model: PreTrainedModel, folder: Path, **config: object) -> None:
    """Write config and weights, these in float16.

    The config says float32, so that they are loaded as such: that is what a CPU does well.

    Args:
        model: Changed in place.
        folder: Folder of the checkpoint.
        config: Fields to set in its config.json.
    """
    model.to(torch.float16).save_pretrained(folder)
    path = folder / "config.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps({**found, **config, "dtype": "float32"}, indent=2, sort_keys=True)
    path.write_text(f"{text}\n", encoding="utf-8")
    size = sum(entry.stat().st_size for entry in folder.iterdir())
    print(f"{folder}: {model.num_parameters():,} parameters, {size:,} bytes")
