"""Data settings -> plain texts for training and for evaluation that have no text in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import get_args

from sft_kit.data.corpus.reading import open_texts
from sft_kit.data.corpus.report import Text, TextSplits
from sft_kit.data.corpus.sentences import starts_between
from sft_kit.data.rows import Conversation, ReadReport
from sft_kit.data.splits import held_out_groups, normalised_hash
from sft_kit.errors import DataError, FormatError, Problem
from sft_kit.settings import TextDataSettings, TextUnit

_ENDS: Mapping[TextUnit, str] = MappingProxyType(
    {
        "line": "a text is a line",
        "paragraph": "a text ends at a blank line",
        "document": "a text ends at a blank line",
        "file": "a text is the whole file",
    }
)


@dataclass(slots=True)
class _Read:
    """All texts of one source."""

    fingerprint: str = ""
    fields: list[str] = field(default_factory=list)
    num_rows: int = 0
    texts: list[Text] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    num_bad_rows: int = 0


def load_texts(settings: TextDataSettings) -> TextSplits:
    """Read the texts, report the bad rows all at once, and hold out texts for evaluation.

    Texts that are equal but for case and white space stay on one side of a split drawn at random.
    Both sides keep the order of the file. While streaming, `eval_path` alone is read.

    Args:
        settings: The `data` section.

    Raises:
        DataError: Nothing to read, not readable, or nothing that can be held out, or nothing left
            to train on.
        FormatError: The field of the text can't be told, no row is good, or there are bad rows and
            `on_bad_row` is `stop`.
    """
    if settings.streaming:
        read = _Read(open_texts(settings, settings.path, streaming=True).fingerprint)
    else:
        read = _read(settings, settings.path, settings.num_rows)
    held_out = _read(settings, settings.eval_path, None) if settings.eval_path else _Read()
    _refuse_bad_rows(settings, read, held_out)
    report = ReadReport(
        format=", ".join(dict.fromkeys([*read.fields, *held_out.fields])),
        num_rows=read.num_rows + held_out.num_rows,
        bad_rows=[*read.problems, *held_out.problems],
        num_bad_rows=read.num_bad_rows + held_out.num_bad_rows,
        fingerprint=read.fingerprint,
        eval_fingerprint=held_out.fingerprint,
    )
    if settings.streaming:
        return TextSplits([], held_out.texts, report, is_streamed=True)
    if settings.eval_path:
        return _apart(read.texts, held_out.texts, settings, report)
    if settings.hold_out == "end":
        return _hold_out_end(read.texts, settings.eval_fraction, report)
    return _hold_out_random(read.texts, settings, report)


def _read(settings: TextDataSettings, path: str, num_rows: int | None) -> _Read:
    source = open_texts(settings, path)
    read = _Read(source.fingerprint, source.fields)
    for found in islice(source.rows, num_rows):
        read.num_rows += 1
        if isinstance(found, Text):
            read.texts.append(found)
        else:
            read.problems += found
            read.num_bad_rows += 1
    return read


def _refuse_bad_rows(settings: TextDataSettings, read: _Read, held_out: _Read) -> None:
    for path, found in ((settings.path, read), (settings.eval_path or "", held_out)):
        if found.num_rows and not found.texts:
            message = f"{path}: none of the {found.num_rows:,} rows can be used (repair them):"
            raise FormatError(message, found.problems)
    problems = [*read.problems, *held_out.problems]
    if problems and settings.on_bad_row == "stop":
        num_bad = read.num_bad_rows + held_out.num_bad_rows
        num_rows = read.num_rows + held_out.num_rows
        raise FormatError(
            f"{settings.path}: {num_bad:,} of {num_rows:,} rows can't be used (repair them, or "
            "leave them out with data.on_bad_row=skip):",
            problems,
        )


def _hash(text: Text) -> bytes:
    return normalised_hash(Conversation((), text.where, text=text.text))


def _apart(
    train: list[Text], held_out: list[Text], settings: TextDataSettings, report: ReadReport
) -> TextSplits:
    """Leave out of training what `eval_path` holds too."""
    hashes, asked = [_hash(text) for text in train], [_hash(text) for text in held_out]
    known, hidden = set(hashes), set(asked)
    report.num_duplicates = len(hashes) - len(known)
    report.overlaps = [
        text.where for text, key in zip(held_out, asked, strict=True) if key in known
    ]
    report.num_overlaps = len(report.overlaps)
    kept = [text for text, key in zip(train, hashes, strict=True) if key not in hidden]
    if train and not kept:
        raise DataError(
            f"{settings.path}: nothing is left to train on: its texts (all {len(train):,}) stand "
            f"in data.eval_path={settings.eval_path} too and were left out of training (name other "
            "texts in one of them, or hold out a part with data.eval_path=null)"
        )
    return TextSplits(kept, held_out, report)


def _hold_out_random(
    texts: list[Text], settings: TextDataSettings, report: ReadReport
) -> TextSplits:
    hashes = [_hash(text) for text in texts]
    sizes: dict[bytes, int] = {}
    for key in hashes:
        sizes[key] = sizes.get(key, 0) + 1
    if settings.eval_fraction and len(sizes) < 2:
        raise _one_text(texts, settings)
    hidden = held_out_groups(sizes, settings.eval_fraction, settings.split_seed)
    train = [text for text, key in zip(texts, hashes, strict=True) if key not in hidden]
    evaluation = [text for text, key in zip(texts, hashes, strict=True) if key in hidden]
    report.num_duplicates = len(train) - (len(sizes) - len(hidden))
    return TextSplits(train, evaluation, report)


def _one_text(texts: Sequence[Text], settings: TextDataSettings) -> DataError:
    file = texts[0].where.file if texts else settings.path
    found, others = "found one text only", len(texts) - 1
    if others > 0:
        is_equal = "text is equal to it" if others == 1 else "texts are equal to it"
        found += f" ({others:,} other {is_equal}, but for case and white space)"
    todo = "set data.hold_out=end to hold out its end, or data.eval_fraction=0 and "
    todo += "train.eval_strategy=no"
    if file.lower().endswith(".txt"):
        units = ", ".join(unit for unit in get_args(TextUnit) if unit != settings.unit)
        found += f"; data.unit is {settings.unit}: {_ENDS[settings.unit]}"
        todo += f"; or cut the file otherwise: data.unit also accepts {units}"
    return DataError(f"{file}: {found}; it can't be held out and learnt too ({todo})")


def _hold_out_end(texts: list[Text], fraction: float, report: ReadReport) -> TextSplits:
    """Train on the first characters of all text and hold out the rest, as nanoGPT does."""
    room = int((1 - fraction) * sum(len(text.text) for text in texts))
    train: list[Text] = []
    evaluation: list[Text] = []
    for text in texts:
        size = len(text.text)
        if 0 < room < size:
            train.append(_part(text, 0, room))
            evaluation.append(_part(text, room, size))
        else:
            (train if room else evaluation).append(text)
        room = max(0, room - size)
    report.num_duplicates = _num_repeats(train)
    return TextSplits(train, evaluation, report)


def _part(text: Text, first: int, last: int) -> Text:
    starts = None if text.sentences is None else starts_between(text.sentences, first, last)
    return Text(text.text[first:last], text.where, starts)


def _num_repeats(texts: Sequence[Text]) -> int:
    return len(texts) - len({_hash(text) for text in texts})
