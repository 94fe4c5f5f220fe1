"""The command `sft-kit`: parses the command line, then calls the room that does the work.

Whatever needs torch is imported inside the command that needs it: `sft-kit check` answers at once.
"""

import io
import logging
import sys
from typing import Annotated

import typer

from sft_kit import __version__
from sft_kit.cli import (
    classifier_commands,
    hub_commands,
    model_commands,
    plan_command,
    recipe_commands,
    reward_commands,
    tokenizer_commands,
    verify_command,
)
from sft_kit.command import EXIT_INTERRUPTED
from sft_kit.config import run_recipe

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    *recipe_commands.COMMANDS,
    *plan_command.COMMANDS,
    *model_commands.COMMANDS,
    *classifier_commands.COMMANDS,
    *reward_commands.COMMANDS,
    *verify_command.COMMANDS,
    *hub_commands.COMMANDS,
):
    app.command()(command)
app.add_typer(tokenizer_commands.app, name="tokenizer")


def main() -> None:
    """Run the command line; mistakes end in a message and exit code 2."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            # A terminal that lacks a character must not cost the reply.
            output.reconfigure(errors="backslashreplace")
    # It tells at import that it can't download an optional kernel.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        run_recipe(app)
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:  # typer has caught Ctrl-C and says nothing
            sys.stderr.write("stopped by Ctrl-C\n")
        raise


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sft-kit {__version__}")
        raise typer.Exit


@app.callback()
def sft_kit(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Check settings and data of a recipe, and talk to what it trained."""
