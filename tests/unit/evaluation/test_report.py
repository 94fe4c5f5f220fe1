"""A report as files and in the terminal: complete, readable, and harmless."""

import html
import io
import json
import re
import struct
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.font_manager
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

import sft_kit.evaluation.confusion as confusion_module
from sft_kit.data.labelled.rows import LabelledText
from sft_kit.data.rows import Where
from sft_kit.evaluation.classification import evaluate
from sft_kit.evaluation.report import report_files, show_report

TRICKY = (
    "a | b", "`code`", "<script>alert(1)</script>", "![x](http://x/y.png)", "line\nbreak",
    "tab\there", "$x_1$ *stars*", "escape\x1b[2J", "half \udcff", "好的", "back\\slash |",
)  # fmt: skip


def make_report(names, *, num_rows=60, multi_label=False, texts=TRICKY, seed=0, strength=1.0):
    draw = np.random.default_rng(seed)
    num_classes = len(names)
    if multi_label:
        labels = (draw.random((num_rows, num_classes)) < 0.4).astype(int)
        logits = draw.normal(size=labels.shape) + strength * labels
    else:
        labels = draw.integers(0, num_classes, num_rows)
        logits = draw.normal(size=(num_rows, num_classes)) + strength * np.eye(num_classes)[labels]
    rows = [
        LabelledText((texts[index % len(texts)],), (), Where("dev|set.tsv", index + 1))
        for index in range(num_rows)
    ]
    return evaluate(logits, labels, rows, names, multi_label=multi_label)


def table_rows(markdown):
    """Cells of each line of a Markdown table, split where GitHub splits them."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1] for line in lines]


@pytest.fixture
def drawn(monkeypatch):
    """The figures in the order in which they were saved."""
    figures = []
    save = Figure.savefig

    def keep(self, path, **options):
        figures.append(self)
        save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


# --- JSON ----------------------------------------------------------------------------------------


def test_json_holds_every_figure_as_it_is():
    report = make_report(("bad", "好", "ugly"))
    files = report_files(report, about={"data": "dev.tsv"})
    text = files["evaluation.json"].decode("utf-8")
    found = json.loads(text)
    assert "好" in text
    assert found.keys() == {"about", "not_trained_on", *report.__slots__}
    for name in report.__slots__:
        if name not in {"wrong", "per_class"}:
            assert found[name] == json.loads(json.dumps(getattr(report, name))), name
    assert found["per_class"][1] == {
        name: getattr(report.per_class[1], name) for name in report.per_class[1].__slots__
    }
    first = found["wrong"][0]
    assert first["where"] == str(report.wrong[0].where)
    assert first["texts"] == list(report.wrong[0].texts)
    assert first["probability"] == report.wrong[0].probability
    assert (found["about"], found["not_trained_on"]) == ({"data": "dev.tsv"}, None)


def test_json_of_two_reports_keeps_them_apart():
    all_rows, others = (make_report(("a", "b"), num_rows=count, seed=count) for count in (50, 30))
    files = report_files(all_rows, not_trained_on=others)
    found = json.loads(files["evaluation.json"])
    assert found["accuracy"] == all_rows.accuracy
    assert found["not_trained_on"]["accuracy"] == others.accuracy
    assert files.keys() == {
        "evaluation.json", "evaluation.md", "confusion.png", "confusion_not_trained_on.png"
    }  # fmt: skip
    markdown = files["evaluation.md"].decode()
    assert f"{all_rows.accuracy:.4f}" in markdown
    assert f"{others.accuracy:.4f}" in markdown
    assert "# Rows not trained on" in markdown


# --- Markdown ------------------------------------------------------------------------------------


def test_markdown_shows_figures_classes_and_the_surest_mistakes():
    report = make_report(("bad", "good", "ugly"))
    markdown = report_files(report)["evaluation.md"].decode("utf-8")
    rows = table_rows(markdown)
    figures = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
    low, high = report.accuracy_interval
    expected = f"{report.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f})"
    assert figures["accuracy"] == expected
    assert figures["macro F1"] == f"{report.macro_f1:.4f}"
    assert figures["Matthews correlation"] == f"{report.mcc:.4f}"
    assert figures["expected calibration error"] == f"{report.calibration_error:.4f}"
    classes = [row for row in rows if len(row) == 6 and row[0].strip().isdigit()]
    assert [row[1].strip() for row in classes] == ["bad", "good", "ugly"]
    assert [int(row[5]) for row in classes] == [one.support for one in report.per_class]
    wrong = [row for row in rows if len(row) == 5][2:]
    assert len(wrong) == min(20, report.num_wrong)
    assert [row[3].strip() for row in wrong] == [f"{one.probability:.4f}" for one in report.wrong]
    assert "![confusion matrix](confusion.png)" in markdown


def test_no_text_breaks_the_table_or_becomes_markup():
    report = make_report(("a|b", "<i>"), num_rows=len(TRICKY), strength=-20.0)
    shown = {row.texts[0] for row in report.wrong}
    assert shown == set(TRICKY)
    markdown = report_files(report, about={"run": "a|b"})["evaluation.md"].decode("utf-8")
    wrong = [row for row in table_rows(markdown) if "dev" in row[0]]
    assert len(wrong) == len(report.wrong)
    assert all(len(row) == 5 for row in wrong)
    for row, one in zip(wrong, report.wrong, strict=True):
        plain = html.unescape(re.sub(r"\\([\\`*_\[\]|~$])", r"\1", row[4].strip()))
        visible = plain.replace("‹U+001B›", "\x1b").replace("‹U+DCFF›", "\udcff")
        assert visible == " ".join(one.texts[0].split())
    cells = " ".join(cell for row in wrong for cell in row)
    assert not re.search(r"(?<!\\)[`*_\[\]$]", cells.replace("\\\\", ""))
    assert "\x1b" not in markdown

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            raise AssertionError(tag)

    Tags().feed(cells)


def test_long_texts_are_shortened_and_both_texts_of_a_pair_shown():
    rows = [LabelledText(("word " * 500, "the end"), (), Where("f.csv", 2))]
    report = evaluate(np.array([[5.0, 0.0]]), np.array([1]), rows, ("a", "b"))
    markdown = report_files(report)["evaluation.md"].decode("utf-8")
    (line,) = [line for line in markdown.splitlines() if line.startswith("| f.csv:2")]
    assert "… <br> the end |" in line
    assert len(line) < 400


@pytest.mark.parametrize(("labels", "word"), [([0] * 30, "low as"), ([1] * 30, "up to")])
def test_where_all_rows_are_alike_the_exact_bound_stands_beside_the_interval(labels, word):
    rows = [LabelledText(("x",), (), Where("f", line)) for line in range(30)]
    report = evaluate(np.tile([1.0, 0.0], (30, 1)), np.array(labels), rows, ("a", "b"))
    markdown = report_files(report)["evaluation.md"].decode("utf-8")
    # With this accuracy thirty right answers in a row are as rare as 1 in 20.
    bound = float(re.search(rf"{word} ([0-9.]+)", markdown).group(1))
    right = bound if word == "low as" else 1 - bound
    assert right**30 == pytest.approx(0.05, rel=0.01)
    assert report.accuracy_interval[0] == report.accuracy_interval[1]


# --- the picture ---------------------------------------------------------------------------------


def texts_in(axes):
    return [text.get_text() for text in axes.texts]


def test_the_picture_shows_counts_and_shares_of_each_true_class(drawn):
    report = make_report(("bad", "good", "ugly"))
    data = report_files(report)["confusion.png"]
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert 300 < width < 1_500
    assert 300 < height < 1_500
    axes = drawn[0].axes[0]
    counts = np.array(report.confusion)
    assert np.allclose(axes.images[0].get_array(), counts / counts.sum(axis=1, keepdims=True))
    expected = [
        f"{count}\n{count / row.sum():.0%}" if count else "0" for row in counts for count in row
    ]
    assert texts_in(axes) == expected
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bad", "good", "ugly"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    picture = matplotlib.image.imread(io.BytesIO(data))[..., :3]
    assert ((picture.max(axis=-1) - picture.min(axis=-1)) > 0.3).sum() > 1_000


def test_every_label_has_a_small_matrix_of_its_own(drawn):
    names = [f"label {index}" for index in range(8)]
    report = make_report(names, multi_label=True)
    report_files(report)
    axes = [one for one in drawn[0].axes if one.images]
    assert [one.get_title() for one in axes] == names
    for one, counts in zip(axes, report.label_confusions, strict=True):
        shown = [int(text.split("\n")[0]) for text in texts_in(one)]
        assert shown == np.array(counts).ravel().tolist()


def test_names_in_any_script_are_drawn_without_a_warning_or_replaced_by_ids(drawn, monkeypatch):
    names = ("正面", "отрицательный", "a_$^{_$", "x" * 60)
    report_files(make_report(names))
    shown = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    cut = f"{'x' * 23}…"
    assert shown in (["正面", "отрицательный", "a_$^{_$", cut], ["0", "1", "2", "3"])
    monkeypatch.setattr(matplotlib.font_manager.fontManager, "ttflist", [])
    report_files(make_report(names))
    assert [label.get_text() for label in drawn[1].axes[0].get_xticklabels()] == list("0123")
    report_files(make_report(("正面", "负面"), multi_label=True))
    assert [axes.get_title() for axes in drawn[2].axes if axes.images] == ["0", "1"]


def test_a_font_that_has_the_characters_is_found_where_one_is_installed(drawn):
    entries = matplotlib.font_manager.fontManager.ttflist
    if not any("CJK" in entry.name for entry in entries):
        pytest.skip("no CJK font is installed")
    report_files(make_report(("正面", "负面")))
    label = drawn[0].axes[0].get_xticklabels()[0]
    assert label.get_text() == "正面"
    font = matplotlib.font_manager.get_font(label.get_fontproperties().get_file())
    assert ord("正") in font.get_charmap()


def test_a_font_that_cannot_be_read_is_passed_over(tmp_path):
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    assert not confusion_module._has(str(broken), {65})
    assert not confusion_module._has(str(tmp_path / "absent.ttf"), {65})


@pytest.mark.parametrize("multi_label", [False, True])
def test_many_classes_still_make_a_picture_of_bearable_size(drawn, multi_label):
    names = [f"class {index}" for index in range(50)]
    files = report_files(make_report(names, num_rows=200, multi_label=multi_label))
    width, height = struct.unpack(">II", files["confusion.png"][16:24])
    assert max(width, height) < 3_000
    num_panels = sum(bool(axes.images) for axes in drawn[0].axes)
    assert num_panels == 24 if multi_label else not texts_in(drawn[0].axes[0])


# --- the terminal --------------------------------------------------------------------------------


def shown(report, width=100):
    output = io.StringIO()
    show_report(Console(file=output, width=width), report, "all rows")
    return output.getvalue()


def test_the_terminal_shows_the_same_figures_and_runs_no_markup():
    report = make_report(("[red]bad[/red]", "go\x1b[2Jod", "ugly"))
    text = shown(report)
    assert "[red]bad[/red]" in text
    assert "\x1b" not in text
    assert f"{report.macro_f1:.4f}" in text
    assert f"{report.per_class[0].precision:.4f}" in text
    assert "all rows" in text


def test_what_is_undefined_is_called_so():
    report = replace(make_report(("a", "b")), roc_auc=None, roc_auc_note="one class only")
    assert "undefined (one class only)" in shown(report)
    several = shown(make_report(("a", "b"), multi_label=True))
    assert "all labels of a row right" in several
    assert "Matthews" not in several
