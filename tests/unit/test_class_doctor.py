"""`sft-kit inspect` of a classification recipe: the whole report, its exit code, its refusals."""

import sys

import pytest

from sft_kit.cli import main

RECIPE = """\
from dataclasses import dataclass
from transformers import TrainingArguments
from sft_kit.settings import ClassifySettings, LabelledDataSettings, ModelSettings

@dataclass
class Settings:
    model: ModelSettings
    data: LabelledDataSettings
    classify: ClassifySettings
    train: TrainingArguments
"""
YAML = """\
model:
  checkpoint: {checkpoint}
data:
  path: rows.csv
  eval_fraction: 0.25
  max_length: 24
classify:
  class_weights: balanced
train:
  eval_strategy: "no"
"""
GOOD = ["The fox is well.", "I am well today.", "Water is fine.", "Fine weather <b>here</b>."]
BAD = ["The dog is ill.", "I am ill today.", "Water is foul.", "Foul weather."]


@pytest.fixture
def recipe(gpt2_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (gpt2_checkpoint / "model.safetensors").unlink()  # no weights are needed
    path = tmp_path / "classify_tiny.py"
    path.write_text(RECIPE, encoding="utf-8")
    yaml = path.with_suffix(".yaml")
    yaml.write_text(YAML.format(checkpoint=gpt2_checkpoint), encoding="utf-8")
    write("rows.csv", [*((text, "good") for text in GOOD), *((text, "bad") for text in BAD)])
    return yaml


def write(name, rows):
    lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
    with open(name, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the console script's function; return exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sft-kit", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        return caught.value.code or 0, output.out, output.err

    return call


def line_with(text, out):
    lines = [" ".join(line.split()) for line in out.splitlines()]
    (line,) = [line for line in lines if line.startswith(text)]
    return line


def test_a_good_file_is_shown_and_accepted(call, recipe, tmp_path):
    code, out, err = call("inspect", recipe, "--examples", "3", "--html", "page.html")
    assert (code, err) == (0, "")
    assert line_with("rows read", out) == "rows read 8"
    assert line_with("to train on", out) == "to train on / held out 6 / 2"
    assert line_with("0 bad", out) == "0 bad 3 (50.0%) 1 (50.0%)"
    assert line_with("accuracy", out) == "accuracy 0.5000 0.5000"
    assert line_with("macro F1", out) == "macro F1 0.3333 0.3333"
    assert out.count(" tokens") >= 3
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "macro F1" in page
    assert "<b>here" not in page


def test_a_page_that_cannot_be_written_is_refused_before_the_data_is_read(call, recipe, tmp_path):
    for page in (tmp_path, tmp_path / "absent" / "page.html"):
        code, out, err = call("inspect", recipe, "--html", page)
        assert (code, out) == (2, "")
        assert "--html FILE" in err


def test_a_class_with_hardly_any_rows_is_marked_and_told(call, recipe, tmp_path):
    write("rows.csv", [*((text, "good") for text in GOOD), ("one", "bad"), ("two", "bad")])
    code, out, err = call("inspect", recipe, "data.eval_fraction=0", "--html", "page.html")
    assert code == 0, err
    assert line_with("0 bad", out).startswith("0 bad ! 2 ")
    assert "1 good ! " not in out
    assert "! class 'bad' has 2 training rows (lines 6, 7)" in out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "bad !" in page
    assert "good !" not in page


def test_overrides_and_the_number_of_examples_are_obeyed(call, recipe):
    code, out, _ = call("inspect", recipe, "data.eval_fraction=0", "--examples", "0")
    assert code == 0
    assert line_with("to train on", out) == "to train on / held out 8 / 0"
    assert "examples" not in out


def test_token_counts_are_the_tokenizers(call, recipe, tokenizer):
    _, out, _ = call("inspect", recipe, "data.eval_fraction=0", "--examples", "8")
    for text in [*GOOD, *BAD]:
        num_tokens = min(len(tokenizer(text)["input_ids"]), 24)
        (index,) = [n for n, line in enumerate(out.splitlines()) if line.strip() == text]
        assert f" {num_tokens} tokens" in out.splitlines()[index - 1]
    num_cut = sum(len(tokenizer(text)["input_ids"]) > 5 for text in [*GOOD, *BAD])
    _, out, _ = call("inspect", recipe, "data.eval_fraction=0", "data.max_length=5")
    assert f"{num_cut} of 8" in line_with("cut at max_length", out)


def test_everything_that_training_would_refuse_is_told_after_the_report(call, recipe):
    rows = [(text, "good") for text in GOOD] + [("no label", ""), ("THE FOX is  well.", "good")]
    write("rows.csv", [*rows, ("one more", "bad")])
    write("held.csv", [("The  fox is well.", "bad"), ("new", "odd")])
    code, out, err = call(
        "inspect", recipe, "data.eval_path=held.csv", "data.eval_fraction=0", "--html", "page.html"
    )
    assert code == 1
    assert "Traceback" not in err
    assert "rows.csv:6: label:" in err
    assert "found the label 'odd' in 1 held-out row (line 3)" in err
    assert line_with("held-out rows also", out).endswith(
        "1 of 2 (1 text; 1 row with another label) (line 2) !"
    )
    assert line_with("- odd", out) == "- odd ! 0 (0.0%) 1 (50.0%)"
    assert "written: page.html" in out


def test_held_out_texts_are_checked_as_training_texts_are(call, recipe):
    write("held.csv", [("the fox " * 40, "bad"), ("the fox", "good")])
    code, out, err = call("inspect", recipe, "data.eval_path=held.csv", "data.eval_fraction=0")
    assert code == 0, err
    assert "1 of 10 texts are cut at 24 tokens" in out


def test_a_refusal_alone_keeps_its_own_words(call, recipe):
    write("rows.csv", [(text, "good") for text in GOOD])
    code, _, err = call("inspect", recipe)
    assert code == 1
    assert "found the label 'good' only, accepts two classes or more" in err
    write("rows.csv", [])
    code, _, err = call("inspect", recipe)
    assert code == 1
    assert err.startswith("error: rows.csv")


def test_check_and_schema_know_a_classification_recipe(call, recipe):
    code, out, _ = call("check", recipe, "data.text_pair=[2, 3]")
    assert (code, "ok" in out) == (0, True)
    code, out, _ = call("schema", recipe.with_suffix(".py"), "--out", "-")
    assert code == 0
    assert '"LabelledDataSettings"' in out
