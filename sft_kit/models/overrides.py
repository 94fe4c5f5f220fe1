"""Fields of `model.config` that the checkpoint, the architecture or the tokenizer does not allow.

transformers goes on where a config asks for fewer layers than a checkpoint has or for other
attention heads: weights are left out, or read as something they are not. And it takes any name for
a field of a new config, which nothing reads then.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig

from sft_kit.config.suggestions import did_you_mean, nearest
from sft_kit.errors import CheckpointError, ConfigError, Problem, SftKitError
from sft_kit.models.damage import one_line
from sft_kit.settings import ModelSettings, ScratchModelSettings

_Shapes: TypeAlias = dict[str, torch.Size] | str
_Value: TypeAlias = str | int | float | bool | None

# Heads never show in a shape, and layers do not where they share their weights (ALBERT).
_SILENT = re.compile(r".*heads?|num_(hidden_|decoder_)?layers|n_layers?|(en|de)coder_layers")


def refuse_other_shapes(
    settings: ModelSettings, load_config: Callable[[ModelSettings], PreTrainedConfig]
) -> None:
    """Stop where `model.config` asks for other layers, heads or sizes than the checkpoint has.

    Models are built without memory for their weights and compared. Other fields, such as dropout,
    pass.

    Args:
        settings: Checkpoint, and the fields that replace those of its config.
        load_config: Gives the config of such settings.

    Raises:
        ConfigError: It names each such field.
    """
    if not settings.config:
        return
    try:
        stored = load_config(replace(settings, config={}))
    except SftKitError:  # some configs say too little without the fields
        return
    shapes = _shapes_of(stored)
    asked = {
        name: value
        for name, value in settings.config.items()
        if getattr(stored, name, None) != value
    }
    found = {
        name
        for name, value in asked.items()
        if _SILENT.fullmatch(name) or _shapes_with(settings, {name: value}, load_config) != shapes
    }
    if not found and len(asked) > 1 and _shapes_with(settings, asked, load_config) != shapes:
        found = set(asked)
    if found:
        has = f"and the weights of {settings.checkpoint} are for"
        todo = "remove it: only a new model can have another"
        problems = [
            Problem("model", f"config.{name}", f"found {value}, {has} {before}", todo)
            for name, value in asked.items()
            for before in [getattr(stored, name, None)]
            if name in found
        ]
        raise ConfigError("these fields do not fit the checkpoint", problems)


def _shapes_with(
    settings: ModelSettings,
    fields: dict[str, _Value],
    load_config: Callable[[ModelSettings], PreTrainedConfig],
) -> _Shapes:
    try:
        return _shapes_of(load_config(replace(settings, config=fields)))
    except SftKitError as error:
        return str(error)


def _shapes_of(config: PreTrainedConfig) -> _Shapes:
    """Shapes of the weights of a model without its head; what is wrong where there is none."""
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:  # a config field can be wrong in as many ways as there are fields
        return str(error)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def refuse_other_fields(settings: ScratchModelSettings, num_tokens: int) -> None:
    """Stop where `model.config` of a new model names what the architecture or tokenizer lacks.

    Args:
        settings: Architecture, and fields of its config.
        num_tokens: Tokens of the tokenizer.

    Raises:
        CheckpointError: The architecture is unknown.
        ConfigError: It names each such field.
    """
    name = settings.architecture
    if name not in CONFIG_MAPPING:
        todo = did_you_mean(nearest(name, CONFIG_MAPPING.keys())) or "name one, such as bert or t5"
        found = "transformers has no such architecture"
        problem = Problem("", f"model.architecture={name}", found, todo)
        raise CheckpointError("the model can't be built", [problem])
    try:
        default = AutoConfig.for_model(name)
    except Exception as error:  # some can't be made of nothing
        raise cant_build(settings, error) from error
    aliases = dict(default.attribute_map)
    known = {*default.to_dict(), *aliases, *inspect.signature(type(default).__init__).parameters}
    problems = []
    for field, value in settings.config.items():
        if field not in known and _is_kept_aside(name, field, value):
            todo = did_you_mean(nearest(field, known - {"self"})) or "remove it"
            found = f"{name} has no such field"
        elif _is_beyond(aliases.get(field, field), value, num_tokens):
            todo, found = "remove it", f"found {value}, the tokenizer has {num_tokens} tokens"
        else:
            continue
        problems.append(Problem("", f"model.config.{field}", found, todo))
    if problems:
        raise ConfigError("these fields do not fit the new model", problems)


def cant_build(settings: ScratchModelSettings, error: Exception) -> CheckpointError:
    """Say why a new model can't be made of these settings."""
    place = f"model.architecture={settings.architecture}"
    todo = "see the architecture's config in transformers"
    problem = Problem("", place, _reason(error, settings.config), todo)
    return CheckpointError("the model can't be built", [problem])


def _is_kept_aside(architecture: str, field: str, value: _Value) -> bool:
    """Whether a config only keeps an unknown field; older names are turned into newer ones."""
    try:
        return field in AutoConfig.for_model(architecture, **{field: value}).to_dict()
    except Exception:  # it can't be wrong about what it does not read
        return False


def _is_beyond(field: str, value: _Value, num_tokens: int) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    if field == "vocab_size":
        return value != num_tokens
    return field.endswith("_token_id") and not 0 <= value < num_tokens


def _reason(error: Exception, fields: Mapping[str, _Value]) -> str:
    """One short sentence of what a config or a model raised, with the field where that shows."""
    if isinstance(error, StrictDataclassError):
        text = str(error.__cause__ or error).partition(". Errors: ")[0]
        named = re.search(r"[Ff]ield '(\w+)' ", text)
        place, text = (f".{named[1]}", text[named.end() :]) if named else ("", text)
        return f"model.config{place}: {text}"
    wrong, why = _wrong_fields(error, fields)
    if wrong:
        return "; ".join(f"model.config.{name}: found {fields[name]!r}, {why}" for name in wrong)
    text = str(error).partition("\n")[0] if isinstance(error, ValueError) else one_line(error)
    return text if "configuration class" in text else f"model.config: {text}"


def _wrong_fields(error: Exception, fields: Mapping[str, _Value]) -> tuple[list[str], str]:
    """Find the fields that an exception speaks of by their value, and say what is wrong."""
    if isinstance(error, KeyError):
        unknown = str(error.args[0])  # "gated-nope" is looked up as "nope"
        return [n for n, v in fields.items() if unknown in str(v)], "which is unknown"
    if isinstance(error, ZeroDivisionError):
        return [n for n, v in fields.items() if v == 0], "accepts no 0"
    if "negative dimension" in str(error):
        negative = [n for n, v in fields.items() if isinstance(v, int | float) and v < 0]
        return negative, "accepts no number below 0"
    return [], ""
