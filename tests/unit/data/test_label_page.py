"""The HTML page: well-formed, self-contained, and the data in it stays data."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from sft_kit.data.inspection import inspect_labels
from sft_kit.data.label_page import write_page
from sft_kit.data.rows import IGNORED, Example, ReadReport, Where
from sft_kit.data.token_text import mark_tokens
from sft_kit.errors import ConfigError, Problem

VOID = {"meta", "input", "br", "hr", "img", "link"}
HOSTILE = 'How <script>alert("x")</script> & </pre> {{ 7 * 7 }} 龘\x1b?\n'


class Page(HTMLParser):
    """Read a page back: text by class, attributes, and whether every tag is closed in order."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.tags, self.attributes = [], [], [], []
        self.tokens, self.texts, self.style = [], [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))
        if "token" in (dict(attrs).get("class") or "").split() and self.is_inside("pre"):
            self.tokens.append([dict(attrs), ""])

    def handle_endtag(self, tag):
        if not self.open or self.open[-1][0] != tag:
            self.faults.append(tag)
        else:
            self.open.pop()

    def handle_data(self, data):
        if self.is_inside("style"):
            self.style += data
        elif self.is_inside("pre"):
            self.tokens[-1][1] += data
        else:
            self.texts.append(data)

    def is_inside(self, name):
        return any(tag == name for tag, _ in self.open)


@pytest.fixture
def example(tokenizer):
    prompt = tokenizer(HOSTILE)["input_ids"]
    completion = [*tokenizer(" 今天 <b>")["input_ids"], tokenizer.eos_token_id]
    labels = [IGNORED] * len(prompt) + completion
    return Example(prompt + completion, labels, True, Where("<i>.json", 3))


@pytest.fixture
def page_of(example, tokenizer, tmp_path):
    def write(*, evaluation=True, notes=("2 of 3 <rows>.",)):
        reading = ReadReport(
            "messages", 2, unknown_roles={"<u>": 4}, num_bad_rows=1,
            bad_rows=[Problem("x.json:1", "role", "found <s>")],
        )  # fmt: skip
        report = inspect_labels([example], (tokenizer.eos_token_id,))
        path = tmp_path / "page.html"
        write_page(
            str(path), reading, report, report if evaluation else None,
            [mark_tokens(example, tokenizer)], notes, sources=[example],
        )  # fmt: skip
        return path.read_text(encoding="utf-8")

    return write


def test_every_tag_is_closed_in_order(page_of):
    page = Page(page_of())
    assert page.faults == []
    assert page.open == []
    assert page.tags.count("html") == page.tags.count("body") == 1


def test_page_refers_to_nothing_outside_itself(page_of):
    source = page_of()
    page = Page(source)
    assert "http:" not in source
    assert "https:" not in source
    assert "//" not in page.style
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {"src", "href", "srcset"} & {name for name, _ in page.attributes}


def test_style_reaches_the_page_unescaped(page_of):
    style = Page(page_of()).style
    assert "&" not in style
    assert style.count("{") == style.count("}") > 20
    assert "prefers-color-scheme: dark" in style


def test_tokens_hold_the_text_of_the_example_and_their_ids(page_of, example, tokenizer):
    tokens = Page(page_of()).tokens
    text = "".join(text for _, text in tokens)
    expected = HOSTILE.replace("\x1b", "‹U+001B›").replace("\n", "↵\n") + " 今天 <b><|endoftext|>"
    assert text == expected
    ids = [int(number) for attributes, _ in tokens for number in attributes["title"].split()]
    assert ids == example.input_ids


def test_learnt_tokens_are_the_supervised_ones(page_of):
    learnt = [
        text for attributes, text in Page(page_of()).tokens if "learnt" in attributes["class"]
    ]
    assert "".join(learnt) == " 今天 <b><|endoftext|>"


def test_a_character_of_several_tokens_is_one_chip(page_of, tokenizer):
    (chip,) = [attributes for attributes, text in Page(page_of()).tokens if "龘" in text]
    assert len(chip["title"].split()) == len("龘".encode())


def test_markup_in_data_stays_text_everywhere(page_of):
    source = page_of()
    page = Page(source)
    text = "".join(page.texts)
    assert "<script" not in source
    assert not {"script", "b", "i", "u", "s", "rows"} & set(page.tags)
    for literal in ("<i>.json:3", "'<u>' (4)", "found <s>", "2 of 3 <rows>."):
        assert literal in text
    assert "{{ 7 * 7 }}" in "".join(text for _, text in page.tokens)


def test_captions_come_in_pairs_of_english_and_chinese(page_of):
    classes = [value for name, value in Page(page_of()).attributes if name == "class"]
    assert classes.count("en") == classes.count("zh") > 15


def test_page_without_evaluation_split_has_one_column_less(page_of):
    both, one = Page(page_of()), Page(page_of(evaluation=False, notes=()))
    assert "evaluation" in both.texts
    assert "evaluation" not in one.texts
    assert both.tags.count("td") - one.tags.count("td") == 7  # one for each figure of a split
    assert "Worth a look" not in one.texts


def test_a_failed_write_leaves_the_earlier_page_and_no_scraps(page_of, tmp_path, monkeypatch):
    earlier = page_of()

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ConfigError, match="No space left on device"):
        page_of(evaluation=False)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == earlier
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("name", ["missing/page.html", "."])
def test_a_page_that_can_not_be_written_is_reported_with_its_path(tmp_path, tokenizer, name):
    report = inspect_labels([], (tokenizer.eos_token_id,))
    path = tmp_path / name
    with pytest.raises(ConfigError) as caught:
        write_page(str(path), ReadReport("text"), report, None, [], [])
    assert str(path) in str(caught.value)
