"""The command line of a recipe, its help, and the printout of what was resolved."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sft_kit.config.schema import Section, Setting, describe
from sft_kit.config.suggestions import nearest
from sft_kit.errors import ConfigError, Problem

_USAGE = """\
usage: {recipe} [section.key=value ...] [--config FILE] [--resume | --overwrite]

Settings come from the YAML beside the recipe, then from --config, then from section.key=value.
Values are YAML 1.2: train.learning_rate=1e-4  adapter.target_modules=[c_attn, c_proj]  adapter=null

  --config FILE   another YAML, merged over the one beside the recipe, key by key
  --resume        continue the run in train.output_dir
  --overwrite     replace the run in train.output_dir
  --print-config  print every resolved value and where it came from, then stop
  -h, --help      print this, then stop
"""
_SWITCHES = {
    "--resume": "resume",
    "--overwrite": "overwrite",
    "--print-config": "print_config",
    "--help": "help",
    "-h": "help",
}
_WIDTH = 100


@dataclass(slots=True)
class Arguments:
    """A recipe's command line, taken apart."""

    config_files: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    resume: bool = False
    overwrite: bool = False
    print_config: bool = False
    help: bool = False


def parse_arguments(words: Sequence[str], sections: Mapping[str, Section]) -> Arguments:
    """Sort the words of a command line.

    Raises:
        ConfigError: Unknown options (with the `section.key=value` to write instead), or --resume
            with --overwrite.
    """
    arguments = Arguments()
    problems: list[Problem] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if word in _SWITCHES:
            setattr(arguments, _SWITCHES[word], True)
        elif name == "--config":
            value = value if equals else queue.pop(0) if queue else ""
            if value:
                arguments.config_files.append(value)
            else:
                problems.append(_problem("--config", "found no file name after it"))
        elif word.startswith("-"):
            if not equals and queue and not queue[0].startswith("--") and "=" not in queue[0]:
                value = queue.pop(0)
            problems.append(_unknown_option(name, value, sections))
        elif equals:
            arguments.overrides.append(word)
        else:
            problems.append(_problem(word, "found a lone word, accepts section.key=value"))
    if arguments.resume and arguments.overwrite:
        problems.append(_problem("--overwrite", "found together with --resume", "keep one of them"))
    if problems:
        raise ConfigError("command line: can't be used", problems)
    return arguments


def help_text(recipe: str, sections: Mapping[str, Section]) -> str:
    """Usage and every setting with its default, what it accepts and what it means."""
    lines = [_USAGE.format(recipe=recipe)]
    for section in sections.values():
        null = ", or null" if section.nullable else ""
        lines.append(f"{section.name}: {section.class_name}{null}")
        for setting in section.settings.values():
            lines += _setting_lines(section, setting)
        lines.append("")
    return "\n".join(lines)


def resolved_text(
    sections: Mapping[str, Mapping[str, object] | None], origins: Mapping[str, str]
) -> str:
    """The resolved settings as YAML, each with its origin as a comment."""
    lines = []
    for name, values in sections.items():
        lines.append(f"{name}:" if values is not None else f"{name}: null  # {origins[name]}")
        for key, value in (values or {}).items():
            lines.append(f"  {key}: {as_yaml(value)}  # {origins[f'{name}.{key}']}")
    return "\n".join(lines) + "\n"


def as_yaml(value: object) -> str:
    """A value on one line of YAML 1.2; JSON is such a line."""
    return json.dumps(value, ensure_ascii=False)


def _setting_lines(section: Section, setting: Setting) -> Iterator[str]:
    default = "required" if setting.required else "depends on the machine"
    if setting.default is not ...:
        default = as_yaml(setting.default)
    accepted = textwrap.shorten(describe(setting.type), 60, placeholder=" ...")
    yield f"  {section.name}.{setting.name}  [{default}]  {accepted}"
    if setting.help:
        indent = " " * 6
        wrapped = textwrap.shorten(setting.help, 2 * _WIDTH, placeholder=" ...")
        yield textwrap.fill(wrapped, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _unknown_option(name: str, value: str, sections: Mapping[str, Section]) -> Problem:
    written = name.lstrip("-").replace("-", "_")
    dotted = {f"{s.name}.{key}": key for s in sections.values() for key in s.settings}
    keys = [full for full, key in dotted.items() if written in (full, key)]
    switches = {switch.lstrip("-").replace("-", "_"): switch for switch in [*_SWITCHES, "--config"]}
    close = nearest(written, switches)
    if close and not keys:
        return _problem(name, "found an unknown option", f"did you mean {switches[close[0]]}?")
    if not keys and len(written) > 2:
        guess = nearest(written, dotted.values())[:1]
        keys = [full for full, key in dotted.items() if key in guess]
    if not keys:
        return _problem(name, "found an unknown option", "see --help")
    todo = " or ".join(f"`{key}={value or '...'}`" for key in keys)
    return _problem(name, "found an unknown option, settings have no dashes", f"write {todo}")


def _problem(word: str, message: str, todo: str = "") -> Problem:
    return Problem("command line", word, message, todo)
