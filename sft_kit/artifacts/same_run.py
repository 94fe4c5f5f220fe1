"""What must be as it was when a run is resumed, and the little that may be another."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import cast

from sft_kit.config import Resolved
from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.same_base import base_differences
from sft_kit.run_record import RUN_FILE

_MAY_CHANGE = {
    "data.cache",
    "train.output_dir",
    "train.disable_tqdm",
    "train.report_to",
    "train.run_name",
    "train.log_level",
    "train.log_level_replica",
    "train.log_on_each_node",
    "train.push_to_hub",
    "train.dataloader_pin_memory",
    "train.activation_checkpointing",
    "train.per_device_eval_batch_size",
    "ppo.save_rollouts",
    "ppo.eval_rollouts",
    "ppo.dump_rollouts",
    "reward.model",
    "ppo.sft_adapter",
}
"""Settings that may differ when a run is resumed: none of them changes the steps already done.

Other runs may have moved; their weights are known by digest."""
_MAY_CHANGE_PREFIXES = ("train.logging_", "train.save_", "train.eval_", "train.hub_", "sample.")
_SPLITS_A_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
_MAY_GROW = ("train.max_steps", "train.num_train_epochs", "ppo.num_rollouts")
_SAYS_WHEN_TO_EVALUATE = ("train.save_s", "train.eval_s", "train.eval_delay", "ppo.eval_rollouts")
"""Beginnings of settings that say at which steps a figure is taken that more may depend on."""
_FLAT_SCHEDULES = {"constant", "constant_with_warmup"}
_MUST_MATCH = (
    ("data", "fingerprint"),
    ("data", "eval_fingerprint"),
    ("template", "sha256"),
    ("labels", "names"),
)
"""Facts that must be the same when a run is resumed, whatever the settings call them."""
_WHAT_CHANGED = MappingProxyType(
    {
        ("data", "fingerprint"): "what data.path names has changed since the run began",
        ("data", "eval_fingerprint"): "what data.eval_path names has changed since the run began",
    }
)


def check_same_settings(
    path: Path, earlier: Mapping[str, object], resolved: Resolved, num_processes: int
) -> list[str]:
    """Compare the settings of now with those of the run to resume.

    Args:
        path: Run folder, for the message.
        earlier: `run.yaml` of the run.
        resolved: The settings of now.
        num_processes: Of the launch of now.

    Returns:
        What the user should know about changes that are accepted, one sentence each.

    Raises:
        CheckpointError: All that must not differ.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    if earlier.get("num_processes", num_processes) != num_processes:
        message = f"found {num_processes}, but the run to resume had {earlier['num_processes']}"
        problems.append(Problem("launcher", "num_processes", message))
    recipe = resolved.recipe.name
    if earlier.get("recipe", recipe) != recipe:
        message = f"found {recipe}, but the run to resume was of {earlier['recipe']}"
        problems.append(Problem("command line", "recipe", message))
    before = cast("Mapping[str, object]", earlier["settings"])
    split_anew = _is_split_anew(before, resolved)
    if split_anew:
        notes.append(
            "the global batch is cut into other micro-batches: each step has the rows it would "
            "have had, but dropout draws other masks"
        )
    for name, old, new in _differences(before, resolved.sections):
        if split_anew and name.removeprefix("train.") in _SPLITS_A_BATCH:
            continue
        reason = _why_not(name, old, new, resolved)
        if reason is not None:
            message = f"found {_said(new)}, but the run to resume had {_said(old)}{reason}"
            problems.append(Problem(resolved.origins.get(name, ""), name, message))
        elif name in _MAY_GROW and _is_stretched(name, resolved):
            notes.append(
                f"{name} grew from {old} to {new}: the learning rate's schedule stretches, so the "
                "steps to come differ from those of a run that was this long from its start"
            )
    if problems:
        raise CheckpointError(
            f"the run in {path} can't be resumed with other settings: put them back, or start "
            "anew with --overwrite or another train.output_dir",
            problems,
        )
    return notes


def check_same_facts(
    path: Path, earlier: Mapping[str, object], facts: Mapping[str, Mapping[str, object]]
) -> None:
    """Compare what is known before step 1 with what the run to resume was trained on.

    Raises:
        CheckpointError: The run to resume had other rows, another template or another base.
    """
    problems: list[Problem] = []
    for subject, key in _MUST_MATCH:
        old = cast("Mapping[str, object]", earlier.get(subject) or {}).get(key)
        new = facts.get(subject, {}).get(key)
        if old is not None and old != new:
            message = f"found {_shortened(new)}, but the run to resume had {_shortened(old)}"
            if (subject, key) in _WHAT_CHANGED:
                message += f": {_WHAT_CHANGED[subject, key]}"
            problems.append(Problem(str(path / RUN_FILE), f"{subject}.{key}", message))
    problems += _other_base(path, earlier, facts)
    if problems:
        raise CheckpointError(
            f"the run in {path} can't be resumed: what it was trained on has changed. Bring it "
            "back, or start anew with --overwrite or another train.output_dir",
            problems,
        )


def _other_base(
    path: Path, earlier: Mapping[str, object], facts: Mapping[str, Mapping[str, object]]
) -> list[Problem]:
    """Name both bases where they are not the same; dropout counts as well."""
    began = cast("Mapping[str, object]", earlier.get("base") or {})
    now = facts.get("base") or {}
    if not began or not now:
        return []
    differences = base_differences(began, now, for_training=True)
    if not differences:
        return []
    message = (
        f"found {now.get('name')!r}, but the run to resume began with {began.get('name')!r}: "
        + "; ".join(differences)
    )
    return [Problem(str(path / RUN_FILE), "base", message)]


def _differences(
    before: Mapping[str, object], now: Mapping[str, object]
) -> Iterator[tuple[str, object, object]]:
    """Yield dotted name, old and new value of what differs; a section may be or become null.

    What only one version of a library or recipe has is not compared.
    """
    for section in [section for section in now if section in before]:
        old, new = before[section], now[section]
        if not isinstance(old, Mapping) or not isinstance(new, Mapping):
            if old != new:
                yield section, old, new
            continue
        for key in [key for key in new if key in old and old[key] != new[key]]:
            yield f"{section}.{key}", old[key], new[key]


def _why_not(name: str, old: object, new: object, resolved: Resolved) -> str | None:
    """Say why a setting must not differ, empty where its name says it all; None where it may."""
    if name == "train.num_train_epochs" and _grew(0, _setting(resolved, "train", "max_steps")):
        return None  # the number of steps decides
    if name == "train.dataloader_num_workers" and not _setting(resolved, "data", "streaming"):
        return None  # rows that are numbered come in the same order from any number of workers
    if name in _MAY_GROW:
        return None if _grew(old, new) else "; it may only grow"
    if name not in _MAY_CHANGE and not name.startswith(_MAY_CHANGE_PREFIXES):
        return ""
    decided = _decided_by_evaluations(resolved)
    if decided and name.startswith(_SAYS_WHEN_TO_EVALUATE):
        return f"; it decides {decided}"
    return None


def _decided_by_evaluations(resolved: Resolved) -> str:
    """Say what depends on when a run evaluates; empty where nothing does."""
    if str(_setting(resolved, "train", "lr_scheduler_type")) == "reduce_lr_on_plateau":
        return "on the learning rates"
    looks_for_best = (
        _setting(resolved, "train", "load_best_model_at_end")
        or _setting(resolved, "classify", "early_stopping_patience")
        or _setting(resolved, "ppo", "keep") == "best"
    )
    return "which weights are the best" if looks_for_best else ""


def _is_split_anew(before: Mapping[str, object], resolved: Resolved) -> bool:
    """Whether the same global batch is made of micro-batches of another size."""
    train = cast("Mapping[str, object]", before.get("train") or {})
    old = [train.get(key) for key in _SPLITS_A_BATCH]
    new = [_setting(resolved, "train", key) for key in _SPLITS_A_BATCH]
    if old == new or not all(isinstance(one, int) for one in [*old, *new]):
        return False
    return math.prod(cast("list[int]", old)) == math.prod(cast("list[int]", new))


def _grew(old: object, new: object) -> bool:
    """Whether a number of steps, -1 where epochs are counted, is one and greater than before."""
    return isinstance(old, int | float) and isinstance(new, int | float) and 0 <= old < new


def _is_stretched(name: str, resolved: Resolved) -> bool:
    """Whether a number of steps decides on the learning rates of the steps before its end."""
    if name == "train.num_train_epochs" and _grew(0, _setting(resolved, "train", "max_steps")):
        return False
    warmup = _setting(resolved, "train", "warmup_steps")
    is_share = isinstance(warmup, float) and 0 < warmup < 1
    kind = str(_setting(resolved, "train", "lr_scheduler_type"))
    return is_share or kind not in _FLAT_SCHEDULES


def _setting(resolved: Resolved, section: str, key: str) -> object:
    return (resolved.sections.get(section) or {}).get(key)


def _said(value: object) -> str:
    if isinstance(value, Mapping):
        return "a section"
    return "null" if value is None else repr(value)


def _shortened(fact: object) -> str:
    """A fingerprint's beginning tells it apart; names are written out."""
    return fact[:12] if isinstance(fact, str) else str(fact)
