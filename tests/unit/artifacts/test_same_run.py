"""Which settings may differ when a run is resumed, key by key."""

import json
from pathlib import Path

import pytest

from sft_kit.artifacts.same_run import check_same_settings
from sft_kit.config import Resolved
from sft_kit.errors import CheckpointError

SETTINGS: dict[str, dict[str, object] | None] = {
    "model": {"checkpoint": "base", "quantization": "none", "dtype": "float32"},
    "adapter": {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["c_attn"]},
    "data": {"path": "rows.jsonl", "max_length": 512, "eval_fraction": 0.1, "template": "x"},
    "train": {
        "output_dir": "runs/x", "learning_rate": 2e-4, "seed": 42, "data_seed": None,
        "max_steps": 12, "num_train_epochs": 3.0, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "warmup_steps": 2,
        "weight_decay": 0.0, "max_grad_norm": 1.0, "optim": "adamw_torch", "bf16": False,
        "train_sampling_strategy": "random", "dataloader_num_workers": 0,
        "dataloader_drop_last": False, "logging_steps": 1, "logging_first_step": False,
        "save_steps": 4, "save_strategy": "steps", "save_total_limit": 2, "eval_steps": 4,
        "eval_strategy": "steps", "per_device_eval_batch_size": 8, "disable_tqdm": False,
        "report_to": "none", "run_name": None, "push_to_hub": False, "hub_model_id": None,
        "log_level": "passive", "load_best_model_at_end": False, "adam_beta1": 0.9,
        "dataloader_pin_memory": True, "neftune_noise_alpha": None,
    },
    "sample": {"prompts": ["a"], "max_new_tokens": 20},
}  # fmt: skip
ALLOWED = {
    "train.max_steps": 24, "train.num_train_epochs": 4.0, "train.logging_steps": 5,
    "train.logging_first_step": True, "train.save_steps": 2, "train.save_strategy": "epoch",
    "train.save_total_limit": 5, "train.eval_steps": 2, "train.eval_strategy": "no",
    "train.disable_tqdm": True, "train.report_to": "tensorboard", "train.run_name": "mine",
    "train.output_dir": "runs/moved", "train.push_to_hub": True, "train.hub_model_id": "me/x",
    "train.log_level": "error", "train.dataloader_pin_memory": False, "sample.prompts": ["b"],
    "sample.max_new_tokens": 40, "train.dataloader_num_workers": 2,
}  # fmt: skip
REFUSED = {
    "model.checkpoint": "other", "model.quantization": "nf4", "model.dtype": "bfloat16",
    "adapter.r": 16, "adapter.lora_alpha": 64, "adapter.lora_dropout": 0.0,
    "adapter.target_modules": ["c_attn", "c_proj"], "data.path": "others.jsonl",
    "data.max_length": 256, "data.eval_fraction": 0.2, "data.template": "y",
    "train.learning_rate": 1e-4, "train.seed": 43, "train.data_seed": 1, "train.max_steps": 8,
    "train.per_device_train_batch_size": 8, "train.gradient_accumulation_steps": 1,
    "train.lr_scheduler_type": "linear", "train.warmup_steps": 4, "train.weight_decay": 0.1,
    "train.max_grad_norm": 0.5, "train.optim": "sgd", "train.bf16": True,
    "train.train_sampling_strategy": "group_by_length",
    "train.dataloader_drop_last": True, "train.adam_beta1": 0.8,
    "train.load_best_model_at_end": True, "train.neftune_noise_alpha": 5.0,
}  # fmt: skip
BEST = {"train.load_best_model_at_end": True}


def check(*changed: dict[str, object], before: dict[str, object] | None = None) -> list[str]:
    """Compare settings with the same ones changed."""
    old, new = with_changes(before or {}), with_changes(before or {}, *changed)
    resolved = Resolved(Path("sft.py"), new, origins={})
    earlier: dict[str, object] = {"settings": old, "num_processes": 1, "recipe": "sft.py"}
    return check_same_settings(Path("runs/x"), earlier, resolved, 1)


def with_changes(*changes: dict[str, object]) -> dict[str, dict[str, object] | None]:
    sections = {name: dict(values or {}) for name, values in SETTINGS.items()}
    for change in changes:
        for name, value in change.items():
            section, _, key = name.partition(".")
            sections[section][key] = value
    return dict(sections)


def test_the_table_has_forty_changes_of_keys_that_exist():
    assert len(ALLOWED) + len(REFUSED) - len(ALLOWED.keys() & REFUSED.keys()) >= 40
    for name in [*ALLOWED, *REFUSED]:
        section, _, key = name.partition(".")
        assert key in (SETTINGS[section] or {})


@pytest.mark.parametrize("name", ALLOWED)
def test_a_change_that_alters_no_step_done_is_accepted(name: str):
    check({name: ALLOWED[name]})


@pytest.mark.parametrize("name", REFUSED)
def test_any_other_change_is_refused_and_named(name: str):
    with pytest.raises(CheckpointError) as caught:
        check({name: REFUSED[name]})
    (problem,) = caught.value.problems
    section, _, key = name.partition(".")
    assert problem.key == name
    old = (SETTINGS[section] or {})[key]
    said = ["null" if value is None else repr(value) for value in (REFUSED[name], old)]
    assert problem.message.startswith(f"found {said[0]}, but the run to resume had {said[1]}")


SCHEMAS = Path(__file__).resolve().parents[3] / "recipes" / "schema"
MAY_BE_ANOTHER = {
    # what is told, and how
    "train.disable_tqdm", "train.log_level", "train.log_level_replica", "train.log_on_each_node",
    "train.logging_first_step", "train.logging_nan_inf_filter", "train.logging_steps",
    "train.logging_strategy", "train.report_to", "train.run_name", "sample.max_new_tokens",
    "sample.prompts", "sample.seed", "sample.temperature", "sample.top_k", "sample.top_p",
    "ppo.dump_rollouts",
    # where files and models are; models are known by their digests
    "train.output_dir", "reward.model", "ppo.sft_adapter", "data.cache",
    # when is saved and what is kept
    "train.save_on_each_node", "train.save_only_model", "train.save_steps", "train.save_strategy",
    "train.save_total_limit", "ppo.save_rollouts",
    # when and how is evaluated, where nothing depends on it
    "train.eval_accumulation_steps", "train.eval_delay", "train.eval_on_start", "train.eval_steps",
    "train.eval_strategy", "train.eval_use_gather_object", "train.per_device_eval_batch_size",
    "ppo.eval_rollouts",
    # the same numbers in another time or memory
    "train.activation_checkpointing", "train.dataloader_num_workers",
    "train.dataloader_pin_memory",
    # after the training
    "train.push_to_hub", "train.hub_always_push", "train.hub_model_id", "train.hub_private_repo",
    "train.hub_revision",
}  # fmt: skip
MAY_GROW = {"train.max_steps", "train.num_train_epochs", "ppo.num_rollouts"}


def settings_of(schema: Path) -> dict[str, set[str]]:
    """Every section and key that a recipe knows."""
    content = json.loads(schema.read_text(encoding="utf-8"))

    def keys(part: dict[str, object]) -> set[str]:
        branches = [part, *part.get("anyOf", ())]
        names = [one["$ref"].rpartition("/")[2] for one in branches if "$ref" in one]
        return {key for name in names for key in content["$defs"][name].get("properties", {})}

    return {section: keys(part) for section, part in content["properties"].items()}


def test_of_all_settings_of_all_recipes_those_of_the_table_may_be_another_and_no_more():
    schemas = sorted(SCHEMAS.glob("*.json"))
    assert len(schemas) == 13
    accepted, refused = set(), set()
    for schema in schemas:
        sections = settings_of(schema)
        assert {"train", "data"} <= sections.keys() | {"ppo"}
        before = {name: dict.fromkeys(keys, 8) for name, keys in sections.items()}
        for name in before.keys() & {"train", "data", "classify", "ppo"}:
            off = {"max_steps": -1, "load_best_model_at_end": False, "keep": "last",
                   "early_stopping_patience": None, "lr_scheduler_type": "constant",
                   "streaming": False}  # fmt: skip
            before[name] |= {key: value for key, value in off.items() if key in before[name]}
        for section, keys in sections.items():
            for key in keys:
                changed = before | {section: before[section] | {key: "another"}}
                earlier: dict[str, object] = {"settings": before}
                try:
                    check_same_settings(Path("x"), earlier, Resolved(Path("a.py"), changed, {}), 1)
                    accepted.add(f"{section}.{key}")
                except CheckpointError as error:
                    refused |= {problem.key for problem in error.problems}
    assert accepted == MAY_BE_ANOTHER
    assert refused >= MAY_GROW
    assert not accepted & refused
    assert len(refused) > 200


def test_the_same_global_batch_may_be_cut_into_other_micro_batches_with_a_word():
    for rows, times in ((2, 4), (1, 8), (8, 1)):
        change = {
            "train.per_device_train_batch_size": rows,
            "train.gradient_accumulation_steps": times,
        }
        (note,) = check(change)
        assert note.startswith("the global batch is cut into other micro-batches: each step has th")
    for rows, times in ((4, 1), (8, 2), (2, 2)):
        change = {
            "train.per_device_train_batch_size": rows,
            "train.gradient_accumulation_steps": times,
        }
        with pytest.raises(CheckpointError) as caught:
            check(change)
        names = [problem.key.removeprefix("train.") for problem in caught.value.problems]
        assert names == [
            key
            for key, same in (
                ("per_device_train_batch_size", rows == 4),
                ("gradient_accumulation_steps", times == 2),
            )
            if not same
        ]
    with pytest.raises(CheckpointError, match=r"train\.learning_rate"):  # nothing else comes along
        check({"train.per_device_train_batch_size": 2, "train.gradient_accumulation_steps": 4,
               "train.learning_rate": 1.0})  # fmt: skip


def test_evaluations_that_more_depends_on_stay_where_they_were():
    plateau = {"train.lr_scheduler_type": "reduce_lr_on_plateau"}
    with pytest.raises(CheckpointError, match="it decides on the learning rates"):
        check({"train.eval_steps": 2}, before=plateau)
    for keep, is_refused in (("best", True), ("last", False)):
        before = {"ppo": {"keep": keep, "eval_rollouts": 4, "save_rollouts": 2}}
        now = {"ppo": before["ppo"] | {"eval_rollouts": 2, "save_rollouts": 1}}
        earlier: dict[str, object] = {"settings": before}
        resolved = Resolved(Path("ppo.py"), now, {})
        if is_refused:
            with pytest.raises(CheckpointError, match=r"eval_rollouts.*which weights are the best"):
                check_same_settings(Path("x"), earlier, resolved, 1)
        else:
            assert check_same_settings(Path("x"), earlier, resolved, 1) == []


def test_a_stream_is_parted_among_its_workers_so_their_number_stays():
    with pytest.raises(CheckpointError, match=r"train\.dataloader_num_workers: found 2"):
        check({"train.dataloader_num_workers": 2}, before={"data.streaming": True})


def test_unchanged_settings_say_nothing():
    assert check() == []


def test_more_steps_are_accepted_with_a_word_about_the_schedule():
    (note,) = check({"train.max_steps": 24})
    assert note.startswith("train.max_steps grew from 12 to 24: the learning rate's schedule")
    for kind in ("constant", "constant_with_warmup"):
        flat = {"train.lr_scheduler_type": kind}
        assert check({"train.max_steps": 24}, before=flat) == []
        shared = flat | {"train.warmup_steps": 0.1}
        assert len(check({"train.max_steps": 24}, before=shared)) == 1


@pytest.mark.parametrize(("key", "fewer"), [("max_steps", 8), ("max_steps", -1),
                                            ("num_train_epochs", 2.0)])  # fmt: skip
def test_fewer_steps_are_refused(key: str, fewer: float):
    epochs = {"train.max_steps": -1} if key == "num_train_epochs" else {}
    with pytest.raises(CheckpointError, match="it may only grow"):
        check({f"train.{key}": fewer}, before=epochs)


@pytest.mark.parametrize(
    "change",
    [{"train.save_steps": 2}, {"train.save_strategy": "epoch"}, {"train.eval_steps": 2},
     {"train.eval_strategy": "no"}],
)  # fmt: skip
def test_where_the_best_weights_are_kept_the_steps_that_are_looked_at_stay(change):
    with pytest.raises(CheckpointError, match="it decides which weights are the best"):
        check(change, before=BEST)
    check({"train.save_total_limit": 9, "train.logging_steps": 3}, before=BEST)


def test_a_section_that_was_or_becomes_null_is_refused():
    sections = with_changes()
    for old, new in ((sections, sections | {"adapter": None}),
                     (sections | {"adapter": None}, sections)):  # fmt: skip
        earlier: dict[str, object] = {"settings": old}
        with pytest.raises(CheckpointError) as caught:
            check_same_settings(Path("x"), earlier, Resolved(Path("sft.py"), new, {}), 1)
        (problem,) = caught.value.problems
        assert problem.key == "adapter"
        assert "null" in problem.message
        assert "a section" in problem.message


def test_other_processes_and_another_recipe_are_refused():
    earlier: dict[str, object] = {"settings": {}, "num_processes": 2, "recipe": "reward.py"}
    with pytest.raises(CheckpointError) as caught:
        check_same_settings(Path("x"), earlier, Resolved(Path("sft.py"), {}, {}), 1)
    assert [problem.key for problem in caught.value.problems] == ["num_processes", "recipe"]
