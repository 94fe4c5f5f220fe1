"""sft_kit: fine-tune language models with Hugging Face parts.

Importing this package does not import torch: names from modules that need it are fetched when they
are first used.
"""

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from sft_kit.data.rows import Conversation, Example, Message, Splits
from sft_kit.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FormatError,
    HubError,
    LaunchError,
    Problem,
    SftKitError,
    TemplateError,
    TrainingError,
)
from sft_kit.settings import DataSettings, ModelSettings, SampleSettings, ScratchModelSettings

if TYPE_CHECKING:
    from sft_kit.artifacts import LoadedRun, RunFolder, load_run, open_run, save_run
    from sft_kit.config import Config, load_config
    from sft_kit.data.collators import pad_batch
    from sft_kit.data.splits import load_conversations
    from sft_kit.data.templates import Template, choose_template, encode_prompt
    from sft_kit.data.tokenization import tokenize
    from sft_kit.models.adapters import attach_lora
    from sft_kit.models.base import load_causal_lm, load_tokenizer

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "Conversation",
    "DataError",
    "DataSettings",
    "Example",
    "FormatError",
    "HubError",
    "LaunchError",
    "LoadedRun",
    "Message",
    "ModelSettings",
    "Problem",
    "RunFolder",
    "SampleSettings",
    "ScratchModelSettings",
    "SftKitError",
    "Splits",
    "Template",
    "TemplateError",
    "TrainingError",
    "attach_lora",
    "choose_template",
    "encode_prompt",
    "load_causal_lm",
    "load_config",
    "load_conversations",
    "load_run",
    "load_tokenizer",
    "open_run",
    "pad_batch",
    "save_run",
    "tokenize",
]

_LAZY = MappingProxyType(
    {
        "Config": "sft_kit.config",
        "LoadedRun": "sft_kit.artifacts",
        "RunFolder": "sft_kit.artifacts",
        "Template": "sft_kit.data.templates",
        "attach_lora": "sft_kit.models.adapters",
        "choose_template": "sft_kit.data.templates",
        "encode_prompt": "sft_kit.data.templates",
        "load_causal_lm": "sft_kit.models.base",
        "load_config": "sft_kit.config",
        "load_conversations": "sft_kit.data.splits",
        "load_run": "sft_kit.artifacts",
        "load_tokenizer": "sft_kit.models.base",
        "open_run": "sft_kit.artifacts",
        "pad_batch": "sft_kit.data.collators",
        "save_run": "sft_kit.artifacts",
        "tokenize": "sft_kit.data.tokenization",
    }
)


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
