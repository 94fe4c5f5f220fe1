"""The rows a classifier run is asked about: how its FILE is read, and which rows it has seen."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sft_kit.config.merging import (
    COMMAND_LINE,
    Reading,
    check_sections,
    merge_overrides,
    report_of,
)
from sft_kit.config.schema import read_sections
from sft_kit.config.yaml_text import Node
from sft_kit.data.inspection import counted
from sft_kit.data.labelled.judged import deduplicated, find_trained
from sft_kit.data.labelled.reading import ReadRows, read_labelled, refuse_bad_rows
from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.rows import Where
from sft_kit.errors import ConfigError, DataError, FormatError, Problem
from sft_kit.settings import LabelledDataSettings

if TYPE_CHECKING:
    from sft_kit.artifacts.classifier import LoadedClassifier

_READ_ALWAYS = {
    "text",
    "text_pair",
    "label",
    "encoding",
    "header",
    "separator",
    "split",
    "revision",
    "num_rows",
}
_READ_TO_CLASSIFY = frozenset({*_READ_ALWAYS, "label_separator", "max_length", "on_bad_row"})
"""Keys of `data` that have an effect on texts without labels."""
_READ_TO_EVALUATE = frozenset({*_READ_TO_CLASSIFY, "label_names", "deduplicate"})
"""Keys of `data` that have an effect on labelled texts which are not split."""


@dataclass(frozen=True, slots=True)
class AskedRows:
    """The texts a classifier is asked about.

    Attributes:
        rows: At least one.
        settings: How they are read and tokenized.
        notes: What was detected or left out, a sentence each.
        fingerprint: sha256 of the file; empty where there is none.
    """

    rows: list[LabelledText]
    settings: LabelledDataSettings
    notes: list[str]
    fingerprint: str = ""


@dataclass
class Settings:
    """The one section whose keys the command line may set."""

    data: LabelledDataSettings


def file_rows(
    classifier: "LoadedClassifier", file: str, overrides: Sequence[str], *, needs_labels: bool
) -> AskedRows:
    """Read texts to evaluate a classifier on, or to classify.

    Args:
        classifier: Its run says how its own data was read.
        file: What to read.
        overrides: `data.key=value` words: how this file is read otherwise.
        needs_labels: To evaluate. Else labels that stand beside the texts are not looked at.

    Raises:
        ConfigError: Every override that can't be used.
        DataError: Nothing to read, or not readable.
        FormatError: Columns can't be told, bad rows, labels that are no classes of the run, or
            pairs where the run was trained on single texts, or the other way round.
    """
    read_keys = _READ_TO_EVALUATE if needs_labels else _READ_TO_CLASSIFY
    if file == "-":
        option = "--data" if needs_labels else "--file"
        found = Problem(COMMAND_LINE, option, "found '-', accepts a file, a folder or a Hub id")
        raise ConfigError("texts are not read from standard input", [found])
    settings = _file_settings(classifier.data, file, overrides, read_keys)
    known_labels = {*classifier.label_names, *settings.label_names}
    read = read_labelled(settings, file, needs_labels=needs_labels, known_labels=known_labels)
    refuse_bad_rows(settings, read)
    if problem := _wrong_number_of_texts(classifier, read.rows, file, "data.text_pair"):
        raise FormatError(f"{file}: these texts don't suit the run", [problem])
    notes = [*read.notes, *read.doubts]
    if read.num_bad_rows:
        notes.insert(0, f"{counted(read.num_bad_rows, 'bad row')} skipped")
    if not needs_labels:
        return AskedRows(read.rows, settings, notes, read.fingerprint)
    _refuse_unknown_labels(file, read, classifier.label_names)
    rows = read.rows
    if settings.deduplicate:
        rows, note = deduplicated(rows)
        notes.append(note)
    if not rows:
        raise DataError(f"{file}: the labels of all texts contradict each other (repair them)")
    return AskedRows(rows, settings, notes, read.fingerprint)


def given_rows(
    classifier: "LoadedClassifier", texts: Sequence[str], pairs: Sequence[str]
) -> AskedRows:
    """Take texts, or pairs of texts, from the command line.

    Raises:
        ConfigError: The run was trained on the other kind, or the numbers differ.
    """
    if pairs and len(pairs) != len(texts):
        found = f"found {len(pairs)}, accepts one for each of the {len(texts)} --text"
        problem: Problem | None = Problem(COMMAND_LINE, "--text-pair", found)
        rows = []
    else:
        both = zip(texts, pairs, strict=True) if pairs else ((text,) for text in texts)
        rows = [
            LabelledText(words, (), Where(COMMAND_LINE, number))
            for number, words in enumerate(both, start=1)
        ]
        problem = _wrong_number_of_texts(classifier, rows, COMMAND_LINE, "--text-pair")
    if problem:
        raise ConfigError("these texts can't be classified", [problem])
    return AskedRows(rows, classifier.data, [])


def rows_trained_on(
    classifier: "LoadedClassifier", rows: Sequence[LabelledText]
) -> tuple[list[bool] | None, str]:
    """Find the rows whose text the run was trained on, as `find_trained` does."""
    described = _described(classifier)
    prints = [str(described.get(key) or "") for key in ("fingerprint", "eval_fingerprint")]
    return find_trained(classifier.data, prints, rows)


def _described(classifier: "LoadedClassifier") -> Mapping[str, object]:
    return cast("Mapping[str, object]", classifier.info.get("data") or {})


def _wrong_number_of_texts(
    classifier: "LoadedClassifier", rows: Sequence[LabelledText], where: str, key: str
) -> Problem | None:
    """Say that rows are pairs and the run's were none, or the other way round."""
    accepted, found = _described(classifier).get("num_texts"), len(rows[0].texts)
    if accepted in (None, found):
        return None
    message = f"found {found} text{'s' * (found > 1)} a row, the run was trained on {accepted}"
    if where == COMMAND_LINE:
        todo = "give one for each --text" if found == 1 else "remove it"
    else:
        todo = f"set {key} to the column of the second text" if found == 1 else f"set {key}=null"
    return Problem(where, key, message, todo)


def _file_settings(
    of_run: LabelledDataSettings, file: str, overrides: Sequence[str], read: Collection[str]
) -> LabelledDataSettings:
    """Read a file as the run read its own, but for what the command line says.

    How a file is encoded and laid out is told by the file itself, unless it is the run's own.

    Args:
        of_run: How the run read its data.
        file: What to read.
        overrides: `data.key=value` words.
        read: Keys that have an effect here; others are refused.

    Raises:
        ConfigError: Every override that can't be used.
    """
    sections = read_sections(Path(__file__))
    names = {value: Node(name, COMMAND_LINE) for value, name in of_run.label_names.items()}
    known = {"path": Node(file, COMMAND_LINE, file), "label_names": Node(names, COMMAND_LINE)}
    reading = Reading(sections, {"data": Node(known, COMMAND_LINE)})
    unread = sections["data"].settings.keys() - read
    reading.problems += [
        Problem(COMMAND_LINE, key, f"has no effect here, accepts {', '.join(sorted(read))}")
        for key in map(_key, overrides)
        if _name(key) in unread
    ]
    merge_overrides(reading, overrides)
    checked = check_sections(reading, COMMAND_LINE)
    if reading.problems:
        raise report_of(COMMAND_LINE, reading.problems)
    plain = replace(of_run, eval_path=None, num_rows=None, group=None)
    if not _is_of_run(of_run, file):
        plain = replace(plain, encoding="auto", header="auto", separator="auto")
    return replace(plain, **checked["data"].values)  # type: ignore[arg-type]


def _is_of_run(of_run: LabelledDataSettings, file: str) -> bool:
    own = [Path(path).expanduser().resolve() for path in (of_run.path, of_run.eval_path) if path]
    path = Path(file).expanduser().resolve()
    return any(path == one or one in path.parents for one in own)


def _refuse_unknown_labels(file: str, read: ReadRows, label_names: Sequence[str]) -> None:
    """Refuse rows whose labels are not classes of the run.

    Raises:
        FormatError: One problem for each such label.
    """
    places: dict[str, list[LabelledText]] = {}
    for row in read.rows:
        for name in row.labels:
            places.setdefault(name, []).append(row)
    accepted = f"accepts the classes of the run: {', '.join(map(repr, label_names))}"
    problems = [
        Problem(
            str(found[0].where),
            "label",
            f"found {name!r} ({counted(len(found), 'row')}), {accepted}",
        )
        for name, found in places.items()
        if name not in label_names
    ]
    if problems:
        columns = read.notes[-1].removeprefix("data: ")
        listed = ", ".join(map(repr, sorted(places)))
        raise FormatError(
            f"{file} has labels that the run does not know; its labels are {listed}; {columns} "
            "(set data.label=COLUMN where the label stands elsewhere, or say what they are called "
            "in the run: 'data.label_names={LABEL: CLASS, ...}')",
            problems,
        )


def _key(override: str) -> str:
    """`data.label_names.x=y` -> `data.label_names`."""
    return ".".join(override.partition("=")[0].strip().split(".")[:2])


def _name(key: str) -> str:
    return key.removeprefix("data.")
