"""Compared answers in a terminal: counts, lengths, contradictions, answers side by side."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from sft_kit.data.label_view import (
    Figure,
    count_figure,
    figure_table,
    histogram_table,
    show_problems,
)
from sft_kit.data.preference.comparing import PLAIN
from sft_kit.data.preference.inspection import PreferenceFigures, spread
from sft_kit.data.preference.report import PreferenceReport, PreferenceSplits, PromptSplits
from sft_kit.data.preference.rows import PreferenceExample
from sft_kit.data.rows import Message
from sft_kit.data.token_text import readable

MAX_CONTRADICTIONS = 10
"""Contradicting comparisons that are named."""
TELLING_FRACTION = 0.6
"""Share of pairs from which on the longer (or shorter) answer is told to win."""

_MAX_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class PreferenceView:
    """Everything that is shown.

    Attributes:
        splits: The comparisons, and what was found about them.
        figures: Of training, and of evaluation where there is one.
        examples: Training comparisons to show.
        notes: Warnings, each a sentence.
    """

    splits: PreferenceSplits
    figures: Sequence[PreferenceFigures]
    examples: Sequence[PreferenceExample]
    notes: Sequence[str]


def show_preference_view(console: Console, view: PreferenceView) -> None:
    """Print all that is known about compared answers."""
    titles = ["training", "evaluation"][: len(view.figures)]
    report = view.splits.report
    console.print(Rule("rows", align="left"))
    console.print(figure_table([preference_reading_figures(view.splits)], []))
    show_problems(console, report.bad_rows)
    if report.contradictions:
        console.print(Rule("contradicting comparisons", align="left"))
    for line in contradiction_lines(report):
        console.print(Text(line), soft_wrap=True)
    console.print(Rule("comparisons", align="left"))
    console.print(figure_table([comparison_figures(one) for one in view.figures], titles))
    console.print(Rule("tokens per answer", align="left"))
    console.print(
        histogram_table([*view.figures[0].better_lengths, *view.figures[0].worse_lengths])
    )
    if view.examples:
        console.print(Rule("examples", align="left"))
    for example in view.examples:
        console.print(Text(comparison_caption(example), style="bold"), soft_wrap=True)
        for line in shown_turns(example.comparison.prompt):
            console.print(Text(line, style="dim"))
        console.print(_side_by_side(example))
    for note in view.notes:
        console.print(Text(f"! {readable(note)}", style="yellow"), soft_wrap=True)


def show_prompt_view(console: Console, splits: PromptSplits, num_examples: int, seed: int) -> None:
    """Print what is known about prompts: counts, lengths, and some of them.

    Args:
        console: Where to print.
        splits: The prompts, and what was found about them.
        num_examples: Training prompts to show.
        seed: Of the draw.
    """
    console.print(Rule("rows", align="left"))
    for note in splits.notes():
        console.print(Text(readable(note)), soft_wrap=True)
    show_problems(console, splits.report.bad_rows)
    console.print(Rule("tokens per prompt", align="left"))
    console.print(histogram_table([len(prompt.input_ids) for prompt in splits.train]))
    shown = random.Random(seed).sample(splits.train, min(num_examples, len(splits.train)))
    if shown:
        console.print(Rule("examples", align="left"))
    for prompt in shown:
        caption = f"{prompt.where} · {len(prompt.input_ids):,} tokens"
        console.print(Text(readable(caption), style="bold"), soft_wrap=True)
        plain = [Message(role=PLAIN, content=prompt.text)]
        for line in shown_turns(prompt.messages or plain):
            console.print(Text(line), soft_wrap=True)


def preference_reading_figures(splits: PreferenceSplits) -> list[Figure]:
    """List what reading and splitting found."""
    report = splits.report
    roles = ", ".join(
        f"{readable(role)!r} ({count:,})" for role, count in report.unknown_roles.items()
    )
    margins = " / ".join(f"{margin:g}" for margin in splits.margins or ())
    fingerprints = [report.fingerprint[:16], report.eval_fingerprint[:16]]
    return [
        Figure("format", "格式", report.format),
        Figure("rows read", "读取的行", f"{report.num_rows:,}"),
        Figure("bad rows", "坏行", *count_figure(report.num_bad_rows)),
        Figure(
            "rows without two different answers",
            "没有两个不同回答的行",
            *count_figure(len(report.equal_rows)),
        ),
        Figure("answers left out as ties", "因并列而排除的回答", *count_figure(report.num_ties)),
        Figure(
            "comparisons that repeat another", "重复的比较", *count_figure(report.num_duplicates)
        ),
        Figure(
            "comparisons that contradict another",
            "互相矛盾的比较",
            *count_figure(len(report.contradictions)),
        ),
        Figure(
            "left out of training: prompt is held out",
            "因提示词属于评估集而排除",
            *count_figure(report.num_overlaps),
        ),
        Figure("margins: min / median / max", "分差：最小 / 中位 / 最大", margins or "-"),
        Figure("unknown roles", "未知角色", roles or "0", "bad" if roles else "good"),
        Figure(
            "fingerprint (sha256)",
            "数据指纹 (sha256)",
            " / ".join(filter(None, fingerprints)) or "-",
        ),
    ]


def comparison_figures(figures: PreferenceFigures) -> list[Figure]:
    """List the figures of one split; every split has the same captions in the same order."""
    sizes = ", ".join(f"{size}: {count:,}" for size, count in figures.group_sizes.items())
    sources = ", ".join(f"{name}: {count:,}" for name, count in figures.sources.items())
    lengths = {
        ("prompt tokens: min / median / p90 / max", "提示词词元：最短 / 中位 / 90% 分位 / 最长"): (
            figures.prompt_lengths
        ),
        ("better answer", "较好的回答"): figures.better_lengths,
        ("worse answer", "较差的回答"): figures.worse_lengths,
    }
    return [
        Figure("comparisons", "比较", f"{figures.num_comparisons:,}"),
        Figure("prompts", "提示词", f"{figures.num_prompts:,}"),
        Figure("answers of a prompt: comparisons", "每个提示词的回答数：比较数", sizes or "-"),
        Figure("pairs", "成对比较", f"{figures.num_pairs:,}"),
        Figure("sources", "来源", sources or "-"),
        *(
            Figure(*caption, " / ".join(f"{length:,}" for length in spread(values)))
            for caption, values in lengths.items()
        ),
        _share("the longer one is better", "较长的更好", figures.longer_wins_fraction),
        _share("the shorter one is better", "较短的更好", figures.shorter_wins_fraction),
    ]


def _share(english: str, chinese: str, fraction: float) -> Figure:
    is_telling = fraction >= TELLING_FRACTION
    return Figure(english, chinese, f"{fraction:.1%}", "bad" if is_telling else "neutral")


def contradiction_lines(report: PreferenceReport) -> list[str]:
    """Name the first comparisons that put two answers in another order than an earlier one."""
    lines = [
        readable(f"{second} contradicts {first}")
        for first, second in report.contradictions[:MAX_CONTRADICTIONS]
    ]
    num_more = len(report.contradictions) - MAX_CONTRADICTIONS
    return [*lines, f"... and {num_more:,} more"] if num_more > 0 else lines


def comparison_caption(example: PreferenceExample) -> str:
    """Say what a shown comparison is: place, tokens of the prompt and of each answer."""
    sizes = " > ".join(f"{len(ids) - example.num_prompt_tokens:,}" for ids in example.input_ids)
    margin = f" · margin {example.margin:g}" if example.margin else ""
    return readable(
        f"{example.comparison.where} · prompt {example.num_prompt_tokens:,} tokens · answers "
        f"{sizes}{margin}"
    )


def shown_turns(messages: Sequence[Message]) -> list[str]:
    """Turns as they are shown: who speaks, and the text, with what can't be seen made visible."""
    return [
        _shortened(
            message["content"]
            if message["role"] == PLAIN
            else f"{message['role']}: {message['content']}"
        )
        for message in messages
    ]


def _side_by_side(example: PreferenceExample) -> Table:
    answers = example.comparison.answers
    table = Table(show_header=True, show_lines=False, expand=True)
    names = ["chosen", "rejected"] if len(answers) == 2 else map(str, range(1, len(answers) + 1))
    for name in names:
        table.add_column(name, overflow="fold", ratio=1)
    table.add_row(*(Text("\n".join(shown_turns(answer))) for answer in answers))
    return table


def _shortened(text: str) -> str:
    if len(text) <= _MAX_CHARACTERS:
        return readable(text)
    num_more = len(text) - _MAX_CHARACTERS
    return f"{readable(text[:_MAX_CHARACTERS])} [... {num_more:,} characters]"
