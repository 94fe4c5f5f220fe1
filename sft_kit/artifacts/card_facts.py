"""What model cards say of a run, whatever it trained: from an allow-list of facts."""

from collections.abc import Mapping, Sequence
from typing import cast

from jinja2 import DictLoader, Environment

import sft_kit
from sft_kit.artifacts.origins import base_of_run, data_of_run, data_set_of_run

_CARD = """\
---
library_name: {{ "peft" if adapter else "transformers" }}
pipeline_tag: {% block task required %}{% endblock +%}
{% if base_is_on_hub %}
base_model: {{ base }}
{% endif %}
{% if data_set %}
datasets:
- {{ data_set }}
{% endif %}
tags:
- sft_kit
{% block tags %}{% endblock %}
{% if adapter %}
- lora
{% endif %}
---

# {{ title }}

{% block what required %}{% endblock %}

| | |
|---|---|
{% for name, value in facts.items() %}
| {{ name }} | {{ value }} |
{% endfor %}

## Figures

| | |
|---|---|
{% for name, value in metrics.items() %}
| {{ name }} | {{ value }} |
{% endfor %}

{% for picture in pictures %}
![{{ picture }}]({{ picture }})
{% endfor %}

## How to use it

```python
{% if adapter %}
from peft import PeftModel
{% endif %}
from transformers import {{ auto_class }}, AutoTokenizer
{% if quantization %}
from transformers import BitsAndBytesConfig
{% endif %}
{% block imports %}{% endblock %}

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
{% if adapter %}
{% block load_base required %}{% endblock %}
model = PeftModel.from_pretrained(base, folder)
{% else %}
model = {{ auto_class }}.from_pretrained(folder)
{% endif %}
{% block use required %}{% endblock %}
{% if base_is_missing %}

The base was a folder that is not on the Hub under a known name: put its place where
`{{ base_place }}` stands. On other weights this adapter answers nonsense.
{% endif %}

## Limits

{% block limits required %}{% endblock %}
{% if resumed_from %}
The run was resumed at step {{ resumed_from }}; its seconds are those of the last session.
{% endif %}
{% if has_held_out %}
The held-out figures above are from rows of the same data; they say nothing about other subjects.
{% if is_best %}
They flatter the model a little: its checkpoint was chosen on these rows.
{% endif %}
{% else %}
Nothing was held out: no figure above says how it does on text it was not trained on.
{% endif %}
"""

CARDS = Environment(
    loader=DictLoader({"card": _CARD}),
    autoescape=False,
    trim_blocks=True,
    keep_trailing_newline=True,
)
"""Environment of the cards' templates, which fill in the blocks of `card`."""


def common_facts(
    title: str,
    record: Mapping[str, object],
    metrics: Mapping[str, object],
    pictures: Sequence[str],
) -> dict[str, object]:
    """Collect what the template `card` itself writes.

    Args:
        title: Heading of the card.
        record: As in `run.yaml`.
        metrics: As in `metrics.json`.
        pictures: Names of the PNG files beside the card.
    """
    settings = cast("Mapping[str, Mapping[str, object] | None]", record["settings"])
    model, train = settings["model"] or {}, settings.get("train") or {}
    name, is_on_hub = base_of_run(record)
    return {
        "title": title,
        "base_place": name if is_on_hub else f"path/to/{name}",  # else it would be taken for an id
        "adapter": settings.get("adapter"),
        "base": name,
        "base_is_on_hub": is_on_hub,
        "base_is_missing": bool(settings.get("adapter")) and not is_on_hub,
        "data_set": data_set_of_run(settings.get("data") or {}),
        "recipe": record["recipe"],
        "version": sft_kit.__version__,
        "facts": training_facts(record),
        "metrics": {key: figure(value) for key, value in metrics.items()},
        "pictures": pictures,
        "quantization": quantization_option(model),
        "options": "".join(f", {key}={value!r}" for key, value in _replaced_config(model).items()),
        "resumed_from": int(float(str(metrics.get("resumed_from_step", 0)))),
        "has_held_out": any(key.startswith("eval_") for key in metrics),
        "is_best": train.get("load_best_model_at_end") is True,
        "rows": cast("Mapping[str, object]", record["data"]).get("num_train_rows"),
    }


def training_facts(record: Mapping[str, object]) -> dict[str, object]:
    """List rows, quantization, adapter, loss and batch of a run, without what it has none of."""
    settings = cast("Mapping[str, Mapping[str, object] | None]", record["settings"])
    data = cast("Mapping[str, object]", record["data"])
    base = cast("Mapping[str, object]", record.get("base") or {})
    model, adapter, train = (settings.get(name) or {} for name in ("model", "adapter", "train"))
    facts: dict[str, object] = {
        **data_of_run(settings.get("data") or {}),
        "training rows": data.get("num_train_rows"),
        "held-out rows": data.get("num_eval_rows"),
        "training prompts": data.get("num_train_prompts"),
        "held-out prompts": data.get("num_eval_prompts"),
        "data fingerprint": f"`{data['fingerprint']}`",
        "quantization": base.get("stored_as") or model.get("quantization"),
        "chat template": (settings.get("data") or {}).get("template"),
    }
    facts["tokens read in training"] = _tokens_read(record)
    for key in ("r", "lora_alpha", "lora_dropout", "target_modules"):
        facts[key] = adapter.get(key)
    for key in ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"):
        facts[key] = train.get(key)
    facts |= _loss_facts(settings.get("classify") or {})
    facts["seed"] = train.get("seed")
    return {name: value for name, value in facts.items() if value is not None}


def _tokens_read(record: Mapping[str, object]) -> str | None:
    """Count what the steps have read, repeated rows included."""
    facts = cast("Mapping[str, object]", record.get("facts") or {})
    per_step, steps = facts.get("tokens_per_step"), facts.get("num_steps")
    if not isinstance(per_step, int) or not isinstance(steps, int) or steps < 1:
        return None
    return f"about {per_step * steps:,}"


def _loss_facts(classify: Mapping[str, object]) -> dict[str, object]:
    """What a classifier's loss was, besides the plain cross entropy."""
    facts = {key: classify.get(key) or None for key in ("label_smoothing", "lm_weight")}
    weights = classify.get("class_weights")
    if isinstance(weights, Mapping):
        weights = ", ".join(f"{name}: {weight}" for name, weight in weights.items())
    return {"class_weights": None if weights == "equal" else weights, **facts}


def _replaced_config(model: Mapping[str, object]) -> Mapping[str, object]:
    """Fields of the base's config that were replaced on loading."""
    replaced = model.get("config") if model.get("checkpoint") else None
    return cast("Mapping[str, object]", replaced or {})


def quantization_option(model: Mapping[str, object]) -> str:
    """Say how plain transformers loads the base as the adapter saw it in training."""
    options = {
        "int8": "load_in_8bit=True",
        "nf4": (
            'load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            f"bnb_4bit_use_double_quant={model.get('double_quantization', True)}"
        ),
    }
    found = options.get(str(model.get("quantization")))
    return f", quantization_config=BitsAndBytesConfig({found})" if found else ""


def figure(value: object) -> str:
    """Write a figure with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
