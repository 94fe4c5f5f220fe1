"""The parts every chat format shares: texts, roles, and the order in which they may stand."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypeGuard

from sft_kit.errors import Problem

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
MESSAGES_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}

_NO_TOOLS = "tool calls are not supported yet: remove the row, or set data.on_bad_row=skip"
_NOT_TEXT = re.compile("[\x00\ud800-\udfff]")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_TOOL_FIELDS = {
    "tool_calls": "tool calls",
    "metadata": "metadata (ChatGLM3 keeps the name of a called tool there)",
    "tools": "tools",
}


@dataclass(slots=True)
class Findings:
    """What is wrong with one row: problems (without the row's place) and unknown roles."""

    problems: list[Problem] = field(default_factory=list)
    unknown_roles: set[str] = field(default_factory=set)

    def add(self, key: str, message: str, todo: str) -> None:
        """Note a problem of the field `key`."""
        self.problems.append(Problem("", key, message, todo))


@dataclass(frozen=True, slots=True)
class Turn:
    """A message with the field its role was read from."""

    role: str
    content: str
    key: str


def is_fields(value: object) -> TypeGuard[Mapping[str, object]]:
    """Tell an object with named fields from everything else."""
    return isinstance(value, Mapping)


def is_list(value: object) -> TypeGuard[Sequence[object]]:
    """Tell a list from everything else (text is a sequence in Python, but no list here)."""
    return isinstance(value, (list, tuple))


def kind_of(value: object) -> str:
    """Name what was found the way a user would."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value!r:.30}"
    if isinstance(value, str):
        return "a text"
    if is_list(value):
        return "a list"
    return "an object" if is_fields(value) else f"a {type(value).__name__}"


def check_text(value: object, key: str, findings: Findings) -> str:
    """Return the text as it is; note a problem and return "" when it is none, or an empty one."""
    if not isinstance(value, str):
        findings.add(key, f"found {kind_of(value)}, accepts text", _todo_for(value))
    elif bad := _NOT_TEXT.search(value):
        name = "a NUL character" if bad.group() == "\x00" else "half of a surrogate pair"
        message = f"found {name} (\\u{ord(bad.group()):04x}) at character {bad.start() + 1}"
        findings.add(key, f"{message}, accepts Unicode text", "remove it, or repair the export")
    elif not value.strip():
        findings.add(key, "found an empty text", "write the text, or remove the row")
    else:
        return value
    return ""


def _todo_for(value: object) -> str:
    if value is None:
        return "write the text, or remove the row"
    return "put it in quotes" if isinstance(value, (bool, int, float)) else "write it as one text"


def required(
    fields: Mapping[str, object], name: str, findings: Findings, prefix: str = ""
) -> object | None:
    """Return a field's value; note a missing field with the name that may have been meant.

    Args:
        fields: The row, or one message of it.
        name: Field that must be there.
        findings: Where a missing one is noted.
        prefix: Place of `fields` in the row, such as `messages[0].`.
    """
    if name in fields:
        return fields[name]
    near = get_close_matches(name, [str(key) for key in fields], n=1, cutoff=0.75)
    listed = ", ".join(map(repr, list(fields)[:10])) or "no fields"
    todo = f"found {near[0]!r}, did you mean {name!r}?" if near else f"add it; found {listed}"
    findings.add(f"{prefix}{name}", "the field is missing", todo)
    return None


def required_text(
    fields: Mapping[str, object], name: str, findings: Findings, prefix: str = ""
) -> str:
    """Return the text of a field that must be there; "" with a problem noted otherwise."""
    value = required(fields, name, findings, prefix)
    return check_text(value, f"{prefix}{name}", findings) if name in fields else ""


def optional_text(fields: Mapping[str, object], name: str, findings: Findings) -> str:
    """Return the text of a field that may be missing, null or blank ("" then)."""
    value = fields.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return check_text(value, name, findings)


def check_role(value: object, key: str, roles: Mapping[str, str], findings: Findings) -> str:
    """Translate a role to Hugging Face's word; "" with a problem noted if it is unknown."""
    if not isinstance(value, str):
        findings.add(key, f"found {kind_of(value)}, accepts a role", f"one of {', '.join(roles)}")
        return ""
    if value in roles:
        return roles[value]
    if value not in findings.unknown_roles:
        findings.unknown_roles.add(value)
        near = get_close_matches(value.strip().lower(), roles, n=1, cutoff=0.75)
        todo = f"did you mean {near[0]!r}?" if near else "rename it, or remove the row"
        message = f"unknown role {value!r:.60}, accepts {', '.join(roles)}"
        findings.add(key, message, _NO_TOOLS if value == "function_call" else todo)
    return ""


def refuse_what_text_cannot_hold(fields: Mapping[str, object], findings: Findings) -> None:
    """Note pictures, sounds, films and tools: answers would be trained to what nobody sees.

    Args:
        fields: The row.
        findings: Where they are noted.
    """
    for name in _MEDIA:
        if fields.get(name):
            findings.add(name, f"found {name}, accepts text only", "remove the row")
    _refuse_tools(fields, ("tools",), "", findings)


def refuse_rejected_answer(fields: Mapping[str, object], findings: Findings) -> None:
    """Note a KTO row whose answer somebody marked as bad: learning it would be the opposite."""
    if fields.get("label") is False:
        message = "found false, which marks a rejected answer; accepts true or no such field"
        findings.add("label", message, "remove the row")


def refuse_tool_calls(fields: Mapping[str, object], prefix: str, findings: Findings) -> None:
    """Note what makes a message a tool call, or offers tools, beside its content."""
    _refuse_tools(fields, _TOOL_FIELDS, prefix, findings)


def _refuse_tools(
    fields: Mapping[str, object], names: Iterable[str], prefix: str, findings: Findings
) -> None:
    for name in names:
        value = fields.get(name)
        # Some exports write the list of tools as JSON text, and "[]" where there are none.
        if value and not (isinstance(value, str) and value.strip() in ("", "[]")):
            message = f"found {_TOOL_FIELDS[name]}, accepts text only"
            findings.add(f"{prefix}{name}", message, _NO_TOOLS)


def check_order(turns: Sequence[Turn], key: str, findings: Findings) -> None:
    """Note the first turn that breaks the order: system (if any), then user and assistant in turn.

    Args:
        turns: The conversation.
        key: Field that holds it.
        findings: Where the problem is noted.
    """
    if not turns:
        findings.add(key, "found an empty conversation", "remove the row")
        return
    body = turns[1:] if turns[0].role == "system" else turns
    for turn, expected in zip(body, ("user", "assistant") * len(body), strict=False):
        if turn.role == "tool":
            findings.add(turn.key, "found a tool turn", _NO_TOOLS)
            return
        if turn.role != expected:
            message = f"found a turn of the {turn.role} here, accepts one of the {expected}"
            findings.add(turn.key, message, "user and assistant take turns, the user first")
            return
    if len(body) % 2 or not body:
        message = "the conversation ends without an answer"
        findings.add(turns[-1].key, message, "add a turn of the assistant, or remove this one")
