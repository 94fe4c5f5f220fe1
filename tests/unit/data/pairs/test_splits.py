"""No source stands on both sides of a split, and what was left out is counted."""

import copy

import pytest
from tokenizers import normalizers

from sft_kit.data.pairs.splits import load_pairs
from sft_kit.data.pairs.tokenization import to_pair_dataset, tokenize_pairs
from sft_kit.errors import DataError, FormatError
from sft_kit.settings import PairDataSettings
from sft_kit.training.row_numbers import name_rows


def pair(source, target="t"):
    return {"source": source, "target": target}


def plain(text):
    return " ".join(text.casefold().split())


@pytest.mark.parametrize("seed", range(4))
def test_equal_sources_stay_on_one_side_whatever_their_case_blanks_and_targets(write, seed):
    rows = [
        pair(spelling, f"target {number} {place}")
        for number in range(20)
        for place, spelling in enumerate((f"Text {number}", f" text  {number}", f"TEXT {number}"))
    ]
    settings = PairDataSettings(write(rows), eval_fraction=0.25, split_seed=seed)
    splits = load_pairs(settings)
    train, held_out = ({plain(row.source) for row in side} for side in (splits.train, splits.eval))
    assert not train & held_out
    assert (len(train), len(held_out)) == (15, 5)
    assert (len(splits.train), len(splits.eval)) == (45, 15)
    lines = [row.where.line for row in splits.train]
    assert lines == sorted(lines)
    assert load_pairs(settings) == splits
    others = load_pairs(PairDataSettings(settings.path, eval_fraction=0.25, split_seed=seed + 9))
    assert others.eval != splits.eval


def test_sources_of_the_evaluation_file_are_left_out_of_training(write):
    train = write([pair("one"), pair("two", "a"), pair("TWO ", "b"), pair("three")])
    held_out = write([pair("Two", "c"), pair("four")], "eval.jsonl")
    splits = load_pairs(PairDataSettings(train, eval_path=held_out, eval_fraction=0))
    assert [row.source for row in splits.train] == ["one", "three"]
    assert [row.source for row in splits.eval] == ["Two", "four"]
    assert any("2 training rows have a source that is held out" in note for note in splits.notes())
    about = splits.describe()
    assert (about["num_train_rows"], about["num_eval_rows"], about["num_overlaps"]) == (2, 2, 2)
    assert about["fingerprint"] != about["eval_fingerprint"] != ""
    with pytest.raises(FormatError, match="nothing is left to train on"):
        load_pairs(PairDataSettings(train, eval_path=train, eval_fraction=0))


def test_a_single_source_can_not_be_held_out(write):
    path = write([pair("one", "a"), pair(" ONE", "b")])
    with pytest.raises(DataError, match=r"found one source only.*train\.eval_strategy=no"):
        load_pairs(PairDataSettings(path, eval_fraction=0.1))
    notes = load_pairs(PairDataSettings(path, eval_fraction=0)).notes()
    assert sum("nothing is held out" in note for note in notes) == 1
    two = write([pair("one"), pair("two")])
    notes = load_pairs(PairDataSettings(two, eval_fraction=0.1)).notes()
    assert not any("nothing is held out" in note for note in notes)


def test_a_checkpoint_is_no_file_of_pairs(tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"found a checkpoint \(adapter_config\.json"):
        load_pairs(PairDataSettings(str(tmp_path)))


def test_repeated_pairs_are_counted_and_two_targets_of_one_source_are_not(write):
    rows = [pair("one", "a"), pair("One", "A "), pair("one", "b"), pair("two", "a")]
    splits = load_pairs(PairDataSettings(write(rows), eval_fraction=0))
    assert len(splits.train) == 4
    assert splits.report.num_duplicates == 1
    assert "data: 1 training pairs repeat an earlier one" in splits.notes()


def test_only_the_first_rows_are_used_where_a_number_is_given(write):
    path = write([pair(f"text {number}") for number in range(9)])
    splits = load_pairs(PairDataSettings(path, num_rows=4, eval_fraction=0))
    assert [row.where.line for row in splits.train] == [1, 2, 3, 4]
    assert splits.report.num_rows == 4


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match="found no file"):
        load_pairs(PairDataSettings(str(tmp_path / "none.jsonl")))


def test_the_embedded_questions_and_answers_are_pairs():
    from pathlib import Path

    path = Path(__file__).parents[4] / "data" / "instructions.jsonl"
    splits = load_pairs(PairDataSettings(str(path), eval_fraction=0.1))
    assert "alpaca" in splits.report.format
    assert len(splits.train) + len(splits.eval) == splits.report.num_rows > 500


SPELLED = {"plainly": ("</s>", False), "in wide characters": ("＜/s＞", True)}


@pytest.mark.parametrize("kind", SPELLED)
def test_pairs_in_which_the_tokenizer_reads_a_special_token_are_bad_rows(write, t5_tokenizer, kind):
    spelled, is_normalised = SPELLED[kind]
    tokenizer = copy.deepcopy(t5_tokenizer)
    if is_normalised:
        tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    rows = [pair(f"a cat on mat {number}", "a dog") for number in range(6)]
    rows[1] = pair("a cat", f"a {spelled} dog")
    rows[4] = pair(f"{spelled} cat", "a dog")
    path = write(rows)
    settings = PairDataSettings(path, on_bad_row="skip", eval_fraction=0.0)
    with pytest.raises(DataError, match="can't be read as text"):
        tokenize_pairs(load_pairs(settings).train, tokenizer, settings)
    splits = load_pairs(settings, tokenizer)
    assert [one.where.line for one in splits.train] == [1, 3, 4, 6]
    assert splits.report.num_bad_rows == 2
    assert "data: 2 bad rows were skipped" in splits.notes()
    assert len(tokenize_pairs(splits.train, tokenizer, settings)) == 4
    with pytest.raises(FormatError, match="2 of 6 rows") as caught:
        load_pairs(PairDataSettings(path), tokenizer)
    assert {problem.where for problem in caught.value.problems} == {f"{path}:2", f"{path}:5"}


def test_characters_that_are_read_one_by_one_are_no_bad_row(write, bart_tokenizer):
    path = write([pair("the </s> mat", "a cat"), pair("a dog", "the mat")])
    splits = load_pairs(PairDataSettings(path, eval_fraction=0.0), bart_tokenizer)
    assert len(splits.train) == 2


def test_a_pair_that_was_tokenized_still_knows_its_place(write, bart_tokenizer):
    path = write([pair("a cat", "a dog"), pair("the mat", ""), pair("the dog", "a mat")])
    settings = PairDataSettings(path, on_bad_row="skip", eval_fraction=0.0)
    rows = to_pair_dataset(tokenize_pairs(load_pairs(settings).train, bart_tokenizer, settings))
    assert name_rows(rows, [1, 0]) == [f"row 1 ({path}:3)", f"row 0 ({path}:1)"]
    assert len(rows) == len(list(rows)) == 2
