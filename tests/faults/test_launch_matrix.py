"""Every way to start a recipe: the batch that is printed is the batch that trains, or it stops."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..equivalence.conftest import twenty_steps
from ..equivalence.test_sft import ACCELERATE, free_port
from ..recipes.conftest import save_checkpoint, write_rows

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = [sys.executable]
TORCHRUN = [*PYTHON, "-m", "torch.distributed.run", "--master_port", "PORT", "--nproc_per_node"]
ON_CPU = [*ACCELERATE, "--config_file", "recipes/launch/ddp_cpu.yaml", "--main_process_port"]
SFT = "recipes/sft_gpt2_lora.py"
NUM_ROWS = 24
LAUNCH_SECONDS = 500

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def settings(tmp_path_factory, trained_tokenizer) -> dict[str, object]:
    """One epoch over 24 rows in micro-batches of two, two of them a step."""
    folder = tmp_path_factory.mktemp("matrix")
    base = save_checkpoint(folder / "tiny-gpt2", trained_tokenizer, dropout=0.0)
    settings = twenty_steps(base, write_rows(folder / "rows.jsonl"), folder / "run")
    return settings | {
        "data.num_rows": NUM_ROWS,
        "train.max_steps": -1,
        "train.num_train_epochs": 1,
        "train.per_device_train_batch_size": 2,
        "train.gradient_accumulation_steps": 2,
    }


def launch(
    commands: list[list[str]], told: list[dict[str, str]], settings: dict[str, object]
) -> tuple[list[int], str]:
    """Start commands side by side; give their exit codes and what they said."""
    words = [f"{key}={value}" for key, value in settings.items()]
    port = str(free_port())
    started = [
        subprocess.Popen(
            [*(port if word == "PORT" else word for word in command), SFT, *words],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "OMP_NUM_THREADS": "1",
                **{key: port if value == "PORT" else value for key, value in extra.items()},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, extra in zip(commands, told, strict=True)
    ]
    said = "".join(one.communicate(timeout=LAUNCH_SECONDS)[0] for one in started)
    return [one.returncode for one in started], said


def meet(rank: int, **more: str) -> dict[str, str]:
    """What a scheduler tells processes that it starts by itself."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "PORT", "WORLD_SIZE": "2"}
    return address | {"RANK": str(rank)} | more


@pytest.mark.parametrize(
    ("num_processes", "commands", "told"),
    [
        (1, [PYTHON], [{}]),
        (1, [ACCELERATE], [{}]),
        (1, [[*ACCELERATE, "--num_processes", "1"]], [{}]),
        (1, [[*TORCHRUN, "1"]], [{}]),
        (2, [[*TORCHRUN, "2"]], [{}]),
        (2, [[*ON_CPU, "PORT"]], [{}]),
        (2, [PYTHON, PYTHON], [meet(0, LOCAL_RANK="0"), meet(1, LOCAL_RANK="1")]),
    ],
    ids=[
        "python",
        "accelerate",
        "accelerate 1",
        "torchrun 1",
        "torchrun 2",
        "ddp_cpu",
        "scheduler",
    ],
)
def test_the_printed_batch_is_the_one_that_trains(
    settings, num_processes, commands, told, tmp_path
):
    folder = tmp_path / "run"
    codes, said = launch(commands, told, settings | {"train.output_dir": folder})
    assert set(codes) == {0}, said
    (printed,) = re.findall(r"accumulation = (\d+)", said)
    assert int(printed) == 2 * 2 * num_processes
    lines = (folder / "log.jsonl").read_text().splitlines()
    num_steps = sum('"loss"' in line for line in lines)
    assert num_steps * int(printed) == NUM_ROWS  # every row once, and no row twice


@pytest.mark.parametrize(
    ("command", "told", "words"),
    [
        ([*ACCELERATE, "--num_processes", "2"], {}, "asked for 2 processes and started 1"),
        (
            [
                *ACCELERATE,
                "--num_machines",
                "2",
                "--num_processes",
                "2",
                "--machine_rank",
                "0",
                "--main_process_ip",
                "127.0.0.1",
                "--main_process_port",
                "PORT",
            ],
            {},
            "asked for 2 processes and started 1",
        ),
        (PYTHON, {"SLURM_STEP_NUM_TASKS": "2"}, "Slurm started 2 tasks"),
        (
            [*ACCELERATE, "--config_file", "recipes/launch/fsdp2.yaml", "--main_process_port", "0"],
            {},
            "asked for FSDP, which accelerate knows on GPUs only",
        ),
    ],
    ids=["accelerate 2", "two machines", "srun", "fsdp2"],
)
def test_a_launch_that_would_train_something_else_is_stopped(
    settings, command, told, words, tmp_path
):
    import torch

    if torch.cuda.is_available():
        pytest.skip("with GPUs accelerate starts what it is asked for")
    folder = tmp_path / "run"
    codes, said = launch([command], [told], settings | {"train.output_dir": folder})
    assert codes != [0]
    assert words in said, said
    assert not folder.exists()
