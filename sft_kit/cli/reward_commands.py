"""Commands about a run of a reward model: score."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sft_kit.config.merging import COMMAND_LINE
from sft_kit.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    from sft_kit.artifacts.reward import LoadedReward
    from sft_kit.cli.reward_data import Answer, AskedAnswers

_SUFFIX = ".jsonl"

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Folder of a finished run of a reward model.", show_default=False
    ),
]
Base = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="The base checkpoint of the run, if it has moved since."),
]
Format = Annotated[
    str, typer.Option("--format", metavar="NAME", help="Shape of a row; auto detects it.")
]


def score(
    run: Run,
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Compared answers, or conversations whose last answer is scored, in any form that "
            "a recipe reads.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write .jsonl: file, line, rank among the compared answers, prompt, completion, "
            "score.",
        ),
    ] = None,
    data_format: Format = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier output file.")
    ] = False,
    base: Base = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Answers per forward pass; changes speed and memory only.")
    ] = 32,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the lines of the output file.")
    ] = False,
) -> None:
    """Score answers with a reward model; of compared ones say how often it is right."""
    from sft_kit.artifacts.reward import load_reward_run
    from sft_kit.cli.reward_data import read_answers
    from sft_kit.inference.score import score_rows

    if output is not None:
        _check_output(output, data, overwrite=overwrite)
    loaded = load_reward_run(run, base)
    asked = read_answers(loaded, data, data_format)
    for note in asked.notes:
        typer.echo(f"note: {note}", err=True)
    with _progress(len(asked.answers)) as on_rows:
        scores = score_rows(
            loaded.model,
            [answer.input_ids for answer in asked.answers],
            pad_token_id=int(loaded.tokenizer.pad_token_id),
            batch_size=batch_size,
            on_rows=on_rows,
        ).tolist()
    lines = [_line(answer, one) for answer, one in zip(asked.answers, scores, strict=True)]
    if output is not None:
        _write(output, lines)
        typer.echo(f"{output}: {len(lines):,} scores", err=as_json)
    if as_json:
        typer.echo(json.dumps(lines, indent=2, ensure_ascii=False))
    elif asked.comparisons:
        _show_report(asked, scores, loaded)
    elif output is None:
        _print(lines)


def _line(answer: "Answer", found: float) -> dict[str, object]:
    line: dict[str, object] = {"file": answer.where.file, "line": answer.where.line}
    if answer.rank is not None:
        line["rank"] = answer.rank
    return {**line, "prompt": answer.prompt, "completion": answer.completion, "score": found}


def _show_report(asked: "AskedAnswers", scores: Sequence[float], loaded: "LoadedReward") -> None:
    import numpy as np
    from rich.console import Console

    from sft_kit.cli.reward_data import by_group
    from sft_kit.evaluation.preference import evaluate_preferences
    from sft_kit.evaluation.preference_report import show_preference_report

    groups = [np.asarray(row) for row in by_group(scores, asked.comparisons)]
    report = evaluate_preferences(groups, asked.comparisons, loaded.tokenizer)
    show_preference_report(Console(), report)


def _print(lines: Sequence[dict[str, object]]) -> None:
    """Print one line an answer: its score, and its text."""
    from sft_kit.data.token_text import readable

    for line in lines:
        text = " ".join(str(line["completion"]).split())
        typer.echo(f"{line['score']:.4f}\t{readable(text)}")


def _check_output(output: Path, data: str, *, overwrite: bool) -> None:
    """Refuse to write over the answers, over an earlier file unasked, or in an unknown form.

    Raises:
        ConfigError: Why not.
    """
    source = Path(data).expanduser()
    if output.suffix.lower() != _SUFFIX:
        found = f"found {str(output)!r}, accepts files ending in {_SUFFIX}"
        problem = Problem(COMMAND_LINE, "--output", found)
    elif output.exists() and source.exists() and output.samefile(source):
        problem = Problem(COMMAND_LINE, "--output", "found the file of --data", "name another")
    elif output.exists() and (output.is_dir() or not overwrite):
        todo = "name another" if output.is_dir() else "add --overwrite to replace it"
        problem = Problem(COMMAND_LINE, "--output", f"{output} is there already", todo)
    elif not output.parent.is_dir():
        problem = Problem(COMMAND_LINE, "--output", f"there is no folder {output.parent}")
    else:
        return
    raise ConfigError("the scores can't be written", [problem])


def _write(path: Path, lines: Sequence[dict[str, object]]) -> None:
    """Write the file whole or not at all."""
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(text.encode("utf-8", errors="backslashreplace"))
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{path} can't be written: {error.strerror or error}") from error


@contextmanager
def _progress(num_rows: int) -> Iterator[Callable[[int], None]]:
    """Show in a terminal how many answers are done; say what to do when memory runs out."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("answers", total=num_rows)
            yield lambda count: bar.advance(task, count)
    except torch.OutOfMemoryError as error:
        problem = Problem(COMMAND_LINE, "--batch-size", "is more than memory holds", "lower it")
        raise ConfigError("the answers can't be scored", [problem]) from error


COMMANDS = (score,)
