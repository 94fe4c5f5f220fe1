"""The command `sft-kit`: parses the command line, then calls the room that does the work.

Whatever needs torch is imported inside the command that needs it: `sft-kit check` answers at once.
"""

import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sft_kit import __version__
from sft_kit.config import Resolved, find_recipe, json_schema, read_config, run_recipe
from sft_kit.errors import ConfigError, DataError, Problem
from sft_kit.settings import SampleSettings

if TYPE_CHECKING:
    from sft_kit.artifacts import LoadedRun
    from sft_kit.data.rows import Message

DATA_REFUSED = 1
"""Exit code of `inspect` when training would refuse the data; 2 is a mistake in the command."""

CHAT_MAX_NEW_TOKENS = 256

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SettingsFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="YAML of a recipe.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="section.key=value", help="Settings that replace the file's."),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", metavar="PY", help="The recipe, if it is not FILE with .py."),
]
RunDir = Annotated[
    str, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.", show_default=False)
]
Base = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="The base checkpoint, if it has moved since the run."),
]
System = Annotated[str, typer.Option(metavar="TEXT", help="System message.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy (the default); higher is more random.")
]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens; 0 is off.")]
TopP = Annotated[
    float | None, typer.Option(help="Draw from the likeliest tokens with this total probability.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of the draw.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest reply in tokens.")]


def main() -> None:
    """Run the command line; mistakes end in a message and exit code 2."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            # A terminal that lacks a character must not cost the reply.
            output.reconfigure(errors="backslashreplace")
    # It tells at import that it can't download an optional kernel.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    run_recipe(app)


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


@app.command()
def check(file: SettingsFile, overrides: Overrides = None, recipe: RecipeFile = None) -> None:
    """Check a recipe's YAML: every problem at once, each with its line."""
    resolved = _read(file, overrides, recipe)
    for note in resolved.notes:
        typer.echo(f"note: {note}")
    num_given = sum("." in key and origin != "default" for key, origin in resolved.origins.items())
    typer.echo(f"{file}: ok, {num_given} settings")


@app.command()
def schema(
    recipes: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RECIPE", help="Recipes; default: all in the folder recipes."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR|-", help="Folder, or - to print; default: schema beside RECIPE."),
    ] = None,
) -> None:
    """Write the JSON schema with which an editor checks and completes a recipe's YAML."""
    chosen = [find_recipe(path) if path.suffix != ".py" else path for path in recipes or []]
    schemas = {path: json_schema(path) for path in chosen or _recipes_here()}
    for path, content in schemas.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        if out == "-":
            typer.echo(text, nl=False)
        else:
            folder = Path(out) if out else path.parent / "schema"
            _write(folder / f"{path.stem}.json", text)


@app.command()
def inspect(
    file: SettingsFile,
    overrides: Overrides = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as an HTML page too.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Number of examples to show.")] = 5,
    recipe: RecipeFile = None,
) -> None:
    """Show what the data teaches, token by token. Exit code 1: training would refuse it."""
    resolved = _read(file, overrides, recipe)
    from rich.console import Console

    from sft_kit.label_doctor import show_labels

    try:
        show_labels(Console(), resolved, examples, html)
    except DataError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(DATA_REFUSED) from None


@app.command()
def chat(
    run_dir: RunDir,
    base: Base = None,
    system: System = "",
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
) -> None:
    """Talk to a trained model; also with questions from a pipe, one per line."""
    from rich.console import Console

    from sft_kit.inference.chat import chat as start_chat

    sampling = _sampling(
        SampleSettings(max_new_tokens=CHAT_MAX_NEW_TOKENS),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    start_chat(Console(), _load_run(run_dir, base), sampling, system)


@app.command()
def generate(
    run_dir: RunDir,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A prompt; may be repeated.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text file with one prompt per line.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: prompt, reply, stopped, num_tokens.")
    ] = False,
    base: Base = None,
    system: System = "",
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
) -> None:
    """Answer prompts with a trained model."""
    from sft_kit.inference.generate import generate as answer

    questions = [_checked(text) for text in prompt or []] + _prompts_in(prompt_file)
    if not questions:
        raise ConfigError("there is nothing to answer: give --prompt TEXT or --prompt-file FILE")
    sampling = _sampling(
        SampleSettings(),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        max_new_tokens=max_new_tokens,
    )
    run = _load_run(run_dir, base)
    chats = [_messages(question, system) for question in questions]
    replies = answer(run.model, run.tokenizer, run.template, chats, sampling)
    if as_json:
        rows = [
            {
                "prompt": question,
                "reply": reply.text,
                "stopped": reply.stopped,
                "num_tokens": len(reply.ids),
            }
            for question, reply in zip(questions, replies, strict=True)
        ]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        _print_replies(questions, [reply.text for reply in replies])


def _read(file: Path, overrides: Sequence[str] | None, recipe: Path | None) -> Resolved:
    """Read settings as the recipe would with `--config FILE`: its own YAML comes first."""
    recipe = recipe or find_recipe(file)
    own = recipe.with_suffix(".yaml")
    is_own = not own.is_file() or (file.exists() and own.samefile(file))
    return read_config(recipe, [file] if is_own else [own, file], overrides or [])


def _recipes_here() -> list[Path]:
    found = [
        path for path in sorted(Path("recipes").glob("*.py")) if path.with_suffix(".yaml").is_file()
    ]
    if not found:
        raise ConfigError("there is no folder recipes with a recipe here: name a RECIPE")
    return found


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}") from error
    typer.echo(path)


def _sampling(defaults: SampleSettings, **options: float | None) -> SampleSettings:
    from sft_kit.inference.chat import change_sampling

    given = {name: value for name, value in options.items() if value is not None}
    return change_sampling(defaults, given, "command line")


def _load_run(run_dir: str, base: str | None) -> "LoadedRun":
    from sft_kit.artifacts import load_run

    return load_run(run_dir, base)


def _checked(text: str) -> str:
    if not text.strip():
        raise ConfigError("a prompt is empty: write something after --prompt")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = Problem("command line", "--prompt", f"found {text!r}, which is not UTF-8 text")
        raise ConfigError("a prompt can't be read", [problem]) from error
    return text


def _prompts_in(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text: found byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start} (convert it: iconv -f ENCODING -t UTF-8)"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _messages(question: str, system: str) -> list["Message"]:
    head: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": question}]


def _print_replies(questions: Sequence[str], replies: Sequence[str]) -> None:
    from sft_kit.inference.chat import harmless

    for question, reply in zip(questions, replies, strict=True):
        if len(questions) > 1:
            typer.echo(f"> {question}")
        shown = harmless(reply) if sys.stdout.isatty() else reply
        typer.echo(f"{shown}\n" if len(questions) > 1 else shown)
