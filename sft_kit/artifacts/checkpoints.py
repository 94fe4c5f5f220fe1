"""Which checkpoint of an interrupted run can be resumed."""

import json
import re
import zipfile
from pathlib import Path

from sft_kit.manifest import MANIFEST_FILE, broken_parts, set_aside

_ALWAYS = ("trainer_state.json", "optimizer.pt", "scheduler.pt")
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")


def newest_checkpoint(output_dir: Path) -> tuple[Path | None, list[str]]:
    """Find the newest complete checkpoint of a run.

    The Trainer writes a checkpoint file by file; a run killed in between leaves a folder that looks
    like the newest and can't be resumed. PPO's are whole or not there, and still may be damaged.

    Returns:
        The folder, or None; and one sentence for every newer one that was passed over.
    """
    skipped: list[str] = []
    for folder in _candidates(output_dir):
        missing = missing_parts(folder)
        if not missing:
            return folder, skipped
        skipped.append(f"{folder} was passed over: {', '.join(missing)}")
    return None, skipped


def missing_parts(folder: Path) -> list[str]:
    """List what a checkpoint folder lacks to be resumed exactly.

    A file counts when it has its end: the JSON closes, the zip archive that `torch.save` writes has
    its directory, the safetensors file is as long as its header says. A folder with a manifest is
    judged by that alone.
    """
    if (folder / MANIFEST_FILE).is_file():
        return broken_parts(folder)
    missing = [f"{name} is missing" for name in _ALWAYS if not (folder / name).is_file()]
    weights = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    random_states = sorted(folder.glob("rng_state*.pth"))
    if not weights:
        missing.append("weights are missing")
    if not random_states:
        missing.append("random state is missing")
    indexes = [path for path in weights if path.suffix == ".json" and _is_whole(path)]
    weights += [folder / name for index in indexes for name in _shards(index)]
    parts = [folder / name for name in _ALWAYS if (folder / name).is_file()]
    missing += [
        f"{path.name} is {'cut off' if path.is_file() else 'missing'}"
        for path in [*parts, *weights, *random_states]
        if not _is_whole(path)
    ]
    return missing


def _candidates(output_dir: Path) -> list[Path]:
    """List checkpoints from the newest on; one that was being replaced counts behind its heir."""
    names = {path.name for path in output_dir.glob("*")}
    names |= {path.name[1:].removesuffix(".old") for path in output_dir.glob(".checkpoint-*.old")}
    found = [match for name in names if (match := re.fullmatch(r"checkpoint-(\d+)", name))]
    found.sort(key=lambda match: int(match.group(1)), reverse=True)
    folders = [output_dir / match.group() for match in found]
    places = [place for folder in folders for place in (folder, set_aside(folder))]
    return [place for place in places if place.exists()]


def _shards(index: Path) -> list[str]:
    weight_map = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
    return sorted(set(weight_map.values()))


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
            return True
        if path.suffix == ".safetensors":
            return _safetensors_bytes(path) == path.stat().st_size
        return zipfile.is_zipfile(path)
    except (OSError, ValueError):
        return False


def _safetensors_bytes(path: Path) -> int:
    """Say how long a safetensors file must be: length word, header, and the last tensor's end."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(header_bytes, path.stat().st_size)))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + header_bytes + max(ends, default=0)
