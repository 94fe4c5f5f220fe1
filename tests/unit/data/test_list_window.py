"""A JSON list read through a window gives what the same list gives when it is read as a whole."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_kit.data import json_files
from sft_kit.data.json_files import read_json_list
from sft_kit.data.rows import RawRow

LAYOUTS = {"one line": (None, ", "), "a row a line": (None, ",\n"), "indented": (2, ",\n")}
WORDS = ["plain", "水是一种液体", 'a "quote"', "line\nend", "{", "}, {", "]"]


def list_text(layout: str, num_rows: int, seed: int) -> str:
    draw = random.Random(seed)
    rows = [
        {"id": number, "turns": [{"text": draw.choice(WORDS)} for _ in range(draw.randrange(4))]}
        for number in range(num_rows)
    ]
    indent, between = LAYOUTS[layout]
    texts = [json.dumps(row, indent=indent, ensure_ascii=bool(seed % 2)) for row in rows]
    return "[" + between.join(texts) + "]\n"


def read_through(window: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    with monkeypatch.context() as patched:
        patched.setattr(json_files, "_WINDOW", window)
        patched.setattr(json_files, "_MAX_INDENT", min(window, 4096))
        patched.setattr("sft_kit.data.text_files._BLOCK_BYTES", max(window // 2, 1))
        return list(read_json_list(path, "rows.json"))


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 99),
    place=st.integers(0, 600),
    damage=st.sampled_from([b"", b"\xff", b"\x22", b"}", b",", b"[", b"\n"]),
    window=st.sampled_from([5, 40, 300]),
)
def test_any_window_reads_the_same_rows_problems_and_places(
    layout: str,
    seed: int,
    place: int,
    damage: bytes,
    window: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    content = list_text(layout, 12, seed).encode()
    path = tmp_path_factory.mktemp("list") / "rows.json"
    path.write_bytes(content[:place] + damage + content[place:])
    with pytest.MonkeyPatch.context() as monkeypatch:
        whole = read_through(1 << 24, path, monkeypatch)
        assert read_through(window, path, monkeypatch) == whole


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sound_rows_are_read_without_the_rest_of_the_file(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(list_text(layout, 500, 1), encoding="utf-8")
    longest = 0
    kept = json_files._Text.advance

    def advance(source: json_files._Text, at: int) -> int:
        nonlocal longest
        now = kept(source, at)
        longest = max(longest, len(source.text))
        return now

    monkeypatch.setattr(json_files._Text, "advance", advance)
    rows = read_through(1000, path, monkeypatch)
    assert [row.fields for row in rows if isinstance(row, RawRow)] == json.loads(path.read_text())
    assert longest < 4000 < path.stat().st_size
    expected = {"one line": 1, "a row a line": 500}
    if layout in expected:
        assert rows[-1].where.line == expected[layout]  # type: ignore[attr-defined]
