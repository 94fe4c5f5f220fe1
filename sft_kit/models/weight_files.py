"""Which files a checkpoint's weights are read from: safetensors, and ChatGLM's `.bin`."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedConfig
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from transformers.utils.hub import cached_file

from sft_kit.config.checkpoint_header import config_of
from sft_kit.errors import CheckpointError, Problem
from sft_kit.models.untrusted import refuse_adapter_of_checkpoint

PICKLED_FAMILIES = frozenset({"chatglm"})
"""Model types published as `.bin` only.

Their tensors are read without an unpickler (`sft_kit.models.tensor_archive`). Everybody else's
`.bin` is refused: nobody has to publish it any more.
"""

_FETCHED = (
    *("config.json", "generation_config.json", SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME),
    *("model-*-of-*.safetensors", "*token*", "*.model", "vocab.*", "merges.txt"),
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Where `from_pretrained` looks for weights, and in which format."""

    source: str
    use_safetensors: bool


def find_weight_files(
    checkpoint: str, config: PreTrainedConfig, *, revision: str | None, local_files_only: bool
) -> WeightFiles:
    """Decide which weight files to read; fetches `.bin` from the Hub where there is nothing else.

    transformers would answer a Hub id without safetensors by asking a service of the Hub to convert
    it, in a thread of its own; loading the fetched folder asks for nothing.

    Args:
        checkpoint: Hub id or folder.
        config: Its config.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Look at this machine's files only.

    Raises:
        CheckpointError: The weights are said to be outside of the checkpoint's folder, or in a
            file that is no safetensors; or an adapter stands beside them.
    """
    _refuse_pickle_by_name(checkpoint, config)
    refuse_adapter_of_checkpoint(checkpoint, revision=revision, local_files_only=local_files_only)
    refuse_outside_shards(checkpoint, revision=revision, local_files_only=local_files_only)
    has_pickles = config.model_type in PICKLED_FAMILIES
    if not has_pickles or has_safetensors(
        checkpoint, revision=revision, local_files_only=local_files_only
    ):
        return WeightFiles(checkpoint, use_safetensors=True)
    if Path(checkpoint).is_dir():
        return WeightFiles(checkpoint, use_safetensors=False)
    folder = snapshot_download(
        checkpoint,
        revision=revision,
        # A wider pattern would fetch what a training script left, such as training_args.bin.
        allow_patterns=[
            "config.json", "generation_config.json", "pytorch_model*.bin", WEIGHTS_INDEX_NAME
        ],
        local_files_only=local_files_only,
    )  # fmt: skip
    return WeightFiles(str(folder), use_safetensors=False)


def _refuse_pickle_by_name(checkpoint: str, config: PreTrainedConfig) -> None:
    """Stop where config.json names another file: of any family, transformers 5.23 unpickles one."""
    own = getattr(config, "transformers_weights", None)
    if own is not None and not str(own).endswith((".safetensors", ".safetensors.index.json")):
        found = f"found {str(own)[:80]!r}; accepts names of safetensors files"
        todo = "take the field out of config.json"
        problem = Problem(checkpoint, "transformers_weights", found, todo)
        raise CheckpointError(f"{checkpoint} can't be loaded", [problem])


def fetch_weights(checkpoint: str, config: PreTrainedConfig, revision: str | None) -> None:
    """Download a checkpoint of the Hub before it is loaded, so that it can be looked into.

    Args:
        checkpoint: Hub id.
        config: Its config.
        revision: Branch, tag or commit on the Hub.
    """
    snapshot_download(checkpoint, revision=revision, allow_patterns=list(_FETCHED))
    find_weight_files(checkpoint, config, revision=revision, local_files_only=False)


def loaded_files(folder: Path) -> list[Path]:
    """List the files that transformers reads a checkpoint's weights from, and no others.

    Returns:
        The first of these that is there: the file that config.json names, `model.safetensors`, the
        shards of its index, `pytorch_model.bin`, the shards of its index. Sorted by name.

    Raises:
        CheckpointError: The index is damaged, or it or config.json names files outside of the
            folder.
    """
    own = config_of(folder).get("transformers_weights")
    names = [own] if isinstance(own, str) else []
    _refuse_outside(folder / "config.json", "transformers_weights", names)
    names += [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        return []
    if path.suffix != ".json":
        return [path]
    shards = _shard_names(path)
    if not shards:
        todo = "bring back the file as it was"
        problem = Problem(str(path), "weight_map", "it names no files", todo)
        raise CheckpointError(f"{path} is damaged", [problem])
    return [path.parent / name for name in shards]


def refuse_outside_shards(checkpoint: str, **download: Any) -> None:  # noqa: ANN401 - passed on
    """Check, before they are read, that the files in a checkpoint's index lie beside it.

    Args:
        checkpoint: Hub id or folder.
        **download: Where to look for it, as for `from_pretrained`: `revision`, `subfolder`, ...

    Raises:
        CheckpointError: An index names a file with a folder.
    """
    if Path(checkpoint).is_dir():
        place = Path(checkpoint, download.get("subfolder", ""))
        indexes = sorted(place.glob("*.index*.json"))  # those of variants too
    else:
        found = [
            cached_file(
                checkpoint,
                name,
                **download,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            for name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME)
        ]
        indexes = [Path(path) for path in found if path is not None]
    for index in indexes:
        _shard_names(index)


def _shard_names(index: Path) -> list[str]:
    """Sorted names of the shards; none where the index is damaged."""
    try:
        names = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []
    _refuse_outside(index, "weight_map", names)
    return sorted(names)


def _refuse_outside(file: Path, key: str, names: Iterable[str]) -> None:
    outside = sorted(name for name in names if Path(name).name != name or name == "..")
    if outside:
        found = f"found {outside[0]!r}; accepts names of files in the same folder"
        todo = "copy the checkpoint anew, or put the files into its folder and name them there"
        problem = Problem(str(file), key, found, todo)
        raise CheckpointError("the checkpoint's weights lie outside of its folder", [problem])


def has_safetensors(checkpoint: str, **download: Any) -> bool:  # noqa: ANN401 - passed on
    """Whether a checkpoint's weights are there as safetensors.

    Args:
        checkpoint: Hub id or folder.
        **download: Where to look for it, as for `from_pretrained`: `revision`, `subfolder`, ...
    """
    return any(
        cached_file(checkpoint, name, **download, _raise_exceptions_for_missing_entries=False)
        for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    )


def download_options(options: Mapping[str, object]) -> dict[str, Any]:
    """Pick from the options of `from_pretrained` those that say where to look for a checkpoint."""
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    return {key: options[key] for key in names if key in options}
