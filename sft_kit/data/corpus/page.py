"""Pretraining data as one HTML file that needs nothing else: no script, no font, no address.

English and Chinese captions are both in the page; two radio buttons choose between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from sft_kit.data.corpus.marking import CorruptedToken
from sft_kit.data.corpus.view import CorpusView, ShownExample, split_columns
from sft_kit.data.label_page import (
    LENGTH_BARS,
    PAGE_END,
    PAGE_START,
    STYLE,
    Title,
    length_bars,
    write_whole,
)
from sft_kit.data.label_view import reading_figures
from sft_kit.data.token_text import readable

_STYLE = (
    STYLE
    + """
.hidden { background: var(--note); color: var(--bad); }
.changed { color: var(--bad); text-decoration: line-through; }
.special { color: var(--soft); font-style: italic; }
.bound { border-left: 3px solid var(--bar); margin: 0 .3rem; }
"""
)
_PAGE = (
    PAGE_START
    + """\
<p>{{ objective }}</p>
<h2>{{ both("Texts", "文本") }}</h2>
<table><tbody>{{ figures(reading) }}</tbody></table>
{%- if bad_rows %}
<details><summary>{{ both("Bad rows", "坏行") }}</summary>{{ lines(bad_rows) }}</details>
{%- endif %}
<h2>{{ both("Examples made of them", "由文本得到的样本") }}</h2>
<table><thead><tr><td></td>{{ heads() }}</tr></thead><tbody>{{ figures(columns) }}</tbody></table>
<h2>{{ both("Tokens per training example", "每个训练样本的词元数") }}</h2>
"""
    + LENGTH_BARS
    + """\
{%- if commonest %}
<h2>{{ both("Most frequent labels", "最常见的标签") }}</h2>
<table><tbody>
{%- for text, share in commonest %}
<tr><th>{{ text }}</th><td>{{ share }}</td></tr>
{%- endfor %}
</tbody></table>
{%- endif %}
{%- if examples %}
<h2>{{ both("Examples", "样本") }}</h2>
<p><span class="token learnt">{{ both("learnt", "需学习") }}</span>
<span class="token hidden">{{ both("hidden", "被遮盖") }}</span>
<span class="token changed">{{ both("changed", "被替换") }}</span>
<span class="token special">{{ both("special token", "特殊词元") }}</span>
{{ both("A learnt token right behind a hidden or changed one belongs in its place. A bar is where "
  "a part of its own begins. Point at a token to see its id.",
  "紧跟在被遮盖或被替换词元之后的，是该处应填的词元。"
  "竖线表示新的部分开始。指向词元可查看编号。") }}</p>
{%- endif %}
{%- for example in examples %}
<figure>
<figcaption>{{ example.caption }}</figcaption>
<pre>{{ chips(example.read) }}</pre>
{%- if example.written %}
<figcaption>{{ both("written", "写出") }}</figcaption>
<pre>{{ chips(example.written) }}</pre>
{%- endif %}
</figure>
{%- endfor %}
"""
    + PAGE_END
)
_CHIPS = """\
{%- macro chips(tokens) -%}
{%- for chip in tokens -%}
{%- if chip.is_bound %}<span class="bound"></span>{% endif -%}
<span class="token {{ chip.kind }}" title="{{ chip.id }}">{{ chip.text }}</span>
{%- if chip.label %}<span class="learnt">{{ chip.label }}</span>{% endif -%}
{%- endfor -%}
{%- endmacro -%}
"""


@dataclass(frozen=True, slots=True)
class _Chip:
    text: str
    id: int
    kind: str
    label: str = ""
    is_bound: bool = False


@dataclass(frozen=True, slots=True)
class _Shown:
    caption: str
    read: list[_Chip]
    written: list[_Chip]


def write_corpus_view(path: Path, view: CorpusView) -> None:
    """Write all that is known about pretraining data as one HTML file, whole or not at all.

    Args:
        path: File to write; an earlier one is replaced.
        view: What to show.

    Raises:
        ConfigError: The file can't be written.
    """
    page = (
        Environment(autoescape=True)
        .from_string(_CHIPS + _PAGE)
        .render(
            style=_STYLE,
            title=Title("Pretraining data", "预训练数据"),
            objective=view.objective,
            has_evaluation=len(view.figures) > 1,
            notes=[readable(note) for note in view.notes],
            reading=[[figure] for figure in reading_figures(view.splits.report)],
            bad_rows=[readable(str(problem)) for problem in view.splits.report.bad_rows],
            columns=list(zip(*split_columns(view), strict=True)),
            bars=length_bars(view.figures[0].lengths),
            commonest=[(readable(text), f"{share:.1%}") for text, share in view.commonest],
            examples=[_shown(example) for example in view.examples],
        )
    )
    write_whole(path, page)


def _shown(example: ShownExample) -> _Shown:
    written = [_Chip(readable(token.text), token.id, "learnt") for token in example.written or ()]
    return _Shown(example.caption, _chips(example.tokens), written)


def _chips(tokens: Sequence[CorruptedToken]) -> list[_Chip]:
    return [
        _Chip(
            readable(token.text),
            token.id,
            "learnt" if token.is_learnt else token.fate,
            readable(token.label or ""),
            token.is_bound,
        )
        for token in tokens
    ]
