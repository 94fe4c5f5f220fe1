"""The figures in the documents are those of the result files, and those are what was asked of."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "recipes" / "results"
FILES = sorted(
    path for path in RESULTS.glob("*.json") if "recipes/classify" in path.read_text("utf-8")
)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The script that made the files."""
    path = REPOSITORY / "benchmarks" / "classification.py"
    spec = importlib.util.spec_from_file_location("benchmark_classification", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_experiment_has_its_file(benchmark: ModuleType) -> None:
    assert {path.stem for path in FILES} == set(benchmark.EXPERIMENTS)
    assert len(FILES) == 7


def test_the_table_is_made_from_the_files(benchmark: ModuleType) -> None:
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    shown = text.partition(benchmark.BEGIN)[2].partition(benchmark.END)[0].strip()
    assert shown == benchmark.table()
    assert len(shown.splitlines()) == 2 + len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_result_says_how_it_was_made(path: Path, benchmark: ModuleType) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    words = " ".join(map(benchmark.quoted, benchmark.EXPERIMENTS[path.stem]))
    assert result["command"].startswith(f"accelerate launch {benchmark.RECIPE} {words}")
    assert set(result["versions"]) == set(benchmark.PACKAGES)
    assert len(result["train_seconds"]) == result["num_runs"]
    assert 0 < result["figures"]["eval_accuracy"] <= 1
    assert "/home" not in path.read_text(encoding="utf-8")
    assert "/work" not in path.read_text(encoding="utf-8")


def figures(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_the_figures_are_those_that_were_promised() -> None:
    accuracy = {
        name: figures(f"sst2_{name}")["figures"]["eval_accuracy"]
        for name in ("lora", "full", "nf4", "int8")
    }
    assert min(accuracy["lora"], accuracy["full"]) >= 0.87
    assert max(figures(f"sst2_{name}")["train_seconds"][0] for name in ("lora", "full")) < 900
    assert min(accuracy["nf4"], accuracy["int8"]) >= accuracy["lora"] - 0.02
    assert figures("phrasebank_5_fold")["figures"]["eval_macro_f1"] >= 0.9
    questions = figures("mctaco_by_question")
    majority = questions["majority"]["majority_macro_f1"]
    assert questions["figures"]["eval_macro_f1"] >= majority + 0.1
    reviews = figures("chnsenticorp_from_scratch")["figures"]
    assert reviews["rows_not_trained_on"]["num_rows"] < reviews["all_rows"]["num_rows"] == 1200


def test_questions_are_scored_as_in_the_paper_on_a_case_worked_out_by_hand(
    benchmark: ModuleType,
) -> None:
    questions = ["a", "a", "a", "b", "b"]
    truths = ["yes", "yes", "no", "no", "no"]
    # a: one of two found, one guess of two right: F1 1/2. b: nothing to find and nothing guessed.
    guesses = ["yes", "no", "yes", "no", "no"]
    scores = benchmark._by_question(questions, truths, guesses)
    assert scores == {"question_f1": pytest.approx((0.5 + 1) / 2), "exact_match": 0.5}
    # b: a guess where there is nothing to find.
    guesses = ["yes", "yes", "no", "yes", "no"]
    scores = benchmark._by_question(questions, truths, guesses)
    assert scores == {"question_f1": pytest.approx((1.0 + 0.0) / 2), "exact_match": 0.5}
