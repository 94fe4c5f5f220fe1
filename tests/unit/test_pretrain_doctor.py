"""`sft-kit inspect` of pretraining recipes: the whole report, its exit code, its refusals."""

import json
import re
import sys
from pathlib import Path

import pytest
from transformers import BertTokenizer

from sft_kit.cli import main
from sft_kit.data.corpus.datasets import make_datasets
from sft_kit.data.corpus.texts import load_texts
from sft_kit.data.corpus.vocabulary import vocabulary_of
from sft_kit.data.corruption.choose import corruption_of, objective_of
from sft_kit.models.pretraining import load_pretraining_tokenizer
from sft_kit.settings import MaskedSettings, PretrainModelSettings, TextDataSettings

RECIPE = """\
from dataclasses import dataclass
from transformers import TrainingArguments
from sft_kit.settings import PretrainModelSettings, TextDataSettings, {objective}

@dataclass
class Settings:
    model: PretrainModelSettings
    data: TextDataSettings
    pretrain: {objective}
    train: TrainingArguments
"""
YAML = """\
model:
  tokenizer: {tokenizer}
  architecture: bert
data:
  path: texts.jsonl
  eval_fraction: 0.25
  max_length: 24
pretrain: {{}}
train:
  eval_strategy: "no"
  remove_unused_columns: false
  accelerator_config:
    dispatch_batches: false
"""
PAIRS_RECIPE = """\
from dataclasses import dataclass
from transformers import TrainingArguments
from sft_kit.settings import PairDataSettings, PretrainModelSettings

@dataclass
class Settings:
    model: PretrainModelSettings
    data: PairDataSettings
    train: TrainingArguments
"""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"<extra_id_{n}>" for n in range(8))]
SENTENCES = ["今天天气真好。", "我们一起出去玩吧。", "他说大家都走了。", "天气好，我们走。"]
TEXTS = ["".join(SENTENCES[number % 4 :]) + "好" * number for number in range(20)]


@pytest.fixture(scope="session")
def characters(tmp_path_factory) -> Path:
    """A tokenizer of hanzi with every special token that an objective may need."""
    tokens = [*SPECIAL, *sorted({character for text in TEXTS for character in text})]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = BertTokenizer(
        vocab=vocab, bos_token="[CLS]", eos_token="[SEP]", additional_special_tokens=SPECIAL[5:]
    )
    folder = tmp_path_factory.mktemp("characters")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_recipe(characters, tmp_path, monkeypatch):
    """Writes a recipe of an objective, its YAML and its texts; returns the YAML's path."""
    monkeypatch.chdir(tmp_path)
    write_texts(TEXTS)

    def make(objective: str = "MaskedSettings", tokenizer: Path = characters) -> Path:
        path = tmp_path / "pretrain_tiny.py"
        path.write_text(RECIPE.format(objective=objective), encoding="utf-8")
        yaml = path.with_suffix(".yaml")
        yaml.write_text(YAML.format(tokenizer=tokenizer), encoding="utf-8")
        return yaml

    return make


def write_texts(texts, name="texts.jsonl"):
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the console script's function; return exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sft-kit", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "250")
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        return caught.value.code or 0, output.out, output.err

    return call


def figures(out):
    """Caption -> values, from the tables."""
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    return {line[0]: line[1:] for line in lines if len(line) > 1}


def test_the_figures_are_those_of_the_rows_that_training_sees(call, make_recipe, characters):
    code, out, err = call("inspect", make_recipe(), "train.seed=7", "--html", "page.html")
    assert (code, err) == (0, "")
    shown = figures(out)
    data, pretrain = TextDataSettings("texts.jsonl", eval_fraction=0.25, max_length=24), (
        MaskedSettings()
    )  # fmt: skip
    tokenizer = load_pretraining_tokenizer(
        PretrainModelSettings(tokenizer=str(characters), architecture="bert")
    )
    objective = objective_of(pretrain, data.max_length)
    vocabulary = vocabulary_of(tokenizer, objective.needs)
    texts = load_texts(data)
    corrupt = corruption_of(pretrain, vocabulary, tokenizer)
    rows = make_datasets(texts, tokenizer, vocabulary, data, objective, corrupt, 7)
    learnt = [
        sum(int((one[index]["labels"] != -100).sum()) for index in range(len(one)))
        for one in (rows.train, rows.eval)
    ]
    assert learnt[0] > 20
    told = [int(value.partition(" ")[0]) for value in shown["labels learnt, of all tokens"]]
    assert told == learnt
    assert shown["examples"] == [str(len(rows.train)), str(len(rows.eval))]
    assert shown["texts"] == [str(len(texts.train)), str(len(texts.eval))]
    assert shown["length: min / median / p90 / max"][0].endswith("24")
    page = Path("page.html").read_text(encoding="utf-8")
    assert all(f">{value}</td>" in page for value in shown["labels learnt, of all tokens"])


@pytest.mark.parametrize(
    ("objective", "options", "mark"),
    [
        ("CausalSettings", [], r"⟦.{20,}⟧"),
        ("CausalSettings", ["pretrain.document_mask=true"], r"documents? apart"),
        ("MaskedSettings", ["pretrain.objective=wwm"], r"\[MASK\]->.⟧"),
        ("MaskedSettings", ["pretrain.objective=spell"], r"⟦.->.⟧"),
        ("MaskedSettings", ["pretrain.next_sentence=true"], r"the second part follows the first"),
        ("PrefixSettings", ["pretrain.objective=bidirectional"], r"\[MASK\]->.⟧"),
        ("PrefixSettings", ["pretrain.objective=causal"], r"left to right"),
        ("PrefixSettings", ["pretrain.objective=prefix"], r"\[SEP\]┃⟦"),
        ("PrefixSettings", ["pretrain.objective=infill"], r"┃\[CLS\]⟦.*->\[SEP\]⟧"),
        ("SpanSettings", [], r"written +⟦<extra_id_0>"),
        ("DenoiseSettings", [], r"written +⟦\[CLS\]"),
    ],
)
def test_every_objective_shows_examples_with_what_is_learnt(
    call, make_recipe, objective, options, mark
):
    code, out, err = call("inspect", make_recipe(objective), *options, "--examples", "8")
    assert (code, err) == (0, "")
    examples = out.partition("examples ──")[2]
    assert len(re.findall(r"^\d\. ", examples, flags=re.MULTILINE)) == 8
    assert re.search(mark, examples)


def test_rows_that_training_would_refuse_end_with_exit_code_1(call, make_recipe):
    with open("texts.jsonl", "a", encoding="utf-8") as file:
        file.write('{"text": 7}\n')
    code, out, err = call("inspect", make_recipe())
    assert code == 1
    assert "texts.jsonl:21" in err
    assert figures(out)["texts"] == ["15", "5"]  # what is good is shown all the same
    code, out, err = call("inspect", make_recipe(), "data.on_bad_row=skip")
    assert (code, err) == (0, "")


def test_a_tokenizer_that_lacks_a_token_is_refused(call, make_recipe, trained_tokenizer, tmp_path):
    trained_tokenizer.save_pretrained(tmp_path / "no-mask")
    code, _, err = call("inspect", make_recipe(tokenizer=tmp_path / "no-mask"))
    assert code == 1
    assert "found no mask token" in err
    assert "sft-kit tokenizer train" in err


def test_text_that_the_tokenizer_does_not_know_is_told(call, make_recipe):
    recipe = make_recipe()
    write_texts(["龙飞凤舞" * 2, *TEXTS])
    code, out, _ = call("inspect", recipe, "data.eval_fraction=0")
    assert code == 0
    assert figures(out)["unknown tokens"][0].startswith("8 (1.")
    assert "! 1." in out
    assert "unknown to the tokenizer" in out
    assert "nothing is held out" in out


def test_of_a_stream_the_first_texts_are_shown(call, make_recipe):
    write_texts(TEXTS[:4], "held_out.jsonl")
    stream = ["data.streaming=true", "data.eval_path=held_out.jsonl", "train.max_steps=5"]
    code, out, err = call("inspect", make_recipe(), *stream, "data.eval_fraction=0.0")
    assert (code, err) == (0, "")
    assert figures(out)["texts"] == ["20", "4"]
    assert "a stream: these figures are of its first 20 texts" in out


def test_pairs_show_what_is_read_and_what_is_written(call, characters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "seq2seq_tiny.py"
    recipe.write_text(PAIRS_RECIPE, encoding="utf-8")
    yaml = recipe.with_suffix(".yaml")
    text = YAML.format(tokenizer=characters).replace("texts.jsonl", "pairs.csv")
    yaml.write_text(text.replace("  max_length: 24\npretrain: {}\n", ""), encoding="utf-8")
    rows = [f"{text},好{'天' * number}" for number, text in enumerate(TEXTS[:8])]
    Path("pairs.csv").write_text("\n".join(["source,target", *rows]) + "\n", encoding="utf-8")
    code, out, err = call("inspect", yaml, "--html", "page.html")
    assert (code, err) == (0, "")
    assert figures(out)["examples"] == ["6", "2"]
    assert re.search(r"今 ?天.*⟦.*好.*\[SEP\]⟧", out)
    assert Path("page.html").is_file()
    with open("pairs.csv", "a", encoding="utf-8") as file:
        file.write(",好\n")
    code, out, err = call("inspect", yaml)
    assert code == 1
    assert "pairs.csv:10" in err
    assert figures(out)["examples"] == ["6", "2"]
