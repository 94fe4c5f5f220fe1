"""Launches that would do something else than was asked for end in words."""

import pytest

from sft_kit import devices
from sft_kit.errors import LaunchError
from sft_kit.launch_checks import (
    build_models_whole,
    check_own_loop,
    check_sharding,
    check_tasks,
)

WHOLE = {"model": {"quantization": "none"}, "train": {"fsdp": None}}
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
ZERO2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}
ZERO3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


def launched(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("environment", [{}, FSDP, ZERO2, ZERO3])
def test_on_gpus_whole_weights_may_be_spread(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    launched(monkeypatch, environment)
    check_sharding(WHOLE, on_cpu=False)
    check_sharding({}, on_cpu=False)
    check_sharding({"model": None}, on_cpu=False)


def test_quantized_weights_stay_whole_under_the_second_stage_of_zero(
    monkeypatch: pytest.MonkeyPatch,
):
    launched(monkeypatch, ZERO2)
    check_sharding({"model": {"quantization": "nf4"}}, on_cpu=False)


@pytest.mark.parametrize("environment", [FSDP, ZERO3])
def test_quantized_weights_can_not_be_spread(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    launched(monkeypatch, environment)
    with pytest.raises(LaunchError, match=r"Set model\.quantization=none"):
        check_sharding({"model": {"quantization": "nf4"}}, on_cpu=False)


@pytest.mark.parametrize(
    ("environment", "name"), [(FSDP, "FSDP"), (ZERO2, "ZeRO-2"), (ZERO3, "ZeRO-3")]
)
def test_cpu_processes_that_would_silently_train_whole_copies_are_stopped(
    environment: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
):
    launched(monkeypatch, environment)
    with pytest.raises(LaunchError, match=f"asked for .*{name}.*GPUs only") as caught:
        check_sharding(WHOLE, on_cpu=True)
    assert "recipes/launch/ddp_cpu.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version: 2"),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, "accepts FULL_STATE_DICT"),
        ({"FSDP_STATE_DICT_TYPE": None}, "is SHARDED_STATE_DICT, accepts FULL_STATE_DICT"),
    ],
)
def test_a_kind_of_fsdp_that_can_not_be_saved_and_resumed_names_the_key(
    change: dict[str, str | None], expected: str, monkeypatch: pytest.MonkeyPatch
):
    launched(monkeypatch, {name: value for name, value in (FSDP | change).items() if value})
    with pytest.raises(LaunchError, match=expected):
        check_sharding(WHOLE, on_cpu=False)


@pytest.mark.parametrize("key", ["fsdp", "deepspeed"])
def test_the_launcher_not_the_settings_says_how_weights_are_spread(key: str):
    with pytest.raises(LaunchError, match=rf"train\.{key} is true.*--config_file recipes/launch/"):
        check_sharding({"train": {key: "true"}}, on_cpu=False)


@pytest.mark.parametrize("environment", [FSDP, ZERO2])
def test_a_recipe_with_a_loop_of_its_own_keeps_whole_models(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    check_own_loop("ppo.py")
    launched(monkeypatch, environment)
    with pytest.raises(LaunchError, match=r"ppo\.py has a loop of its own"):
        check_own_loop("ppo.py")


@pytest.mark.parametrize(
    ("environment", "stops"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "16"}, False),
        ({"SLURM_NTASKS": "2"}, False),  # of the job: its batch script runs once
    ],
)
def test_tasks_of_slurm_that_know_nothing_of_each_other_are_stopped(
    environment: dict[str, str], stops: bool, monkeypatch: pytest.MonkeyPatch
):
    for name in ("SLURM_STEP_NUM_TASKS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    launched(monkeypatch, environment)
    if not stops:
        check_tasks()
        return
    with pytest.raises(LaunchError, match="Slurm started 2 tasks"):
        check_tasks()


def test_processes_that_machines_can_not_share_evenly_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = "accelerate launch --num_machines 2 --num_processes 3 recipes/sft.py"
    with pytest.raises(LaunchError, match="asked for 3 processes and started 2") as caught:
        devices.check_launch(words.split())
    assert "a multiple of --num_machines" in str(caught.value)


class _ThirdStage:
    """Settings of DeepSpeed as transformers keeps them."""

    def is_zero3(self) -> bool:
        return True


def test_a_launch_with_zero_loads_whole_models(monkeypatch: pytest.MonkeyPatch):
    from transformers.integrations import deepspeed

    settings = _ThirdStage()
    deepspeed.set_hf_deepspeed_config(settings)
    try:
        build_models_whole()
        assert deepspeed.is_deepspeed_zero3_enabled()  # somebody else's, without such a launch
        launched(monkeypatch, ZERO3)
        build_models_whole()
        assert not deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()
