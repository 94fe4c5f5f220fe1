"""Labelled data in a terminal: balance, repeats, overlap, lengths, examples."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from sft_kit.data.inspection import counted, name_places
from sft_kit.data.label_view import (
    Figure,
    count_figure,
    figure_table,
    histogram_table,
    share_figure,
    show_problems,
)
from sft_kit.data.labelled.doubts import FEW_ROWS
from sft_kit.data.labelled.inspection import Baseline, ClassBalance, Lengths
from sft_kit.data.labelled.reading import alike_in_one
from sft_kit.data.labelled.report import LabelledReport, LabelledSplits
from sft_kit.data.labelled.rows import LabelledExample, LabelledText
from sft_kit.data.token_text import readable

MAX_CONFLICTS = 10
"""Texts with contradicting labels that are written out."""

_MAX_PLACES = 5
_MAX_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class SplitFigures:
    """What is known about one split.

    Attributes:
        balance: Rows of each class.
        baseline: Score of the constant answer.
        lengths: Tokens of its examples.
    """

    balance: ClassBalance
    baseline: Baseline
    lengths: Lengths


@dataclass(frozen=True, slots=True)
class LabelledView:
    """Everything that is shown.

    Attributes:
        splits: The rows, and what was found about them.
        label_names: Class names by id; at the end held-out labels that have no id.
        figures: Of training, and of evaluation where there is one.
        examples: Training rows to show, with what the model sees of them.
        notes: Warnings, each a sentence.
    """

    splits: LabelledSplits
    label_names: Sequence[str]
    figures: Sequence[SplitFigures]
    examples: Sequence[tuple[LabelledText, LabelledExample]]
    notes: Sequence[str]


def show_view(console: Console, view: LabelledView) -> None:
    """Print all that is known about labelled data."""
    report = view.splits.report
    titles = ["training", "evaluation"][: len(view.figures)]
    console.print(Rule("rows", align="left"))
    for note in report.reading_notes:
        console.print(Text(readable(note)), soft_wrap=True)
    console.print(figure_table([reading_figures(view.splits)], []))
    show_problems(console, alike_in_one(report.bad_rows))
    if report.conflicts:
        console.print(Rule("contradicting labels of equal texts", align="left"))
    for line in conflict_lines(report):
        console.print(Text(line), soft_wrap=True)
    console.print(Rule("classes", align="left"))
    console.print(_class_table(view, titles))
    console.print(Rule("always the commonest answer of the training rows", align="left"))
    console.print(figure_table([baseline_figures(one.baseline) for one in view.figures], titles))
    console.print(Rule("tokens per text", align="left"))
    console.print(figure_table([length_figures(one.lengths) for one in view.figures], titles))
    console.print(histogram_table(view.figures[0].lengths.lengths))
    if view.examples:
        console.print(Rule("examples", align="left"))
    for row, example in view.examples:
        console.print(Text(example_caption(row, example), style="bold"), soft_wrap=True)
        for text in shown_texts(row):
            console.print(Text(f"  {text}"), soft_wrap=True)
    for note in view.notes:
        console.print(Text(f"! {readable(note)}", style="yellow"), soft_wrap=True)


def reading_figures(splits: LabelledSplits) -> list[Figure]:
    """List what reading and splitting found."""
    report = splits.report
    dropped = report.num_dropped_duplicates + report.num_dropped_conflicts
    left_out = (dropped, report.num_dropped_train, report.num_dropped_eval)
    fingerprints = [report.fingerprint[:16], report.eval_fingerprint[:16]]
    repeats = [report.num_duplicates, report.num_eval_duplicates]
    has_two_files = bool(report.eval_fingerprint)
    return [
        Figure("rows read", "读取的行", f"{report.num_rows:,}"),
        Figure("bad rows", "坏行", *count_figure(report.num_bad_rows)),
        Figure(
            "rows that repeat a text" + (": path / eval_path" if has_two_files else ""),
            "重复的行" + ("：训练文件 / 评估文件" if has_two_files else ""),
            " / ".join(f"{count:,}" for count in (repeats if has_two_files else repeats[:1])),
            "bad" if any(repeats) else "good",
        ),
        Figure(
            "texts with contradicting labels",
            "标签互相矛盾的文本",
            *count_figure(report.num_conflicts),
        ),
        Figure(
            "held-out rows also in training",
            "评估集与训练集重叠",
            _overlap(report),
            "bad" if report.num_overlaps else "good",
        ),
        Figure(
            "left out: repeats / training / held out",
            "排除的行：重复 / 训练 / 评估",
            " / ".join(f"{count:,}" for count in left_out),
        ),
        Figure(
            "to train on / held out",
            "用于训练 / 用于评估",
            f"{len(splits.train):,} / {len(splits.eval):,}",
        ),
        Figure(
            "fingerprint (sha256)",
            "数据指纹 (sha256)",
            " / ".join(filter(None, fingerprints)) or "-",
        ),
    ]


def baseline_figures(baseline: Baseline) -> list[Figure]:
    """List what a constant answer scores: what a classifier has to beat."""
    return [
        Figure("answer", "固定的回答", ", ".join(baseline.answer) or "no label"),
        Figure("accuracy", "准确率", f"{baseline.accuracy:.4f}"),
        Figure("macro F1", "宏平均 F1", f"{baseline.macro_f1:.4f}"),
    ]


def length_figures(lengths: Lengths) -> list[Figure]:
    """List how long the examples of a split are."""
    num_cut, num_texts = len(lengths.cut_rows), len(lengths.lengths)
    return [
        Figure(
            "length: min / median / p90 / max",
            "长度：最短 / 中位 / 90% 分位 / 最长",
            " / ".join(f"{length:,}" for length in lengths.spread()),
        ),
        Figure(
            "cut at max_length",
            "因 max_length 被截断",
            *share_figure(num_cut, num_texts, good=0),
        ),
    ]


def class_rows(view: LabelledView) -> list[list[str]]:
    """Count and share of each class in each split, as text."""
    return [
        [
            f"{one.balance.counts[index]:,} ({one.balance.fraction(index):.1%})"
            for one in view.figures
        ]
        for index in range(len(view.label_names))
    ]


def is_rare(view: LabelledView, class_id: int) -> bool:
    """Whether a class has hardly any training rows: it is marked."""
    return view.figures[0].balance.counts[class_id] <= FEW_ROWS


def conflict_lines(report: LabelledReport) -> list[str]:
    """Write out the first texts whose labels contradict, with the places of each label."""
    lines = []
    for rows in report.conflicts[:MAX_CONFLICTS]:
        by_label: dict[tuple[str, ...], list[LabelledText]] = {}
        for row in rows:
            by_label.setdefault(tuple(sorted(row.labels)), []).append(row)
        told = "; ".join(
            f"{label_words(same[0])}: {', '.join(str(row.where) for row in same[:_MAX_PLACES])}"
            f"{', ...' if len(same) > _MAX_PLACES else ''}"
            for same in by_label.values()
        )
        text = " | ".join(rows[0].texts)
        lines.append(readable(f"{told} — {text[:80]}{'...' if len(text) > 80 else ''}"))
    num_more = len(report.conflicts) - MAX_CONFLICTS
    return [*lines, f"... and {num_more:,} more"] if num_more > 0 else lines


def example_caption(row: LabelledText, example: LabelledExample) -> str:
    """Say what a shown example is: place, label, size."""
    cut = " · cut at max_length" if example.was_cut else ""
    size = f"{len(example.input_ids):,} tokens"
    return readable(f"{row.where} · {label_words(row)} · {size}{cut}")


def shown_texts(row: LabelledText) -> list[str]:
    """The texts of a row as they are shown: what can't be seen made visible, and not too long."""
    return [_shortened(text) for text in row.texts]


def label_words(row: LabelledText) -> str:
    """The labels of a row as text."""
    return ", ".join(row.labels) or "no label"


def _overlap(report: LabelledReport) -> str:
    if not report.overlaps:
        return "0"
    return (
        f"{report.num_overlaps:,} of {report.num_eval_path_rows:,} ("
        f"{counted(report.num_overlap_texts, 'text')}; "
        f"{counted(report.num_overlap_conflicts, 'row')} with another label) "
        f"{name_places(report.overlaps)}"
    )


def _class_table(view: LabelledView, titles: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("id", justify="right")
    table.add_column("class", overflow="fold")
    for title in titles:
        table.add_column(title, justify="right")
    for index, cells in enumerate(class_rows(view)):
        known = index < len(view.splits.label_names)
        name = view.label_names[index]
        shown = Text.assemble(readable(name), (" !", "yellow") if is_rare(view, index) else "")
        table.add_row(str(index) if known else "-", shown, *cells)
    return table


def _shortened(text: str) -> str:
    if len(text) <= _MAX_CHARACTERS:
        return readable(text)
    num_more = len(text) - _MAX_CHARACTERS
    return f"{readable(text[:_MAX_CHARACTERS])} [... {num_more:,} characters]"
