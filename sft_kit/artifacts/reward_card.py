"""The model card of a reward model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from sft_kit.artifacts.card_facts import CARDS, common_facts, figure

_CARD = CARDS.from_string(
    """\
{% extends "card" %}
{% block task %}text-classification{% endblock %}
{% block tags %}
- reward-model
{% endblock %}
{% block what %}
{{ "A LoRA adapter and a score head for" if adapter else "A reward model trained from" }}
`{{ base }}`, made with the recipe `{{ recipe }}` of sft_kit {{ version }}.

It gives a prompt with its answer one number: the better the answer, the higher. Only differences
between answers to the same prompt were learnt. Chosen answers ({{ scale.num }} {{ scale.rows }}
rows) score {{ mean }} on average, with a standard deviation of {{ std }}.
{% endblock %}
{% block load_base %}
base = AutoModelForSequenceClassification.from_pretrained(
    "{{ base_place }}", num_labels=1, pad_token_id=None{{ options }}{{ quantization }}
)
{% endblock %}
{% block use %}
messages = [
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hello! What can I do for you?"},
]
text = tokenizer.apply_chat_template(messages, tokenize=False)
text = text.rpartition("{{ stop_token }}")[0] + "{{ stop_token }}"
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
score = model.eval()(**inputs).logits[0, 0]
```

Give it one text at a time and no padding, as here: the score is read at the last token, which must
be `{{ stop_token }}`, as it was in training. Padded batches of plain transformers are read at the
last token that is not the padding token, which may be another one. Or `sft-kit score FOLDER --data
FILE`, which takes care of all that.
{% endblock %}
{% block limits %}
It knows what {{ rows }} comparisons taught it. A policy that is optimised against it finds its
mistakes: keep the policy close to where it started, and look at what it writes.
{% endblock %}
"""
)


def write_reward_card(
    path: Path,
    title: str,
    record: Mapping[str, object],
    metrics: Mapping[str, object],
    pictures: Sequence[str],
) -> None:
    """Write the card of a finished run of a reward model as `README.md`.

    Args:
        path: The file.
        title: Its heading.
        record: As in `run.yaml`.
        metrics: As in `metrics.json`.
        pictures: Names of the PNG files beside it.
    """
    scale = cast("Mapping[str, object]", record["score_scale"])
    template = cast("Mapping[str, object]", record["template"])
    card = _CARD.render(
        common_facts(title, record, metrics, pictures),
        auto_class="AutoModelForSequenceClassification",
        scale=scale,
        mean=figure(scale["mean"]),
        std=figure(scale["std"]),
        stop_token=template["stop_token"],
    )
    path.write_text(card, encoding="utf-8")
