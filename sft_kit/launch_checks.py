"""Launches that would start and do something else than was asked for, refused with words.

What `sft_kit.devices` checks is how many processes started. Here is what they were started for.
"""

import os
from collections.abc import Mapping

from sft_kit.errors import LaunchError

_FULL = "FULL_STATE_DICT"
_ZERO_WITH_PARAMETERS = "3"


def check_tasks() -> None:
    """Stop where Slurm has started several tasks that know nothing of each other.

    `srun python recipes/x.py` runs a recipe once per task: each would train alone, on all rows,
    and all would write into one folder.

    Raises:
        LaunchError: With the script that starts one launcher per machine.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if not tasks.isdecimal() or int(tasks) <= 1 or "WORLD_SIZE" in os.environ:
        return
    raise LaunchError(
        f"Slurm started {tasks} tasks, and each would train alone on all rows. Start one launcher "
        "per machine: `sbatch recipes/launch/slurm.sh recipes/<recipe>.py`"
    )


def check_sharding(sections: Mapping[str, Mapping[str, object] | None], *, on_cpu: bool) -> None:
    """Stop a launch that asks for weights in parts where they can't be.

    Args:
        sections: The settings.
        on_cpu: The run computes on the CPU. accelerate 1.15 takes FSDP and DeepSpeed for GPUs only
            (`AcceleratorState` sets them aside for CPU processes) and would train whole copies
            without a word.

    Raises:
        LaunchError: What was asked for, why it can't be, and the launch file that can.
    """
    train, model = sections.get("train") or {}, sections.get("model") or {}
    for key, file in (("fsdp", "fsdp2.yaml"), ("deepspeed", "zero3_offload.yaml")):
        if train.get(key):
            raise LaunchError(
                f"train.{key} is {train[key]}, accepts null: the launcher says how weights are "
                f"spread. Use `accelerate launch --config_file recipes/launch/{file}`"
            )
    asked = _asked_for()
    if asked is None:
        return
    if on_cpu:
        raise LaunchError(
            f"the launcher was asked for {asked}, which accelerate knows on GPUs only: on CPU "
            "processes every one would train a whole copy. Use `accelerate launch --config_file "
            "recipes/launch/ddp_cpu.yaml`, or a machine with GPUs"
        )
    if asked == "FSDP" and os.environ.get("FSDP_VERSION", "1") != "2":
        raise LaunchError(
            "the launcher was asked for FSDP version 1, accepts version 2: set fsdp_version: 2 in "
            "fsdp_config, as recipes/launch/fsdp2.yaml does"
        )
    kind = os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")  # accelerate's default
    if asked == "FSDP" and kind != _FULL:
        raise LaunchError(
            f"fsdp_state_dict_type is {kind}, accepts {_FULL}: resuming from sharded checkpoints "
            "would read pickles. See recipes/launch/fsdp2.yaml"
        )
    quantization = model.get("quantization", "none")
    if _spreads_weights(asked) and quantization not in ("none", None):
        raise LaunchError(
            f"the launcher was asked for {asked}, which spreads weights over the processes, and "
            f"model.quantization is {quantization}: packed weights can't be spread. Set "
            "model.quantization=none, or use recipes/launch/ddp_gpu.yaml"
        )


def check_own_loop(recipe: str) -> None:
    """Stop a launch with FSDP or DeepSpeed of a recipe whose loop is its own.

    Args:
        recipe: Its file name.

    Raises:
        LaunchError: Always, where one of the two was asked for.
    """
    asked = _asked_for()
    if asked is not None:
        raise LaunchError(
            f"the launcher was asked for {asked}, and {recipe} has a loop of its own that keeps "
            "whole models. Use recipes/launch/ddp_gpu.yaml"
        )


def build_models_whole() -> None:
    """Have transformers load and build whole models under ZeRO-3; training spreads their weights.

    With the settings at hand transformers 5.23 would spread each model as it is loaded, and refuses
    to load one onto a device. What comes before and after training needs it whole.
    """
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def _asked_for() -> str | None:
    """What accelerate's launcher says in the environment of the processes that it starts."""
    if _is_on("ACCELERATE_USE_FSDP"):
        return "FSDP"
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        return f"DeepSpeed ZeRO-{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '?')}"
    return None


def _spreads_weights(asked: str) -> bool:
    return asked == "FSDP" or asked.endswith(_ZERO_WITH_PARAMETERS)


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")
