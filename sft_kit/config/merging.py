"""YAML files and overrides merged key by key into one tree, and its sections checked.

Every value keeps the place it came from, so that whatever is wrong with it is reported there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sft_kit.config.schema import Section
from sft_kit.config.validation import CheckedSection, check_section, unknown_section
from sft_kit.config.yaml_text import Node, display, read_value, read_yaml
from sft_kit.errors import MAX_SHOWN_PROBLEMS, ConfigError, Problem

COMMAND_LINE = "command line"
_CHECKPOINT = "checkpoint"
_NEW_MODEL = ("tokenizer", "architecture", "config")
_NULL = ("", "null", "Null", "NULL", "~")


@dataclass
class Reading:
    """What gathers while files and overrides are read.

    Attributes:
        sections: Of the recipe.
        merged: What each section says so far.
        problems: Found so far.
        meant: Sections that a misspelt one probably stands for; not reported as missing.
        notes: What was understood, one sentence each.
    """

    sections: Mapping[str, Section]
    merged: dict[str, Node] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    meant: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def merge_file(reading: Reading, path: Path) -> None:
    """Merge one YAML over what was read before.

    Raises:
        ConfigError: The file can't be read at all.
    """
    try:
        document = read_yaml(path)
    except ConfigError as error:
        raise report_of(display(path), error.problems) from error
    reading.problems.extend(document.problems)
    assert isinstance(document.root.value, dict)
    for name, node in document.root.value.items():
        if name in reading.sections:
            if isinstance(node.value, dict):
                _make_way(reading, name, node.value, display(path))
            reading.merged[name] = _merge(reading.merged.get(name), node)
        elif len(reading.problems) >= MAX_SHOWN_PROBLEMS:
            reading.problems.append(Problem(node.where, name, "found an unknown section"))
        else:
            problem = unknown_section(name, node, reading.sections)
            reading.problems.append(problem)
            reading.meant.update(s for s in reading.sections if f"'{s}'" in problem.todo)


def _merge(below: Node | None, above: Node) -> Node:
    if below is None or not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    return replace(above, value={**below.value, **above.value})


def _make_way(reading: Reading, name: str, given: Mapping[str, Node | None], by: str) -> None:
    """Drop a new model that was described below where a checkpoint is named above, and vice versa.

    A section that knows both takes one of them; whoever names the other means it instead, with none
    of the fields that were written for the first.

    Args:
        reading: What was read so far.
        name: Section.
        given: Keys that are said now; None for a value that is not read yet.
        by: Who says them.
    """
    below = reading.merged.get(name)
    both = set(_NEW_MODEL) | {_CHECKPOINT} <= set(reading.sections[name].settings)
    if below is None or not isinstance(below.value, dict) or not both:
        return
    named = {key for key, node in given.items() if node is None or node.value is not None}
    checkpoint = below.value.get(_CHECKPOINT)
    if _CHECKPOINT in named:
        taken, dropped = _CHECKPOINT, list(_NEW_MODEL)
    elif "tokenizer" in named and checkpoint is not None and checkpoint.value is not None:
        taken, dropped = "tokenizer", [_CHECKPOINT, "config"]
    else:
        return
    kept = {key: node for key, node in below.value.items() if key not in dropped}
    gone = ", ".join(key for key in dropped if key in below.value)
    if gone:
        reading.merged[name] = replace(below, value=kept)
        reading.notes.append(f"{name}.{taken} ({by}) takes the place of {gone} in {below.where}")


def merge_overrides(reading: Reading, overrides: Sequence[str]) -> None:
    """Merge `section.key=value` words over all files; what is wrong joins the problems."""
    for name in reading.sections:
        words = (word.partition("=") for word in overrides)
        given = {
            dotted.strip().removeprefix(f"{name}."): None
            for dotted, _, written in words
            if dotted.strip().startswith(f"{name}.") and written.strip() not in _NULL
        }
        _make_way(reading, name, given, COMMAND_LINE)
    seen: set[str] = set()
    for override in overrides:
        dotted, equals, written = override.partition("=")
        dotted = dotted.strip()
        parts = dotted.split(".")
        if not equals or not all(parts):
            found = f"found {override!r}, accepts section.key=value"
            reading.problems.append(Problem(COMMAND_LINE, "", found))
        elif dotted in seen:
            reading.problems.append(
                Problem(COMMAND_LINE, dotted, "found a second time", "keep one of them")
            )
        elif parts[0] not in reading.sections:
            node = Node(None, COMMAND_LINE)
            reading.problems.append(unknown_section(dotted, node, reading.sections))
        else:
            seen.add(dotted)
            _merge_override(reading, parts, written)


def _merge_override(reading: Reading, parts: list[str], written: str) -> None:
    try:
        node = read_value(written, COMMAND_LINE)
    except ConfigError as error:
        dotted = ".".join(parts)
        reading.problems += [replace(one, where=COMMAND_LINE, key=dotted) for one in error.problems]
        return
    for part in reversed(parts[1:]):
        node = Node({part: node}, COMMAND_LINE)
    below = reading.merged.get(parts[0])
    merged = _merge_deep(below, node) if len(parts) > 1 else _merge(below, node)
    both_are_sections = below is not None and {dict} == {type(below.value), type(merged.value)}
    if below is not None and both_are_sections:
        merged = replace(merged, where=below.where)
    reading.merged[parts[0]] = merged


def _merge_deep(below: Node | None, above: Node) -> Node:
    """Set one key of a mapping inside mappings (`model.config.n_layer=4`) and keep the others."""
    if below is None or not isinstance(below.value, dict) or not isinstance(above.value, dict):
        return above
    entries = dict(below.value)
    for key, node in above.value.items():
        entries[key] = _merge_deep(entries.get(key), node)
    return replace(above, value=entries)


def check_sections(reading: Reading, main: str) -> dict[str, CheckedSection]:
    """Check each section; the ones that are null or can't be read are left out of the result."""
    checked = {}
    for name, section in reading.sections.items():
        node = reading.merged.get(name)
        if node is None and (not section.required or name in reading.meant):
            node = Node(None if section.nullable else {}, f"{main}:1")
        if node is None:
            keys = ", ".join(key for key, one in section.settings.items() if one.required)
            todo = f"add `{name}:`" + (f" with {keys}" if keys else "")
            found = f"found no such section, accepts the settings of {section.class_name}"
            reading.problems.append(Problem(f"{main}:1", name, found, todo))
        elif isinstance(node.value, dict) and name not in reading.meant:
            checked[name] = check_section(section, node, reading.sections)
            reading.problems.extend(checked[name].problems)
        elif node.value is None and section.nullable and name not in reading.meant:
            checked[name] = CheckedSection()
            reading.merged[name] = node
        elif name not in reading.meant:
            null = " or null" if section.nullable else ""
            found = f"found {node.written or 'no keys'}, accepts `key: value` lines{null}"
            reading.problems.append(Problem(node.where, name, found))
    return checked


def report_of(main: str, problems: Sequence[Problem]) -> ConfigError:
    """One error for all problems, in the order of the files.

    Args:
        main: The file to name in the summary.
        problems: In any order.
    """
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError(f"{main}: {number}", sorted(problems, key=_order))


def _order(problem: Problem) -> tuple[bool, str, int]:
    """Files by name and line, the command line last."""
    file, _, line = problem.where.rpartition(":")
    return problem.where == COMMAND_LINE, file, int(line) if line.isdecimal() else 0
