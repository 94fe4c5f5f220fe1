"""Rows of any training format -> their prompt: turns before the last answer, or a plain text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sft_kit.data.formats import FORMATS, understand
from sft_kit.data.preference.comparing import prompt_text, understand_preference
from sft_kit.data.preference.formats import (
    detect,
    detect_preference_format,
    fitting_forms,
)
from sft_kit.data.preference.turns import Fields, as_parts, read_parts
from sft_kit.data.rows import Message, RawRow
from sft_kit.data.turns import Findings, check_text, is_fields, is_list, required
from sft_kit.errors import Problem

_PROMPT = "prompt: a text, or a list of {role, content} that ends with the question"
_NO_ANSWER = "."
"""Stands where an answer may be missing, so that a row reads as one to learn from."""
_PREFERENCE = "preference: "
_OF_PROMPT = {
    "prompt": ("prompt",),
    "alpaca": ("instruction", "input", "history", "system"),
    "sharegpt": ("conversations", "items", "system"),
    "messages": ("messages",),
    "prompt-completion": ("prompt",),
    "text": ("text",),
    "preference": ("prompt", "instruction", "input", "history", "system", "conversations"),
}


@dataclass(frozen=True, slots=True)
class AskedRow:
    """A row read as a prompt.

    Attributes:
        messages: The turns, or none where the prompt is a plain text.
        text: The last user message, or the plain text; empty where there are problems.
        columns: The row's other fields.
        problems: Why the row can't be used.
        unknown_roles: Role names that nobody knows.
    """

    messages: tuple[Message, ...]
    text: str
    columns: Mapping[str, object]
    problems: tuple[Problem, ...] = ()
    unknown_roles: frozenset[str] = frozenset()


def detect_prompt_format(rows: Sequence[RawRow]) -> str:
    """Name the one format that the rows have; that of preferences by its own name.

    Args:
        rows: The first rows of the data; at least one.

    Raises:
        FormatError: No format fits, several fit, or the rows disagree.
    """
    known = {"prompt": _PROMPT, **{name: form.fields for name, form in FORMATS.items()}}
    known["preference"] = "chosen, rejected or another form of compared answers"
    found = detect(rows, _fitting, known)
    return name_preference_format(rows) if found == "preference" else found


def name_preference_format(rows: Sequence[RawRow]) -> str:
    """Name the format of compared answers: `preference: transcripts`.

    Raises:
        FormatError: No format fits, several fit, or the rows disagree.
    """
    return _PREFERENCE + detect_preference_format(rows)


def _fitting(fields: Fields) -> tuple[str, ...]:
    if fitting_forms(fields):
        return ("preference",)
    names = [
        name for name, form in FORMATS.items() if any(keys <= fields.keys() for keys in form.keys)
    ]
    if names:
        return tuple(names)
    return tuple(
        name for key, name in (("prompt", "prompt"), ("instruction", "alpaca")) if key in fields
    )


def understand_prompt(row: RawRow, format_name: str) -> AskedRow:
    """Read the prompt of a row; an answer may stand behind it or be missing.

    Args:
        row: The row as it stands in the file.
        format_name: What `detect_prompt_format` names: `prompt`, a format to learn from, or one of
            compared answers.
    """
    if format_name == "prompt":
        return _read_prompt(row)
    if format_name.startswith(_PREFERENCE):
        return _of_preference(row, format_name.removeprefix(_PREFERENCE))
    understood = understand(replace(row, fields=_with_answer(row.fields, format_name)), format_name)
    conversation = understood.conversation
    if conversation is None:
        return AskedRow((), "", {}, understood.problems, understood.unknown_roles)
    columns = _others(row.fields, format_name)
    if conversation.text is not None:
        return AskedRow((), conversation.text, columns)
    return _asked(conversation.messages[:-1], columns, row)


def _read_prompt(row: RawRow) -> AskedRow:
    findings = Findings()
    value = required(row.fields, "prompt", findings)
    messages: tuple[Message, ...] = ()
    if "prompt" in row.fields and not is_list(value):
        text = check_text(value, "prompt", findings)
        messages = (Message(role="user", content=text),)
    elif is_list(value):
        parts = as_parts(_answered(value, "role"), "prompt", "user")
        turns = read_parts(parts, "prompt", findings)
        messages = tuple(Message(role=turn.role, content=turn.content) for turn in turns[:-1])
    if findings.problems:
        problems = tuple(replace(problem, where=str(row.where)) for problem in findings.problems)
        return AskedRow((), "", {}, problems, frozenset(findings.unknown_roles))
    return _asked(messages, _others(row.fields, "prompt"), row)


def _of_preference(row: RawRow, format_name: str) -> AskedRow:
    compared = understand_preference(row, format_name, None)
    columns = _others(row.fields, "preference")
    comparison = compared.comparison
    if compared.problems:
        return AskedRow((), "", {}, compared.problems, compared.unknown_roles)
    if compared.prompt:
        return _asked(compared.prompt, columns, row)
    texts = [answer[0]["content"] for answer in comparison.answers] if comparison else []
    text = prompt_text(texts).rstrip()
    if not text:
        message = "found plain texts without a common beginning, which would be the prompt"
        problem = Problem(str(row.where), "chosen", message, "add a field prompt")
        return AskedRow((), "", {}, (problem,))
    return AskedRow((), text, columns)


def _asked(messages: tuple[Message, ...], columns: Mapping[str, object], row: RawRow) -> AskedRow:
    text = next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "")
    if not text:
        problem = Problem(str(row.where), "", "found no question", "remove the row")
        return AskedRow((), "", {}, (problem,))
    return AskedRow(messages, text, columns)


def _others(fields: Fields, format_name: str) -> dict[str, object]:
    names = _OF_PROMPT[format_name]
    return {name: value for name, value in fields.items() if name not in names}


def _with_answer(fields: Fields, format_name: str) -> dict[str, object]:
    """Complete a row that ends with its question."""
    whole = dict(fields)
    if format_name == "alpaca" and whole.get("output") in (None, ""):
        whole["output"] = _NO_ANSWER
    elif format_name == "prompt-completion" and whole.get("completion") in (None, "", []):
        answer = [{"role": "assistant", "content": _NO_ANSWER}]
        whole["completion"] = answer if is_list(whole.get("prompt")) else _NO_ANSWER
    for name, role_key in (("messages", "role"), ("conversations", "from"), ("items", "from")):
        if format_name in ("messages", "sharegpt") and is_list(value := whole.get(name)):
            whole[name] = _answered(value, role_key)
    # A rejected answer is as good a prompt as any.
    whole.pop("label", None)
    return whole


def _answered(messages: Sequence[object], role_key: str) -> list[object]:
    last = messages[-1] if messages else None
    if is_fields(last) and "from" in last:
        role_key = "from"
    is_open = is_fields(last) and last.get(role_key) in ("user", "human")
    text_key = "value" if role_key == "from" else "content"
    return [*messages, {role_key: "assistant", text_key: _NO_ANSWER}] if is_open else [*messages]
