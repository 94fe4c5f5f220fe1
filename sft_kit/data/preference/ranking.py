"""Numbers beside compared answers: ranks, scores and margins."""

from collections.abc import Mapping

from sft_kit.data.turns import Findings, is_list, kind_of, required

Fields = Mapping[str, object]


def order_answers(fields: Fields, num_answers: int, findings: Findings) -> tuple[list[int], int]:
    """Sort answers by rank or score; of those with the same one only the first can stay.

    Args:
        fields: The row; its `ranks` (whole numbers, 1 is the best) or its `scores` (the highest is
            the best) sort.
        num_answers: Answers as they stand in the row, best first where neither is given.
        findings: Where problems are noted.

    Returns:
        Indices of the answers, best first, and the number left out as ties.
    """
    names = [name for name in ("ranks", "scores") if fields.get(name) is not None]
    if not names:
        return list(range(num_answers)), 0
    if len(names) == 2:
        findings.add("ranks", "found beside scores, accepts one of the two", "keep one of them")
        return [], 0
    name = names[0]
    values = fields[name]
    read = _rank if name == "ranks" else _number
    numbers = [read(value) for value in values] if is_list(values) else []
    if len(numbers) != num_answers or None in numbers:
        _refuse_order(name, values, num_answers, findings)
        return [], 0
    sign = 1 if name == "ranks" else -1
    known: dict[float, int] = {}
    for index, number in enumerate(numbers):
        known.setdefault(sign * (number or 0.0), index)
    return [known[key] for key in sorted(known)], num_answers - len(known)


def _refuse_order(name: str, values: object, num_answers: int, findings: Findings) -> None:
    found = kind_of(values)
    if is_list(values):
        read = _rank if name == "ranks" else _number
        wrong = next((value for value in values if read(value) is None), None)
        has_all = len(values) == num_answers
        found += f" with {kind_of(wrong)}" if has_all else f" of {len(values)}"
    accepted = "whole numbers from 1 up" if name == "ranks" else "numbers"
    message = f"found {found}, accepts {num_answers} {accepted}, one for each answer"
    findings.add(name, message, "ranks: 1 is the best; scores: the highest is the best")


def _rank(value: object) -> float | None:
    """A whole number from 1 up; None for everything else."""
    number = _number(value)
    return number if number is not None and number >= 1 and number.is_integer() else None


def _number(value: object) -> float | None:
    """A finite number; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < float("inf") else None


def read_margin(fields: Fields, name: str | None, num_answers: int, findings: Findings) -> float:
    """Read by how much the first answer is better than the second; 0 where no field says it.

    Args:
        fields: The row.
        name: `data.margin`.
        num_answers: K.
        findings: Where problems are noted.
    """
    if name is None:
        return 0.0
    value = required(fields, name, findings)
    number = _number(value)
    if name in fields and number is None:
        findings.add(name, f"found {kind_of(value)}, accepts a finite number", "repair the row")
    elif number is not None and number < 0:
        message = f"found {number:g}, accepts 0 or more: the chosen answer is the better one"
        findings.add(name, message, "swap chosen and rejected, or repair the row")
    elif num_answers > 2:
        message = f"found a margin beside {num_answers} answers, accepts it beside two"
        findings.add(name, message, "set data.margin=null")
    return number or 0.0
