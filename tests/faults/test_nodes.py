"""Two machines: network namespaces with an address each, joined by a pair of virtual cards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..equivalence.conftest import twenty_steps
from ..recipes.conftest import run, save_checkpoint, write_rows

REPOSITORY = Path(__file__).resolve().parents[2]
PORT = "29511"
NUM_STEPS = 8
LAUNCH_SECONDS = 500
SFT = "sft_gpt2_lora"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Node:
    """A network namespace.

    Attributes:
        name: Of the namespace.
        rank: 0 or 1.
        card: Its network interface; only the other node is at its end.
        address: IPv4.
    """

    name: str
    rank: int
    card: str
    address: str

    def pids(self) -> list[int]:
        """Every process inside."""
        return [int(word) for word in _ip("netns", "pids", self.name).stdout.split()]

    def kill(self) -> None:
        """Pull the plug."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    """Two machines that see each other and nothing else."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` here (package iproute2)")
    mark = f"{os.getpid() % 10000}"
    pair = [Node(f"sft{mark}n{i}", i, f"v{mark}n{i}", f"10.77.0.{i + 1}") for i in (0, 1)]
    made = _ip("netns", "add", pair[0].name)
    if made.returncode != 0:
        pytest.skip(f"network namespaces can't be made here: {made.stderr.strip()}")
    try:
        _ip("netns", "add", pair[1].name)
        linked = _ip("link", "add", pair[0].card, "type", "veth", "peer", "name", pair[1].card)
        if linked.returncode != 0:
            pytest.skip(f"virtual network cards can't be made here: {linked.stderr.strip()}")
        for node in pair:
            for words in (
                f"link set {node.card} netns {node.name}",
                f"-n {node.name} addr add {node.address}/24 dev {node.card}",
                f"-n {node.name} link set {node.card} up",
                f"-n {node.name} link set lo up",
            ):
                done = _ip(*words.split())
                assert done.returncode == 0, done.stderr
        yield pair
    finally:
        for node in pair:
            node.kill()
            _ip("netns", "del", node.name)


def start(nodes: list[Node], settings: dict[str, object], *flags: str) -> list[subprocess.Popen]:
    """Start the same command on both, each with its rank."""
    words = [f"{key}={value}" for key, value in settings.items()]
    started = []
    for node in nodes:
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": node.card,
        }
        launcher = [
            *("ip", "netns", "exec", node.name),
            *(str(Path(sys.executable).parent / "accelerate"), "launch"),
            *("--config_file", "recipes/launch/nodes.yaml", "--num_machines", "2"),
            *("--num_processes", "2", "--machine_rank", str(node.rank)),
            *("--main_process_ip", nodes[0].address, "--main_process_port", PORT),
        ]
        started.append(
            subprocess.Popen(
                [*launcher, f"recipes/{SFT}.py", *words, *flags],
                cwd=REPOSITORY,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(started: list[subprocess.Popen]) -> list[str]:
    """Wait for both and give what they said."""
    said = [process.communicate(timeout=LAUNCH_SECONDS)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return said


def logged(folder: Path, figure: str) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line[figure] for line in lines if "loss" in line]


def assert_same_run(two: Path, one: Path) -> None:
    from safetensors.torch import load_file

    assert len(logged(one, "loss")) == NUM_STEPS
    assert logged(two, "loss") == pytest.approx(logged(one, "loss"), abs=1e-5)
    assert logged(two, "grad_norm") == pytest.approx(logged(one, "grad_norm"), rel=1e-4)
    name = "adapter_model.safetensors"
    expected, found = load_file(one / name), load_file(two / name)
    assert found.keys() == expected.keys()
    assert max(float((found[key] - expected[key]).abs().max()) for key in found) <= 1e-5


@pytest.fixture(scope="module")
def one(tmp_path_factory, trained_tokenizer) -> tuple[dict[str, object], Path]:
    """Settings of eight steps of two micro-batches, and the run of one process."""
    folder = tmp_path_factory.mktemp("nodes")
    base = save_checkpoint(folder / "tiny-gpt2", trained_tokenizer, dropout=0.0)
    settings = twenty_steps(base, write_rows(folder / "rows.jsonl"), folder / "one")
    settings |= {"data.num_rows": 40, "train.max_steps": NUM_STEPS}
    settings |= {"train.save_strategy": "steps", "train.save_steps": 2}
    run(SFT, settings)
    return settings | {"train.per_device_train_batch_size": 4}, folder / "one"


def test_two_machines_give_the_curve_and_the_adapter_of_one_process(nodes, one, tmp_path):
    settings, expected = one
    said = finish(start(nodes, settings | {"train.output_dir": tmp_path / "two"}))
    assert "4 examples x 2 processes x 1 accumulation = 8" in "".join(said)
    assert_same_run(tmp_path / "two", expected)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_machine_that_dies_ends_the_other_with_words_and_both_go_on(nodes, one, tmp_path, lost):
    settings, expected = one
    folder = tmp_path / "two"
    settings = settings | {"train.output_dir": folder}
    started = start(nodes, settings)
    deadline = time.monotonic() + LAUNCH_SECONDS
    while not (folder / "checkpoint-4").is_dir():
        assert time.monotonic() < deadline
        assert [process.poll() for process in started] == [None, None]
        time.sleep(0.02)
    nodes[lost].kill()
    said = started[1 - lost].communicate(timeout=LAUNCH_SECONDS)[0]
    started[lost].communicate()
    assert started[1 - lost].returncode != 0
    assert not (folder / "adapter_model.safetensors").exists()
    assert "another process was lost of the 2 that train together" in said, said
    assert "--resume" in said

    finish(start(nodes, settings, "--resume"))
    assert_same_run(folder, expected)
