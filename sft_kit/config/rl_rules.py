"""Rules about scores, PPO and PTX: what has no effect, is out of reach, or must be there."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from sft_kit.config.suggestions import did_you_mean, nearest
from sft_kit.config.view import Rule, View
from sft_kit.errors import Problem

_FUNCTION = re.compile(r".*\S.*:[^\W\d]\w*")
_METRICS = ("loss", "accuracy", "ties_fraction")
"""What the evaluation of a reward model gives while it learns."""
_LISTED_FILES = ("adapter_config.json", "config.json")


def _run_folder(key: str, what: str, recipe: str) -> Rule:
    def rule(view: View) -> Iterator[Problem]:
        name = view.get(key)
        if name is None:
            return
        folder = Path(str(name)).expanduser()
        todo = (
            f"make it first: accelerate launch recipes/{recipe}.py with the same model.checkpoint; "
            f"folders are looked up from {Path.cwd()}"
        )
        if folder.is_file():
            yield view.problem(key, f"found the file {name}, accepts the run folder of {what}")
        elif not name or not folder.is_dir():
            found = f"found {name!r}, and there is no such folder; accepts the run folder of {what}"
            yield view.problem(key, found, todo)
        elif not any((folder / file).is_file() for file in _LISTED_FILES):
            found = f"found the folder {name}, which holds no finished run"
            todo = "let that run come to its end, or name another folder"
            yield view.problem(key, found, todo)

    return rule


def _output_is_no_source(view: View) -> Iterator[Problem]:
    output = view.get("train.output_dir")
    for key in ("reward.model", "ppo.sft_adapter"):
        name = view.get(key)
        if output and name and Path(str(name)).resolve() == Path(str(output)).resolve():
            found = f"found {output}, which {key} is read from, accepts a folder of its own"
            yield view.problem("train.output_dir", found, "name another folder")


def _something_to_score_by(view: View) -> Iterator[Problem]:
    if view.get("reward.model") is None and not view.get("reward.functions"):
        found = "found neither a reward model nor a function: nothing gives a score"
        todo = "set reward.model to a run folder, or reward.functions to {module:function: 1.0}"
        yield view.problem("reward.model", found, todo)


def _functions(view: View) -> Iterator[Problem]:
    functions = view.get("reward.functions")
    for name in functions if isinstance(functions, dict) else ():
        yield from _named_function(view, "reward.functions", str(name))


def _gold(view: View) -> Iterator[Problem]:
    gold = view.get("reward.gold")
    if gold is not None:
        yield from _named_function(view, "reward.gold", str(gold))


def _named_function(view: View, key: str, name: str) -> Iterator[Problem]:
    if not _FUNCTION.fullmatch(name):
        found = f"found {name!r}, accepts module:function or file.py:function"
        yield view.problem(key, found)


def _of_the_model_only(view: View) -> Iterator[Problem]:
    if view.get("reward.model") is not None:
        return
    if view.is_given("reward.model_weight"):
        found = f"found {view.get('reward.model_weight')} without reward.model, whose weight it is"
        yield view.problem("reward.model_weight", found, "remove it, or set reward.model")
    if view.get("reward.normalise") == "reference":
        found = "found reference without reward.model, whose scale it is"
        yield view.problem("reward.normalise", found, "set it to running or none")


def _no_stop_value(view: View) -> Iterator[Problem]:
    rule = view.get("reward.no_stop")
    if rule in ("mask", "none") and view.is_given("reward.no_stop_value"):
        found = f"found {view.get('reward.no_stop_value')} with reward.no_stop={rule}"
        todo = "remove it, or set reward.no_stop to penalise or replace"
        yield view.problem("reward.no_stop_value", f"{found}, which does not use it", todo)


def _minibatches(view: View) -> Iterator[Problem]:
    episodes, parts = (
        view.number("ppo.episodes_per_rollout"),
        view.number("ppo.num_minibatches"),
    )
    if parts > episodes:
        found = f"found {parts}, more than ppo.episodes_per_rollout ({episodes})"
        yield view.problem("ppo.num_minibatches", f"{found}: some would be empty", "lower it")


def _controller(view: View) -> Iterator[Problem]:
    target = view.get("ppo.kl_target")
    if target is not None and view.number("ppo.kl_coefficient") == 0:
        found = f"found {target} with ppo.kl_coefficient=0, which no factor can change"
        yield view.problem("ppo.kl_target", found, "start from a coefficient above 0")
    needed = 0.2 * view.number("ppo.episodes_per_rollout")
    if target is not None and view.number("ppo.kl_horizon") <= needed:
        found = f"found {view.get('ppo.kl_horizon')}, accepts more than {needed:g}"
        reason = "a fifth of ppo.episodes_per_rollout, or one step could turn the coefficient over"
        yield view.problem("ppo.kl_horizon", f"{found}: {reason}", "raise it")
    if target is None and view.is_given("ppo.kl_horizon"):
        found = f"found {view.get('ppo.kl_horizon')} without ppo.kl_target, which it belongs to"
        yield view.problem("ppo.kl_horizon", found, "set ppo.kl_target, or remove it")


def _warmups(view: View) -> Iterator[Problem]:
    total = view.number("ppo.num_rollouts")
    for key, effect in (
        ("ppo.value_warmup_rollouts", "the policy never learns"),
        ("ppo.warmup_rollouts", "the learning rates never peak"),
    ):
        if view.number(key) >= total:
            found = f"found {view.get(key)} of {total} rollouts (ppo.num_rollouts): {effect}"
            yield view.problem(key, found, "lower it")


def _value_without_adapter(view: View) -> Iterator[Problem]:
    says_null = "adapter" in view.sections and view.sections["adapter"] is None
    if not says_null or "adapter" in view.faulty:
        return
    if view.get("ppo.value") == "adapter":
        found = "found adapter, but `adapter:` is null: there is no adapter to learn values with"
        yield view.problem("ppo.value", found, "set it to shared or model")
    if view.get("ppo.sft_adapter") is not None:
        found = f"found {view.get('ppo.sft_adapter')!r}, but `adapter:` is null"
        todo = "add an `adapter:` section, or merge it: sft-kit merge"
        yield view.problem("ppo.sft_adapter", found, todo)


def _evaluation_without_prompts(view: View) -> Iterator[Problem]:
    has_prompts = view.get("data.eval_path") is not None or view.number("data.eval_fraction") > 0
    if view.number("ppo.eval_rollouts") > 0 and not has_prompts:
        found = f"found {view.get('ppo.eval_rollouts')} without prompts to evaluate on"
        todo = "set data.eval_path or data.eval_fraction, or ppo.eval_rollouts=0"
        yield view.problem("ppo.eval_rollouts", found, todo)


def _best_of_nothing(view: View) -> Iterator[Problem]:
    if view.get("ppo.keep") == "best" and view.number("ppo.eval_rollouts") == 0:
        found = "found best with ppo.eval_rollouts=0: nothing is evaluated to choose by"
        yield view.problem("ppo.keep", found, "set ppo.eval_rollouts, or set it to last")


def _ptx(view: View) -> Iterator[Problem]:
    coefficient, path = view.number("ptx.coefficient"), view.get("ptx.path")
    if coefficient > 0 and path is None:
        found = f"found {coefficient} without ptx.path: there is nothing to learn"
        yield view.problem("ptx.coefficient", found, "set ptx.path, or set it to 0")
    if coefficient == 0 and path is not None:
        found = f"found {path!r} with ptx.coefficient=0: it would not be read"
        yield view.problem("ptx.path", found, "set ptx.coefficient, such as 0.1, or remove it")
    if view.get("ptx.mix") == "convex" and coefficient > 1:
        found = f"found {coefficient}, accepts 0 to 1 with ptx.mix=convex"
        todo = "lower it, or set ptx.mix to add"
        yield view.problem("ptx.coefficient", found, todo)


def _margins_reach_the_loss(view: View) -> Iterator[Problem]:
    key = "train.remove_unused_columns"
    if view.get(key) is not False:
        found = f"found {str(view.get(key)).lower()}: the margins of the pairs would be taken away"
        yield view.problem(key, found, "set it to false")


def _known_metric(view: View) -> Iterator[Problem]:
    metric = view.get("train.metric_for_best_model")
    name = str(metric).removeprefix("eval_")
    if metric is not None and name not in _METRICS:
        found = f"found {metric!r}, accepts {', '.join(_METRICS)}"
        todo = did_you_mean(nearest(name, _METRICS))
        yield view.problem("train.metric_for_best_model", found, todo)


RL_RULES: Mapping[tuple[str, ...], Rule] = MappingProxyType(
    {
        ("reward.model",): _run_folder("reward.model", "a reward model", "reward_gpt2_lora"),
        ("ppo.sft_adapter",): _run_folder(
            "ppo.sft_adapter", "a fine-tuning with LoRA", "sft_gpt2_lora"
        ),
        ("train.output_dir", "reward.model", "ppo.sft_adapter"): _output_is_no_source,
        ("reward.model", "reward.functions"): _something_to_score_by,
        ("reward.functions",): _functions,
        ("reward.gold",): _gold,
        ("reward.model", "reward.model_weight", "reward.normalise"): _of_the_model_only,
        ("reward.no_stop", "reward.no_stop_value"): _no_stop_value,
        ("ppo.episodes_per_rollout", "ppo.num_minibatches"): _minibatches,
        (
            "ppo.kl_target",
            "ppo.kl_coefficient",
            "ppo.kl_horizon",
            "ppo.episodes_per_rollout",
        ): _controller,
        ("ppo.num_rollouts", "ppo.value_warmup_rollouts", "ppo.warmup_rollouts"): _warmups,
        ("ppo.value", "ppo.sft_adapter"): _value_without_adapter,
        ("ppo.eval_rollouts", "data.eval_path", "data.eval_fraction"): _evaluation_without_prompts,
        ("ppo.keep", "ppo.eval_rollouts"): _best_of_nothing,
        ("ptx.coefficient", "ptx.path", "ptx.mix"): _ptx,
        ("reward.center_weight", "train.remove_unused_columns"): _margins_reach_the_loss,
        ("reward.center_weight", "train.metric_for_best_model"): _known_metric,
    }
)
"""Rule by the keys it looks at, as in `sft_kit.config.rules`."""
