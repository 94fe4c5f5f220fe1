"""The command `plan`: what a run will take, before it is started."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from sft_kit.cli.recipe_commands import Overrides, RecipeFile, SettingsFile, read_settings
from sft_kit.config import Resolved
from sft_kit.config.yaml_text import display
from sft_kit.devices import usable_cores
from sft_kit.disk import free_bytes, in_bytes
from sft_kit.errors import ConfigError, SftKitError
from sft_kit.plan.changes import Measure, Option, find_options, smallest_memory
from sft_kit.plan.forecast import Forecast, forecast
from sft_kit.plan.measurement import Measurement
from sft_kit.plan.report import in_words, option_lines, plan_lines, time_in_words
from sft_kit.plan.running import measure
from sft_kit.plan.writing import check_same, check_target, write_changed

DOES_NOT_FIT = 1
"""Exit code where no change makes the run fit; 2 is a mistake in the command."""
_QUIET = {"report_to": "none", "push_to_hub": "false", "hub_model_id": "null"}
"""Settings of a run that would tell others of it."""
_USED_SHARE = 0.9
"""Of the free memory, which a run may take without being told what to change."""


def plan(
    file: SettingsFile,
    overrides: Overrides = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="8GB", help="Memory to fit into; default: what is free now."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the recipe's YAML that fits.")
    ] = None,
    recipe: RecipeFile = None,
) -> None:
    """Predict tokens, memory, time and disk of a run by trying a few steps of it."""
    limit = None if fit is None else parse_size(fit)
    if write is not None:
        check_target(write)
    words = list(overrides or [])
    resolved = read_settings(file, words, recipe)

    @cache
    def try_out(more: tuple[str, ...]) -> Measurement:
        chosen = [*_words(file, resolved), *words, *more, *_quiet(resolved)]
        return measure(resolved.recipe, chosen, to_the_end=not more)

    found = try_out(())
    if not found.micro_steps and not found.rollouts:
        raise SftKitError(f"nothing could be measured: {found.died or 'the run has no steps'}")
    planned = forecast(found)
    free_disk = free_bytes(_nearest(resolved.sections))
    for line in plan_lines(found, planned, num_threads=usable_cores(), free_disk=free_disk):
        typer.echo(line)
    free = found.free_device_bytes if found.uses_device else found.free_host_bytes
    limit = limit or _USED_SHARE * free
    option = None
    if planned.memory.upper <= limit:
        typer.echo(f"fits into {in_bytes(round(limit))}")
    else:
        option = _cheapest(
            find_options(found, resolved.sections, limit, try_out), found, limit, try_out
        )
    if write is not None:
        more = option.words if option else ()
        taken = option.forecast if option else planned
        _write(file, write, resolved, [*words, *more], taken)


def _nearest(sections: Mapping[str, Mapping[str, object] | None]) -> Path:
    """The run folder, or the first one above it that exists."""
    folder = Path(str((sections.get("train") or {}).get("output_dir") or "")).absolute()
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _cheapest(
    options: Sequence[Option], found: Measurement, limit: float, measure: Measure
) -> Option:
    """Show what makes a run fit.

    Raises:
        typer.Exit: Nothing does.
    """
    if not options:
        least = in_words(smallest_memory(found, measure))
        typer.echo(
            f"more than {in_bytes(round(limit))}, and no change of micro-batch, checkpointing, "
            f"quantization or max_length makes it fit; one row at a time takes {least}"
        )
        raise typer.Exit(DOES_NOT_FIT)
    for line in option_lines(options, limit):
        typer.echo(line)
    return options[0]


def _write(
    file: Path, target: Path, resolved: Resolved, words: Sequence[str], planned: Forecast
) -> None:
    takes = f"{in_words(planned.memory)}, {time_in_words(planned.seconds)}"
    write_changed(file, words, target, f"Written by `sft-kit plan {display(file)}`: {takes}.")
    own = resolved.recipe.with_suffix(".yaml")
    before = [own] if _words(file, resolved) and own.is_file() else []
    check_same(resolved.recipe, [*before, file], words, [*before, target])
    typer.echo(f"{target}: use it with `--config {target}`")


def parse_size(text: str) -> float:
    """Read a size such as `8GB` (10^9 bytes) or `8GiB` (2^30).

    Raises:
        ConfigError: It is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b", text.strip(), flags=re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ConfigError(f"--fit: found {text!r}, accepts a size such as 8GB, 900MB or 7.5GiB")
    power = " kmgt".index(found[2].lower() or " ")
    return float(found[1]) * float(1024 if found[3] else 1000) ** power


def _words(file: Path, resolved: Resolved) -> list[str]:
    """How the recipe is told of a YAML that is not its own."""
    own = resolved.recipe.with_suffix(".yaml")
    is_own = own.is_file() and own.samefile(file)
    return [] if is_own else ["--config", str(file)]


def _quiet(resolved: Resolved) -> list[str]:
    given = resolved.given("train")
    return [f"train.{key}={value}" for key, value in _QUIET.items() if key in given]


COMMANDS = (plan,)
