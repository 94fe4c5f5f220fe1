"""FSDP2 of two CPU processes against one process: curve, result, and going on after a kill."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ..equivalence.conftest import twenty_steps
from ..equivalence.test_sft import ACCELERATE, free_port
from ..recipes.conftest import run, save_bert, save_checkpoint, write_labelled, write_rows

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_STEPS = 6
LAUNCH_SECONDS = 500
FSDP2 = ("recipes/launch/fsdp2.yaml",)
SFT, CLASSIFY = "sft_gpt2_lora", "classify_bert_chinese_lora"
CASES = {
    "tuning an adapter": (SFT, {}),
    "tuning every weight": (SFT, {"adapter": "null"}),
    "classifying": (CLASSIFY, {}),
}

pytestmark = pytest.mark.slow


def settings_of(
    stem: str, changes: dict[str, object], folder: Path, tokenizer
) -> dict[str, object]:
    """Six steps without dropout, saved at every second."""
    if stem == SFT:
        base = save_checkpoint(folder / "base", tokenizer, dropout=0.0)
        settings = twenty_steps(base, write_rows(folder / "rows.jsonl"), folder / "run")
        settings["sample.prompts"] = "[Why?]"
        settings["sample.max_new_tokens"] = 4
    else:
        base = save_bert(folder / "base", dropout=0.0)
        settings = twenty_steps(base, write_labelled(folder / "rows.tsv"), folder / "run")
        settings = {key: one for key, one in settings.items() if not key.startswith("sample.")}
    settings |= {
        "data.num_rows": 40,
        "data.eval_fraction": 0.2,
        "train.max_steps": NUM_STEPS,
        "train.save_strategy": "steps",
        "train.save_steps": 2,
        "train.eval_strategy": "steps",
        "train.eval_steps": 2,
    }
    if changes.get("adapter") == "null":
        settings = {key: one for key, one in settings.items() if not key.startswith("adapter.")}
    return settings | changes


def start(
    stem: str, settings: dict[str, object], *flags: str, launch: tuple[str, ...] = FSDP2
) -> subprocess.Popen[str]:
    words = [f"{key}={value}" for key, value in settings.items()]
    launcher = [*ACCELERATE, "--config_file", *launch]
    port = ["--main_process_port", str(free_port())]
    script = ["tests/faults/sharded_on_cpu.py", f"recipes/{stem}.py"]
    return subprocess.Popen(
        [*launcher, *port, *script, *words, *flags],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=LAUNCH_SECONDS)[0]
    assert process.returncode == 0, said
    return said


def kill_workers(launcher: subprocess.Popen[str]) -> None:
    """Kill what the launcher has started, then wait for it to notice."""
    import psutil

    for child in psutil.Process(launcher.pid).children(recursive=True):
        child.send_signal(signal.SIGKILL)
    launcher.communicate(timeout=LAUNCH_SECONDS)


def logged(folder: Path, figure: str) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line[figure] for line in lines if figure in line]


def weights(folder: Path):
    from safetensors.torch import load_file

    files = sorted(folder.glob("*model*.safetensors"))
    assert len(files) == 1
    return load_file(files[0])


def assert_same_run(found: Path, expected: Path) -> None:
    assert len(logged(expected, "loss")) == NUM_STEPS
    assert logged(found, "loss") == pytest.approx(logged(expected, "loss"), abs=1e-5)
    assert logged(found, "grad_norm") == pytest.approx(logged(expected, "grad_norm"), rel=1e-4)
    assert logged(found, "eval_loss") == pytest.approx(logged(expected, "eval_loss"), abs=1e-5)
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 2e-5
    figures = json.loads((found / "metrics.json").read_text())
    assert figures["reload_max_logit_difference"] == 0.0


def check_against_one_process(
    stem: str, settings: dict[str, object], folder: Path, *launch: str
) -> None:
    """Train in one process, in two, and in two that were killed and went on."""
    run(stem, settings)
    half = settings | {"train.per_device_train_batch_size": 4}
    two = folder / "two"
    said = finish(start(stem, half | {"train.output_dir": two}, launch=launch))
    assert "4 examples x 2 processes x 1 accumulation = 8" in said
    assert_same_run(two, folder / "run")

    killed = folder / "killed"
    process = start(stem, half | {"train.output_dir": killed}, launch=launch)
    deadline = time.monotonic() + LAUNCH_SECONDS
    while not (killed / "checkpoint-2").is_dir():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    kill_workers(process)
    assert not (killed / "metrics.json").exists()
    finish(start(stem, half | {"train.output_dir": killed}, "--resume", launch=launch))
    assert_same_run(killed, folder / "run")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_that_share_every_weight_give_the_run_of_one(
    case, trained_tokenizer, tmp_path
):
    stem, changes = CASES[case]
    settings = settings_of(stem, changes, tmp_path, trained_tokenizer)
    check_against_one_process(stem, settings, tmp_path, *FSDP2)


def test_the_weights_are_really_shared(trained_tokenizer, tmp_path):
    settings = settings_of(SFT, {}, tmp_path, trained_tokenizer)
    settings |= {"train.per_device_train_batch_size": 4, "train.max_steps": 1}
    settings |= {"train.warmup_steps": 0}
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import sys\n"
        "from transformers import TrainerCallback\n"
        "from sft_kit.training import callbacks\n"
        "def look(self, args, state, control, model=None, **kwargs):\n"
        "    kinds = {type(one).__name__ for one in model.parameters()}\n"
        "    local = sum(one.to_local().numel() for one in model.parameters())\n"
        "    print('SHARED', kinds, local, sum(one.numel() for one in model.parameters()))\n"
        "callbacks.LogFile.on_step_end = look\n"
        f"sys.argv[0] = {str(REPOSITORY / 'tests/faults/sharded_on_cpu.py')!r}\n"
        "import runpy\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    words = [f"{key}={value}" for key, value in settings.items()]
    launcher = [*ACCELERATE, "--config_file", "recipes/launch/fsdp2.yaml", "--main_process_port"]
    done = subprocess.run(
        [*launcher, str(free_port()), str(probe), f"recipes/{SFT}.py", *words],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LAUNCH_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("SHARED")]
    assert len(found) == 2
    for _, kinds, local, total in found:
        assert kinds == "{'DTensor'}"
        assert int(local) == pytest.approx(int(total) / 2, rel=0.02)
