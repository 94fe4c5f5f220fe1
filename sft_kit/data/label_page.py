"""The label doctor as one HTML file that needs nothing else: no script, no font, no address.

English and Chinese captions are both in the page; two radio buttons choose between them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from sft_kit.data.inspection import LabelReport, histogram
from sft_kit.data.label_view import Figure, example_caption, label_figures, reading_figures
from sft_kit.data.rows import Example, ReadReport
from sft_kit.data.token_text import MarkedToken, readable
from sft_kit.errors import ConfigError, Problem

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --paper: #fcfcfd;
  --line: #e0e1e6; --learnt: #d3f4dc; --learnt-alt: #b9e9c7; --learnt-ink: #11452a;
  --alt: #e3e6ea; --bar: #3e8ed0; --good: #18794e; --bad: #ad5700; --note: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #a5abb4; --paper: #111315;
  --line: #30343a; --learnt: #143d27; --learnt-alt: #1c5133; --learnt-ink: #c3f3d3;
  --alt: #24282d; --bar: #4a9bdc; --good: #4cc38a; --bad: #ffb454; --note: #3a2e10; } }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, "Noto Sans CJK SC", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
header { display: flex; justify-content: space-between; align-items: center; gap: 1rem; }
body:has(#zh:checked) .en, body:not(:has(#zh:checked)) .zh { display: none; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem 1rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 600; } tbody th { font-weight: 400; width: 42%; }
.good::after { content: " \\2713"; color: var(--good); font-weight: 700; }
.bad::after { content: " !"; color: var(--bad); font-weight: 700; }
.bad { color: var(--bad); }
ul.notes { background: var(--note); border-radius: .5rem; padding: .8rem 1rem .8rem 2rem; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .25rem .8rem;
  font-variant-numeric: tabular-nums; }
.bars span:nth-child(3n+1) { text-align: right; color: var(--soft); }
.bar { background: var(--bar); border-radius: .2rem; min-width: 1px; height: 1rem;
  align-self: center; }
figure { margin: 1rem 0; border: 1px solid var(--line); border-radius: .5rem; }
figcaption { padding: .5rem .9rem; border-bottom: 1px solid var(--line); color: var(--soft); }
pre { margin: 0; padding: .9rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .92rem/1.75 ui-monospace, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace; }
.token { border-radius: .2rem; } .token:nth-child(even) { background: var(--alt); }
.learnt { background: var(--learnt); color: var(--learnt-ink);
  border-bottom: 2px solid var(--good); }
.learnt:nth-child(even) { background: var(--learnt-alt); }
"""
"""What all pages look like, in light and in dark."""

PAGE_START = """\
{%- macro both(english, chinese) -%}
<span class="en" lang="en">{{ english }}</span><span class="zh" lang="zh-Hans">{{ chinese }}</span>
{%- endmacro -%}
{%- macro heads() -%}
<th>{{ both("training", "训练集") }}</th>
{%- if has_evaluation %}<th>{{ both("evaluation", "评估集") }}</th>{% endif %}
{%- endmacro -%}
{%- macro figures(rows) -%}
{%- for row in rows %}
<tr><th>{{ both(row[0].english, row[0].chinese) }}</th>
{%- for figure in row %}
<td class="{{ figure.verdict }}">{{ figure.value }}</td>
{%- endfor %}</tr>
{%- endfor %}
{%- endmacro -%}
{%- macro lines(items) -%}
<ul>{% for item in items %}<li>{{ item }}</li>{% endfor %}</ul>
{%- endmacro -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title.english }} · {{ title.chinese }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<header>
<h1>{{ both(title.english, title.chinese) }}</h1>
<div>
<label><input type="radio" name="language" id="en" checked> English</label>
<label><input type="radio" name="language" id="zh"> 中文</label>
</div>
</header>
{%- if notes %}
<h2>{{ both("Worth a look", "值得注意") }}</h2>
<ul class="notes">{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
{%- endif %}
"""
"""What all pages begin with; takes `title`, `style`, `notes` and `has_evaluation`."""

LENGTH_BARS = """\
<div class="bars">
{%- for bar in bars %}
<span>{{ bar.label }}</span><span class="bar" style="width: {{ bar.width }}%"></span>
<span>{{ bar.count }}</span>
{%- endfor %}
</div>
"""
"""A histogram; takes `bars`."""

PAGE_END = """\
</body>
</html>
"""

_PAGE = (
    PAGE_START
    + """\
<h2>{{ both("Labels", "标签") }}</h2>
<table>
<thead><tr><td></td>{{ heads() }}</tr></thead>
<tbody>{{ figures(labels) }}
</tbody>
</table>
<h2>{{ both("Rows", "数据行") }}</h2>
<table>
<tbody>
{%- for figure in reading %}
<tr><th>{{ both(figure.english, figure.chinese) }}</th>
<td class="{{ figure.verdict }}">{{ figure.value }}</td></tr>
{%- endfor %}
</tbody>
</table>
{%- if bad_rows %}
<details><summary>{{ both("Bad rows", "坏行") }}</summary>
<ul>{% for row in bad_rows %}<li>{{ row }}</li>{% endfor %}</ul></details>
{%- endif %}
<h2>{{ both("Tokens per training example", "每个训练样本的词元数") }}</h2>
"""
    + LENGTH_BARS
    + """\
<h2>{{ both("Examples", "样本") }}</h2>
<p><span class="token learnt">{{ both("learnt (supervised)", "参与训练") }}</span>
{{ both("tokens are what the model is trained to write; the others are only read. "
  "The shade changes with every token; point at one to see its id. "
  "↵ is a line end, ‹E4› a byte that forms no character.",
  "的词元是模型要学会写出的；其余只作为输入。底色逐词元交替，指向词元可查看编号。"
  "↵ 表示换行，‹E4› 表示不构成字符的字节。") }}</p>
{%- for example in examples %}
<figure>
<figcaption class="{{ example.caption.verdict }}">
{{- both(example.caption.english, example.caption.chinese) }}</figcaption>
<pre>
{%- for chip in example.chips -%}
<span class="token{{ " learnt" if chip.is_learnt }}" title="{{ chip.title }}">{{ chip.text }}</span>
{%- endfor -%}
</pre>
</figure>
{%- endfor %}
"""
    + PAGE_END
)


@dataclass(frozen=True, slots=True)
class Title:
    """What a page is called, in both languages."""

    english: str
    chinese: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a histogram: its caption, its width in percent of the widest, its count."""

    label: str
    width: float
    count: str


@dataclass(frozen=True, slots=True)
class _Chip:
    text: str
    title: str
    is_learnt: bool


@dataclass(frozen=True, slots=True)
class _ShownExample:
    caption: Figure
    chips: list[_Chip]


def write_page(
    path: str,
    splits_report: ReadReport,
    train: LabelReport,
    evaluation: LabelReport | None,
    examples: Sequence[Sequence[MarkedToken]],
    notes: Sequence[str],
    *,
    sources: Sequence[Example] = (),
) -> None:
    """Write all that is known about the labels as one HTML file, whole or not at all.

    Args:
        path: File to write; an earlier one is replaced.
        splits_report: What reading found.
        train: Figures of the training split.
        evaluation: Figures of the held-out split, if there is one.
        examples: Examples to show, from `mark_tokens`.
        notes: Warnings, each a sentence.
        sources: The examples that were marked, in the same order: adds place and cut to captions.

    Raises:
        ConfigError: The file can't be written.
    """
    columns = [label_figures(train)] + ([label_figures(evaluation)] if evaluation else [])
    page = (
        Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            style=STYLE,
            notes=[readable(note) for note in notes],
            title=Title("Label doctor", "标签检查"),
            has_evaluation=evaluation is not None,
            labels=list(zip(*columns, strict=True)),
            reading=reading_figures(splits_report),
            bad_rows=[readable(str(problem)) for problem in splits_report.bad_rows],
            bars=length_bars(train.lengths),
            examples=_shown_examples(examples, train, sources),
        )
    )
    write_whole(Path(path), page)


def length_bars(lengths: Sequence[int]) -> list[Bar]:
    """The histogram of lengths as bars."""
    bins = histogram(lengths, num_bins=16)
    tallest = max((count for _, _, count in bins), default=1)
    return [
        Bar(
            f"{low:,}" if low == high else f"{low:,} – {high:,}",
            round(100 * count / tallest, 2),
            f"{count:,}",
        )
        for low, high, count in bins
    ]


def _shown_examples(
    examples: Sequence[Sequence[MarkedToken]], report: LabelReport, sources: Sequence[Example]
) -> list[_ShownExample]:
    return [
        _ShownExample(
            example_caption(
                tokens,
                report.stop_token_ids,
                sources[index] if index < len(sources) else None,
            ),
            _chips(tokens),
        )
        for index, tokens in enumerate(examples)
    ]


def _chips(tokens: Sequence[MarkedToken]) -> list[_Chip]:
    """Join tokens that only together form a character into one chip that names all their ids."""
    groups: list[list[MarkedToken]] = []
    for token in tokens:
        if groups and not token.text and token.supervised == groups[-1][0].supervised:
            groups[-1].append(token)
        else:
            groups.append([token])
    return [
        _Chip(
            readable(group[0].text),
            " ".join(str(token.id) for token in group),
            group[0].supervised,
        )
        for group in groups
    ]


def write_whole(path: Path, text: str) -> None:
    """Write a page whole or not at all.

    Raises:
        ConfigError: The file can't be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        problem = Problem(
            str(path), "", error.strerror or str(error), "name a file in a folder that exists"
        )
        raise ConfigError("the page can't be written", [problem]) from error
