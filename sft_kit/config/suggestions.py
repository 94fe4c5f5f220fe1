"""The nearest valid name to a name nobody knows."""

from collections.abc import Iterable
from difflib import SequenceMatcher

MAX_NAMES = 3


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names that `name` was probably meant to be, best first; empty when none is close.

    One edit always counts as close, two from five letters, three from ten; names that contain the
    other as whole words (`batch_size`, `per_device_train_batch_size`) follow.
    """
    folded = name.lower().replace("-", "_").strip()
    allowed = 1 if len(folded) < 5 else 2 if len(folded) < 10 else 3
    distances = {other: _edits(folded, other.lower(), allowed) for other in known}
    close = {other: edits for other, edits in distances.items() if edits <= allowed}
    if not close:
        return _containing(folded, distances)
    best = min(close.values())
    ties = [other for other, edits in close.items() if edits == best]
    return sorted(ties, key=lambda other: (-_likeness(folded, other), other))[:MAX_NAMES]


def most_alike(name: str, known: Iterable[str]) -> list[str]:
    """The known names that share most with `name`, best first, however far they are."""
    folded = name.lower().replace("-", "_").strip()
    return sorted(known, key=lambda other: (-_likeness(folded, other), other))[:MAX_NAMES]


def quoted_choice(names: Iterable[str]) -> str:
    """`'a'`, `'a' or 'b'`, `'a', 'b' or 'c'`."""
    *first, last = [f"'{name}'" for name in names]
    return f"{', '.join(first)} or {last}" if first else last


def did_you_mean(names: list[str]) -> str:
    """The question at the end of a message; empty without names."""
    return f"did you mean {quoted_choice(names)}?" if names else ""


def _likeness(name: str, other: str) -> float:
    return SequenceMatcher(None, name, other.lower(), autojunk=False).ratio()


def _containing(name: str, known: Iterable[str]) -> list[str]:
    words = set(name.split("_")) - {""}
    if len(name) < 4:
        return []
    related = [other for other in known if words <= set(other.lower().split("_"))]
    return sorted(related, key=len)[:MAX_NAMES]


def _edits(name: str, other: str, most: int) -> int:
    """Damerau-Levenshtein distance (a swap of neighbours counts once), `most + 1` when more."""
    if abs(len(name) - len(other)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(name, 1):
        two_before, before = before, row
        row = [i]
        for j, wanted in enumerate(other, 1):
            edits = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and name[i - 2] == wanted:
                edits = min(edits, two_before[j - 2] + 1)
            row.append(edits)
        if min(row) > most:
            return most + 1
    return row[-1]
