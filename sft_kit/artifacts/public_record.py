"""`run.yaml` as others may read it: the same settings and figures, nothing of this machine."""

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from ruamel.yaml import YAML

from sft_kit.artifacts.origins import base_of_run

_PUBLIC = (
    *("status", "recipe", "settings", "versions", "commit", "num_processes", "facts", "data"),
    *("template", "base", "labels", "reward_model", "score_scale", "pretraining", "ppo"),
    *("seconds", "metrics", "weights"),
)
"""What of `run.yaml` is public; notes and origins tell of this machine."""
_PRIVATE_SETTINGS = ("push_to_hub", "run_name", "project")
_PRIVATE_PREFIXES = ("hub_", "trackio_")
_PRIVATE_BASE_FACTS = ("name", "folder")
_IS_PLACE = re.compile(r"[/~]|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\]|.*\\")
_BEGINS_AS_PLACE = re.compile(r"(/|~/|\.{1,2}/)[^/]+/|[A-Za-z]:[/\\]")
_FILE = re.compile(r"\.(jsonl?|csv|tsv|parquet|txt|ya?ml|py)(:\w+)?$")


def public_record(record: Mapping[str, object], *, samples: bool) -> dict[str, object]:
    """Take from a record what others may read.

    Args:
        record: As in `run.yaml`.
        samples: Keep the prompts that the samples answer.
    """
    public = {key: record[key] for key in _PUBLIC if key in record}
    settings = cast("Mapping[str, Mapping[str, object] | None]", record["settings"])
    base, is_on_hub = base_of_run(record)
    public["settings"] = {
        name: None if section is None else _public_section(name, section, base, samples=samples)
        for name, section in settings.items()
    }
    if isinstance(known := record.get("base"), Mapping):
        facts = {key: one for key, one in known.items() if key not in _PRIVATE_BASE_FACTS}
        public["base"] = {"name": base, "on_hub": is_on_hub, **facts}
    return cast("dict[str, object]", _without_places(public))


def record_text(record: Mapping[str, object]) -> bytes:
    """Write a record as YAML."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.representer.ignore_aliases = lambda _: True
    text = io.BytesIO()
    yaml.dump(dict(record), text)
    return text.getvalue()


def _public_section(
    name: str, section: Mapping[str, object], base: str, *, samples: bool
) -> dict[str, object]:
    kept = {
        key: value
        for key, value in section.items()
        if key not in _PRIVATE_SETTINGS and not key.startswith(_PRIVATE_PREFIXES)
    }
    if name == "model" and kept.get("checkpoint"):
        kept["checkpoint"] = base
    if name == "train" and kept.get("output_dir"):
        kept["output_dir"] = Path(str(kept["output_dir"])).resolve().name
    if name == "sample" and not samples:
        kept.pop("prompts", None)
    return kept


def _without_places(value: object) -> object:
    """Replace every path by its last name."""
    if isinstance(value, Mapping):
        return {_without_places(key): _without_places(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(one) for one in value]
    return _last_name(value) if isinstance(value, str) else value


def _last_name(text: str) -> str:
    if "\n" in text or not ("/" in text or "\\" in text):
        return text
    # What has a space may be a sentence: it takes more than a dot or a slash at its beginning.
    begins = _BEGINS_AS_PLACE if " " in text else _IS_PLACE
    is_place = begins.match(text) or _FILE.search(text) or os.path.exists(text)
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] if is_place else text
