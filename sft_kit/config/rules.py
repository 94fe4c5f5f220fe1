"""Settings that are each fine and can't go together, and names that must exist on disk.

The conditions on `train` mirror what `transformers.TrainingArguments` checks when it is built, so
that a YAML can be checked in a second without building it.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from sft_kit.config.checkpoint_header import local_folder, module_names, stored_quantization
from sft_kit.config.label_rules import LABEL_RULES
from sft_kit.config.rl_rules import RL_RULES
from sft_kit.config.suggestions import did_you_mean, nearest
from sft_kit.config.text_rules import TEXT_RULES
from sft_kit.config.view import Rule, View
from sft_kit.errors import Problem

DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Tied to the input embedding in many checkpoints, and then not stored under its own name.
_MAYBE_TIED = ("lm_head",)
_PREFIXES = ("", "transformer.", "model.", "base_model.", "model.language_model.")
_MAX_LISTED = 12


def broken_rules(view: View) -> list[Problem]:
    """Apply every rule whose keys the recipe has."""
    return [
        problem for keys, rule in RULES.items() if view.can_check(*keys) for problem in rule(view)
    ]


def _quantized_without_adapter(view: View) -> Iterator[Problem]:
    quantization = view.get("model.quantization")
    full = view.sections.get("adapter") is None and "adapter" not in view.faulty
    if quantization != "none" and full:
        yield view.problem(
            "model.quantization",
            f"found {quantization} without an adapter: quantized weights can't be trained",
            "add an `adapter:` section, or set model.quantization to none",
        )


def _stored_quantized(view: View) -> Iterator[Problem]:
    """What the checkpoint's files quantize already: no second quantization, no full training."""
    folder = _checkpoint_folder(view)
    stored = stored_quantization(folder) if folder else ""
    if not stored:
        return
    quantization = view.get("model.quantization")
    if quantization != "none":
        found = f"found {quantization}, but the checkpoint is stored as {stored} already"
        yield view.problem("model.quantization", found, "set it to none: the weights stay packed")
    elif view.sections.get("adapter") is None and "adapter" not in view.faulty:
        found = f"found a checkpoint stored as {stored} without an adapter, and packed weights"
        todo = "add an `adapter:` section"
        yield view.problem("model.checkpoint", f"{found} can't be trained", todo)


def _has_output_dir(view: View) -> Iterator[Problem]:
    if view.is_given("train.output_dir") and not view.get("train.output_dir"):
        found = "found no folder, accepts the folder that the run is written to"
        yield view.problem("train.output_dir", found, "such as train.output_dir=runs/first")


def _two_eval_sources(view: View) -> Iterator[Problem]:
    if view.get("data.eval_path") is None or not view.is_given("data.eval_fraction"):
        return
    if view.number("data.eval_fraction") > 0:
        found = f"found {view.get('data.eval_fraction')} together with data.eval_path"
        yield view.problem("data.eval_fraction", found, "add data.eval_fraction=0")


def _eval_without_rows(view: View) -> Iterator[Problem]:
    has_rows = view.get("data.eval_path") is not None or view.number("data.eval_fraction") > 0
    if "data.num_folds" in view.faulty or view.get("data.num_folds") is not None:
        return
    if view.get("train.eval_strategy") != "no" and not has_rows:
        found = f"found {view.get('train.eval_strategy')} without rows to evaluate on"
        todo = "set data.eval_path or data.eval_fraction, or train.eval_strategy: no"
        yield view.problem("train.eval_strategy", found, todo)


def _both(first: str, second: str, reason: str) -> Rule:
    def rule(view: View) -> Iterator[Problem]:
        if view.get(first) not in (None, False, "auto") and view.get(second) not in (
            None,
            False,
            "auto",
        ):
            yield view.problem(second, f"found together with {first}: {reason}", "keep one of them")

    return rule


def _whole_steps(key: str, strategy: str) -> Rule:
    def rule(view: View) -> Iterator[Problem]:
        steps = view.number(key)
        if view.get(strategy) == "steps" and steps > 1 and not float(steps).is_integer():
            accepted = "accepts a whole number of steps, or a share of all steps below 1"
            yield view.problem(key, f"found {steps}, {accepted}", f"write {math.ceil(steps)}")

    return rule


def _warmup_too_long(view: View) -> Iterator[Problem]:
    warmup, steps = view.number("train.warmup_steps"), view.number("train.max_steps")
    if steps > 0 and warmup >= 1 and warmup > steps:
        found = (
            f"found {warmup}, more than train.max_steps ({steps}): the learning rate never peaks"
        )
        yield view.problem("train.warmup_steps", found, "lower it, or give a share below 1")


def _best_model(view: View) -> Iterator[Problem]:
    evaluation, saving = view.get("train.eval_strategy"), view.get("train.save_strategy")
    if saving == "best" and evaluation == "no":
        found = "found best without evaluation: nothing would ever be saved"
        yield view.problem("train.save_strategy", found, "set train.eval_strategy")
    if view.get("train.load_best_model_at_end") is not True or saving == "best":
        return
    key = "train.load_best_model_at_end"
    if evaluation != saving:
        found = f"found true with eval_strategy {evaluation} and save_strategy {saving}"
        yield view.problem(key, f"{found}, accepts equal ones", "make them the same")
    elif evaluation == "steps":
        save = view.number("train.save_steps")
        every = view.number("train.eval_steps") or view.number("train.logging_steps")
        if not _is_multiple(save, every):
            found = f"found true with save_steps {save} and eval_steps {every}"
            todo = "make save_steps a multiple of eval_steps"
            yield view.problem(key, f"{found}: not every saved model is evaluated", todo)


def _is_multiple(save: float, every: float) -> bool:
    """Same decision as TrainingArguments: shares of all steps are compared in millionths."""
    if save % every == 0:
        return True
    return save < 1 and every < 1 and (save * 1_000_000) % (every * 1_000_000) == 0


def _scheduler_needs_eval(view: View) -> Iterator[Problem]:
    scheduler = view.get("train.lr_scheduler_type")
    needs = scheduler in ("reduce_lr_on_plateau", "greedy")
    if needs and view.get("train.eval_strategy") == "no":
        found = f"found {scheduler}, which follows the evaluation loss, without evaluation"
        yield view.problem("train.lr_scheduler_type", found, "set train.eval_strategy")


def _needs_workers(key: str) -> Rule:
    def rule(view: View) -> Iterator[Problem]:
        if view.get(key) and view.number("train.dataloader_num_workers") == 0:
            found = f"found {str(view.get(key)).lower()} without worker processes"
            yield view.problem(key, found, "set train.dataloader_num_workers to 1 or more")

    return rule


def _layers(view: View) -> Iterator[Problem]:
    if isinstance(view.get("adapter.target_modules"), str):
        for key in ("adapter.layers_to_transform", "adapter.layers_pattern"):
            if view.get(key) is not None:
                found = "found together with a target_modules that is one text"
                yield view.problem(key, found, "write target_modules as a list of names")
    elif view.get("adapter.layers_pattern") and view.get("adapter.layers_to_transform") is None:
        found = "found without adapter.layers_to_transform, which it belongs to"
        yield view.problem("adapter.layers_pattern", found, "set both or none")


def _lora_bias(view: View) -> Iterator[Problem]:
    if view.get("adapter.lora_bias") is not True:
        return
    if not isinstance(view.get("adapter.init_lora_weights"), bool):
        found = "found true, accepts it with init_lora_weights true or false only"
        yield view.problem("adapter.lora_bias", found, "remove one of them")
    if view.get("adapter.use_dora") is True:
        yield view.problem("adapter.lora_bias", "found together with use_dora", "keep one of them")


def _is_checkpoint(folder: str) -> bool:
    """Whether a folder has any file of a checkpoint, be it the tokenizer alone."""
    return any(name.endswith((".safetensors", ".json")) for name in os.listdir(folder))


def _checkpoint_exists(key: str) -> Rule:
    def rule(view: View) -> Iterator[Problem]:
        if view.get(key) is None:  # a new model has no checkpoint, a checkpoint its own tokenizer
            return
        name = str(view.get(key))
        if os.path.isdir(name):
            if not _is_checkpoint(name):
                yield view.problem(key, f"found the folder {name}, which holds no checkpoint")
            return
        if os.path.isfile(name):
            yield view.problem(key, f"found the file {name}, accepts a folder or a Hub id")
        elif not _HUB_ID.fullmatch(name):
            found = f"found {name!r}, which is no folder here and no Hub id (`owner/name`)"
            yield view.problem(key, found, f"folders are looked up from {Path.cwd()}")

    return rule


def _data_exists(key: str) -> Rule:
    def rule(view: View) -> Iterator[Problem]:
        name = view.get(key)
        if not isinstance(name, str) or os.path.exists(name):
            return
        is_hub_id = _HUB_ID.fullmatch(name) and not name.lower().endswith(DATA_SUFFIXES)
        if not is_hub_id:
            found = f"found {name!r}, and there is no such file or folder"
            yield view.problem(key, found, f"paths are looked up from {Path.cwd()}")

    return rule


def _target_modules(view: View) -> Iterator[Problem]:
    targets = view.get("adapter.target_modules")
    if targets in ([], ""):
        found = "found no names, accepts all-linear or a list of layer names"
        yield view.problem("adapter.target_modules", found)
        return
    folder = _checkpoint_folder(view)
    names = module_names(folder) if folder else []
    # Experts are stored one by one and fused under other names when the model is built.
    if not targets or not names or any(".experts." in name for name in names):
        return
    if isinstance(targets, str):
        yield from _pattern_matches(view, targets, names)
    elif isinstance(targets, list):
        for target in targets:
            if target not in _MAYBE_TIED and not _names_a_module(str(target), names):
                yield _no_module(view, str(target), names)


def _checkpoint_folder(view: View) -> Path | None:
    if view.get("model.checkpoint") is None:
        return None
    revision = view.get("model.revision")
    return local_folder(
        str(view.get("model.checkpoint")),
        None if revision is None else str(revision),
        view.hub_cache,
    )


def _names_a_module(target: str, names: list[str]) -> bool:
    """PEFT's rule, also when the file leaves out the prefix that the model in memory adds."""
    return any(
        name == target or name.endswith(f".{target}") or target.endswith(f".{name}")
        for name in names
    )


def _pattern_matches(view: View, pattern: str, names: list[str]) -> Iterator[Problem]:
    if pattern.lower() == "all-linear":
        return
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        found = f"found {pattern!r}, which is no regular expression: {error}"
        yield view.problem("adapter.target_modules", found)
        return
    candidates = (f"{prefix}{name}" for prefix in _PREFIXES for name in [*names, *_MAYBE_TIED])
    if not any(compiled.fullmatch(candidate) for candidate in candidates):
        yield _no_module(view, pattern, names)


def _no_module(view: View, target: str, names: list[str]) -> Problem:
    short = sorted({name.rpartition(".")[2] for name in names})
    close = nearest(target, short)
    listed = ", ".join(short[:_MAX_LISTED]) + (" ..." if len(short) > _MAX_LISTED else "")
    message = f"found '{target}', which matches no layer of the checkpoint; it has {listed}"
    if target in short:  # one text is a regular expression for the whole name
        todo = f"a text is a pattern for whole names: write [{target}]"
        return view.problem("adapter.target_modules", message, todo)
    return view.problem("adapter.target_modules", message, did_you_mean(close))


def _pushes_nowhere(view: View) -> Iterator[Problem]:
    if view.get("train.push_to_hub") and not view.get("train.hub_model_id"):
        yield view.problem(
            "train.push_to_hub",
            "found true without a repository",
            "set train.hub_model_id=NAME/REPO",
        )


RULES: Mapping[tuple[str, ...], Rule] = MappingProxyType(
    {
        ("model.checkpoint",): _checkpoint_exists("model.checkpoint"),
        ("model.tokenizer",): _checkpoint_exists("model.tokenizer"),
        ("model.quantization",): _quantized_without_adapter,
        ("model.checkpoint", "model.revision", "model.quantization"): _stored_quantized,
        ("model.checkpoint", "model.revision", "adapter.target_modules"): _target_modules,
        (
            "adapter.target_modules",
            "adapter.layers_to_transform",
            "adapter.layers_pattern",
        ): _layers,
        ("adapter.lora_bias", "adapter.init_lora_weights", "adapter.use_dora"): _lora_bias,
        ("train.output_dir",): _has_output_dir,
        ("data.path",): _data_exists("data.path"),
        ("data.eval_path",): _data_exists("data.eval_path"),
        ("ptx.path",): _data_exists("ptx.path"),
        ("data.eval_path", "data.eval_fraction"): _two_eval_sources,
        ("data.eval_path", "data.eval_fraction", "train.eval_strategy"): _eval_without_rows,
        ("train.bf16", "train.fp16"): _both("train.bf16", "train.fp16", "one precision at a time"),
        ("train.bf16_full_eval", "train.fp16_full_eval"): _both(
            "train.bf16_full_eval", "train.fp16_full_eval", "one precision at a time"
        ),
        ("train.push_to_hub", "train.hub_model_id"): _pushes_nowhere,
        ("train.fsdp", "train.deepspeed"): _both(
            "train.fsdp", "train.deepspeed", "both shard the model"
        ),
        ("train.logging_steps",): _whole_steps("train.logging_steps", "train.logging_strategy"),
        ("train.eval_steps",): _whole_steps("train.eval_steps", "train.eval_strategy"),
        ("train.save_steps",): _whole_steps("train.save_steps", "train.save_strategy"),
        ("train.warmup_steps", "train.max_steps"): _warmup_too_long,
        (
            "train.load_best_model_at_end",
            "train.eval_strategy",
            "train.save_strategy",
            "train.eval_steps",
            "train.save_steps",
            "train.logging_steps",
        ): _best_model,
        ("train.lr_scheduler_type", "train.eval_strategy"): _scheduler_needs_eval,
        ("train.dataloader_num_workers", "train.dataloader_prefetch_factor"): _needs_workers(
            "train.dataloader_prefetch_factor"
        ),
        ("train.dataloader_num_workers", "train.dataloader_persistent_workers"): _needs_workers(
            "train.dataloader_persistent_workers"
        ),
        **LABEL_RULES,
        **RL_RULES,
        **TEXT_RULES,
    }
)
"""Rule by the keys it looks at; skipped where one of them is faulty or the recipe lacks it."""
