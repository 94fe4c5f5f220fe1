"""The label of a row as it stands in a file -> the names of its classes."""

import json
from collections.abc import Mapping, Sequence

from sft_kit.config.suggestions import did_you_mean, nearest
from sft_kit.data.labelled.columns import Columns
from sft_kit.data.turns import Findings, check_text, is_list, kind_of, required
from sft_kit.settings import LabelledDataSettings

Fields = Mapping[str, object]

_WRITE_LABEL = "write the label, or remove the row"
_MIN_NAME_TO_GUESS = 3  # any two shorter ones are close to each other
_NO_LABEL = -1
"""Class id that data sets of the Hub give to rows without a label."""


def read_labels(
    fields: Fields,
    columns: Columns,
    settings: LabelledDataSettings,
    class_names: Mapping[str, Sequence[str]],
    findings: Findings,
) -> tuple[str, ...]:
    """Return the names of a row's classes; note what is wrong with them.

    Args:
        fields: The row.
        columns: Which of its fields are the label.
        settings: The `data` section.
        class_names: Column -> names by class id, where the data set knows them.
        findings: Takes the problems.
    """
    if columns.are_flags:
        return _read_flags(fields, columns.label, settings, findings)
    column = columns.description or columns.label[0]
    value = required(fields, column, findings)
    if column not in fields:
        return ()
    known = class_names.get(column, ())
    if settings.multi_label:
        return _read_several(value, column, settings, known, findings)
    return _name_of(value, column, settings, known, findings)


def _read_flags(
    fields: Fields, columns: Sequence[str], settings: LabelledDataSettings, findings: Findings
) -> tuple[str, ...]:
    found: list[str] = []
    for column in columns:
        value = required(fields, column, findings)
        flag = str(value).strip().lower().removesuffix(".0")
        if column in fields and flag not in {"0", "1", "false", "true"}:
            message = f"found {_shown(value)}, accepts 0 or 1"
            findings.add(column, message, "each column of data.label says whether it applies")
        elif flag in {"1", "true"}:
            found += _renamed(column, column, settings, findings)
    return tuple(found)


def _read_several(
    value: object,
    column: str,
    settings: LabelledDataSettings,
    known: Sequence[str],
    findings: Findings,
) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = _listed(value, settings.label_separator)
    items = value if is_list(value) else [value]
    names: list[str] = []
    for number, item in enumerate(items):
        key = f"{column}[{number}]" if is_list(value) else column
        names += _name_of(item, key, settings, known, findings)
    return tuple(dict.fromkeys(names))


def _listed(value: str, separator: str) -> list[object]:
    """Cut a text into labels; a JSON list that was written into a table is one, too."""
    if value.lstrip().startswith("["):
        try:
            items = json.loads(value)
        except (ValueError, RecursionError):
            items = None
        if isinstance(items, list):
            return items
    return [part for part in value.split(separator) if part.strip()]


def _name_of(
    value: object,
    key: str,
    settings: LabelledDataSettings,
    known: Sequence[str],
    findings: Findings,
) -> tuple[str, ...]:
    """Return one name, or none after noting why."""
    if is_list(value):
        todo = "set data.multi_label=true" if not settings.multi_label else "write one list"
        findings.add(key, "found a list, accepts one label", todo)
        return ()
    if known and isinstance(value, int) and not isinstance(value, bool):
        return _name_of_class_id(value, key, settings, known, findings)
    text = label_text(value, key, findings)
    return _renamed(text, key, settings, findings) if text else ()


def _name_of_class_id(
    value: int, key: str, settings: LabelledDataSettings, known: Sequence[str], findings: Findings
) -> tuple[str, ...]:
    if not 0 <= value < len(known):
        found = "no label (-1)" if value == _NO_LABEL else f"the class id {value}"
        findings.add(key, f"found {found}, accepts 0 to {len(known) - 1}", _WRITE_LABEL)
        return ()
    names = settings.label_names
    return _renamed(str(value) if str(value) in names else known[value], key, settings, findings)


def label_text(value: object, key: str, findings: Findings) -> str:
    """Return a label as text: whole numbers without a fraction, true and false in small letters.

    Args:
        value: The label as it stands in the file.
        key: Its field.
        findings: Takes the problem of a value that is no label; the text is empty then.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value.strip():
        return check_text(value.strip(), key, findings)
    found = "an empty label" if isinstance(value, str) else kind_of(value)
    findings.add(key, f"found {found}, accepts a text or a whole number", _WRITE_LABEL)
    return ""


def _renamed(
    text: str, key: str, settings: LabelledDataSettings, findings: Findings
) -> tuple[str, ...]:
    if not settings.label_names:
        return (text,)
    if name := settings.label_names.get(text):
        return (name,)
    accepted = ", ".join(map(repr, list(settings.label_names)[:20]))
    close = nearest(text, settings.label_names) if len(text) >= _MIN_NAME_TO_GUESS else []
    hint = " or ".join(filter(None, [did_you_mean(close), "add it to data.label_names"]))
    findings.add(key, f"found {text!r:.60}, accepts {accepted}", hint)
    return ()


def _shown(value: object) -> str:
    return f"{value!r:.60}" if isinstance(value, str) else kind_of(value)
