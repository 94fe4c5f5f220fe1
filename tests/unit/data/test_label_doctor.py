"""The label doctor as a whole, on a tokenizer with blanks before texts and two stop tokens."""

import io
import json

import pytest
from rich.console import Console

from sft_kit.config import Resolved
from sft_kit.errors import DataError
from sft_kit.label_doctor import show_labels

from .conftest import ROLES, ROUNDS


@pytest.fixture
def report(blank_tokenizer, tmp_path):
    """Function from a template to the printed report and the page of a chat with two answers."""
    turns = [("user", "水？"), ("assistant", "yes 龘"), ("user", "no?"), ("assistant", "no world")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")

    def show(source, **data):
        tokenizer = blank_tokenizer("prepend")
        tokenizer.chat_template = source
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        sections = {
            "model": {"checkpoint": str(tmp_path / "tokenizer")},
            "data": {"path": str(tmp_path / "rows.jsonl"), "eval_fraction": 0.0, **data},
        }
        resolved = Resolved(tmp_path / "recipe.py", sections, {})
        stream = io.StringIO()
        console = Console(file=stream, width=200, no_color=True, color_system=None)
        show_labels(console, resolved, 1, tmp_path / "page.html")
        return stream.getvalue(), (tmp_path / "page.html").read_text(encoding="utf-8")

    return show


def test_both_stop_tokens_are_named_and_every_answer_is_marked(report):
    out, page = report(ROLES)
    assert "stop token </s> (id 2), <|user|> (id " in out
    assert "when a turn follows" in out
    assert "⟦ ↵\n yes 龘<|user|>⟧ ↵\n no?<|assistant|>⟦ ↵\n no world</s>⟧" in out
    assert "ends in a supervised stop token" in out
    assert "not learnt" not in out + page


def test_an_answer_that_is_only_read_is_told_in_the_terminal_and_on_the_page(report):
    out, page = report(ROUNDS)
    assert "stop token </s> (id 2), only the last answer of a chat is learnt" in out
    assert "[gMASK]<sop> 问：水？↵\n↵\n答：yes 龘↵\n↵\n问：no?↵\n↵\n答：⟦ no world</s>⟧" in out
    for text in (out, page):
        assert "1 of 1 rows have earlier answers that are read but not learnt, 1 in all" in text


def test_a_row_cut_behind_an_earlier_answer_still_ends_in_a_stop_token(report, blank_tokenizer):
    kept = "[gMASK]<sop><|user|>\n 水？<|assistant|>\n yes 龘<|user|>\n"
    num_kept = len(blank_tokenizer("prepend")(kept, add_special_tokens=False)["input_ids"])
    out, page = report(ROLES, max_length=num_kept)
    for text in (out, page):
        assert "cut at max_length · ends in a supervised stop token" in text
    assert "⟦ ↵\n yes 龘<|user|>⟧ ↵\n" in out
    with pytest.raises(DataError, match="ends in a supervised stop token"):
        report(ROLES, max_length=num_kept - 3)
