"""What can be read but was probably not meant: labels that were not cut apart, starved classes."""

import unicodedata
from collections.abc import Mapping, Sequence

from sft_kit.config.suggestions import did_you_mean
from sft_kit.data.inspection import counted, name_places
from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.rows import Where
from sft_kit.errors import FormatError
from sft_kit.settings import LabelledDataSettings

FEW_ROWS = 2
"""A class with so many training rows or fewer is pointed out."""

_SEPARATORS = (",", ";", "|", "，", "；", "、")
"""What labels of one text are often written with."""

_MAX_NAMED_CLASSES = 10


def separator_doubts(
    path: str, rows: Sequence[LabelledText], settings: LabelledDataSettings
) -> list[str]:
    """Doubt that `label_separator` stands between labels where no text has two of them.

    Args:
        path: The file as the user named it.
        rows: Its rows, whose labels were cut out of one field.
        settings: The `data` section, with `multi_label`.

    Raises:
        FormatError: Labels hold another separator, and all their parts are labels of other rows.
    """
    if any(len(row.labels) > 1 for row in rows):
        return []
    labels = {row.labels[0]: row.where for row in reversed(rows) if row.labels}
    if not labels:
        return []
    own = repr(settings.label_separator)
    joined = {mark: [one for one in labels if mark in one] for mark in _SEPARATORS}
    mark = max(_SEPARATORS, key=lambda one: len(joined[one]))
    if not joined[mark]:
        doubt = f"no row of {path} has two labels (is {own} of data.label_separator between them?)"
        return [doubt]
    example = min(joined[mark], key=lambda one: labels[one].line)
    found = f"{labels[example]}: the label {example!r:.60} holds {mark!r}, and no row has {own}"
    todo = f"data.label_separator={mark!r} makes several labels of it"
    parts = {part.strip() for one in joined[mark] for part in one.split(mark)} - {""}
    if parts <= labels.keys() and not settings.label_names:
        raise FormatError(f"{found}; its parts are labels of other rows (set {todo[5:]})")
    return [f"{found} ({todo})"]


def class_doubts(
    train: Sequence[LabelledText], held_out: Sequence[LabelledText], label_names: Sequence[str]
) -> list[str]:
    """Name classes that differ by next to nothing, and those with hardly any rows.

    Classes without any training row are left to others.

    Args:
        train: Training rows.
        held_out: Rows for evaluation; may be empty.
        label_names: Class id -> name.

    Returns:
        A sentence for each kind of doubt and each class, the rarest first, ten at most.
    """
    trained, judged = _places(train), _places(held_out)
    names = [name for name in label_names if name in trained]
    alike = _alike(names)
    rare = [name for name in names if len(trained[name]) <= FEW_ROWS or alike.get(name)]
    rare.sort(key=lambda name: len(trained[name]))
    doubts = []
    told: set[str] = set()
    for name in rare:
        others = [other for other in alike.get(name, []) if other not in told]
        if len(trained[name]) > FEW_ROWS and not others:
            continue
        told.add(name)
        places = name_places(trained[name])
        found = f"class {name!r} has {counted(len(trained[name]), 'training row')} {places}"
        doubts.append(f"{found}: {did_you_mean(others)}" if others else found)
    if len(doubts) > _MAX_NAMED_CLASSES:
        num_more = len(doubts) - _MAX_NAMED_CLASSES
        doubts[_MAX_NAMED_CLASSES:] = [f"{num_more:,} more classes have hardly any training rows"]
    missing = [name for name in names if held_out and name not in judged]
    if missing:
        listed = ", ".join(map(repr, missing[:_MAX_NAMED_CLASSES]))
        more = ", ..." if len(missing) > _MAX_NAMED_CLASSES else ""
        doubts.append(f"no held-out row has the label {listed}{more}: nothing is measured on it")
    return doubts


def _places(rows: Sequence[LabelledText]) -> dict[str, list[Where]]:
    places: dict[str, list[Where]] = {}
    for row in rows:
        for name in row.labels:
            places.setdefault(name, []).append(row.where)
    return places


def _alike(names: Sequence[str]) -> Mapping[str, list[str]]:
    """For each name the others that differ by case, white space or full-width forms only."""
    folded: dict[str, list[str]] = {}
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        folded.setdefault("".join(plain.split()), []).append(name)
    return {
        name: [other for other in alike if other != name]
        for alike in folded.values()
        if len(alike) > 1
        for name in alike
    }
