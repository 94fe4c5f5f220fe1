"""The label doctor in a terminal: figures, length histogram and examples with learnt tokens marked.

Colour is never the only carrier: without it, learnt tokens stand between ⟦ and ⟧.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from sft_kit.data.inspection import LabelReport, histogram, name_places
from sft_kit.data.rows import Example, ReadReport
from sft_kit.data.token_text import MarkedToken, readable
from sft_kit.errors import Problem

_LEARNT = "bold green"
_READ = "dim"
_MAX_BAR_CELLS = 40
_MAX_TOKENS_PER_SPAN = 120
_MAX_NAMED_BAD_ROWS = 10
_MARKS = {"good": ("✓", "green"), "bad": ("!", "bold yellow"), "neutral": ("", "")}


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the figures, for either view.

    Attributes:
        english: Caption in English.
        chinese: The same caption in Chinese.
        value: The figure as text.
        verdict: Whether it is as it should be; "neutral" where there is no such thing.
    """

    english: str
    chinese: str
    value: str
    verdict: Literal["good", "bad", "neutral"] = "neutral"


def label_figures(report: LabelReport) -> list[Figure]:
    """List the figures of one split; every split has the same captions in the same order."""
    total = report.num_examples
    lengths = (report.min_length, report.median_length, report.p90_length, report.longest_length)
    supervised = f"{report.num_supervised:,} ({report.supervised_fraction:.1%})"
    return [
        Figure("examples", "样本数", f"{total:,}"),
        Figure("tokens", "词元数", f"{report.num_tokens:,}"),
        Figure(
            "supervised tokens",
            "参与训练的词元",
            supervised,
            "neutral" if report.num_supervised else "bad",
        ),
        Figure(
            "length: min / median / p90 / max",
            "长度：最短 / 中位 / 90% 分位 / 最长",
            " / ".join(f"{length:,}" for length in lengths),
        ),
        Figure(
            "cut at max_length",
            "因 max_length 被截断",
            *share_figure(report.num_cut, total, good=0),
        ),
        Figure(
            "no supervised token left",
            "没有可学习的词元",
            *share_figure(report.num_unlabelled, total, good=0),
        ),
        Figure(
            "end in a supervised stop token",
            "以可学习的结束词元收尾",
            *share_figure(report.num_with_stop, total, good=total),
        ),
    ]


def reading_figures(report: ReadReport) -> list[Figure]:
    """List what reading the files found."""
    roles = ", ".join(
        f"{readable(role)!r} ({count:,})" for role, count in report.unknown_roles.items()
    )
    overlaps = f" {name_places(report.overlaps)}" if report.overlaps else ""
    fingerprints = [report.fingerprint[:16], report.eval_fingerprint[:16]]
    return [
        Figure("format", "格式", report.format),
        Figure("rows read", "读取的行", f"{report.num_rows:,}"),
        Figure("bad rows skipped", "跳过的坏行", *count_figure(report.num_bad_rows)),
        Figure("duplicate rows", "重复的行", *count_figure(report.num_duplicates)),
        Figure(
            "held-out rows also in training",
            "评估集与训练集重叠",
            f"{report.num_overlaps:,}{overlaps}",
            "bad" if report.num_overlaps else "good",
        ),
        Figure("unknown roles", "未知角色", roles or "0", "bad" if roles else "good"),
        Figure(
            "fingerprint (sha256)",
            "数据指纹 (sha256)",
            " / ".join(filter(None, fingerprints)) or "-",
        ),
    ]


def example_caption(
    tokens: Sequence[MarkedToken],
    stop_token_ids: tuple[int, ...],
    source: Example | None = None,
) -> Figure:
    """Say what a shown example is: place, size, and whether it ends in a supervised stop token."""
    learnt = [token for token in tokens if token.supervised]
    stops = bool(learnt) and learnt[-1].id in stop_token_ids
    cut = source is not None and source.was_cut
    place = f"{readable(str(source.where))} · " if source else ""
    size = f"{len(learnt):,} / {len(tokens):,}"
    return Figure(
        f"{place}{size} tokens supervised{' · cut at max_length' if cut else ''} · "
        f"{'ends' if stops else 'does not end'} in a supervised stop token",
        f"{place}{size} 个词元参与训练{' · 已被截断' if cut else ''} · "
        f"{'以可学习的结束词元收尾' if stops else '没有以可学习的结束词元收尾'}",
        "",
        "good" if stops else "bad",
    )


def render_tokens(tokens: Sequence[MarkedToken], *, has_colour: bool) -> Text:
    """Lay out an example as text with its supervised tokens marked.

    Every other token is underlined where there is colour, so that token borders can be seen. Long
    spans are shown with their beginning and end.
    """
    text = Text()
    for is_learnt, span in groupby(tokens, key=lambda token: token.supervised):
        style = _LEARNT if is_learnt else _READ
        opening, closing = ("⟦", "⟧") if is_learnt and not has_colour else ("", "")
        text.append(opening)
        pieces = [piece for piece in _shorten([token.text for token in span]) if piece]
        for index, piece in enumerate(pieces):
            underline = " underline" if has_colour and index % 2 else ""
            text.append(readable(piece), style + underline)
        text.append(closing)
    return text


def show_report(
    console: Console,
    splits_report: ReadReport,
    train: LabelReport,
    evaluation: LabelReport | None,
    examples: Sequence[Sequence[MarkedToken]],
    notes: Sequence[str],
    *,
    sources: Sequence[Example] = (),
) -> None:
    """Print all that is known about the labels.

    Args:
        console: Where to print; without colour the marks are brackets.
        splits_report: What reading found.
        train: Figures of the training split.
        evaluation: Figures of the held-out split, if there is one.
        examples: Examples to show, from `mark_tokens`.
        notes: Warnings to end with, each a sentence.
        sources: The examples that were marked, in the same order: adds place and cut to captions.
    """
    console.print(Rule("rows", align="left"))
    console.print(figure_table([reading_figures(splits_report)], []))
    show_problems(console, splits_report.bad_rows)
    console.print(Rule("labels", align="left"))
    splits = [label_figures(train)] + ([label_figures(evaluation)] if evaluation else [])
    console.print(figure_table(splits, ["training", "evaluation"][: len(splits)]))
    console.print(Rule("tokens per training example", align="left"))
    console.print(histogram_table(train.lengths))
    _show_examples(console, examples, train, sources)
    for note in notes:
        console.print(Text(f"! {readable(note)}", style="yellow"), soft_wrap=True)


def _show_examples(
    console: Console,
    examples: Sequence[Sequence[MarkedToken]],
    report: LabelReport,
    sources: Sequence[Example],
) -> None:
    if not examples:
        return
    has_colour = console.color_system is not None and not console.no_color
    console.print(Rule("examples", align="left"))
    console.print(_legend(has_colour=has_colour))
    for index, tokens in enumerate(examples):
        source = sources[index] if index < len(sources) else None
        caption = example_caption(tokens, report.stop_token_ids, source)
        console.print()
        console.print(marked(f"{index + 1}. {caption.english}", caption.verdict), soft_wrap=True)
        console.print(render_tokens(tokens, has_colour=has_colour))
    console.print()


def _legend(*, has_colour: bool) -> Text:
    if has_colour:
        return Text.assemble(
            ("learnt (supervised)", _LEARNT),
            "  ",
            ("only read (ignored)", _READ),
            "  every other token is ",
            ("underlined", "underline"),
            "  ↵ line end  ‹E4› byte of no character",
        )
    return Text("⟦learnt (supervised)⟧  only read (ignored)  ↵ line end  ‹E4› byte of no character")


def show_problems(console: Console, problems: Sequence[Problem]) -> None:
    """Print the first problems of skipped rows, and how many there are more."""
    for problem in problems[:_MAX_NAMED_BAD_ROWS]:
        console.print(Text(f"  {readable(str(problem))}"), soft_wrap=True)
    num_more = len(problems) - _MAX_NAMED_BAD_ROWS
    if num_more > 0:
        console.print(f"  ... and {num_more:,} more problems")


def figure_table(columns: Sequence[Sequence[Figure]], titles: Sequence[str]) -> Table:
    """Lay figures out with one column per split; all columns have the same captions."""
    table = Table(show_header=bool(titles), box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for index in range(len(columns)):
        table.add_column(titles[index] if titles else "", overflow="fold")
    for figures in zip(*columns, strict=True):
        cells = [marked(readable(figure.value), figure.verdict) for figure in figures]
        table.add_row(figures[0].english, *cells)
    return table


def histogram_table(lengths: Sequence[int]) -> Table:
    """Lay out the histogram of lengths as bars."""
    bins = histogram(lengths)
    tallest = max((count for _, _, count in bins), default=1)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_column()
    table.add_column(justify="right")
    for low, high, count in (one for one in bins if one[2]):
        num_cells = max(round(_MAX_BAR_CELLS * count / tallest), 1)
        label = f"{low:,}" if low == high else f"{low:,} - {high:,}"
        table.add_row(label, Text("█" * num_cells, style="cyan"), f"{count:,}")
    return table


def marked(value: str, verdict: Literal["good", "bad", "neutral"]) -> Text:
    """A value with the mark of its verdict behind it."""
    mark, style = _MARKS[verdict]
    return Text.assemble(value, " ", (mark, style)) if mark else Text(value)


def _shorten(pieces: Sequence[str]) -> list[str]:
    if len(pieces) <= _MAX_TOKENS_PER_SPAN:
        return list(pieces)
    half = _MAX_TOKENS_PER_SPAN // 2
    num_left_out = len(pieces) - 2 * half
    return [*pieces[:half], f" [... {num_left_out:,} tokens ...] ", *pieces[-half:]]


def share_figure(count: int, total: int, good: int) -> tuple[str, Literal["good", "bad"]]:
    """Value and verdict of a count out of a total, which should be `good`."""
    share = f" ({count / total:.1%})" if total else ""
    return f"{count:,} of {total:,}{share}", "good" if count == good else "bad"


def count_figure(number: int) -> tuple[str, Literal["good", "bad"]]:
    """Value and verdict of a count that should be 0."""
    return f"{number:,}", "bad" if number else "good"
