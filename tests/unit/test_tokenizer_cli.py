"""`sft-kit tokenizer train`, called as the user calls it."""

import json
import sys

import pytest
from transformers import AutoTokenizer

from sft_kit.cli import main, tokenizer_commands
from sft_kit.models.new_tokenizer import train_tokenizer
from sft_kit.models.tokenizer_options import TokenizerOptions

LINES = ("The cat sat on the mat.", "The dog sat on the log.", "猫坐在垫子上。", "狗坐在木头上。")
DOCUMENTS = ("\n".join(LINES[:2]), "\n".join(LINES[2:]))


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `sft-kit tokenizer train` with some words; returns exit code, stdout and stderr."""

    def run(*words):
        command = ["sft-kit", "tokenizer", "train", *map(str, words)]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return run


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(DOCUMENTS) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5", "bart", "characters"])
def test_it_writes_the_tokenizer_of_the_texts(family, call, text_file, tmp_path):
    output = tmp_path / "made" / family
    code, shown, errors = call(text_file, "--family", family, "--output", output)
    assert (code, errors) == (0, "")
    loaded = AutoTokenizer.from_pretrained(output)
    expected = train_tokenizer(DOCUMENTS, TokenizerOptions(family))
    assert loaded.get_vocab() == expected.get_vocab()
    assert loaded(LINES[0]).data == expected(LINES[0]).data
    assert f"tokens: {len(loaded):,}, {len(loaded.all_special_ids)} of them special" in shown
    assert sorted(path.name for path in output.parent.iterdir()) == [family]


def test_it_reports_what_can_be_counted_by_hand(call, tmp_path):
    file = tmp_path / "few.jsonl"
    rows = [{"body": "aab"}, {"body": "abc d"}]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ("--family", "characters", "--min-count", 2, "--output", tmp_path / "out")
    code, shown, _ = call(file, *words)
    assert code == 0
    # a, b and the newline stay; c, the blank and d are unknown: 3 of 8 characters.
    assert shown.splitlines() == [
        "texts: 2 of 8 characters",
        "tokens: 9, 6 of them special",
        "tokens per character: 1.000",
        "unknown tokens: 37.5000%",
        "example: a|a|b",
        f"tokenizer: {tmp_path / 'out'}",
    ]


def test_figures_of_long_texts_are_those_of_a_sample(call, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_commands, "MAX_MEASURED", 10)
    words = ("--family", "characters", "--output", tmp_path / "out")
    _, shown, _ = call(text_file, *words)
    assert "tokens per character: 1.000 (of 10 characters)" in shown


def test_special_tokens_that_the_texts_spell_out_are_told(call, tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("an <unk> of <unk> and </s>, not <s>", encoding="utf-8")
    words = ("--family", "t5", "--output", tmp_path / "out")
    code, _, errors = call(file, *words)
    assert code == 0
    assert errors.splitlines() == [
        "note: the texts hold </s> 1 time; it is read as the special token",
        "note: the texts hold <unk> 2 times; it is read as the special token",
    ]


def test_options_reach_the_tokenizer(call, text_file, tmp_path):
    options = ("--vocab-size", 45, "--max-length", 77, "--lowercase", "--min-count", 1)
    code, _, _ = call(text_file, "--family", "bert", "--output", tmp_path / "out", *options)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert code == 0
    assert (len(loaded), loaded.model_max_length) == (45, 77)
    assert loaded.tokenize("THE") == loaded.tokenize("the")
    words = ("--family", "t5", "--num-sentinels", 3, "--max-token-length", 2)
    assert call(text_file, *words, "--output", tmp_path / "t5")[0] == 0
    loaded = AutoTokenizer.from_pretrained(tmp_path / "t5")
    assert loaded.convert_tokens_to_ids("<extra_id_2>") == len(loaded) - 3
    assert {len(token) for token in loaded.get_vocab() if "<" not in token} == {1, 2}


def test_several_sources_are_read_as_one_and_the_unit_is_chosen(call, text_file, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("number,story\n1,zebra\n2,quagga\n", encoding="utf-8")
    words = ("--family", "gpt2", "--text", "story", "--output", tmp_path / "out")
    code, _, errors = call(text_file, table, *words)
    assert code == 2
    assert f"{text_file}: --text: found no field 'story', accepts 'text'" in errors
    code, shown, _ = call(table, *words)
    assert code == 0
    assert "texts: 2 of 11 characters" in shown
    words = ("--family", "characters", "--unit", "line", "--output", tmp_path / "other")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.txt").write_text("xyz", encoding="utf-8")
    code, shown, _ = call(text_file, folder, *words)
    assert code == 0
    num_characters = sum(map(len, LINES)) + 3
    assert f"texts: 5 of {num_characters} characters" in shown
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "other").get_vocab()
    assert {"x", "猫", "\n"} <= set(vocabulary)


def test_an_earlier_tokenizer_is_replaced_only_when_asked(call, text_file, tmp_path):
    output = tmp_path / "out"
    words = (text_file, "--output", output, "--family")
    assert call(*words, "gpt2")[0] == 0
    before = (output / "tokenizer.json").read_bytes()
    code, _, errors = call(*words, "t5")
    assert code == 2
    assert f"--output: {output} holds a tokenizer already (add --overwrite to replace it)" in errors
    assert (output / "tokenizer.json").read_bytes() == before
    assert call(*words, "t5", "--overwrite")[0] == 0
    assert type(AutoTokenizer.from_pretrained(output)).__name__ == "T5Tokenizer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts.txt"]


def test_nothing_but_a_tokenizer_is_ever_replaced(call, text_file, tmp_path):
    words = (text_file, "--family", "gpt2", "--overwrite", "--output")
    code, _, errors = call(*words, tmp_path)
    assert code == 2
    assert "holds other files than a tokenizer's: texts.txt" in errors
    code, _, errors = call(*words, text_file)
    assert code == 2
    assert "is a file" in errors
    assert text_file.read_text(encoding="utf-8").startswith(LINES[0])


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (None, (), "texts.txt: found no file or folder of this name"),
        ("", (), "texts.txt: the file is empty"),
        (" \n\n", (), "found no rows"),
        ("abc", ("--vocab-size", 256), "--vocab-size: found 256, accepts 257 or more: 256 bytes"),
        ("abab abab", ("--vocab-size", 400), "the texts give only"),
        ("abc", ("--lowercase",), "--lowercase: is not for gpt2, but for bert, characters"),
        ("a long line\x00b", (), "found a NUL byte"),
        ('{"story": "a"}', (), "(name the field of the text with --text)"),
        ('{"text": "\\ud800"}', (), "1: "),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(content, words, message, call, tmp_path):
    file = tmp_path / "texts.txt"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    code, _, errors = call(file, "--family", "gpt2", "--output", tmp_path / "out", *words)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_the_folder_it_stands_in_can_be_written_if_empty(call, text_file, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert call(text_file, "--family", "gpt2", "--output", ".")[0] == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "here")) > 257


def test_a_folder_that_cannot_be_made_is_an_error_before_texts_are_read(call, text_file):
    code, out, errors = call(text_file, "--family", "gpt2", "--output", text_file / "out")
    assert (code, out) == (2, "")
    assert "the tokenizer can't be written" in errors
    assert f"--output: {text_file} does not allow it: Not a directory" in errors
    assert "name another folder" in errors
