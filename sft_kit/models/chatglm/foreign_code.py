"""Code that a ChatGLM checkpoint brings along, and the one place where it could still be run."""

import json
from pathlib import Path

from transformers.utils.hub import cached_file

from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.network import hub_is_reachable

TOKENIZER_CLASS = "ChatGLMTokenizer"
_FILE = "tokenizer_config.json"


def refuse_tokenizer_code(checkpoint: str, commit: str | None = None) -> None:
    """Stop where `AutoTokenizer` would take the tokenizer from the checkpoint's own code.

    transformers prefers this package's class only where tokenizer_config.json names it; with
    `trust_remote_code=True` and another name there, or none, it would run the checkpoint's file.

    Args:
        checkpoint: Folder or Hub id of a ChatGLM checkpoint.
        commit: On the Hub; None where nothing was loaded from there.

    Raises:
        CheckpointError: tokenizer_config.json points to code and names another class than ours.
    """
    path = _find(checkpoint, commit)
    if path is None:
        return
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # transformers reads it too, and says so
        return
    auto_map = settings.get("auto_map") if isinstance(settings, dict) else None
    has_code = "AutoTokenizer" in auto_map if isinstance(auto_map, dict) else bool(auto_map)
    name = settings.get("tokenizer_class") if isinstance(settings, dict) else None
    if has_code and str(name).removesuffix("Fast") != TOKENIZER_CLASS:
        found = f"found {json.dumps(name)} and code of its own, which is never run"
        problem = Problem(
            f"{checkpoint}/{_FILE}",
            "tokenizer_class",
            f"{found}; accepts {json.dumps(TOKENIZER_CLASS)}",
            "write it there, or take the file from the original checkpoint",
        )
        raise CheckpointError(f"{checkpoint} can't be loaded", [problem])


def _find(checkpoint: str, commit: str | None) -> Path | None:
    place = Path(checkpoint)
    if place.exists():
        path = (place if place.is_dir() else place.parent) / _FILE
        return path if path.is_file() else None
    if commit is None:
        return None
    found = cached_file(
        checkpoint,
        _FILE,
        revision=commit,
        local_files_only=not hub_is_reachable(),
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(str(found)) if found else None
