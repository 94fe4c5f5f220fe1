"""The folder of a report: an earlier report is replaced, anything else is left alone."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from sft_kit.errors import ConfigError
from sft_kit.evaluation.report import REPORT_FILES


def report_folder(run: str, data: str, output: Path | None) -> Path:
    """Choose the folder, and check that a report may be written there.

    Args:
        run: Run folder.
        data: What is evaluated on.
        output: What the user says; None is `RUN/evaluation/` and the name of the data.

    Raises:
        ConfigError: It is a file, or holds something else than a report, or, where the user names
            none, a report on other data of the same name.
    """
    path = Path(data).expanduser()
    stem = path.resolve().stem if path.exists() else path.stem
    folder = Path(run, "evaluation", stem or "data") if output is None else output
    _check_writable(folder)
    if not folder.exists():
        return folder
    foreign = sorted(item.name for item in folder.iterdir() if item.name not in REPORT_FILES)
    if foreign:
        raise ConfigError(
            f"{folder} holds what no report has ({', '.join(foreign[:5])}), so nothing is written "
            "there: name another folder with --output DIR"
        )
    earlier = _data_of_report(folder)
    if output is None and earlier and earlier != data and Path(earlier).resolve() != path.resolve():
        raise ConfigError(
            f"{folder} holds a report on {earlier}: name a folder for the one on {data} with "
            "--output DIR"
        )
    return folder


def _check_writable(folder: Path) -> None:
    """Refuse a folder that can't be made or written, before anything is computed."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        raise ConfigError(f"{there} is a file: name a folder with --output DIR")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{there} can't be written: name another folder with --output DIR")


def _data_of_report(folder: Path) -> str:
    """What an earlier report is about; empty where that can't be read."""
    try:
        return str(json.loads((folder / REPORT_FILES[0]).read_bytes())["about"]["data"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def write_report(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write a report, each file whole or not at all, and remove what an earlier one had more.

    Returns:
        The files.

    Raises:
        ConfigError: They can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in REPORT_FILES:
            if name in files:
                part = folder / f".{name}.{os.getpid()}"
                part.write_bytes(files[name])
                part.replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} can't be written: {error.strerror or error}") from error
    return [folder / name for name in REPORT_FILES if name in files]
