"""The model card, from an allow-list of facts: no folder of this machine, no row of the data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from jinja2 import Environment

import sft_kit

_CARD = Environment(autoescape=False, trim_blocks=True, keep_trailing_newline=True).from_string(
    """\
---
library_name: {{ "peft" if adapter else "transformers" }}
pipeline_tag: text-generation
{% if base_is_on_hub %}
base_model: {{ base }}
{% endif %}
tags:
- sft_kit
{% if adapter %}
- lora
{% endif %}
---

# {{ title }}

{{ kind }} `{{ base }}`,
made with the recipe `{{ recipe }}` of sft_kit {{ version }}.

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

{% for curve in curves %}
![{{ curve }}]({{ curve }})
{% endfor %}

## How to use it

```python
{% if adapter %}
from peft import PeftModel
{% endif %}
from transformers import AutoModelForCausalLM, AutoTokenizer
{% if quantization %}
from transformers import BitsAndBytesConfig
{% endif %}
{% if is_chatglm %}
import sft_kit.models.chatglm  # makes the Auto classes know ChatGLM
{% endif %}

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
{% if adapter %}
base = AutoModelForCausalLM.from_pretrained("{{ base }}"{{ options }}{{ quantization }})
model = PeftModel.from_pretrained(base, folder)
{% else %}
model = AutoModelForCausalLM.from_pretrained(folder)
{% endif %}
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

## Limits

It knows what {{ "its base and " if has_base }}{{ rows }} training rows taught it, and states wrong
things with the same confidence as right ones.
{% if has_held_out %}
The held-out figures above are from rows of the same data; they say nothing about other subjects.
{% else %}
Nothing was held out: no figure above says how it does on text it was not trained on.
{% endif %}
"""
)


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
    settings = cast("Mapping[str, Mapping[str, object] | None]", record["settings"])
    model = settings["model"] or {}
    checkpoint = str(model.get("checkpoint") or model.get("architecture"))
    data = cast("Mapping[str, object]", record["data"])
    template = cast("Mapping[str, object]", record.get("template") or {})
    base = cast("Mapping[str, object]", record.get("base") or {})
    is_folder = Path(checkpoint).exists()
    card = _CARD.render(
        title=title,
        adapter=settings.get("adapter"),
        base=Path(checkpoint).name if is_folder else checkpoint,
        kind=_kind(adapter=bool(settings.get("adapter")), has_base="checkpoint" in model),
        has_base="checkpoint" in model,
        has_held_out=any(name.startswith("eval_") for name in metrics),
        base_is_on_hub="checkpoint" in model and not is_folder,
        recipe=record["recipe"],
        quantization=_quantization(model),
        options="".join(f", {name}={value!r}" for name, value in _config_of(model).items()),
        is_chatglm="chatglm" in (base.get("model_type"), model.get("architecture")),
        version=sft_kit.__version__,
        facts=_facts(settings, data, base),
        metrics={name: _figure(value) for name, value in metrics.items()},
        curves=curves,
        stop_token=template.get("stop_token"),
        turn_stop_token=template.get("turn_stop_token"),
        stop_token_ids=_stop_ids(template),
        rows=data["num_train_rows"],
    )
    path.write_text(card, encoding="utf-8")


def _kind(*, adapter: bool, has_base: bool) -> str:
    if adapter:
        return "A LoRA adapter for"
    return "A language model trained from" if has_base else "A new model of the architecture"


def _facts(
    settings: Mapping[str, Mapping[str, object] | None],
    data: Mapping[str, object],
    base: Mapping[str, object],
) -> dict[str, object]:
    model, adapter, train = (settings.get(name) or {} for name in ("model", "adapter", "train"))
    facts: dict[str, object] = {
        "training rows": data["num_train_rows"],
        "held-out rows": data["num_eval_rows"],
        "data fingerprint": f"`{data['fingerprint']}`",
        "quantization": base.get("stored_as") or model.get("quantization"),
        "chat template": (settings.get("data") or {}).get("template"),
    }
    for key in ("r", "lora_alpha", "lora_dropout", "target_modules"):
        facts[key] = adapter.get(key)
    for key in ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"):
        facts[key] = train.get(key)
    facts["seed"] = train.get("seed")
    return {name: value for name, value in facts.items() if value is not None}


def _quantization(model: Mapping[str, object]) -> str:
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


def _config_of(model: Mapping[str, object]) -> Mapping[str, object]:
    """Fields of the base's config that were replaced on loading."""
    replaced = model.get("config") if "checkpoint" in model else None
    return cast("Mapping[str, object]", replaced or {})


def _stop_ids(template: Mapping[str, object]) -> object:
    """Ids of the tokens that end an answer: one, or a list of two."""
    first, second = template.get("stop_token_id"), template.get("turn_stop_token_id")
    return first if second is None else [first, second]


def _figure(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
