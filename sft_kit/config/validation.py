"""One section's keys and values against its settings class: every fault at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_origin

from sft_kit.config.schema import Section, Setting, describe
from sft_kit.config.suggestions import did_you_mean, most_alike, nearest
from sft_kit.config.tables import ALIASES, OLD_NAMES, REFUSED, RENAMED
from sft_kit.config.yaml_text import Node, scalar
from sft_kit.errors import MAX_SHOWN_PROBLEMS, Problem

_MAX_SHOWN = 60
_MAX_LISTED = 8
_WORDS: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "missing": "a value",
}


@dataclass(slots=True)
class CheckedSection:
    """What a section says, and what is wrong with it.

    Attributes:
        values: Keys whose values can be used.
        faulty: Keys that stand in the file and can't be used.
        meant: Known keys that an unknown key probably stands for.
        problems: In the order of the file.
        notes: Old names that were understood.
    """

    values: dict[str, object] = field(default_factory=dict)
    faulty: set[str] = field(default_factory=set)
    meant: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def with_new_names(section: Section, node: Node) -> tuple[Node, list[str], list[Problem]]:
    """Read deprecated keys under their new names.

    Returns:
        The section, notes on what was renamed, and problems where both names are given.
    """
    assert isinstance(node.value, dict)
    entries, notes, problems = {}, [], []
    for key, child in node.value.items():
        row = f"{section.class_name}.{key}"
        new = ALIASES.get(row) or RENAMED.get(row)
        if new is None or new not in section.settings:
            entries[key] = child
        elif new in node.value:
            found = f"found together with {new}, its new name"
            problems.append(Problem(child.where, f"{section.name}.{key}", found, "remove it"))
        else:
            entries[new] = child
            notes.append(f"{child.where}: {section.name}.{key} is now called {section.name}.{new}")
    return replace(node, value=entries), notes, problems


def check_section(section: Section, node: Node, sections: Mapping[str, Section]) -> CheckedSection:
    """Check the keys and values that are given; keys that are missing come after them."""
    node, notes, problems = with_new_names(section, node)
    assert isinstance(node.value, dict)
    result = CheckedSection(notes=notes, problems=problems)
    for key, child in node.value.items():
        setting = section.settings.get(key)
        if setting is None and len(result.problems) >= MAX_SHOWN_PROBLEMS:
            # Looking for the name that was meant takes milliseconds, and nobody would read it.
            found = [Problem(child.where, f"{section.name}.{key}", "found an unknown key")]
        elif setting is None:
            problem, meant = _unknown_key(key, child, section, sections)
            result.meant.update(meant)
            found = [problem]
        else:
            value, found = _check_value(setting, child, section)
            if not found:
                result.values[key] = value
                continue
        result.faulty.add(key)
        result.problems.extend(found)
    for setting in section.settings.values():
        known = result.values.keys() | result.faulty | result.meant
        if setting.required and setting.name not in known:
            result.problems.append(
                Problem(
                    node.where,
                    f"{section.name}.{setting.name}",
                    f"found nothing, accepts {describe(setting.type)}",
                    f"add `{setting.name}:` to `{section.name}:`",
                )
            )
    return result


def unknown_section(name: str, node: Node, sections: Mapping[str, Section]) -> Problem:
    """The problem of a top-level key that is no section."""
    close = nearest(name, sections)
    owners = _owners(name, sections)
    todo = did_you_mean(close or owners)
    section, _, key = name.partition(".")
    if key and section in sections:
        todo = f"write it as `{key}:` under `{section}:`"
    elif key:
        todo = did_you_mean([f"{other}.{key}" for other in nearest(section, sections)])
    elif not close and not owners:
        todo = _old_name(name, sections) or did_you_mean(_nearest_elsewhere(name, sections))
    accepted = ", ".join(sections)
    return Problem(node.where, name, f"found an unknown section, accepts {accepted}", todo)


def _unknown_key(
    key: str, node: Node, section: Section, sections: Mapping[str, Section]
) -> tuple[Problem, list[str]]:
    where, dotted = node.where, f"{section.name}.{key}"
    if refusal := REFUSED.get(f"{section.class_name}.{key}"):
        return Problem(where, dotted, f"can't be set here: {refusal.reason}", refusal.todo), []
    unknown = f"found an unknown key, accepts {_accepted_keys(key, section)}"
    if owners := _owners(key, sections):
        return Problem(where, dotted, unknown, did_you_mean(owners)), []
    if hint := _old_name(key, sections):
        return Problem(where, dotted, unknown, hint), []
    close = nearest(key, section.settings)
    todo = did_you_mean(close or _nearest_elsewhere(key, sections))
    return Problem(where, dotted, unknown, todo), close


def _accepted_keys(key: str, section: Section) -> str:
    """All keys of a section where they are few, else how many, and those most like `key`."""
    names = list(section.settings)
    if len(names) <= _MAX_LISTED:
        return ", ".join(names) or "none"
    some = ", ".join(most_alike(key, names))
    return f"the {len(names)} keys of {section.class_name}, such as {some}"


def _owners(key: str, sections: Mapping[str, Section]) -> list[str]:
    return [f"{other.name}.{key}" for other in sections.values() if key in other.settings]


def _nearest_elsewhere(key: str, sections: Mapping[str, Section]) -> list[str]:
    names = {name for section in sections.values() for name in section.settings}
    return [owner for name in nearest(key, names) for owner in _owners(name, sections)][:3]


def _old_name(key: str, sections: Mapping[str, Section]) -> str:
    """The hint for a name of another tool, unless it points at a section this recipe lacks."""
    hint = OLD_NAMES.get(key, "")
    target = hint.removeprefix("use ").partition(":")[0].split(".")
    if len(target) == 2 and hint.startswith("use ") and target[0] not in sections:
        return ""
    return hint


def _check_value(setting: Setting, node: Node, section: Section) -> tuple[object, list[Problem]]:
    from pydantic import ValidationError

    from sft_kit.config.strict_types import (
        strict_adapter,  # loads pydantic: not before it is needed
    )

    dotted = f"{section.name}.{setting.name}"
    if faults := list(_faults(node, dotted)):
        return None, faults
    given = node.plain()
    try:
        value = strict_adapter(setting.type).validate_python(given, strict=True)
    except ValidationError as error:
        return None, _type_problems(error.errors(include_url=False), setting, node, dotted)
    refusal = REFUSED.get(f"{section.class_name}.{setting.name}")
    if refusal and value not in refusal.harmless:
        message = f"found {_shown(node)}: {refusal.reason}"
        return None, [Problem(node.where, dotted, message, refusal.todo)]
    if isinstance(value, float) and isinstance(given, int) and int(value) != given:
        message = f"found {_shown(node)}, accepts numbers that a 64-bit float holds exactly"
        return None, [Problem(node.where, dotted, message)]
    return value, []


def _faults(node: Node, dotted: str) -> Iterator[Problem]:
    """Numbers that can't be used as written (`.inf`, `1e999`), at any depth."""
    if node.fault:
        yield Problem(node.where, dotted, f"found {node.written}, {node.fault}")
    if isinstance(node.value, dict):
        for key, child in node.value.items():
            yield from _faults(child, f"{dotted}.{key}")
    elif isinstance(node.value, list):
        for index, child in enumerate(node.value):
            yield from _faults(child, f"{dotted}[{index}]")


def _type_problems(
    errors: Sequence[Any], setting: Setting, node: Node, dotted: str
) -> list[Problem]:
    """Pydantic lists one error per alternative of a union: keep those about the innermost value."""
    located = [(_locate(node, error["loc"]), error) for error in errors]
    deepest = max(len(path) for (path, _), _ in located)
    if deepest == 0:
        return [_value_problem(setting, node, dotted)]
    problems: dict[str, Problem] = {}
    accepted: dict[str, list[str]] = {}
    for (path, inner), error in located:
        if len(path) < deepest:
            continue
        key = dotted + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
        if error["type"] == "extra_forbidden":
            message, todo = "found an unknown key", ""
        elif error["type"] == "missing":
            message, todo = f"found no {error['loc'][-1]}, accepts a value for it", ""
        else:
            words = accepted.setdefault(key, [])
            if (word := _WORDS.get(error["type"], error["msg"])) not in words:
                words.append(word)
            message = f"found {_shown(inner)}, accepts {' or '.join(words)}"
            todo = _what_to_write(inner, " or ".join(words))
        if key not in problems or key in accepted:
            problems[key] = Problem(inner.where, key, message, todo)
    return list(problems.values())


def _locate(node: Node, loc: tuple[int | str, ...]) -> tuple[list[int | str], Node]:
    """Follow an error's location down the values; names of union members are not part of it."""
    path: list[int | str] = []
    for step in loc:
        if isinstance(node.value, dict) and step in node.value:
            node = node.value[str(step)]
        elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
        else:
            continue
        path.append(step)
    return path, node


def _value_problem(setting: Setting, node: Node, dotted: str) -> Problem:
    accepted = describe(setting.type)
    message = f"found {_shown(node)}, accepts {accepted}"
    names = _texts(setting.type)
    close = nearest(node.value, names) if isinstance(node.value, str) else []
    return Problem(
        node.where, dotted, message, did_you_mean(close) or _what_to_write(node, accepted)
    )


def _texts(tp: object) -> list[str]:
    """The closed choices of text anywhere in a type."""
    if get_origin(tp) is Literal:
        return [value for value in get_args(tp) if isinstance(value, str)]
    return [name for argument in get_args(tp) for name in _texts(argument)]


def _what_to_write(node: Node, accepted: str) -> str:
    value = node.value
    takes_number = "number" in accepted
    if isinstance(value, float) and value.is_integer() and "whole number" in accepted:
        return f"write {int(value)}"
    if isinstance(value, bool | int | float) and accepted.startswith("text"):
        return f'for this text write "{node.written}" in quotes'
    if not isinstance(value, str):
        return ""
    plain = scalar(value.replace("_", "").replace(",", ""), node.where).value
    if takes_number and isinstance(plain, int | float) and not isinstance(plain, bool):
        return f"write {plain} without quotes, `_` or `,`"
    if "true" in accepted and value.lower() in (
        "yes",
        "on",
        "y",
        "true",
        "no",
        "off",
        "n",
        "false",
    ):
        return f"write {str(value.lower() in ('yes', 'on', 'y', 'true')).lower()}"
    return "write null" if "null" in accepted and value.lower() in ("none", "nil") else ""


def _shown(node: Node) -> str:
    value = node.value
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "null" if node.written else "nothing"
    text = node.written if len(node.written) <= _MAX_SHOWN else f"{node.written[:_MAX_SHOWN]}..."
    return repr(text) if isinstance(value, str) else text
