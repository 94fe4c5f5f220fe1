"""Equal texts: how many there are, whose labels contradict, which rows to leave out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.rows import Where


@dataclass(frozen=True, slots=True)
class KeyedText:
    """A row and its key, which is equal where the texts count as equal."""

    row: LabelledText
    key: bytes

    def ties(self) -> list[bytes]:
        """What the row shares with all rows that must stand on the same side of a split."""
        group = self.row.group
        return [self.key] if group is None else [self.key, b"group " + group.encode()]


@dataclass(frozen=True, slots=True)
class Repeats:
    """Equal texts within one file.

    Attributes:
        num_duplicates: Rows whose text stands earlier.
        conflicts: The rows of each text whose rows don't all have the same labels.
    """

    num_duplicates: int
    conflicts: list[tuple[LabelledText, ...]]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Texts that stand in two files.

    Attributes:
        places: Held-out rows whose text is trained on.
        num_texts: Different texts of these rows.
        num_conflicts: Those of these rows that are trained on with other labels only.
    """

    places: list[Where]
    num_texts: int
    num_conflicts: int


def find_repeats(rows: Sequence[KeyedText]) -> Repeats:
    """Find equal texts; the order of several labels of a text makes no difference."""
    same_text: dict[bytes, list[LabelledText]] = {}
    for keyed in rows:
        same_text.setdefault(keyed.key, []).append(keyed.row)
    conflicts = [tuple(same) for same in same_text.values() if len(set(map(_labels, same))) > 1]
    return Repeats(len(rows) - len(same_text), conflicts)


def without_repeats(rows: Sequence[KeyedText]) -> tuple[list[KeyedText], int, int]:
    """Keep the first of equal texts with equal labels, and no row whose labels are contradicted.

    Returns:
        The rows to keep, and how many of the others repeat one and how many contradict another.
    """
    labels: dict[bytes, set[frozenset[str]]] = {}
    for keyed in rows:
        labels.setdefault(keyed.key, set()).add(_labels(keyed.row))
    agreed = [keyed for keyed in rows if len(labels[keyed.key]) == 1]
    first = {keyed.key: keyed for keyed in reversed(agreed)}
    kept = [keyed for keyed in agreed if first[keyed.key] is keyed]
    return kept, len(agreed) - len(kept), len(rows) - len(agreed)


def find_overlap(train: Sequence[KeyedText], held_out: Sequence[KeyedText]) -> Overlap:
    """Find the held-out rows whose text is trained on."""
    trained: dict[bytes, set[frozenset[str]]] = {}
    for keyed in train:
        trained.setdefault(keyed.key, set()).add(_labels(keyed.row))
    shared = [keyed for keyed in held_out if keyed.key in trained]
    return Overlap(
        places=[keyed.row.where for keyed in shared],
        num_texts=len({keyed.key for keyed in shared}),
        num_conflicts=sum(_labels(keyed.row) not in trained[keyed.key] for keyed in shared),
    )


def without_overlap(
    train: Sequence[KeyedText],
    held_out: Sequence[KeyedText],
    on_overlap: Literal["drop-train", "drop-eval", "keep"],
) -> tuple[list[KeyedText], list[KeyedText]]:
    """Leave out texts and groups that stand on both sides, on the side that `on_overlap` says."""
    trained, asked = ({tie for one in side for tie in one.ties()} for side in (train, held_out))
    if on_overlap == "drop-train":
        train = [keyed for keyed in train if asked.isdisjoint(keyed.ties())]
    elif on_overlap == "drop-eval":
        held_out = [keyed for keyed in held_out if trained.isdisjoint(keyed.ties())]
    return list(train), list(held_out)


def _labels(row: LabelledText) -> frozenset[str]:
    return frozenset(row.labels)
