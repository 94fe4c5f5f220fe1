"""Points the real client at the stand-in, and makes run folders small enough to push often."""

import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .hub_server import TOKEN, HubServer

SHRUNK = {
    "connect_seconds": 1.0,
    "read_seconds": 0.4,
    "first_wait_seconds": 0.01,
    "longest_wait_seconds": 0.02,
}
"""Waiting as in `sft_kit.hub.deadline.Patience`, a hundred times shorter."""


@contextmanager
def stand_in(patch: pytest.MonkeyPatch, home: Path, *, xet: bool = False) -> Iterator[HubServer]:
    """A Hub of its own: the client asks it, and keeps cache and token in `home`."""
    from huggingface_hub import constants

    store = home / "xet-store"
    store.mkdir(parents=True)
    server = HubServer(store if xet else None)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "ENDPOINT", server.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub-cache"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    patch.setenv("HF_TOKEN", TOKEN)
    # The Xet client waits for seconds before it asks again.
    patch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "20ms")
    patch.setenv("HF_XET_CACHE", str(home / "xet-cache"))
    try:
        yield server
    finally:
        server.close()


def safetensors(metadata: dict[str, str] | None = None, seed: int = 0, size: int = 64) -> bytes:
    """A file of weights, written by the format's own rules and no library."""
    header: dict[str, object] = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    if metadata:
        header["__metadata__"] = metadata
    text = json.dumps(header).encode()
    body = bytes((seed * 31 + at * 7) % 256 for at in range(size))
    return struct.pack("<Q", len(text)) + text + body


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A picture of one pixel, with further chunks."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    rest = b"".join(chunk(kind, body) for kind, body in chunks)
    pixel = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return b"\x89PNG\r\n\x1a\n" + head + rest + pixel + chunk(b"IEND", b"")


def small_run(folder: Path, seed: int = 0) -> Path:
    """A finished run folder as a recipe leaves it, with every kind of file."""
    from sft_kit.run_record import weight_digests, write_record

    base = folder.parent / "bases" / "tiny-base"
    base.mkdir(parents=True, exist_ok=True)
    folder.mkdir()
    adapter = {"base_model_name_or_path": str(base), "r": 8, "peft_type": "LORA"}
    tokenizer = {"is_local": True, "name_or_path": str(base), "model_max_length": 128}
    texts = {
        "README.md": _CARD,
        "adapter_config.json": json.dumps(adapter),
        "tokenizer_config.json": json.dumps(tokenizer),
        "tokenizer.json": json.dumps({"model": {"vocab": {"a": 0, "user": 1, "/tmp": 2}}}),
        "chat_template.jinja": "{{ messages }}",
        "metrics.json": json.dumps({"eval_loss": 0.5 + seed}),
        "samples.md": "What is secret? A sample.",
        "log.jsonl": json.dumps({"time": 1.0, "loss": 2.0}),
        "notes.txt": "mine",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "loss.png").write_bytes(png((b"tEXt", b"Software\0Matplotlib")))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(seed=seed))
    (folder / "training_args.bin").write_bytes(b"\x80\x04pickle")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"\x80\x04pickle")
    (folder / "value").mkdir()
    (folder / "value" / "adapter_model.safetensors").write_bytes(safetensors(seed=9))
    data = {"path": str(folder.parent / "rows.jsonl"), "template": "auto", "max_length": 512}
    train = {"output_dir": str(folder), "learning_rate": 2e-4, "push_to_hub": True,
             "hub_model_id": "me/run", "logging_dir": "/srv/logs"}  # fmt: skip
    record = {
        "status": "finished",
        "recipe": "sft_x_lora.py",
        "settings": {
            "model": {"checkpoint": str(base), "revision": None},
            "adapter": {"r": 8},
            "data": data,
            "train": train,
            "sample": {"prompts": ["What is secret?"], "max_new_tokens": 4},
        },
        "origins": {"model.checkpoint": f"{folder.parent}/x.yaml:3"},
        "notes": [f"read from {folder.parent}"],
        "versions": {"sft-kit": "0.1.0"},
        "data": {"num_train_rows": 90, "fingerprint": "ab12"},
        "base": {"name": str(base), "folder": str(base), "fingerprint": "cd34"},
        "metrics": {"eval_loss": 0.5 + seed},
        "weights": weight_digests(folder),
    }
    write_record(folder, record)
    return folder


_CARD = """\
---
library_name: peft
tags:
- sft_kit
---

# a run

```python
folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = PeftModel.from_pretrained(base, folder)
```

Or `sft-kit chat FOLDER`.

## Before and after

Prompt: What is secret?

## Limits

None are known.
"""
