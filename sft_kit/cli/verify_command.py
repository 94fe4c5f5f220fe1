"""The command `verify`: whether what a run has written is still what it wrote."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, cast

import typer

from sft_kit.checkpoints import Checkpoint, examine, list_checkpoints
from sft_kit.command import EXIT_USER_ERROR
from sft_kit.disk import in_bytes
from sft_kit.manifest import state_of
from sft_kit.run_record import read_record


def verify(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: checkpoints, weights, resume, whole.")
    ] = False,
) -> None:
    """Compare checkpoints and final weights with their digests. Exit code 2: one is broken."""
    record = read_record(run)
    checkpoints = [
        examine(folder, str(record.get("run_id") or "")) for folder in list_checkpoints(run)
    ]
    weights = _weights(run, cast("Mapping[str, str]", record.get("weights") or {}))
    is_finished = record["status"] == "finished"
    resume = None if is_finished else _resumable(checkpoints)
    is_whole = not any(one.problems for one in checkpoints) and not any(weights.values())
    if as_json:
        found = {
            "run": str(run),
            "status": record["status"],
            "checkpoints": [_described(one) for one in checkpoints],
            "weights": weights,
            "resume": resume,
            "whole": is_whole,
        }
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print_table(checkpoints, weights)
        typer.echo(_what_resumes(run, resume, is_finished=is_finished))
    if not is_whole:
        raise typer.Exit(EXIT_USER_ERROR)


def _weights(run: Path, digests: Mapping[str, str]) -> dict[str, str]:
    """Say of every weight file of a finished run what is wrong with it; empty where nothing is."""
    return {name: state_of(run / name, 0, digest) for name, digest in digests.items()}


def _resumable(checkpoints: list[Checkpoint]) -> str | None:
    return next((one.folder.name for one in checkpoints if not one.problems), None)


def _described(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "name": checkpoint.folder.name,
        "step": checkpoint.step,
        "bytes": checkpoint.num_bytes,
        "problems": list(checkpoint.problems),
    }


def _print_table(checkpoints: list[Checkpoint], weights: Mapping[str, str]) -> None:
    rows = [
        (one.folder.name, in_bytes(one.num_bytes), ", ".join(one.problems) or "whole")
        for one in checkpoints
    ]
    rows += [(name, "", problem or "whole") for name, problem in weights.items()]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for name, size, state in rows:
        typer.echo(f"{name:<{widths[0]}}  {size:>{widths[1]}}  {state}")


def _what_resumes(run: Path, resume: str | None, *, is_finished: bool) -> str:
    if is_finished:
        return f"{run} has finished: there is nothing to resume"
    return f"--resume goes on from {resume or 'step 0: no checkpoint is whole'}"


COMMANDS = (verify,)
