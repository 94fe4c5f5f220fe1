"""Reward functions: found, given what they ask for, and every mistake told where it stands."""

import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sft_kit.errors import ConfigError, TrainingError
from sft_kit.training.ppo.function_scores import FunctionScores
from sft_kit.training.ppo.reward_functions import (
    RewardFunction,
    call_reward_function,
    check_signature,
    load_reward_function,
)

GOOD = """
from lexicon_of_test import HAPPY

def happy(completions, **columns):
    return [float(text in HAPPY) for text in completions]

def per_token(completion_ids):
    return [[float(token) for token in ids] for ids in completion_ids]

async def slow(prompts, completions):
    import asyncio
    await asyncio.sleep(0)
    return [len(prompt) + len(text) for prompt, text in zip(prompts, completions)]

class Judge:
    def __call__(self, *, completions, label=0.5):
        return [label] * len(completions)

judge = Judge()
number = 3
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with reward functions in it, forgotten by Python afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    (tmp_path / "lexicon_of_test.py").write_text("HAPPY = {'joy'}\n")
    (tmp_path / "rewards_of_test.py").write_text(GOOD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "in_file.py").write_text(GOOD)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def call(function: RewardFunction, **changes: object) -> FunctionScores:
    given: dict[str, object] = {
        "prompts": ["a", "bb", "ccc"],
        "completions": ["joy", "no", "joy"],
        "completion_ids": [[1], [2, 3], [4, 5, 6]],
        "columns": {"label": [0.25, 0.5, 0.75]},
    }
    return call_reward_function("mine:score", function, **(given | changes))  # type: ignore[arg-type]


ANONYMOUS = "found function <function <lambda>>, accepts a finite number"


def answering(answer: object) -> RewardFunction:
    return lambda completions: answer


@pytest.mark.parametrize("source", ["rewards_of_test", "folder/in_file.py"])
def test_a_function_is_found_in_a_module_and_in_a_file_of_the_working_directory(
    project: Path, source: str
):
    path = list(sys.path)
    found = call(load_reward_function(f"{source}:happy"))
    assert found.scores.dtype == torch.float32
    assert found.scores.tolist() == [1.0, 0.0, 1.0]
    assert found.token_scores is None
    assert sys.path == path, "the working directory is on the path for the import only"


def test_two_functions_of_a_file_share_one_module(project: Path):
    happy = load_reward_function("folder/in_file.py:happy")
    slow = load_reward_function(str(project / "folder" / "in_file.py") + ":slow")
    assert happy.__globals__ is slow.__globals__  # type: ignore[attr-defined]


def test_files_of_one_name_in_two_folders_are_two_modules(project: Path):
    (project / "in_file.py").write_text("def happy(completions): return [7] * len(completions)\n")
    assert call(load_reward_function("folder/in_file.py:happy")).scores.tolist() == [1, 0, 1]
    assert call(load_reward_function("in_file.py:happy")).scores.tolist() == [7, 7, 7]


def test_scores_per_token_come_with_their_sum(project: Path):
    found = call(load_reward_function("rewards_of_test:per_token"))
    assert found.token_scores == [[1.0], [2.0, 3.0], [4.0, 5.0, 6.0]]
    assert found.scores.tolist() == [1.0, 5.0, 15.0]


def test_a_coroutine_is_run_to_its_end(project: Path):
    assert call(load_reward_function("rewards_of_test:slow")).scores.tolist() == [4.0, 4.0, 6.0]


def test_a_function_gets_only_what_it_has_parameters_for(project: Path):
    judge = load_reward_function("rewards_of_test:judge")
    assert call(judge, columns={"other": [1, 2, 3]}).scores.tolist() == [0.5, 0.5, 0.5]
    seen: dict[str, object] = {}
    call(lambda **given: seen.update(given) or [0, 0, 0])
    assert seen == {
        "prompts": ["a", "bb", "ccc"],
        "completions": ["joy", "no", "joy"],
        "completion_ids": [[1], [2, 3], [4, 5, 6]],
        "label": [0.25, 0.5, 0.75],
    }


def test_a_function_can_neither_change_the_run_nor_be_fooled_by_a_column(project: Path):
    completions, ids, labels = ["b", "a"], [[1], [2]], [1, 2]

    def vandal(prompts: list[str], completions: list[str], completion_ids, label) -> list[int]:
        assert prompts == ["p", "q"]
        completions.sort()
        completion_ids[0].append(9)
        label.clear()
        return [0, 0]

    columns = {"label": labels, "prompts": ["x", "y"]}
    call(vandal, prompts=["p", "q"], completions=completions, completion_ids=ids, columns=columns)
    assert (completions, ids, labels) == (["b", "a"], [[1], [2]], [1, 2])


@pytest.mark.parametrize(
    "answer",
    [
        [1, True, 0.5],
        (1.0, 1.0, 0.5),
        np.array([1, 1, 0.5]),
        [np.float32(1), np.int64(1), np.float64(0.5)],
        torch.tensor([1.0, 1.0, 0.5], requires_grad=True),
        [torch.tensor(1), torch.tensor(1.0), torch.tensor(0.5, dtype=torch.bfloat16)],
    ],
)
def test_numbers_of_any_kind_are_scores(answer: object):
    assert call(answering(answer)).scores.tolist() == [1.0, 1.0, 0.5]


def test_no_completions_have_no_scores():
    found = call(answering([]), prompts=[], completions=[], completion_ids=[], columns={})
    assert found.scores.shape == (0,)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, ["found NoneType None, accepts a list of scores"]),
        (0.5, ["found float 0.5, accepts a list of scores"]),
        ({"a": 1}, ["found dict {'a': 1}, accepts a list of scores"]),
        ("abc", ["found str 'abc', accepts a list of scores"]),
        ([1.0, 2.0], ["found 2 scores for 3 completions"]),
        ([1.0], ["found 1 score for 3 completions"]),
        ([[1], [1], [1, 2]], ["found 1 score for 2 tokens", "found 2 scores for 3 tokens"]),
        ([1, object(), lambda: 1], ["found object <object object>, accepts a finite number",
                                    ANONYMOUS]),
        ([1, None, "x"], ["found NoneType None, accepts a finite number",
                          "found str 'x', accepts a finite number"]),
        ([math.nan, 1, math.inf], ["found float nan, accepts a finite number",
                                   "found float inf, accepts a finite number"]),
        ([1e39, 1, 1j], ["found float 1e+39, accepts a finite number",
                         "found complex 1j, accepts a finite number"]),
        ([10**400, 1, 1], [f"found int {10**400!s:.60}, accepts a finite number"]),
        ([[1], [1, 2], [1, 2]], ["found 2 scores for 3 tokens"]),
        ([[1], 5, []], ["found int 5, accepts a list, as for other completions",
                        "found 0 scores for 3 tokens"]),
        ([[1], [1, math.nan], [1, 2, None]],
         ["found float nan for a token, accepts a finite number",
          "found NoneType None for a token, accepts a finite number"]),
        ([[1], [3e38, 3e38], [1, 2, 3]], ["the sum over its tokens exceeds float32"]),
    ],
)  # fmt: skip
def test_every_answer_that_is_no_score_is_told(answer: object, said: list[str]):
    with pytest.raises(TrainingError, match="'mine:score' did not answer with scores") as caught:
        call(answering(answer))
    assert [problem.message for problem in caught.value.problems] == said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("happy", "found 'happy', accepts 'module:function' or 'path/file.py:function'"),
        (":happy", "accepts 'module:function'"),
        ("rewards_of_test:", "accepts 'module:function'"),
        ("rewards_of_test:happpy", "(did you mean 'happy'?)"),
        ("rewards_of_test:zzzzzzz", "(it has happy, per_token, slow, judge)"),
        ("rewards_of_test:Judge", "a class; accepts a function or an instance"),
        ("rewards_of_test:number", "of type int, accepts a function"),
        ("no_such_module:f", "there is no module 'no_such_module' (install it, or put it into "),
        ("rewards_of_test.inner:f", "there is no module 'rewards_of_test.inner'"),
        ("gone.py:f", "there is no file gone.py in "),
        ("/no/gone.py:f", "there is no file /no/gone.py (check the path)"),
    ],
)
def test_a_name_behind_which_there_is_no_function_is_told(project: Path, name: str, said: str):
    with pytest.raises(ConfigError) as caught:
        load_reward_function(name, key="reward.gold")
    (problem,) = caught.value.problems
    assert problem.key == "reward.gold"
    assert said in str(problem)


@pytest.mark.parametrize("is_file", [True, False])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\nimport no_such_lexicon\n", ":3: ModuleNotFoundError: No module named"),
        ("import json\njson.loads('{')\n", ":2: JSONDecodeError: Expecting"),
        ("def f(:\n", ":1: SyntaxError: invalid syntax"),
        ("x = 1\ndef f():\n    return 1 / 0\nf()\n", ":3: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('bye')\n", ":2: SystemExit: bye"),
        ("def f():\n    raise SystemExit\nf()\n", ":2: SystemExit (in f)"),
    ],
)
def test_a_module_that_fails_in_its_import_is_told_by_its_line(
    project: Path, text: str, said: str, is_file: bool
):
    path = project / "broken_of_test.py"
    path.write_text(text)
    name = f"{'broken_of_test.py' if is_file else 'broken_of_test'}:f"
    with pytest.raises(TrainingError, match="failed during its import") as caught:
        load_reward_function(name)
    assert f"{path}{said}" in str(caught.value)
    assert name in caught.value.summary
    assert "broken_of_test" not in sys.modules


def test_many_bad_scores_are_counted_and_the_first_three_shown(project: Path):
    (project / "rewards_of_test.py").write_text("\ndef f(completions): return [None, '5'] * 4\n")
    ids = [[1]] * 8
    with pytest.raises(TrainingError, match="scores for 8 of 8 completions, the first 3") as caught:
        call(load_reward_function("rewards_of_test:f"), completion_ids=ids)
    place = f"{project}/rewards_of_test.py:2: completion"
    assert [str(problem) for problem in caught.value.problems] == [
        f"{place} 0: found NoneType None, accepts a finite number (answer a number for every "
        "completion, such as 0.0 where there is nothing to judge)",
        f"{place} 1: found str '5', accepts a finite number (turn it into a number with float())",
        f"{place} 2: {caught.value.problems[2].message} ({caught.value.problems[0].todo})",
    ]


def test_generators_are_run_to_their_end_and_their_errors_told(project: Path):
    def score(completions: list[str]) -> Iterator[float]:
        for text in completions:
            yield 1 / (len(text) - 2)

    assert call(answering(iter([1, 2, 3]))).scores.tolist() == [1, 2, 3]
    rows = call(answering([(float(number) for number in range(size)) for size in (1, 2, 3)]))
    assert rows.token_scores == [[0.0], [0.0, 1.0], [0.0, 1.0, 2.0]]
    with pytest.raises(TrainingError, match=r"ZeroDivisionError: .*\(in score\)"):
        call(score)


def test_what_a_function_sets_for_the_whole_process_is_put_back(project: Path):
    text = (
        "import os, torch\n"
        "def change():\n"
        "    torch.set_default_dtype(torch.float64)\n"
        "    torch.set_grad_enabled(not torch.is_grad_enabled())\n"
        "    os.chdir('folder')\n"
        "change()\n"
        "def score(completions):\n"
        "    change()\n"
        "    return 0 if 'no' in completions else [0.0] * len(completions)\n"
    )
    (project / "changing_of_test.py").write_text(text)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            function = load_reward_function("changing_of_test.py:score")
            call(function, completions=["a", "b", "c"])
            with pytest.raises(TrainingError, match="found int 0"):
                call(function)
            assert torch.is_grad_enabled() == grad
            assert torch.get_default_dtype() == torch.float32
            assert Path.cwd() == project


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_a_function_that_fails_is_told_by_its_own_line(project: Path, is_coroutine: bool):
    path = project / "failing_of_test.py"
    start = "async def" if is_coroutine else "def"
    path.write_text(f"import json\n{start} f(completions):\n    return json.loads('{{')\n")
    function = load_reward_function("failing_of_test.py:f")
    with pytest.raises(TrainingError) as caught:
        call(function)
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:3"
    assert problem.message.startswith("JSONDecodeError: Expecting property name")
    assert problem.message.endswith("(in f)")
    assert "'mine:score' failed" in caught.value.summary


def test_all_parameters_that_nothing_is_there_for_are_told():
    def score(completions, lable, style, weight=1.0, *rest, **others):
        """Ask for two columns, one of them misspelt."""

    check_signature(score, ["lable", "style"])
    with pytest.raises(ConfigError) as caught:
        check_signature(score, ["label"], name="mine:score")
    first, second = map(str, caught.value.problems)
    assert first == (
        "reward.functions: mine:score asks for 'lable', accepted are prompts, completions, "
        "completion_ids and the data's columns: label (did you mean 'label'?)"
    )
    assert second.endswith("asks for 'style', accepted are prompts, completions, completion_ids "
                           "and the data's columns: label (give it a default)")  # fmt: skip


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda completions, /: [], "takes 'completions' by position only"),
        (max, "does not tell its parameters"),
    ],
)
def test_a_function_that_takes_no_keywords_is_refused(function: Callable[..., object], said: str):
    with pytest.raises(ConfigError, match=said):
        check_signature(function, [])
