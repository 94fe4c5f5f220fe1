"""Which fields hold the source and the target: as the settings say, or by well-known names.

To let `auto` know other names, add them to `PAIR_NAMES`. Names compare without case. A field within
an object is called by both names with a dot between, such as `translation.en`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sft_kit.config.suggestions import did_you_mean, nearest
from sft_kit.data.formats import FORMATS
from sft_kit.data.rows import RawRow
from sft_kit.data.turns import is_fields
from sft_kit.errors import FormatError, Problem
from sft_kit.settings import PairDataSettings

CHATS = ("alpaca", "messages", "sharegpt", "prompt-completion")
"""Formats of `sft_kit.data.formats` whose last answer is the target, tried in this order."""

PAIR_NAMES: tuple[tuple[str, str], ...] = (
    ("source", "target"),
    ("src", "tgt"),
    ("source_text", "target_text"),
    ("input_text", "target_text"),
    ("article", "summary"),
    ("article", "highlights"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("content", "summary"),
    ("content", "title"),
    ("question", "answer"),
    ("query", "answer"),
    ("query", "response"),
    ("input", "output"),
    ("input", "target"),
    ("text", "target"),
)
"""Names of source and target; both must be there."""

LANGUAGES = frozenset(
    (
        "ar", "bg", "bn", "ca", "cmn", "cs", "da", "de", "el", "en", "eng", "es", "et", "fa",
        "fi", "fr", "he", "hi", "hr", "hu", "it", "ja", "ko", "lt", "lv", "ms", "nl", "no",
        "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "sw", "ta", "te", "th", "tr", "uk",
        "ur", "vi", "zh", "zho",
        "arabic", "chinese", "dutch", "english", "french", "german", "greek", "hindi",
        "italian", "japanese", "korean", "polish", "portuguese", "russian", "spanish",
        "turkish", "ukrainian", "vietnamese", "中文", "汉语", "英文", "英语", "日文", "日语",
        "法语", "德语", "俄语", "韩语",
    )
)  # fmt: skip
"""Names of columns that hold the two sides of a translation, also with a region as in `zh-CN`."""

_EXAMPLE_CHARACTERS = 60
_MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class PairColumns:
    """Where the two texts of a pair stand.

    Attributes:
        source: Field of the source; empty where the rows are chats.
        target: Field of the target; empty where the rows are chats.
        chat: Name of the chat format the rows have; empty where they are fields.
        unread: The other fields.
    """

    source: str = ""
    target: str = ""
    chat: str = ""
    unread: tuple[str, ...] = ()

    def describe(self) -> str:
        """Say what is read from where."""
        if self.chat:
            turns = "everything before the last answer"
            return f"format {self.chat}: the source is {turns}, the target that answer"
        told = f"the source is read from {self.source!r}, the target from {self.target!r}"
        listed = ", ".join(map(repr, self.unread[:_MAX_LISTED]))
        return f"{told}; not read: {listed}" if self.unread else told


def find_pair_columns(rows: Sequence[RawRow], settings: PairDataSettings) -> PairColumns:
    """Tell which fields hold the source and the target.

    Args:
        rows: The first good rows of the data; at least one.
        settings: `source` and `target`, each a field or `auto`.

    Raises:
        FormatError: A field that the settings name is not there, or `auto` finds none or several;
            lists the fields with an example each.
    """
    names = list(dict.fromkeys(name for row in rows for name in field_names(row.fields)))
    given = {"source": settings.source, "target": settings.target}
    problems = [
        _missing(rows[0].where.file, key, name, names)
        for key, name in given.items()
        if name not in ("auto", *names)
    ]
    if settings.source == settings.target != "auto":
        found = f"found {settings.target!r}, the field of the source too"
        problems.append(Problem(rows[0].where.file, "data.target", found, "name another field"))
    if problems:
        raise FormatError(f"{rows[0].where.file}: the fields can't be found:", problems)
    if "auto" not in given.values():
        return _columns(names, settings.source, settings.target)
    if settings.source == settings.target == "auto":
        if chat := _chat_format(rows):
            return PairColumns(chat=chat)
        candidates = _known_pairs(names) or _languages(names)
    else:
        candidates = _partners(names, settings)
    if len(candidates) == 1:
        return _columns(names, *candidates[0])
    raise _untold(rows, names, candidates)


def _columns(names: Sequence[str], source: str, target: str) -> PairColumns:
    """Say what is read; an object that holds what is read is not called unread."""
    read = (source, target)
    unread = [
        name
        for name in names
        if name not in read and not any(one.startswith(f"{name}.") for one in read)
    ]
    return PairColumns(source, target, unread=tuple(unread))


def field_names(fields: object, prefix: str = "") -> Iterator[str]:
    """Yield the names of all fields, those within objects with a dot between."""
    if is_fields(fields):
        for name, value in fields.items():
            yield f"{prefix}{name}"
            yield from field_names(value, f"{prefix}{name}.")


def field_value(fields: object, name: str) -> tuple[bool, object]:
    """Look up a field, also one within an object; returns whether it is there, and its value."""
    if not is_fields(fields):
        return False, None
    if name in fields:
        return True, fields[name]
    for place in (index for index, character in enumerate(name) if character == "."):
        found, value = field_value(fields.get(name[:place]), name[place + 1 :])
        if found:
            return True, value
    return False, None


def _missing(file: str, key: str, name: str, names: Sequence[str]) -> Problem:
    listed = ", ".join(map(repr, names[:_MAX_LISTED])) or "none"
    todo = did_you_mean(nearest(name, names)) or "name one of them"
    return Problem(file, f"data.{key}", f"found no field {name!r}, accepts {listed}", todo)


def _chat_format(rows: Sequence[RawRow]) -> str:
    """Name the first chat format that any row has; rows without it are bad rows then."""
    for name in CHATS:
        if any(keys <= row.fields.keys() for row in rows for keys in FORMATS[name].keys):
            return name
    return ""


def _known_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    folded = {name.strip().casefold(): name for name in reversed(names)}
    return [
        (folded[source], folded[target])
        for source, target in PAIR_NAMES
        if source in folded and target in folded
    ]


def _languages(names: Sequence[str]) -> list[tuple[str, str]]:
    """Take two languages in the order of the file, which says what is translated into what."""
    found = [name for name in names if _language(name)]
    if len(found) == 2:
        return [(found[0], found[1])]
    return [(one, other) for one in found for other in found if one != other]


def _language(name: str) -> bool:
    last = name.rsplit(".", 1)[-1].strip().casefold().replace("_", "-")
    return last.partition("-")[0] in LANGUAGES


def _partners(names: Sequence[str], settings: PairDataSettings) -> list[tuple[str, str]]:
    """Find the field that belongs to the one that is named."""
    is_source = settings.source != "auto"
    named = settings.source if is_source else settings.target
    known = [pair for pair in _known_pairs(names) if pair[0 if is_source else 1] == named]
    others = [name for name in names if name != named and not name.startswith(f"{named}.")]
    if not known and _language(named):
        others = [name for name in others if _language(name)]
    if known or len(others) != 1:
        return known
    return [(named, others[0]) if is_source else (others[0], named)]


def _untold(
    rows: Sequence[RawRow], names: Sequence[str], found: Sequence[tuple[str, str]]
) -> FormatError:
    why = "no two fields have known names of a source and a target"
    if found:
        listed = ", or ".join(f"{one!r} and {other!r}" for one, other in found[:4])
        why = f"several may be source and target: {listed}"
    return FormatError(
        f"{rows[0].where.file}: source and target can't be told: {why} (name them with data.source "
        "and data.target; the first line of a table names its columns); the file has:",
        [Problem("", repr(name), _example(rows, name)) for name in names[:_MAX_LISTED]],
    )


def _example(rows: Sequence[RawRow], name: str) -> str:
    values = (field_value(row.fields, name)[1] for row in rows)
    example = next((value for value in values if value not in (None, "")), "")
    shown = " ".join(str(example).split())
    if len(shown) > _EXAMPLE_CHARACTERS:
        shown = f"{shown[:_EXAMPLE_CHARACTERS]}..."
    return f"for example {shown!r}"
