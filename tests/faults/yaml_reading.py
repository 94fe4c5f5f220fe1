"""A second reader of YAML 1.2, to compare with: libyaml's parser and the core schema by the book.

Nothing of it is shared with the package, which parses with ruamel.yaml and resolves by itself.
"""

import re
from dataclasses import dataclass, field
from decimal import Decimal

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# YAML 1.2.2, section 10.3.2; the first rule that matches the whole scalar decides.
_CORE_SCHEMA = (
    (re.compile(r"null|Null|NULL|~|"), lambda text: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text[0] in "tT"),
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"0o[0-7]+"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text[2:], 16)),
    (
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
        lambda text: float(Decimal(text)),
    ),
    (re.compile(r"[-+]?\.(inf|Inf|INF)"), lambda text: float(text.replace(".", ""))),
    (re.compile(r"\.(nan|NaN|NAN)"), lambda text: float("nan")),
)


def core_schema(text):
    """The value of an unquoted scalar."""
    for pattern, value in _CORE_SCHEMA:
        if pattern.fullmatch(text):
            return value(text)
    return text


@dataclass
class Entry:
    """One key of a YAML and where it stands.

    Attributes:
        path: Its sections and itself.
        line: From 1, of the key.
        key_at: Index of the key in the text, first and behind the last character.
        value_at: The same of the value; None where the value is a mapping or list in block style.
        value: As read.
        last_line: Of the value.
    """

    path: tuple
    line: int
    key_at: tuple
    value_at: tuple | None
    value: object
    last_line: int

    @property
    def key(self):
        return self.path[-1]


@dataclass
class Reading:
    """What a text says.

    Attributes:
        value: Of the whole text.
        entries: All keys of mappings, in the order of the text.
        oddities: What YAML allows and a settings file must not have: tags, equal keys, keys that
            are no text, a second document.
    """

    value: object = None
    entries: list = field(default_factory=list)
    oddities: list = field(default_factory=list)


def read_text(text):
    """Read a text.

    Raises:
        ValueError: It is no YAML.
    """
    reading = Reading()
    starts = [0] + [match.end() for match in re.finditer("\r\n|[\n\r\x85\u2028\u2029]", text)]
    try:
        events = list(yaml.parse(text, Loader=_LOADER))
    except (yaml.YAMLError, ValueError, IndexError) as error:
        raise ValueError(str(error)) from error
    stream = iter(events)
    num_documents = 0
    anchors = {}
    last_line = 1

    def index_of(mark):
        return starts[mark.line] + mark.column

    def read(event, path):
        nonlocal last_line
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise ValueError(f"*{event.anchor} is unknown")
            return anchors[event.anchor]
        if event.tag is not None:
            reading.oddities.append(f"tag {event.tag}")
        if isinstance(event, yaml.ScalarEvent):
            value = core_schema(event.value) if event.style in (None, "") else event.value
            last_line = event.end_mark.line + 1
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
            while not isinstance(event_inside := next(stream), yaml.SequenceEndEvent):
                value.append(read(event_inside, (*path, len(value))))
        else:
            value = read_mapping(path)
        if event.anchor is not None:
            anchors[event.anchor] = value
        return value

    def read_mapping(path):
        found = {}
        while not isinstance(key_event := next(stream), yaml.MappingEndEvent):
            num_entries = len(reading.entries)
            key = read(key_event, path)
            value_event = next(stream)
            if not isinstance(key, str):
                reading.oddities.append(f"key {key!r}")
                key = str(key)
            value = read(value_event, (*path, key))
            if key in found:
                reading.oddities.append(f"{key} twice")
            found[key] = value
            is_block = getattr(value_event, "flow_style", None) is False
            at = (index_of(value_event.start_mark), index_of(value_event.end_mark))
            if isinstance(value_event, yaml.SequenceStartEvent) and not is_block:
                at = None
            reading.entries.insert(
                num_entries,
                Entry(
                    (*path, key),
                    key_event.start_mark.line + 1,
                    (index_of(key_event.start_mark), index_of(key_event.end_mark)),
                    None if is_block or isinstance(value, list | dict) else at,
                    value,
                    last_line,
                ),
            )
        return found

    for event in stream:
        if isinstance(event, yaml.DocumentStartEvent):
            num_documents += 1
            if num_documents > 1:
                reading.oddities.append("a second document")
            if event.version not in (None, (1, 2)):
                reading.oddities.append(f"version {event.version}")
        elif not isinstance(
            event, yaml.StreamStartEvent | yaml.DocumentEndEvent | yaml.StreamEndEvent
        ):
            reading.value = read(event, ())
    return reading
