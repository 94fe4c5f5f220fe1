"""What a model wrote for held-out sources, measured, as JSON and Markdown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Protocol

from sft_kit.data.pairs.rows import Pair
from sft_kit.evaluation.markdown import escape, one_line, shortened, table
from sft_kit.evaluation.report import json_text
from sft_kit.evaluation.writing import Unit, choose_unit, rouge_by_row, score_texts
from sft_kit.settings import CountBy

_MAX_ROWS_SHOWN = 20


class WrittenText(Protocol):
    """A text, and whether the model ended it by itself."""

    @property
    def text(self) -> str: ...  # noqa: D102

    @property
    def stopped(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class WrittenRow:
    """One pair and what the model wrote.

    Attributes:
        where: The row it came from.
        source: What was read.
        target: What should have been written.
        written: What was written.
        stopped: The model ended the text itself.
        rougeL: F measure, 0 to 1.
    """

    where: str
    source: str
    target: str
    written: str
    stopped: bool
    rougeL: float  # noqa: N815 (the name of the measure)


@dataclass(frozen=True, slots=True)
class WritingReport:
    """Figures over all rows, and the rows.

    Attributes:
        count_by: What ROUGE and BLEU counted.
        figures: From `score_texts`, and `exact_match`, the share of texts that are right but for
            white space, and `stopped_fraction`.
        copied: The same of a model that writes what it reads: no figure should be below it.
        rows: In the order of the file.
    """

    count_by: Unit
    figures: dict[str, float]
    copied: dict[str, float]
    rows: tuple[WrittenRow, ...]

    def metrics(self) -> dict[str, float]:
        """Figures for `metrics.json`."""
        return {f"eval_{name}": value for name, value in self.figures.items()}


def evaluate_writing(
    pairs: Sequence[Pair], written: Sequence[WrittenText], count_by: CountBy = "auto"
) -> WritingReport:
    """Measure written texts.

    Args:
        pairs: Held-out pairs, at least one.
        written: One for each.
        count_by: What ROUGE and BLEU count.
    """
    texts = [one.text for one in written]
    sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
    unit = choose_unit(targets, count_by)
    figures = _figures(texts, targets, unit)
    figures["stopped_fraction"] = fmean(one.stopped for one in written)
    rows = tuple(
        WrittenRow(
            str(pair.where), pair.source, pair.target, one.text, one.stopped, rouge["rougeL"]
        )
        for pair, one, rouge in zip(pairs, written, rouge_by_row(texts, targets, unit), strict=True)
    )
    return WritingReport(unit, figures, _figures(sources, targets, unit), rows)


def _figures(texts: Sequence[str], targets: Sequence[str], unit: Unit) -> dict[str, float]:
    matches = fmean(
        text.split() == target.split() for text, target in zip(texts, targets, strict=True)
    )
    return {**score_texts(texts, targets, unit), "exact_match": matches}


def writing_files(report: WritingReport) -> dict[str, bytes]:
    """Write a report as files.

    Returns:
        Name -> content: `evaluation.json` with every row, `evaluation.md` to read.
    """
    figures = {
        "count_by": report.count_by,
        "num_rows": len(report.rows),
        "figures": report.figures,
        "copied": report.copied,
        "rows": [asdict(row) for row in report.rows],
    }
    return {
        "evaluation.json": f"{json_text(figures)}\n".encode(),
        "evaluation.md": "\n".join(_markdown(report)).encode(),
    }


def _markdown(report: WritingReport) -> list[str]:
    lines = [
        *("# Evaluation", "", f"{len(report.rows):,} texts, counted by {report.count_by}.", ""),
        *("ROUGE is an F measure from 0 to 1, BLEU goes from 0 to 100.", ""),
    ]
    figures = [
        (
            escape(name),
            f"{value:.4f}",
            f"{report.copied[name]:.4f}" if name in report.copied else "",
        )
        for name, value in report.figures.items()
    ]
    lines += table(("", "written", "baseline: the source copied"), figures)
    shown = sorted(report.rows, key=lambda row: row.rougeL)[:_MAX_ROWS_SHOWN]
    lines += [f"## Texts ({len(shown):,} of {len(report.rows):,})", ""]
    lines += ["The one least like its target first; … did not stop by itself.", ""]
    return lines + table(("row", "ROUGE-L", "source", "target", "written"), list(map(_line, shown)))


def _line(row: WrittenRow) -> list[str]:
    written = row.written if row.stopped else f"{row.written} …"
    texts = [escape(shortened(one_line(text))) for text in (row.source, row.target, written)]
    return [escape(row.where), f"{row.rougeL:.4f}", *texts]
