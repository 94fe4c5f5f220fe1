"""What a pickle of tensors says, read as words: nothing in it is called, and nothing imported.

A pickle is a program for a stack machine. `torch.save` needs some twenty of its instructions to say
which tensors a dictionary holds, and five names; here these are followed with plain values in the
place of the objects. A program that needs anything else is no dictionary of tensors.
"""

import pickletools
from dataclasses import dataclass

import torch


class MoreThanTensorsError(ValueError):
    """A pickle says something that a dictionary of tensors does not need."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of numbers, which lies beside the pickle.

    Attributes:
        name: Of its file in the archive.
        dtype: Of one number.
        length: Numbers in it.
    """

    name: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's numbers lie in its storage; all but the storage counts numbers.

    Attributes:
        storage: The block, which several tensors may share.
        offset: Place of the first number.
        size: Numbers along each dimension.
        stride: Distance of neighbours along each dimension.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Name:
    text: str


_DICTIONARY = _Name("collections OrderedDict")
_TENSOR = _Name("torch._utils _rebuild_tensor_v2")
_PARAMETER = _Name("torch._utils _rebuild_parameter")
_DTYPES = {
    _Name("torch DoubleStorage"): torch.float64,
    _Name("torch FloatStorage"): torch.float32,
    _Name("torch HalfStorage"): torch.float16,
    _Name("torch BFloat16Storage"): torch.bfloat16,
    _Name("torch LongStorage"): torch.int64,
    _Name("torch IntStorage"): torch.int32,
    _Name("torch ShortStorage"): torch.int16,
    _Name("torch CharStorage"): torch.int8,
    _Name("torch ByteStorage"): torch.uint8,
    _Name("torch BoolStorage"): torch.bool,
}
_NAMES = frozenset({_DICTIONARY, _TENSOR, _PARAMETER, *_DTYPES})

_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_LITERALS = frozenset({"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def stored_tensors(program: bytes) -> dict[str, StoredTensor]:
    """Read which tensors a pickle describes.

    Args:
        program: The pickle; what follows its end is not looked at.

    Returns:
        Name -> tensor, in the pickle's order.

    Raises:
        MoreThanTensorsError: It holds anything but a dictionary of tensors.
        ValueError: It is damaged.
    """
    stack: list[object] = []
    memo: dict[object, object] = {}
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return _checked(stack)
            _follow(opcode.name, argument, stack, memo)
    except LookupError as error:  # a stack or a memo that lacks what is asked of it
        raise ValueError("its pickle asks for what it has not said") from error
    raise ValueError("its pickle does not end")


def _follow(name: str, argument: object, stack: list[object], memo: dict[object, object]) -> None:
    if name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _LITERALS:
        stack.append(argument)
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "TUPLE":
        stack.append(tuple(_to_mark(stack)))
    elif name in _TUPLES:
        stack.append(tuple(reversed([stack.pop() for _ in range(_TUPLES[name])])))
    elif name in ("SETITEM", "SETITEMS"):
        items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else _to_mark(stack)
        _set_items(stack[-1], items)
    elif name == "GLOBAL":
        stack.append(_allowed(_Name(str(argument))))
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
        arguments = stack.pop()
        stack.append(_described(stack.pop(), arguments))
    elif name == "BUILD":
        stack.pop()  # the attributes of a module's state: its version
    elif name != "PROTO":
        raise MoreThanTensorsError(f"the instruction {name}")


def _to_mark(stack: list[object]) -> list[object]:
    items: list[object] = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _set_items(target: object, items: list[object]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not (isinstance(target, dict) and isinstance(key, str)):
            raise MoreThanTensorsError("a dictionary whose keys are no names")
        target[key] = value


def _allowed(name: _Name) -> _Name:
    if name not in _NAMES:
        raise MoreThanTensorsError(name.text.replace(" ", ".")[:80])
    return name


def _storage(words: object) -> Storage:
    """A storage's words: "storage", the class, the file's name, the device, how many numbers."""
    match words:
        case ("storage", _Name() as kind, str(name), str(), int(length)) if kind in _DTYPES:
            return Storage(name, _DTYPES[kind], length)
    raise MoreThanTensorsError("a storage in other words")


def _described(called: object, arguments: object) -> object:
    """Say what a call would make; of the five that are allowed, and in their own words only."""
    match called, arguments:
        case _Name(), () if called == _DICTIONARY:
            return {}
        case _Name(), (StoredTensor() as tensor, bool(), dict()) if called == _PARAMETER:
            return tensor
        case _Name(), (
            Storage() as storage, int(offset), tuple(size), tuple(stride), bool(), dict(), *rest,
        ) if called == _TENSOR and rest in ([], [None], [{}]):  # fmt: skip
            return StoredTensor(storage, offset, _numbers(size), _numbers(stride))
    shown = called.text.replace(" ", ".") if isinstance(called, _Name) else "a value"
    raise MoreThanTensorsError(f"{shown} called in other words")


def _numbers(values: tuple[object, ...]) -> tuple[int, ...]:
    if not all(type(value) is int for value in values):
        raise MoreThanTensorsError("sizes that are no numbers")
    return tuple(value for value in values if isinstance(value, int))


def _checked(stack: list[object]) -> dict[str, StoredTensor]:
    if len(stack) != 1 or not isinstance(stack[0], dict):
        raise MoreThanTensorsError("no dictionary")
    others = [key for key, value in stack[0].items() if not isinstance(value, StoredTensor)]
    if others:
        raise MoreThanTensorsError(f"{others[0][:80]!r} is no tensor")
    return stack[0]
