"""From a YAML and the command line to checked settings; what a recipe and the CLI call."""

from sft_kit.command import run_recipe
from sft_kit.config.loading import (
    Config,
    Resolved,
    find_recipe,
    json_schema,
    load_config,
    read_config,
    refuse_unread,
)

__all__ = [
    "Config",
    "Resolved",
    "find_recipe",
    "json_schema",
    "load_config",
    "read_config",
    "refuse_unread",
    "run_recipe",
]
