"""The settings classes of installed libraries, read from their source text.

Importing `transformers` or `peft` to learn the fields of `TrainingArguments` or `LoraConfig` loads
torch and takes seconds. Parsing the few files that declare them takes a tenth of one. The result is
a twin: a plain dataclass with the same fields, whose enum types are closed choices and whose help
texts are kept; it is for checking, never for running.
"""

import ast
import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Union

import annotated_types

from sft_kit.errors import ConfigError, Problem

CLASS_FILES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "transformers.TrainingArguments": ("transformers", "training_args.py"),
        "peft.LoraConfig": ("peft", "tuners/lora/config.py"),
    }
)
"""Where the classes that every recipe uses are declared; others are found by following imports."""

BOUNDS = ("Ge", "Gt", "Le", "Lt", "MinLen", "MaxLen")
_BUILTINS: Mapping[str, object] = MappingProxyType(
    {"int": int, "float": float, "str": str, "bool": bool, "Any": Any, "object": Any}
)
_ENUM_BASES = ("Enum", "ExplicitEnum", "StrEnum", "IntEnum")
_MAX_HOPS = 8


class PythonOnly:
    """Stands for a type that YAML can't write down."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One parsed Python file.

    Attributes:
        path: The file.
        classes: Classes it declares, by name.
        imports: Imported name -> module, relative level and original name.
    """

    path: Path
    classes: Mapping[str, ast.ClassDef]
    imports: Mapping[str, tuple[str, int, str]]


@dataclasses.dataclass(frozen=True)
class FoundClass:
    """A class declaration and the file around it."""

    source: Source
    node: ast.ClassDef


def read_source(path: Path) -> Source:
    """Parse a Python file.

    Raises:
        ConfigError: The file can't be read or isn't Python.
    """
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        problem = Problem(f"{path}:{line}", "", f"can't be read as Python: {error}")
        raise ConfigError(f"{path}: can't be used", [problem]) from error
    classes: dict[str, ast.ClassDef] = {}
    imports: dict[str, tuple[str, int, str]] = {}
    for node in _top_statements(tree.body):
        if isinstance(node, ast.ClassDef):
            classes.setdefault(node.name, node)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                origin = (node.module or "", node.level, alias.name)
                imports.setdefault(alias.asname or alias.name, origin)
    return Source(path, classes, imports)


def _top_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, those under `if` and `try` included."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _top_statements(node.body)
            yield from _top_statements(node.orelse)


def package_folder(name: str) -> Path | None:
    """Folder of an installed top-level package, found without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations))) if locations else None


def find_class(source: Source, name: str) -> FoundClass | None:
    """Find a class by the name it has in a file, following imports from file to file."""
    for _ in range(_MAX_HOPS):
        if node := source.classes.get(name):
            return FoundClass(source, node)
        origin = source.imports.get(name)
        path = _module_file(source, *origin) if origin else None
        if origin is None or path is None:
            return None
        source, name = _read_installed(path), origin[2]
    return None


def twin(module: str, name: str, source: Source) -> type | None:
    """The twin dataclass of `module.name`.

    Args:
        module: Where the recipe imports the class from; empty when it declares it itself.
        name: Name of the class in that module.
        source: The recipe.

    Returns:
        None when no such class is found, or it is no dataclass.
    """
    known = CLASS_FILES.get(f"{module}.{name}")
    folder = package_folder(known[0]) if known else None
    if known and folder:
        return _installed_twin(folder / known[1], name)
    if module:
        path = _module_file(source, module, 0, name)
        return _installed_twin(path, name) if path else None
    return _twin_in(source, name)


@lru_cache(maxsize=64)
def _read_installed(path: Path) -> Source:
    """As `read_source`, for files that don't change while a process runs."""
    return read_source(path)


@lru_cache(maxsize=64)
def _installed_twin(path: Path, name: str) -> type | None:
    return _twin_in(_read_installed(path), name)


def _twin_in(source: Source, name: str) -> type | None:
    found = find_class(source, name)
    return _dataclass_twin(found) if found and _is_dataclass(found.node) else None


def _module_file(source: Source, module: str, level: int, name: str) -> Path | None:
    """File of the module in `from module import name`."""
    parts = [part for part in module.split(".") if part]
    if level:
        folder: Path | None = source.path.parents[level - 1]
    else:
        folder = package_folder(parts[0]) if parts else None
        parts = parts[1:]
    if folder is None:
        return None
    base = folder.joinpath(*parts)
    candidates = (base.with_suffix(".py"), base / "__init__.py", base / f"{name}.py")
    return next((path for path in candidates if parts and path.is_file()), None) or next(
        (path for path in candidates[1:] if path.is_file()), None
    )


def _last_name(node: ast.expr) -> str:
    """`dataclass` of `dataclasses.dataclass(...)`."""
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(_last_name(decorator) == "dataclass" for decorator in node.decorator_list)


def _dataclass_twin(found: FoundClass) -> type:
    fields = [(name, tp, field) for name, (tp, field) in _fields(found).items()]
    return dataclasses.make_dataclass(
        found.node.name,
        fields,
        kw_only=True,
        namespace={"__doc__": ast.get_docstring(found.node) or found.node.name},
    )


def _fields(found: FoundClass) -> dict[str, tuple[object, Any]]:
    """Fields by name, the base classes' first, as in a real dataclass."""
    fields: dict[str, tuple[object, Any]] = {}
    for base in reversed(found.node.bases):
        parent = find_class(found.source, _last_name(base))
        if parent and _is_dataclass(parent.node):
            fields.update(_fields(parent))
    for statement in found.node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if _last_name(getattr(statement.annotation, "value", statement.annotation)) == "ClassVar":
            continue
        declared = _declared(statement.value)
        if declared is not None:
            fields[statement.target.id] = (_type(statement.annotation, found.source), declared)
    return fields


def _declared(value: ast.expr | None) -> Any:  # noqa: ANN401 - fields have no public type
    """The `dataclasses.field` of an assignment; None when it isn't an argument of the class.

    A default that is no literal (it depends on the machine, or is an object) is marked `computed`.
    """
    if value is None:
        return dataclasses.field()
    if not (isinstance(value, ast.Call) and _last_name(value) == "field"):
        return _with_default(value, {})
    arguments = {keyword.arg: keyword.value for keyword in value.keywords if keyword.arg}
    if isinstance(init := arguments.get("init"), ast.Constant) and init.value is False:
        return None
    metadata: dict[str, object] = {"help": _help(arguments.get("metadata"))}
    if "default" in arguments:
        return _with_default(arguments["default"], metadata)
    factory = arguments.get("default_factory")
    if factory is None:
        return dataclasses.field(metadata=metadata)
    if _last_name(factory) in ("list", "dict") and isinstance(factory, ast.Name):
        empty: type = list if factory.id == "list" else dict
        return dataclasses.field(default_factory=empty, metadata=metadata)
    return dataclasses.field(default=None, metadata={**metadata, "computed": True})


def _with_default(node: ast.expr, metadata: dict[str, object]) -> Any:  # noqa: ANN401
    try:
        default = ast.literal_eval(node)
    except ValueError:
        return dataclasses.field(default=None, metadata={**metadata, "computed": True})
    if isinstance(default, list | dict | set):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _help(metadata: ast.expr | None) -> str:
    if not isinstance(metadata, ast.Dict):
        return ""
    for key, value in zip(metadata.keys, metadata.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "help":
            try:
                return " ".join(str(ast.literal_eval(value)).replace("%%", "%").split())
            except ValueError:
                return ""
    return ""


def _type(node: ast.expr, source: Source) -> object:
    """The type an annotation means, with enums as `Literal` and unknown classes as `PythonOnly`."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return _type(ast.parse(node.value, mode="eval").body, source)
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([_type(node.left, source), _type(node.right, source)])
    if isinstance(node, ast.Subscript):
        return _generic(_last_name(node.value), node.slice, source)
    name = _last_name(node)
    if name in _BUILTINS:
        return _BUILTINS[name]
    if name in ("list", "List", "tuple", "Sequence"):
        return list[Any]
    return dict[str, Any] if name in ("dict", "Dict") else _class_type(name, source)


def _generic(name: str, index: ast.expr, source: Source) -> object:
    items = list(index.elts) if isinstance(index, ast.Tuple) else [index]
    if name == "Literal":
        return Literal[tuple(ast.literal_eval(item) for item in items)]
    if name == "Annotated":
        bounds = [bound for item in items[1:] if (bound := _bound(item)) is not None]
        return Annotated[(_type(items[0], source), *bounds)] if bounds else _type(items[0], source)
    types = [_type(item, source) for item in items]
    if name in ("Optional", "Union"):
        return _union([*types, None] if name == "Optional" else types)
    if name in ("list", "List", "Sequence"):
        return list[types[0]]  # type: ignore[valid-type]
    if name in ("dict", "Dict", "Mapping"):
        return dict[str, types[1]]  # type: ignore[valid-type]
    if name in ("tuple", "Tuple"):
        size = len(types)
        bounds = [annotated_types.MinLen(size), annotated_types.MaxLen(size)]
        return Annotated[(list[_union(types)], *bounds)]  # type: ignore[misc]
    return PythonOnly


def _bound(node: ast.expr) -> object | None:
    name = _last_name(node)
    if isinstance(node, ast.Call) and name in BOUNDS and node.args:
        bound: object = getattr(annotated_types, name)(ast.literal_eval(node.args[0]))
        return bound
    return None


def _union(types: list[object]) -> Any:  # noqa: ANN401 - a typing construct has no type of its own
    return Union[tuple(type(None) if tp is None else tp for tp in types)]  # noqa: UP007


def _class_type(name: str, source: Source) -> object:
    found = find_class(source, name)
    if found is None:
        return PythonOnly
    if any(_last_name(base) in _ENUM_BASES for base in found.node.bases):
        values = [
            statement.value.value
            for statement in found.node.body
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        ]
        return Literal[tuple(values)]
    return _dataclass_twin(found) if _is_dataclass(found.node) else PythonOnly
