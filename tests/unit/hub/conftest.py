"""The stand-in of the Hub, and run folders to push."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ...hub_stand_in.here import SHRUNK, small_run, stand_in
from ...hub_stand_in.hub_server import HubServer
from ..artifacts.conftest import make_run  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from sft_kit.hub.deadline import Patience


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The stand-in, which takes large files by LFS."""
    with stand_in(monkeypatch, tmp_path / "home") as server:
        yield server


@pytest.fixture
def xet_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The stand-in, which takes large files by Xet."""
    with stand_in(monkeypatch, tmp_path / "home", xet=True) as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run folder with every kind of file."""
    return small_run(tmp_path / "my-run")


@pytest.fixture
def patience() -> "Patience":
    """Waits hundredths of seconds, and ten seconds in all."""
    from sft_kit.hub.deadline import Patience

    return Patience(total_seconds=10.0, **SHRUNK)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let pass that huggingface_hub 2.4 sends files by LFS with httpx2's old argument `data`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"))
