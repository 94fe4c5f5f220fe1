"""Imports inside sft_kit only point down, and only a few rooms look at the world outside."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "sft_kit"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")

TOP = {"training", "inference", "evaluation", "artifacts", "hub", "label_doctor", "class_doctor",
       "preference_doctor", "pretrain_doctor"}  # fmt: skip
CONFIG = {"checkpoints", "command", "config", "devices", "disk", "host_memory", "launch_checks",
          "manifest", "parts", "run_log", "run_record", "settings", "stopping"}  # fmt: skip
LOW = {"errors"} | CONFIG
MIDDLE = LOW | {"objectives", "data", "models"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "objectives": set(),
    **dict.fromkeys(CONFIG, LOW),
    "data": LOW,
    "models": LOW | {"objectives"},
    **dict.fromkeys(TOP, MIDDLE),
    "hub": LOW,
    "artifacts": MIDDLE | {"hub"},
    "plan": MIDDLE | {"training"},
    "cli": MIDDLE | TOP | {"plan"},
}
CLOCKS = {"training/callbacks.py", "training/ppo/phases.py"}
READS_THE_WORLD = {*CONFIG, *CLOCKS, "cli", "artifacts", "hub", "plan"}
WORLD = {"sys.argv", "os.environ", "os.getenv", "time.time", "time.monotonic", "time.perf_counter",
         "datetime.now", "datetime.datetime.now"}  # fmt: skip


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(tree: ast.AST) -> set[str]:
    """Absolute names of everything a file imports, inside functions and type checks too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides which room is meant"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def wrong_arrows(room: str, tree: ast.AST) -> set[str]:
    inside = {name.split(".")[1] for name in imported_names(tree) if name.startswith("sft_kit.")}
    return inside - MAY_IMPORT[room] - {room, "__version__"}


def looks_outside(tree: ast.AST) -> set[str]:
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & WORLD


def test_every_module_belongs_to_a_known_room() -> None:
    assert len(MODULES) >= 20
    assert {room_of(path) for path in MODULES} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_imports_only_rooms_below_it(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not wrong_arrows(room_of(path), tree)
    assert not {name for name in imported_names(tree) if name.split(".")[0] == "recipes"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_reads_the_outside_world_only_where_that_is_its_job(path: Path) -> None:
    if {room_of(path), path.relative_to(PACKAGE).as_posix()} & READS_THE_WORLD:
        return
    assert not looks_outside(ast.parse(path.read_text(encoding="utf-8")))


def test_objectives_need_torch_and_nothing_else() -> None:
    files = [path for path in MODULES if room_of(path) == "objectives"]
    assert files
    for path in files:
        names = imported_names(ast.parse(path.read_text(encoding="utf-8")))
        foreign = {name.split(".")[0] for name in names} - sys.stdlib_module_names
        assert foreign <= {"torch", "sft_kit"}, path


@pytest.mark.parametrize(
    ("room", "line", "wrong"),
    [
        ("data", "from sft_kit.models.base import load", {"models"}),
        ("models", "import sft_kit.data.rows", {"data"}),
        ("config", "from sft_kit import cli", {"cli"}),
        ("training", "def f():\n    from sft_kit.inference import chat", {"inference"}),
        ("training", "from sft_kit.data import rows", set()),
    ],
)
def test_an_upward_arrow_is_seen_in_every_way_to_write_it(
    room: str, line: str, wrong: set[str]
) -> None:
    assert wrong_arrows(room, ast.parse(line)) == wrong


def test_a_look_outside_is_seen() -> None:
    assert looks_outside(ast.parse("import os\nx = os.environ.get('HOME')")) == {"os.environ"}
