"""Pretraining data in a terminal: figures, and examples with what is hidden and what is learnt.

Colour is never the only carrier: without it, what is learnt stands between ⟦ and ⟧.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.rule import Rule
from rich.text import Text as Styled

from sft_kit.data.corpus.inspection import RowFigures
from sft_kit.data.corpus.marking import CorruptedToken
from sft_kit.data.corpus.report import Text, TextSplits
from sft_kit.data.inspection import nearest_rank
from sft_kit.data.label_view import (
    Figure,
    figure_table,
    histogram_table,
    reading_figures,
    show_problems,
)
from sft_kit.data.token_text import MarkedToken, readable

_STYLES = {"kept": "dim", "hidden": "bold yellow", "changed": "bold red", "special": "dim italic"}
_LEARNT = "bold green"
_MAX_TOKENS = 256
LEGEND_WITHOUT_COLOUR = (
    "⟦x⟧ x is learnt as it stands  ⟦x->y⟧ x is read, y is learnt  the rest is only read  "
    "┃ a part of its own begins"
)
"""How the marks are read where there is no colour."""


@dataclass(frozen=True, slots=True)
class ShownExample:
    """One example as it is shown.

    Attributes:
        caption: What its tokens don't tell.
        tokens: What the model reads.
        written: What a decoder learns to write; None where there is no decoder of its own.
    """

    caption: str
    tokens: Sequence[CorruptedToken]
    written: Sequence[MarkedToken] | None


@dataclass(frozen=True, slots=True)
class CorpusView:
    """Everything that is shown.

    Attributes:
        objective: What is learnt, in words.
        splits: The texts, and what was found about them.
        figures: Of training, and of evaluation where there is one.
        commonest: Most frequent labels of training: text, share of all labels.
        examples: Training rows to show.
        notes: Warnings, each a sentence.
    """

    objective: str
    splits: TextSplits
    figures: Sequence[RowFigures]
    commonest: Sequence[tuple[str, float]]
    examples: Sequence[ShownExample]
    notes: Sequence[str]


def show_corpus_view(console: Console, view: CorpusView) -> None:
    """Print all that is known about pretraining data."""
    has_colour = console.color_system is not None and not console.no_color
    console.print(Styled(view.objective), soft_wrap=True)
    console.print(Rule("texts", align="left"))
    console.print(figure_table([reading_figures(view.splits.report)], []))
    show_problems(console, view.splits.report.bad_rows)
    console.print(Rule("examples made of them", align="left"))
    titles = ["training", "evaluation"][: len(view.figures)]
    console.print(figure_table(split_columns(view), titles))
    console.print(Rule("tokens per training example", align="left"))
    console.print(histogram_table(view.figures[0].lengths))
    if view.commonest:
        console.print(Rule("most frequent labels", align="left"))
        shown = "  ".join(f"{readable(text)!r} {share:.1%}" for text, share in view.commonest)
        console.print(Styled(shown))
    if view.examples:
        console.print(Rule("examples", align="left"))
        console.print(_legend(has_colour=has_colour))
    for number, example in enumerate(view.examples, start=1):
        console.print(Styled(f"\n{number}. {example.caption}", style="bold"), soft_wrap=True)
        console.print(render_example(example, has_colour=has_colour))
    for note in view.notes:
        console.print(Styled(f"! {readable(note)}", style="yellow"), soft_wrap=True)


def split_columns(view: CorpusView) -> list[list[Figure]]:
    """List the figures of every split; all have the same captions in the same order."""
    texts = (view.splits.train, view.splits.eval)
    ((commonest, _),) = view.figures[0].commonest_labels(1)
    is_sampled = any(one.num_measured < one.num_rows for one in view.figures)
    is_pairs = any(one.num_following + one.num_elsewhere for one in view.figures)
    has_spans = any(one.span_lengths for one in view.figures)
    is_in_place = any(one.num_masked + one.num_changed + one.num_left for one in view.figures)
    has_hidden = any(one.num_hidden for one in view.figures)
    columns = []
    for figures, split in zip(view.figures, texts, strict=False):
        column = _text_figures(figures, split)
        if is_sampled:
            column.insert(
                3, Figure("of those measured", "其中参与统计", f"{figures.num_measured:,}")
            )
        if has_hidden:
            column.append(_hidden(figures))
        if is_in_place:
            column.append(_fates(figures))
        if has_spans:
            column.append(_spans(figures))
        column += _learnt_figures(figures)
        if is_pairs:
            column.append(_pairs(figures))
        accuracy = f"{figures.share_of(commonest):.2%}"
        english = "accuracy of always saying the commonest label"
        column.append(Figure(english, "始终猜最常见标签的准确率", accuracy))
        columns.append(column)
    return columns


def _text_figures(figures: RowFigures, texts: Sequence[Text]) -> list[Figure]:
    characters = sum(len(text.text) for text in texts)
    per_character = f"{figures.num_text_tokens / characters:.3f}" if characters else "-"
    lengths = [nearest_rank(figures.lengths, share) for share in (0, 0.5, 0.9, 1)]
    unknown = f"{figures.num_unknown:,} ({figures.unknown_fraction:.2%})"
    return [
        Figure("texts", "文本数", f"{len(texts):,}"),
        Figure("characters", "字符数", f"{characters:,}"),
        Figure("examples", "样本数", f"{figures.num_rows:,}"),
        Figure("tokens", "词元数", f"{figures.num_tokens:,}"),
        Figure("tokens per character", "每字符词元数", per_character),
        Figure(
            "unknown tokens",
            "未知词元",
            unknown,
            "bad" if figures.num_unknown else "good",
        ),
        Figure(
            "length: min / median / p90 / max",
            "长度：最短 / 中位 / 90% 分位 / 最长",
            " / ".join(f"{length:,}" for length in lengths),
        ),
    ]


def _learnt_figures(figures: RowFigures) -> list[Figure]:
    total = sum(figures.lengths)
    return [
        Figure("tokens read", "模型读入的词元", _share(figures.num_read, total)),
        Figure(
            "labels learnt, of all tokens",
            "参与训练的标签（占全部词元）",
            _share(figures.num_learnt, total),
            "neutral" if figures.num_learnt else "bad",
        ),
    ]


def _hidden(figures: RowFigures) -> Figure:
    return Figure(
        "hidden or changed, of the ordinary tokens",
        "被遮盖或替换（占普通词元）",
        _share(figures.num_hidden, figures.num_ordinary),
    )


def _fates(figures: RowFigures) -> Figure:
    counts = (figures.num_masked, figures.num_changed, figures.num_left)
    total = max(1, sum(counts))
    return Figure(
        "in their place: mask / another token / itself",
        "替换为：掩码 / 其他词元 / 原词元",
        " / ".join(f"{count / total:.1%}" for count in counts),
    )


def _spans(figures: RowFigures) -> Figure:
    lengths = figures.span_lengths
    mean = sum(lengths) / max(1, len(lengths))
    return Figure(
        "hidden in a row: mean / median / max",
        "连续被遮盖：平均 / 中位 / 最长",
        f"{mean:.2f} / {nearest_rank(lengths, 0.5)} / {max(lengths, default=0)}",
    )


def _pairs(figures: RowFigures) -> Figure:
    counts = (figures.num_following, figures.num_elsewhere, figures.num_unasked)
    return Figure(
        "second part: follows / from elsewhere / none",
        "第二部分：相连 / 取自别处 / 无",
        " / ".join(f"{count:,}" for count in counts),
    )


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else f"{count:,}"


def render_example(example: ShownExample, *, has_colour: bool) -> Styled:
    """Lay out what is read and, where a decoder writes, what is written on a line of its own."""
    text = render_corrupted(example.tokens, has_colour=has_colour)
    if example.written is None:
        return text
    opening, closing = ("", "") if has_colour else ("⟦", "⟧")
    written = "".join(readable(token.text) for token in example.written[:_MAX_TOKENS])
    more = _more(len(example.written))
    learnt = Styled.assemble((opening + written + closing, _LEARNT), more)
    return Styled.assemble(("read     ", "bold"), text, ("\nwritten  ", "bold"), learnt)


def render_corrupted(tokens: Sequence[CorruptedToken], *, has_colour: bool) -> Styled:
    """Lay out what is read as text, with what is hidden and what is learnt marked."""
    text = Styled()
    is_open = False
    for token in tokens[:_MAX_TOKENS]:
        is_plain = token.is_learnt and token.label is None
        if is_open and (not is_plain or token.is_bound):
            text.append("⟧")
            is_open = False
        if token.is_bound:
            text.append("┃", "bold")
        style = _LEARNT if token.is_learnt else _STYLES[token.fate]
        shown = readable(token.text)
        bare = shown.lstrip(" ")
        if token.label is None:
            if is_plain and not has_colour and not is_open:
                text.append(shown[: len(shown) - len(bare)] + "⟦")
                shown, is_open = bare, True
            text.append(shown, style)
            continue
        text.append(shown[: len(shown) - len(bare)])
        text.append("" if has_colour else "⟦")
        text.append(bare, style)
        text.append("->")
        text.append(readable(token.label).lstrip(" "), _LEARNT)
        text.append("" if has_colour else "⟧")
    if is_open:
        text.append("⟧")
    return text.append(_more(len(tokens)))


def _more(num_tokens: int) -> str:
    return f" [... {num_tokens - _MAX_TOKENS:,} more tokens]" if num_tokens > _MAX_TOKENS else ""


def _legend(*, has_colour: bool) -> Styled:
    if not has_colour:
        return Styled(LEGEND_WITHOUT_COLOUR)
    return Styled.assemble(
        ("learnt", _LEARNT),
        "  ",
        ("hidden", _STYLES["hidden"]),
        "  ",
        ("changed", _STYLES["changed"]),
        "  ",
        ("only read", _STYLES["kept"]),
        "  x->y: x is read, y is learnt  ┃ a part of its own begins",
    )
