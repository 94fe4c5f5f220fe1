"""What a checkpoint's own files may not decide: whose code runs, and whose weights are read."""

from pathlib import Path

from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from sft_kit.errors import CheckpointError, Problem

_CODE_OF = ("_attn_implementation", "_experts_implementation")
_ADAPTER_FILE = "adapter_config.json"


def refuse_hub_kernels(name: str, config: PreTrainedConfig) -> None:
    """Stop where a config has attention computed by code of a repository on the Hub.

    transformers downloads and runs such kernels without a word about `trust_remote_code`.

    Args:
        name: The checkpoint, as the user named it.
        config: Of the checkpoint.

    Raises:
        CheckpointError: It names a repository.
    """
    parts = [config, *(getattr(config, key, None) for key in config.sub_configs)]
    for part in parts:
        for field in _CODE_OF:
            value = getattr(part, field, None)
            if isinstance(value, str) and "/" in value:
                found = f"found {value[:80]!r}, code from the Hub, which is never run"
                todo = "take the field out of config.json, or set it to sdpa or eager"
                problem = Problem(name, field.lstrip("_"), found, todo)
                raise CheckpointError(f"{name} can't be loaded", [problem])


def refuse_adapter_of_checkpoint(
    checkpoint: str, *, revision: str | None, local_files_only: bool
) -> None:
    """Stop where a checkpoint holds an adapter's settings beside its own.

    transformers would put that adapter on the model unasked; with a Hub id it would load the base
    that the adapter names, from wherever that is.

    Args:
        checkpoint: Hub id or folder.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Look at this machine's files only.

    Raises:
        CheckpointError: It does.
    """
    if Path(checkpoint).is_dir():
        is_there = (Path(checkpoint) / _ADAPTER_FILE).is_file()
    else:
        is_there = bool(
            cached_file(
                checkpoint,
                _ADAPTER_FILE,
                revision=revision,
                local_files_only=local_files_only,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        )
    if is_there:
        found = f"found {_ADAPTER_FILE} beside config.json: an adapter, which may name another base"
        todo = "give the base checkpoint alone, and its adapter's folder with --adapter"
        problem = Problem(checkpoint, "", found, todo)
        raise CheckpointError(f"{checkpoint} can't be loaded", [problem])
