"""What is shipped: the import, public names, the wheel, the recipes and their editor schemas."""

import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

import sft_kit

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.py"))
YAMLS = sorted((REPOSITORY / "recipes").glob("*.yaml"))
NUM_RECIPES = 13


def run_python(*arguments: str, folder: Path = REPOSITORY) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def names_imported_for_typing(source: str) -> dict[str, str]:
    """Public name -> module, from the `if TYPE_CHECKING:` block."""
    blocks = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = "torch transformers peft datasets numpy pydantic matplotlib rich"
    code = f"import sys, sft_kit; print([n for n in '{heavy}'.split() if n in sys.modules])"
    assert run_python("-c", code).strip() == "[]"


def test_public_names_are_sorted_and_each_can_be_fetched() -> None:
    assert sft_kit.__all__ == sorted(set(sft_kit.__all__))
    assert len(sft_kit.__all__) >= 30
    for name in sft_kit.__all__:
        assert getattr(sft_kit, name).__name__ == name
    assert set(sft_kit.__all__) < set(dir(sft_kit))


def test_lazy_names_say_the_same_to_type_checkers() -> None:
    source = Path(str(sft_kit.__file__)).read_text(encoding="utf-8")
    assert names_imported_for_typing(source) == dict(sft_kit._LAZY)
    assert set(sft_kit._LAZY) <= set(sft_kit.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod_run'"):
        getattr(sft_kit, "lod_run")  # noqa: B009


def test_wheel_holds_every_module_and_nothing_else(tmp_path: Path) -> None:
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for folder in ("sft_kit", "tests", "recipes"):
        shutil.copytree(
            REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    run_python("-c", build, folder=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name == f"sft_kit-{sft_kit.__version__}-py3-none-any.whl"
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {
        path.relative_to(tmp_path).as_posix() for path in (tmp_path / "sft_kit").rglob("*.py")
    }
    assert len(modules) >= 30
    assert held == modules | {"sft_kit/py.typed"}


def test_every_imported_library_is_declared() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    lines = setup["options"]["install_requires"].split()
    declared = {re.split(r"[<>=]", line)[0].replace("_", "-").lower() for line in lines}
    owners = packages_distributions()
    imported: set[str] = set()
    for path in [*(REPOSITORY / "sft_kit").rglob("*.py"), *RECIPES]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    foreign = imported - sys.stdlib_module_names - {"sft_kit", *(path.stem for path in RECIPES)}
    assert {"torch", "transformers", "peft"} <= foreign
    # ruamel is a namespace that several distributions share.
    wanted = {name: {owner.replace("_", "-").lower() for owner in owners[name]} for name in foreign}
    assert [name for name, distributions in wanted.items() if not distributions & declared] == []


def test_every_pin_satisfies_the_declared_range() -> None:
    from packaging.requirements import Requirement

    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    ranges = setup["options"]["install_requires"] + setup["options.extras_require"]["test"]
    required = [Requirement(line) for line in ranges.splitlines() if line.strip()]
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pinned = {name.replace("_", "-").lower(): version for name, version in pins.items()}
    assert pinned["torch"] == "2.13.0"
    for requirement in required:
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement


def test_every_recipe_is_a_pair_named_stage_model_method() -> None:
    assert len(RECIPES) == NUM_RECIPES
    assert [path.stem for path in RECIPES] == [path.stem for path in YAMLS]
    for path in RECIPES:
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+){2,3}", path.stem), path


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_shadows_a_library(recipe: Path) -> None:
    assert recipe.stem not in sys.stdlib_module_names
    found = find_spec(recipe.stem)
    assert found is None or found.origin == str(recipe)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_recipe_yaml_names_its_schema_and_the_schema_is_up_to_date(path: Path) -> None:
    from sft_kit.config import json_schema

    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# yaml-language-server: $schema=schema/{path.stem}.json"
    stored = json.loads((path.parent / "schema" / f"{path.stem}.json").read_text(encoding="utf-8"))
    assert stored == json_schema(path.with_suffix(".py")), "run `sft-kit schema`"
