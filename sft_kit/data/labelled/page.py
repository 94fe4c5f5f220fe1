"""Labelled data as one HTML file that needs nothing else: no script, no font, no address.

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
from sft_kit.data.labelled.reading import alike_in_one
from sft_kit.data.labelled.view import (
    LabelledView,
    baseline_figures,
    class_rows,
    conflict_lines,
    example_caption,
    is_rare,
    length_figures,
    reading_figures,
    shown_texts,
)
from sft_kit.data.token_text import readable

_PAGE = (
    PAGE_START
    + """\
<h2>{{ both("Rows", "数据行") }}</h2>
<table><tbody>{{ figures(reading) }}</tbody></table>
{{ lines(reading_notes) }}
{%- if bad_rows %}
<details><summary>{{ both("Bad rows", "坏行") }}</summary>{{ lines(bad_rows) }}</details>
{%- endif %}
{%- if conflicts %}
<h2>{{ both("Contradicting labels of equal texts", "同一文本的标签互相矛盾") }}</h2>
{{ lines(conflicts) }}
{%- endif %}
<h2>{{ both("Classes", "类别") }}</h2>
<table>
<thead><tr><td></td>{{ heads() }}</tr></thead>
<tbody>
{%- for name, cells in classes %}
<tr><th>{{ name }}</th>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody>
</table>
<h2>{{ both("Always the commonest answer of the training rows",
  "始终给出训练集中最常见的回答") }}</h2>
<table><thead><tr><td></td>{{ heads() }}</tr></thead><tbody>{{ figures(baselines) }}</tbody></table>
<h2>{{ both("Tokens per text", "每条文本的词元数") }}</h2>
<table><thead><tr><td></td>{{ heads() }}</tr></thead><tbody>{{ figures(lengths) }}</tbody></table>
"""
    + LENGTH_BARS
    + """\
{%- if examples %}
<h2>{{ both("Examples", "样本") }}</h2>
{%- endif %}
{%- for caption, texts in examples %}
<figure>
<figcaption>{{ caption }}</figcaption>
{%- for text in texts %}
<pre>
{{ text }}</pre>
{%- endfor %}
</figure>
{%- endfor %}
"""
    + PAGE_END
)


def write_view(path: Path, view: LabelledView) -> None:
    """Write all that is known about labelled data as one HTML file, whole or not at all.

    Args:
        path: File to write; an earlier one is replaced.
        view: What to show.

    Raises:
        ConfigError: The file can't be written.
    """
    report = view.splits.report
    names = [
        readable(name) + " !" * is_rare(view, index) for index, name in enumerate(view.label_names)
    ]
    page = (
        Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            style=STYLE,
            title=Title("Labelled data", "标注数据"),
            has_evaluation=len(view.figures) > 1,
            notes=[readable(note) for note in view.notes],
            reading=[[figure] for figure in reading_figures(view.splits)],
            reading_notes=[readable(note) for note in report.reading_notes],
            bad_rows=[readable(str(problem)) for problem in alike_in_one(report.bad_rows)],
            conflicts=conflict_lines(report),
            classes=list(zip(names, class_rows(view), strict=True)),
            baselines=list(
                zip(*(baseline_figures(one.baseline) for one in view.figures), strict=True)
            ),
            lengths=list(zip(*(length_figures(one.lengths) for one in view.figures), strict=True)),
            bars=length_bars(view.figures[0].lengths.lengths),
            examples=[
                (example_caption(row, example), shown_texts(row)) for row, example in view.examples
            ],
        )
    )
    write_whole(path, page)
