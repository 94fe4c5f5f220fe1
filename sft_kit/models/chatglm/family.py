"""ChatGLM2 or ChatGLM3: one architecture, two prompt formats and two meanings of `rope_ratio`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast, get_args

from transformers.utils import logging

from sft_kit.config.checkpoint_header import config_of
from sft_kit.errors import CheckpointError, Problem

Family = Literal["chatglm2", "chatglm3"]

DEFAULT_FAMILY: Family = "chatglm2"
_ROLE_TOKEN = "<|user|>"
_NAME = re.compile(r"chatglm[-_ ]?([23])(?!\d)", re.IGNORECASE)


def detect_family(folder: Path | None, name: str = "", explicit: str | None = None) -> Family:
    """Tell which family a checkpoint belongs to; ChatGLM2, with a warning, where nothing tells.

    Args:
        folder: Folder of the checkpoint. Its files are read as text, nothing in it is run.
        name: Name it was published under, such as "THUDM/chatglm3-6b".
        explicit: What the user says; beats everything that is found.

    Raises:
        CheckpointError: `explicit` is no family.
    """
    return known_family(folder, name, explicit) or default_family(str(folder or name))


def default_family(checkpoint: str) -> Family:
    """Take a checkpoint as ChatGLM2, and warn of it once."""
    logging.get_logger(__name__).warning_once(
        f"nothing tells whether {checkpoint} is ChatGLM2 or ChatGLM3; taken as ChatGLM2. "
        "If it is ChatGLM3, pass family='chatglm3' (model.config.family in a recipe)"
    )
    return DEFAULT_FAMILY


def known_family(folder: Path | None, name: str = "", explicit: str | None = None) -> Family | None:
    """Tell the family, or None where nothing tells; arguments as in `detect_family`.

    In this order: the argument, the field `family` that this package writes into config.json, the
    role tokens in the tokenizer's code or settings, the name given, the names in config.json (its
    own, and those of repositories in `auto_map`), the name of the folder. Files are looked up in
    the folder only: of a Hub id, which is no folder, the name is all that counts.

    Raises:
        CheckpointError: The family given, or the one in config.json, is none.
    """
    config = {} if folder is None else config_of(folder)
    for where, found in (("", explicit), (f"{folder}/config.json", config.get("family"))):
        if found is not None:
            return _checked(found, where)
    code = None if folder is None else folder / "tokenization_chatglm.py"
    if code is not None and code.is_file():
        return "chatglm3" if _names_roles(code) else "chatglm2"
    if folder is not None and _names_roles(folder / "tokenizer_config.json"):
        return "chatglm3"
    names = (name, *published_names(config), "" if folder is None else folder.name)
    return next(filter(None, map(family_in, names)), None)


def published_names(config: Mapping[str, object]) -> list[str]:
    """Names in a config.json that may tell where its checkpoint comes from.

    Re-saved folders have them in `auto_map`: "THUDM/chatglm3-6b--configuration_chatglm....".
    """
    code = config.get("auto_map")
    places = code.values() if isinstance(code, Mapping) else ()
    return [str(config.get("_name_or_path") or ""), *map(str, places)]


def _names_roles(path: Path) -> bool:
    return path.is_file() and _ROLE_TOKEN in path.read_text(encoding="utf-8", errors="replace")


def _checked(found: object, where: str) -> Family:
    if found in get_args(Family):
        return cast("Family", found)
    accepted = " or ".join(get_args(Family))
    problem = Problem(where, "family", f"found {found!r}; accepts {accepted}")
    raise CheckpointError("the ChatGLM family is not known", [problem])


def family_in(name: str) -> Family | None:
    """Read the family from a name such as "THUDM/chatglm3-6b"; None where it says none."""
    match = _NAME.search(name)
    return cast("Family", f"chatglm{match[1]}") if match else None
