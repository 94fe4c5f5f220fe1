"""Commands between this machine and the Hub: push, pull."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sft_kit.hub.deadline import Patience

Timeout = Annotated[
    float | None,
    typer.Option(
        min=1, metavar="SECONDS", help="Give up after this long; default: 10 min and 4 s per MB."
    ),
]


def push(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a finished run or a merged model.", show_default=False
        ),
    ],
    repo: Annotated[
        str,
        typer.Option(metavar="NAME/REPO", help="Where to; made if needed.", show_default=False),
    ],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Who sees a repository that is made.")
    ] = True,
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="Made if needed.")] = "main",
    message: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Message of the commit.", show_default=False)
    ] = None,
    samples: Annotated[
        bool, typer.Option("--samples", help="Push samples.md and its prompts as well.")
    ] = False,
    timeout: Timeout = None,
) -> None:
    """Push a finished run to the Hub: model, tokenizer, card, metrics, recipe and curves.

    Nothing else goes up, and nothing at all where a file holds a token, a
    path, a host or a user name. Repeat it after an interruption: what has
    arrived is not sent again.
    """
    from sft_kit.artifacts.publishing import push_run
    from sft_kit.hub.push import Target

    target = Target(repo, private, revision, message or Target(repo).message)
    pushed = push_run(run, target, samples=samples, patience=_patience(timeout), say=_say)
    for line in pushed.lines():
        typer.echo(line)


def pull(
    repo: Annotated[
        str, typer.Argument(metavar="NAME/REPO", help="What `push` wrote.", show_default=False)
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Branch, tag or commit.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write; default: REPO.", show_default=False),
    ] = None,
    timeout: Timeout = None,
) -> None:
    """Pull a run from the Hub to a run folder, whole or not at all."""
    from sft_kit.artifacts.pulling import pull_run

    folder = output or Path(repo.rpartition("/")[2])
    pulled = pull_run(repo, folder, revision, patience=_patience(timeout), say=_say)
    if pulled.left:
        typer.echo(f"left on the Hub: {', '.join(pulled.left)}")
    typer.echo(f"run folder: {folder} (commit {pulled.commit[:12]})")


def _patience(timeout: float | None) -> "Patience":
    from sft_kit.hub.deadline import Patience

    return Patience(total_seconds=timeout)


def _say(line: str) -> None:
    typer.echo(line, err=True)


COMMANDS = (push, pull)
