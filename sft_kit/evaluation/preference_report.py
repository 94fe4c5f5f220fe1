"""A report on a reward model as JSON, Markdown and PNG, and in the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from types import MappingProxyType

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft_kit.data.inspection import counted
from sft_kit.evaluation.markdown import escape, one_line, shortened, table
from sft_kit.evaluation.preference import Calibration, RewardReport, Share
from sft_kit.evaluation.preference_examples import PromptScore
from sft_kit.evaluation.report import json_text

PREFERENCE_REPORT_FILES = ("evaluation.json", "evaluation.md", "margins.png")
"""Every name that `preference_report_files` gives a file."""

_NUM_BARS = 40  # even: an edge is at 0, which parts wrong pairs from right ones
_DPI = 120


def preference_report_files(
    report: RewardReport, *, about: Mapping[str, str] = MappingProxyType({})
) -> dict[str, bytes]:
    """Write a report as files.

    Args:
        report: What.
        about: What was evaluated on what, caption -> text.

    Returns:
        Name -> content: `evaluation.json` with every figure, `evaluation.md` to read, and
        `margins.png`, the histogram of the differences of the pairs' scores.
    """
    figures = {"about": dict(about), **asdict(report)}
    return {
        "evaluation.json": f"{json_text(figures)}\n".encode(),
        "evaluation.md": "\n".join(_markdown(report, about)).encode(),
        "margins.png": margins_picture(report.differences),
    }


def show_preference_report(console: Console, report: RewardReport) -> None:
    """Print the figures and the accuracy of each part.

    Args:
        console: Where to.
        report: What.
    """
    figures = Table(title="comparisons", title_justify="left", show_header=False)
    for caption, value in _figure_lines(report):
        figures.add_row(Text(caption), Text(value))
    console.print(figures)
    parts = Table("part", "pairs", "accuracy", title="accuracy by part", title_justify="left")
    for share in (*report.by_source, *report.by_length, *report.by_longer):
        parts.add_row(*map(Text, _share_line(share)))
    console.print(parts)


def margins_picture(differences: Sequence[float]) -> bytes:
    """Draw how far apart the scores of the pairs are, wrong pairs in another colour.

    Args:
        differences: Better minus worse answer's score, at least one.

    Returns:
        PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = np.asarray(differences)
    reach = float(np.abs(values).max()) or 1.0
    edges = np.linspace(-reach, reach, _NUM_BARS + 1).tolist()
    figure = Figure(figsize=(7, 4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, chosen, colour in (
        ("right", values > 0, "tab:blue"),
        ("wrong or equal", values <= 0, "tab:red"),
    ):
        label = f"{name}: {counted(int(chosen.sum()), 'pair')}"
        axes.hist(values[chosen], bins=edges, color=colour, label=label)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlabel("score of the better answer minus score of the worse one")
    axes.set_ylabel("pairs")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _figure_lines(report: RewardReport) -> list[tuple[str, str]]:
    """Caption and value of every figure that is one number."""
    low, high = report.accuracy_interval
    correlation = report.score_length_correlation
    found = "undefined (all are equal)" if correlation is None else f"{correlation:+.4f}"
    return [
        ("comparisons", f"{report.num_groups:,}, with {report.num_pairs:,} pairs"),
        ("accuracy", f"{report.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f})"),
        *_exact_bound(report),
        ("pairs with equal scores", f"{report.ties_fraction:.4f}, not counted as right"),
        ("baseline: the longer answer wins", f"accuracy {report.longer_accuracy:.4f}"),
        ("baseline: the shorter answer wins", f"accuracy {report.shorter_accuracy:.4f}"),
        ("rank correlation of score and length", found),
        ("loss in nats", f"{report.loss:.4f} (always 0.5: 0.6931)"),
        ("calibration", _calibration_text(report.calibration)),
        ("calibration, fitted on these pairs", _fitted_text(report)),
        ("score of the best answers", f"{report.chosen_mean:.4f} ± {report.chosen_std:.4f}"),
        ("mean of all scores", f"{report.score_mean:.4f}"),
        (
            "standard deviation of scores",
            f"{report.prompt_std:.4f} between prompts, {report.answer_std:.4f} among the answers "
            "to one prompt",
        ),
    ]


def _exact_bound(report: RewardReport) -> list[tuple[str, str]]:
    """Say what the bootstrap can't where all are right or wrong: the exact one-sided 95 % bound.

    G groups are all right with a probability of at least 5 % while the accuracy is 0.05 ^ (1 / G)
    or more (Clopper and Pearson 1934).
    """
    if report.accuracy not in (0.0, 1.0):
        return []
    bound = 0.05 ** (1 / report.num_groups)
    if report.accuracy:
        return [("", f"every pair is right: with so few it may still be as low as {bound:.4f}")]
    return [("", f"no pair is right: with so few it may still be up to {1 - bound:.4f}")]


def _calibration_text(calibration: Calibration) -> str:
    return (
        f"Brier score {calibration.brier:.4f} (always 0.5: 0.2500), expected calibration error "
        f"{calibration.calibration_error:.4f}"
    )


def _fitted_text(report: RewardReport) -> str:
    if report.fitted is None:
        return "no temperature suits them: all are right, or they are worse than chance"
    return f"temperature {report.fitted.temperature:.4f}: {_calibration_text(report.fitted)}"


def _share_line(share: Share) -> list[str]:
    return [one_line(share.name), f"{share.num_pairs:,}", f"{share.accuracy:.4f}"]


# --- Markdown ------------------------------------------------------------------------------------


def _markdown(report: RewardReport, about: Mapping[str, str]) -> list[str]:
    lines = ["# Evaluation", ""]
    if about:
        lines += table(("", ""), [(caption, escape(value)) for caption, value in about.items()])
    figures = [(escape(caption), escape(value)) for caption, value in _figure_lines(report)]
    lines += ["## Figures", "", *table(("", ""), figures)]
    lines += ["![histogram of the differences](margins.png)", ""]
    for title, shares in (
        ("By source", report.by_source),
        ("By length of the longer answer", report.by_length),
        ("By which answer is longer", report.by_longer),
    ):
        rows = [[escape(cell) for cell in _share_line(share)] for share in shares]
        lines += [f"## {title}", "", *table(("part", "pairs", "accuracy"), rows)]
    lines += ["## Prompts by the mean score of their answers", ""]
    lines += _prompt_table("highest", report.highest)
    lines += _prompt_table("lowest", report.lowest)
    return lines + _wrong_lines(report)


def _prompt_table(caption: str, prompts: Sequence[PromptScore]) -> list[str]:
    rows = [
        [escape(one.where), f"{one.score:.4f}", _cell(one.prompt, keep_end=True)] for one in prompts
    ]
    return table(("row", caption, "prompt"), rows)


def _wrong_lines(report: RewardReport) -> list[str]:
    if not report.wrong:
        return []
    rows = [
        [
            escape(one.where),
            _cell(one.prompt, keep_end=True),
            f"{one.chosen_score:.4f}",
            _cell(one.chosen),
            f"{one.rejected_score:.4f}",
            _cell(one.rejected),
        ]
        for one in report.wrong
    ]
    shown = f"{len(report.wrong):,} of {report.num_wrong:,}"
    captions = ("row", "prompt", "score", "better answer", "score", "answer taken for better")
    return [
        *(f"## Wrong pairs ({shown})", "", "The largest difference first.", ""),
        *table(captions, rows),
    ]


def _cell(text: str, *, keep_end: bool = False) -> str:
    return escape(shortened(one_line(text), keep_end=keep_end))
