"""Commands about a recipe's settings and data: check, schema, inspect."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sft_kit.config import Resolved, find_recipe, json_schema, read_config
from sft_kit.config.schema import read_sections
from sft_kit.errors import ConfigError, DataError
from sft_kit.settings import (
    LabelledDataSettings,
    PairDataSettings,
    PreferenceDataSettings,
    PromptDataSettings,
    TextDataSettings,
)

if TYPE_CHECKING:
    from rich.console import Console

DATA_REFUSED = 1
"""Exit code of `inspect` when training would refuse the data; 2 is a mistake in the command."""

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


def check(file: SettingsFile, overrides: Overrides = None, recipe: RecipeFile = None) -> None:
    """Check a recipe's YAML: every problem at once, each with its line."""
    resolved = read_settings(file, overrides, recipe)
    for note in resolved.notes:
        typer.echo(f"note: {note}")
    num_given = sum("." in key and origin != "default" for key, origin in resolved.origins.items())
    typer.echo(f"{file}: ok, {num_given} settings")


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


def inspect(
    file: SettingsFile,
    overrides: Overrides = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as an HTML page too.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Number of examples to show.")] = 5,
    recipe: RecipeFile = None,
) -> None:
    """Show what the data teaches and what it lacks. Exit code 1: training would refuse it."""
    if html is not None:
        _check_page(html)
    resolved = read_settings(file, overrides, recipe)
    from rich.console import Console

    show = _doctor(resolved)
    try:
        show(Console(), resolved, examples, html)
    except DataError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(DATA_REFUSED) from None


def _check_page(html: Path) -> None:
    """Refuse a page that can't be written, before the data is read.

    Raises:
        ConfigError: Why not.
    """
    if html.is_dir():
        raise ConfigError(f"{html} is a folder: name a file with --html FILE")
    if not html.parent.is_dir():
        raise ConfigError(f"there is no folder {html.parent}: name another file with --html FILE")
    if not os.access(html if html.exists() else html.parent, os.W_OK):
        raise ConfigError(f"{html} can't be written: name another file with --html FILE")


def _doctor(resolved: Resolved) -> "Callable[[Console, Resolved, int, Path | None], None]":
    """What looks at this recipe's data: chats, labels, compared answers, prompts, texts, pairs."""
    data = read_sections(resolved.recipe).get("data")
    if data is not None and data.class_name == LabelledDataSettings.__name__:
        from sft_kit.class_doctor import show_classes

        return show_classes
    if data is not None and data.class_name == PreferenceDataSettings.__name__:
        from sft_kit.preference_doctor import show_preferences

        return show_preferences
    if data is not None and data.class_name == PromptDataSettings.__name__:
        from sft_kit.preference_doctor import show_prompts

        return show_prompts
    if data is not None and data.class_name == TextDataSettings.__name__:
        from sft_kit.pretrain_doctor import show_pretraining

        return show_pretraining
    if data is not None and data.class_name == PairDataSettings.__name__:
        from sft_kit.pretrain_doctor import show_pairs

        return show_pairs
    from sft_kit.label_doctor import show_labels

    return show_labels


def read_settings(file: Path, overrides: Sequence[str] | None, recipe: Path | None) -> Resolved:
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


COMMANDS = (check, schema, inspect)
