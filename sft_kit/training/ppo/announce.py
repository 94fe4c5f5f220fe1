"""What a PPO run says before its first rollout, and after each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from accelerate import PartialState
from rich.console import Console
from rich.markup import escape

from sft_kit.data.preference.report import PromptSplits
from sft_kit.data.preference.rows import Prompt
from sft_kit.data.token_text import readable
from sft_kit.models.adapters import count_parameters
from sft_kit.models.roles import Roles
from sft_kit.settings import PpoSettings, PtxSettings, ScoreSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_TOKENS_SHOWN = 120


def ppo_facts(
    ppo: PpoSettings,
    reward: ScoreSettings,
    ptx: PtxSettings,
    roles: Roles,
    prompts: PromptSplits,
) -> dict[str, object]:
    """Work out the size of a run from its settings.

    Args:
        ppo: Section `ppo`.
        reward: Section `reward`.
        ptx: Section `ptx`.
        roles: What they train, and where their weights come from.
        prompts: To train on, and held out.

    Returns:
        Plain values, for `announce_ppo` and for the record of the run.
    """
    num_episodes = ppo.num_rollouts * ppo.episodes_per_rollout
    trainable = {
        "policy": sum(one.numel() for one in roles.policy_parameters().values()),
        "values": sum(one.numel() for one in roles.value_parameters().values()),
    }
    models = {id(role.model): role.model for role in roles.all()}  # what is shared counts once
    num_parameters = sum(count_parameters(model).total for model in models.values())
    heads = [role.head for role in roles.all() if role.head is not None]
    num_parameters += sum(one.numel() for head in heads for one in head.parameters())
    sources = dict(reward.functions)
    if reward.model is not None:
        sources = {"reward model": reward.model_weight, **sources}
    return {
        "trainable_parameters": sum(trainable.values()),
        "total_parameters": num_parameters,
        "trainable_by_role": trainable,
        "roles": {role.name: role.origin for role in roles.all()},
        "score_sources": sources,
        "gold": reward.gold,
        "num_prompts": len(prompts.train),
        "num_eval_prompts": len(prompts.eval),
        "num_processes": PartialState().num_processes,
        "num_rollouts": ppo.num_rollouts,
        "episodes_per_rollout": ppo.episodes_per_rollout,
        "num_episodes": num_episodes,
        "prompt_passes": round(num_episodes / len(prompts.train), 2),
        "num_updates": ppo.num_rollouts * ppo.num_epochs * ppo.num_minibatches,
        "max_drawn_tokens": num_episodes * ppo.max_new_tokens,
        "ptx_coefficient": ptx.coefficient,
    }


def announce_ppo(
    facts: dict[str, object],
    notes: Sequence[str],
    warnings: Sequence[str],
    prompt: Prompt,
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Print roles, score sources, the size of the run, warnings, and one prompt as it is sent.

    Args:
        facts: From `ppo_facts`.
        notes: What was picked for `auto` settings, and how the data was read.
        warnings: What works but was probably not meant.
        prompt: The first one.
        tokenizer: Decodes it.
    """
    if not PartialState().is_main_process:
        return
    console = Console(stderr=True)
    for line in [*notes, *fact_lines(facts)]:
        console.print(escape(line))
    for line in warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(line)}")
    shown = tokenizer.decode(list(prompt.input_ids[-_MAX_TOKENS_SHOWN:]))
    console.print(escape(f"first prompt ({prompt.where}), which the policy goes on from:"))
    console.print(escape(readable(str(shown))))


def ppo_warnings(settings: PpoSettings) -> list[str]:
    """Say what settings work but make the figures of PPO wrong."""
    cut = [
        text
        for text, is_set in (
            (f"ppo.top_k={settings.top_k}", settings.top_k > 0),
            (f"ppo.top_p={settings.top_p:g}", settings.top_p < 1),
        )
        if is_set
    ]
    if not cut:
        return []
    return [
        f"{' and '.join(cut)}: tokens are drawn from a part of the policy's distribution and "
        "trained under all of it, so the ratio and the KL divergence are biased; "
        "ppo.top_k=0 and ppo.top_p=1 draw from all of it"
    ]


def fact_lines(facts: Mapping[str, object]) -> list[str]:
    """Say the facts of `ppo_facts` in plain sentences."""
    by_role = _items(facts["trainable_by_role"])
    trainable, total = _number(facts["trainable_parameters"]), _number(facts["total_parameters"])
    shares = ", ".join(f"{_number(count):,} of the {role}" for role, count in by_role)
    sources = [f"{_number(weight):g} x {name}" for name, weight in _items(facts["score_sources"])]
    watched = f"; only watched: {facts['gold']}" if facts["gold"] else ""
    ptx = _number(facts["ptx_coefficient"])
    return [
        f"parameters: {trainable:,} of {total:,} train ({trainable / total:.2%}): {shares}",
        *(f"{role}: {origin}" for role, origin in _items(facts["roles"])),
        f"score: {' + '.join(sources) or 'nothing'}{watched}",
        f"prompts: {facts['num_prompts']:,} to train on ({facts['prompt_passes']} passes), "
        f"{facts['num_eval_prompts']:,} held out",
        f"rollouts: {facts['num_rollouts']:,} of {facts['episodes_per_rollout']:,} episodes, "
        f"{facts['num_episodes']:,} episodes in all, {facts['num_updates']:,} updates at most",
        f"tokens to draw: {facts['max_drawn_tokens']:,} at most",
        *([f"language beside the reward: PTX with coefficient {ptx:g}"] if ptx else []),
    ]


def rollout_line(metrics: Mapping[str, float]) -> str:
    """Say in a few words how a rollout went.

    Args:
        metrics: From `rollout_metrics`; with `seconds` also how long it took.
    """
    parts = [
        f"score {metrics['score_mean']:.3f}",
        f"kl {metrics['kl']:.3g}",
        f"stopped {metrics['stop_fraction']:.0%}",
        f"{metrics['completion_length_mean']:.1f} tokens",
    ]
    if "gold_mean" in metrics:
        parts.insert(1, f"gold {metrics['gold_mean']:.3f}")
    if "seconds" in metrics:
        parts.append(f"{metrics['seconds']:.3g} s")
    return ", ".join(parts)


def _items(values: object) -> list[tuple[str, object]]:
    return list(cast("Mapping[str, object]", values).items())


def _number(value: object) -> float:
    return cast("float", value)
