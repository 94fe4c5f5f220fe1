"""The model card of a pretraining, or of an encoder-decoder model that learnt pairs of texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from sft_kit.artifacts.card_facts import CARDS, common_facts
from sft_kit.data.corruption.in_words import describe_objective
from sft_kit.models.kinds import Kind
from sft_kit.models.pretraining import auto_class_name

_TASKS: Mapping[Kind, str] = {
    "causal": "text-generation",
    "masked": "fill-mask",
    "pairs": "fill-mask",
    "seq2seq": "text2text-generation",
}
_FILLS_IN_PLACE = ("mlm", "wwm", "bidirectional")

_CARD = CARDS.from_string(
    """\
{% extends "card" %}
{% block task %}{{ task }}{% endblock %}
{% block tags %}
- {{ "fine-tuned" if objective == "pairs of texts" else "pretrained" }}
{% endblock %}
{% block what %}
{{ kind_of_run }} `{{ base }}`,
made with the recipe `{{ recipe }}` of sft_kit {{ version }}.

{% if objective == "pairs of texts" %}
It learnt to write the second text of a pair when it reads the first.
{% else %}
Its objective was {{ told }}.
{% endif %}
{% endblock %}
{% block imports %}
{% if objective in ("causal", "infill") %}
import torch
{% endif %}
{% endblock %}
{% block load_base %}
base = {{ auto_class }}.from_pretrained("{{ base_place }}"{{ options }}{{ quantization }})
{% endblock %}
{% block use %}
{% if objective in in_place %}
inputs = tokenizer(f"A text with a {tokenizer.mask_token}.", return_tensors="pt")
logits = model(**inputs).{{ logits }}
is_hidden = inputs.input_ids == tokenizer.mask_token_id
filled_in = tokenizer.decode(logits[is_hidden].argmax(-1))
{% elif objective == "spell" %}
inputs = tokenizer("A text with a mistake.", return_tensors="pt")
logits = model(**inputs).{{ logits }}
corrected = tokenizer.decode(logits[0, 1:-1].argmax(-1))
{% elif objective == "prefix" %}
prefix = tokenizer("A text that goes on", return_tensors="pt")
logits = model(**prefix).{{ logits }}
next_token = tokenizer.decode(logits[0, -1:].argmax(-1))
{% elif objective == "causal" %}
ids = tokenizer("A text that goes on", return_tensors="pt").input_ids[:, :-1]  # it has no end yet
looks_left = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
logits = model(input_ids=ids, attention_mask=looks_left).{{ logits }}
next_token = tokenizer.decode(logits[0, -1:].argmax(-1))
{% elif objective == "infill" %}
text = tokenizer(f"A text with a {tokenizer.mask_token}.", return_tensors="pt").input_ids[0]
blank = text.tolist().index(tokenizer.mask_token_id)
start = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
ids = torch.cat([text, torch.tensor([start])])[None]
sees = torch.ones(len(text) + 1, len(text) + 1, dtype=torch.bool)
sees[:-1, -1] = False  # the text does not see what is written behind it
logits = model(
    input_ids=ids,
    attention_mask=sees[None, None],
    position_ids=torch.cat([torch.arange(len(text)), torch.tensor([blank])])[None],
    token_type_ids=torch.tensor([[0] * len(text) + [1]]),
).{{ logits }}
first_token = tokenizer.decode(logits[0, -1:].argmax(-1))
{% elif objective == "clm" %}
inputs = tokenizer("A text that goes on", return_tensors="pt", return_token_type_ids=False)
written = tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0])
{% else %}
inputs = tokenizer({{ example }}, return_tensors="pt", return_token_type_ids=False)
written = tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0])
{% endif %}
```

{% if objective in ("prefix", "causal") %}
This is the first token of what follows. Each further one is put behind the text and
{%- if objective == "prefix" %} must not be seen by the prefix;
{%- else %} sees what is left of it;
{%- endif %} `sft-kit generate FOLDER --prompt TEXT` takes care of that.
{% elif objective == "infill" %}
This is the first token of the blank. Each further one is put behind it, at the same position and
the next token type, until `tokenizer.sep_token` (or `eos_token`) ends the blank; `sft-kit generate
FOLDER --prompt TEXT` takes care of that.
{% else %}
Or `sft-kit generate FOLDER --prompt TEXT`.
{% endif %}
{% endblock %}
{% block limits %}
{% if objective == "pairs of texts" %}
It knows what its base and {{ rows }} training pairs taught it, and states wrong things with the
same confidence as right ones.
{% else %}
It knows what {{ "its base knew and what " if has_base }}{{ amount }} of plain text taught it. It
was taught to predict text and nothing else: it follows no instructions, and says what such texts
would say, whether it is true or not. Fine-tune it for a task.
{% if kind in ("masked", "pairs") and objective not in ("prefix", "causal", "infill") %}
It fills in what is hidden and does not continue texts.
{% endif %}
{% if objective == "spell" %}
It was shown mistakes made by a program, which are not those that people make.
{% endif %}
{% endif %}
{% endblock %}
"""
)


def write_pretraining_card(
    path: Path,
    title: str,
    record: Mapping[str, object],
    metrics: Mapping[str, object],
    pictures: Sequence[str],
    num_tokens: int | None = None,
) -> None:
    """Write the card of a finished pretraining as `README.md`.

    Args:
        path: The file.
        title: Its heading.
        record: As in `run.yaml`.
        metrics: As in `metrics.json`.
        pictures: Names of the PNG files beside it.
        num_tokens: Tokens that were read while training, repeated ones included, where they were
            counted.
    """
    settings = cast("Mapping[str, Mapping[str, object] | None]", record["settings"])
    about = cast("Mapping[str, object]", record["pretraining"])
    kind, objective = cast("Kind", about["kind"]), str(about["objective"])
    model = settings["model"] or {}
    facts = common_facts(title, record, metrics, pictures)
    has_base = bool(model.get("checkpoint"))
    num_texts = facts["rows"]
    card = _CARD.render(
        facts,
        facts=_ordered_facts(facts, settings, num_tokens),
        auto_class=auto_class_name(kind),
        task=_TASKS[kind],
        kind=kind,
        objective=objective,
        in_place=_FILLS_IN_PLACE,
        told=describe_objective(objective, next_sentence=kind == "pairs"),
        logits="prediction_logits" if kind == "pairs" else "logits",
        kind_of_run=_kind_of_run(adapter=bool(settings.get("adapter")), has_base=has_base),
        has_base=has_base,
        amount=f"{num_texts:,} texts" if num_texts else "a stream",
        example=_example(objective, settings.get("data") or {}),
    )
    path.write_text(card, encoding="utf-8")


def _ordered_facts(
    facts: Mapping[str, object],
    settings: Mapping[str, Mapping[str, object] | None],
    num_tokens: int | None,
) -> dict[str, object]:
    """Put what the objective was behind the rows, and leave out rows that nobody counted."""
    told = dict(cast("Mapping[str, object]", facts["facts"]))
    if not told.get("training rows"):
        told.pop("training rows", None)  # a stream is not counted
    if told.get("quantization") == "none":
        del told["quantization"]
    data = settings.get("data") or {}
    more = {
        "tokens read in training": f"{num_tokens:,}" if num_tokens else None,
        "tokens per example": data.get("max_length"),
        **(settings.get("pretrain") or {}),
    }
    more.pop("confusions", None)  # a file of this machine
    return {**told, **{name: value for name, value in more.items() if value is not None}}


def _kind_of_run(*, adapter: bool, has_base: bool) -> str:
    if adapter:
        return "A LoRA adapter for"
    return "A model trained from" if has_base else "A new model of the architecture"


def _example(objective: str, data: Mapping[str, object]) -> str:
    """Write a text for an encoder as Python."""
    if objective == "spans":
        return '"A text with <extra_id_0> behind it."'
    if objective == "denoise":
        return 'f"A text with a {tokenizer.mask_token}."'
    return repr(f"{data.get('prefix') or ''}A text to read.")
