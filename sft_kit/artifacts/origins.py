"""Where a run's base and data come from, in names that mean something on other machines."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from sft_kit.errors import SftKitError
from sft_kit.run_record import RUN_FILE, read_record

_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/[0-9a-f]+/?$")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""What a base may be called on the Hub: no place, such as `..` or `../base`."""
_LICENCE_LINE = re.compile(r"licen[cs]e", re.IGNORECASE)
_LICENCE = re.compile(
    r"(?<![\w.-])(Apache-2\.0|MIT|BSD-[23]-Clause|[AL]?GPL-[23]\.[01]|MPL-2\.0|Unlicense|"
    r"CC0-1\.0|CC-BY(?:-NC)?(?:-SA|-ND)?-[234]\.0|ODC-By|ODbL|PDDL)(?![\w-])",
    re.IGNORECASE,
)
_README_BYTES = 100_000


def base_of_run(record: Mapping[str, object]) -> tuple[str, bool]:
    """Name what a run started from, never by a folder of this machine.

    Args:
        record: As in `run.yaml`.

    Returns:
        The name, and whether it is one of the Hub.
    """
    settings = cast("Mapping[str, Mapping[str, object] | None]", record["settings"])
    model = settings.get("model") or {}
    checkpoint = model.get("checkpoint")
    if not checkpoint:
        return str(model.get("architecture")), False
    base = cast("Mapping[str, object]", record.get("base") or {})
    if "on_hub" in base:  # a run that was pulled knows no folder
        return str(base["name"]), base["on_hub"] is True
    folder = base.get("folder")
    return name_of_checkpoint(str(checkpoint), str(folder) if folder else None)


def name_of_checkpoint(checkpoint: str, folder: str | None = None) -> tuple[str, bool]:
    """Name a checkpoint by its id on the Hub, or else by its folder's own name.

    Args:
        checkpoint: As the settings name it.
        folder: Where it was found; None looks for the name.

    Returns:
        The name, and whether it is one of the Hub.
    """
    path = Path(folder or checkpoint)
    if cached := _CACHED.search(path.as_posix()):
        return "/".join(cached.groups()), True
    is_here = Path(checkpoint).exists() or Path(checkpoint).is_absolute()
    was_there = path.as_posix().endswith(f"/{checkpoint.strip('./')}")
    if not (is_here or was_there) and HUB_NAME.fullmatch(checkpoint):
        return checkpoint, True
    known = _own_id(path)
    return (known, True) if known else (Path(checkpoint).name or path.name, False)


def _own_id(folder: Path) -> str:
    """The Hub's id of a folder that says where it was pulled from; nothing where it does not."""
    if (folder / RUN_FILE).is_file():
        try:
            hub = read_record(folder).get("hub")
        except SftKitError:
            return ""
        return str(hub["repo"]) if isinstance(hub, Mapping) and "repo" in hub else ""
    # `_name_or_path` of config.json names what the weights began as, not what they are.
    return ""


def data_set_of_run(data: Mapping[str, object]) -> str:
    """Name the data set of the Hub that a run was trained on; nothing where it is of no Hub.

    Args:
        data: The section of the settings.
    """
    path = data.get("path")
    is_id = isinstance(path, str) and _HUB_ID.fullmatch(path) and not Path(path).suffix
    return str(path) if is_id and not Path(str(path)).exists() else ""


def data_of_run(data: Mapping[str, object]) -> dict[str, str]:
    """Name a run's data and its licence, where these are known.

    Args:
        data: The section of the settings.

    Returns:
        "data" and "licence of the data"; without what is not known.
    """
    path = data.get("path")
    if not isinstance(path, str) or not path:
        return {}
    if data_set := data_set_of_run(data):
        place = f"[{data_set}](https://huggingface.co/datasets/{data_set})"
        licence = _licence_in(_cached_readme(data_set))
    else:
        place = f"`{Path(path).resolve().name}`"
        licence = _licence_in(_readme_beside(Path(path)))
    return {"data": place} | ({"licence of the data": licence} if licence else {})


def _readme_beside(place: Path) -> Path:
    return (place if place.is_dir() else place.parent) / "README.md"


def _cached_readme(data_set: str) -> Path | None:
    try:
        found = try_to_load_from_cache(data_set, "README.md", repo_type="dataset")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _licence_in(readme: Path | None) -> str:
    """The one licence that a data card names; nothing where it names several."""
    try:
        text = readme.read_bytes()[:_README_BYTES].decode(errors="replace") if readme else ""
    except OSError:
        return ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    if head and (line := re.search(r"^licen[cs]e:\s*([\w.-]+)\s*$", head[1], re.MULTILINE)):
        return line[1]
    lines = (line for line in text.splitlines() if _LICENCE_LINE.search(line))
    found = {name for line in lines for name in _LICENCE.findall(line)}
    return found.pop() if len(found) == 1 else ""
