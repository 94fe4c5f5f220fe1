"""Rows as they stand in files -> conversations: one function per format, one table, no guessing.

To add a format write a function that turns the fields of a row into turns (or a text) and give it
a line in `FORMATS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sft_kit.data.rows import Conversation, Message, RawRow
from sft_kit.data.turns import (
    MESSAGES_ROLES,
    SHAREGPT_ROLES,
    Findings,
    Turn,
    check_order,
    check_role,
    check_text,
    is_fields,
    is_list,
    kind_of,
    optional_text,
    refuse_rejected_answer,
    refuse_tool_calls,
    refuse_what_text_cannot_hold,
    required,
    required_text,
)
from sft_kit.errors import FormatError, Problem

Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Format:
    """One shape of a row.

    Attributes:
        fields: The fields, as told to the user.
        keys: Alternatives; a row with all the fields of one of them has this format.
        read: Turns the fields of a row into turns, or into a plain text.
    """

    fields: str
    keys: tuple[frozenset[str], ...]
    read: Callable[[Fields, Findings], list[Turn] | str]


@dataclass(frozen=True, slots=True)
class Understood:
    """A row after reading: a conversation, or the problems that prevented one."""

    conversation: Conversation | None
    problems: tuple[Problem, ...] = ()
    unknown_roles: frozenset[str] = frozenset()


def understand(row: RawRow, format_name: str) -> Understood:
    """Read a row as a format says.

    Args:
        row: The row as it stands in the file.
        format_name: A name in `FORMATS`.
    """
    findings = Findings()
    refuse_rejected_answer(row.fields, findings)
    read = FORMATS[format_name].read(row.fields, findings)
    if findings.problems:
        where = str(row.where)
        problems = tuple(replace(problem, where=where) for problem in findings.problems)
        return Understood(None, problems, frozenset(findings.unknown_roles))
    if isinstance(read, str):
        return Understood(Conversation((), row.where, text=read))
    messages = tuple(Message(role=turn.role, content=turn.content) for turn in read)
    return Understood(Conversation(messages, row.where))


def _read_alpaca(fields: Fields, findings: Findings) -> list[Turn]:
    turns = []
    if system := optional_text(fields, "system", findings):
        turns.append(Turn("system", system, "system"))
    turns += _history(fields.get("history"), findings)
    instruction = required_text(fields, "instruction", findings)
    if extra := optional_text(fields, "input", findings):
        instruction = f"{instruction}\n\n{extra}"
    turns.append(Turn("user", instruction, "instruction"))
    turns.append(Turn("assistant", required_text(fields, "output", findings), "output"))
    return turns


def _history(value: object, findings: Findings) -> list[Turn]:
    if value is None or value == "":
        return []
    if not is_list(value):
        findings.add(
            "history", f"found {kind_of(value)}, accepts a list", "[[user, assistant], ...]"
        )
        return []
    turns = []
    for index, pair in enumerate(value):
        key = f"history[{index}]"
        if not is_list(pair) or len(pair) != 2:
            size = f" of {len(pair)}" if is_list(pair) else ""
            message = f"found {kind_of(pair)}{size}, accepts a list of two texts"
            findings.add(key, message, "[user, assistant]")
            continue
        for place, role in enumerate(("user", "assistant")):
            text = check_text(pair[place], f"{key}[{place}]", findings)
            turns.append(Turn(role, text, f"{key}[{place}]"))
    return turns


def _read_sharegpt(fields: Fields, findings: Findings) -> list[Turn]:
    name = "items" if "items" in fields and "conversations" not in fields else "conversations"
    refuse_what_text_cannot_hold(fields, findings)
    turns = []
    for prefix, item in _list_of_fields(required(fields, name, findings), name, findings):
        role = _role(item, "from", prefix, SHAREGPT_ROLES, findings)
        refuse_tool_calls(item, prefix, findings)
        text = required_text(item, "value", findings, prefix)
        turns.append(Turn(role, text, f"{prefix}from"))
    if system := optional_text(fields, "system", findings):
        turns.insert(0, Turn("system", system, "system"))
    _check_if_sound(turns, name, findings)
    return turns


def _read_messages(fields: Fields, findings: Findings) -> list[Turn]:
    refuse_what_text_cannot_hold(fields, findings)
    turns = _messages(required(fields, "messages", findings), "messages", findings)
    _check_if_sound(turns, "messages", findings)
    return turns


def _messages(value: object, name: str, findings: Findings) -> list[Turn]:
    turns = []
    for prefix, item in _list_of_fields(value, name, findings):
        role = _role(item, "role", prefix, MESSAGES_ROLES, findings)
        refuse_tool_calls(item, prefix, findings)
        turns.append(Turn(role, _content(item, prefix, findings), f"{prefix}role"))
    return turns


def _content(item: Fields, prefix: str, findings: Findings) -> str:
    value = item.get("content")
    if not is_list(value):
        return required_text(item, "content", findings, prefix)
    texts: list[str] = []
    num_problems = len(findings.problems)
    for index, part in enumerate(value):
        key = f"{prefix}content[{index}]"
        kind = part.get("type") if is_fields(part) else None
        if not is_fields(part) or kind != "text":
            found = f"a part of type {kind!r:.40}" if is_fields(part) else kind_of(part)
            message = f'found {found}, accepts {{"type": "text", "text": ...}}'
            findings.add(key, message, "only text can be learnt: remove the part or the row")
            continue
        # Both spellings are in use; Parquet fills the absent one with null.
        name = "value" if part.get("text") is None and "value" in part else "text"
        texts.append(_part_text(part, name, key, findings))
    if len(findings.problems) > num_problems:
        return ""
    return check_text("".join(texts), f"{prefix}content", findings)


def _part_text(part: Fields, name: str, key: str, findings: Findings) -> str:
    text = required(part, name, findings, f"{key}.")
    if text == "":
        return ""
    return check_text(text, f"{key}.{name}", findings) if name in part else ""


def _read_prompt_completion(fields: Fields, findings: Findings) -> list[Turn]:
    prompt, completion = (required(fields, name, findings) for name in ("prompt", "completion"))
    if is_list(prompt) or is_list(completion):
        refuse_what_text_cannot_hold(fields, findings)
        turns = _messages(prompt, "prompt", findings) if "prompt" in fields else []
        turns += _messages(completion, "completion", findings) if "completion" in fields else []
        _check_if_sound(turns, "completion", findings)
        return turns
    return [
        Turn(role, check_text(fields[name], name, findings), name)
        for role, name in (("user", "prompt"), ("assistant", "completion"))
        if name in fields
    ]


def _read_text(fields: Fields, findings: Findings) -> str:
    return required_text(fields, "text", findings)


def _list_of_fields(value: object, name: str, findings: Findings) -> list[tuple[str, Fields]]:
    """Pair each object of a list with its place in the row, such as `items[0].`."""
    if findings.problems and value is None:
        return []
    if not is_list(value):
        message = f"found {kind_of(value)}, accepts a list of messages"
        findings.add(name, message, "tables can't hold messages: use JSON Lines or Parquet")
        return []
    for index, item in enumerate(value):
        if not is_fields(item):
            message = f"found {kind_of(item)}, accepts a message with named fields"
            findings.add(f"{name}[{index}]", message, "repair the message, or remove the row")
    return [(f"{name}[{index}].", item) for index, item in enumerate(value) if is_fields(item)]


def _role(
    item: Fields, name: str, prefix: str, roles: Mapping[str, str], findings: Findings
) -> str:
    value = required(item, name, findings, prefix)
    return check_role(value, f"{prefix}{name}", roles, findings) if name in item else ""


def _check_if_sound(turns: Sequence[Turn], key: str, findings: Findings) -> None:
    """Check the order of sound turns only: after an unknown role it would blame the next turn."""
    if not findings.problems:
        check_order(turns, key, findings)


FORMATS: dict[str, Format] = {
    "alpaca": Format(
        "instruction, output; optional input, history, system",
        (frozenset({"instruction", "output"}),),
        _read_alpaca,
    ),
    "sharegpt": Format(
        "conversations (or items): a list of {from, value}; optional system",
        (frozenset({"conversations"}), frozenset({"items"})),
        _read_sharegpt,
    ),
    "messages": Format(
        "messages: a list of {role, content}", (frozenset({"messages"}),), _read_messages
    ),
    "prompt-completion": Format(
        "prompt, completion: two texts, or two lists of {role, content}",
        (frozenset({"prompt", "completion"}),),
        _read_prompt_completion,
    ),
    "text": Format("text", (frozenset({"text"}),), _read_text),
}


def detect_format(rows: Sequence[RawRow]) -> str:
    """Name the one format that the rows have.

    Rows that fit no format are not asked: they are bad rows of the format the others have.

    Args:
        rows: The first rows of the data; at least one.

    Raises:
        FormatError: No format fits, several fit, or the rows disagree.
    """
    votes: dict[tuple[str, ...], RawRow] = {}
    for row in rows:
        if fitting := _fitting(row.fields):
            votes.setdefault(fitting, row)
    if len(votes) == 1:
        names, row = next(iter(votes.items()))
        if len(names) == 1:
            return names[0]
        fields = _listed(row.fields)
        raise _undetected(
            f"{row.where}: the fields {fields} fit several formats: {', '.join(names)}"
        )
    if votes:
        lines = "; ".join(f"{row.where} fits {', '.join(names)}" for names, row in votes.items())
        raise _undetected(f"the rows have different formats: {lines}")
    first = rows[0]
    pairs = {"chosen", "rejected"} <= first.fields.keys()
    why = " (chosen and rejected are pairs for preference training, not for this)" if pairs else ""
    raise _undetected(f"{first.where}: the fields {_listed(first.fields)} fit no format{why}")


def _fitting(fields: Fields) -> tuple[str, ...]:
    if {"chosen", "rejected"} <= fields.keys():
        return ()
    return tuple(
        name for name, form in FORMATS.items() if any(keys <= fields.keys() for keys in form.keys)
    )


def _listed(fields: Fields) -> str:
    return ", ".join(f"{str(name)!r:.60}" for name in list(fields)[:20]) or "(none)"


def _undetected(what: str) -> FormatError:
    formats = [Problem("", name, form.fields) for name, form in FORMATS.items()]
    return FormatError(f"{what}; name the format with data.format, or rename the fields", formats)
