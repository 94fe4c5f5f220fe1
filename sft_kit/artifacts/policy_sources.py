"""The runs that PPO builds on: the fine-tuning it starts from, and the reward model it obeys."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from sft_kit.artifacts.load import (
    ADAPTER_FILE,
    check_weights,
    is_reward_run,
    require_finished,
)
from sft_kit.artifacts.reward import load_reward_run
from sft_kit.artifacts.text_scores import TextScorer, make_text_scorer
from sft_kit.data.templates import Template
from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.same_base import base_differences
from sft_kit.run_record import RUN_FILE
from sft_kit.settings import ModelSettings, PpoSettings, ScoreSettings

_COPIED = (
    *("adapter_config.json", ADAPTER_FILE, RUN_FILE, "chat_template.jinja"),
    *("*token*.json", "vocab.*", "merges.txt", "*.model"),
)
"""Files of a run that it takes to score with it."""


@dataclass(frozen=True, slots=True)
class PolicySources:
    """What a policy starts from and is scored by.

    Attributes:
        sft_folder: Adapter that the policy starts from, or None.
        reward_folder: Adapter and head of a reward model on the policy's own base, or None.
        reward_scale: Mean and standard deviation that the reward model's scores are normalised
            with; 0 and 1 where they are not.
        reward_model: A reward model on a base of its own, or None.
        reward_run: Run folder of whichever reward model there is, where it is an adapter that can
            be copied; or None.
        fingerprints: What the run was started from, for resuming and for the record.
        notes: What was found, for the reader.
    """

    sft_folder: Path | None = None
    reward_folder: Path | None = None
    reward_scale: tuple[float, float] = (0.0, 1.0)
    reward_model: TextScorer | None = None
    reward_run: Path | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def open_policy_sources(
    ppo: PpoSettings,
    reward: ScoreSettings,
    model: ModelSettings,
    template: Template,
    base: Mapping[str, object],
    *,
    has_adapter: bool,
) -> PolicySources:
    """Check the runs that the settings name against the policy's base and template.

    A reward model that was trained on the same base and with the same template shares it with the
    policy, as one more adapter. Any other is loaded beside it and gets completions as text; so is
    every one where the whole policy trains, since its base moves.

    Args:
        ppo: `sft_adapter`.
        reward: `model` and `normalise`.
        model: The policy's base.
        template: The policy's.
        base: The policy's base, from `describe_base`.
        has_adapter: The policy is an adapter on a frozen base.

    Raises:
        CheckpointError: Not finished runs, or not of the kind; changed weights; or an adapter on
            another base or trained with another template; or scores to normalise that are all
            alike. All that is wrong with both.
    """
    sft = None if ppo.sft_adapter is None else _open(ppo.sft_adapter)
    judge = None if reward.model is None else _open(reward.model)
    problems = [] if sft is None else _problems_of_sft(sft, template, base)
    problems += [] if judge is None else _problems_of_reward(judge, reward.normalise)
    if problems:
        raise CheckpointError("the policy can't be trained with these runs", problems)
    sources = PolicySources(fingerprints={"base": str(base["fingerprint"])})
    if sft is not None:
        check_weights(sft.folder, sft.weights)
        sources = replace(sources, sft_folder=sft.folder)
        sources.fingerprints["sft_adapter"] = sft.digest
        sources.notes.extend(_other_quantization("ppo.sft_adapter", sft, model))
    if judge is None:
        return sources
    sources.fingerprints["reward_model"] = judge.digest
    if (judge.folder / ADAPTER_FILE).is_file():
        sources = replace(sources, reward_run=judge.folder)
    if reward.normalise == "reference":
        sources = replace(sources, reward_scale=_scale_of(judge))
    if has_adapter and _shares_base(judge, template, base):
        check_weights(judge.folder, judge.weights)
        sources.notes.extend(_other_quantization("reward.model", judge, model))
        return replace(sources, reward_folder=judge.folder)
    sources.notes.append(
        "reward.model: does not share the policy's base and template, so it is loaded beside the "
        "policy and reads completions as text"
    )
    return replace(sources, reward_model=make_text_scorer(load_reward_run(str(judge.folder))))


@dataclass(frozen=True, slots=True)
class _Run:
    """A finished run that the settings name."""

    folder: Path
    record: Mapping[str, object]

    @property
    def weights(self) -> Mapping[str, str]:
        return cast("Mapping[str, str]", self.record.get("weights") or {})

    @property
    def digest(self) -> str:
        return " ".join(f"{name}:{digest}" for name, digest in sorted(self.weights.items()))

    def fact(self, subject: str, key: str) -> object:
        return cast("Mapping[str, object]", self.record.get(subject) or {}).get(key)


def _open(name: str) -> _Run:
    return _Run(Path(name), require_finished(Path(name)))


def _problems_of_sft(run: _Run, template: Template, base: Mapping[str, object]) -> list[Problem]:
    key = "ppo.sft_adapter"
    if is_reward_run(run.record) or "labels" in run.record:
        todo = "train one with recipes/sft_gpt2_lora.py, or set ppo.sft_adapter=null"
        return [_other_kind(key, run, "a language model", todo)]
    if not (run.folder / ADAPTER_FILE).is_file():
        found = f"found {str(run.folder)!r}, a whole model, accepts a run with an adapter"
        todo = f"set model.checkpoint={run.folder} and ppo.sft_adapter=null"
        return [Problem("", key, found, todo)]
    problems: list[Problem] = []
    if differences := _other_base(run, base):
        name = run.fact("base", "name")
        found = f"found an adapter on {name!r}, accepts one on model.checkpoint={base['name']}"
        todo = f"set model.checkpoint={name}"
        problems.append(Problem("", key, f"{found}: {'; '.join(differences)}", todo))
    if run.fact("template", "sha256") != template.sha256:
        name = run.fact("template", "name")
        found = f"found a run with the template {name!r}, accepts one with {template.name!r}"
        problems.append(Problem("", key, found, f"set data.template={name}"))
    return problems


def _problems_of_reward(run: _Run, normalise: str) -> list[Problem]:
    if not is_reward_run(run.record):
        todo = "train one with recipes/reward_gpt2_lora.py, or set reward.model=null"
        return [_other_kind("reward.model", run, "a reward model", todo)]
    _, std = _scale_of(run)
    if normalise != "reference" or 0 < std < math.inf:
        return []
    found = (
        f"found reference, and the scores of {str(run.folder)!r} on its own data have a standard "
        f"deviation of {std:g}, accepts one above 0"
    )
    todo = "set reward.normalise=running or none, or train the reward model on more comparisons"
    return [Problem("", "reward.normalise", found, todo)]


def _other_kind(key: str, run: _Run, wanted: str, todo: str) -> Problem:
    found = f"found {str(run.folder)!r}, the run of {run.record.get('recipe')}"
    return Problem("", key, f"{found}, accepts the run of {wanted}", todo)


def _scale_of(run: _Run) -> tuple[float, float]:
    scale = cast("Mapping[str, float]", run.record["score_scale"])
    return float(scale["mean"]), float(scale["std"])


def _shares_base(run: _Run, template: Template, base: Mapping[str, object]) -> bool:
    return (
        (run.folder / ADAPTER_FILE).is_file()
        and not _other_base(run, base)
        and run.fact("template", "sha256") == template.sha256
    )


def _other_base(run: _Run, base: Mapping[str, object]) -> list[str]:
    return base_differences(cast("Mapping[str, object]", run.record.get("base") or {}), base)


def _other_quantization(key: str, run: _Run, model: ModelSettings) -> list[str]:
    settings = cast("Mapping[str, Mapping[str, object] | None]", run.record["settings"])
    found = (settings["model"] or {}).get("quantization", "none")
    if found == model.quantization:
        return []
    return [
        f"{key}: trained with model.quantization={found}, here it is {model.quantization}: its "
        "figures will differ a little"
    ]


def copy_reward_model(source: Path, folder: Path) -> None:
    """Copy a reward model's run beside the policy made with it: plain PEFT that still scores.

    Args:
        source: Its run folder.
        folder: Is made.

    Raises:
        CheckpointError: It is no longer what it was when the run began.
    """
    check_weights(source, _open(str(source)).weights)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in _COPIED):
            shutil.copyfile(path, folder / path.name)
