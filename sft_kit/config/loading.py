"""From YAML and command line to the settings objects of a recipe.

The YAML beside the recipe < `--config FILE` < `section.key=value`, merged key by key. Reading and
checking imports neither torch nor transformers nor peft and never runs the recipe; only
`load_config` builds their objects.
"""

import copy
import os
import re
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from sft_kit import devices, launch_checks
from sft_kit.config.command_line import Arguments, help_text, parse_arguments, resolved_text
from sft_kit.config.merging import (
    COMMAND_LINE,
    Reading,
    check_sections,
    merge_file,
    merge_overrides,
    report_of,
)
from sft_kit.config.rules import broken_rules
from sft_kit.config.schema import read_sections
from sft_kit.config.tables import READ_BY_RUN
from sft_kit.config.validation import CheckedSection, with_new_names
from sft_kit.config.view import View
from sft_kit.config.yaml_text import Node, display
from sft_kit.errors import ConfigError, Problem

S = TypeVar("S")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Resolved:
    """What a recipe's settings are and where each was said.

    Attributes:
        recipe: The recipe's Python file.
        sections: Section -> key -> value, given or default; a default that is no literal is left
            out. None is a section that is null.
        origins: `train.learning_rate` -> `recipes/x.yaml:12`, `command line` or `default`; sections
            have one too.
        notes: Old names that were understood, one sentence each.
    """

    recipe: Path
    sections: dict[str, dict[str, object] | None]
    origins: dict[str, str]
    notes: tuple[str, ...] = ()

    def own(self, name: str, cls: type[S]) -> S:
        """Build one of this project's settings classes.

        Args:
            name: Its section.
            cls: The class from `sft_kit.settings`.

        Raises:
            ConfigError: The section is null or absent.
        """
        values = self.sections.get(name)
        if values is None:
            problem = Problem(display(self.recipe), name, "found null, accepts a section")
            raise ConfigError(f"{display(self.recipe)}: can't be used", [problem])
        return cls(**values)

    def given(self, name: str) -> dict[str, object]:
        """The values of a section that the YAML or the command line says."""
        values = self.sections.get(name) or {}
        return {
            key: value
            for key, value in values.items()
            if self.origins[f"{name}.{key}"] != "default"
        }


@dataclass(frozen=True)
class Config(Generic[T_co]):
    """The settings of one run, built.

    Attributes:
        settings: The recipe's `Settings`.
        resolved: The same as plain values, with their origins.
        resume: Continue the run in its output folder.
        overwrite: Replace the run in its output folder.
        notes: What was picked for `auto` and which old names were understood.
    """

    settings: T_co
    resolved: Resolved
    resume: bool
    overwrite: bool
    notes: list[str]


def find_recipe(yaml: Path) -> Path:
    """The recipe beside a YAML, which has the same stem.

    Raises:
        ConfigError: There is none.
    """
    recipe = yaml.with_suffix(".py")
    if yaml.is_dir() or yaml.suffix == ".py":
        found = "found a folder" if yaml.is_dir() else "found a recipe"
        problem = Problem(display(yaml), "", f"{found}, accepts its YAML")
    elif not yaml.is_file():
        problem = Problem(display(yaml), "", "there is no such file")
    elif not recipe.is_file():
        found = f"found no {recipe.name} beside it"
        problem = Problem(
            f"{display(yaml)}:1", "", found, "name the recipe with `--recipe FILE.py`"
        )
    else:
        return recipe
    raise ConfigError(f"{display(yaml)}: can't be used", [problem])


def json_schema(recipe: Path) -> dict[str, object]:
    """The JSON schema of a recipe's YAML, for editors.

    Raises:
        ConfigError: The recipe has no `class Settings`, or one with unknown section classes.
    """
    from sft_kit.config import strict_types  # loads pydantic, so not before it is needed

    return strict_types.json_schema(recipe)


def read_config(
    recipe: Path,
    yamls: Sequence[Path],
    overrides: Sequence[str],
    machine: Callable[[devices.Sections], Sequence[Problem]] | None = None,
) -> Resolved:
    """Read, merge and check settings without importing torch.

    Args:
        recipe: Python file with `class Settings`.
        yamls: Later files win, key by key.
        overrides: `section.key=value`, which win over all files.
        machine: What this machine can't do of the settings; without it that is not checked.

    Raises:
        ConfigError: Everything that is wrong, at once.
    """
    reading = Reading(read_sections(recipe))
    for path in yamls:
        merge_file(reading, path)
    merge_overrides(reading, overrides)
    main = display(yamls[-1] if yamls else recipe)
    checked = check_sections(reading, main)
    resolved = _resolve(recipe, reading, checked)
    faulty = {f"{name}.{key}" for name, one in checked.items() for key in one.faulty | one.meant}
    faulty |= {name for name in reading.sections if name not in checked}
    view = View(resolved.sections, resolved.origins, frozenset(faulty), _hub_cache())
    problems = [*reading.problems, *broken_rules(view)]
    if machine is not None:
        found = machine(resolved.sections)
        problems += [_placed(problem, resolved.origins, main) for problem in found]
    if problems:
        raise report_of(main, problems)
    return resolved


def load_config(cls: type[T], recipe: str) -> Config[T]:
    """Read `sys.argv` and the YAML beside a recipe, and build its settings.

    `--help` and `--print-config` print and end the process.

    Args:
        cls: The recipe's `Settings`.
        recipe: The recipe's `__file__`.

    Raises:
        ConfigError: Everything that is wrong, at once.
        LaunchError: Fewer processes were started than the launcher was asked for.
    """
    path = Path(recipe)
    sections = read_sections(path)
    arguments = parse_arguments(sys.argv[1:], sections)
    if arguments.help:
        _print_and_exit(help_text(path.name, sections))
    yamls = _yaml_files(path, arguments)
    resolved = read_config(
        path, yamls, arguments.overrides, lambda sections: devices.resolve(sections).problems
    )
    devices.check_launch()
    launch_checks.check_tasks()
    resolved, updates = _with_device(resolved)
    if arguments.print_config:
        _print_and_exit(resolved_text(resolved.sections, resolved.origins))
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        # TrainingArguments takes the launcher's word where the settings say float32.
        os.environ["ACCELERATE_MIXED_PRECISION"] = devices.mixed_precision(updates["train"])
    on_cpu = updates.get("train", {}).get("use_cpu") is True
    launch_checks.check_sharding(resolved.sections, on_cpu=on_cpu)
    settings = _build(cls, resolved, updates, display(yamls[-1]))
    launch_checks.build_models_whole()
    devices.check_processes(getattr(getattr(settings, "train", None), "n_gpu", 1))
    threads = devices.use_all_cores()
    notes = [*resolved.notes, *([threads] if threads else [])]
    return Config(settings, resolved, arguments.resume, arguments.overwrite, notes)


def refuse_unread(config: Config[Any], section: str, read: Collection[str]) -> None:
    """Refuse settings that a recipe with a loop of its own does not read, and tell of none of them.

    Args:
        config: From `load_config`; its notes on keys that are not read are taken out.
        section: A section whose class has more keys than the recipe uses.
        read: The keys it uses.

    Raises:
        ConfigError: One problem for each key that was given and would have no effect.
        LaunchError: The launcher was asked to spread weights over the processes.
    """
    resolved = config.resolved
    launch_checks.check_own_loop(resolved.recipe.name)
    problems = [
        Problem(
            resolved.origins[f"{section}.{key}"],
            f"{section}.{key}",
            f"{resolved.recipe.name} does not read this key, accepts {', '.join(sorted(read))}",
        )
        for key in resolved.given(section)
        if key not in read
    ]
    if problems:
        raise report_of(display(resolved.recipe), problems)
    named = [(note, set(re.findall(rf"\b{section}\.(\w+)", note))) for note in config.notes]
    config.notes[:] = [note for note, keys in named if not keys or keys & set(read)]


def _yaml_files(recipe: Path, arguments: Arguments) -> list[Path]:
    sibling = recipe.with_suffix(".yaml")
    files = [sibling] if sibling.is_file() else []
    files += [Path(name) for name in arguments.config_files]
    if not files:
        problem = Problem(display(sibling), "", "there is no such file", "name one with `--config`")
        raise ConfigError(f"{display(recipe)}: found no settings", [problem])
    return files


def _print_and_exit(text: str) -> NoReturn:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stdout.write(text)
    raise SystemExit(0)


def _hub_cache() -> Path:
    """Where `huggingface_hub` keeps its files, by its own environment variables."""
    environ = os.environ
    cache = environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    hub = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expanduser(hub or os.path.join(home, "hub")))


def _resolve(recipe: Path, reading: Reading, checked: Mapping[str, CheckedSection]) -> Resolved:
    sections: dict[str, dict[str, object] | None] = {}
    origins: dict[str, str] = {}
    notes = list(reading.notes)
    for name, one in checked.items():
        notes += one.notes
        node = reading.merged.get(name)
        origins[name] = node.where if node else "default"
        if node is not None and node.value is None:
            sections[name] = None
            continue
        sections[name] = values = {}
        for key, setting in reading.sections[name].settings.items():
            origins[f"{name}.{key}"] = "default"
            if key in one.values:
                values[key] = one.values[key]
            elif setting.default is not ...:
                values[key] = copy.deepcopy(setting.default)
        if node is not None:
            given, _, _ = with_new_names(reading.sections[name], node)
            origins.update(_places(name, given, one.values))
    return Resolved(recipe, sections, origins, tuple(notes))


def _places(dotted: str, node: Node, keys: Iterable[str]) -> dict[str, str]:
    """Origins of the given keys, and of the keys inside them that come from somewhere else."""
    assert isinstance(node.value, dict)
    places: dict[str, str] = {}
    for key in keys:
        child = node.value[key]
        places[f"{dotted}.{key}"] = child.where
        if isinstance(child.value, dict) and child.where == COMMAND_LINE:
            places.update(_places(f"{dotted}.{key}", child, child.value))
    return places


def _with_device(
    resolved: Resolved,
) -> tuple[Resolved, Mapping[str, Mapping[str, object]]]:
    """Replace what says `auto` by what this machine can do."""
    resolution = devices.resolve(resolved.sections)
    sections, origins = dict(resolved.sections), dict(resolved.origins)
    for name, updates in resolution.updates.items():
        before = sections.get(name)
        if before is None:
            continue
        sections[name] = {**before, **updates}
        for key in updates:
            if before.get(key) == "auto":
                origins[f"{name}.{key}"] = f"auto ({origins.get(f'{name}.{key}', 'default')})"
    notes = (*resolved.notes, *resolution.notes)
    return replace(resolved, sections=sections, origins=origins, notes=notes), resolution.updates


def _placed(problem: Problem, origins: Mapping[str, str], main: str) -> Problem:
    section = problem.key.partition(".")[0]
    places = (problem.where, origins.get(problem.key), origins.get(section), f"{main}:1")
    return replace(problem, where=next(p for p in places if p and p != "default"))


def _build(
    cls: type[T], resolved: Resolved, updates: Mapping[str, Mapping[str, object]], main: str
) -> T:
    """Build every section's object from what was given, and all of them into the recipe's class."""
    built: dict[str, object] = {}
    problems: list[Problem] = []
    for name, hint in get_type_hints(cls).items():
        if resolved.sections[name] is None:
            built[name] = None
            continue
        tp = _class_of(hint)
        values = {
            key: value
            for key, value in {**resolved.given(name), **updates.get(name, {})}.items()
            if f"{tp.__name__}.{key}" not in READ_BY_RUN
        }
        try:
            built[name] = tp(**values)
        except (ValueError, TypeError, ImportError, OSError, RuntimeError, LookupError) as error:
            where = resolved.origins.get(name, "default")
            where = f"{main}:1" if where == "default" else where
            reason = " ".join(str(error).split())
            problems.append(Problem(where, name, f"{tp.__name__} refuses: {reason}"))
    if problems:
        raise report_of(main, problems)
    return cls(**built)


def _class_of(hint: Any) -> type:  # noqa: ANN401 - a typing construct has no type of its own
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(member for member in get_args(hint) if member is not type(None))
    assert isinstance(hint, type)
    return hint
