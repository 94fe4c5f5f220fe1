"""The model card of a policy: what it was rewarded for, how far it went, and what that means."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from sft_kit.artifacts.card import CAUSAL_CARD, causal_facts
from sft_kit.artifacts.card_facts import CARDS
from sft_kit.artifacts.samples import Sample
from sft_kit.data.token_text import readable

_MAX_SAMPLES = 3
_FACTS: dict[str, tuple[str, ...]] = {
    "ppo": (
        "num_rollouts",
        "episodes_per_rollout",
        "num_epochs",
        "num_minibatches",
        "max_new_tokens",
        "temperature",
        "kl_coefficient",
        "kl_in",
        "kl_target",
        "gamma",
        "gae_lambda",
        "clip_low",
        "clip_high",
        "value",
        "value_learning_rate",
    ),
    "reward": ("no_stop", "normalise", "clip"),
}
_FIGURES = {
    "score_mean": ("score", "{:.3g}"),
    "eval_score_mean": ("held-out score", "{:.3g}"),
    "gold_mean": ("watched score", "{:.3g}"),
    "eval_gold_mean": ("held-out watched score", "{:.3g}"),
    "kl": ("divergence from the reference policy", "{:.3g} nats per answer"),
    "stop_fraction": ("answers that end by themselves", "{:.0%}"),
    "completion_length_mean": ("length of an answer", "{:.1f} tokens"),
    "num_rollouts": ("rollouts", "{:,.0f}"),
    "num_episodes": ("episodes", "{:,.0f}"),
    "train_seconds": ("training time", "{:,.0f} s"),
}

_CARD = CARDS.from_string(
    """\
{% extends causal_card %}
{% block tags %}
- ppo
- rlhf
{% endblock %}
{% block what %}
{{ "The LoRA adapter of a policy on" if adapter else "A policy trained from" }} `{{ base }}`,
made by reinforcement learning (PPO) with the recipe `{{ recipe }}` of sft_kit {{ version }}.

It learnt to get a high score from {{ sources }}, and was held back by its divergence from
{{ reference }}, the reference policy.
{% endblock %}
{% block use %}
{{ super() }}
{% if adapter %}

The adapter alone is the policy: `value/` and `reward/`, where they are there, serve to go on with
the training and to score answers.
{% endif %}
{% if samples %}

## Before and after

{% for sample in samples %}
Prompt:

{{ sample.prompt }}

Before:

{{ sample.before }}

After:

{{ sample.after }}

{% endfor %}
{% endif %}
{% endblock %}
{% block limits %}
A higher score is not the same as a better answer: the policy learnt what pleases
{{ sources }}, its mistakes included. PPO gives a model manners, no knowledge: it knows what its
base knows, and states wrong things with the same confidence as right ones.
{% if kl is not none %}
At the end it was {{ kl }} nats per answer away from the reference policy; the farther, the more
likely it is that the score is being pleased rather than the reader.
{% endif %}
{% if not gold %}
No second judge watched the training, so nothing here tells whether the score was earned or hacked.
{% endif %}
{% endblock %}
"""
)


def write_ppo_card(
    path: Path,
    title: str,
    record: Mapping[str, object],
    metrics: Mapping[str, object],
    pictures: Sequence[str],
    samples: Sequence[Sample] = (),
) -> None:
    """Write the card of a finished PPO run as `README.md`.

    Args:
        path: The file.
        title: Its heading.
        record: As in `run.yaml`.
        metrics: As in `metrics.json`, of which the card shows what tells how the run went; those
            with `first_` before their name are of the first rollout, or from before the training.
        pictures: Names of the PNG files beside it.
        samples: Answers before and after; the first few are shown.
    """
    settings = cast("Mapping[str, Mapping[str, object] | None]", record["settings"])
    ppo, reward = settings["ppo"] or {}, settings["reward"] or {}
    common = causal_facts(title, record, metrics, pictures)
    kl = cast("float | None", metrics.get("kl"))
    facts = {**cast("Mapping[str, object]", common["facts"]), **_ppo_facts(settings)}
    figures = _figures(cast("Mapping[str, float]", metrics))
    card = _CARD.render(
        {**common, "facts": facts, "metrics": figures},
        causal_card=CAUSAL_CARD,
        sources=_sources(reward),
        reference=_reference(ppo, common["base"]),
        gold=reward.get("gold"),
        kl=None if kl is None else f"{kl:.3g}",
        samples=[_quoted(sample) for sample in samples[:_MAX_SAMPLES]],
    )
    path.write_text(card, encoding="utf-8")


def _ppo_facts(settings: Mapping[str, Mapping[str, object] | None]) -> dict[str, object]:
    """List the settings that decide a PPO run, without what is off."""
    facts = {
        key if section == "ppo" else f"score {key}": (settings[section] or {}).get(key)
        for section, keys in _FACTS.items()
        for key in keys
    }
    ptx = settings.get("ptx") or {}
    facts["PTX coefficient"] = ptx.get("coefficient") or None
    facts["watched score"] = _function_name((settings["reward"] or {}).get("gold"))
    return {name: value for name, value in facts.items() if value not in (None, "none")}


def _figures(metrics: Mapping[str, float]) -> dict[str, str]:
    """Write the figures that tell how the run went with their units, first and last where known."""
    figures: dict[str, str] = {}
    for key, (name, form) in _FIGURES.items():
        known = [metrics[one] for one in (f"first_{key}", key) if one in metrics]
        if key in metrics:
            figures[name] = " → ".join(form.format(value) for value in known)
    kept = metrics.get("num_rollouts_kept")
    if "rollouts" in figures and kept not in (None, metrics["num_rollouts"]):
        figures["rollouts"] += f", the policy is that after {kept:,.0f}"
    return figures


def _sources(reward: Mapping[str, object]) -> str:
    """Name what gave the scores, never by a folder of this machine."""
    functions = cast("Mapping[str, float]", reward.get("functions") or {})
    sources = {
        f"the function `{_function_name(name)}`": weight for name, weight in functions.items()
    }
    if reward.get("model"):
        model = f"the reward model `{Path(str(reward['model'])).name}`"
        sources = {model: cast("float", reward.get("model_weight", 1.0)), **sources}
    if len(sources) == 1:
        return next(iter(sources))
    return " + ".join(f"{weight:g} x {name}" for name, weight in sources.items())


def _function_name(name: object) -> str | None:
    """Shorten `folder/file.py:function` to `file.py:function`."""
    return None if name is None else Path(str(name)).name


def _reference(ppo: Mapping[str, object], base: object) -> str:
    adapter = ppo.get("sft_adapter")
    if not adapter:
        return f"`{base}` itself"
    return f"`{base}` with the supervised fine-tuning `{Path(str(adapter)).name}`"


def _quoted(sample: Sample) -> dict[str, str]:
    """Indent texts, so that nothing in them is taken for Markdown."""
    texts = {"prompt": sample.prompt}
    for name, answer in (("before", sample.before), ("after", sample.after)):
        texts[name] = answer.text + (" ■" if answer.stopped else " … (did not stop)")
    return {
        name: "\n".join(f"    {line}" for line in readable(text).split("\n"))
        for name, text in texts.items()
    }
