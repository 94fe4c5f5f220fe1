"""A file, a folder or a data set of the Hub -> pairs of texts, with everything that is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sft_kit.data.formats import understand
from sft_kit.data.pairs.columns import PairColumns, field_value, find_pair_columns
from sft_kit.data.pairs.rows import Pair
from sft_kit.data.preference.reading import Reading, read_source
from sft_kit.data.rows import RawRow
from sft_kit.data.sources import Source
from sft_kit.data.turns import Findings, check_text
from sft_kit.errors import Problem
from sft_kit.settings import PairDataSettings

_BETWEEN_TURNS = "\n\n"
"""Between the turns of a chat that becomes one source, as between instruction and input."""


@dataclass(frozen=True, slots=True)
class ReadPairs:
    """All pairs of one source, and what was wrong."""

    reading: Reading
    pairs: list[Pair] = field(default_factory=list)


def read_pairs(source: Source, settings: PairDataSettings, num_rows: int | None) -> ReadPairs:
    """Read the rows of a source one by one.

    Args:
        source: The opened source.
        settings: `source` and `target`.
        num_rows: Use only the first rows; None for all.

    Raises:
        FormatError: The fields can't be told.
    """
    pairs: list[Pair] = []
    columns = PairColumns()

    def detect(rows: Sequence[RawRow]) -> str:
        nonlocal columns
        columns = find_pair_columns(rows, settings)
        return columns.describe()

    def take(row: RawRow, _: str) -> tuple[Sequence[Problem], frozenset[str]]:
        pair, problems = understand_pair(row, columns)
        if pair is not None:
            pairs.append(pair)
        return problems, frozenset()

    return ReadPairs(read_source(source, "auto", num_rows, detect, take), pairs)


def understand_pair(row: RawRow, columns: PairColumns) -> tuple[Pair | None, Sequence[Problem]]:
    """Read one row.

    Args:
        row: The row as it stands in the file.
        columns: Where source and target stand.

    Returns:
        The pair, or None and what is wrong with the row.
    """
    if columns.chat:
        return _from_chat(row, columns.chat)
    findings = Findings()
    texts = [
        _text(row, name, findings, names)
        for name, names in ((columns.source, "source"), (columns.target, "target"))
    ]
    if findings.problems:
        where = str(row.where)
        return None, [Problem(where, one.key, one.message, one.todo) for one in findings.problems]
    return Pair(texts[0], texts[1], row.where), ()


def _text(row: RawRow, name: str, findings: Findings, what: str) -> str:
    is_there, value = field_value(row.fields, name)
    if is_there:
        return check_text(value, name, findings)
    listed = ", ".join(map(repr, list(row.fields)[:10])) or "no fields"
    findings.add(name, f"the field of the {what} is missing", f"add it; found {listed}")
    return ""


def _from_chat(row: RawRow, chat: str) -> tuple[Pair | None, Sequence[Problem]]:
    """Make the last answer the target, and all turns before it the source."""
    understood = understand(row, chat)
    if understood.conversation is None:
        return None, understood.problems
    *before, last = understood.conversation.messages
    if last["role"] != "assistant" or not before:
        found = f"ends with a turn of the {last['role']}" if before else "has a single turn"
        todo = "add the missing turn, or remove the row"
        message = f"the chat {found}, accepts one that ends with an answer"
        return None, [Problem(str(row.where), "", message, todo)]
    source = _BETWEEN_TURNS.join(message["content"] for message in before)
    return Pair(source, last["content"], row.where), ()
