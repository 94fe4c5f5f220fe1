"""A recipe's YAML with other values, its comments kept."""

import io
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from sft_kit.config import read_config
from sft_kit.config.yaml_text import read_value
from sft_kit.errors import ConfigError

_WIDTH = 1_000_000


def check_target(path: Path) -> None:
    """Refuse a file that can't be written, before anything is measured.

    Raises:
        ConfigError: Why not.
    """
    if path.exists():
        raise ConfigError(f"{path} is there already: name a new file with --write FILE")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}: name another file with --write FILE")


def write_changed(file: Path, words: Sequence[str], target: Path, header: str) -> None:
    """Write a YAML anew with overrides in it.

    Args:
        file: The YAML to begin with; it was read without a problem before.
        words: Overrides, as on the command line.
        target: File to write; stands there whole or not at all.
        header: Comment for its first line.

    Raises:
        ConfigError: It can't be written.
    """
    yaml = YAML()  # keeps comments, quotes and the order of keys
    yaml.width = _WIDTH
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)  # as the recipes are written
    tree = yaml.load(file.read_text(encoding="utf-8-sig"))
    tree = CommentedMap() if tree is None else tree
    for word in words:
        key, _, text = word.partition("=")
        _put(tree, key.split("."), read_value(text, key).plain())
    stream = io.StringIO()
    yaml.dump(tree, stream)
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_text(f"# {header}\n{stream.getvalue()}", encoding="utf-8")
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"{target} can't be written: {error.strerror}") from error


def check_same(
    recipe: Path, given: Sequence[Path], words: Sequence[str], written: Sequence[Path]
) -> None:
    """Read back what was written and compare it with what was planned.

    Args:
        recipe: Its Python file.
        given: YAMLs that were planned with; later ones win.
        words: Overrides of theirs.
        written: YAMLs to start the run with; the last one was written.

    Raises:
        ConfigError: They differ; what was written is gone again.
    """
    if read_config(recipe, written, []).sections != read_config(recipe, given, words).sections:
        written[-1].unlink()
        raise ConfigError(f"{written[-1]} would give other settings than were planned")


def _put(tree: CommentedMap, path: Sequence[str], value: object) -> None:
    """Set a value in nested mappings, making those that are missing."""
    for name in path[:-1]:
        if not isinstance(tree.get(name), CommentedMap):
            tree[name] = CommentedMap()
        tree = tree[name]
    tree[path[-1]] = value
