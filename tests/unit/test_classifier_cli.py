"""`sft-kit evaluate` and `sft-kit classify` on a small finished run, called as the user calls them.

The run is a random BERT with emphatic weights. What it says about a text is asked of plain
transformers, one text at a time; figures are asked of scikit-learn.
"""

import csv
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
)

import sft_kit.artifacts.classifier
from sft_kit.cli import main
from sft_kit.data.labelled.splits import load_labelled
from sft_kit.run_record import weight_digests, write_record
from sft_kit.settings import LabelledDataSettings

NAMES = ("bad", "good", "中性")
WORDS = ("the", "film", "was", "really", "fun", "dull", "long", "short", "plot", "cast", "=", "-")
REPORT = {"evaluation.json", "evaluation.md", "confusion.png"}


def sentences(count, seed):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, size=draw.integers(4, 12))) for _ in range(count)]


def write_table(path, rows, header=("text", "label"), **options):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, **options)
        writer.writerows([header, *rows] if header else rows)
    return path


def labelled(count, seed):
    draw = np.random.default_rng(seed + 100)
    texts = list(dict.fromkeys(sentences(count * 2, seed)))[:count]
    return [(text, NAMES[draw.integers(0, 3)]) for text in texts]


def make_tokenizer(folder):
    vocabulary = folder / "vocab.txt"
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *WORDS, *letters, *(f"##{one}" for one in letters)]
    vocabulary.write_text("\n".join(tokens), encoding="utf-8")
    return BertTokenizerFast(vocab=str(vocabulary), model_max_length=32)


def make_model(num_tokens, *, multi_label):
    config = BertConfig(
        vocab_size=num_tokens, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
        problem_type="multi_label_classification" if multi_label else "single_label_classification",
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    torch.manual_seed(7)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    torch.nn.init.normal_(model.classifier.weight)
    return model


@pytest.fixture
def train_rows():
    return labelled(40, seed=1)


@pytest.fixture
def make_run(tmp_path, train_rows):
    """Makes the folder of a finished run that was trained on `train.csv`."""

    def build(*, multi_label=False, rows=train_rows, header=("text", "label"), **data):
        folder = tmp_path / "run"
        folder.mkdir()
        path = str(write_table(tmp_path / "train.csv", rows, header))
        defaults = {"path": path, "eval_fraction": 0.25, "multi_label": multi_label}
        settings = LabelledDataSettings(**(defaults | data))
        tokenizer = make_tokenizer(folder)
        make_model(len(tokenizer), multi_label=multi_label).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        described = load_labelled(settings).describe()
        model = {"checkpoint": "tiny-bert", "dtype": "float32"}
        write_record(
            folder,
            {
                "status": "finished",
                "recipe": "classify_x.py",
                "settings": {"model": model, "adapter": None, "data": asdict(settings)},
                "labels": {"names": list(NAMES), "multi_label": multi_label},
                "data": described,
                "weights": weight_digests(folder),
            },
        )
        return folder

    return build


@pytest.fixture
def run(make_run):
    return make_run()


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the console script's function; return exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sft-kit", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return caught.value.code or 0, output.out, output.err

    return call


def plain_logits(run, texts, pairs=None):
    """Logits as plain transformers gives them, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(run)
    model = AutoModelForSequenceClassification.from_pretrained(run).eval()
    found = []
    for index, text in enumerate(texts):
        pair = None if pairs is None else pairs[index]
        inputs = tokenizer(text, pair, return_tensors="pt", truncation=True, max_length=32)
        with torch.no_grad():
            found.append(model(**inputs).logits[0].numpy())
    return np.stack(found).astype(np.float64)


def plain_answers(run, texts):
    return [NAMES[index] for index in plain_logits(run, texts).argmax(axis=1)]


def read_lines(path):
    text = Path(path).read_text(encoding="utf-8-sig")
    return [line for line in text.split("\n") if line.strip()]


def evaluation(folder):
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


# --- evaluate ------------------------------------------------------------------------------------


def test_evaluate_gives_scikit_learns_figures_of_plain_transformers_answers(call, run, tmp_path):
    rows = labelled(60, seed=2)
    file = write_table(tmp_path / "dev.csv", rows)
    code, out, err = call("evaluate", run, "--data", file, "--batch-size", "7")
    assert code == 0, err
    texts, labels = zip(*rows, strict=True)
    answers = plain_answers(run, texts)
    assert len(set(answers)) == 3, "a model that always says the same would prove nothing"
    found = evaluation(run / "evaluation" / "dev")
    accuracy, macro = accuracy_score(labels, answers), f1_score(labels, answers, average="macro")
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["macro_f1"] == pytest.approx(macro)
    assert f"{accuracy:.4f}" in out
    assert f"{macro:.4f}" in out
    assert {path.name for path in (run / "evaluation" / "dev").iterdir()} == REPORT
    for name in REPORT:
        assert str(run / "evaluation" / "dev" / name) in out


def test_evaluate_json_prints_the_file_and_nothing_else(call, run, tmp_path):
    file = write_table(tmp_path / "dev.csv", labelled(20, seed=2))
    code, out, err = call("evaluate", run, "--data", file, "--json", "--output", tmp_path / "to")
    assert code == 0, err
    assert json.loads(out) == evaluation(tmp_path / "to")
    assert json.loads(out)["label_names"] == list(NAMES)
    assert "evaluation.md" in err


def test_evaluate_tells_rows_that_were_trained_on_from_others(call, run, tmp_path, train_rows):
    trained = load_labelled(LabelledDataSettings(str(tmp_path / "train.csv"), eval_fraction=0.25))
    assert 0 < len(trained.eval) < len(train_rows)
    again = [(f"  {text.upper()} ", label) for text, label in train_rows]
    fresh = [row for row in labelled(30, seed=3) if row[0] not in {text for text, _ in train_rows}]
    file = write_table(tmp_path / "both.csv", again + fresh)
    code, out, err = call("evaluate", run, "--data", file)
    assert code == 0, err
    num_trained = len(trained.train)
    assert f"{num_trained} of {len(again) + len(fresh)} rows have a text" in err
    found = evaluation(run / "evaluation" / "both")
    assert found["num_rows"] == len(again) + len(fresh)
    unseen = {row.texts[0] for row in trained.eval}
    others = [row for row in again if row[0].strip().lower() in unseen] + fresh
    assert found["not_trained_on"]["num_rows"] == len(others)
    answers = plain_answers(run, [text for text, _ in others])
    expected = accuracy_score([label for _, label in others], answers)
    assert found["not_trained_on"]["accuracy"] == pytest.approx(expected)
    assert "rows not trained on" in out
    names = {path.name for path in (run / "evaluation" / "both").iterdir()}
    assert names == REPORT | {"confusion_not_trained_on.png"}


def test_evaluate_says_when_it_cannot_know_what_was_trained_on(call, run, tmp_path):
    file = write_table(tmp_path / "dev.csv", labelled(20, seed=2))
    train = tmp_path / "train.csv"
    train.write_text(train.read_text(encoding="utf-8") + "the plot,good\n", encoding="utf-8")
    code, _, err = call("evaluate", run, "--data", file)
    assert (code, "could not be checked" in err, "has changed" in err) == (0, True, True)
    train.unlink()
    code, _, err = call("evaluate", run, "--data", file)
    assert (code, "could not be checked" in err, "is not there" in err) == (0, True, True)
    assert evaluation(run / "evaluation" / "dev")["not_trained_on"] is None


def test_evaluate_refuses_labels_the_run_does_not_know_and_lists_both_sides(call, run, tmp_path):
    rows = [*labelled(5, seed=2), ("the film was", "awful"), ("the cast was", "awful")]
    file = write_table(tmp_path / "dev.csv", rows)
    code, out, err = call("evaluate", run, "--data", file)
    assert (code, out) == (2, "")
    assert f"{file}:7" in err
    assert "'awful' (2 rows)" in err
    assert all(repr(name) in err for name in NAMES)
    code, _, err = call("evaluate", run, "--data", file, "data.label_names={bad: bad, good: good, "
                        "中性: 中性, awful: bad}")  # fmt: skip
    assert code == 0, err
    found = evaluation(run / "evaluation" / "dev")
    assert sum(one["support"] for one in found["per_class"] if one["name"] == "bad") >= 2


def test_evaluate_reads_other_columns_when_told_and_names_what_to_set(
    call, make_run, tmp_path, train_rows
):
    run = make_run(header=("body_text", "mark"), text="body_text", label="mark")
    rows = labelled(20, seed=2)
    told = write_table(tmp_path / "told.csv", [(label, text) for text, label in rows], ("x", "y"))
    code, _, err = call("evaluate", run, "--data", told, "data.text=y", "data.label=x")
    assert code == 0, err
    known = write_table(tmp_path / "known.csv", rows, ("text", "label"))
    code, _, err = call("evaluate", run, "--data", known)
    assert (code, "data.text: found no column 'body_text'" in err, "'label'" in err) == (2, 1, 1)
    code, _, err = call("evaluate", run, "--data", known, "data.text=text", "data.label=auto")
    assert code == 0, err
    first, second = (evaluation(run / "evaluation" / name) for name in ("told", "known"))
    assert first["accuracy"] == second["accuracy"]
    assert first["confusion"] == second["confusion"]
    code, _, err = call("evaluate", run, "--data", known, "data.text=missing")
    assert (code, "'missing'" in err) == (2, True)


def test_evaluate_reads_another_file_as_it_looks_and_the_runs_own_as_the_run_did(
    call, make_run, tmp_path, train_rows
):
    own = tmp_path / "own.txt"
    own.write_bytes("".join(f"{t}|{name}\n" for t, name in train_rows).encode("utf-16-le"))
    run = make_run(path=str(own), encoding="utf-16-le", separator="|", text=1, label=2)
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    record["settings"]["data"]["header"] = False
    write_record(run, record)
    rows = labelled(20, seed=2)
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{text}@{label}\n" for text, label in rows), encoding="utf-8")
    table = write_table(tmp_path / "table.csv", rows)
    for file, num_rows in ((own, len(train_rows)), (lines, 20), (table, 20)):
        code, _, err = call("evaluate", run, "--data", file)
        assert code == 0, err
        assert evaluation(run / "evaluation" / file.stem)["num_rows"] == num_rows
    output = tmp_path / "report"
    code, _, err = call("evaluate", run, "--data", lines, "data.header=true", "--output", output)
    assert code == 0, err
    assert evaluation(output)["num_rows"] == 19
    for word in ("data.encoding=utf-16-le", "data.separator=|"):
        assert call("evaluate", run, "--data", lines, word)[0] == 2


def test_evaluate_refuses_pairs_for_single_texts_and_the_other_way_round(
    call, make_run, tmp_path, train_rows
):
    pairs = [(text, "fun", label) for text, label in labelled(20, seed=2)]
    file = write_table(tmp_path / "dev.csv", pairs, ("text", "text_pair", "label"))
    output = tmp_path / "out.csv"
    run = make_run()
    for command in (
        ("evaluate", run, "--data", file),
        ("classify", run, "--file", file, "--output", output),
    ):
        code, _, err = call(*command)
        assert (code, "found 2 texts a row, the run was trained on 1" in err) == (2, True)
        assert "data.text_pair=null" in err
        assert call(*command, "data.text_pair=null")[0] == 0
    code, _, err = call("classify", run, "--text", "fun", "--text-pair", "dull")
    assert (code, "found 2 texts a row, the run was trained on 1" in err) == (2, True)
    shutil.rmtree(run)
    rows = [(text, "plot", label) for text, label in train_rows]
    run = make_run(rows=rows, header=("text", "text_pair", "label"))
    single = write_table(tmp_path / "single.csv", labelled(20, seed=2))
    code, _, err = call("evaluate", run, "--data", single)
    assert (code, "found 1 text a row, the run was trained on 2" in err) == (2, True)
    assert "data.text_pair to the column of the second text" in err
    code, _, err = call("classify", run, "--text", "fun")
    assert (code, "found 1 text a row, the run was trained on 2" in err) == (2, True)
    assert call("evaluate", run, "--data", file)[0] == 0
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    del record["data"]["num_texts"]
    write_record(run, record)
    assert call("evaluate", run, "--data", single)[0] == 0


def test_evaluate_replaces_no_report_on_another_file_of_the_same_name(call, run, tmp_path):
    files = []
    for seed, name in ((2, "a"), (3, "b")):
        (tmp_path / name).mkdir()
        files.append(write_table(tmp_path / name / "test.csv", labelled(20 + seed, seed)))
    assert call("evaluate", run, "--data", files[0])[0] == 0
    assert call("evaluate", run, "--data", tmp_path / "b" / ".." / "a" / "test.csv")[0] == 0
    code, _, err = call("evaluate", run, "--data", files[1])
    assert (code, str(files[1]) in err, "--output DIR" in err) == (2, True, True)
    assert evaluation(run / "evaluation" / "test")["num_rows"] == 22
    assert (
        call("evaluate", run, "--data", files[1], "--output", run / "evaluation" / "test")[0] == 0
    )
    assert evaluation(run / "evaluation" / "test")["num_rows"] == 23


def test_evaluate_leaves_out_equal_texts_when_asked(call, run, tmp_path):
    rows = [("the film", "good"), ("The  film", "good"), ("the plot", "bad"), ("the plot", "good"),
            ("the cast", "bad")]  # fmt: skip
    file = write_table(tmp_path / "dev.csv", rows)
    assert call("evaluate", run, "--data", file)[0] == 0
    assert evaluation(run / "evaluation" / "dev")["num_rows"] == 5
    code, _, err = call("evaluate", run, "--data", file, "data.deduplicate=true")
    assert code == 0, err
    assert evaluation(run / "evaluation" / "dev")["num_rows"] == 2
    assert "1 row with the text of an earlier one and 2 with contradicting labels" in err


def test_evaluate_refuses_settings_that_would_have_no_effect_and_names_the_nearest(
    call, run, tmp_path
):
    file = write_table(tmp_path / "dev.csv", labelled(20, seed=2))
    code, _, err = call("evaluate", run, "--data", file, "data.eval_fraction=0.5", "data.txet=a",
                        "train.seed=1", "data.num_rows=0")  # fmt: skip
    assert code == 2
    assert "4 problems" in err
    assert "data.eval_fraction: has no effect here" in err
    assert "did you mean 'text'?" in err
    assert "train" in err
    assert "data.num_rows: found 0" in err


def test_evaluate_overwrites_reports_and_nothing_else(call, run, tmp_path):
    file = write_table(tmp_path / "dev.csv", labelled(20, seed=2))
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "confusion_not_trained_on.png").write_bytes(b"of an earlier report")
    assert call("evaluate", run, "--data", file, "--output", folder)[0] == 0
    assert {path.name for path in folder.iterdir()} == REPORT
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    before = (folder / "evaluation.json").stat().st_mtime_ns
    code, _, err = call("evaluate", run, "--data", file, "--output", folder)
    assert (code, "notes.txt" in err, "--output DIR" in err) == (2, True, True)
    assert (folder / "evaluation.json").stat().st_mtime_ns == before
    code, _, err = call("evaluate", run, "--data", file, "--output", folder / "notes.txt")
    assert (code, "is a file" in err) == (2, True)


def test_evaluate_judges_each_label_where_a_text_may_have_several(call, make_run, tmp_path):
    def several(rows, seed):
        draw = np.random.default_rng(seed)
        chosen = [[name for name in NAMES if draw.random() < 0.5] for _ in rows]
        return [(text, "|".join(names)) for (text, _), names in zip(rows, chosen, strict=True)]

    run = make_run(multi_label=True, rows=several(labelled(40, seed=1), 5), label_separator="|")
    rows = several(labelled(50, seed=2), 6)
    file = write_table(tmp_path / "dev.csv", rows)
    code, out, err = call("evaluate", run, "--data", file)
    assert code == 0, err
    true = np.array([[name in labels.split("|") for name in NAMES] for _, labels in rows])
    said = plain_logits(run, [text for text, _ in rows]) >= 0
    found = evaluation(run / "evaluation" / "dev")
    assert found["accuracy"] == pytest.approx(accuracy_score(true, said))
    assert found["micro_f1"] == pytest.approx(f1_score(true, said, average="micro"))
    assert "micro F1" in out


def test_evaluate_refuses_files_it_cannot_read(call, run, tmp_path):
    for name, content in {
        "empty.csv": "",
        "header.csv": "text,label\n",
        "blank.csv": "text,label\n ,good\n",
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        code, out, err = call("evaluate", run, "--data", tmp_path / name)
        assert (code, out) == (2, ""), name
        assert name in err
    code, _, err = call("evaluate", run, "--data", tmp_path / "absent.csv")
    assert (code, "absent.csv" in err) == (2, True)
    assert not (run / "evaluation").exists()


def test_evaluate_tells_the_inflated_figures_of_chnsenticorp_from_the_honest_ones(
    call, make_run, tmp_path, real_data
):
    folder = real_data / "chnsenticorp"
    names = {"negative": NAMES[0], "positive": NAMES[1]}
    train, dev = (str(folder / f"{name}.tsv") for name in ("train", "dev"))
    run = make_run(path=train, eval_path=dev, on_overlap="keep", label_names=names)
    code, out, err = call("evaluate", run, "--data", dev, "--output", tmp_path / "report")
    assert code == 0, err
    trained, asked = (
        ["".join(line.rpartition("\t")[0].lower().split()) for line in read_lines(path)]
        for path in (train, dev)
    )
    known = set(trained)
    num_trained = sum(text in known for text in asked)
    assert 300 < num_trained < 400
    assert f"{num_trained} of 1,200 rows have a text that the run was trained on" in err
    found = evaluation(tmp_path / "report")
    assert found["num_rows"] == len(asked) == 1_200
    assert found["not_trained_on"]["num_rows"] == 1_200 - num_trained
    assert out.count("area under the ROC curve") == 2


# --- classify ------------------------------------------------------------------------------------


def test_classify_text_prints_label_probability_and_text(call, run):
    texts = ["the film was fun", "dull plot"]
    code, out, err = call("classify", run, "--text", texts[0], "--text", texts[1])
    assert code == 0, err
    logits = plain_logits(run, texts)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = [
        f"{NAMES[row.argmax()]}\t{row.max():.4f}\t{text}"
        for row, text in zip(shares, texts, strict=True)
    ]
    assert out.splitlines() == expected
    code, out, _ = call("classify", run, "--text", texts[0], "--probabilities")
    assert f"\t{NAMES[2]}={shares[0, 2]:.4f}\t" in out


def test_classify_json_gives_every_probability_by_name(call, run):
    code, out, err = call("classify", run, "--text", "the film was fun", "--json")
    assert code == 0, err
    (found,) = json.loads(out)
    logits = plain_logits(run, ["the film was fun"])[0]
    shares = dict(zip(NAMES, np.exp(logits) / np.exp(logits).sum(), strict=True))
    assert found["probabilities"] == pytest.approx(shares, abs=1e-5)
    assert found["prediction"] == max(shares, key=shares.get)
    assert found["probability"] == pytest.approx(max(shares.values()), abs=1e-5)


def test_classify_file_answers_every_row_in_order_whatever_its_labels(call, run, tmp_path):
    texts = sentences(30, seed=4)
    with_labels = write_table(tmp_path / "a.csv", [(text, "unheard of") for text in texts])
    without = write_table(tmp_path / "b.csv", [(text,) for text in texts], ("text",))
    answers = plain_answers(run, texts)
    for file in (with_labels, without):
        output = tmp_path / f"{file.stem}-out.csv"
        code, out, err = call(
            "classify", run, "--file", file, "--output", output, "--batch-size", 4
        )
        assert code == 0, err
        assert out == f"{output}: 30 texts\n"
        with output.open(encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle))
        assert [row["prediction"] for row in rows] == answers
        assert [row["text"].removeprefix("'") for row in rows] == texts
        assert all(0 < float(row["probability"]) <= 1 for row in rows)
        assert output.read_bytes().startswith(b"\xef\xbb\xbf")


def test_classify_reads_lines_of_text_whole(call, run, tmp_path):
    file = tmp_path / "in.txt"
    texts = ["the film was fun, really", "dull plot, short"]
    file.write_text("\n".join(texts), encoding="utf-8")
    code, out, err = call("classify", run, "--file", file, "--json")
    assert code == 0, err
    assert [line["text"] for line in json.loads(out)] == texts
    file.write_text("the film, good\ndull plot, bad\n", encoding="utf-8")
    code, out, err = call("classify", run, "--file", file, "--json")
    assert code == 0, err
    assert [line["text"] for line in json.loads(out)] == ["the film", "dull plot"]


def test_classify_csv_has_no_cell_that_a_spreadsheet_would_run(call, run, tmp_path):
    texts = ['=HYPERLINK("http://x","y")', "+1+1", "- dull", "@SUM(A1)", "fun = good"]
    file = tmp_path / "in.jsonl"
    file.write_text("".join(f"{json.dumps({'text': one})}\n" for one in texts), encoding="utf-8")
    table, lines = tmp_path / "out.csv", tmp_path / "out.jsonl"
    assert call("classify", run, "--file", file, "--output", table, "--probabilities")[0] == 0
    with table.open(encoding="utf-8-sig", newline="") as handle:
        header, *rows = csv.reader(handle)
    shares = [f"probability_{name}" for name in NAMES]
    assert header == ["line", "text", "prediction", "probability", *shares]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row[1] for row in rows] == [*(f"'{text}" for text in texts[:4]), texts[4]]
    assert all(sum(map(float, row[4:])) == pytest.approx(1, abs=1e-5) for row in rows)
    assert call("classify", run, "--file", file, "--output", lines)[0] == 0
    exact = [json.loads(line)["text"] for line in lines.read_text(encoding="utf-8").splitlines()]
    assert exact == texts


def test_classify_never_writes_over_its_input_and_over_others_only_when_asked(call, run, tmp_path):
    file = write_table(tmp_path / "in.csv", [("the film",)], ("text",))
    before = file.read_bytes()
    link = tmp_path / "link.csv"
    link.symlink_to(file)
    for output in (file, run / ".." / "in.csv", link):
        code, _, err = call("classify", run, "--file", file, "--output", output, "--overwrite")
        assert (code, "found the file of --file" in err) == (2, True)
    assert file.read_bytes() == before
    other = tmp_path / "out.csv"
    other.write_text("mine", encoding="utf-8")
    code, _, err = call("classify", run, "--file", file, "--output", other)
    assert (code, "--overwrite" in err) == (2, True)
    assert other.read_text(encoding="utf-8") == "mine"
    assert call("classify", run, "--file", file, "--output", other, "--overwrite")[0] == 0
    assert "the film" in other.read_text(encoding="utf-8-sig")
    assert {path.name for path in tmp_path.iterdir()} == {
        "in.csv", "link.csv", "out.csv", "run", "train.csv"
    }  # fmt: skip


def test_classify_pairs_reads_both_texts(call, make_run, train_rows):
    draw = np.random.default_rng(9)
    rows = [(text, draw.choice(WORDS[:10]), label) for text, label in train_rows]
    run = make_run(rows=rows, header=("one", "two", "label"), text="one", text_pair="two")
    texts, pairs = ["the film was"] * 3, ["dull", "fun", "really long"]
    words = [word for both in zip(texts, pairs, strict=True)
             for word in ("--text", both[0], "--text-pair", both[1])]  # fmt: skip
    code, out, err = call("classify", run, *words, "--json")
    assert code == 0, err
    logits = plain_logits(run, texts, pairs)
    found = [list(one["probabilities"].values()) for one in json.loads(out)]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(found, shares, atol=1e-5)
    assert not np.allclose(shares[0], shares[1], atol=1e-3)
    code, _, err = call("classify", run, "--text", "the film")
    assert (code, "the run was trained on 2" in err) == (2, True)
    code, _, err = call("classify", run, *words, "--text", "one more")
    assert (code, "found 3, accepts one for each of the 4 --text" in err) == (2, True)


def test_classify_lists_all_labels_of_a_text_that_may_have_several(call, make_run, tmp_path):
    rows = [(text, [label]) for text, label in labelled(40, seed=1)]
    table = [(text, ";".join(labels)) for text, labels in rows]
    run = make_run(multi_label=True, rows=table, label_separator=";")
    texts = sentences(12, seed=8)
    file = write_table(tmp_path / "in.csv", [(text,) for text in texts], ("text",))
    code, out, err = call("classify", run, "--file", file, "--json")
    assert code == 0, err
    said = plain_logits(run, texts) >= 0
    expected = [[name for name, one in zip(NAMES, row, strict=True) if one] for row in said]
    assert len({len(names) for names in expected}) > 1
    assert [line["prediction"] for line in json.loads(out)] == expected
    output = tmp_path / "out.csv"
    assert call("classify", run, "--file", file, "--output", output)[0] == 0
    with output.open(encoding="utf-8-sig", newline="") as handle:
        assert [row["prediction"] for row in csv.DictReader(handle)] == [
            ";".join(names) for names in expected
        ]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((), "found neither"),
        (("--text", "a", "--file", "b.csv", "--json"), "found both"),
        (("--file", "b.csv"), "--output"),
        (("--text", "a", "--output", "b.csv"), "is for --file"),
        (("--text", "a", "data.text=b"), "data.text=b"),
        (("--text", "  "), "'  '"),
        (("--text", "fun", "--text-pair", ""), "--text-pair"),
        (("--text", "a\udcff"), "'a\\udcff'"),
        (("--file", "b.csv", "--output", "b.xlsx"), ".csv or .jsonl"),
        (("--file", "b.csv", "--output", "absent/b.csv"), "there is no folder absent"),
        (("--file", "b.csv", "--output", "c.csv"), "b.csv"),
        (("--file", "b.csv", "--json", "data.label_names.a=b"), "has no effect here"),
    ],
)
def test_classify_says_what_is_wrong_with_the_command(call, run, words, found):
    code, out, err = call("classify", run, *words)
    assert (code, out) == (2, "")
    assert found in err


# --- runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [("classify", "--text", "fun"), ("evaluate", "--data", "x.csv")]
)
def test_a_folder_that_is_no_classifier_run_is_refused_with_the_way_on(
    call, run, command, tmp_path
):
    name, *options = command
    code, _, err = call(name, tmp_path / "absent", *options)
    assert (code, "does not exist" in err) == (2, True)
    code, _, err = call(name, tmp_path, *options)
    assert (code, "has no run.yaml" in err) == (2, True)
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    del record["labels"]
    write_record(run, record)
    code, _, err = call(name, run, *options)
    assert (code, f"sft-kit chat {run}" in err) == (2, True)


def test_broken_weights_are_named(call, run):
    weights = run / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # NaN as float32
    weights.write_bytes(data)
    code, _, err = call("classify", run, "--text", "fun")
    assert (code, "sha256" in err) == (2, True)
    record = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    write_record(run, {**record, "weights": weight_digests(run)})
    code, _, err = call("classify", run, "--text", "fun")
    assert (code, "NaN" in err) == (2, True)


def test_ctrl_c_ends_without_a_traceback(call, run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sft_kit.artifacts.classifier, "load_classifier_run", interrupted)
    assert call("classify", run, "--text", "fun") == (130, "", "stopped by Ctrl-C\n")


def test_a_text_that_is_cut_is_mentioned(call, run):
    code, _, err = call("classify", run, "--text", " ".join(WORDS * 10))
    assert (code, "cut at 32 tokens" in err) == (0, True)


def test_a_run_that_was_moved_still_answers(call, run, tmp_path):
    expected = call("classify", run, "--text", "fun")[1]
    shutil.move(run, tmp_path / "elsewhere")
    assert call("classify", tmp_path / "elsewhere", "--text", "fun")[1] == expected


@pytest.mark.parametrize(("command", "option"), [("evaluate", "--data"), ("classify", "--file")])
def test_standard_input_and_absent_files_are_refused_by_the_option_that_named_them(
    call, run, command, option
):
    rest = ["--json"] if command == "classify" else []
    code, _, err = call(command, run, option, "-", *rest)
    assert code == 2
    assert "standard input" in err
    assert f"{option}: found '-'" in err
    code, _, err = call(command, run, option, "absent.csv", *rest)
    assert code != 0
    assert "absent.csv: found no file or folder" in err
    assert "data.path" not in err


def test_evaluate_refuses_a_folder_that_cannot_be_made_before_it_reads_anything(
    call, run, tmp_path
):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    code, _, err = call(
        "evaluate", run, "--data", "absent.csv", "--output", tmp_path / "file" / "a"
    )
    assert code == 2
    assert f"{tmp_path / 'file'} is a file" in err
    assert "absent.csv" not in err


def test_evaluate_says_which_column_it_took_for_the_label(call, run, tmp_path):
    rows = [("the film", 1, "a"), ("dull plot", 2, "b")]
    file = write_table(tmp_path / "in.csv", rows, ("text", "label", "gold"))
    code, _, err = call("evaluate", run, "--data", file)
    assert code != 0
    assert "the label from 'label'" in err
    assert "set data.label=COLUMN" in err
    assert "found '1' (1 row)" in err
