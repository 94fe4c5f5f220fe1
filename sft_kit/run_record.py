"""`run.yaml`: the one file that says what a run was and whether it finished."""

import hashlib
import os
import subprocess
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sft_kit.errors import CheckpointError

RUN_FILE = "run.yaml"
_BLOCK_BYTES = 1 << 20
_MAX_BYTES = 5_000_000
_MAX_VALUES = 1_000_000
_PACKAGES = (
    "sft-kit",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
)


def write_record(folder: Path, record: Mapping[str, object]) -> None:
    """Write `run.yaml` whole or not at all."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    part = folder / f".{RUN_FILE}.part"
    with part.open("w", encoding="utf-8") as file:
        yaml.dump(dict(record), file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / RUN_FILE)


def read_record(folder: Path) -> dict[str, object]:
    """Read `run.yaml`.

    Raises:
        CheckpointError: The folder is not a run, or the file is damaged.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        kind = "has no run.yaml" if folder.is_dir() else "does not exist"
        raise CheckpointError(
            f"{folder} {kind}: give the folder that a recipe named at its end (train.output_dir)"
        )
    try:
        record = YAML(typ="safe", pure=True).load(_read_text(path))
        _refuse_growth(record)
    except RecursionError as error:
        raise CheckpointError(f"{path} can't be read: it is nested too deep") from error
    except (YAMLError, ValueError) as error:  # ValueError: wrong encoding, a date that is none
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if (
        not isinstance(record, dict)
        or "status" not in record
        or not isinstance(record.get("settings"), dict)
    ):
        raise CheckpointError(f"{path} is not the record of a run: it has no status and settings")
    return cast("dict[str, object]", record)


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"found more than {_MAX_BYTES:,} bytes, accepts the record of a run")
    return data.decode("utf-8")


def _refuse_growth(record: object) -> None:
    """Stop where aliases make a small file a large record, or one that contains itself."""
    sizes: dict[int, int] = {}
    whole: list[object] = []  # keeps the ids from being given away twice

    def size_of(value: object) -> int:
        if not isinstance(value, dict | list | set | tuple):
            return 1
        if id(value) not in sizes:
            whole.append(value)
            sizes[id(value)] = _MAX_VALUES  # until it is known: what contains itself has no end
            inner = value.values() if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size_of(one) for one in inner)
        return sizes[id(value)]

    if size_of(record) >= _MAX_VALUES:
        raise ValueError(f"found more than {_MAX_VALUES:,} values, accepts the record of a run")


def new_run_id() -> str:
    """Draw the id by which a run knows its own checkpoints: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def read_run_id(folder: Path) -> str:
    """Read the id of the run in a folder; empty where no run is recorded there."""
    if not (folder / RUN_FILE).is_file():
        return ""
    return str(read_record(folder).get("run_id") or "")


def weight_digests(folder: Path) -> dict[str, str]:
    """Hash the weight files of a folder.

    Returns:
        File name -> sha256 as 64 hexadecimal digits.
    """
    digests: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        digests[path.name] = digest.hexdigest()
    return digests


def installed_versions() -> dict[str, str]:
    """List the versions of the packages that decide a run's figures."""
    return {package: found for package in _PACKAGES if (found := _version(package))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def source_commit(folder: Path) -> str | None:
    """Name the git commit the recipe stands at; "-dirty" when files differ from it.

    Returns:
        None outside a git checkout.
    """
    command = ["git", "-C", str(folder), "describe", "--always", "--exclude=*", "--dirty"]
    command.append("--abbrev=40")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
