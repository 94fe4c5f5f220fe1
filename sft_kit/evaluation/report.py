"""A classification report as JSON, Markdown and PNG, and in the terminal."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft_kit.data.token_text import readable
from sft_kit.evaluation.classification import ClassificationReport, WrongRow
from sft_kit.evaluation.confusion import confusion_picture
from sft_kit.evaluation.markdown import escape, one_line, shortened, table

REPORT_FILES = ("evaluation.json", "evaluation.md", "confusion.png", "confusion_not_trained_on.png")
"""Every name that `report_files` may give a file."""

_ALL_ROWS, _NOT_TRAINED_ON = "all rows", "rows not trained on"


def report_files(
    report: ClassificationReport,
    *,
    about: Mapping[str, str] = MappingProxyType({}),
    not_trained_on: ClassificationReport | None = None,
) -> dict[str, bytes]:
    """Write a report as files.

    Args:
        report: On all rows.
        about: What was evaluated on what, caption -> text.
        not_trained_on: On those of the rows that the model was not trained on, where there are
            others.

    Returns:
        Name -> content: `evaluation.json` with every figure, `evaluation.md` to read,
        `confusion.png`, and with `not_trained_on` `confusion_not_trained_on.png`.
    """
    figures = {
        "about": dict(about),
        **_as_json(report),
        "not_trained_on": None if not_trained_on is None else _as_json(not_trained_on),
    }
    reports = {_ALL_ROWS: report}
    pictures = {"confusion.png": confusion_picture(report)}
    if not_trained_on is not None:
        reports[_NOT_TRAINED_ON] = not_trained_on
        pictures["confusion_not_trained_on.png"] = confusion_picture(not_trained_on)
    return {
        "evaluation.json": f"{json_text(figures)}\n".encode(),
        "evaluation.md": "\n".join(_markdown(reports, about, list(pictures))).encode(),
        **pictures,
    }


def json_text(figures: object) -> str:
    """Write JSON that keeps every script readable; half a surrogate pair is spelled out."""
    text = json.dumps(figures, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def show_report(console: Console, report: ClassificationReport, title: str = _ALL_ROWS) -> None:
    """Print the figures and the table of classes.

    Args:
        console: Where to.
        report: What.
        title: Which rows these are.
    """
    figures = Table(title=title, title_justify="left", show_header=False)
    for caption, value in _figure_lines(report):
        figures.add_row(Text(caption), Text(value))
    console.print(figures)
    classes = Table(title="classes", title_justify="left")
    for caption in _CLASS_CAPTIONS:
        classes.add_column(caption, justify="left" if caption == "class" else "right")
    for line in _class_lines(report):
        classes.add_row(*map(Text, line))
    console.print(classes)


_CLASS_CAPTIONS = ("id", "class", "precision", "recall", "F1", "rows")


def _as_json(report: ClassificationReport) -> dict[str, object]:
    figures = asdict(report)
    figures["wrong"] = [{**asdict(row), "where": str(row.where)} for row in report.wrong]
    return figures


def _figure_lines(report: ClassificationReport) -> list[tuple[str, str]]:
    """Caption and value of every figure that is one number."""
    low, high = report.accuracy_interval
    accuracy = "all labels of a row right" if report.multi_label else "accuracy"
    lines = [
        ("rows", f"{report.num_rows:,}, {report.num_wrong:,} of them answered wrongly"),
        (accuracy, f"{report.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f})"),
    ]
    if report.num_wrong in (0, report.num_rows):
        lines.append(("", _nothing_to_resample(report)))
    if report.multi_label:
        lines.append(("micro F1", f"{report.micro_f1:.4f}"))
    lines += [("macro F1", f"{report.macro_f1:.4f}"), ("weighted F1", f"{report.weighted_f1:.4f}")]
    if report.mcc is not None:
        lines.append(("Matthews correlation", f"{report.mcc:.4f}"))
    area = "undefined" if report.roc_auc is None else f"{report.roc_auc:.4f}"
    note = f" ({readable(report.roc_auc_note)})" if report.roc_auc_note else ""
    return [
        *lines,
        ("area under the ROC curve", f"{area}{note}"),
        ("expected calibration error", f"{report.calibration_error:.4f}"),
        ("loss in nats", f"{report.loss:.4f}"),
        (
            f"baseline: always {_listed(report.majority)} (majority of these rows)",
            f"accuracy {report.majority_accuracy:.4f}, macro F1 {report.majority_macro_f1:.4f}",
        ),
    ]


def _nothing_to_resample(report: ClassificationReport) -> str:
    """Say what the bootstrap can't where all rows are alike: the exact one-sided 95 % bound.

    N rows are all right with a probability of at least 5 % while the accuracy is 0.05 ^ (1 / N) or
    more (Clopper and Pearson 1934).
    """
    bound = 0.05 ** (1 / report.num_rows)
    if report.num_wrong:
        return f"no row is right: with so many rows it may still be up to {1 - bound:.4f}"
    return f"every row is right: with so many rows it may still be as low as {bound:.4f}"


def _class_lines(report: ClassificationReport) -> list[list[str]]:
    return [
        [
            str(index),
            one_line(one.name),
            f"{one.precision:.4f}",
            f"{one.recall:.4f}",
            "-" if one.f1 is None else f"{one.f1:.4f}",
            f"{one.support:,}",
        ]
        for index, one in enumerate(report.per_class)
    ]


# --- Markdown ------------------------------------------------------------------------------------


def _markdown(
    reports: Mapping[str, ClassificationReport], about: Mapping[str, str], pictures: Sequence[str]
) -> list[str]:
    lines = ["# Evaluation", ""]
    if about:
        lines += table(("", ""), [(caption, escape(value)) for caption, value in about.items()])
    for (title, report), picture in zip(reports.items(), pictures, strict=True):
        if len(reports) > 1:
            lines += [f"# {title[0].upper()}{title[1:]}", ""]
        lines += _report_lines(report, picture)
    return lines


def _report_lines(report: ClassificationReport, picture: str) -> list[str]:
    figures = [(escape(caption), escape(value)) for caption, value in _figure_lines(report)]
    classes = [[escape(cell) for cell in line] for line in _class_lines(report)]
    lines = [
        *("## Figures", "", *table(("", ""), figures)),
        *("## Classes", "", *table(_CLASS_CAPTIONS, classes)),
        *(f"![confusion matrix]({picture})", ""),
    ]
    if report.wrong:
        captions = ("row", "true", "predicted", "probability", "text")
        what = "The answer the model was surest of first."
        if report.multi_label:
            what = "The row with the surest wrong decision about a label first."
        shown = f"{len(report.wrong):,} of {report.num_wrong:,}"
        lines += [f"## Wrong answers ({shown})", "", what, ""]
        lines += table(captions, [_wrong_line(row) for row in report.wrong])
    return lines


def _wrong_line(row: WrongRow) -> list[str]:
    texts = [shortened(one_line(text)) for text in row.texts]
    return [
        escape(str(row.where)),
        escape(_listed(row.true)),
        escape(_listed(row.predicted)),
        f"{row.probability:.4f}",
        " <br> ".join(map(escape, texts)),
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(one_line, names)) or "no label"
