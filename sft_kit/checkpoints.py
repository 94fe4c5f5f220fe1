"""Which checkpoints stand in a run folder, which of them are whole, and where `--resume` goes on.

Nothing here needs torch: files are judged by the manifest that was written with them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sft_kit.manifest import broken_parts, read_manifest

_NAME = re.compile(r"checkpoint-(\d+)|\.checkpoint-(\d+)\.old")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as it was found.

    Attributes:
        folder: Where it stands.
        step: Steps done, or rollouts.
        problems: Why it can't be resumed, one reason each; none where it is whole and of the run.
        num_bytes: What its manifest lists; 0 without one.
    """

    folder: Path
    step: int
    problems: tuple[str, ...]
    num_bytes: int = 0


def step_of(folder: Path) -> int:
    """Read the step from a checkpoint's name, `checkpoint-<step>`; also of one set aside."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1) or match.group(2)) if match else 0


def list_checkpoints(output_dir: Path) -> list[Path]:
    """List checkpoints from the newest on; one that was being replaced counts behind its heir."""
    standing = {path for path in output_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name)}
    aside = {path for path in output_dir.glob(".checkpoint-*.old") if _NAME.fullmatch(path.name)}
    return sorted(standing | aside, key=lambda path: (-step_of(path), path.name.startswith(".")))


def why_not_resumable(folder: Path, run: str = "") -> list[str]:
    """List what keeps a checkpoint from being resumed.

    Args:
        folder: The checkpoint.
        run: Id of the run that would go on from it; empty takes one of any run.
    """
    broken = broken_parts(folder)
    manifest = read_manifest(folder)
    if manifest is not None and run and manifest.run != run:
        of = f"run {manifest.run[:8]}" if manifest.run else "no run"
        broken.insert(0, f"it is of {of}, not of run {run[:8]} which stands in run.yaml")
    return broken


def examine(folder: Path, run: str = "") -> Checkpoint:
    """Read a checkpoint from end to end and compare it with its manifest."""
    manifest = read_manifest(folder)
    problems = tuple(why_not_resumable(folder, run))
    return Checkpoint(folder, step_of(folder), problems, manifest.num_bytes if manifest else 0)


def newest_checkpoint(output_dir: Path, run: str = "") -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that is whole and of the run.

    Args:
        output_dir: Run folder.
        run: Id of the run; empty takes a checkpoint of any run.

    Returns:
        The folder, or None; and one sentence for every newer one that was passed over.
    """
    skipped: list[str] = []
    for folder in list_checkpoints(output_dir):
        problems = why_not_resumable(folder, run)
        if not problems:
            return folder, skipped
        skipped.append(f"{folder} was passed over: {', '.join(problems)}")
    return None, skipped
