"""Predictions as a table for spreadsheets (CSV) or as JSON Lines."""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

from sft_kit.data.labelled.rows import LabelledText
from sft_kit.errors import DataError
from sft_kit.inference.classify import Prediction

SUFFIXES = (".csv", ".jsonl")
_TEXT_COLUMNS = ("text", "text_pair")
_HIDDEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}
"""Unicode categories of blanks, control and format characters."""


def write_predictions(
    path: Path,
    rows: Sequence[LabelledText],
    predictions: Sequence[Prediction],
    *,
    label_separator: str | None = None,
    with_probabilities: bool = False,
) -> None:
    """Write one line for each text: its place, the text or texts, `prediction`, `probability`.

    The place is `line`, and `file` before it where the texts come from several.

    The file appears whole or not at all.

    Args:
        path: Ends in `.csv` (UTF-8 with a byte order mark, so that Excel reads every script;
            formulas made harmless) or `.jsonl` (exact texts).
        rows: The texts.
        predictions: As many.
        label_separator: Between the labels of a text in a CSV; None where each text has one label.
        with_probabilities: Add the probability of every class.

    Raises:
        DataError: The file can't be written.
    """
    if path.suffix.lower() == ".csv":
        content = _csv(rows, predictions, label_separator, with_probabilities=with_probabilities)
        data = content.encode("utf-8-sig", errors="backslashreplace")
    else:
        multi_label = label_separator is not None
        lines = prediction_rows(
            rows,
            predictions,
            multi_label=multi_label,
            with_probabilities=with_probabilities,
            with_places=True,
        )
        content = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
        data = content.encode("utf-8", errors="backslashreplace")
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{path} can't be written: {error.strerror or error}") from error


def prediction_rows(
    rows: Sequence[LabelledText],
    predictions: Sequence[Prediction],
    *,
    multi_label: bool,
    with_probabilities: bool = True,
    with_places: bool = False,
) -> Iterator[dict[str, object]]:
    """Yield the fields of each text as JSON knows them.

    `prediction` is a name, or a list of names where a text may have any number of labels. With
    places, `line` says where the text was read, and `file` where there are several.
    """
    has_files = _has_files(rows)
    for row, found in zip(rows, predictions, strict=True):
        fields = _place(row, has_files=has_files) if with_places else {}
        fields |= zip(_TEXT_COLUMNS, row.texts, strict=False)
        fields["prediction"] = list(found.labels) if multi_label else found.labels[0]
        fields["probability"] = found.probability
        if with_probabilities:
            fields["probabilities"] = found.probabilities
        yield fields


def _has_files(rows: Sequence[LabelledText]) -> bool:
    return len({row.where.file for row in rows}) > 1


def _place(row: LabelledText, *, has_files: bool) -> dict[str, object]:
    file: dict[str, object] = {"file": row.where.file} if has_files else {}
    return file | {"line": row.where.line}


def harmless_cell(text: str) -> str:
    r"""Put an apostrophe before what a spreadsheet would run as a formula.

    That is every text whose first visible character is `=`, `+`, `-` or `@`, in full width too, or
    that begins with a tab or a line end. A number such as `-5` gets the apostrophe as well: it is
    text here, and rules with exceptions are the ones that get broken.

    >>> harmless_cell("=1+1"), harmless_cell("-5"), harmless_cell("a-b")
    ("'=1+1", "'-5", 'a-b')

    Source:
        OWASP, "CSV Injection".
    """
    hidden = "".join(takewhile(lambda one: unicodedata.category(one) in _HIDDEN, text))
    # The normal form of a full-width, small or raised sign is the sign.
    first = unicodedata.normalize("NFKC", text[len(hidden) : len(hidden) + 1])
    is_risky = first.startswith(("=", "+", "-", "@")) or any(one in hidden for one in "\t\r\n")
    return f"'{text}" if is_risky else text


def _csv(
    rows: Sequence[LabelledText],
    predictions: Sequence[Prediction],
    label_separator: str | None,
    *,
    with_probabilities: bool,
) -> str:
    names = list(predictions[0].probabilities) if with_probabilities else []
    texts = _TEXT_COLUMNS[: max(len(row.texts) for row in rows)]
    has_files = _has_files(rows)
    places = _place(rows[0], has_files=has_files)
    header = [
        *places,
        *texts,
        "prediction",
        "probability",
        *(f"probability_{name}" for name in names),
    ]
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(header)
    for row, found in zip(rows, predictions, strict=True):
        shares = [found.probability, *(found.probabilities[name] for name in names)]
        place = map(str, _place(row, has_files=has_files).values())
        words = [*place, *row.texts, _joined(found.labels, label_separator)]
        writer.writerow([*map(harmless_cell, words), *(f"{share:.6f}" for share in shares)])
    return table.getvalue()


def _joined(labels: Sequence[str], separator: str | None) -> str:
    """Write labels so that they read back: as a JSON list where one of them would be cut."""
    if separator is None:
        return labels[0]
    if any(separator in one or one.startswith("[") for one in labels):
        return json.dumps(labels, ensure_ascii=False)
    return separator.join(labels)
