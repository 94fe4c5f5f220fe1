"""Data files of every reader and container with damaged rows, each knowing which rows are bad."""

import csv
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [
    "Wasser",
    "你好世界",
    "é",
    "🙂",
    '"',
    "\\",
    "{",
    "}",
    "[",
    "]",
    ",",
    ": ",
    "007",
    "NA",
    "'",
    "//",
]


def some_text(draw, number):
    """A text that names its row, with many bytes beyond ASCII, so that UTF-8 stays recognisable."""
    words = "".join(draw.choices(WORDS, k=draw.randrange(1, 8)))
    return f"今天天气很好{words}row{number}end"


@dataclass(frozen=True)
class Reader:
    """Rows of one shape.

    Attributes:
        loader: Which function reads them.
        row: Makes the row of a number.
        texts: Fields that must hold a text, also when one is missing.
        is_flat: A table can hold the rows.
    """

    loader: str
    row: Callable
    texts: tuple
    is_flat: bool = True


def _flat(*names, **others):
    def row(draw, number):
        texts = {name: some_text(draw, number) for name in names}
        return texts | {key: make(number) for key, make in others.items()}

    return row


def _chat(field, role_key, text_key, roles):
    def row(draw, number):
        turns = 2 * draw.randrange(1, 4)
        messages = [
            {role_key: roles[turn % 2], text_key: some_text(draw, number)} for turn in range(turns)
        ]
        return {"id": f"x{number}", field: messages}

    return row


def _ranked(draw, number):
    answers = [f"{some_text(draw, number)} {place}" for place in range(3)]
    return {"prompt": some_text(draw, number), "answers": answers}


def _pair_of_answers(draw, number):
    text = some_text(draw, number)
    return {"prompt": text, "chosen": f"{text} yes", "rejected": f"{text} no"}


READERS = {
    "prompt-completion": Reader(
        "conversations", _flat("prompt", "completion"), ("prompt", "completion")
    ),
    "alpaca": Reader(
        "conversations",
        _flat("instruction", "output", input=lambda number: ""),
        ("instruction", "output"),
    ),
    "sharegpt": Reader(
        "conversations",
        _chat("items", "from", "value", ("human", "gpt")),
        ("items",),
        is_flat=False,
    ),
    "messages": Reader(
        "conversations",
        _chat("messages", "role", "content", ("user", "assistant")),
        ("messages",),
        is_flat=False,
    ),
    "text": Reader("conversations", _flat("text"), ("text",)),
    "labelled": Reader(
        "labelled", _flat("text", label=lambda number: f"class{number % 3}"), ("text", "label")
    ),
    "chosen-rejected": Reader("preference", _pair_of_answers, ("chosen", "rejected")),
    "ranked": Reader("preference", _ranked, ("prompt", "answers"), is_flat=False),
    "pairs": Reader("pairs", _flat("source", "target"), ("source", "target")),
    "corpus": Reader("texts", _flat("text"), ("text",)),
    "prompts": Reader("prompts", _flat("prompt", "completion"), ("prompt",)),
}


def set_text(row, reader, draw, value):
    """Replace a text that the row must have, be it inside of a message."""
    name = draw.choice(reader.texts)
    if isinstance(row[name], list) and isinstance(row[name][0], dict):
        turn = draw.choice(row[name])
        turn["value" if "value" in turn else "content"] = value
    elif isinstance(row[name], list):
        row[name][draw.randrange(len(row[name]))] = value
    else:
        row[name] = value
    return row


def _without_field(row, reader, draw):
    del row[draw.choice(reader.texts)]
    return row


# Damage to what a row says.
VALUES = {
    "null": lambda row, reader, draw: set_text(row, reader, draw, None),
    "object": lambda row, reader, draw: set_text(row, reader, draw, {"a": "x"}),
    "empty text": lambda row, reader, draw: set_text(row, reader, draw, ""),
    "blank text": lambda row, reader, draw: set_text(row, reader, draw, " \t\u3000"),
    "NUL in a text": lambda row, reader, draw: set_text(row, reader, draw, "a\0b"),
    "lone surrogate": lambda row, reader, draw: set_text(row, reader, draw, "a\ud83db"),
    "missing field": _without_field,
}
IN_PARQUET = ("null", "empty text", "blank text", "NUL in a text")


def _turns(row):
    return row.get("items") or row["messages"]


def _role_key(row):
    return "from" if "items" in row else "role"


# Damage to who says what, which only chats have.
ROLES = {
    "unknown role": lambda row: _turns(row)[0].update({_role_key(row): "narrator"}),
    "null role": lambda row: _turns(row)[-1].update({_role_key(row): None}),
    "missing role": lambda row: _turns(row)[-1].pop(_role_key(row)),
    "same role twice": lambda row: _turns(row).insert(0, dict(_turns(row)[0])),
    "answer first": lambda row: _turns(row).reverse(),
    "no answer": lambda row: _turns(row).pop(),
    "no turns": lambda row: _turns(row).clear(),
    "a turn that is text": lambda row: _turns(row).append("text"),
}
# Damage to how a row is written down.
SYNTAX = {
    "cut off": lambda text, draw: text[: draw.randrange(1, len(text))],
    "no last brace": lambda text, draw: text[:-1],
    "one brace more": lambda text, draw: text + "}",
    "no quote": lambda text, draw: text.replace('": "', '": ', 1),
    "no colon": lambda text, draw: text.replace('": ', '" ', 1),
    "NaN": lambda text, draw: text[:-1] + ', "score": NaN}',
    "key twice": lambda text, draw: text[:-1] + ', "id": 1, "id": 2}',
    "control character": lambda text, draw: text.replace('": "', '": "\x01', 1),
    "NUL byte": lambda text, draw: text.replace('": "', '": "\0', 1),
    "Latin-1 byte": lambda text, draw: text.replace('": "', '": "\udce9', 1),
    "GBK bytes": lambda text, draw: text.replace('": "', '": "\udcc4\udce3', 1),
    "not an object": lambda text, draw: draw.choice(["17", "null", '"text"', '["a", 2]']),
    "no JSON at all": lambda text, draw: draw.choice(["oops", "# comment", "'a': 1"]),
    "nested too deeply": lambda text, draw: text[:-1] + ', "n": ' + "[" * 9_999 + "]" * 9_999 + "}",
    "number of 5,000 digits": lambda text, draw: text[:-1] + ', "n": ' + "7" * 5_000 + "}",
}
CELLS = {
    "field too many": lambda cells, write: write([*cells, "more"]),
    "field too few": lambda cells, write: write(cells[:-1]) or '""',
    "quote not closed": lambda cells, write: '"open' + write(cells)[0:0] + "…",
    "text after a quote": lambda cells, write: '"a"b' + write(["", *cells[1:]]),
    "empty cell": lambda cells, write: write(["", *cells[1:]]),
    "blank cell": lambda cells, write: write([" ", *cells[1:]]),
    "NUL byte in a cell": lambda cells, write: write(["a\0", *cells[1:]]),
    "Latin-1 byte in a cell": lambda cells, write: write(["caf\udce9", *cells[1:]]),
}
HARMLESS = ("byte order mark", "CR LF", "blank lines", "another field", "big number")


@dataclass
class Damaged:
    """A file, the lines of its bad rows, and the numbers of its good ones."""

    name: str
    content: bytes
    bad_lines: set
    good: list


def join_lines(pieces, bad, *, header="", between="\n", end="\n"):
    """Put the pieces under each other and note the line on which each bad one starts."""
    text, lines = header, set()
    for place, piece in enumerate(pieces):
        text += between if place else ""
        if place in bad:
            lines.add(text.count("\n") + 1)
        text += piece
    return (text + end).encode("utf-8", errors="surrogateescape"), lines


def _rows(reader, draw):
    number = draw.randrange(24, 40)
    bad = set(draw.sample(range(number), k=draw.randrange(1, 5)))
    rows = [reader.row(draw, place) for place in range(number)]
    return rows, bad, [place for place in range(number) if place not in bad]


def _damage_row(row, kind, reader, draw):
    if kind in VALUES:
        return VALUES[kind](row, reader, draw)
    if kind in ROLES:
        ROLES[kind](row)
    if kind == "another field":
        row["more"] = "x"
    if kind == "big number":
        row["more"] = 10**300
    return row


def json_file(reader, kind, draw, suffix):
    """Write rows as JSON Lines, or as a list with a row per line."""
    rows, bad, good = _rows(reader, draw)
    if kind in HARMLESS:
        bad, good = set(), list(range(len(rows)))
    pieces = []
    for place, row in enumerate(rows):
        if place in bad or kind in HARMLESS:
            row = _damage_row(row, kind, reader, draw)
        text = json.dumps(row, ensure_ascii=kind == "lone surrogate")
        pieces.append(SYNTAX[kind](text, draw) if place in bad and kind in SYNTAX else text)
    between = {"CR LF": "\r\n", "blank lines": "\n \n\n"}.get(kind, "\n")
    if suffix == "json":
        content, lines = join_lines(
            pieces, bad, header="[\n", between="," + between, end=between + "]\n"
        )
    else:
        content, lines = join_lines(pieces, bad, between=between)
    mark = b"\xef\xbb\xbf" if kind == "byte order mark" else b""
    return Damaged(f"a.{suffix}", mark + content, lines, good)


def table_file(reader, kind, draw, suffix):
    """Write rows as a table with a header; fields are quoted where they must be."""
    delimiter = "," if suffix == "csv" else "\t"

    def write(cells):
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=delimiter, lineterminator="\n").writerow(cells)
        return out.getvalue()[:-1]

    rows, bad, good = _rows(reader, draw)
    if kind in HARMLESS:
        bad, good = set(), list(range(len(rows)))
    names = list(rows[0])
    pieces = []
    for place, row in enumerate(rows):
        cells = [str(row[name]).replace('"', "'") for name in names]
        pieces.append(CELLS[kind](cells, write) if place in bad else write(cells))
    between = {"CR LF": "\r\n", "blank lines": "\n\n\n"}.get(kind, "\n")
    content, lines = join_lines(
        pieces, bad, header=write(names) + between, between=between, end=between
    )
    mark = b"\xef\xbb\xbf" if kind == "byte order mark" else b""
    return Damaged(f"a.{suffix}", mark + content, lines, good)


def parquet_file(reader, kind, draw, suffix):
    """Write rows as Parquet, where places are numbers of rows."""
    rows, bad, good = _rows(reader, draw)
    for place in bad:
        _damage_row(rows[place], kind, reader, draw)
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return Damaged(f"a.{suffix}", out.getvalue(), {place + 1 for place in bad}, good)


def _cases():
    for name, reader in READERS.items():
        for suffix in ("jsonl", "json"):
            for kind in (*VALUES, *SYNTAX, *HARMLESS):
                yield name, suffix, kind, json_file
            if name in ("messages", "sharegpt"):
                for kind in ROLES:
                    yield name, suffix, kind, json_file
        for kind in IN_PARQUET:
            yield name, "parquet", kind, parquet_file
        for suffix in ("csv", "tsv"):
            for kind in (*CELLS, *HARMLESS[:3]) if reader.is_flat else ():
                # With one column a record has no fields to be short of.
                # A .tsv of labelled texts may have quotes that are text: the row is a good one.
                is_no_damage = (name, suffix, kind) == ("labelled", "tsv", "text after a quote")
                if not (kind == "field too few" and len(reader.texts) == 1) and not is_no_damage:
                    yield name, suffix, kind, table_file


CASES = tuple(_cases())
"""Reader, suffix, kind of damage and what writes such a file."""


def damaged_file(case, seed):
    """Make the file of a case."""
    name, suffix, kind, write = case
    draw = random.Random(f"{name} {suffix} {kind} {seed}")
    return write(READERS[name], kind, draw, suffix)
