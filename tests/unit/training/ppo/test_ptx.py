import copy
import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from sft_kit.data.packing import pack_documents
from sft_kit.data.rows import IGNORED, Conversation, Where
from sft_kit.data.templates import Template, choose_template
from sft_kit.errors import ConfigError, DataError, FormatError
from sft_kit.settings.ppo import PtxSettings
from sft_kit.training.ppo.ptx import load_ptx_rows, ptx_batch, ptx_warnings

CHATS = [
    {"instruction": f"How are you, {number}?", "output": f"I am well, {number}."}
    for number in range(5)
]


@pytest.fixture
def template(tokenizer: PreTrainedTokenizerFast) -> Template:
    return choose_template(tokenizer, "human-assistant")


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def test_chats_are_learnt_as_in_fine_tuning_and_all_of_them(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, template: Template
):
    settings = PtxSettings(path=write(tmp_path / "chats.jsonl", CHATS))
    rows = load_ptx_rows(settings, tokenizer, template)
    assert len(rows) == len(CHATS), "nothing is held out"
    for row, chat in zip(rows, CHATS, strict=True):
        learnt = [label for label in row.labels if label != IGNORED]
        assert tokenizer.decode(learnt).strip() == f"{chat['output']}<|endoftext|>"
        assert tokenizer.decode(row.input_ids).count(chat["instruction"]) == 1
    settings.loss_on = "all"
    for row in load_ptx_rows(settings, tokenizer, template):
        assert row.labels == [IGNORED, *row.input_ids[1:]]


def test_plain_text_is_packed_into_full_windows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, template: Template
):
    texts = [f"The quick brown fox jumps {number} times." for number in range(9)]
    path = write(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    settings = PtxSettings(path=path, max_length=16)
    rows = load_ptx_rows(settings, tokenizer, template)
    documents = [Conversation((), Where(path, 1), text=text) for text in texts]
    expected = pack_documents(documents, tokenizer, 16)
    assert [row.input_ids for row in rows] == [row.input_ids for row in expected]
    assert {len(row.input_ids) for row in rows} == {16}
    assert ptx_warnings(rows, settings, tokenizer, template) == []


def test_rows_without_anything_to_learn_are_left_out_and_cut_ones_are_told(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, template: Template
):
    long = {"instruction": "word " * 300, "output": "never seen"}
    path = write(tmp_path / "chats.jsonl", [*(CHATS * 40), long])
    half = {"instruction": "Say it all.", "output": "word " * 300}
    halves = write(tmp_path / "halves.jsonl", [*CHATS, half])
    settings = PtxSettings(path=path, max_length=128)
    assert len(load_ptx_rows(settings, tokenizer, template)) == 200
    settings.path = halves
    rows = load_ptx_rows(settings, tokenizer, template)
    told = "\n".join(ptx_warnings(rows, settings, tokenizer, template)).replace(str(tmp_path), "")
    assert "1 of 6 rows were cut" in told
    assert "Raise ptx.max_length" in told
    assert "data." not in told


def test_rows_never_exceed_the_context_of_the_model(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, template: Template
):
    texts = [{"text": f"The quick brown fox jumps {number} times."} for number in range(9)]
    settings = PtxSettings(path=write(tmp_path / "texts.jsonl", texts), max_length=100_000)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 24
    rows = load_ptx_rows(settings, tokenizer, template)
    assert {len(row.input_ids) for row in rows} == {24}
    assert settings.max_length == 100_000


def test_a_path_that_is_not_set_is_refused(tokenizer: PreTrainedTokenizerFast, template: Template):
    with pytest.raises(ConfigError, match=r"ptx.path: found null, accepts a file"):
        load_ptx_rows(PtxSettings(coefficient=0.1), tokenizer, template)


@pytest.mark.parametrize(
    ("rows", "settings", "kind", "said"),
    [
        ([{"a": "b"}], {}, FormatError, "name the format with ptx.format"),
        ([{"text": "short"}], {"max_length": 64}, DataError, "lower ptx.max_length"),
        ([*CHATS, {"instruction": "x", "output": 3}], {}, FormatError, "repair them):"),
        ([{"instruction": "word " * 300, "output": "x"}], {}, DataError, "raise ptx.max_length"),
    ],
)
def test_bad_rows_are_told_with_the_keys_of_ptx(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    template: Template,
    rows: list[dict[str, str]],
    settings: dict[str, int],
    kind: type[DataError],
    said: str,
):
    ptx = PtxSettings(path=write(tmp_path / "rows.jsonl", rows), **settings)
    with pytest.raises(kind) as caught:
        load_ptx_rows(ptx, tokenizer, template)
    assert said in str(caught.value)
    assert "data." not in str(caught.value).replace(str(tmp_path), "")


def test_too_many_cut_rows_are_told_without_a_setting_that_ptx_lacks(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, template: Template
):
    long = {"instruction": "word " * 300, "output": "x"}
    ptx = PtxSettings(path=write(tmp_path / "rows.jsonl", [*CHATS, long]), max_length=128)
    with pytest.raises(DataError) as caught:
        load_ptx_rows(ptx, tokenizer, template)
    (problem,) = caught.value.problems
    assert problem.message.endswith("accepted is a share of 0.01 at most")
    assert problem.todo == "raise ptx.max_length, repair or remove these rows"


def test_batches_go_through_all_rows_before_any_comes_again(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, template: Template
):
    settings = PtxSettings(path=write(tmp_path / "chats.jsonl", CHATS))
    rows = load_ptx_rows(settings, tokenizer, template)
    stream = [row for cursor in (0, 3, 6) for row in ptx_batch(rows, cursor, 3, seed=1)]
    stream += ptx_batch(rows, 9, 11, seed=1)  # more rows than there are
    lines = [row.where.line for row in stream]
    for epoch in range(4):
        assert sorted(lines[5 * epoch : 5 * epoch + 5]) == [1, 2, 3, 4, 5]
    assert [row.where.line for row in ptx_batch(rows, 0, 20, seed=1)] == lines
