"""Rows of one source -> what a reader makes of them, with all bad rows at once."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from sft_kit.data.rows import RawRow
from sft_kit.data.sources import Source
from sft_kit.errors import FormatError, Problem

NUM_ROWS_TO_DETECT = 100
"""Rows looked at to name the format."""


@dataclass(slots=True)
class Reading:
    """All rows of one source.

    Attributes:
        format: Format used, named or detected.
        num_rows: Rows read, the bad ones included.
        num_good_rows: Rows that the format's reader understood.
        problems: Of the bad rows.
        num_bad_rows: Rows with at least one problem.
        unknown_roles: Role name as in the file -> number of rows that use it.
    """

    format: str = ""
    num_rows: int = 0
    num_good_rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    num_bad_rows: int = 0
    unknown_roles: dict[str, int] = field(default_factory=dict)


Take = Callable[[RawRow, str], tuple[Sequence[Problem], frozenset[str]]]
"""Reads a row as a format says, keeps what it understood, and returns problems and roles."""


def read_source(
    source: Source,
    format_name: str,
    num_rows: int | None,
    detect: Callable[[Sequence[RawRow]], str],
    take: Take,
) -> Reading:
    """Read the rows of a source one by one.

    Args:
        source: The opened source.
        format_name: Name of the format, or `auto`.
        num_rows: Use only the first rows; None for all.
        detect: Names the format of the first rows.
        take: Reads a row.
    """
    rows = list(islice(source.rows, num_rows))
    if format_name == "auto":
        samples = [row for row in rows if isinstance(row, RawRow)][:NUM_ROWS_TO_DETECT]
        format_name = detect(samples) if samples else "unknown"
    reading = Reading(format_name, num_rows=len(rows))
    for row in rows:
        problems: Sequence[Problem] = [row] if isinstance(row, Problem) else []
        if isinstance(row, RawRow):
            problems, roles = take(row, format_name)
            for role in roles:
                reading.unknown_roles[role] = reading.unknown_roles.get(role, 0) + 1
        reading.problems += problems
        reading.num_bad_rows += bool(problems)
        reading.num_good_rows += not problems
    return reading


def refuse_bad_rows(path: str, readings: Sequence[Reading], on_bad_row: str) -> None:
    """Stop with all bad rows, or where no row of a source is good.

    Args:
        path: What `data.path` says.
        readings: Of `path`, and of `eval_path` where there is one.
        on_bad_row: `stop` or `skip`.

    Raises:
        FormatError: Why.
    """
    problems = [problem for reading in readings for problem in reading.problems]
    is_empty = any(not reading.num_good_rows for reading in readings)
    if not is_empty and (on_bad_row == "skip" or not problems):
        return
    num_bad, num_rows = (
        sum(getattr(reading, name) for reading in readings) for name in ("num_bad_rows", "num_rows")
    )
    counted = f"{num_bad} of {num_rows} rows can't be used"
    advice = "repair them, or leave them out with data.on_bad_row=skip"
    if is_empty:
        counted, advice = "no row of a file can be used", "repair the rows"
        if not problems:
            counted, advice = "found no rows", "check the file"
    raise FormatError(f"{path}: {counted} ({advice}):", problems)


def hold_out(keys: Sequence[bytes], fraction: float, seed: int) -> set[bytes]:
    """Draw the prompts that are held out; never none of two, never all.

    Args:
        keys: One per row, equal where the prompt is.
        fraction: Share of the different prompts.
        seed: Seed of the draw.
    """
    different = list(dict.fromkeys(keys))
    if fraction == 0 or len(different) < 2:
        return set()
    count = min(max(1, round(fraction * len(different))), len(different) - 1)
    return set(random.Random(seed).sample(different, count))
