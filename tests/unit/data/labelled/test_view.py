"""Labelled data in the terminal and on a page: the figures are there, and data stays data."""

import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from sft_kit.data.labelled.inspection import Baseline, ClassBalance, Lengths
from sft_kit.data.labelled.page import write_view
from sft_kit.data.labelled.report import LabelledReport, LabelledSplits
from sft_kit.data.labelled.rows import LabelledExample, LabelledText
from sft_kit.data.labelled.view import LabelledView, SplitFigures, conflict_lines, show_view
from sft_kit.data.rows import Where
from sft_kit.errors import ConfigError, Problem

HOSTILE = "<script>alert(1)</script> & {{ 7 * 7 }} [bold]x[/bold] 龘\x1b[2J\n"
LONG = "long " * 100


def row(line, label, *texts, file="train.tsv"):
    return LabelledText(texts or (f"text {line}",), (label,) if label else (), Where(file, line))


@pytest.fixture
def view():
    train = [row(1, "good", HOSTILE, LONG), row(2, "<b>bad</b>", "short", "second"), row(3, "good")]
    held_out = [row(7, "odd", file="dev.tsv")]
    report = LabelledReport(
        num_rows=12_345,
        num_bad_rows=1,
        bad_rows=[Problem("train.tsv:9", "label", "found <i>nothing</i>", "write it")],
        num_eval_path_rows=1200,
        num_duplicates=1358,
        num_eval_duplicates=22,
        conflicts=[(row(4, "good", HOSTILE), row(5, "bad", HOSTILE), row(6, "good", HOSTILE))],
        overlaps=[Where("dev.tsv", line) for line in range(4, 344)],
        num_overlap_texts=337,
        num_overlap_conflicts=8,
        num_dropped_duplicates=3,
        num_dropped_conflicts=4,
        num_dropped_train=355,
        fingerprint="f" * 64,
        eval_fingerprint="e" * 64,
        reading_notes=["data: train.tsv is read as <latin-1>"],
    )
    splits = LabelledSplits(train, held_out, ("good", "<b>bad</b>"), report)
    examples = [
        (train[0], LabelledExample([1] * 48, [], 0, was_cut=True, where=train[0].where)),
        (train[1], LabelledExample([1] * 7, [], 1, was_cut=False, where=train[1].where)),
    ]
    figures = [
        SplitFigures(
            ClassBalance(3, (2, 1, 0), 0),
            Baseline(("good",), 2 / 3, 0.2667),
            Lengths((48, 7, 5), (train[0].where,)),
        ),
        SplitFigures(
            ClassBalance(1, (0, 0, 1), 0), Baseline(("good",), 0.0, 0.0), Lengths((6,), ())
        ),
    ]
    names = ["good", "<b>bad</b>", "odd"]
    return LabelledView(splits, names, figures, examples, ["look <here>"])


def shown(view, **console):
    stream = io.StringIO()
    show_view(Console(file=stream, width=160, color_system=None, **console), view)
    return stream.getvalue()


class Page(HTMLParser):
    """Read a page back: its text, its tags, and whether each is closed in order."""

    VOID = frozenset({"meta", "input"})

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.tags, self.attributes, self.text = [], [], set(), [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture
def page(view, tmp_path):
    write_view(tmp_path / "page.html", view)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


FACTS = [
    "12,345",
    "1,358 / 22",
    "340 of 1,200 (337 texts; 8 rows with another label) (lines 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, ",
    "7 / 355 / 0",
    "3 / 1",
    "f" * 16 + " / " + "e" * 16,
    "data: train.tsv is read as <latin-1>",
    "train.tsv:9: label: found <i>nothing</i> (write it)",
    "good: train.tsv:4, train.tsv:6; bad: train.tsv:5 — <script>alert(1)</script> & {{ 7 * 7 }}",
    "2 (66.7%)",
    "1 (33.3%)",
    "1 (100.0%)",
    "0.6667",
    "0.2667",
    "5 / 7 / 48 / 48",
    "1 of 3 (33.3%)",
    "train.tsv:1 · good · 48 tokens · cut at max_length",
    "train.tsv:2 · <b>bad</b> · 7 tokens",
    "<script>alert(1)</script> & {{ 7 * 7 }} [bold]x[/bold] 龘‹U+001B›[2J",
    "[... 200 characters]",
    "look <here>",
    "odd",
]


@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_is_in_the_terminal_and_on_the_page(view, page, fact):
    assert fact in shown(view)
    assert fact in Page(page).text


def test_the_page_is_well_formed_and_nothing_of_the_data_becomes_a_tag(page):
    parsed = Page(page)
    assert (parsed.open, parsed.faults) == ([], [])
    assert not parsed.tags & {"script", "b", "i", "a", "img", "link", "here", "latin-1"}
    names = {name for name, _ in parsed.attributes}
    assert not names & {"href", "src", "onclick"}
    assert "default-src 'none'" in page
    assert "\x1b" not in page


def test_no_escape_sequence_reaches_the_terminal(view):
    assert "\x1b" not in shown(view)


def test_a_held_out_label_without_class_id_has_none_in_the_table(view):
    (line,) = [line for line in shown(view).splitlines() if "odd" in line]
    assert line.split()[:2] == ["-", "odd"]


def test_both_languages_have_every_caption(page):
    english, chinese = page.count('class="en"'), page.count('class="zh"')
    assert english == chinese > 20


def test_without_held_out_rows_there_is_one_column(view, tmp_path):
    view.splits.report.eval_fingerprint = ""
    alone = LabelledView(view.splits, view.label_names, view.figures[:1], [], [])
    assert "evaluation" not in shown(alone)
    write_view(tmp_path / "page.html", alone)
    text = Page((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "评估集" not in text.replace("评估集与训练集重叠", "")
    assert "Examples" not in text


def test_no_more_than_ten_contradictions_are_written_out(view):
    report = LabelledReport(conflicts=[(row(n, "a"), row(n + 1, "b")) for n in range(14)])
    lines = conflict_lines(report)
    assert len(lines) == 11
    assert lines[-1] == "... and 4 more"
    many = LabelledReport(conflicts=[(*(row(n, "a") for n in range(9)), row(10, "b"))])
    assert "train.tsv:4, ...; b: train.tsv:10" in conflict_lines(many)[0]


def test_a_page_that_cannot_be_written_is_a_users_mistake(view, tmp_path):
    with pytest.raises(ConfigError, match="can't be written"):
        write_view(tmp_path / "none" / "page.html", view)
