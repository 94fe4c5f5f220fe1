"""Rows read and tokenized in one pass: the same rows, kept for the next start and never trusted."""

import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sft_kit.data import preparation
from sft_kit.data.preparation import PreparedRows, prepare
from sft_kit.data.rows import IGNORED
from sft_kit.data.splits import load_conversations
from sft_kit.data.templates import Template, choose_template
from sft_kit.data.tokenization import ROWS_AT_ONCE, to_dataset, tokenize
from sft_kit.errors import DataError, FormatError
from sft_kit.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

KEPT, TAKEN = "data: tokenized rows kept in", "data: tokenized rows taken from"


def write_rows(path: Path, num_rows: int, first: int = 0) -> None:
    lines = [
        json.dumps(
            {"instruction": f"What is {number // 2 * 2}?", "output": f"It is {number}. " * 3}
        )
        for number in range(first, first + num_rows)
    ]
    path.write_text("\n".join([*lines, lines[0]]) + "\n", encoding="utf-8")


@pytest.fixture
def settings(tmp_path: Path) -> DataSettings:
    path = tmp_path / "rows.jsonl"
    write_rows(path, 40)
    return DataSettings(
        path=str(path), eval_fraction=0.2, max_length=24, cache=str(tmp_path / "cache")
    )


@pytest.fixture
def template(tokenizer: "PreTrainedTokenizerFast") -> Template:
    return choose_template(tokenizer, "auto")


def remark(rows: PreparedRows) -> str:
    return rows.remarks[0].rpartition(" ")[0] if rows.remarks else ""


def refuse_to_work(*_: object) -> None:
    raise AssertionError("the cache was not used")


@pytest.mark.parametrize("cache", ["off", "folder", "second start"])
@pytest.mark.parametrize("layout", ["fraction", "file of its own", "all"])
def test_one_pass_gives_what_reading_and_tokenizing_one_after_the_other_give(
    settings: DataSettings,
    tokenizer: "PreTrainedTokenizerFast",
    template: Template,
    layout: str,
    cache: str,
    tmp_path: Path,
) -> None:
    if layout == "file of its own":
        write_rows(tmp_path / "eval.jsonl", 12, first=35)
        settings.eval_path = str(tmp_path / "eval.jsonl")
    elif layout == "all":
        settings.eval_fraction, settings.loss_on = 0.0, "all"
    splits = load_conversations(settings, tokenizer)
    if cache == "off":
        settings.cache = "off"
    elif cache == "second start":
        prepare(settings, tokenizer, template)
    rows = prepare(settings, tokenizer, template)
    assert remark(rows) == {"off": "", "folder": KEPT, "second start": TAKEN}[cache]
    assert list(rows.train) == list(tokenize(splits.train, tokenizer, template, settings))
    assert list(rows.eval) == list(tokenize(splits.eval, tokenizer, template, settings))
    assert rows.report == splits.report
    assert bool(rows.report.overlaps) == (layout == "file of its own")
    assert rows.notes()[:-1] == splits.notes() or cache == "off"
    assert rows.describe() == splits.describe()
    data = to_dataset(rows.eval)
    taught = [row for row in rows.eval if set(row.labels) != {IGNORED}]
    assert data["input_ids"][:] == [row.input_ids for row in taught]
    assert data["labels"][:] == [row.labels for row in taught]
    assert data["where"][:] == [str(row.where) for row in taught]


def test_the_second_start_does_not_read_a_single_row(
    settings: DataSettings,
    tokenizer: "PreTrainedTokenizerFast",
    template: Template,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = prepare(settings, tokenizer, template)
    monkeypatch.setattr(preparation, "_write", refuse_to_work)
    again = prepare(replace(settings, max_dropped_fraction=0.5), tokenizer, template)
    assert list(again.train) == list(first.train)


Change = Callable[[DataSettings, "PreTrainedTokenizerFast"], None]


def more_rows(settings: DataSettings, _: object) -> None:
    write_rows(Path(settings.path), 41)


def same_size_and_date(settings: DataSettings, _: object) -> None:
    path = Path(settings.path)
    before = path.stat()
    path.write_text(path.read_text().replace("It is 7.", "It is 8."), encoding="utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def shorter(settings: DataSettings, _: object) -> None:
    settings.max_length = 12


def other_draw(settings: DataSettings, _: object) -> None:
    settings.split_seed = 7


def other_template(settings: DataSettings, _: object) -> None:
    settings.template = "alpaca"


def one_more_token(_: object, tokenizer: "PreTrainedTokenizerFast") -> None:
    tokenizer.add_tokens(["It is"])


def less_context(_: object, tokenizer: "PreTrainedTokenizerFast") -> None:
    tokenizer.model_max_length = 10


@pytest.mark.parametrize(
    "change",
    [more_rows, same_size_and_date, shorter, other_draw, other_template, one_more_token,
     less_context],
)  # fmt: skip
def test_whatever_the_rows_depend_on_makes_them_anew(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerFast", change: Change
) -> None:
    before = prepare(settings, tokenizer, choose_template(tokenizer, settings.template))
    change(settings, tokenizer)
    template = choose_template(tokenizer, settings.template)
    after = prepare(settings, tokenizer, template)
    assert remark(after) == KEPT
    splits = load_conversations(settings, tokenizer)
    expected = [
        list(tokenize(rows, tokenizer, template, settings)) for rows in (splits.train, splits.eval)
    ]
    assert [list(after.train), list(after.eval)] == expected
    assert expected != [list(before.train), list(before.eval)]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "no manifest", "half written"])
def test_a_damaged_entry_is_made_anew(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerFast", template: Template, damage: str
) -> None:
    first = list(prepare(settings, tokenizer, template).train)
    (entry,) = (path for path in Path(settings.cache).iterdir() if path.is_dir())
    content = (entry / "ids").read_bytes()
    if damage == "flipped":
        (entry / "ids").write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "cut":
        (entry / "ids").write_bytes(content[:-4])
    elif damage == "gone":
        (entry / "labels").unlink()
    elif damage == "no manifest":
        (entry / "manifest.json").unlink()
    else:
        entry.rename(entry.with_name(f".{entry.name}.part"))
    again = prepare(settings, tokenizer, template)
    assert remark(again) == KEPT
    assert list(again.train) == first
    assert remark(prepare(settings, tokenizer, template)) == TAKEN


def test_of_two_processes_at_once_one_does_the_work(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerFast", template: Template
) -> None:
    write_rows(Path(settings.path), 200)
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[str] = context.Queue()

    def prepare_and_tell() -> None:
        answers.put(remark(prepare(settings, tokenizer, template)))

    both = [context.Process(target=prepare_and_tell) for _ in range(2)]
    for process in both:
        process.start()
    assert sorted(answers.get(timeout=60) for _ in both) == [KEPT, TAKEN]
    for process in both:
        process.join()
    assert len([path for path in Path(settings.cache).iterdir() if path.is_dir()]) == 1


def test_small_data_is_not_kept_and_large_data_stands_in_hugging_faces_cache(
    settings: DataSettings,
    tokenizer: "PreTrainedTokenizerFast",
    template: Template,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    settings.cache = "auto"
    assert prepare(settings, tokenizer, template).remarks == []
    assert not (tmp_path / "home").exists()
    monkeypatch.setattr("sft_kit.data.cache.MIN_BYTES", Path(settings.path).stat().st_size)
    assert remark(prepare(settings, tokenizer, template)) == KEPT
    (entry,) = (path for path in (tmp_path / "home/sft_kit/rows").iterdir() if path.is_dir())
    assert sum(path.stat().st_size for path in entry.iterdir()) > 0


def test_a_folder_that_cannot_be_written_costs_the_cache_only(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerFast", template: Template, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    rows = prepare(settings, tokenizer, template)
    (said,) = rows.remarks
    assert said.startswith(f"data: tokenized rows are not kept in {tmp_path / 'cache'}: ")
    splits = load_conversations(settings, tokenizer)
    assert list(rows.train) == list(tokenize(splits.train, tokenizer, template, settings))


def test_bad_rows_stop_it_or_are_skipped_with_their_lines_and_nothing_is_left_behind(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerFast", template: Template
) -> None:
    path = Path(settings.path)
    bad = ['{"instruction": "a", "output": 5}', '{"instruction": "b <|endoftext|>", "output": "c"}']
    path.write_text("\n".join([bad[0], path.read_text(), bad[1]]), encoding="utf-8")
    lines = [f"{path}:1", f"{path}:44"]
    with pytest.raises(FormatError, match="2 of 43 rows") as error:
        prepare(settings, tokenizer, template)
    assert [problem.where for problem in error.value.problems] == lines
    assert not [entry for entry in Path(settings.cache).iterdir() if entry.is_dir()]
    settings.on_bad_row = "skip"
    for _ in range(2):
        rows = prepare(settings, tokenizer, template)
        assert [problem.where for problem in rows.report.bad_rows] == lines
        assert rows.report == load_conversations(settings, tokenizer).report


def test_rows_that_the_template_refuses_are_all_named_across_batches(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerFast"
) -> None:
    source = (
        "{% for m in messages %}{% if 'What is 4?' in m['content'] or 'What is 2000?' in "
        "m['content'] %}{{ raise_exception('no') }}{% endif %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer.chat_template = source
    template = choose_template(tokenizer, "auto")
    write_rows(Path(settings.path), 2 * ROWS_AT_ONCE)
    with pytest.raises(DataError, match="can't be rendered") as error:
        prepare(settings, tokenizer, template)
    lines = [problem.where.rpartition(":")[2] for problem in error.value.problems]
    assert lines == ["5", "6", "2001", "2002"]
