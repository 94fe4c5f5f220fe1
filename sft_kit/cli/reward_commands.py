"""Commands about a run of a reward model: score."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sft_kit.cli.rows_out import check_output, row_progress
from sft_kit.errors import DataError

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
ForceBase = Annotated[
    bool,
    typer.Option("--force-base", help="Use another base than the run was trained on, and warn."),
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
    force_base: ForceBase = False,
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
        failure = "the scores can't be written"
        check_output(output, data, "--data", (_SUFFIX,), failure, overwrite=overwrite)
    loaded = load_reward_run(run, base, force_base=force_base)
    asked = read_answers(loaded, data, data_format)
    for note in asked.notes:
        typer.echo(f"note: {note}", err=True)
    with row_progress(len(asked.answers), "answers", "the answers can't be scored") as on_rows:
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


COMMANDS = (score,)
