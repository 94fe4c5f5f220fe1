"""The model card, from an allow-list of facts: no folder of this machine, no row of the data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from sft_kit.artifacts.card_facts import CARDS, common_facts

CAUSAL_CARD = CARDS.from_string(
    """\
{% extends "card" %}
{% block task %}text-generation{% endblock %}
{% block what %}
{{ kind }} `{{ base }}`,
made with the recipe `{{ recipe }}` of sft_kit {{ version }}.
{% endblock %}
{% block imports %}
{% if is_chatglm %}
import sft_kit.models.chatglm  # makes the Auto classes know ChatGLM
{% endif %}
{% endblock %}
{% block load_base %}
base = AutoModelForCausalLM.from_pretrained("{{ base_place }}"{{ options }}{{ quantization }})
{% endblock %}
{% block use %}
{% if stop_token %}
messages = [{"role": "user", "content": "Hello!"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
reply = model.generate(**prompt, eos_token_id={{ stop_token_ids }}, max_new_tokens=64)
{% endif %}
```

{% if stop_token %}
Or `sft-kit chat FOLDER`. Answers end with the token `{{ stop_token }}`
{%- if turn_stop_token %} or `{{ turn_stop_token }}`{% endif %}.
{% endif %}
{% endblock %}
{% block limits %}
It knows what {{ "its base and " if has_base }}{{ rows }} training rows taught it, and states wrong
things with the same confidence as right ones.
{% endblock %}
"""
)
"""The card of a language model, which fills in the blocks of `card`."""


def write_card(
    path: Path,
    title: str,
    record: Mapping[str, object],
    metrics: Mapping[str, object],
    curves: Sequence[str],
) -> None:
    """Write the card of a finished run as `README.md`.

    Args:
        path: The file.
        title: Its heading.
        record: As in `run.yaml`.
        metrics: As in `metrics.json`.
        curves: Names of the PNG files beside it.
    """
    facts = causal_facts(title, record, metrics, curves)
    path.write_text(CAUSAL_CARD.render(facts), encoding="utf-8")


def causal_facts(
    title: str,
    record: Mapping[str, object],
    metrics: Mapping[str, object],
    curves: Sequence[str],
) -> dict[str, object]:
    """Collect what `CAUSAL_CARD` writes; the arguments are those of `write_card`."""
    settings = cast("Mapping[str, Mapping[str, object] | None]", record["settings"])
    model = settings["model"] or {}
    template = cast("Mapping[str, object]", record.get("template") or {})
    base = cast("Mapping[str, object]", record.get("base") or {})
    return {
        **common_facts(title, record, metrics, curves),
        "auto_class": "AutoModelForCausalLM",
        "kind": _kind(adapter=bool(settings.get("adapter")), has_base="checkpoint" in model),
        "has_base": "checkpoint" in model,
        "is_chatglm": "chatglm" in (base.get("model_type"), model.get("architecture")),
        "stop_token": template.get("stop_token"),
        "turn_stop_token": template.get("turn_stop_token"),
        "stop_token_ids": _stop_ids(template),
    }


def _kind(*, adapter: bool, has_base: bool) -> str:
    if adapter:
        return "A LoRA adapter for"
    return "A language model trained from" if has_base else "A new model of the architecture"


def _stop_ids(template: Mapping[str, object]) -> object:
    """Ids of the tokens that end an answer: one, or a list of two."""
    first, second = template.get("stop_token_id"), template.get("turn_stop_token_id")
    return first if second is None else [first, second]
