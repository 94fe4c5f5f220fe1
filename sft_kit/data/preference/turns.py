"""Messages in whatever spelling a row has them -> turns of one conversation.

A conversation with a compared answer is put together from several fields of a row. It is read as
the supervised formats are, and its problems are told by the fields they stand in.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sft_kit.data.formats import FORMATS
from sft_kit.data.turns import (
    Findings,
    Turn,
    check_order,
    check_text,
    is_fields,
    is_list,
    kind_of,
)
from sft_kit.errors import Problem

Fields = Mapping[str, object]

_PLACE = re.compile(r"(?:messages|conversations)\[(\d+)\](.*)", flags=re.DOTALL)
_SPEAKER = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Part:
    """One message as it stands in the row.

    Attributes:
        value: An object with a role, or a bare text (then `role` is set).
        place: Where it stands: `prompt`, `chosen[1]`.
        role: Of a bare text.
    """

    value: object
    place: str
    role: str = ""


def as_parts(value: object, name: str, role: str) -> list[Part]:
    """Take a field apart: a list of messages, one message, or a bare text.

    Args:
        value: What the field holds.
        name: The field.
        role: Whose text it is where it is bare.
    """
    if is_list(value):
        return [Part(item, f"{name}[{index}]") for index, item in enumerate(value)]
    return [Part(value, name, "" if is_fields(value) else role)]


def read_parts(parts: Sequence[Part], name: str, findings: Findings) -> list[Turn]:
    """Read messages as one conversation that ends with an answer.

    Args:
        parts: Each with `role` and `content`, or each with `from` and `value`; bare texts fit both.
        name: Field that is blamed where there is no message at all.
        findings: Where problems are noted.
    """
    parts = [part for part in parts if not _is_blank_system(part.value)]
    uses_from = any(is_fields(part.value) and "from" in part.value for part in parts)
    dialect = "sharegpt" if uses_from else "messages"
    role_key, text_key = ("from", "value") if uses_from else ("role", "content")
    messages = [
        {role_key: part.role, text_key: part.value} if part.role else part.value for part in parts
    ]
    list_key = "conversations" if uses_from else "messages"
    places = [part.place for part in parts]
    bare = {index for index, part in enumerate(parts) if part.role}
    return read_as(dialect, {list_key: messages}, findings, lambda p: _told(p, places, bare, name))


def read_as(
    format_name: str,
    fields: Fields,
    findings: Findings,
    tell: Callable[[Problem], Problem],
) -> list[Turn]:
    """Read fields as a supervised format does; each problem is noted once.

    Args:
        format_name: A name in `sft_kit.data.formats.FORMATS`.
        fields: A row of that format.
        findings: Where problems are noted.
        tell: Puts the row's own field into a problem.
    """
    found = Findings()
    turns = FORMATS[format_name].read(fields, found)
    findings.unknown_roles |= found.unknown_roles
    for problem in map(tell, found.problems):
        if problem not in findings.problems:
            findings.problems.append(problem)
    return [] if isinstance(turns, str) else turns


def _is_blank_system(value: object) -> bool:
    """Whether a message is a system prompt that says nothing, as some exports write them."""
    if not is_fields(value) or "system" not in (value.get("role"), value.get("from")):
        return False
    text = value.get("content", value.get("value"))
    if is_list(text):
        text = "".join(
            str(part.get("text") or part.get("value") or "") if is_fields(part) else "x"
            for part in text
        )
    return text is None or (isinstance(text, str) and not text.strip())


def looks_like_transcript(value: object) -> bool:
    """Whether a text is a dialogue of the form `Human: ... Assistant: ...`."""
    if not isinstance(value, str):
        return False
    speakers = _SPEAKER.findall(value)
    return value.lstrip().startswith("Human:") and "Assistant" in speakers


def read_transcript(value: object, name: str, findings: Findings) -> list[Turn]:
    r"""Read a dialogue whose turns begin with `\n\nHuman:` and `\n\nAssistant:`.

    Source: the form of the data set Anthropic/hh-rlhf.
    """
    if not isinstance(value, str):
        message = f"found {kind_of(value)}, accepts a text of the form Human: ... Assistant: ..."
        findings.add(name, message, "write the dialogue as one text, or name another data.format")
        return []
    pieces = _SPEAKER.split(value)
    if pieces[0].strip() or len(pieces) == 1:
        message = "found a text before the first speaker, accepts Human: ... Assistant: ..."
        findings.add(name, message, "begin the text with Human:, or name another data.format")
        return []
    turns = []
    num_problems = len(findings.problems)
    for number, (speaker, text) in enumerate(zip(pieces[1::2], pieces[2::2], strict=True), 1):
        key = f"{name}, turn {number}"
        turns.append(Turn(_SPEAKERS[speaker], check_text(text, key, findings).strip(), key))
    if len(findings.problems) == num_problems:
        check_order(turns, name, findings)
    return turns


def _told(problem: Problem, places: Sequence[str], bare: set[int], name: str) -> Problem:
    match = _PLACE.fullmatch(problem.key)
    if match is None:
        return replace(problem, key=name)
    index, rest = int(match[1]), match[2]
    return replace(problem, key=places[index] + ("" if index in bare else rest))
