"""Compared answers as one HTML file that needs nothing else: no script, no font, no address.

English and Chinese captions are both in the page; two radio buttons choose between them.
"""

from pathlib import Path

from jinja2 import Environment

from sft_kit.data.label_page import (
    LENGTH_BARS,
    PAGE_END,
    PAGE_START,
    STYLE,
    Title,
    length_bars,
    write_whole,
)
from sft_kit.data.preference.view import (
    PreferenceView,
    comparison_caption,
    comparison_figures,
    contradiction_lines,
    preference_reading_figures,
    shown_turns,
)
from sft_kit.data.token_text import readable

_STYLE = """
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
.answers pre + pre { border-left: 1px solid var(--line); }
.answers pre:first-child { background: var(--learnt); color: var(--learnt-ink); }
"""

_PAGE = (
    PAGE_START
    + """\
<h2>{{ both("Rows", "数据行") }}</h2>
<table><tbody>{{ figures(reading) }}</tbody></table>
{%- if bad_rows %}
<details><summary>{{ both("Bad rows", "坏行") }}</summary>{{ lines(bad_rows) }}</details>
{%- endif %}
{%- if contradictions %}
<h2>{{ both("Contradicting comparisons", "互相矛盾的比较") }}</h2>
{{ lines(contradictions) }}
{%- endif %}
<h2>{{ both("Comparisons", "比较") }}</h2>
<table><thead><tr><td></td>{{ heads() }}</tr></thead>
<tbody>{{ figures(comparisons) }}</tbody></table>
<h2>{{ both("Tokens per answer", "每个回答的词元数") }}</h2>
"""
    + LENGTH_BARS
    + """\
{%- if examples %}
<h2>{{ both("Examples, the best answer first", "样本，最好的回答在前") }}</h2>
{%- endif %}
{%- for caption, prompt, answers in examples %}
<figure>
<figcaption>{{ caption }}</figcaption>
{%- if prompt %}
<pre>
{{ prompt }}</pre>
{%- endif %}
<div class="answers">
{%- for answer in answers %}<pre>
{{ answer }}</pre>{% endfor -%}
</div>
</figure>
{%- endfor %}
"""
    + PAGE_END
)


def write_preference_view(path: Path, view: PreferenceView) -> None:
    """Write all that is known about compared answers as one HTML file, whole or not at all.

    Args:
        path: File to write; an earlier one is replaced.
        view: What to show.

    Raises:
        ConfigError: The file can't be written.
    """
    report, first = view.splits.report, view.figures[0]
    page = (
        Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            style=STYLE + _STYLE,
            title=Title("Compared answers", "偏好数据"),
            has_evaluation=len(view.figures) > 1,
            notes=[readable(note) for note in view.notes],
            reading=[[figure] for figure in preference_reading_figures(view.splits)],
            bad_rows=[readable(str(problem)) for problem in report.bad_rows],
            contradictions=contradiction_lines(report),
            comparisons=list(zip(*map(comparison_figures, view.figures), strict=True)),
            bars=length_bars([*first.better_lengths, *first.worse_lengths]),
            examples=[
                (
                    comparison_caption(example),
                    "\n".join(shown_turns(example.comparison.prompt)),
                    ["\n".join(shown_turns(answer)) for answer in example.comparison.answers],
                )
                for example in view.examples
            ],
        )
    )
    write_whole(path, page)
