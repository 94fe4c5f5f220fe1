"""YAML 1.2 text as a tree of values that know their line.

What could hide a mistake is refused: duplicate keys, tags, several documents, keys that are no
text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sft_kit.config.core_schema import Scalar, resolve
from sft_kit.config.yaml_faults import (
    LINE_BREAK,
    in_plain_words,
    is_noticed_late,
    key_of_line,
    line_to_repair,
)
from sft_kit.errors import ConfigError, Problem

MAX_BYTES = 250_000
MAX_DEPTH = 20
MAX_NODES = 10_000
MAX_KEY_CHARACTERS = 1_024
_MAX_SHOWN = 60
_SAVE_AS_UTF8 = "save the file as UTF-8"
# Line ends in YAML 1.1 and by the parser, text in YAML 1.2: nobody knows what a reader makes of it.
_ODD_LINE_END = re.compile("[\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Node:
    """One value and where it stands.

    Attributes:
        value: A scalar, a list of nodes, or a mapping from text to nodes.
        where: `file:line` of the key, or of the value itself in a list.
        written: A scalar's own characters, for messages.
        fault: Why a number can't be used as written; empty when it can.
        size: Number of nodes in the tree when every alias is written out.
    """

    value: "Scalar | list[Node] | dict[str, Node]"
    where: str
    written: str = ""
    fault: str = ""
    size: int = 1

    def plain(self) -> object:
        """The value without its places, aliases written out."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML file: its top mapping, and what is wrong with it that did not stop the reading."""

    root: Node
    problems: list[Problem]


def read_yaml(path: Path) -> Document:
    """Read one YAML file whose top is a mapping.

    Raises:
        ConfigError: The file can't be read at all: missing, not UTF-8, broken syntax, an alias
            bomb, no mapping.
    """
    name = display(path)
    reader = _Reader(name, _read_text(path, name))
    root = reader.read_document()
    if root.value is None:
        root = replace(root, value={})
    if not isinstance(root.value, dict):
        raise _refusal(root.where, "found no settings, accepts `section:` with `key: value` lines")
    return Document(root, reader.problems)


def read_value(text: str, where: str) -> Node:
    """Read the value of a command-line override.

    Quotes, `[...]` and `{...}` are YAML; anything else is one plain scalar, taken whole, so that `
    #` or `: ` in a path survive.

    Raises:
        ConfigError: Broken syntax inside quotes or brackets.
    """
    text = text.strip()
    if text[:1] not in ("[", "{", '"', "'"):
        return scalar(text, where)
    reader = _Reader(where, text, has_lines=False)
    root = reader.read_document()
    if reader.problems:
        raise ConfigError(f"{where}: not a valid value", reader.problems)
    return root


def scalar(written: str, where: str) -> Node:
    """Resolve an unquoted scalar by the core schema of YAML 1.2."""
    value, fault = resolve(written)
    return Node(value, where, written, fault)


def display(path: Path) -> str:
    """How messages name a file: relative to the current folder when inside it, else in full."""
    absolute = path.absolute()
    folder = Path.cwd()
    shown = absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute
    return shown.as_posix()


def _read_text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise _refusal(name, f"can't be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        found = f"found more than {MAX_BYTES:,} bytes, accepts a settings file"
        raise _refusal(f"{name}:1", found, "name the YAML of a recipe")
    if b"\0" in data and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise _refusal(f"{name}:{line}", "found a NUL byte, accepts UTF-8 text", _SAVE_AS_UTF8)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"found byte 0x{data[error.start]:02x}, accepts UTF-8 text"
        raise _refusal(f"{name}:{line}", found, _SAVE_AS_UTF8) from error
    if odd := _ODD_LINE_END.search(text):
        line = text.count("\n", 0, odd.start()) + 1
        code = f"{ord(odd[0]):04x}"
        found = f"found the invisible line end U+{code.upper()}, accepts \\n and \\r\\n"
        raise _refusal(f"{name}:{line}", found, f'remove it, or write "\\u{code}" in quotes')
    return text


def _refusal(where: str, message: str, todo: str = "") -> ConfigError:
    return ConfigError(f"{where.split(':')[0]}: can't be used", [Problem(where, "", message, todo)])


class _Mark(Protocol):
    line: int
    column: int


class _Event(Protocol):
    """The parts of ruamel's parser events that are read here; which exist depends on the kind."""

    start_mark: _Mark
    end_mark: _Mark
    anchor: str | None
    ctag: object
    value: str
    style: str | None
    version: tuple[int, int] | None


@dataclass(slots=True)
class _Reader:
    """Turns parser events into nodes; holds what one file needs while it is read."""

    name: str
    text: str
    has_lines: bool = True
    problems: list[Problem] = field(default_factory=list)
    anchors: dict[str, Node] = field(default_factory=dict)
    line: int = 1
    first_line: int = 0
    num_nodes: int = 0
    path: tuple[str, ...] = ()
    long_quote: tuple[int, int] = (0, 0)
    events: Iterator[tuple[str, _Event]] = field(init=False)

    def __post_init__(self) -> None:
        self.events = self._parse()

    def read_document(self) -> Node:
        root = Node(None, self._place())
        num_documents = 0
        for kind, event in self.events:
            if kind == "DocumentStart":
                num_documents += 1
                self._check_document(num_documents, event)
            elif kind not in ("StreamStart", "DocumentEnd", "StreamEnd"):
                root = self._node(kind, event, (), 0)
        return root

    def _check_document(self, number: int, event: _Event) -> None:
        self.path = ()
        if number > 1:
            raise self._stop("found a second document, accepts one", "remove the line `---`")
        if event.version not in (None, (1, 2)):
            raise self._stop("found another YAML version, accepts 1.2", "remove the line `%YAML`")

    def _parse(self) -> Iterator[tuple[str, _Event]]:
        """The parser's events by kind, with its errors turned into one clear message."""
        parser = YAML(typ="safe", pure=True)
        try:
            for event in parser.parse(self.text):
                self.line = event.start_mark.line + 1
                kind = type(event).__name__.removesuffix("Event")
                if kind == "Scalar" and event.style in ("'", '"'):
                    self.long_quote = (self.line, event.end_mark.line + 1)
                yield kind, event
        except MarkedYAMLError as error:
            reason = str(error.problem or error.context)
            self._place_error(reason, error.problem_mark, error.context_mark)
            raise self._syntax_error(reason) from error
        except YAMLError as error:
            position = getattr(error, "position", 0)
            self.line = len(LINE_BREAK.findall(self.text[:position])) + 1
            raise self._syntax_error(str(error).split("\n")[0]) from error
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            # The parser lets a few of Python's own errors through, for example on "\U99999999".
            raise self._syntax_error(str(error)) from error

    def _place_error(self, reason: str, noticed: _Mark | None, opened: _Mark | None) -> None:
        lines = LINE_BREAK.split(self.text)
        mark = noticed or opened
        if mark and opened and is_noticed_late(reason, lines[mark.line]):
            mark = opened
        if mark:
            self.line = line_to_repair(lines[: mark.line + 1], mark.column, self.long_quote)
        if self.num_nodes == 1 and reason.startswith("expected '<document start>'"):
            self.line = self.first_line

    def _syntax_error(self, reason: str) -> ConfigError:
        lines = LINE_BREAK.split(self.text)
        num_lines = len(LINE_BREAK.split(self.text.rstrip("\r\n")))
        self.line = min(self.line, num_lines)
        self.path = key_of_line(lines[: self.line])
        return self._stop(*in_plain_words(reason, lines, self.line))

    def _stop(self, message: str, todo: str = "") -> ConfigError:
        problem = Problem(self._place(), ".".join(self.path), message, todo)
        return ConfigError(f"{self.name}: can't be used", [problem])

    def _too_many(self) -> ConfigError:
        return self._stop(f"found more than {MAX_NODES:,} values, accepts a settings file")

    def _place(self) -> str:
        return f"{self.name}:{self.line}" if self.has_lines else self.name

    def _node(self, kind: str, event: _Event, path: tuple[str, ...], depth: int) -> Node:
        where = self._place()
        self.path = path
        self.num_nodes += 1
        self.first_line = self.first_line or self.line
        if self.num_nodes > MAX_NODES:
            raise self._too_many()
        if kind == "Alias":
            return self._alias(event.anchor or "", where)
        if event.ctag is not None:
            found = f"found the tag {str(event.ctag)[:_MAX_SHOWN]}, accepts values without tags"
            raise self._stop(found)
        if depth > MAX_DEPTH:
            raise self._stop(f"found more than {MAX_DEPTH} levels, accepts section and key")
        if kind == "Scalar":
            quoted = event.style is not None
            node = Node(event.value, where, event.value) if quoted else scalar(event.value, where)
        elif kind == "SequenceStart":
            node = self._sequence(where, path, depth)
        else:
            node = self._mapping(where, path, depth)
        if node.size > MAX_NODES:
            raise self._too_many()
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, anchor: str, where: str) -> Node:
        if anchor not in self.anchors:
            anchor = anchor[:_MAX_SHOWN]
            raise self._stop(f"found *{anchor} without a finished &{anchor} above it")
        return replace(self.anchors[anchor], where=where)

    def _sequence(self, where: str, path: tuple[str, ...], depth: int) -> Node:
        items: list[Node] = []
        size = 1
        for kind, event in self.events:
            if kind == "SequenceEnd":
                break
            items.append(self._node(kind, event, (*path, str(len(items))), depth + 1))
            size += items[-1].size
        return Node(items, where, size=size)

    def _mapping(self, where: str, path: tuple[str, ...], depth: int) -> Node:
        entries: dict[str, Node] = {}
        size = 1
        for kind, event in self.events:
            if kind == "MappingEnd":
                break
            key = self._node(kind, event, path, depth + 1)
            node = self._node(*next(self.events), (*path, key.written), depth + 1)
            size += node.size
            if self._is_good_key(key, path, entries):
                entries[key.written] = replace(node, where=key.where)
        return Node(entries, where, size=size)

    def _is_good_key(self, key: Node, path: tuple[str, ...], entries: dict[str, Node]) -> bool:
        name = ".".join((*path, key.written[:MAX_KEY_CHARACTERS]))
        if isinstance(key.value, list | dict):
            self.problems.append(Problem(key.where, ".".join(path), "found a key that is no text"))
        elif len(key.written) > MAX_KEY_CHARACTERS:
            message = f"found a key of {len(key.written):,} characters"
            accepted = f"{message}, accepts {MAX_KEY_CHARACTERS:,} at most"
            self.problems.append(Problem(key.where, ".".join(path), accepted))
        elif not isinstance(key.value, str) or key.fault:
            message = f"found the key {key.written or 'null'}, accepts text"
            self.problems.append(Problem(key.where, name, message, "put the key in quotes"))
        elif key.written in entries:
            line = entries[key.written].where.rpartition(":")[2]
            first = f"; the first is in line {line}" if self.has_lines else ""
            message = f"found a second time{first}"
            self.problems.append(Problem(key.where, name, message, "keep one of them"))
        else:
            return True
        return False
