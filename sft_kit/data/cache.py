"""Tokenized rows kept on the disk for the next start.

The name of an entry is a digest of all that its rows depend on: the bytes of the data, the settings
that read them, the template, the tokenizer and the versions. Nothing is ever looked up by a date or
a path alone, so what was changed is prepared anew. An entry is written as a whole or not at all,
and every byte of it is compared with its manifest before it is used.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from huggingface_hub import constants

from sft_kit.data.sources import Source
from sft_kit.data.templates import Template
from sft_kit.settings import DataSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_BYTES = 2**20
"""Less data is prepared in a second, about the time it takes to look for it."""

_NOT_OF_THE_ROWS = ("cache", "max_dropped_fraction")
_PACKAGES = ("sft-kit", "transformers", "tokenizers")


def cache_entry(
    settings: DataSettings,
    sources: Sequence[Source],
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
) -> Path | None:
    """The folder in which the rows of these settings are kept; None where they are not.

    Args:
        settings: The `data` section.
        sources: What is read.
        tokenizer: Carries the template.
        template: From `choose_template`.
    """
    sizes = [source.num_bytes for source in sources]
    is_small = all(size is not None and size < MIN_BYTES for size in sizes)
    if settings.cache == "off" or (settings.cache == "auto" and is_small):
        return None
    home = Path(constants.HF_HOME, "sft_kit", "rows")
    root = home if settings.cache == "auto" else Path(settings.cache).expanduser()
    known = {
        "settings": {
            name: value for name, value in asdict(settings).items() if name not in _NOT_OF_THE_ROWS
        },
        "data": [source.fingerprint for source in sources],
        "template": template.describe(),
        "tokenizer": _tokenizer_digest(tokenizer),
        "context": tokenizer.model_max_length,
        "versions": {name: version(name) for name in _PACKAGES},
        "code": _code_digest(),
    }
    return root / hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]


def _tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Digest of the files that a run would save of this tokenizer."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return _digest_of_files(sorted(path for path in Path(folder).rglob("*") if path.is_file()))


def _code_digest() -> str:
    """Digest of this package's code: a version stays while its code is worked on."""
    return _digest_of_files(sorted(Path(__file__).parent.glob("*.py")))


def _digest_of_files(paths: Sequence[Path]) -> str:
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
