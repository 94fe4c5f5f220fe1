"""A file, a folder or a data set of the Hub -> plain texts, one after another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from sft_kit.config.suggestions import did_you_mean, nearest
from sft_kit.data.corpus.report import Text
from sft_kit.data.corpus.text_units import layout_of
from sft_kit.data.rows import RawRow
from sft_kit.data.sources import open_source
from sft_kit.data.turns import Findings, check_text, is_list, required
from sft_kit.errors import DataError, FormatError, Problem
from sft_kit.settings import TextDataSettings

TEXT_FIELDS = ("text", "content", "paragraphs", "document", "sentence", "body")
"""Names of the field of the text that `data.text: auto` knows, the first that is there first."""
_MAX_LISTED = 10
_MAX_LOOKED_AT = 1_000
_CONFIGS, _WEIGHTS = ("config.json", "adapter_config.json"), (".safetensors", ".bin")


@dataclass(frozen=True, slots=True)
class TextSource:
    """Texts in the order of the file, and the fingerprint of what is read.

    Attributes:
        rows: A text, or everything that is wrong with a row.
        fingerprint: As of `sft_kit.data.sources.Source`.
        fields: The fields that texts were read from, as far as rows were asked for.
    """

    rows: Iterator[Text | list[Problem]]
    fingerprint: str
    fields: list[str]


def open_texts(settings: TextDataSettings, path: str, *, streaming: bool = False) -> TextSource:
    """Open a source of plain texts, which are read as they are asked for.

    Args:
        settings: `text`, `unit`, `split` and `revision`.
        path: File, folder or Hub id; one of those in the settings.
        streaming: Read a data set on the Hub as it is downloaded.

    Raises:
        DataError: Nothing is there, it can't be read, or is a checkpoint. Also raised while texts
            are asked for.
        FormatError: The field of the text can't be told. Raised while texts are asked for.
    """
    refuse_checkpoint(path)
    layout = layout_of(settings.unit)
    source = open_source(path, settings.split, settings.revision, layout, streaming=streaming)
    fields: list[str] = []
    return TextSource(_texts(source.rows, settings.text, fields), source.fingerprint, fields)


def refuse_checkpoint(path: str) -> None:
    """Refuse a folder that holds a model where texts are asked for.

    Args:
        path: What `data.path` or `data.eval_path` says.

    Raises:
        DataError: It is one.
    """
    folder = Path(path).expanduser()
    configs = [name for name in _CONFIGS if (folder / name).is_file()]
    weights = [file.name for suffix in _WEIGHTS for file in sorted(folder.glob(f"*{suffix}"))]
    if configs and weights:
        raise DataError(
            f"{path}: found a checkpoint ({configs[0]}, {weights[0]}), accepts data to train on "
            "(name the data in data.path and data.eval_path, and a checkpoint in model.checkpoint)"
        )


def find_text_field(row: RawRow, name: str) -> str:
    """Name the field that holds the text.

    Args:
        row: The first row of a source.
        name: What `data.text` says; "auto" takes the first of `TEXT_FIELDS` that the row has.

    Raises:
        FormatError: The row has no such field.
    """
    if name in row.fields or name != "auto":
        return name
    for known in TEXT_FIELDS:
        if known in row.fields:
            return known
    found = [str(field) for field in row.fields]
    close = list(dict.fromkeys(best for field in found for best in nearest(field, TEXT_FIELDS)))
    listed = ", ".join(map(repr, found[:_MAX_LISTED])) or "no fields"
    message = f"found {listed}, accepts {', '.join(TEXT_FIELDS)}"
    todo = "name the field of the text with data.text"
    hint = f"{did_you_mean(close)} {todo}".lstrip()
    raise FormatError(
        "the field of the text can't be told:", [Problem(str(row.where), "", message, hint)]
    )


def _texts(
    rows: Iterator[RawRow | Problem], name: str, fields: list[str]
) -> Iterator[Text | list[Problem]]:
    field, file = "", ""
    if name == "auto":
        rows, field, file = _with_known_field(rows)
        fields += [field] if field else []
    else:
        rows = _with_field(rows, name)
    for row in rows:
        if isinstance(row, Problem):
            yield [row]
            continue
        if row.where.file != file:
            field, file = find_text_field(row, name), row.where.file
            if field not in fields:
                fields.append(field)
        findings = Findings()
        text = _read(row, field, findings)
        problems = [replace(problem, where=str(row.where)) for problem in findings.problems]
        yield problems or text


def _with_known_field(
    rows: Iterator[RawRow | Problem],
) -> tuple[Iterator[RawRow | Problem], str, str]:
    """Yield all rows, and name the field of the first one that has a known field, and its file."""
    head: list[RawRow | Problem] = []
    for row in islice(rows, _MAX_LOOKED_AT):
        head.append(row)
        if isinstance(row, RawRow) and any(known in row.fields for known in TEXT_FIELDS):
            return chain(head, rows), find_text_field(row, "auto"), row.where.file
    return chain(head, rows), "", ""


def _with_field(rows: Iterator[RawRow | Problem], name: str) -> Iterator[RawRow | Problem]:
    """Yield all rows, unless none of the first ones has the field that `data.text` names."""
    head: list[RawRow | Problem] = []
    for row in islice(rows, _MAX_LOOKED_AT):
        head.append(row)
        if isinstance(row, RawRow) and name in row.fields:
            break
    else:
        if good := [row for row in head if isinstance(row, RawRow)]:
            raise FormatError("the field of the text can't be found:", [_missing(good, name)])
    return chain(head, rows)


def _missing(rows: Sequence[RawRow], name: str) -> Problem:
    names = list(dict.fromkeys(str(field) for row in rows for field in row.fields))
    listed = ", ".join(map(repr, names[:_MAX_LISTED])) or "none"
    todo = did_you_mean(nearest(name, names)) or "name one of them, or auto"
    if name.partition(".")[0] in names:
        todo = "fields within an object are not read: give the text a field of its own"
    message = f"found no field {name!r}, accepts {listed}"
    return Problem(rows[0].where.file, "data.text", message, todo)


def _read(row: RawRow, field: str, findings: Findings) -> Text:
    value = required(row.fields, field, findings)
    if not is_list(value):
        text = check_text(value, field, findings) if field in row.fields else ""
        return Text(text, row.where)
    kept = [
        check_text(item, f"{field}[{index}]", findings)
        for index, item in enumerate(value)
        if not (isinstance(item, str) and not item.strip())
    ]
    if not value or not (kept or findings.problems):
        findings.add(field, "found an empty list", "write the text, or remove the row")
    starts, place = [], 0
    for item in kept:
        starts.append(place)
        place += len(item) + 1
    return Text("\n".join(kept), row.where, tuple(starts))
