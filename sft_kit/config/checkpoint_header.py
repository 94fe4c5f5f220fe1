"""What a checkpoint's files say without loading a tensor: its layers, and how it is stored."""

import json
import os
import struct
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from sft_kit.config.layer_names import chatglm_layer_names

_MAX_HEADER_BYTES = 100_000_000


def module_names(folder: Path) -> list[str]:
    """Names of the modules that hold a matrix, which is what an adapter can attach to.

    Args:
        folder: With `model.safetensors`, or `model.safetensors.index.json` and its shards.

    Returns:
        Sorted full names (`h.0.attn.c_attn`); empty when there are no readable headers. ChatGLM's
        layers have two names each: in the files, and as loaded.
    """
    num_layers = _num_chatglm_layers(folder)
    if num_layers:
        layers = chatglm_layer_names(num_layers)
        return sorted({*layers, *chain.from_iterable(layers.values())})
    names: set[str] = set()
    for file in _weight_files(folder):
        header = read_header(file)
        if header is None:
            return []
        for tensor, facts in header.items():
            if isinstance(facts, dict) and len(facts.get("shape", ())) >= 2:
                names.add(tensor.rpartition(".")[0])
    return sorted(names - {""})


def stored_quantization(folder: Path) -> str:
    """How a checkpoint's own files quantize its weights; empty when they do not.

    Returns:
        Such as "int4" (ChatGLM's `quantization_bit`) or "bitsandbytes" (a `quantization_config`).
    """
    config = config_of(folder)
    bits = config.get("quantization_bit")
    if isinstance(bits, int) and bits > 0:
        return f"int{bits}"
    section = config.get("quantization_config")
    return str(section.get("quant_method", "quantized")) if isinstance(section, dict) else ""


def model_type(folder: Path) -> str:
    """The architecture that a checkpoint's config.json names; empty when there is none."""
    return str(config_of(folder).get("model_type", ""))


def _num_chatglm_layers(folder: Path) -> int:
    config = config_of(folder)
    layers = config.get("num_layers") if config.get("model_type") == "chatglm" else None
    return layers if isinstance(layers, int) else 0


def config_of(folder: Path) -> dict[str, object]:
    """Content of a folder's config.json; empty when there is none or it is damaged.

    Whoever loads the checkpoint reads the file again and says what is wrong with it.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def read_header(file: Path) -> dict[str, object] | None:
    """The JSON header of a safetensors file; None when the file isn't one."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length <= _MAX_HEADER_BYTES else None
    except (OSError, ValueError, RecursionError, struct.error):
        return None
    return header if isinstance(header, dict) else None


def local_folder(checkpoint: str, revision: str | None, hub_cache: Path) -> Path | None:
    """Folder of a checkpoint on this machine: itself, or its snapshot in the Hub's cache.

    Args:
        checkpoint: Folder or Hub id.
        revision: Branch, tag or commit; None is `main`.
        hub_cache: Where `huggingface_hub` keeps what it downloaded.
    """
    if os.path.isdir(checkpoint):
        return Path(checkpoint)
    cached = hub_cache / f"models--{checkpoint.replace('/', '--')}"
    reference = cached / "refs" / (revision or "main")
    try:
        commit = reference.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision or ""
    snapshot = cached / "snapshots" / commit
    return snapshot if commit and os.path.isdir(snapshot) else None


def _weight_files(folder: Path) -> Iterable[Path]:
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []
    names = sorted({str(shard) for shard in shards})
    # A name with a folder is refused where the checkpoint is loaded; here it is not even looked at.
    return [folder / name for name in names if Path(name).name == name and name != ".."]
