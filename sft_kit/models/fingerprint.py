"""A checkpoint's identity by content, so that an adapter is never put on another base."""

import hashlib
import json
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from transformers.utils.hub import cached_file

from sft_kit.config.checkpoint_header import model_type, stored_quantization
from sft_kit.errors import CheckpointError
from sft_kit.models.same_base import base_facts
from sft_kit.models.weight_files import loaded_files
from sft_kit.settings import ModelSettings

_SAMPLE_BYTES = 4096
_ZIP = b"PK\x03\x04"
_DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError),
    *(RecursionError, BadZipFile),
)


def checkpoint_folder(checkpoint: str, revision: str | None = None) -> Path | None:
    """Find the folder a checkpoint was loaded from, without asking the Hub.

    Returns:
        The local folder, the snapshot in the Hub's cache, or None when it is in neither.
    """
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    try:
        found = cached_file(
            checkpoint,
            "config.json",
            revision=revision,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except OSError:  # the name of a folder that is gone is no Hub id
        return None
    return Path(str(found)).parent if found else None


def fingerprint(folder: Path) -> str:
    """Hash a checkpoint's weights: every tensor's name, type, shape and first bytes.

    Reads 4 KiB of each tensor, so that it costs the same seconds for any size of model. Pickles
    have no such header: hashed are the checksums in the zip archives that they are, and those of
    torch before 1.6, which are none, whole.

    Returns:
        sha256 as 64 hexadecimal digits.

    Raises:
        CheckpointError: A file is damaged or gone.
    """
    digest = hashlib.sha256()
    try:
        for path in loaded_files(folder):
            hash_file = _hash_tensors if path.suffix == ".safetensors" else _hash_pickle
            hash_file(path, digest)
    except _DAMAGED as error:
        raise CheckpointError(
            f"{path} is damaged: its header can't be read; bring back the file as it was"
        ) from error
    return digest.hexdigest()


def _hash_tensors(path: Path, digest: "hashlib._Hash") -> None:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > path.stat().st_size:
            raise ValueError("the header is longer than the file")
        header = json.loads(file.read(header_bytes))
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items()):
            begin, end = entry["data_offsets"]
            file.seek(8 + header_bytes + begin)
            digest.update(f"{name}{entry['dtype']}{entry['shape']}".encode())
            digest.update(file.read(min(_SAMPLE_BYTES, end - begin)))


def _hash_pickle(path: Path, digest: "hashlib._Hash") -> None:
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:  # how torch tells, too
            file.seek(0)
            digest.update(hashlib.file_digest(file, "sha256").digest())
            return
    with ZipFile(path) as archive:
        for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
            # torch begins every name with the name the file had when it was saved.
            name = entry.filename.partition("/")[2]
            digest.update(f"{name}{entry.file_size}{entry.CRC}".encode())


def describe_base(settings: ModelSettings) -> dict[str, object]:
    """Say what a run starts from: name, kind, folder on this machine, fingerprint, and its facts.

    The facts are those of `sft_kit.models.same_base`.
    """
    folder = checkpoint_folder(settings.checkpoint, settings.revision)
    assert folder is not None, "the checkpoint has been loaded before"
    return {
        "name": settings.checkpoint,
        "model_type": model_type(folder),
        "stored_as": stored_quantization(folder),
        "folder": str(folder.resolve()),
        "fingerprint": fingerprint(folder),
        **base_facts(settings),
    }
