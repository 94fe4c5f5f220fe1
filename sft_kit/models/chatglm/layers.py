"""Original names of ChatGLM2/3 layers, and the layers that hold their weights once loaded."""

import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from peft import LoraConfig
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND

from sft_kit.config.layer_names import (
    CHATGLM_BLOCK_LAYERS,
    CHATGLM_OUTER_LAYERS,
    chatglm_layer_names,
)

_SHORT_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        original.rpartition(".")[2]: tuple(part.rpartition(".")[2] for part in parts)
        for original, parts in {**CHATGLM_BLOCK_LAYERS, **CHATGLM_OUTER_LAYERS}.items()
    }
)
_TARGETS_OF_PEFT = ("query_key_value",)
"""What PEFT's table has for "chatglm" when `target_modules` is not set."""


def rename_layers(config: LoraConfig, num_layers: int) -> None:
    """Replace original layer names in an adapter's settings by the names of the loaded layers.

    Native names stay as they are; both may be mixed. A regular expression that matches original
    names becomes the list of the layers that it means.

    Args:
        config: Changed in place: targets, exclusions, modules to save, and the layers that have a
            rank or an alpha of their own.
        num_layers: Number of blocks of the model.
    """
    names = chatglm_layer_names(num_layers)
    targets = _TARGETS_OF_PEFT if config.target_modules is None else config.target_modules
    config.target_modules = _rename(targets, names)
    if config.exclude_modules:
        config.exclude_modules = _rename(config.exclude_modules, names)
    if config.modules_to_save:
        config.modules_to_save = _rename_list(config.modules_to_save, names)
    config.rank_pattern = _rename_keys(config.rank_pattern or {}, names)
    config.alpha_pattern = _rename_keys(config.alpha_pattern or {}, names)


def _rename(
    targets: str | Collection[str], names: Mapping[str, tuple[str, ...]]
) -> str | list[str]:
    if not isinstance(targets, str):
        return _rename_list(targets, names)
    if targets == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return targets
    try:
        expression = re.compile(targets)
    except re.error:
        return targets  # whoever looks for the layers refuses it
    by_old_name = {part for name in names if expression.fullmatch(name) for part in names[name]}
    if not by_old_name:
        return targets
    native = {part for parts in names.values() for part in parts if expression.fullmatch(part)}
    return sorted(by_old_name | native)


def _rename_list(targets: Iterable[str], names: Mapping[str, tuple[str, ...]]) -> list[str]:
    renamed: dict[str, None] = {}
    for target in targets:
        renamed.update(dict.fromkeys(_parts(target, names)))
    return list(renamed)


def _rename_keys(
    pattern: Mapping[str, int], names: Mapping[str, tuple[str, ...]]
) -> dict[str, int]:
    return {_renamed_key(key, names): value for key, value in pattern.items()}


def _renamed_key(key: str, names: Mapping[str, tuple[str, ...]]) -> str:
    """Make an expression for the layers whose names, original or native, end in what a key matches.

    One key each: PEFT takes the first that matches a layer, and warns of those that match none.

    Source: peft, utils/other.py, `get_pattern_key`.
    """
    if key in _SHORT_NAMES:
        return "|".join(_SHORT_NAMES[key])
    try:
        expression = re.compile(rf"(.*\.)?({key})$")
    except re.error:
        return key  # PEFT refuses it
    found = [part for name in names if expression.match(name) for part in names[name]]
    return "|".join([*found, key]) if found else key


def _parts(target: str, names: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    if target in _SHORT_NAMES:
        return _SHORT_NAMES[target]
    ending = f".{target}"
    found = [part for name in names if f".{name}".endswith(ending) for part in names[name]]
    return tuple(found) or (target,)
