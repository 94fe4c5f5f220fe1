"""The model card of a classifier."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from sft_kit.artifacts.card_facts import CARDS, common_facts

_CARD = CARDS.from_string(
    """\
{% extends "card" %}
{% block task %}text-classification{% endblock %}
{% block tags %}
- text-classification
{% endblock %}
{% block what %}
{{ "A LoRA adapter and a classification head for" if adapter else "A classifier trained from" }}
`{{ base }}`, made with the recipe `{{ recipe }}` of sft_kit {{ version }}.

{{ "Each text may have any number of labels" if multi_label else "Classes" }}:
{% for name in names %}
{{ loop.index0 }} {{ name }}{{ "," if not loop.last else "." }}
{% endfor %}
{% endblock %}
{% block load_base %}
base = AutoModelForSequenceClassification.from_pretrained(
    "{{ base_place }}",
    id2label={{ id2label }},
    pad_token_id=tokenizer.pad_token_id{{ options }}{{ quantization }},
)
{% endblock %}
{% block use %}
inputs = tokenizer(["a text", "another"], padding=True, padding_side="right", return_tensors="pt")
logits = model.eval()(**inputs).logits  # one row a text, one column a class
```

Or `sft-kit classify FOLDER --text "a text"`, which names the classes.
{% endblock %}
{% block limits %}
It tells apart what {{ rows }} training rows told apart, and is as sure of itself on texts of
another kind as on these.
{% endblock %}
"""
)


def write_classifier_card(
    path: Path,
    title: str,
    record: Mapping[str, object],
    metrics: Mapping[str, object],
    pictures: Sequence[str],
) -> None:
    """Write the card of a finished classifier run as `README.md`.

    Args:
        path: The file.
        title: Its heading.
        record: As in `run.yaml`.
        metrics: As in `metrics.json`.
        pictures: Names of the PNG files beside it.
    """
    labels = cast("Mapping[str, object]", record["labels"])
    card = _CARD.render(
        common_facts(title, record, metrics, pictures),
        auto_class="AutoModelForSequenceClassification",
        multi_label=labels["multi_label"],
        names=labels["names"],
        id2label=dict(enumerate(cast("list[str]", labels["names"]))),
    )
    path.write_text(card, encoding="utf-8")
