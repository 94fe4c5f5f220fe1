import json
import os
from pathlib import Path

import psutil
import pytest
import torch

from sft_kit import devices
from sft_kit.devices import (
    Accelerator,
    asked_processes,
    check_launch,
    find_accelerator,
    peak_memory_bytes,
    resolve,
    usable_cores,
    use_all_cores,
)
from sft_kit.errors import LaunchError

CPU, CUDA, OLD_CUDA, MPS = "cpu", "cuda", "cuda without bf16", "mps"


def pretend(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch report another machine's hardware."""
    has_cuda = machine in (CUDA, OLD_CUDA)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: machine == CUDA)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: machine == MPS)


# --- what `auto` becomes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "train", "use_cpu", "bf16", "fp16", "dtype"),
    [
        (CPU, {}, True, False, False, "float32"),
        (MPS, {}, False, False, False, "float32"),
        (CUDA, {}, False, True, False, "bfloat16"),
        (OLD_CUDA, {}, False, False, True, "float32"),
        (CUDA, {"use_cpu": True}, True, False, False, "float32"),
        (MPS, {"use_cpu": True}, True, False, False, "float32"),
        (CUDA, {"use_cpu": False}, False, True, False, "bfloat16"),
        (CPU, {"use_cpu": "auto", "bf16": "auto", "fp16": "auto"}, True, False, False, "float32"),
        (CPU, {"bf16": True}, True, True, False, "bfloat16"),
        (CUDA, {"fp16": True}, False, False, True, "float32"),
        (CUDA, {"bf16": False}, False, False, False, "float32"),
        (CUDA, {"bf16": False, "fp16": False}, False, False, False, "float32"),
        (OLD_CUDA, {"fp16": False}, False, False, False, "float32"),
    ],
)
def test_device_and_precision_follow_the_machine(
    machine: str, train: dict[str, object], use_cpu: bool, bf16: bool, fp16: bool, dtype: str,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    pretend(machine, monkeypatch)
    found = resolve({"train": train, "model": {"dtype": "auto"}})
    assert found.problems == []
    assert found.updates["train"] == {"use_cpu": use_cpu, "bf16": bf16, "fp16": fp16}
    assert found.updates["model"] == {"dtype": dtype}


@pytest.mark.parametrize(
    ("machine", "sections", "key"),
    [
        (CPU, {"train": {"fp16": True}}, "train.fp16"),
        (MPS, {"train": {"fp16": True}}, "train.fp16"),
        (MPS, {"train": {"bf16": True}}, "train.bf16"),
        (OLD_CUDA, {"train": {"bf16": True}}, "train.bf16"),
        (CUDA, {"train": {"fp16": True, "use_cpu": True}}, "train.fp16"),
        (CPU, {"model": {"dtype": "float16"}}, "model.dtype"),
        (OLD_CUDA, {"model": {"dtype": "bfloat16"}}, "model.dtype"),
    ],
)
def test_a_precision_that_the_machine_lacks_is_a_problem(
    machine: str,
    sections: dict[str, dict[str, object]],
    key: str,
    monkeypatch: pytest.MonkeyPatch,
):
    pretend(machine, monkeypatch)
    (problem,) = resolve(sections).problems
    assert problem.key == key
    assert "accepts " in problem.message
    assert "float32" in problem.message


def test_what_was_picked_is_said_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    pretend(CUDA, monkeypatch)
    assert resolve({"train": {}, "adapter": {}, "model": {"dtype": "auto"}}).notes == [
        "device: cuda (Some GPU, found)",
        "precision: bfloat16 autocast (the device has instructions for it; train.bf16), "
        "weights bfloat16, adapter float32; model.dtype",
    ]
    pretend(CPU, monkeypatch)
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    assert resolve({"train": None}).notes == [
        "device: cpu (2 cores, no GPU found)",
        "precision: float32 (no fast 16-bit instructions found; train.bf16), weights float32",
    ]
    assert "asked for" in resolve({"train": {"use_cpu": True}}).notes[0]


def test_a_cpu_that_multiplies_bfloat16_does_so_unless_it_is_ppo(monkeypatch: pytest.MonkeyPatch):
    pretend(CPU, monkeypatch)
    monkeypatch.setattr(devices, "cpu_is_fast_in_bf16", lambda: True)
    sections: dict[str, dict[str, object] | None] = {
        "train": {},
        "adapter": {},
        "model": {"dtype": "auto", "attention": "auto", "dropout": "auto", "fused": True},
    }
    found = resolve(sections)
    assert found.updates["train"]["bf16"] is True
    assert found.updates["model"] == {
        "dtype": "bfloat16",
        "attention": "blocks",
        "dropout": "none",
    }
    assert "bf16 instructions" in found.notes[0]
    whole = resolve(sections | {"adapter": None})
    assert whole.updates["model"]["dtype"] == "float32"
    assert whole.updates["train"]["bf16"] is True
    refused = resolve(sections | {"train": {"bf16": False}})
    assert refused.updates["model"]["dtype"] == "float32"
    assert refused.updates["model"]["attention"] == "sdpa"
    ppo = resolve(sections | {"ppo": {}})
    assert ppo.updates["train"]["bf16"] is False
    assert ppo.updates["model"]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("instruction", "is_fast"),
    [("avx512_bf16", True), ("amx_bf16", True), ("avx512_f", False), ("avx2", False)],
)
def test_instructions_for_bfloat16_are_what_counts(
    instruction: str, is_fast: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True})
    assert devices.cpu_is_fast_in_bf16() is False  # the suite has said so to oneDNN
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx512_core_bf16")
    assert devices.cpu_is_fast_in_bf16() is is_fast
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert devices.cpu_is_fast_in_bf16() is is_fast


def test_full_fine_tuning_keeps_its_weights_in_float32(monkeypatch: pytest.MonkeyPatch):
    pretend(CUDA, monkeypatch)
    settings = {"train": {}, "adapter": None, "model": {"dtype": "auto"}}
    assert resolve(settings).updates["model"] == {"dtype": "float32"}
    assert resolve(settings).updates["train"]["bf16"] is True
    rounded = resolve(settings | {"model": {"dtype": "bfloat16"}}).problems
    assert [problem.key for problem in rounded] == ["model.dtype"]


def test_the_launchers_precision_is_taken_where_the_settings_say_auto(
    monkeypatch: pytest.MonkeyPatch,
):
    pretend(CPU, monkeypatch)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert resolve({"train": {}}).updates["train"]["bf16"] is True
    assert resolve({"train": {"bf16": False}}).updates["train"]["bf16"] is False


@pytest.mark.parametrize(("num_gpus", "world_size"), [(2, "1"), (1, "2")])
def test_processes_that_do_not_meet_as_started_stop_the_run(
    num_gpus: int, world_size: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    devices.check_processes(1)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(LaunchError):
        devices.check_processes(num_gpus)


def test_a_model_without_dtype_gets_none(monkeypatch: pytest.MonkeyPatch):
    pretend(CUDA, monkeypatch)
    assert "model" not in resolve({"model": {"architecture": "gpt2"}, "train": {}}).updates


def test_the_cpu_is_found_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    pretend(CUDA, monkeypatch)
    assert find_accelerator() == Accelerator(
        "cuda", "Some GPU", bf16=True, fp16=True, is_fast_in_bf16=True
    )
    assert find_accelerator(only_cpu=True).kind == "cpu"


def test_usable_cores_are_bounded_by_the_affinity_of_the_process():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no process affinity")
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_peak_memory_grows_by_what_is_allocated_and_does_not_shrink():
    if torch.cuda.is_available():
        pytest.skip("counts the memory of the GPU here")
    before = peak_memory_bytes()
    resident = psutil.Process().memory_info().rss
    assert before > 0.9 * resident
    wanted = before - resident + 100_000_000
    block = torch.ones(wanted, dtype=torch.uint8)
    peak = peak_memory_bytes()
    assert before + 80e6 < peak < before + 150e6
    del block
    assert peak_memory_bytes() > peak - 2e6  # the kernel counts in batches of pages


# --- how many processes were asked for -----------------------------------------------------------


@pytest.fixture
def no_default_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where accelerate's default config would be, in an empty home."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "accelerate").mkdir(parents=True)
    return tmp_path / "home" / "accelerate" / "default_config.yaml"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("accelerate launch --num_processes 2 recipes/x.py", 2),
        ("accelerate launch --num-processes 2 recipes/x.py", 2),
        ("accelerate launch --num_processes=4 recipes/x.py a.b=1", 4),
        ("accelerate launch --num-processes=4 recipes/x.py", 4),
        ("/v/bin/python /v/bin/accelerate launch --num_processes 3 x.py", 3),
        ("/v/bin/python -u /v/bin/accelerate launch --cpu --num_processes 3 x.py", 3),
        ("/v/bin/python /v/bin/accelerate-launch --num_processes 3 x.py", 3),
        ("accelerate-launch --num_processes 3 x.py", 3),
        ("python -m accelerate.commands.launch --num_processes 5 x.py", 5),
        ("python /lib/accelerate/commands/launch.py --num_processes 5 x.py", 5),
        ("accelerate launch --mixed_precision no --num_processes 2 x.py", 2),
        ("accelerate launch x.py", None),
        ("accelerate launch x.py --num_processes 2", None),
        ("accelerate launch recipes/x.py data.path=--num_processes=9", None),
        ("accelerate launch --num_processes two x.py", None),
        ("accelerate launch", None),
        ("accelerate config --num_processes 2", None),
        ("torchrun --nproc_per_node 2 x.py", None),
        ("python recipes/x.py", None),
        ("bash launch --num_processes 2", None),
        ("bash", None),
        ("", None),
    ],
)
def test_the_number_of_processes_is_read_from_the_launchers_command(
    command: str, expected: int | None, no_default_config: Path
):
    assert asked_processes(command.split()) == expected


def test_a_config_file_says_the_number_unless_the_command_does(
    tmp_path: Path, no_default_config: Path
):
    file = tmp_path / "my.yaml"
    file.write_text("compute_environment: LOCAL_MACHINE\nnum_machines: 1\nnum_processes: 6\n")
    assert asked_processes(["accelerate", "launch", "--config_file", str(file), "x.py"]) == 6
    assert asked_processes(["accelerate", "launch", f"--config-file={file}", "x.py"]) == 6
    words = ["accelerate", "launch", "--config_file", str(file), "--num_processes", "2", "x.py"]
    assert asked_processes(words) == 2


def test_a_config_file_may_be_json(tmp_path: Path, no_default_config: Path):
    file = tmp_path / "my.json"
    for indent in (None, 2):
        file.write_text(json.dumps({"num_processes": 3, "num_machines": 1}, indent=indent))
        assert asked_processes(["accelerate", "launch", f"--config_file={file}", "x.py"]) == 3


def test_the_default_config_of_accelerate_counts(no_default_config: Path):
    no_default_config.write_text("num_processes: 8\n")
    assert asked_processes(["accelerate", "launch", "x.py"]) == 8
    assert asked_processes(["python", "x.py"]) is None


def test_a_config_file_that_is_missing_says_nothing(no_default_config: Path):
    assert asked_processes(["accelerate", "launch", "--config_file", "nope.yaml", "x.py"]) is None


def test_the_launch_file_of_this_project_asks_for_two(no_default_config: Path):
    file = Path(devices.__file__).parents[1] / "recipes" / "launch" / "ddp_cpu.yaml"
    assert asked_processes(["accelerate", "launch", "--config_file", str(file), "x.py"]) == 2


def test_fewer_processes_than_asked_for_stop_with_both_commands(no_default_config: Path):
    options = ["--num_processes", "2", "recipes/sft.py", "train.seed=1"]
    with pytest.raises(LaunchError, match="asked for 2 processes and started 1") as caught:
        check_launch(["/v/python", "/v/accelerate", "launch", *options])
    message = str(caught.value)
    assert "`torchrun --nproc_per_node 2 recipes/sft.py`" in message
    assert (
        "`accelerate launch --config_file recipes/launch/ddp_cpu.yaml --num_processes 2 "
        "recipes/sft.py`" in message
    )


@pytest.mark.parametrize("started", ["2", "3"])
def test_as_many_processes_as_asked_for_go_on(
    started: str, no_default_config: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", started)
    check_launch(["accelerate", "launch", "--num_processes", "2", "x.py"])


def test_without_launcher_one_process_is_enough(no_default_config: Path):
    check_launch(["bash"])
    check_launch([])
    check_launch()


# --- threads -------------------------------------------------------------------------------------


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Eight cores, and the numbers of threads that were set."""
    calls: list[int] = []
    monkeypatch.setattr(devices, "usable_cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return calls


@pytest.mark.parametrize("launcher", ["ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"])
@pytest.mark.parametrize(("processes", "expected"), [(None, 8), ("2", 4), ("3", 2), ("16", 1)])
def test_a_launched_process_takes_its_share_of_the_cores(
    launcher: str, processes: str | None, expected: int, threads: list[int],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setenv(launcher, "no")
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    note = use_all_cores()
    assert threads == [expected]
    assert note is not None
    assert note.startswith(f"threads: {expected} per process")


def test_threads_stay_as_they_are_without_launcher(threads: list[int]):
    assert use_all_cores() is None
    assert threads == []


def test_another_number_of_threads_is_respected(
    threads: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert use_all_cores() is None
    assert threads == []
