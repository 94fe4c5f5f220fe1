"""Which files a checkpoint's weights are read from: safetensors, and ChatGLM's pickles."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

PICKLED_FAMILIES = frozenset({"chatglm"})
"""Model types published as `.bin` only.

Their pickles are read by torch's restricted unpickler (`weights_only`), which builds tensors and
runs nothing. Everybody else's pickles are refused: nobody has to publish them any more.
"""


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Where `from_pretrained` looks for weights, and in which format."""

    source: str
    use_safetensors: bool


def find_weight_files(
    checkpoint: str, config: PreTrainedConfig, *, revision: str | None, local_files_only: bool
) -> WeightFiles:
    """Decide which weight files to read; fetches pickles from the Hub where there is nothing else.

    transformers would answer a Hub id without safetensors by asking a service of the Hub to convert
    it, in a thread of its own; loading the fetched folder asks for nothing.

    Args:
        checkpoint: Hub id or folder.
        config: Its config.
        revision: Branch, tag or commit on the Hub.
        local_files_only: Look at this machine's files only.
    """
    has_pickles = config.model_type in PICKLED_FAMILIES
    if not has_pickles or _has_safetensors(checkpoint, revision, local_files_only):
        return WeightFiles(checkpoint, use_safetensors=True)
    if Path(checkpoint).is_dir():
        return WeightFiles(checkpoint, use_safetensors=False)
    folder = snapshot_download(
        checkpoint,
        revision=revision,
        allow_patterns=["config.json", "generation_config.json", "*.bin", "*.bin.index.json"],
        local_files_only=local_files_only,
    )
    return WeightFiles(str(folder), use_safetensors=False)


def _has_safetensors(checkpoint: str, revision: str | None, local_files_only: bool) -> bool:
    return any(
        cached_file(
            checkpoint,
            name,
            revision=revision,
            local_files_only=local_files_only,
            _raise_exceptions_for_missing_entries=False,
        )
        for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    )
