"""Ordered answers -> one comparison: their common beginning is the prompt, equal ones go."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, takewhile

from sft_kit.data.preference.formats import PREFERENCE_FORMATS, Ordered
from sft_kit.data.preference.ranking import read_margin
from sft_kit.data.preference.rows import Comparison
from sft_kit.data.rows import Message, RawRow
from sft_kit.data.text_hash import feed_text
from sft_kit.data.turns import Findings, Turn
from sft_kit.errors import Problem

PLAIN = "text"
"""Role of an answer that is a plain text."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A row after reading.

    Attributes:
        comparison: None where there are problems, or fewer than two different answers.
        problems: Why the row can't be used.
        prompt: Turns before the answers, also where these are equal.
        unknown_roles: Role names that nobody knows.
        num_ties: Answers left out because another one has their rank.
        num_equal: Answers left out because a better one has the same text.
    """

    comparison: Comparison | None
    problems: tuple[Problem, ...] = ()
    prompt: tuple[Message, ...] = ()
    unknown_roles: frozenset[str] = frozenset()
    num_ties: int = 0
    num_equal: int = 0


def understand_preference(row: RawRow, format_name: str, margin: str | None) -> Compared:
    """Read a row of compared answers.

    Args:
        row: The row as it stands in the file.
        format_name: A name in `PREFERENCE_FORMATS`.
        margin: Field with the margin.
    """
    findings = Findings()
    ordered = PREFERENCE_FORMATS[format_name].read(row.fields, findings)
    num_answers = len(ordered.conversations or ordered.texts)
    value = read_margin(row.fields, margin, num_answers, findings)
    different, prompt = ([], 0) if findings.problems else _different(ordered)
    if len(different) > 1 and prompt is None:
        message = "answers another question than the chosen one, accepts answers to one prompt"
        findings.add("rejected", message, "remove the row")
    if findings.problems or prompt is None:
        problems = tuple(replace(problem, where=str(row.where)) for problem in findings.problems)
        return Compared(None, problems, unknown_roles=frozenset(findings.unknown_roles))
    num_equal = num_answers - len(different)
    comparison, asked = None, different[0][:prompt]
    if len(different) > 1:
        comparison = Comparison(
            prompt=asked,
            answers=tuple(answer[prompt:] for answer in different),
            margin=value,
            source=row.where.file,
            where=row.where,
        )
    return Compared(comparison, prompt=asked, num_ties=ordered.num_ties, num_equal=num_equal)


def _different(ordered: Ordered) -> tuple[list[tuple[Message, ...]], int | None]:
    """Leave out answers that stand before in the list.

    Returns:
        The conversations that differ, and how many of their first turns are the prompt: None where
        they have no question in common.
    """
    if ordered.texts:
        texts = list(dict.fromkeys(ordered.texts))
        return [(Message(role=PLAIN, content=text),) for text in texts], 0
    conversations: list[tuple[Message, ...]] = []
    for turns in ordered.conversations:
        messages = tuple(_message(turn) for turn in turns)
        if messages not in conversations:
            conversations.append(messages)
    return conversations, _prompt_size(conversations)


def _message(turn: Turn) -> Message:
    return Message(role=turn.role, content=turn.content)


def _prompt_size(conversations: Sequence[tuple[Message, ...]]) -> int | None:
    """Count the leading turns in common, up to and including the last question among them."""
    size = 0
    for turns in zip(*conversations, strict=False):
        if any(turn != turns[0] for turn in turns):
            break
        size += 1
    while size and conversations[0][size - 1]["role"] != "user":
        size -= 1
    return size or None


def prompt_text(texts: Sequence[str]) -> str:
    """The longest common beginning of plain texts that ends where a word ends.

    >>> prompt_text(["Is it wet? Yes, it is.", "Is it wet? Yesterday it was."])
    'Is it wet? '
    """
    alike = takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False))
    common = "".join(characters[0] for characters in alike)
    if any(len(text) > len(common) and text[len(common)].isalnum() for text in texts):
        while common and common[-1].isalnum() and common[-1].isascii():
            common = common[:-1]
    return common


def prompt_hash(comparison: Comparison) -> bytes:
    """Hash the prompt; case, runs of white space and Unicode composition don't count."""
    digest = hashlib.sha256()
    if comparison.prompt:
        feed_messages(digest, comparison.prompt)
        return digest.digest()
    texts = [answer[0]["content"] for answer in comparison.answers]
    common = prompt_text(texts)
    # Texts with nothing in common are a prompt of their own, in whatever order they stand.
    for text in [common] if common.strip() else sorted(texts):
        digest.update(b"\0text\0")
        feed_text(digest, text)
    return digest.digest()


def feed_messages(digest: "hashlib._Hash", messages: Sequence[Message]) -> None:
    """Feed roles and normalised texts."""
    for message in messages:
        # NUL can't occur in a text, so no text can look like a boundary.
        digest.update(f"\0{message['role']}\0".encode())
        feed_text(digest, message["content"])


def compared_pairs(comparison: Comparison) -> list[tuple[bytes, bytes]]:
    """Hash each pair of answers, the better first."""
    hashes = []
    for answer in comparison.answers:
        digest = hashlib.sha256()
        feed_messages(digest, answer)
        hashes.append(digest.digest())
    return list(combinations(hashes, 2))
