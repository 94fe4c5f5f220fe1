"""The answer of a reward function: numbers, checked one by one."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch

from sft_kit.errors import Problem, TrainingError

_MAX_PROBLEMS = 3


@dataclass(frozen=True, slots=True)
class FunctionScores:
    """What a reward function answered.

    Attributes:
        scores: (B,) float32, one per completion: its number, or the sum over its tokens.
        token_scores: B lists of C numbers each, where the function answers per token.
    """

    scores: torch.Tensor
    token_scores: list[list[float]] | None


def read_scores(
    name: str, answer: object, num_tokens: Sequence[int], *, place: str = ""
) -> FunctionScores:
    """Read what a reward function answered.

    Args:
        name: The function as the user named it.
        answer: A list, tuple, array or tensor.
        num_tokens: B lengths of the completions, tokens.
        place: `file:line` of the function, for messages.

    Raises:
        TrainingError: Another count, or what is no finite number in float32: the first
            few and how many there are.
    """
    values = _values(name, answer, len(num_tokens), place)
    is_dense = any(isinstance(value, list) for value in values)
    problems = [
        Problem(place, f"completion {index}", message, _what_to_do(value))
        for index, (value, count) in enumerate(zip(values, num_tokens, strict=True))
        if (message := _what_is_wrong(value, count if is_dense else None))
    ]
    if problems:
        count = f" for {len(problems)} of {_counted(len(values), 'completion')}"
        first = f", the first {_MAX_PROBLEMS} here" if len(problems) > _MAX_PROBLEMS else ""
        raise _error(name, problems[:_MAX_PROBLEMS], count + first)
    token_scores = [
        [float(number) for number in (value if isinstance(value, list) else [value])]
        for value in values
    ]
    scores = torch.tensor([math.fsum(numbers) for numbers in token_scores], dtype=torch.float32)
    return FunctionScores(scores, token_scores if is_dense else None)


def _values(name: str, answer: object, count: int, place: str) -> list[Any]:
    """Take the answer apart: B values, of which those per token are lists."""
    rows = _plain(answer)
    if not isinstance(rows, list):
        message = f"found {_shown(rows)}, accepts a list of scores"
        raise _error(name, [Problem(place, "", message, "answer one score for each completion")])
    if len(rows) != count:
        message = f"found {_counted(len(rows), 'score')} for {_counted(count, 'completion')}"
        todo = "answer one score for each, in their order"
        raise _error(name, [Problem(place, "", message, todo)])
    return rows


def _plain(value: object) -> object:
    """Turn tuples, arrays and tensors into lists and numbers, all the way down."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _what_is_wrong(value: object, num_tokens: int | None) -> str:
    """Say what is wrong with the value of one completion; `num_tokens` where lists are due."""
    if num_tokens is None:
        return "" if _is_finite(value) else f"found {_shown(value)}, accepts a finite number"
    if not isinstance(value, list):
        return f"found {_shown(value)}, accepts a list, as for other completions"
    if len(value) != num_tokens:
        return f"found {_counted(len(value), 'score')} for {_counted(num_tokens, 'token')}"
    bad = [number for number in value if not _is_finite(number)]
    if bad:
        return f"found {_shown(bad[0])} for a token, accepts a finite number"
    return "" if _is_finite(math.fsum(value)) else "the sum over its tokens exceeds float32"


def _is_finite(value: object) -> bool:
    if not isinstance(value, Real):
        return False
    try:
        return abs(float(value)) <= torch.finfo(torch.float32).max
    except OverflowError:
        return False


def _what_to_do(value: object) -> str:
    if isinstance(value, list):
        return "answer one finite number for each token, the stop token included"
    if isinstance(value, str):
        return "turn it into a number with float()"
    return "answer a number for every completion, such as 0.0 where there is nothing to judge"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _shown(value: object) -> str:
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    return f"{type(value).__name__} {text:.60}"


def _error(name: str, problems: list[Problem], count: str = "") -> TrainingError:
    summary = f"the reward function {name!r} did not answer with scores{count}:"
    return TrainingError(summary, problems)
