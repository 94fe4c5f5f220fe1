"""Figures of reward models against scikit-learn, SciPy and brute force."""

import json
from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import bootstrap, spearmanr
from sklearn.metrics import brier_score_loss, log_loss
from transformers import EvalPrediction

from sft_kit.data.preference.rows import Comparison, PreferenceExample
from sft_kit.data.rows import Where
from sft_kit.errors import DataError, TrainingError
from sft_kit.evaluation.preference import evaluate_preferences, preference_metrics
from sft_kit.evaluation.preference_examples import MAX_ERRORS
from sft_kit.evaluation.preference_report import PREFERENCE_REPORT_FILES, preference_report_files
from sft_kit.evaluation.preference_scores import (
    bootstrap_interval,
    brier_score,
    fit_temperature,
    pair_calibration_error,
    pair_loss,
    rank_correlation,
    win_probabilities,
)


class Letters:
    """A tokenizer that reads a token id as a character."""

    def decode(self, ids, skip_special_tokens=False):
        assert skip_special_tokens
        return "".join(map(chr, ids))


def example(index, answers, prompt="ask", source="a.jsonl") -> PreferenceExample:
    turns = ({"role": "user", "content": f"{prompt} {index}"},)
    texts = tuple(({"role": "assistant", "content": text},) for text in answers)
    comparison = Comparison(turns, texts, 0.0, source, Where(source, index + 1))
    ids = tuple((1, 2, 3, *map(ord, text)) for text in answers)
    return PreferenceExample(ids, 3, 0.0, comparison)


def pairs(count: int, seed: int = 0, shift: float = 0.5):
    """Groups of two with random scores and lengths."""
    draw = np.random.default_rng(seed)
    scores = [np.asarray([one + shift, other]) for one, other in draw.normal(size=(count, 2))]
    examples = [
        example(index, ["x" * draw.integers(1, 30), "y" * draw.integers(1, 30)],
                source=f"{'ab'[index % 3 > 1]}.jsonl")
        for index in range(count)
    ]  # fmt: skip
    return scores, examples


def report_on(scores, examples):
    return evaluate_preferences(scores, examples, Letters())


# --- against libraries ---------------------------------------------------------------------------


def differences_and_ones(seed=0, count=400):
    found = np.random.default_rng(seed).normal(0.7, 1.5, size=count)
    return found, np.ones(count)


def test_loss_and_brier_score_are_those_of_scikit_learn():
    found, ones = differences_and_ones()
    # Half of the pairs are turned round, so that both classes occur; neither figure changes.
    turned = np.arange(len(found)) % 2 == 0
    probabilities = 1 / (1 + np.exp(-np.where(turned, -found, found)))
    truth = (~turned).astype(int)
    assert pair_loss(found, ones) == pytest.approx(log_loss(truth, probabilities))
    assert brier_score(found, ones) == pytest.approx(brier_score_loss(truth, probabilities))


def test_the_temperature_is_the_one_an_optimiser_finds():
    found, ones = differences_and_ones()
    best = minimize_scalar(
        lambda log: pair_loss(found / np.exp(log), ones), bounds=(-5, 5), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    assert fit_temperature(found, ones) == pytest.approx(np.exp(best.x), rel=1e-4)


def test_no_temperature_suits_pairs_that_are_all_right_or_worse_than_chance():
    ones = np.ones(3)
    assert fit_temperature(np.asarray([1.0, 2.0, 0.5]), ones) is None
    assert fit_temperature(np.asarray([-1.0, -2.0, 0.5]), ones) is None


def test_temperature_undoes_a_scale_of_calibrated_scores():
    draw = np.random.default_rng(3)
    strength = draw.normal(0, 2, size=40_000)
    wins = draw.random(40_000) < 1 / (1 + np.exp(-strength))
    found = np.where(wins, strength, -strength)
    ones = np.ones(len(found))
    assert fit_temperature(found * 4, ones) == pytest.approx(4, rel=0.05)
    assert pair_calibration_error(found, ones) < 0.01
    assert pair_calibration_error(found * 4, ones) > 0.1
    assert pair_calibration_error(found * 4, ones, 4.0) == pytest.approx(
        pair_calibration_error(found, ones), abs=1e-12
    )


def test_the_calibration_error_is_its_definition():
    found, _ = differences_and_ones(count=90)
    weights = np.random.default_rng(1).random(90)
    stated = 1 / (1 + np.exp(-np.abs(found)))
    total = 0.0
    for number in range(15):
        inside = (stated > number / 15) & (stated <= (number + 1) / 15)
        if inside.any():
            share = np.average(found[inside] > 0, weights=weights[inside])
            stated_here = np.average(stated[inside], weights=weights[inside])
            total += weights[inside].sum() * abs(share - stated_here)
    assert pair_calibration_error(found, weights) == pytest.approx(total / weights.sum())


def test_rank_correlation_is_scipys_also_with_ties():
    draw = np.random.default_rng(2)
    first, second = draw.integers(0, 8, size=200), draw.normal(size=200)
    second[:50] = 0.0
    mixed = first + second
    assert rank_correlation(first, mixed) == pytest.approx(spearmanr(first, mixed).statistic)
    assert rank_correlation(first, np.ones(200)) is None


def test_the_interval_is_scipys_percentile_bootstrap():
    right = np.random.default_rng(4).choice([0.0, 1 / 3, 1.0], size=150, p=[0.2, 0.2, 0.6])
    expected = bootstrap((right,), np.mean, method="percentile", n_resamples=5000, rng=1)
    found = bootstrap_interval(right, seed=0)
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.01)
    assert bootstrap_interval(right, seed=0) == found


def test_probabilities_of_huge_differences_do_not_overflow():
    assert win_probabilities(np.asarray([-1e6, 0.0, 1e6])).tolist() == [0.0, 0.5, 1.0]


# --- the report ----------------------------------------------------------------------------------


def test_ties_are_told_apart_and_are_not_right():
    scores = [np.asarray(row) for row in ([2.0, 1.0], [1.0, 1.0], [0.0, 3.0], [5.0, 4.0])]
    report = report_on(scores, [example(index, ["aa", "b"]) for index in range(4)])
    assert (report.accuracy, report.ties_fraction, report.num_wrong) == (0.5, 0.25, 1)


def test_every_list_weighs_the_same_and_each_of_its_pairs_too():
    # Of the list's three pairs one is right; the pair is right.
    scores = [np.asarray([1.0, 0.0, 2.0]), np.asarray([1.0, 0.0])]
    report = report_on(scores, [example(0, ["a", "b", "c"]), example(1, ["a", "b"])])
    assert (report.num_groups, report.num_pairs) == (2, 4)
    assert report.accuracy == pytest.approx((1 / 3 + 1) / 2)


def test_length_baselines_say_what_taking_the_longer_or_shorter_answer_gives():
    answers = [["long one", "short"], ["a", "bb"], ["a", "bb"], ["cc", "dd"], ["a", "bbb"]]
    scores = [np.asarray([1.0, 0.0])] * 5
    report = report_on(scores, [example(index, row) for index, row in enumerate(answers)])
    assert report.longer_accuracy == pytest.approx((1 + 0 + 0 + 0.5 + 0) / 5)
    assert report.shorter_accuracy == pytest.approx((0 + 1 + 1 + 0.5 + 1) / 5)
    assert {share.name: share.num_pairs for share in report.by_longer} == {
        "the better answer is longer": 1, "it is shorter": 3, "both are equally long": 1,
    }  # fmt: skip


def test_a_model_that_scores_by_length_is_found_out():
    _, examples = pairs(60)
    scores = [np.asarray([float(len(ids)) for ids in one.input_ids]) for one in examples]
    report = report_on(scores, examples)
    assert report.score_length_correlation == pytest.approx(1.0)
    assert {share.name: share.accuracy for share in report.by_longer}["it is shorter"] == 0.0


def test_the_parts_add_up_to_the_whole():
    scores, examples = pairs(200)
    report = report_on(scores, examples)
    assert len(report.by_source) == 2
    assert len(report.by_length) == 4
    for parts in (report.by_source, report.by_length, report.by_longer):
        assert sum(one.num_pairs for one in parts) == 200
        total = sum(one.num_pairs * one.accuracy for one in parts)
        assert total / 200 == pytest.approx(report.accuracy)


def test_the_wrongest_pairs_come_first_with_their_texts():
    scores = [np.asarray([0.0, float(index - 5)]) for index in range(40)]
    examples = [example(index, [f"good {index}", f"bad {index}"]) for index in range(40)]
    report = report_on(scores, examples)
    assert report.num_wrong == 34
    assert len(report.wrong) == MAX_ERRORS
    first = report.wrong[0]
    assert (first.prompt, first.chosen, first.rejected) == ("user: ask 39", "good 39", "bad 39")
    assert (first.chosen_score, first.rejected_score, first.where) == (0.0, 34.0, "a.jsonl:40")
    assert [one.rejected_score for one in report.wrong] == sorted(range(15, 35), reverse=True)


def test_answers_left_of_a_longer_list_are_shown_with_their_own_text():
    whole = example(0, ["best", "worst"])
    three = tuple(({"role": "assistant", "content": text},) for text in ("best", "lost", "worst"))
    comparison = Comparison(whole.comparison.prompt, three, 0.0, "a", Where("a", 1))
    cut = PreferenceExample(whole.input_ids, 3, 0.0, comparison)
    (wrong,) = report_on([np.asarray([0.0, 1.0])], [cut]).wrong
    assert (wrong.chosen, wrong.rejected) == ("best", "worst")


def test_prompts_are_ordered_by_the_mean_score_of_their_answers():
    scores = [np.asarray([2.0, 0.0]), np.asarray([5.0, 4.0]), np.asarray([-1.0, -2.0])]
    report = report_on(scores, [example(index, ["a", "b"]) for index in range(3)])
    assert [one.score for one in report.highest] == [4.5, 1.0, -1.5]
    assert [one.prompt for one in report.lowest] == ["user: ask 2", "user: ask 0", "user: ask 1"]
    assert report.prompt_std == pytest.approx(np.std([4.5, 1.0, -1.5]))
    assert report.chosen_mean == pytest.approx(2.0)
    assert report.chosen_std == pytest.approx(np.std([2, 5, -1]))


def test_scores_that_are_no_numbers_and_empty_data_are_refused():
    with pytest.raises(TrainingError, match="diverged"):
        report_on([np.asarray([np.nan, 0.0])], [example(0, ["a", "b"])])
    with pytest.raises(DataError, match="no comparisons"):
        report_on([], [])


def test_metrics_during_training_are_those_of_the_report_and_skip_padding():
    draw = np.random.default_rng(5)
    sizes = draw.integers(2, 5, size=30)
    scores = [draw.normal(size=size) for size in sizes]
    examples = [
        example(index, [chr(97 + number) for number in range(size)])
        for index, size in enumerate(sizes)
    ]
    padded = np.full((30, 4), -100.0)
    for row, found in zip(padded, scores, strict=True):
        row[: len(found)] = found
    labels = np.stack([sizes, np.zeros(30)], axis=1)
    metrics = preference_metrics(EvalPrediction(predictions=padded, label_ids=labels))
    report = report_on(scores, examples)
    assert metrics["accuracy"] == pytest.approx(report.accuracy)
    assert metrics["loss"] == pytest.approx(report.loss)
    by_hand = [
        np.mean([row[i] > row[j] for i, j in combinations(range(len(row)), 2)]) for row in scores
    ]
    assert report.accuracy == pytest.approx(np.mean(by_hand))


# --- the files -----------------------------------------------------------------------------------


def test_the_files_hold_every_figure_and_a_picture():
    scores, examples = pairs(50)
    report = report_on(scores, examples)
    files = preference_report_files(report, about={"run": "r"})
    assert tuple(files) == PREFERENCE_REPORT_FILES
    figures = json.loads(files["evaluation.json"])
    assert figures["accuracy"] == report.accuracy
    assert len(figures["differences"]) == 50
    assert figures["about"] == {"run": "r"}
    text = files["evaluation.md"].decode()
    for wanted in (f"{report.accuracy:.4f}", "the longer answer wins", "Wrong pairs"):
        assert wanted in text
    assert files["margins.png"].startswith(b"\x89PNG")


def test_the_histogram_has_every_pair_on_its_side_of_zero(monkeypatch):
    from matplotlib.axes import Axes

    drawn = {}

    def hist(self, values, bins, color, label):
        drawn[label] = (sorted(values), list(bins))

    monkeypatch.setattr(Axes, "hist", hist)
    monkeypatch.setattr(Axes, "legend", lambda self: None)
    scores = [np.asarray(row) for row in ([2.0, 1.0], [0.0, 3.0], [1.0, 1.0])]
    preference_report_files(report_on(scores, [example(i, ["a", "b"]) for i in range(3)]))
    assert drawn["right: 1 pair"][0] == [1.0]
    wrong, edges = drawn["wrong or equal: 2 pairs"]
    assert wrong == [-3.0, 0.0]
    assert min(map(abs, edges)) < 1e-12
    assert (edges[0], edges[-1]) == (-3.0, 3.0)


def test_texts_can_not_break_the_markdown_table():
    nasty = "a|b\n<script>*x*"
    report = report_on([np.asarray([0.0, 1.0])], [example(0, [nasty, "fine"], prompt="p|q\n")])
    text = preference_report_files(report)["evaluation.md"].decode()
    (line,) = [line for line in text.splitlines() if "fine" in line]
    assert "a\\|b &lt;script&gt;\\*x\\*" in line
    assert line.replace("\\|", "").count("|") == 7
