"""Files -> rows: lines, encodings, table cells, folders, the Hub."""

import csv
import hashlib
import io
import json
import time
import tracemalloc
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_kit.data.rows import RawRow
from sft_kit.data.sources import Layout, open_source
from sft_kit.data.text_files import MAX_ROW_CHARACTERS
from sft_kit.errors import DataError, Problem


def read(path):
    rows = list(open_source(str(path)).rows)
    good = [row for row in rows if isinstance(row, RawRow)]
    return good, [row for row in rows if isinstance(row, Problem)]


def lines_of(rows):
    return [row.where.line for row in rows]


def bad_lines(problems):
    return [int(problem.where.rsplit(":", 1)[1].split()[0]) for problem in problems]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


ROWS = [{"text": f"row {n}", "n": n, "nested": [{"text": "x"}]} for n in range(6)]


@pytest.mark.parametrize("indent", [None, 0, 1, 2, 4, "\t"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_a_json_list_gives_every_row_with_the_line_of_its_brace(tmp_path, indent, ends, bom):
    text = json.dumps(ROWS, indent=indent)
    at = [text.index(f'"row {n}"') for n in range(6)]
    expected = [text.count("\n", 0, text.rindex("{", 0, place)) + 1 for place in at]
    good, bad = read(write(tmp_path / "a.json", bom + text.replace("\n", ends)))
    assert [row.fields for row in good] == ROWS
    assert lines_of(good) == expected
    assert bad == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv", "a.data"])
def test_json_lines_are_recognised_under_any_suffix(tmp_path, name):
    text = "\n\n".join(json.dumps(row) for row in ROWS)
    good, bad = read(write(tmp_path / name, "\n" + text))
    assert [row.fields for row in good] == ROWS
    assert lines_of(good) == [2, 4, 6, 8, 10, 12]
    assert bad == []


def test_a_json_list_is_recognised_in_a_jsonl_file(tmp_path):
    good, bad = read(write(tmp_path / "a.jsonl", json.dumps(ROWS)))
    assert [row.fields for row in good] == ROWS
    assert bad == []


def test_line_separators_inside_text_do_not_split_a_row(tmp_path):
    row = {"text": "a\u2028b\u2029c\x85d"}
    good, bad = read(write(tmp_path / "a.jsonl", json.dumps(row, ensure_ascii=False) + "\n"))
    assert [row.fields for row in good] == [row]
    assert bad == []


GOOD = '{"instruction": "q%d", "list": [{"from": "a"}, {"from": "b"}], "output": "a%d"}'
BROKEN = {
    "missing closing quote": '{"instruction": "q, "list": [], "output": "a"}',
    "missing quote at the end": '{"instruction": "q", "list": [], "output": "a}',
    "missing brace": '{"instruction": "q", "list": [{"from": "a"}], "output": "a"',
    "extra brace": '{"instruction": "q", "list": [], "output": "a"}}',
    "missing bracket": '{"instruction": "q", "list": [{"from": "a"}, {"from": "b"}, "output": "a"}',
    "nested object broken": '{"instruction": "q", "list": [{"from": "a"}, {"from": }, {"b": 1}]}',
    "single quotes": "{'instruction': 'q', 'list': [], 'output': 'a'}",
    "NaN": '{"instruction": "q", "output": "a", "score": NaN}',
    "Infinity": '{"instruction": "q", "output": "a", "score": [-Infinity]}',
    "key twice": '{"instruction": "q", "output": "a", "output": "b"}',
    "not an object": '["instruction", "q"]',
    "a number": "17",
    "null": "null",
    "too many digits": '{"instruction": "q", "n": ' + "9" * 5000 + "}",
    "nested too deeply": '{"instruction": "q", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("layout", ["lines", "list per line", "list indented", "list compact"])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_broken_row_is_named_and_its_neighbours_are_read(tmp_path, kind, layout, place):
    rows = [GOOD % (n, n) for n in range(5)]
    rows[place] = BROKEN[kind]
    text = {
        "lines": "\n".join(rows),
        "list per line": "[\n" + ",\n".join(rows) + "\n]",
        "list indented": "[\n  " + ",\n  ".join(rows) + "\n]\n",
        "list compact": "[" + ", ".join(rows) + "]",
    }[layout]
    good, bad = read(write(tmp_path / "a.json", text))
    first = {"lines": 1, "list compact": 1}.get(layout, 2)
    step = 0 if layout == "list compact" else 1
    assert [row.fields["instruction"] for row in good] == [f"q{n}" for n in range(5) if n != place]
    assert lines_of(good) == [first + n * step for n in range(5) if n != place]
    assert bad_lines(bad) == [first + place * step]


def test_broken_rows_side_by_side_are_all_named(tmp_path):
    rows = [GOOD % (n, n) for n in range(9)]
    for place, kind in [(3, "missing brace"), (4, "missing closing quote"), (5, "single quotes")]:
        rows[place] = BROKEN[kind]
    good, bad = read(write(tmp_path / "a.json", "[\n" + ",\n".join(rows) + "\n]"))
    assert bad_lines(bad) == [5, 6, 7]
    assert lines_of(good) == [2, 3, 4, 8, 9, 10]


@pytest.mark.parametrize("indent", [1, 2, 4])
def test_in_an_indented_list_a_broken_row_costs_only_itself(tmp_path, indent):
    text = json.dumps([json.loads(GOOD % (n, n)) for n in range(5)], indent=indent)
    line = text[: text.index('"q2"')].count("\n")  # the brace stands one line above
    good, bad = read(write(tmp_path / "a.json", text.replace('"q2"', '"q2')))
    assert [row.fields["output"] for row in good] == ["a0", "a1", "a3", "a4"]
    assert bad_lines(bad) == [line]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("size", [10, 4_090, 65_000, 1_200_000])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_place_of_a_fault_is_the_one_the_standard_library_names(tmp_path, indent, size, place):
    rows = [{"text": "\u4f60" * size, "list": [{"a": n}], "last": n} for n in range(3)]
    text = json.dumps(rows, indent=indent, ensure_ascii=False)
    text = text.replace(f'"last": {place}', f'"last" {place}')
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    good, bad = read(write(tmp_path / "a.json", text))
    where = f"at line {expected.value.lineno}, column {expected.value.colno}"
    assert bad[0].message == f"broken JSON: {expected.value.msg} {where}"
    assert [row.fields for row in good] == [row for row in rows if row["last"] != place]


@pytest.mark.parametrize("layout", [("[\n", ",\n", "\n]"), ("[", ", ", "]")])
def test_ten_thousand_broken_rows_are_named_without_reading_the_list_over_and_over(
    tmp_path, layout
):
    rows = [GOOD % (n, n) if n % 2 else (GOOD % (n, n))[:-1] for n in range(20_000)]
    path = write(tmp_path / "a.json", layout[0] + layout[1].join(rows) + layout[2])
    started = time.process_time()
    good, bad = read(path)
    # About a second; walking the text from its start at every fault takes a minute.
    assert time.process_time() - started < 10
    assert [row.fields["output"] for row in good] == [f"a{n}" for n in range(1, 20_000, 2)]
    assert len(bad) == 10_000


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[\n{"text": "a"},\n{"text": "b"},\n]', 3, "comma after the last"),
        ('[\n{"text": "a"}\n{"text": "b"}\n]', 3, "no comma"),
        ('[\n{"text": "a"},\n{"text": "b"}\n', 3, "no ]"),
        ('[\n{"text": "a"},\n{"text": "b"}\n]\noops', 5, "after the end"),
        ('[\n{"text": "a"},,\n{"text": "b"}\n]', 2, "broken JSON"),
    ],
)
def test_faults_between_rows_are_named_and_cost_no_row(tmp_path, text, line, words):
    good, bad = read(write(tmp_path / "a.json", text))
    assert [row.fields["text"] for row in good] == ["a", "b"]
    assert bad_lines(bad) == [line]
    assert words in bad[0].message


def test_a_list_that_is_cut_off_keeps_the_rows_before_the_cut(tmp_path):
    text = json.dumps(ROWS, indent=2)
    good, bad = read(write(tmp_path / "a.json", text[: text.index('"row 4"') + 3]))
    assert [row.fields for row in good] == ROWS[:4]
    assert len(bad) == 1
    assert "broken JSON" in bad[0].message


def test_one_object_around_the_rows_is_refused_with_the_name_of_the_list(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"version": 1, "data": ROWS}, indent=1))
    with pytest.raises(DataError, match=r"rows may stand under 'data'"):
        read(path)


def table(rows, delimiter=",", **options):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, **options).writerows(rows)
    return out.getvalue()


CELLS = [
    "007",
    "NA",
    "null",
    "None",
    "nan",
    "1e5",
    "2024-01-01",
    "=cmd|x",
    " padded ",
    "TRUE",
    "-0",
]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.tsv", "\t"), ("b.csv", ";")])
def test_table_cells_stay_the_text_they_are(tmp_path, name, delimiter):
    text = table([["prompt", "completion"], *([cell, "x"] for cell in CELLS)], delimiter)
    good, bad = read(write(tmp_path / name, text))
    assert [row.fields for row in good] == [{"prompt": cell, "completion": "x"} for cell in CELLS]
    assert bad == []


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_quoted_line_end_is_text_and_the_row_has_its_first_line(tmp_path, ends):
    rows = [["p", "c"], ["a", "1"], ["b" + ends + 'and "more"' + ends, "2"], ["c", "3,4"]]
    path = write(tmp_path / "a.csv", "\ufeff" + table(rows, lineterminator=ends))
    good, bad = read(path)
    with path.open(encoding="utf-8-sig", newline="") as handle:
        assert [row.fields for row in good] == list(csv.DictReader(handle))
    assert lines_of(good) == [2, 3, 6]
    assert bad == []


def test_rows_with_too_few_or_too_many_fields_are_named(tmp_path):
    good, bad = read(write(tmp_path / "a.csv", "p,c\na,1\nb\n\nc,3,4\nd,5\n"))
    assert lines_of(good) == [2, 6]
    assert bad_lines(bad) == [3, 5]
    assert "found 3 fields, the header has 2" in bad[1].message


@pytest.mark.parametrize("broken", ['"open,2', 'x,"open', '"a"b,2', '"open'])
def test_a_quote_that_is_never_closed_costs_its_own_row_only(tmp_path, broken):
    lines = ["p,c", "a,1", broken, "c,3", '"d ""quoted"" d",4', 'e,"5"', "f,6"]
    good, bad = read(write(tmp_path / "a.csv", "\n".join(lines)))
    assert [row.fields["p"] for row in good] == ["a", "c", 'd "quoted" d', "e", "f"]
    assert bad_lines(bad) == [3]


@pytest.mark.parametrize("size", [131_073, 1_000_000])
def test_a_cell_may_be_longer_than_the_limit_of_the_csv_module(tmp_path, size):
    limit = csv.field_size_limit()
    good, _ = read(write(tmp_path / "a.csv", f"p,c\n{'x' * size},2\n"))
    assert good[0].fields == {"p": "x" * size, "c": "2"}
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("header", ["a,a", "a,", "a,,b"])
def test_a_header_must_give_each_column_a_name_of_its_own(tmp_path, header):
    with pytest.raises(DataError, match=r"a\.csv:1: the header line has columns without a name"):
        read(write(tmp_path / "a.csv", f"{header}\n1,2\n"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
@pytest.mark.parametrize("encoding", ["latin-1", "gbk"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_a_row_that_is_not_utf8_is_named_with_its_byte(tmp_path, name, encoding, bom, ends):
    bad_text = {"latin-1": "caf\xe9", "gbk": "\u4f60\u597d"}[encoding].encode(encoding)
    good_row = '{"text": "\u4f60\u597d"}' if "json" in name else "\u4f60\u597d"
    row = b'{"text": "' + bad_text + b'"}' if "json" in name else bad_text
    first, between, last = {
        "a.json": (b"[\n", b",\n", b"\n]"),
        "a.csv": (b"text\n", b"\n", b"\n"),
    }.get(name, (b"", b"\n", b"\n"))
    rows = [good_row.encode(), row, good_row.encode()]
    content = bom + (first + between.join(rows) + last).replace(b"\n", ends)
    good, bad = read(write(tmp_path / name, content))
    place = content.index(bad_text) + (3 if encoding == "latin-1" else 0)
    assert f"not UTF-8 at byte {place} (found 0x{content[place]:02x})" in bad[0].message
    assert "iconv -f gbk -t utf-8" in bad[0].todo
    assert bad_lines(bad) == [2 + first.count(b"\n")]
    assert [row.fields for row in good] == [{"text": "\u4f60\u597d"}] * 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_file_in_utf16_is_refused_as_such(tmp_path, encoding, name):
    content = "\n".join('{"text": "a"}' for _ in range(9)).encode(encoding)
    with pytest.raises(DataError, match=r"a\.\w+:1: not UTF-8 at byte \d: .*iconv -f utf-16"):
        read(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_nul_byte_is_named(tmp_path, name):
    start = '{"text": "' if name == "a.jsonl" else ""
    end = '"}' if name == "a.jsonl" else ""
    header = "text\n" if name == "a.csv" else ""
    text = header + "\n".join(f"{start}{word}{end}" for word in ("one", "t\0wo", "three"))
    good, bad = read(write(tmp_path / name, text))
    assert [row.fields["text"] for row in good] == ["one", "three"]
    assert bad_lines(bad) == [2 + header.count("\n")]
    assert f"byte {text.index(chr(0))}" in bad[0].message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_row_above_the_cap_is_named(tmp_path, name):
    long = "x" * (MAX_ROW_CHARACTERS + 1)
    values = ["a", long, "b"]
    rows = [json.dumps({"text": value}) if "json" in name else value for value in values]
    text = {"a.json": "[\n" + ",\n".join(rows) + "]", "a.csv": "text\n" + "\n".join(rows)}
    good, bad = read(write(tmp_path / name, text.get(name, "\n".join(rows))))
    assert [row.fields["text"] for row in good] == ["a", "b"]
    assert bad_lines(bad) == [2 if name in {"a.jsonl", "a.txt"} else 3]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
def test_a_row_of_ten_million_characters_needs_less_than_four_times_its_file(tmp_path, name):
    text = "ten chars " * 1_000_000
    row = json.dumps({"text": text}) if "json" in name else text
    path = write(tmp_path / name, f"[{row}]" if name == "a.json" else row)
    size = path.stat().st_size
    del text, row
    tracemalloc.start()
    good, _ = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(good[0].fields["text"]) == 10_000_000
    assert peak < 4 * size


def test_parquet_values_come_back_as_written_with_row_numbers(tmp_path):
    rows = [{"text": cell, "messages": [{"role": "user", "content": cell}]} for cell in CELLS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.json").write_bytes((tmp_path / "a.parquet").read_bytes())
    for name in ("a.parquet", "b.json"):
        good, bad = read(tmp_path / name)
        assert [row.fields for row in good] == rows
        assert lines_of(good) == list(range(1, len(CELLS) + 1))
        assert bad == []


def test_parquet_text_that_is_not_utf8_spoils_its_row_only(tmp_path):
    column = pa.Array.from_buffers(
        pa.string(), 3, pa.array([b"one", b"t\xffo", b"two"], pa.binary()).buffers()
    )
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    good, bad = read(tmp_path / "a.parquet")
    assert [row.fields["text"] for row in good] == ["one", "two"]
    assert bad_lines(bad) == [2]


def test_a_damaged_parquet_file_is_an_error_with_its_name(tmp_path):
    pq.write_table(pa.table({"text": ["a" * 1000] * 1000}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    with pytest.raises(DataError, match=r"cut\.parquet:1: the Parquet file can't be read"):
        read(write(tmp_path / "cut.parquet", content[: len(content) // 2]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"\n \r\n\t\n", "found no rows"),
        ("a.json", b"[]", "found no rows"),
        ("a.csv", b"text\n", "found no rows"),
        ("a.txt", b"\n\n", "found no rows"),
        ("a.json", b"\x1f\x8b\x08\x00abc", "gzip"),
        ("a.csv", b"PK\x03\x04abc", "Excel"),
        ("a.parquet", b"nothing of the kind", "not Parquet"),
        ("a.docx", b"words", "suffix '.docx'"),
        ("a.txt", b"one\rtwo\r" * 1000, "CR only"),
    ],
)
def test_files_without_rows_are_refused_by_name(tmp_path, name, content, words):
    with pytest.raises(DataError, match=words) as caught:
        read(write(tmp_path / name, content))
    assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl", "no/such/place", "./rows", "a b", "here/rows"])
def test_a_path_with_nothing_behind_it_is_refused_without_asking_the_hub(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the Hub"))
    with pytest.raises(DataError, match="found no file or folder of this name"):
        open_source(name)


def test_a_folder_is_read_in_the_order_of_names_without_hidden_files_and_readme(tmp_path):
    write(tmp_path / "b.jsonl", '{"text": "b"}\n')
    write(tmp_path / "a.csv", "text\na\n")
    write(tmp_path / "c.TXT", "c\n")
    write(tmp_path / "README.txt", "about")
    write(tmp_path / "LICENSE.txt", "free")
    write(tmp_path / ".hidden.jsonl", "oops")
    write(tmp_path / "picture.png", "oops")
    (tmp_path / "deeper.json").mkdir()
    good, bad = read(f"{tmp_path}/")
    assert [(str(row.where), row.fields["text"]) for row in good] == [
        (f"{tmp_path}/a.csv:2", "a"),
        (f"{tmp_path}/b.jsonl:1", "b"),
        (f"{tmp_path}/c.TXT:1", "c"),
    ]
    assert bad == []


def test_a_folder_without_data_files_says_what_it_holds(tmp_path):
    write(tmp_path / "picture.png", "oops")
    with pytest.raises(DataError, match=r"no data file in the folder \(it holds: picture\.png\)"):
        open_source(str(tmp_path))


def test_the_fingerprint_of_a_file_is_the_sha256_of_its_bytes(tmp_path):
    content = b'{"text": "a"}\n' * 200_000
    path = write(tmp_path / "a.jsonl", content)
    assert open_source(str(path)).fingerprint == hashlib.sha256(content).hexdigest()


def test_the_fingerprint_of_a_folder_changes_with_content_and_names(tmp_path):
    seen = set()
    for names in (["a.txt", "b.txt"], ["a.txt", "c.txt"]):
        for words in (["one", "two"], ["two", "one"]):
            folder = tmp_path / f"{names}{words}"
            folder.mkdir()
            for name, word in zip(names, words, strict=True):
                write(folder / name, word)
            seen.add(open_source(str(folder)).fingerprint)
    assert len(seen) == 4


def test_a_hub_data_set_is_read_with_its_split_and_revision(tmp_path, monkeypatch):
    asked = {}

    def load_dataset(name, **options):
        asked.update(options, name=name)
        return datasets.Dataset.from_list([{"text": "007"}, {"text": "x" * 11_000_000}])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_source("someone/some-data", "test", "abc123")
    rows = list(source.rows)
    assert asked == {"name": "someone/some-data", "split": "test", "revision": "abc123"}
    assert rows[0].fields == {"text": "007"}
    assert str(rows[0].where) == "someone/some-data:1"
    assert rows[1].where == "someone/some-data:2"
    assert "11,000,000 characters" in rows[1].message
    assert source.fingerprint.endswith("@abc123")


@pytest.mark.parametrize("error", [ConnectionError, ValueError, RuntimeError, TypeError])
def test_whatever_the_hub_answers_becomes_one_error_with_advice(tmp_path, monkeypatch, error):
    def load_dataset(name, **options):
        raise error("first line\nsecond line")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"check the path; for the Hub check the network") as caught:
        open_source("someone/some-data")
    assert "second line" not in str(caught.value)


def test_rows_of_a_list_on_one_line_are_told_apart_by_their_number(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('[{"text": "a"}, {"text": "b"},\n{"text": "c"}, 7]', encoding="utf-8")
    places = [
        str(row.where) if isinstance(row, RawRow) else row.where
        for row in open_source(str(file)).rows
    ]
    assert places == [f"{file}:1 row 1", f"{file}:1 row 2", f"{file}:2", f"{file}:2 row 4"]


WORDS = ["caf\xe9", "\u4f60\u597d", 'say "so"', "end"]
LAID_OUT = {
    "list.json": json.dumps([{"text": word} for word in WORDS], ensure_ascii=False, indent=1),
    "lines.jsonl": "\n".join(json.dumps({"text": word}, ensure_ascii=False) for word in WORDS),
    "table.csv": table([["text"], *([word] for word in WORDS)]),
    "table.tsv": table([["text"], *([word] for word in WORDS)], "\t"),
    "lines.txt": "\n".join(WORDS),
}


@pytest.mark.parametrize("name", LAID_OUT)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "gb18030", "utf-32", "cp1252"])
def test_files_of_other_encodings_give_the_rows_and_lines_of_utf8(tmp_path, name, encoding):
    path = write(tmp_path / name, LAID_OUT[name])
    expected = list(open_source(str(path)).rows)
    write(path, LAID_OUT[name].encode(encoding, errors="backslashreplace"))
    rows = list(open_source(str(path), layout=Layout(encoding)).rows)
    if encoding == "cp1252":  # it has no Chinese characters
        del rows[1], expected[1]
    assert rows == expected


def test_a_table_without_header_and_quotes_is_cut_at_its_tabs_and_nowhere_else(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"open\t1\nsay "so"\t2\r\n\n"whole"\t3\n')
    rows = list(open_source(str(path), layout=Layout(has_header=False, has_quotes=False)).rows)
    expected = [("text", "label"), ('"open', "1"), ('say "so"', "2"), ('"whole"', "3")]
    assert [row.fields for row in rows] == [{"1": a, "2": b} for a, b in expected]
    assert lines_of(rows) == [1, 2, 3, 5]


def test_blanks_and_empty_fields_at_the_end_of_a_line_are_kept(tmp_path):
    path = write(tmp_path / "a.tsv", "a \t b \r\nc\t\n")
    rows = list(open_source(str(path), layout=Layout(has_header=False, has_quotes=False)).rows)
    assert [row.fields for row in rows] == [{"1": "a ", "2": " b "}, {"1": "c", "2": ""}]


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_json_is_recognised_under_any_suffix_in_other_encodings(tmp_path, name):
    path = write(tmp_path / name, LAID_OUT["lines.jsonl"].encode("utf-16"))
    rows = list(open_source(str(path), layout=Layout("utf-16")).rows)
    assert [row.fields["text"] for row in rows] == WORDS


def test_lines_are_cut_at_the_last_separator_and_may_begin_with_names(tmp_path):
    path = write(tmp_path / "a.txt", "text@mark\na@b@1\nnothing\nc@2\n")
    rows = list(open_source(str(path), layout=Layout(separator="@")).rows)
    assert [row.fields for row in rows if isinstance(row, RawRow)] == [
        {"text": "a@b", "mark": "1"},
        {"text": "c", "mark": "2"},
    ]
    assert bad_lines(row for row in rows if isinstance(row, Problem)) == [3]
    rows = list(open_source(str(path), layout=Layout(separator="@", has_header=False)).rows)
    assert rows[0].fields == {"1": "text", "2": "mark"}


def test_a_function_may_say_the_layout_of_each_file_of_a_folder(tmp_path):
    write(tmp_path / "a.txt", "caf\xe9".encode("latin-1"))
    write(tmp_path / "b.txt", "\u4f60\u597d".encode("gbk"))
    asked = []

    def layout(path, name):
        asked.append((path.name, name))
        return Layout("latin-1" if path.name == "a.txt" else "gbk")

    rows = list(open_source(str(tmp_path), layout=layout).rows)
    assert [row.fields["text"] for row in rows] == ["caf\xe9", "\u4f60\u597d"]
    assert asked == [(name, f"{tmp_path}/{name}") for name in ("a.txt", "b.txt")]


def test_a_data_set_of_the_hub_names_the_classes_of_its_columns(tmp_path, monkeypatch):
    names = datasets.ClassLabel(names=["neg", "pos"])
    features = {"text": datasets.Value("string"), "label": names, "tags": datasets.Sequence(names)}
    rows = [{"text": "a", "label": 1, "tags": [0, 1]}]
    dataset = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    source = open_source("someone/some-data")
    assert source.class_names == {"label": ("neg", "pos"), "tags": ("neg", "pos")}
    assert next(source.rows).fields == rows[0]


def test_a_first_column_without_a_name_is_called_by_its_number(tmp_path):
    good, _ = read(write(tmp_path / "a.csv", ",text\n0,a\n1,b\n"))
    assert [row.fields for row in good] == [{"1": "0", "text": "a"}, {"1": "1", "text": "b"}]
