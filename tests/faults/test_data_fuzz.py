"""Damaged data files of all readers: each bad line named, no good one blamed, no traceback."""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import tarfile
import time
import tracemalloc
import zipfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_kit.data.corpus.texts import load_texts
from sft_kit.data.labelled.splits import load_labelled
from sft_kit.data.pairs.splits import load_pairs
from sft_kit.data.preference.splits import load_preferences
from sft_kit.data.splits import load_conversations
from sft_kit.errors import DataError
from sft_kit.settings import (
    DataSettings,
    LabelledDataSettings,
    PairDataSettings,
    PreferenceDataSettings,
    TextDataSettings,
)

from .data_damage import CASES, READERS, damaged_file

FULL = pytest.mark.slow
LOADERS = {
    "conversations": (DataSettings, load_conversations),
    "labelled": (LabelledDataSettings, load_labelled),
    "preference": (PreferenceDataSettings, load_preferences),
    "pairs": (PairDataSettings, load_pairs),
    "texts": (TextDataSettings, load_texts),
}
WITHOUT_MODEL = [case for case in CASES if READERS[case[0]].loader in LOADERS]


def load(name, path, on_bad_row, **more):
    """Read a file with the reader of a name; return the rows to train on and the report."""
    settings_class, function = LOADERS[READERS[name].loader]
    settings = settings_class(path=str(path), eval_fraction=0.0, on_bad_row=on_bad_row, **more)
    splits = function(settings)
    return splits.train, splits.report


def lines_named(error):
    """Lines that an error names, those told together included."""
    named = set()
    for problem in error.problems:
        if together := re.search(r"\(lines (.*)\)", problem.where):
            named |= {int(line) for line in re.findall(r"\d+", together[1])}
        else:
            named.add(int(problem.where.rsplit(":", 1)[1].split()[0]))
    return named


def numbers_of(rows):
    """Numbers of the rows, from the marks in their texts."""
    return [int(re.search(r"row(\d+)end", repr(row))[1]) for row in rows]


def check(case, seed, folder):
    file = damaged_file(case, seed)
    path = folder / file.name
    path.write_bytes(file.content)
    told = f"{case[:3]}, seed {seed}"
    if not file.bad_lines:
        rows, report = load(case[0], path, "stop")
        assert numbers_of(rows) == file.good, told
        return "harmless"
    with pytest.raises(DataError) as caught:
        load(case[0], path, "stop")
    assert lines_named(caught.value) == file.bad_lines, f"{told}: {caught.value}"
    assert all(problem.message and problem.todo for problem in caught.value.problems), told
    rows, report = load(case[0], path, "skip")
    assert numbers_of(rows) == file.good, told
    assert report.num_bad_rows == len(file.bad_lines), told
    return "refused, then skipped"


def test_there_are_forty_kinds_of_damage_for_eleven_readers():
    assert len({case[2] for case in CASES}) >= 40
    assert {case[0] for case in CASES} == set(READERS)
    assert len(READERS) == 11


@pytest.mark.parametrize("num_files", [100, pytest.param(1_500, marks=FULL)])
def test_every_bad_line_is_named_and_every_good_row_comes_through(tmp_path, num_files, capsys):
    outcomes = Counter()
    for number in range(num_files):
        # A step that shares no factor with the number of cases meets all of them in turn.
        case = WITHOUT_MODEL[number * 37 % len(WITHOUT_MODEL)]
        outcomes[check(case, number, tmp_path)] += 1
    with capsys.disabled():
        print(f"\n{num_files} files of {len(WITHOUT_MODEL)} kinds: {dict(outcomes)}")
    assert sum(outcomes.values()) == num_files


def jsonl(name, number=30):
    """Good rows of a reader as JSON Lines."""
    draw = random.Random(name)
    rows = (READERS[name].row(draw, place) for place in range(number))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _zip(text):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", text)
    return out.getvalue()


def _tar(text):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("a.jsonl")
        member.size = len(text.encode())
        archive.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


ARCHIVES = {
    "gzip": lambda text: gzip.compress(text.encode()),
    "bzip2": lambda text: bz2.compress(text.encode()),
    "xz": lambda text: lzma.compress(text.encode()),
    "zip": _zip,
    "tar": _tar,
}
WHOLE = {
    "empty": lambda text: b"",
    "blank": lambda text: b"\n \n\t\n",
    "no rows": lambda text: b"[]",
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "random bytes": lambda text: random.Random(1).randbytes(5_000),
    "one brace": lambda text: b"{",
    "one bracket": lambda text: b"[",
    "a text": lambda text: b'"x"',
    "brackets": lambda text: b"[" * 200_000,
    "braces": lambda text: b'{"a":' * 100_000,
    "lists of rows in rows": lambda text: b'[{"a":' * 100_000,
    "a page of the web": lambda text: b"<!DOCTYPE html><html><body>404</body></html>",
    "a pointer of git": lambda text: b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n",
    "a pickle": lambda text: (
        b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s."
    ),
}
PLAIN = [name for name in READERS if READERS[name].loader in LOADERS]


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_is_refused_by_its_name_whatever_it_is_called(tmp_path, kind):
    for name in PLAIN:
        path = tmp_path / random.Random(name).choice(["a.jsonl", "a.json", "a.csv", "a.txt"])
        path.write_bytes(ARCHIVES[kind](jsonl(name)))
        with pytest.raises(DataError, match=rf"{path.name}: found an? {kind} archive.*unpack"):
            load(name, path, "skip")


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_without_a_usable_row_is_named_within_a_second(tmp_path, kind):
    for number, name in enumerate(PLAIN):
        # Random bytes may happen to be text in an encoding that a reader detects, hence .json.
        path = tmp_path / ("a.jsonl" if number % 2 else "a.json")
        path.write_bytes(WHOLE[kind](jsonl(name)))
        is_read = READERS[name].loader == "labelled" and kind in ("UTF-16", "UTF-32")
        start = time.process_time()
        if is_read:  # this reader takes the byte order mark at its word
            assert len(load(name, path, "skip")[0]) == 30
            continue
        with pytest.raises(DataError, match=re.escape(path.name)):
            load(name, path, "skip")
        assert time.process_time() - start < 1.0, name


def test_what_is_no_file_is_named(tmp_path):
    for name in PLAIN:
        for path in (tmp_path, tmp_path / "nowhere.jsonl"):
            with pytest.raises(DataError, match=re.escape(str(path))):
                load(name, path, "skip")
    unreadable = tmp_path / "memory.jsonl"
    unreadable.symlink_to("/proc/self/mem")  # opens for all, and gives an error to who reads
    with pytest.raises(DataError, match="can't be read"):
        load("text", unreadable, "skip")


# Python decodes UTF-8 into room for a character per byte, here of two bytes, beside the bytes.
@pytest.mark.parametrize(("character", "times"), [("x", 4), ("水", 4.1)])
def test_a_row_of_ten_megabytes_takes_four_times_the_file(tmp_path, character, times):
    path = tmp_path / "a.jsonl"
    number = 10_000_000 // len(character.encode())
    path.write_text(json.dumps({"text": character * number}, ensure_ascii=False), encoding="utf-8")
    size = path.stat().st_size
    tracemalloc.start()
    try:
        rows, _ = load("text", path, "stop")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(rows[0].text) == number
    assert peak < times * size, f"{peak / size:.1f} times the file"


def test_a_row_above_the_limit_costs_itself_only(tmp_path):
    long, good = "x" * 11_000_000, jsonl("text", 3)
    lines = good + json.dumps({"text": long}) + "\n" + good
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    rows = [{"text": "row1end"}, {"text": long}, {"text": "row2end"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name, line, numbers in (("a.jsonl", 4, [0, 1, 2, 0, 1, 2]), ("a.parquet", 2, [1, 2])):
        with pytest.raises(DataError, match="accepts up to") as caught:
            load("text", tmp_path / name, "stop")
        assert lines_named(caught.value) == {line}
        assert numbers_of(load("text", tmp_path / name, "skip")[0]) == numbers


@pytest.mark.slow
def test_a_small_parquet_file_of_hundreds_of_megabytes_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    rows = pa.table({"text": ["x" * 8_000_000] * 40})
    pq.write_table(rows, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DataError, match=r"a\.parquet: found 32\d,\d{3},\d{3} bytes packed into"):
        load("text", path, "skip")
