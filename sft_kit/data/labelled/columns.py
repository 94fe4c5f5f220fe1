"""Which columns hold the text, its pair and the label: as the settings say, or by well-known names.

To let `auto` know another name, add it to a table below. Names compare without case.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from sft_kit.config.suggestions import did_you_mean, nearest, quoted_choice
from sft_kit.data.rows import RawRow
from sft_kit.errors import FormatError, Problem
from sft_kit.settings import Column, LabelledDataSettings

TEXT_NAMES: tuple[tuple[str, ...], ...] = (
    ("text", "sentence", "content", "review", "comment", "utterance", "tweet",
     "sentence1", "sentence_a", "text_a", "text1", "premise", "question1"),
    ("question", "query", "body", "document", "passage", "phrase", "post", "message"),
    ("title", "headline", "summary", "description", "abstract"),
)  # fmt: skip
"""Names of the text; a name of an earlier line comes first, names of one line are rivals."""

PAIR_NAMES: tuple[tuple[str, str], ...] = (
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("text", "text_pair"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
)
"""Names of the two texts of a pair; both must be there."""

LABEL_NAMES: tuple[tuple[str, ...], ...] = (
    ("label", "labels", "class", "category", "target", "sentiment", "polarity"),
    ("emotion", "intent", "topic", "gold_label", "tag", "tags", "stars", "rating", "score"),
)
"""Names of the label, in lines of rivals like those of the text."""

DESCRIPTION_NAMES = ("label_desc", "label_des", "label_description", "label_name", "label_text")
"""Names of a column that says in words what the label means; it names the class."""

KNOWN_TEXTS = frozenset(name for line in (*TEXT_NAMES, *PAIR_NAMES) for name in line)
KNOWN_LABELS = frozenset((*(name for line in LABEL_NAMES for name in line), *DESCRIPTION_NAMES))

MAX_LABEL_CHARACTERS = 40
MAX_CLASSES_TO_DETECT = 50
_EXAMPLE_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the fields that are read; the columns of a table without a header are "1", "2", ...

    Attributes:
        text: Fields of the text, joined by a blank.
        text_pair: Fields of the second text of a pair; empty where there is none.
        label: Field of the label, or several that are 0 or 1; empty where there is none.
        are_flags: The label fields are 0 or 1, and the class is called like the field.
        description: Field that names the class; None where the label names itself.
        group: Field whose equal values stay together; None where there is none.
    """

    text: tuple[str, ...]
    text_pair: tuple[str, ...] = ()
    label: tuple[str, ...] = ()
    are_flags: bool = False
    description: str | None = None
    group: str | None = None

    def describe(self) -> str:
        """Say what is read from where."""
        parts = [f"the text from {_joined(self.text)}"]
        if self.text_pair:
            parts.append(f"the second text from {_joined(self.text_pair)}")
        if self.label:
            parts.append(f"the label from {_joined(self.label)}")
        if self.description:
            parts[-1] += f" with its name from {_title(self.description)}"
        if self.group:
            parts.append(f"the group from {_title(self.group)}")
        return f"read {', '.join(parts)}"


def _joined(names: Sequence[str]) -> str:
    return " and ".join(map(_title, names))


def _title(name: str) -> str:
    """A column of a table without a header is called by its number."""
    return f"column {name}" if name.isdecimal() else repr(name)


@dataclass(slots=True)
class _Search:
    """What is known of the columns of one file while they are told apart."""

    rows: Sequence[RawRow]
    names: list[str]
    taken: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return self.rows[0].where.file

    def free(self) -> list[str]:
        return [name for name in self.names if name not in self.taken]

    def take(self, names: Collection[str]) -> None:
        self.taken.update(names)


def find_columns(
    rows: Sequence[RawRow], settings: LabelledDataSettings, needs_labels: bool = True
) -> Columns:
    """Tell which fields of a file hold the text, its pair, the label and the group.

    Args:
        rows: All good rows of one file; at least one.
        settings: The `data` section.
        needs_labels: The label must be there, and the group where one is named.

    Raises:
        FormatError: A column that the settings name is not there, or `auto` finds none or several;
            lists the columns with an example each.
    """
    search = _Search(rows, list(dict.fromkeys(name for row in rows for name in row.fields)))
    label = _given(search, "label", settings.label, needs_labels)
    _check_number_of_labels(search, settings)
    group = _given(search, "group", settings.group, needs_labels)
    pair = _given(search, "text_pair", settings.text_pair)
    text = _given(search, "text", settings.text)
    if not label and settings.label == "auto":
        label = _by_rank(search, "label", LABEL_NAMES)
    if not text and settings.text == "auto":
        text, known_pair = _known_text(search, settings)
        pair = pair or known_pair
    elif settings.text_pair == "auto":
        pair = _partner(search, text)
    description = _description(search, label) if _may_be_described(settings) else None
    text, label = _by_what_is_left(search, settings, text, label, needs_labels)
    if not text and settings.text == "auto":
        taken = f", and data.group takes {_title(group[0])}" if group else ""
        search.unknown.setdefault("text", f"no column has a known name of a text{taken}")
    if not label and settings.label == "auto" and needs_labels:
        flags = ", and columns of 0 and 1 must be listed" if settings.multi_label else ""
        search.unknown.setdefault("label", f"no column has a known name of a label{flags}")
    if not needs_labels:
        search.unknown.pop("label", None)
    _refuse(search)
    are_flags = settings.multi_label and isinstance(settings.label, list)
    return Columns(text, pair, label, are_flags, description, group[0] if group else None)


def _given(
    search: _Search, key: str, value: Column | list[Column] | None, is_needed: bool = True
) -> tuple[str, ...]:
    """Look up the columns that a setting names or numbers; note those that aren't there."""
    if value is None or value == "auto":
        return ()
    found = []
    for column in value if isinstance(value, list) else [value]:
        name = _look_up(column, search.names)
        if name is None and is_needed:
            search.problems.append(_missing(search, key, column))
        elif name is not None:
            found.append(name)
    search.take(found)
    return tuple(found)


def _check_number_of_labels(search: _Search, settings: LabelledDataSettings) -> None:
    if isinstance(settings.label, list) and len(settings.label) > 1 and not settings.multi_label:
        message = f"found {len(settings.label)} columns, accepts one"
        todo = "set data.multi_label=true where each of them is 0 or 1"
        search.problems.append(Problem(search.file, "data.label", message, todo))


def _look_up(column: Column, names: Sequence[str]) -> str | None:
    if isinstance(column, str) and column in names:
        return column
    try:
        number = int(column)
    except ValueError:
        return None
    return names[number - 1] if 1 <= number <= len(names) else None


def _missing(search: _Search, key: str, column: Column) -> Problem:
    listed = ", ".join(map(repr, search.names[:20]))
    if isinstance(column, int):
        message = f"found no column {column}, the file has {len(search.names)}: {listed}"
        return Problem(search.file, f"data.{key}", message, "columns are numbered from 1")
    todo = did_you_mean(nearest(column, search.names)) or "name one of them"
    if key == "group":
        todo += " or set data.group=null"
    if search.names == [str(number) for number in range(1, len(search.names) + 1)]:
        todo = "does the file begin with names? then set data.header=true"
    message = f"found no column {column!r}, accepts {listed}"
    return Problem(search.file, f"data.{key}", message, todo)


def _by_rank(search: _Search, key: str, lines: Sequence[Sequence[str]]) -> tuple[str, ...]:
    free = search.free()
    for line in lines:
        rivals = [name for name in free if name.strip().casefold() in line]
        if len(rivals) > 1:
            search.unknown[key] = f"{quoted_choice(rivals)} may hold the {key}"
            return ()
        if rivals:
            search.take(rivals)
            return (rivals[0],)
    return ()


def _known_text(
    search: _Search, settings: LabelledDataSettings
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the text by its name, and its partner where both are there."""
    folded = {name.strip().casefold(): name for name in search.free()}
    pairs = [pair for pair in PAIR_NAMES if set(pair) <= folded.keys()]
    if len(pairs) == 1:
        first, second = folded[pairs[0][0]], folded[pairs[0][1]]
        search.take((first, second))
        return (first,), (second,) if settings.text_pair == "auto" else ()
    if pairs:
        listed = " or ".join(f"{_joined(pair)}" for pair in pairs)
        search.unknown["text"] = f"{listed} may be the two texts of a pair"
        return (), ()
    return _by_rank(search, "text", TEXT_NAMES), ()


def _partner(search: _Search, text: tuple[str, ...]) -> tuple[str, ...]:
    """Find the second text that belongs to the name of the first."""
    first = text[0].strip().casefold() if len(text) == 1 else ""
    wanted = {pair[1] for pair in PAIR_NAMES if pair[0] == first}
    found = [name for name in search.free() if name.strip().casefold() in wanted]
    search.take(found[:1])
    return tuple(found[:1])


def _by_what_is_left(
    search: _Search,
    settings: LabelledDataSettings,
    text: tuple[str, ...],
    label: tuple[str, ...],
    needs_labels: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Take the only column that is left, or tell text and label apart by what is in them."""
    free = search.free()
    finds_text = settings.text == "auto" and not text and "text" not in search.unknown
    finds_label = settings.label == "auto" and not label and "label" not in search.unknown
    if len(free) == 1 and finds_text and (label or not needs_labels):
        return (free[0],), label
    if len(free) == 1 and finds_label and text and needs_labels:
        return text, (free[0],)
    if len(free) == 2 and finds_text and finds_label:
        likely = [name for name in free if looks_like_labels(_values(search.rows, name))]
        if len(likely) == 1:
            (other,) = set(free) - set(likely)
            return (other,), (likely[0],)
    return text, label


def _values(rows: Sequence[RawRow], name: str) -> list[str]:
    return [str(row.fields.get(name, "")) for row in rows]


def looks_like_labels(values: Sequence[str]) -> bool:
    """Tell a column of labels from one of texts: few different short values without blanks.

    Args:
        values: All values of a column; one in twenty may be anything.
    """
    stripped = [value.strip() for value in values]
    short = [
        value
        for value in stripped
        if value and len(value) <= MAX_LABEL_CHARACTERS and not any(map(str.isspace, value))
    ]
    limit = min(MAX_CLASSES_TO_DETECT, max(2, len(values) // 3))
    return bool(short) and len(short) >= 0.95 * len(values) and len(set(short)) <= limit


def _may_be_described(settings: LabelledDataSettings) -> bool:
    """A label that the settings name, in either sense, is taken as it is."""
    return settings.label == "auto" and not settings.label_names and not settings.multi_label


def _description(search: _Search, label: tuple[str, ...]) -> str | None:
    found = [name for name in search.free() if name.strip().casefold() in DESCRIPTION_NAMES]
    if not label or len(found) != 1:
        return None
    search.take(found)
    return found[0]


def _refuse(search: _Search) -> None:
    if search.problems:
        raise FormatError(f"{search.file}: the columns can't be found:", search.problems)
    if not search.unknown:
        return
    keys = " and ".join(f"data.{key}" for key in search.unknown)
    why = "; ".join(search.unknown.values())
    raise FormatError(
        f"{search.file}: the columns can't be told: {why} (set {keys} to a column's name, or its "
        "number from 1); the file has:",
        [_column_as_problem(search, number) for number in range(1, len(search.names) + 1)],
    )


def _column_as_problem(search: _Search, number: int) -> Problem:
    name = search.names[number - 1]
    values = (row.fields.get(name) for row in search.rows)
    example = next((value for value in values if value not in (None, "")), "")
    shown = " ".join(str(example).split())
    if len(shown) > _EXAMPLE_CHARACTERS:
        shown = f"{shown[:_EXAMPLE_CHARACTERS]}..."
    title = f"column {number}" if name == str(number) else f"column {number} {name!r}"
    return Problem("", title, f"for example {shown!r}")
