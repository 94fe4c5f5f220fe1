"""The benchmarks of pretraining: their scores, their texts, and the figures they have left."""

import importlib
import json
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"
RESULTS = REPOSITORY / "recipes" / "results"


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script, imported as Python would when it is run."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module(name)


@pytest.fixture
def masked_lm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("masked_lm", monkeypatch)


@pytest.fixture
def spelling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("spelling", monkeypatch)


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return benchmark("spelling_scores", monkeypatch)


def read_result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def write_modern_chinese(data: Path, first: str) -> None:
    """A few texts in the files that the benchmark of spelling reads."""
    for name, text in (("tnews", "今天的新闻"), ("chnsenticorp", "房间很好")):
        (data / name).mkdir()
        rows = f"{first}\t1\n{text}\t2\nmostly English 好\t3\n"
        (data / name / "train.tsv").write_text(rows, encoding="utf-8")
    (data / "medicalgpt").mkdir()
    chat = json.dumps({"conversations": [{"from": "human", "value": "头疼怎么办"}]})
    (data / "medicalgpt" / "sharegpt_zh_1K_format.jsonl").write_text(chat + "\n")
    (data / "llamafactory_demo").mkdir()
    alpaca = json.dumps([{"instruction": "写诗", "input": "", "output": "春眠不觉晓"}])
    (data / "llamafactory_demo" / "alpaca_zh_demo.json").write_text(alpaca)


def write_pairs(data: Path, pairs: list[tuple[str, str]]) -> None:
    lines = "".join(f"{wrong}\t{right}\n" for wrong, right in pairs)
    (data / "sighan").mkdir()
    (data / "sighan" / "sighan2015_train.tsv").write_text(lines, encoding="utf-8")


def test_spelling_scores_on_a_case_worked_out_by_hand(scoring: ModuleType) -> None:
    asked = [
        ("今夭好", "今天好"),  # found and corrected
        ("令天号", "今天好"),  # one of two found, and written wrong
        ("你们门", "你们们"),  # missed, and a right character flagged
        ("大家好", "大家好"),  # left alone
        ("再见了", "再见了"),  # a false alarm
    ]
    written = ["今天好", "金天号", "您们门", "大家好", "在见了"]
    # Four characters are wrong and four flagged: two of them rightly, one with the right answer.
    # Of three wrong sentences one is found exactly, and one of two right ones is flagged.
    assert scoring.scores(asked, written) == {
        "character_detection_precision": 0.5,
        "character_detection_recall": 0.5,
        "character_detection_f1": 0.5,
        "character_correction_precision": 0.25,
        "character_correction_recall": 0.25,
        "character_correction_f1": 0.25,
        "sentence_detection_precision": 0.5,
        "sentence_detection_recall": 0.3333,
        "sentence_detection_f1": 0.4,
        "sentence_correction_precision": 0.5,
        "sentence_correction_recall": 0.3333,
        "sentence_correction_f1": 0.4,
        "false_alarm_rate": 0.5,
    }


def test_a_sentence_found_at_its_place_but_corrected_wrongly_counts_as_found_only(
    scoring: ModuleType,
) -> None:
    score = scoring.scores([("今夭好", "今天好")], ["今人好"])
    assert (score["sentence_detection_f1"], score["sentence_correction_f1"]) == (1, 0)
    assert (score["character_detection_f1"], score["character_correction_f1"]) == (1, 0)
    assert score["false_alarm_rate"] == 0


def test_spelling_scores_equal_those_of_sets_of_places(scoring: ModuleType) -> None:
    draw = random.Random(0)
    asked, written = [], []
    for _ in range(300):
        right = "".join(draw.choices("甲乙丙", k=6))
        wrong, text = (
            "".join(draw.choice("甲乙丙") if draw.random() < 0.2 else one for one in right)
            for _ in range(2)
        )
        asked.append((wrong, right))
        written.append(text)
    gold, claimed, fixed = set(), set(), set()
    for number, ((wrong, right), text) in enumerate(zip(asked, written, strict=True)):
        for place in range(len(wrong)):
            if wrong[place] != right[place]:
                gold.add((number, place))
            if wrong[place] != text[place]:
                claimed.add((number, place))
                if text[place] == right[place]:
                    fixed.add((number, place))
    score = scoring.scores(asked, written)
    for name, hits in (("detection", gold & claimed), ("correction", fixed)):
        precision, recall = len(hits) / len(claimed), len(hits) / len(gold)
        f1 = 2 * precision * recall / (precision + recall)
        found = [score[f"character_{name}_{rate}"] for rate in ("precision", "recall", "f1")]
        assert found == pytest.approx([precision, recall, f1], abs=1e-4)
    alarms = {number for number, _ in claimed} - {number for number, _ in gold}
    num_right = sum(wrong == right for wrong, right in asked)
    assert score["false_alarm_rate"] == pytest.approx(len(alarms) / num_right, abs=1e-4)


def test_characters_are_replaced_only_where_another_is_likelier_by_the_threshold(
    scoring: ModuleType,
) -> None:
    proposed = [("金", 0.5), ("天", 3.0), ("好", 0.0)]
    assert scoring.corrected("今夭好", proposed) == "金天好"
    assert scoring.corrected("今夭好", proposed, threshold=1.0) == "今天好"


def test_a_held_out_sentence_is_neither_in_a_training_pair_nor_in_the_corpus(
    spelling: ModuleType, tmp_path: Path
) -> None:
    pairs = [(f"今夭是{number}号", f"今天是{number}号") for number in range(20)]
    pairs += [("今夭是3号", "昨天是3号"), ("明夭是7号", "今天是7号"), ("短", "不一样长")]
    write_pairs(tmp_path, pairs)
    read = spelling.read_pairs(tmp_path)
    assert len(read) == 22
    train, held_out = spelling.split_pairs(read)
    assert len(held_out) == 4
    assert not {s for pair in train for s in pair} & {s for pair in held_out for s in pair}
    hidden = held_out[0][1]
    write_modern_chinese(tmp_path, f"从前有人说过{hidden}很冷")
    corpus = spelling.read_corpus(tmp_path, held_out)
    assert sorted(corpus) == sorted(["今天的新闻", "房间很好", "头疼怎么办", "写诗", "春眠不觉晓"])


def test_wikitext_becomes_articles_without_its_own_marks(
    masked_lm: ModuleType, tmp_path: Path
) -> None:
    text = "".join(
        f" \n = Title {number} = \n \n The <unk> has 1 @,@ {number} well @-@ known parts . \n"
        " \n = = Part = = \n \n It is . \n"
        for number in range(10)
    )
    (tmp_path / "wikitext2_part").mkdir()
    (tmp_path / "wikitext2_part" / "valid.txt").write_text(text, encoding="utf-8")
    corpus = masked_lm.read_wikitext(tmp_path)
    assert (len(corpus.train), len(corpus.held_out), len(corpus.for_tokenizer)) == (9, 1, 9)
    numbers = {article[0].split()[2] for article in (*corpus.train, *corpus.held_out)}
    assert numbers == {str(number) for number in range(10)}
    number = corpus.train[0][0].split()[2]
    assert corpus.train[0] == [
        f"= Title {number} =",
        f"The [UNK] has 1,{number} well-known parts .",
        "= = Part = =",
        "It is .",
    ]
    assert "unk" not in str(corpus.for_tokenizer).lower()


NAMES = ("wikitext_mlm", "wikitext_wwm", "tang_mlm", "tang_wwm")


@pytest.mark.parametrize("name", NAMES)
def test_masked_words_are_guessed_better_than_the_most_frequent_one_and_better_with_more_text(
    name: str,
) -> None:
    runs = read_result(f"masked_{name}")["runs"]
    assert [run["share"] for run in runs] == [0.25, 0.5, 1]
    tokens = [run["tokens_seen"] / run["share"] for run in runs]
    assert tokens == pytest.approx([tokens[-1]] * 3, rel=0.2), "not the same number of epochs"
    accuracies = [run["accuracy"] for run in runs]
    assert accuracies == sorted(set(accuracies))
    assert runs[-1]["accuracy"] >= runs[-1]["unigram_accuracy"] + 0.1


def test_pretraining_finds_more_misspelt_characters() -> None:
    starts = read_result("spelling_sighan")["starts"]
    f1 = {name: found["after"]["character_detection_f1"] for name, found in starts.items()}
    assert set(f1) == {"none", "mlm", "spell"}
    assert f1["spell"] > f1["none"]
    for found in starts.values():
        after = found["after"]
        assert after["character_correction_f1"] <= after["character_detection_f1"]


@pytest.mark.parametrize("script", ["masked_lm", "spelling"])
def test_the_table_is_made_from_the_files(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark(script, monkeypatch)
    begin, end = benchmark("pretraining_runs", monkeypatch).marks(module.TABLE)
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    shown = text.partition(begin)[2].partition(end)[0].strip()
    assert shown == module.table()
    assert len(shown.splitlines()) == 2 + (12 if script == "masked_lm" else 5)


@pytest.mark.parametrize("name", [*(f"masked_{name}" for name in NAMES), "spelling_sighan"])
def test_a_result_says_how_it_was_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = benchmark("pretraining_runs", monkeypatch)
    result = read_result(name)
    assert set(result["versions"]) == set(shared.PACKAGES)
    if name.startswith("masked"):
        settings = benchmark("masked_lm", monkeypatch).EXPERIMENTS[name]
    else:
        settings = [*benchmark("spelling", monkeypatch).SETTINGS, "pretrain.objective=spell"]
    assert result["command"] == shared.command_of(settings)
    assert "/home" not in json.dumps(result)
    assert "/work" not in json.dumps(result)


@pytest.mark.slow
def test_the_benchmark_of_masked_words_counts_what_the_recipe_reports(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "poetry_zh"
    folder.mkdir(parents=True)
    draw = random.Random(1)
    poems = [
        {"paragraphs": ["".join(draw.choices("春江潮水連海平", k=5)) + "。" for _ in range(4)]}
        for _ in range(60)
    ]
    (folder / "poet.tang.0.json").write_text(json.dumps(poems), encoding="utf-8")
    script = [sys.executable, str(BENCHMARKS / "masked_lm.py"), "--data", str(tmp_path / "data")]
    folders = ["--work", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    done = subprocess.run(
        [*script, *folders, "--steps", "2", "masked_tang_wwm"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results" / "masked_tang_wwm.json").read_text())
    assert (result["num_texts"], result["num_held_out_texts"]) == (54, 6)
    for run in result["runs"]:
        metrics = json.loads(
            (tmp_path / "runs" / "masked_tang_wwm" / f"{run['share']:g}" / "metrics.json")
            .read_text()
        )  # fmt: skip
        assert run["accuracy"] == pytest.approx(metrics["eval_accuracy"], abs=1e-3)
        assert run["num_steps"] == 2
        assert run["num_hidden_words"] < run["num_hidden"]


@pytest.mark.slow
def test_the_benchmark_of_spelling_runs_from_every_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_pairs(data, [(f"今夭很好{one * 2}", f"今天很好{one * 2}") for one in "甲乙丙丁戊己庚辛"])
    write_modern_chinese(data, "今天天气真好，我们一起出去玩吧。" * 40)
    draw = random.Random(1)
    headlines = ("".join(draw.choices("今天气真好我们一起出去玩吧", k=80)) for _ in range(200))
    with (data / "tnews" / "train.tsv").open("a", encoding="utf-8") as file:
        file.writelines(f"{headline}\t3\n" for headline in headlines)
    script = [sys.executable, str(BENCHMARKS / "spelling.py"), "--data", str(data)]
    folders = ["--work", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    done = subprocess.run(
        [*script, *folders, "--steps", "2", "--epochs", "40"],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results" / "spelling_sighan.json").read_text())
    assert set(result["starts"]) == {"none", "mlm", "spell"}
    assert result["num_pairs"] + result["num_held_out_pairs"] == 8
    assert {one["num_steps"] for one in result["pretraining"].values()} == {2}
    for found in result["starts"].values():
        # The same character is wrong at the same place in every sentence.
        assert found["after"]["sentence_correction_recall"] == 1
