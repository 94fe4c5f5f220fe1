"""ROUGE and BLEU against plain Python, published values and sums made by hand."""

import json
import math
import random
import re
from collections import Counter
from dataclasses import dataclass

import pytest

from sft_kit.data.pairs.rows import Pair
from sft_kit.data.rows import Where
from sft_kit.evaluation.writing import choose_unit, rouge_by_row, rouge_units, score_texts
from sft_kit.evaluation.writing_report import evaluate_writing, writing_files

ENGLISH = (
    *("the", "cat", "sat", "on", "mat", "hat", "dog", "a", "ran", "42"),
    *("it's", "well-known", "and", "The"),
)
CHINESE = "今天气真好我们去公园看花猫"


def texts(words, count, seed, join=" "):
    draw = random.Random(seed)
    return [join.join(draw.choices(words, k=draw.randint(1, 14))) for _ in range(count)]


# --- a second implementation, in plain Python ----------------------------------------------------


def f_measure(num_common, num_written, num_wanted):
    if not num_common:
        return 0.0
    precision, recall = num_common / num_written, num_common / num_wanted
    return 2 * precision * recall / (precision + recall)


def ngrams(units, size):
    return Counter(tuple(units[at : at + size]) for at in range(len(units) - size + 1))


def plain_rouge(written, wanted):
    figures = {}
    for size in (1, 2):
        one, other = ngrams(written, size), ngrams(wanted, size)
        common = sum((one & other).values())
        figures[f"rouge{size}"] = f_measure(common, one.total(), other.total())
    longest = [0] * (len(wanted) + 1)
    for unit in written:
        before = list(longest)
        for at, other in enumerate(wanted, start=1):
            longest[at] = before[at - 1] + 1 if unit == other else max(before[at], longest[at - 1])
    figures["rougeL"] = f_measure(longest[-1], len(written), len(wanted))
    return figures


def plain_bleu(written, wanted):
    """BLEU of lists of units; an order without match counts 1/2, 1/4, ... as in mteval v13a."""
    logs, halved = [], 1.0
    both = list(zip(written, wanted, strict=True))
    for size in range(1, 5):
        common = sum((ngrams(one, size) & ngrams(other, size)).total() for one, other in both)
        total = sum(ngrams(a, size).total() for a in written)
        if not total:
            return 0.0
        if not common:
            halved *= 2
            common = 1 / halved
        logs.append(math.log(common / total))
    num_written, num_wanted = sum(map(len, written)), sum(map(len, wanted))
    short = min(0.0, 1 - num_wanted / num_written)
    return 100 * math.exp(sum(logs) / 4 + short)


def simple_words(text):
    """Words of ASCII text in the plainest way."""
    return re.sub("[^a-z0-9]", " ", text.lower()).split()


@pytest.mark.parametrize("seed", range(3))
def test_rouge_of_english_is_that_of_plain_python_and_of_rouge_score_itself(seed):
    from rouge_score.rouge_scorer import RougeScorer

    written, wanted = texts(ENGLISH, 40, seed), texts(ENGLISH, 40, seed + 50)
    found = rouge_by_row(written, wanted, "words")
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for row, one, other in zip(found, written, wanted, strict=True):
        assert row == pytest.approx(plain_rouge(simple_words(one), simple_words(other)))
        assert row == {name: score.fmeasure for name, score in theirs.score(other, one).items()}
    scores = score_texts(written, wanted, "words")
    for name in ("rouge1", "rouge2", "rougeL"):
        assert scores[name] == pytest.approx(sum(row[name] for row in found) / 40)
    assert 0.1 < scores["rougeL"] < scores["rouge1"] < 0.9


@pytest.mark.parametrize("seed", range(3))
def test_rouge_and_bleu_of_chinese_count_every_character(seed):
    written, wanted = (texts(CHINESE, 30, seed + n, join="") for n in (0, 50))
    scores = score_texts(written, wanted)
    rows = [plain_rouge(list(a), list(b)) for a, b in zip(written, wanted, strict=True)]
    for name in ("rouge1", "rouge2", "rougeL"):
        assert scores[name] == pytest.approx(sum(row[name] for row in rows) / 30)
    assert scores["bleu"] == pytest.approx(plain_bleu([*map(list, written)], [*map(list, wanted)]))
    assert 0 < scores["bleu"] < 50


def test_bleu_of_english_is_that_of_plain_python():
    wanted = [f"{text} ." for text in texts(["a", "b", "c", "d", "e", "f"], 30, 1)]
    draw = random.Random(2)
    written = [" ".join(word for word in text.split() if draw.random() > 0.1) for text in wanted]
    expected = plain_bleu([text.split() for text in written], [text.split() for text in wanted])
    assert 40 < expected < 95
    assert score_texts(written, wanted, "words")["bleu"] == pytest.approx(expected)


def test_a_chinese_sum_by_hand():
    # 5 characters written, 6 wanted, all 5 in order; 3 of 4 pairs are among 5.
    scores = score_texts(["今天天气好"], ["今天天气很好"])
    assert scores["rouge1"] == scores["rougeL"] == pytest.approx(10 / 11)
    assert scores["rouge2"] == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    # 5/5, 3/4, 2/3 and 1/2 of the n-grams, times the brevity penalty exp(1 - 6/5).
    mean = (1 * 0.75 * (2 / 3) * 0.5) ** 0.25
    assert scores["bleu"] == pytest.approx(100 * mean * math.exp(-0.2))


def test_sentences_with_marks_and_case_have_the_bleu_of_their_13a_tokens():
    """The sentences of sacrebleu's README, whose documented value takes two references."""
    from sacrebleu.metrics.bleu import BLEU

    written = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    wanted = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    others = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]
    assert round(BLEU().corpus_score(written, [wanted, others]).score, 2) == 48.53
    parted = [[text.replace(".", " .").split() for text in side] for side in (written, wanted)]
    assert score_texts(written, wanted)["bleu"] == pytest.approx(plain_bleu(*parted))


def test_jieba_counts_words_of_chinese():
    assert rouge_units("我们一起去公园，OK 3天！", "jieba") == [
        "我们", "一起", "去", "公园", "ok", "3", "天",
    ]  # fmt: skip
    # 我们 / 一起 / 去 / 公园 against 我们 / 去 / 公园
    scores = score_texts(["我们去公园"], ["我们一起去公园"], "jieba")
    assert scores["rouge1"] == scores["rougeL"] == pytest.approx(6 / 7)
    assert scores["rouge2"] == pytest.approx(2 / 5)
    parted = ["我们 去 公园 看花 。"], ["我们 一起 去 公园 看花 。"]
    expected = plain_bleu([parted[0][0].split()], [parted[1][0].split()])
    joined = [[text.replace(" ", "") for text in side] for side in parted]
    assert score_texts(*joined, "jieba")["bleu"] == pytest.approx(expected)


def test_english_words_are_whole_in_every_way_of_counting():
    text = "GPT-2 is a model."
    for unit in ("words", "characters", "jieba"):
        assert rouge_units(text, unit) == ["gpt", "2", "is", "a", "model"]
    assert rouge_units("用GPT写诗", "characters") == ["用", "gpt", "写", "诗"]
    assert (
        rouge_units("Ein Café", "words")
        == rouge_units("ein Cafe\u0301", "words")
        == ["ein", "café"]
    )


@pytest.mark.parametrize(
    ("references", "unit"),
    [
        (["the cat sat", "a dog"], "words"),
        (["今天天气很好", "我们去公园"], "characters"),
        (["the cat", "今天"], "characters"),
        (["one name 李 in " + "many words " * 20], "words"),
        (["наука", "été"], "words"),
        (["!?"], "words"),
    ],
)
def test_what_is_counted_follows_the_references(references, unit):
    assert choose_unit(references) == unit
    assert choose_unit(references, "jieba") == "jieba"


@pytest.mark.parametrize("unit", ["words", "characters", "jieba"])
def test_equal_texts_score_full_and_empty_ones_nothing(unit):
    wanted = ["the cat sat on the mat 今天天气很好", "a dog ran to the park 我们一起去公园"]
    full = {"rouge1": 1, "rouge2": 1, "rougeL": 1, "bleu": 100}
    assert score_texts(wanted, wanted, unit) == pytest.approx(full)
    assert set(score_texts(["", ""], wanted, unit).values()) == {0}


def test_nothing_to_compare_is_a_mistake():
    for written, wanted in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match="predictions and"):
            score_texts(written, wanted)


# --- the report ----------------------------------------------------------------------------------


@dataclass
class Text:
    text: str
    stopped: bool = True


def report_of(*rows):
    pairs = [Pair(one, other, Where("rows", n)) for n, (one, other, _) in enumerate(rows, start=1)]
    written = [Text(text, stopped=not text.endswith("~")) for *_, text in rows]
    return evaluate_writing(pairs, written)


def test_a_report_has_every_row_and_the_figures_of_a_copier_beside():
    report = report_of(
        ("the cat", "a cat sat here", "a cat  sat here"), ("x | y", "the dog", "the dog barks ~")
    )
    assert report.count_by == "words"
    assert report.figures["exact_match"] == 0.5
    assert report.figures["stopped_fraction"] == 0.5
    assert report.figures["rouge1"] == pytest.approx((1 + 4 / 5) / 2)
    assert report.copied["rouge1"] == pytest.approx((2 / 6 + 0) / 2)
    assert report.copied["exact_match"] == 0
    assert report.metrics()["eval_rougeL"] == report.figures["rougeL"]
    files = writing_files(report)
    assert set(files) == {"evaluation.json", "evaluation.md"}
    found = json.loads(files["evaluation.json"])
    assert found["num_rows"] == 2
    assert found["rows"][1] == {
        "where": "rows:2", "source": "x | y", "target": "the dog", "written": "the dog barks ~",
        "stopped": False, "rougeL": pytest.approx(4 / 5),
    }  # fmt: skip
    lines = files["evaluation.md"].decode().splitlines()
    rows = [line for line in lines if line.startswith("| rows:")]
    assert [row.split(" | ")[0] for row in rows] == ["| rows:2", "| rows:1"]
    assert "x \\| y" in rows[0]
    assert rows[0].endswith("… |")


def test_a_long_report_shows_the_worst_rows():
    rows = [(f"s{n}", "a b c d", " ".join("abcd"[: n % 4 + 1])) for n in range(30)]
    shown = writing_files(report_of(*rows))["evaluation.md"].decode()
    assert "## Texts (20 of 30)" in shown
    values = [
        float(line.split(" | ")[1]) for line in shown.splitlines() if line.startswith("| rows")
    ]
    assert len(values) == 20
    assert values == sorted(values)
    assert values[0] == pytest.approx(0.4)
