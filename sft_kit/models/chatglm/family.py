"""ChatGLM2 or ChatGLM3: one architecture, two prompt formats and two meanings of `rope_ratio`."""

import json
import re
from pathlib import Path
from typing import Literal, cast, get_args

from sft_kit.errors import CheckpointError, Problem

Family = Literal["chatglm2", "chatglm3"]

DEFAULT_FAMILY: Family = "chatglm2"
_ROLE_TOKEN = "<|user|>"
_NAME = re.compile(r"chatglm[-_ ]?([23])(?!\d)", re.IGNORECASE)


def detect_family(folder: Path | None, name: str = "", explicit: str | None = None) -> Family:
    """Tell which family a checkpoint belongs to; ChatGLM2 where nothing tells.

    Args:
        folder: Folder of the checkpoint. Its files are read as text, nothing in it is run.
        name: Name it was published under, such as "THUDM/chatglm3-6b".
        explicit: What the user says; beats everything that is found.

    Raises:
        CheckpointError: `explicit` is no family.
    """
    return known_family(folder, name, explicit) or DEFAULT_FAMILY


def known_family(folder: Path | None, name: str = "", explicit: str | None = None) -> Family | None:
    """Tell the family, or None where nothing tells; arguments as in `detect_family`.

    In this order: the argument, the field `family` that this package writes into config.json, the
    role tokens in the tokenizer's code, the name in config.json, the name of the folder.

    Raises:
        CheckpointError: The family given, or the one in config.json, is none.
    """
    config = {} if folder is None else _read_config(folder / "config.json")
    for where, found in (("", explicit), (f"{folder}/config.json", config.get("family"))):
        if found is not None:
            return _checked(found, where)
    code = None if folder is None else folder / "tokenization_chatglm.py"
    if code is not None and code.is_file():
        text = code.read_text(encoding="utf-8", errors="replace")
        return "chatglm3" if _ROLE_TOKEN in text else "chatglm2"
    names = (name, str(config.get("_name_or_path", "")), "" if folder is None else folder.name)
    return next(filter(None, map(_family_in, names)), None)


def _checked(found: object, where: str) -> Family:
    if found in get_args(Family):
        return cast("Family", found)
    accepted = " or ".join(get_args(Family))
    problem = Problem(where, "family", f"found {found!r}; accepts {accepted}")
    raise CheckpointError("the ChatGLM family is not known", [problem])


def _family_in(name: str) -> Family | None:
    match = _NAME.search(name)
    return cast("Family", f"chatglm{match[1]}") if match else None


def _read_config(path: Path) -> dict[str, object]:
    # Whoever loads the model reads the file again and says what is wrong with it.
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
