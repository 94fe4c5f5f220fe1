"""What a container may take is not what the machine has."""

from pathlib import Path

import psutil
import pytest

from sft_kit.host_memory import free_host_bytes

GB = 10**9


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 GB are available on the machine."""
    memory = psutil.virtual_memory()._replace(available=60 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="ascii")
    return folder


@pytest.mark.parametrize("limit", ["max\n", f"{90 * GB}\n"])
def test_without_a_tighter_limit_it_is_what_the_machine_has(tmp_path: Path, limit: str) -> None:
    assert free_host_bytes(tmp_path) == 60 * GB
    folder = write(tmp_path, {
        "memory.max": limit, "memory.current": "5\n", "memory.stat": "anon 5\ninactive_file 0\n",
    })  # fmt: skip
    assert free_host_bytes(folder) == 60 * GB


VERSIONS = {
    "the first": ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes",
                  "memory/memory.stat", "inactive_file 3\ntotal_inactive_file"),
    "the second": ("memory.max", "memory.current", "memory.stat", "anon 1\ninactive_file"),
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_a_container_has_its_limit_less_what_it_can_not_give_up(
    tmp_path: Path, version: str
) -> None:
    limit, used, statistics, cached = VERSIONS[version]
    files = {limit: f"{8 * GB}\n", used: f"{3 * GB}\n", statistics: f"{cached} {GB}\nactive 7\n"}
    assert free_host_bytes(write(tmp_path, files)) == 6 * GB
