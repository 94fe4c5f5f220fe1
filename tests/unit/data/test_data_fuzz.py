"""Damaged files by the hundred: every bad line is named, every good row comes through."""

import csv
import io
import json
import random
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_kit.data.splits import load_conversations
from sft_kit.errors import DataError
from sft_kit.settings import DataSettings

FILES_PER_KIND = 15
WORDS = [
    "hello",
    "Wasser",
    "你好",
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
    "\n",
    "007",
    "\u2028",
]
WORDS += ["NA", "</s>", "'", '{"prompt": 1}', "//", "\t", "1e5", "\u00a0", "?"]


def some_text(draw, words=WORDS):
    text = "".join(draw.choices(words, k=draw.randrange(1, 12)))
    return text if text.strip() else "word"


def pair_row(draw):
    return {"prompt": some_text(draw), "completion": some_text(draw), "id": draw.randrange(99)}


def alpaca_row(draw):
    return {"instruction": some_text(draw), "input": "", "output": some_text(draw)}


def sharegpt_row(draw):
    values = [some_text(draw) for _ in range(2 * draw.randrange(1, 4))]
    roles = ("human", "gpt")
    return {"items": [{"from": roles[n % 2], "value": value} for n, value in enumerate(values)]}


def messages_row(draw):
    values = [some_text(draw) for _ in range(2 * draw.randrange(1, 4))]
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": value} for n, value in enumerate(values)]
    return {"id": "x", "messages": turns}


def texts_of(row):
    """Return the texts of a good row in the order they are said."""
    for name, field in (("items", "value"), ("messages", "content")):
        if name in row:
            return [turn[field] for turn in row[name]]
    first, second = ("prompt", "completion") if "prompt" in row else ("instruction", "output")
    return [row[first], row[second]]


def set_text(row, draw, value):
    """Replace one of the texts that a row must have."""
    for name, field in (("items", "value"), ("messages", "content")):
        if name in row:
            draw.choice(row[name])[field] = value
            return row
    row[draw.choice([name for name in row if name not in {"id", "input"}])] = value
    return row


def with_turns(row, change):
    turns = row.get("items") or row["messages"]
    change(turns, "from" if "items" in row else "role")
    return row


def drop_field(row, draw):
    names = [name for name in row if name not in {"id", "input"}]
    del row[draw.choice(names)]
    return row


# Damage to what a row says. Everything but the roles can happen in any format.
VALUES = {
    "null": lambda row, draw: set_text(row, draw, None),
    "number": lambda row, draw: set_text(row, draw, 7),
    "true": lambda row, draw: set_text(row, draw, True),
    "object": lambda row, draw: set_text(row, draw, {"text": "x"}),
    "empty": lambda row, draw: set_text(row, draw, ""),
    "blank": lambda row, draw: set_text(row, draw, " \n\t\u3000"),
    "escaped NUL": lambda row, draw: set_text(row, draw, "a\0b"),
    "lone surrogate": lambda row, draw: set_text(row, draw, "a\udc80b"),
    "missing field": drop_field,
}
TURNS = {
    "unknown role": lambda row, draw: with_turns(row, lambda t, k: t[0].update({k: "narrator"})),
    "null role": lambda row, draw: with_turns(row, lambda t, k: t[-1].update({k: None})),
    "missing role": lambda row, draw: with_turns(row, lambda t, k: t[-1].pop(k)),
    "same role twice": lambda row, draw: with_turns(row, lambda t, k: t.insert(0, dict(t[0]))),
    "answer first": lambda row, draw: with_turns(row, lambda t, k: t.reverse()),
    "no answer": lambda row, draw: with_turns(row, lambda t, k: t.pop()),
    "no turns": lambda row, draw: with_turns(row, lambda t, k: t.clear()),
    "turn is text": lambda row, draw: with_turns(row, lambda t, k: t.append("text")),
}
# Damage to how it is written down; the text has no line ends of its own.
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
}
CELLS = {
    "field too many": lambda cells, draw: quoted([*cells, "more"]),
    "field too few": lambda cells, draw: quoted(cells[:1]),
    "quote not closed": lambda cells, draw: '"open,' + "x",
    "text after a quote": lambda cells, draw: '"a"b,c',
    "empty cell": lambda cells, draw: quoted(["a", ""]),
    "blank cell": lambda cells, draw: quoted([" ", "b"]),
    "NUL byte in a cell": lambda cells, draw: quoted(["a\0", "b"]),
    "Latin-1 byte in a cell": lambda cells, draw: quoted(["a", "caf\udce9"]),
}
PARQUET = {name: VALUES[name] for name in ("null", "empty", "blank", "escaped NUL")}


@dataclass
class Damaged:
    name: str
    content: bytes
    bad_lines: set[int]
    good: list[list[str]]


def join_lines(pieces, bad, *, header=(), between="\n", end=""):
    """Put the pieces under each other and note the line on which each bad one starts."""
    text, lines = "".join(header), set()
    for place, piece in enumerate(pieces):
        if place:
            text += between
        if place in bad:
            lines.add(text.count("\n") + 1)
        text += piece
    return (text + end).encode("utf-8", errors="surrogateescape"), lines


def json_file(draw, seed, pieces, bad, good):
    """Write rows in one of the layouts in which JSON comes."""
    layout = ["lines", "list", "indented", "compact", "lines in .json"][seed % 5]
    header, between, end = {
        "list": ("[\n", ",\n", "\n]\n"),
        "indented": ("[\n  ", ",\n  ", "\n]"),
        "compact": ("[", ", ", "]"),
    }.get(layout, ("", draw.choice(["\n", "\r\n", "\n\n"]), "\n"))
    content, lines = join_lines(pieces, bad, header=header, between=between, end=end)
    if draw.random() < 0.3:
        content = b"\xef\xbb\xbf" + content
    return Damaged("a.jsonl" if layout == "lines" else "a.json", content, lines, good)


def damaged_json(kind, seed):
    draw = random.Random(f"{kind} {seed}")
    makers = [pair_row, alpaca_row, sharegpt_row, messages_row]
    make = draw.choice(makers[2:] if kind in TURNS else makers)
    rows = [make(draw) for _ in range(draw.randrange(8, 30))]
    bad = set(draw.sample(range(len(rows)), k=draw.randrange(1, 5)))
    good = [texts_of(row) for place, row in enumerate(rows) if place not in bad]
    pieces = []
    for place, row in enumerate(rows):
        if place in bad and kind not in SYNTAX:
            (VALUES | TURNS)[kind](row, draw)
        pretty = seed % 5 == 2 and not (place in bad and kind in SYNTAX)
        text = json.dumps(row, ensure_ascii=kind == "lone surrogate")
        if pretty:
            text = json.dumps(row, ensure_ascii=kind == "lone surrogate", indent=2)
            text = text.replace("\n", "\n  ")
        pieces.append(SYNTAX[kind](text, draw) if place in bad and kind in SYNTAX else text)
    return json_file(draw, seed, pieces, bad, good)


def quoted(cells, delimiter=","):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerow(cells)
    return out.getvalue()[:-1]


def damaged_table(kind, seed):
    draw = random.Random(f"{kind} {seed}")
    delimiter = ",\t"[seed % 2]
    # A cell that starts with the delimiter would close a quote left open above: nobody can tell.
    words = [word for word in WORDS if word not in {",", "\t", "\n", '"'}]
    rows = [
        [draw.choice(words) + some_text(draw) + "x" for _ in range(2)]
        for _ in range(draw.randrange(8, 30))
    ]
    bad = set(draw.sample(range(len(rows)), k=draw.randrange(1, 5)))
    pieces = [
        CELLS[kind](["a", "b"], draw).replace(",", delimiter)
        if place in bad
        else quoted(row, delimiter)
        for place, row in enumerate(rows)
    ]
    ends = draw.choice(["\n", "\r\n"])
    header = quoted(["prompt", "completion"], delimiter) + ends
    content, lines = join_lines(pieces, bad, header=header, between=ends, end=ends)
    good = [row for place, row in enumerate(rows) if place not in bad]
    return Damaged("a.csv" if delimiter == "," else "a.tsv", content, lines, good)


def damaged_text(kind, seed):
    draw = random.Random(f"{kind} {seed}")
    rows = ["word" + some_text(draw).replace("\n", " ") for _ in range(draw.randrange(8, 30))]
    bad = set(draw.sample(range(len(rows)), k=draw.randrange(1, 5)))
    byte = {"NUL byte in a line": "\0", "Latin-1 byte in a line": "\udce9"}[kind]
    pieces = [row + byte if place in bad else row for place, row in enumerate(rows)]
    content, lines = join_lines(pieces, bad, between=draw.choice(["\n", "\n\n", "\r\n"]))
    return Damaged("a.txt", content, lines, [[r] for n, r in enumerate(rows) if n not in bad])


def damaged_parquet(kind, seed):
    kind = kind.removeprefix("Parquet: ")
    draw = random.Random(f"{kind} {seed}")
    make = draw.choice([pair_row, alpaca_row, sharegpt_row, messages_row])
    rows = [make(draw) for _ in range(draw.randrange(8, 30))]
    bad = set(draw.sample(range(len(rows)), k=draw.randrange(1, 5)))
    good = [texts_of(row) for place, row in enumerate(rows) if place not in bad]
    for place in bad:
        PARQUET[kind](rows[place], draw)
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return Damaged("a.parquet", out.getvalue(), {place + 1 for place in bad}, good)


MAKERS = {
    **dict.fromkeys(VALUES | TURNS | SYNTAX, damaged_json),
    **dict.fromkeys(CELLS, damaged_table),
    **dict.fromkeys(["NUL byte in a line", "Latin-1 byte in a line"], damaged_text),
    **dict.fromkeys((f"Parquet: {name}" for name in PARQUET), damaged_parquet),
}


def texts(conversation):
    if conversation.text is not None:
        return [conversation.text]
    return [message["content"] for message in conversation.messages]


def test_there_are_five_hundred_files_of_twenty_kinds():
    assert len(MAKERS) >= 20
    assert len(MAKERS) * FILES_PER_KIND >= 500


@pytest.mark.parametrize("kind", MAKERS)
def test_every_bad_line_is_named_and_every_good_row_comes_through(tmp_path, kind):
    for seed in range(FILES_PER_KIND):
        file = MAKERS[kind](kind, seed)
        path = tmp_path / file.name
        path.write_bytes(file.content)
        settings = DataSettings(path=str(path), eval_fraction=0.0)
        with pytest.raises(DataError) as caught:
            load_conversations(settings)
        named = {
            int(problem.where.rsplit(":", 1)[1].split()[0]) for problem in caught.value.problems
        }
        assert named == file.bad_lines, f"{kind}, seed {seed}: {caught.value}"
        settings.on_bad_row = "skip"
        splits = load_conversations(settings)
        assert [texts(row) for row in splits.train] == file.good, f"{kind}, seed {seed}"


def random_unicode(draw):
    planes = [(1, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    codes = (draw.randint(*draw.choice(planes)) for _ in range(draw.randrange(1, 20)))
    return "".join(map(chr, codes))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"])
def test_any_unicode_text_comes_back_byte_for_byte(tmp_path, name):
    draw = random.Random(name)
    pairs = [(random_unicode(draw) + "x", random_unicode(draw) + "y") for _ in range(500)]
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif "json" in name:
        lines = [json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in rows]
        text = f"[{','.join(lines)}]" if name == "a.json" else "\n".join(lines)
        path.write_bytes(text.encode())
    else:
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, delimiter="," if name == "a.csv" else "\t")
            writer.writerows([("prompt", "completion"), *pairs])
    splits = load_conversations(DataSettings(path=str(path), eval_fraction=0.0))
    expected = [tuple(text.encode() for text in pair) for pair in pairs]
    assert [tuple(t.encode() for t in texts(row)) for row in splits.train] == expected
