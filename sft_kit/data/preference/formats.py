"""Rows of compared answers as they stand in files -> conversations, the best first.

A row is K conversations with one beginning. To add a format write a function that turns the fields
of a row into them and give it a line in `PREFERENCE_FORMATS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sft_kit.data.preference.ranking import order_answers
from sft_kit.data.preference.turns import (
    Fields,
    as_parts,
    looks_like_transcript,
    read_as,
    read_parts,
    read_transcript,
)
from sft_kit.data.rows import RawRow
from sft_kit.data.turns import (
    Findings,
    Turn,
    check_text,
    is_fields,
    is_list,
    kind_of,
    refuse_what_text_cannot_hold,
    required,
)
from sft_kit.errors import FormatError, Problem

_LISTS = ("answers", "responses", "completions")
_PAIR = {"chosen", "rejected"}
_MESSAGES_PAIR = {"chosen_messages", "rejected_messages"}


@dataclass(slots=True)
class Ordered:
    """The answers of one row, best first, each with all that stands before it.

    Attributes:
        conversations: Turns of each; empty where the answers are plain texts.
        texts: The plain texts.
        num_ties: Answers left out because another one has their rank.
    """

    conversations: list[list[Turn]]
    texts: list[str]
    num_ties: int = 0


@dataclass(frozen=True, slots=True)
class Form:
    """One shape of a row of compared answers.

    Attributes:
        fields: The fields, as told to the user.
        fits: Whether a row has them.
        read: Turns the fields of a row into ordered answers.
    """

    fields: str
    fits: Callable[[Fields], bool]
    read: Callable[[Fields, Findings], Ordered]


def _read_pair(fields: Fields, findings: Findings) -> Ordered:
    names = ("chosen", "rejected")
    if fields.keys() >= _MESSAGES_PAIR:
        names = ("chosen_messages", "rejected_messages")
    refuse_what_text_cannot_hold(fields, findings)
    answers = [(name, required(fields, name, findings)) for name in names]
    if findings.problems:
        return Ordered([], [])
    prompt = fields.get("prompt")
    _refuse_empty_prompt(fields, [value for _, value in answers], findings)
    if findings.problems:
        return Ordered([], [])
    if "prompt" not in fields and all(isinstance(value, str) for _, value in answers):
        return Ordered([], [check_text(value, name, findings) for name, value in answers])
    return Ordered([_answered(prompt, value, name, findings) for name, value in answers], [])


def _answered(prompt: object, answer: object, name: str, findings: Findings) -> list[Turn]:
    """Put an answer behind its prompt, unless it is a whole conversation already."""
    parts = as_parts(answer, name, "assistant")
    if prompt not in (None, "", []):
        before = as_parts(prompt, "prompt", "user")
        begins = [part.value for part in parts[: len(before)]]
        is_whole = begins == [part.value for part in before] and not parts[0].role
        if not (is_whole or (isinstance(prompt, str) and _begins_anew(answer))):
            parts = [*before, *parts]
    return read_parts(parts, name, findings)


def _refuse_empty_prompt(fields: Fields, answers: Sequence[object], findings: Findings) -> None:
    """Note a prompt that says nothing, unless the answers are whole conversations."""
    prompt = fields.get("prompt")
    if "prompt" not in fields or prompt not in (None, "", []):
        return
    if not all(map(_begins_anew, answers)):
        found = "an empty text" if prompt == "" else "an empty list" if prompt == [] else "null"
        todo = "write the prompt, or remove the row; texts without a prompt have no such field"
        findings.add("prompt", f"found {found}, accepts a text or messages", todo)


def _begins_anew(answer: object) -> bool:
    """Whether a list of messages begins with the question: then the prompt is in it."""
    first = answer[0] if is_list(answer) and answer else None
    role = (first.get("role") or first.get("from")) if is_fields(first) else None
    return role in ("system", "user", "human")


def _read_transcripts(fields: Fields, findings: Findings) -> Ordered:
    answers = [(name, required(fields, name, findings)) for name in ("chosen", "rejected")]
    if findings.problems:
        return Ordered([], [])
    prompt = fields.get("prompt") or ""
    conversations = []
    for name, value in answers:
        whole = value
        if isinstance(prompt, str) and isinstance(value, str) and not looks_like_transcript(value):
            whole = prompt + value
        conversations.append(read_transcript(whole, name, findings))
    return Ordered(conversations, [])


def _read_alpaca(fields: Fields, findings: Findings) -> Ordered:
    if fields.keys() >= _PAIR:
        answers = [(name, fields[name]) for name in ("chosen", "rejected")]
    else:
        output = required(fields, "output", findings)
        if findings.problems:
            return Ordered([], [])
        answers = _items(output, "output", findings)

    def named(name: str) -> Callable[[Problem], Problem]:
        return lambda problem: replace(problem, key=name) if problem.key == "output" else problem

    return Ordered(
        [
            read_as("alpaca", {**fields, "output": text}, findings, named(name))
            for name, text in answers
        ],
        [],
    )


def _read_sharegpt(fields: Fields, findings: Findings) -> Ordered:
    list_name = "conversations" if "conversations" in fields else "messages"
    refuse_what_text_cannot_hold(fields, findings)
    before = required(fields, list_name, findings)
    answers = [(name, required(fields, name, findings)) for name in ("chosen", "rejected")]
    if not findings.problems and not is_list(before):
        findings.add(list_name, f"found {kind_of(before)}, accepts a list of messages", "")
    if findings.problems:
        return Ordered([], [])
    system = fields.get("system")
    parts = as_parts(system, "system", "system") if system else []
    parts += as_parts(before, list_name, "user")
    return Ordered(
        [
            read_parts([*parts, *as_parts(value, name, "assistant")], name, findings)
            for name, value in answers
        ],
        [],
    )


def _read_ranked(fields: Fields, findings: Findings) -> Ordered:
    name = next((name for name in _LISTS if name in fields), _LISTS[0])
    prompt = required(fields, "prompt", findings)
    answers = _items(required(fields, name, findings), name, findings)
    if findings.problems:
        return Ordered([], [])
    _refuse_empty_prompt(fields, [value for _, value in answers], findings)
    order, num_ties = order_answers(fields, len(answers), findings)
    if findings.problems:
        return Ordered([], [])
    chosen = [answers[index] for index in order]
    return Ordered(
        [_answered(prompt, value, place, findings) for place, value in chosen], [], num_ties
    )


def _items(value: object, name: str, findings: Findings) -> list[tuple[str, object]]:
    """Pair each answer of a list with its place."""
    if findings.problems and value is None:
        return []
    if not is_list(value) or len(value) < 2:
        size = f" of {len(value)}" if is_list(value) else ""
        message = f"found {kind_of(value)}{size}, accepts a list of two or more answers"
        findings.add(name, message, "best first; or use chosen and rejected")
        return []
    return [(f"{name}[{index}]", item) for index, item in enumerate(value)]


def _is_pair_of_its_own(fields: Fields) -> bool:
    if fields.keys() >= _MESSAGES_PAIR:
        return True
    return fields.keys() >= _PAIR and not (_is_alpaca(fields) or _is_sharegpt(fields))


def _is_transcripts(fields: Fields) -> bool:
    texts = [fields.get(name) for name in ("prompt", "chosen", "rejected")]
    return _is_pair_of_its_own(fields) and any(map(looks_like_transcript, texts))


def _is_alpaca(fields: Fields) -> bool:
    return "instruction" in fields and (fields.keys() >= _PAIR or is_list(fields.get("output")))


def _is_sharegpt(fields: Fields) -> bool:
    has_messages = "messages" in fields and is_fields(fields.get("chosen"))
    return fields.keys() >= _PAIR and ("conversations" in fields or has_messages)


PREFERENCE_FORMATS: Mapping[str, Form] = {
    "chosen-rejected": Form(
        "chosen, rejected (or chosen_messages, rejected_messages): two texts, messages or lists of "
        "messages; optional prompt: a text or messages",
        lambda fields: _is_pair_of_its_own(fields) and not _is_transcripts(fields),
        _read_pair,
    ),
    "transcripts": Form(
        "chosen, rejected: two texts of the form Human: ... Assistant: ...",
        _is_transcripts,
        _read_transcripts,
    ),
    "alpaca": Form(
        "instruction, and output: a list of answers, best first, or chosen and rejected; optional "
        "input, history, system",
        _is_alpaca,
        _read_alpaca,
    ),
    "sharegpt": Form(
        "conversations: a list of {from, value}, chosen and rejected: one {from, value} each",
        _is_sharegpt,
        _read_sharegpt,
    ),
    "ranked": Form(
        "prompt, and answers (or responses, completions): a list, best first; optional ranks or "
        "scores that sort it",
        lambda fields: "prompt" in fields and any(is_list(fields.get(name)) for name in _LISTS),
        _read_ranked,
    ),
}


def fitting_forms(fields: Fields) -> tuple[str, ...]:
    """Name the formats of compared answers that a row fits."""
    return tuple(name for name, form in PREFERENCE_FORMATS.items() if form.fits(fields))


def detect_preference_format(rows: Sequence[RawRow]) -> str:
    """Name the one format that the rows have.

    Args:
        rows: The first rows of the data; at least one.

    Raises:
        FormatError: No format fits, several fit, or the rows disagree.
    """
    known = {name: form.fields for name, form in PREFERENCE_FORMATS.items()}
    return detect(rows, fitting_forms, known)


def detect(
    rows: Sequence[RawRow], fitting: Callable[[Fields], tuple[str, ...]], known: Mapping[str, str]
) -> str:
    """Name the one format that the rows have; rows that fit none are bad rows of that format.

    Args:
        rows: At least one.
        fitting: Names the formats a row fits.
        known: Name -> fields, as told to the user.

    Raises:
        FormatError: No format fits, several fit, or the rows disagree.
    """
    votes: dict[tuple[str, ...], RawRow] = {}
    for row in rows:
        if names := fitting(row.fields):
            votes.setdefault(names, row)
    if len(votes) == 1 and len(names := next(iter(votes))) == 1:
        return names[0]
    if votes:
        told = "; ".join(f"{row.where} fits {', '.join(names)}" for names, row in votes.items())
        what = f"the rows fit several formats: {told}"
    else:
        fields = ", ".join(f"{str(name)!r:.60}" for name in list(rows[0].fields)[:20]) or "(none)"
        what = f"{rows[0].where}: the fields {fields} fit no format"
    formats = [Problem("", name, fields) for name, fields in known.items()]
    raise FormatError(f"{what}; name the format with data.format, or rename the fields", formats)
