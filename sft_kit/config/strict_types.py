"""Section types as pydantic checks them, and the JSON schema it writes from them."""

import dataclasses
import types
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NotRequired, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, JsonValue, TypeAdapter
from pydantic.types import StringConstraints
from typing_extensions import TypedDict

from sft_kit.config.schema import Section, read_sections
from sft_kit.config.tables import Pattern

_STRICT = ConfigDict(strict=True, extra="forbid")


def json_schema(recipe: Path) -> dict[str, object]:
    """The JSON schema of a recipe's YAML, for editors.

    Raises:
        ConfigError: The recipe has no `class Settings`, or one with unknown section classes.
    """
    keys: dict[str, Any] = {}
    for section in read_sections(recipe).values():
        tp: Any = _section_type(section)
        tp = tp | None if section.nullable else tp
        keys[section.name] = tp if section.required else NotRequired[tp]
    schema = TypeAdapter(_mapping_type("Settings", keys)).json_schema()
    schema["title"] = f"Settings of {recipe.name}"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


@lru_cache(maxsize=512)
def strict_adapter(tp: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - a typing construct has no type
    """The check for one setting's type; making it costs more than using it."""
    return TypeAdapter(strict_type(tp))


def strict_type(tp: Any) -> Any:  # noqa: ANN401 - a typing construct has no type of its own
    """A type as declared -> the type that plain YAML values are checked against.

    Settings classes become mappings with closed keys, `Any` becomes any YAML value.
    """
    origin, arguments = get_origin(tp), get_args(tp)
    if tp is Any:
        return JsonValue
    if dataclasses.is_dataclass(tp):
        return _nested_type(tp)  # type: ignore[arg-type]
    if origin is Annotated:
        return Annotated[(strict_type(arguments[0]), *map(_constraint, arguments[1:]))]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(strict_type, arguments))]  # noqa: UP007
    if origin is list:
        item: Any = strict_type(arguments[0])
        return list[item]
    if origin is dict:
        value: Any = strict_type(arguments[1])
        return dict[str, value]
    return tp


def _constraint(bound: object) -> object:
    if isinstance(bound, Pattern):
        return StringConstraints(pattern=f"^{bound.regex}$")
    return bound


def _section_type(section: Section) -> Any:  # noqa: ANN401
    keys: dict[str, Any] = {}
    for setting in section.settings.values():
        extra: dict[str, Any] = {} if setting.default is ... else {"default": setting.default}
        note = Field(description=setting.help or None, json_schema_extra=extra)
        tp: Any = Annotated[(strict_type(setting.type), note)]
        keys[setting.name] = tp if setting.required else NotRequired[tp]
    return _mapping_type(section.class_name, keys)


def _nested_type(cls: type) -> Any:  # noqa: ANN401
    hints = get_type_hints(cls, include_extras=True)
    keys: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        missing = dataclasses.MISSING
        required = field.default is missing and field.default_factory is missing
        note = Field(description=field.metadata.get("help") or None)
        tp: Any = Annotated[(strict_type(hints[field.name]), note)]
        keys[field.name] = tp if required else NotRequired[tp]
    return _mapping_type(cls.__name__, keys)


def _mapping_type(name: str, keys: dict[str, Any]) -> Any:  # noqa: ANN401
    mapping = TypedDict(name, keys)  # type: ignore[misc]
    mapping.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
    return mapping
