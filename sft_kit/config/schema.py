"""The sections of a recipe: which keys each has, of what type, with what default.

A recipe declares `class Settings` next to its YAML of the same stem. It is found by parsing, so
nothing of the recipe or of the libraries it imports runs.
"""

import ast
import dataclasses
import importlib
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types

from sft_kit.config.tables import BOUNDS, DEFAULTS, REFUSED, TYPES, Pattern
from sft_kit.config.upstream import FoundClass, PythonOnly, Source, read_source, twin
from sft_kit.config.yaml_text import display
from sft_kit.errors import ConfigError, Problem

OWN_SETTINGS = "sft_kit.settings"
_SHOWN_CHOICES = 16


@dataclass(frozen=True)
class Setting:
    """One key of a section.

    Attributes:
        name: The key.
        type: What it accepts, with bounds as in `annotated_types`.
        required: It has no default.
        default: The default where it is a literal, else `...`.
        help: One sentence or two.
    """

    name: str
    type: Any
    required: bool
    default: object
    help: str


@dataclass(frozen=True)
class Section:
    """One section of the YAML: a settings class under the name of its field in `Settings`.

    Attributes:
        name: The section's key.
        class_name: Name of the class, which the tables of `sft_kit.config.tables` use.
        required: The YAML must have it.
        nullable: `null` is a value (no adapter: full fine-tuning).
        settings: Its keys, without those that recipes can't use.
    """

    name: str
    class_name: str
    required: bool
    nullable: bool
    settings: Mapping[str, Setting]


def read_sections(recipe: Path) -> dict[str, Section]:
    """Find `class Settings` in a recipe and read the class of each section.

    Raises:
        ConfigError: No such class, or a section whose class can't be found.
    """
    source = read_source(recipe.absolute())
    node = source.classes.get("Settings")
    if node is None:
        problem = Problem(f"{display(recipe)}:1", "", "found no `class Settings`")
        raise ConfigError(f"{display(recipe)}: can't be used", [problem])
    sections = [
        _section(FoundClass(source, node), statement)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    ]
    return {section.name: section for section in sections}


def describe(tp: Any) -> str:  # noqa: ANN401
    """A type in words: `a whole number >= 1`, `one of 'no', 'steps' or 'epoch'`, `text or null`."""
    *first, last = parts = _parts(tp)
    text = f"{', '.join(first)} or {last}" if first else last
    return f"one of {text}" if get_origin(tp) is Literal and len(parts) > 2 else text


_SIMPLE: Mapping[Any, tuple[str, ...]] = types.MappingProxyType(
    {
        int: ("a whole number",),
        float: ("a number",),
        str: ("text",),
        bool: ("true", "false"),
        type(None): ("null",),
    }
)


def _parts(tp: Any) -> list[str]:  # noqa: ANN401
    """The alternatives of a type, `null` last."""
    origin, arguments = get_origin(tp), get_args(tp)
    if origin is Annotated:
        bounds = " and ".join(filter(None, map(_bound_text, arguments[1:])))
        return [f"{describe(arguments[0])} {bounds}".strip()]
    if origin is Literal:
        return _choices(arguments)
    if origin in (Union, types.UnionType):
        bare = [get_args(member)[0] if _is_annotated(member) else member for member in arguments]
        members = [
            member
            for member, kind in zip(arguments, bare, strict=True)
            if not (kind is int and float in bare)
        ]
        parts = [
            "a list of these" if _is_list_of(member, arguments) else part
            for member in members
            for part in _parts(member)
        ]
        return sorted(parts, key=lambda part: (part == "null", part.startswith("a list")))
    if origin is list:
        return [f"a list ({describe(arguments[0])})"]
    if origin is dict:
        return ["a mapping"]
    return list(_SIMPLE.get(tp, ("a mapping" if isinstance(tp, type) else "any value",)))


def _is_list_of(tp: Any, members: Iterable[Any]) -> bool:  # noqa: ANN401
    """Whether a type is a list of what some members of a union accept one of."""
    if get_origin(tp) is not list:
        return False
    item = get_args(tp)[0]
    is_union = get_origin(item) in (Union, types.UnionType)
    return set(get_args(item) if is_union else [item]) <= set(members)


def _is_annotated(tp: Any) -> bool:  # noqa: ANN401
    return get_origin(tp) is Annotated


def _choices(values: Iterable[object]) -> list[str]:
    texts = [f"'{value}'" if isinstance(value, str) else str(value).lower() for value in values]
    num_more = len(texts) - _SHOWN_CHOICES
    return texts if num_more < 2 else [*texts[:_SHOWN_CHOICES], f"{num_more} more"]


def _bound_text(bound: object) -> str:
    match bound:
        case annotated_types.Ge(ge=limit):
            return f">= {limit}"
        case annotated_types.Gt(gt=limit):
            return f"> {limit}"
        case annotated_types.Le(le=limit):
            return f"<= {limit}"
        case annotated_types.Lt(lt=limit):
            return f"< {limit}"
        case annotated_types.MinLen(min_length=1):
            return "that isn't empty"
        case annotated_types.MinLen(min_length=length):
            return f"with at least {length} entries"
        case annotated_types.MaxLen(max_length=length):
            return f"at most {length} entries"
        case Pattern(regex=regex):
            return f"like {regex}"
    return ""


def _section(settings: FoundClass, statement: ast.AnnAssign) -> Section:
    """Read `adapter: LoraConfig | None` and the class it names."""
    name = ast.unparse(statement.target)
    annotation, nullable = _without_none(statement.annotation)
    cls = _section_class(annotation, settings.source)
    if cls is None:
        where = f"{display(settings.source.path)}:{statement.lineno}"
        found = f"found {ast.unparse(annotation)}, accepts a dataclass that the recipe imports"
        problem = Problem(where, name, found, "import it by name from the module that declares it")
        raise ConfigError(f"{display(settings.source.path)}: can't be used", [problem])
    has_default = statement.value is not None
    if has_default and not _is_plain_default(statement.value, ast.unparse(annotation), nullable):
        where = f"{display(settings.source.path)}:{statement.lineno}"
        accepted = f"`field(default_factory={ast.unparse(annotation)})`"
        problem = Problem(where, name, f"found another default, accepts {accepted}")
        raise ConfigError(f"{display(settings.source.path)}: can't be used", [problem])
    required = not (has_default or nullable)
    return Section(name, cls.__name__, required, nullable, _settings_of(cls))


def _is_plain_default(node: ast.expr | None, class_name: str, nullable: bool) -> bool:
    """Whether a section left out of the YAML is the class with its own defaults (or null)."""
    text = ast.unparse(node) if node else ""
    accepted = (f"field(default_factory={class_name})", "None" if nullable else "")
    return text.removeprefix("dataclasses.") in accepted


def _without_none(node: ast.expr) -> tuple[ast.expr, bool]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        sides = [node.left, node.right]
        kept = [side for side in sides if ast.unparse(side) != "None"]
        return (kept[0], True) if len(kept) == 1 else (node, False)
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Optional"):
        return node.slice, True
    return node, False


def _section_class(node: ast.expr, source: Source) -> type | None:
    if not isinstance(node, ast.Name):
        return None
    module, level, name = source.imports.get(node.id, ("", 0, node.id))
    if module == OWN_SETTINGS:
        cls = getattr(importlib.import_module(module), name, None)
        return cls if isinstance(cls, type) and dataclasses.is_dataclass(cls) else None
    return twin(module, name, source) if level == 0 else None


@lru_cache(maxsize=64)
def _settings_of(cls: type) -> Mapping[str, Setting]:
    hints = get_type_hints(cls, include_extras=True)
    documented = _documented(cls)
    settings = {}
    for field in dataclasses.fields(cls):
        row = f"{cls.__name__}.{field.name}"
        refusal = REFUSED.get(row)
        tp = TYPES.get(row, hints[field.name])
        if tp is PythonOnly or (refusal and not refusal.harmless):
            continue
        default = DEFAULTS.get(row, _literal_default(field))
        required = not DEFAULTS.get(row) and _is_required(field)
        if type(default) is int and tp is float:
            tp = int | float  # upstream's way to say "a number of steps, or a share"
        help_text = field.metadata.get("help") or documented.get(field.name, "")
        narrowed = _narrowed(tp, BOUNDS.get(row, ()))
        settings[field.name] = Setting(field.name, narrowed, required, default, help_text)
    return types.MappingProxyType(settings)


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _literal_default(field: "dataclasses.Field[Any]") -> object:
    if field.metadata.get("computed") or _is_required(field):
        return ...
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _documented(cls: type) -> dict[str, str]:
    """Help texts from the `Attributes:` part of a Google-style docstring."""
    _, _, attributes = (cls.__doc__ or "").partition("Attributes:\n")
    entries = re.findall(r"^ +(\w+): (.+(?:\n {9,}\S.*)*)", attributes, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _narrowed(tp: Any, bounds: tuple[object, ...] = ()) -> Any:  # noqa: ANN401
    """A declared type with bounds on its numbers, and without members that let anything pass."""
    origin, arguments = get_origin(tp), get_args(tp)
    if tp in (int, float):
        return Annotated[(tp, *bounds)] if bounds else tp
    if origin is Annotated:
        return Annotated[(_narrowed(arguments[0], bounds), *arguments[1:])]
    if origin in (Union, types.UnionType):
        members = tuple(_narrowed(member, bounds) for member in _closed(arguments))
        return Union[members]  # noqa: UP007
    return tp


def _closed(members: tuple[Any, ...]) -> list[Any]:
    """Drop what would let any text, or any mapping, pass beside a closed choice."""
    has_choice = any(
        get_origin(member) is Literal and isinstance(get_args(member)[0], str) for member in members
    )
    has_class = any(dataclasses.is_dataclass(member) for member in members)
    return [
        member
        for member in members
        if not (member is PythonOnly or (member is str and has_choice))
        and not (get_origin(member) is dict and has_class)
    ]
