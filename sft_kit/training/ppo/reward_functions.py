"""Python functions that score completions: found by name, checked before the run, run with care.

What goes wrong inside a function is told with the line of the user's own file, where it can be
repaired.
"""

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import cast

import torch

from sft_kit.config.suggestions import did_you_mean, nearest
from sft_kit.errors import ConfigError, Problem, TrainingError
from sft_kit.training.ppo.function_scores import FunctionScores, read_scores

RewardFunction = Callable[..., object]
"""Takes lists by keyword and answers one number, or one number per token, for each completion."""

KEYWORDS = ("prompts", "completions", "completion_ids")
_SIGNATURE = "def score(prompts, completions, **columns) -> list[float]"
_KEY = "reward.functions"


def load_reward_function(name: str, *, key: str = _KEY) -> RewardFunction:
    """Import a reward function.

    Args:
        name: `module:function`, or `path/file.py:function` relative to the working directory, which
            is on Python's path during the import.
        key: Setting that names it, for messages.

    Raises:
        ConfigError: The name has another shape, or nothing callable stands behind it.
        TrainingError: The module fails while it is imported; says in which line.
    """
    source, _, attribute = name.rpartition(":")
    if not source or not attribute.isidentifier():
        message = f"found {name!r}, accepts 'module:function' or 'path/file.py:function'"
        raise _config_error(key, message, f"write a function: {_SIGNATURE}")
    is_file = source.endswith(".py")
    if is_file and not Path(source).is_file():
        message, todo = f"found {name!r}, but there is no file {source}", "check the path"
        if not Path(source).is_absolute():
            message += f" in {Path.cwd()}"
            todo += ", or start the run in another folder"
        raise _config_error(key, message, todo)
    with _importable(Path(source).parent if is_file else Path()):
        try:
            with _state_kept():
                module = _import_file(Path(source)) if is_file else importlib.import_module(source)
        except (Exception, SystemExit) as error:
            if not is_file and _is_absent(error, source):
                message = f"found {name!r}, but there is no module {source!r}"
                todo = f"install it, or put it into {Path.cwd()}"
                raise _config_error(key, message, todo) from None
            raise _failure(error, name, "failed during its import", "") from error
    return _get_function(module, name, attribute, key)


def check_signature(
    function: RewardFunction, columns: Collection[str], *, name: str = "", key: str = _KEY
) -> None:
    """Refuse a function that asks for what it can't get.

    Args:
        function: From `load_reward_function`.
        columns: The data's other columns.
        name: The function as the user named it.
        key: Setting that names it, for messages.

    Raises:
        ConfigError: All parameters that nothing is there for.
    """
    name = name or getattr(function, "__qualname__", type(function).__name__)
    offered = dict.fromkeys([*KEYWORDS, *columns])
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    problems: list[Problem] = []
    for parameter in _parameters(function, name, key):
        needed = parameter.default is inspect.Parameter.empty and parameter.kind not in variadic
        if needed and parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            message = f"{name} takes {parameter.name!r} by position only, accepted is by keyword"
            problems.append(Problem("", key, message, f"write a function: {_SIGNATURE}"))
        elif needed and parameter.name not in offered:
            message = (
                f"{name} asks for {parameter.name!r}, accepted are {', '.join(KEYWORDS)} and the "
                f"data's columns: {', '.join(columns) or 'none'}"
            )
            todo = did_you_mean(nearest(parameter.name, offered)) or "give it a default"
            problems.append(Problem("", key, message, todo))
    if problems:
        raise ConfigError("a reward function asks for what it can't get:", problems)


def call_reward_function(
    name: str,
    function: RewardFunction,
    *,
    prompts: list[str],
    completions: list[str],
    completion_ids: list[list[int]],
    columns: Mapping[str, list[object]],
) -> FunctionScores:
    """Score completions with a function, and check what it answers.

    The function is given copies, and of all this only what it has parameters for. A coroutine
    or generator is run to its end. Torch's default dtype, its gradient mode and the working
    directory are the same afterwards.

    Args:
        name: The function as the user named it.
        function: From `load_reward_function`.
        prompts: B texts.
        completions: B texts.
        completion_ids: B lists of C token ids, the stop token included.
        columns: The data's other columns, B values each; one named like a keyword above is left
            out.

    Raises:
        TrainingError: The function fails, or its answer is not B finite numbers or B lists of C
            finite numbers.
    """
    offered: dict[str, object] = {key: list(values) for key, values in columns.items()}
    offered |= {
        "prompts": list(prompts),
        "completions": list(completions),
        "completion_ids": [list(ids) for ids in completion_ids],
    }
    parameters = {of.name: of.kind for of in _parameters(function, name, _KEY)}
    if inspect.Parameter.VAR_KEYWORD not in parameters.values():
        offered = {key: value for key, value in offered.items() if key in parameters}
    try:
        with _state_kept():
            answer = function(**offered)
            if inspect.isawaitable(answer):
                answer = asyncio.run(_wait_for(answer))
            answer = _drained(answer)
    except (Exception, SystemExit) as error:
        raise _failure(error, name, "failed", _file_of(function)) from error
    num_tokens = [len(ids) for ids in completion_ids]
    return read_scores(name, answer, num_tokens, place=_place_of(function))


async def _wait_for(answer: Awaitable[object]) -> object:
    return await answer


def _drained(answer: object) -> object:
    """Run generators to their end, also those of single completions."""
    if isinstance(answer, Iterator):
        answer = list(answer)
    if isinstance(answer, list):
        return [list(item) if isinstance(item, Iterator) else item for item in answer]
    return answer


@contextmanager
def _state_kept() -> Iterator[None]:
    """Put back what a user's code may change for the whole process."""
    dtype = torch.get_default_dtype()
    try:
        with chdir(Path.cwd()), torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        torch.set_default_dtype(dtype)


def _parameters(function: RewardFunction, name: str, key: str) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        message = f"{name} does not tell its parameters"
        raise _config_error(key, message, f"write a function: {_SIGNATURE}") from None


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Find modules in the working directory, and beside the file that is imported, for a while."""
    added = list(dict.fromkeys([str(Path.cwd()), str(folder.resolve())]))
    sys.path[:0] = added
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for entry in added:
            with suppress(ValueError):  # the module itself may have taken it away
                sys.path.remove(entry)


def _import_file(path: Path) -> ModuleType:
    """Import a file, once per process, under a name that no other module has."""
    place = str(path.resolve())
    name = f"reward_{path.stem}_{hashlib.sha256(place.encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None, "a file that ends in .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is imported
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_absent(error: BaseException, source: str) -> bool:
    """Whether the module itself, or a package it is in, was not found."""
    return isinstance(error, ModuleNotFoundError) and f"{source}.".startswith(f"{error.name}.")


def _get_function(module: ModuleType, name: str, attribute: str, key: str) -> RewardFunction:
    found = getattr(module, attribute, None)
    if isinstance(found, type):
        message = f"found {name!r}, a class; accepts a function or an instance"
        raise _config_error(key, message, f"write one below it: judge = {attribute}(...)")
    if callable(found):
        return cast("RewardFunction", found)
    if found is not None:
        message = f"found {name!r}, of type {type(found).__name__}, accepts a function"
        raise _config_error(key, message, f"write a function: {_SIGNATURE}")
    names = [
        other
        for other, value in vars(module).items()
        if callable(value)
        and not isinstance(value, type)
        and not other.startswith("_")
        and value.__module__ == module.__name__
    ]
    message = f"found {name!r}, but the module has no {attribute!r}"
    has = f"it has {', '.join(names)}" if names else f"write a function: {_SIGNATURE}"
    raise _config_error(key, message, did_you_mean(nearest(attribute, names)) or has)


def _config_error(key: str, message: str, todo: str) -> ConfigError:
    return ConfigError("a reward function can't be used:", [Problem("", key, message, todo)])


def _file_of(function: RewardFunction) -> str:
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    return getattr(module, "__file__", None) or ""


def _place_of(function: RewardFunction) -> str:
    """Tell `file:line` of a function, or of what an instance runs when it is called."""
    for one in (inspect.unwrap(function), getattr(type(function), "__call__", None)):  # noqa: B004
        code = getattr(one, "__code__", None)
        if code is not None:
            return f"{code.co_filename}:{code.co_firstlineno}"
    return ""


def _failure(error: BaseException, name: str, what: str, file: str) -> TrainingError:
    """Tell where a user's code failed.

    That is the last line in `file`, or else in the working directory, or else of all.
    """
    message = ": ".join(part for part in (type(error).__name__, str(error)) if part)
    where = name
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
    elif frames := _frames_of_user(error):
        own = [frame for frame in frames if frame.filename == file]
        near = [frame for frame in frames if _is_near(Path(frame.filename))]
        frame = (own or near or frames)[-1]
        where = f"{frame.filename}:{frame.lineno}"
        message += "" if frame.name == "<module>" else f" (in {frame.name})"
    problem = Problem(where, "", message, "repair it, and resume the run if it has begun")
    return TrainingError(f"the reward function {name!r} {what}:", [problem])


def _frames_of_user(error: BaseException) -> list[traceback.FrameSummary]:
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith("<frozen")
    ]


def _is_near(path: Path) -> bool:
    return path.is_relative_to(Path.cwd()) and "site-packages" not in path.parts
