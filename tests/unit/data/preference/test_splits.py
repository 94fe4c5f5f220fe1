"""Prompts stand on one side of a split; repeats, contradictions and overlap are counted."""

import json

import pytest

from sft_kit.data.preference.splits import load_preferences
from sft_kit.errors import FormatError
from sft_kit.settings import PreferenceDataSettings


@pytest.fixture
def write(tmp_path):
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write


def pair(prompt, chosen="good", rejected="bad"):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def prompts(rows):
    return [row.prompt[-1]["content"] for row in rows]


@pytest.mark.parametrize("seed", range(5))
def test_all_comparisons_of_a_prompt_are_on_one_side_whatever_its_case_and_blanks(
    write, seed
) -> None:
    rows = [
        pair(spelling, f"good {number}", f"bad {number}")
        for number in range(20)
        for spelling in (f"Question {number}?", f"question  {number}? ", f"QUESTION {number}?")
    ]
    settings = PreferenceDataSettings(write(rows), eval_fraction=0.25, split_seed=seed)
    splits = load_preferences(settings)
    train, held_out = (
        {" ".join(text.casefold().split()) for text in prompts(side)}
        for side in (splits.train, splits.eval)
    )
    assert not train & held_out
    assert (len(train), len(held_out)) == (15, 5)
    assert (len(splits.train), len(splits.eval)) == (45, 15)
    assert load_preferences(settings) == splits


def test_the_seed_decides_what_is_held_out(write) -> None:
    path = write([pair(f"Question {number}?") for number in range(20)])
    held_out = [
        prompts(load_preferences(PreferenceDataSettings(path, split_seed=seed)).eval)
        for seed in range(4)
    ]
    assert len({tuple(texts) for texts in held_out}) > 1


def test_plain_texts_are_split_by_their_common_beginning(write) -> None:
    rows = [
        {"chosen": f"Is {number} even? Yes {word}.", "rejected": f"Is {number} even? No {word}."}
        for number in range(10)
        for word in ("one", "two", "three")
    ]
    splits = load_preferences(PreferenceDataSettings(write(rows), eval_fraction=0.3))
    numbers = [
        {row.answers[0][0]["content"].split()[1] for row in side}
        for side in (splits.train, splits.eval)
    ]
    assert not numbers[0] & numbers[1]
    assert (len(splits.train), len(splits.eval)) == (21, 9)


def test_repeated_and_contradicting_comparisons_are_counted_and_named(write) -> None:
    rows = [
        pair("Q", "a", "b"),
        pair("Q", "A ", "b"),  # the same again
        pair("q", "b", "a"),  # the other way
        pair("R", "b", "a"),  # of another prompt
        {"prompt": "Q", "chosen": "c", "rejected": "b"},
    ]
    splits = load_preferences(PreferenceDataSettings(write(rows), eval_fraction=0))
    report = splits.report
    assert report.num_duplicates == 1
    ((earlier, later),) = report.contradictions
    assert (earlier.line, later.line) == (1, 3)
    assert any("1 comparisons contradict another one (line 3)" in note for note in splits.notes())


def test_a_list_of_answers_contradicts_a_pair_in_the_other_order(write) -> None:
    rows = [
        {"prompt": "Q", "answers": ["a", "b", "c"]},
        {"prompt": "Q", "answers": ["c", "a"]},
    ]
    report = load_preferences(PreferenceDataSettings(write(rows), eval_fraction=0)).report
    assert [later.line for _, later in report.contradictions] == [2]


def test_training_does_without_the_prompts_of_the_held_out_file(write) -> None:
    path = write([pair("Q", "x", "y"), pair("R"), pair("S")])
    eval_path = write([pair("q "), pair("T")], "eval.jsonl")
    splits = load_preferences(PreferenceDataSettings(path, eval_path=eval_path, eval_fraction=0))
    assert prompts(splits.train) == ["R", "S"]
    assert prompts(splits.eval) == ["q ", "T"]
    assert splits.report.num_overlaps == 1
    assert splits.describe()["num_train_prompts"] == 2


def test_a_held_out_file_with_every_prompt_is_refused(write) -> None:
    path = write([pair("Q")])
    with pytest.raises(FormatError, match="nothing is left to train on"):
        load_preferences(PreferenceDataSettings(path, eval_path=path, eval_fraction=0))


def test_bad_rows_stop_all_at_once_or_are_skipped_and_counted(write) -> None:
    path = write([pair("Q"), pair("R", rejected=""), "{broken", pair("S"), pair("T", "a", "a")])
    with pytest.raises(FormatError, match="2 of 5 rows can't be used") as caught:
        load_preferences(PreferenceDataSettings(path))
    places = [problem.where.rpartition(":")[2] for problem in caught.value.problems]
    assert places == ["2", "3"]
    splits = load_preferences(PreferenceDataSettings(path, on_bad_row="skip", eval_fraction=0))
    assert prompts(splits.train) == ["Q", "S"]
    assert [where.line for where in splits.report.equal_rows] == [5]
    assert "2 bad rows were skipped" in " ".join(splits.notes())
    assert "1 rows had no two different answers (line 5)" in " ".join(splits.notes())


def test_rows_without_two_different_answers_are_nothing_to_learn_from(write) -> None:
    with pytest.raises(FormatError, match="two different answers"):
        load_preferences(PreferenceDataSettings(write([pair("Q", "a", "a")])))


def test_the_range_of_the_margins_of_both_sides_is_told(write) -> None:
    margins = [0.5, 0.25, 3, 0.75, 1]
    rows = [pair(f"Q{number}") | {"by": margin} for number, margin in enumerate(margins)]
    path = write(rows)
    splits = load_preferences(PreferenceDataSettings(path, margin="by", eval_fraction=0.4))
    assert len(splits.eval) == 2
    assert splits.margins == (0.25, 0.75, 3)
    assert splits.notes()[0].endswith("; margins: 0.25 to 3, median 0.75")
    unread = load_preferences(PreferenceDataSettings(path))
    assert unread.margins is None
    assert "margins" not in unread.notes()[0]


@pytest.mark.parametrize(("num_rows", "fraction"), [(1, 0.5), (5, 0), (5, 0.1)])
def test_it_is_told_where_nothing_is_held_out(write, num_rows, fraction) -> None:
    path = write([pair(f"Q{number}") for number in range(num_rows)])
    splits = load_preferences(PreferenceDataSettings(path, eval_fraction=fraction))
    told = [note for note in splits.notes() if "nothing is held out" in note]
    assert len(told) == (not splits.eval)
    assert all("data.eval_fraction" in note and "data.eval_path" in note for note in told)


def test_only_the_first_rows_are_used_where_their_number_is_set(write) -> None:
    path = write([pair(f"Q{number}") for number in range(10)])
    splits = load_preferences(PreferenceDataSettings(path, num_rows=4, eval_fraction=0))
    assert prompts(splits.train) == ["Q0", "Q1", "Q2", "Q3"]


@pytest.mark.parametrize(
    ("name", "num_rows", "num_bad", "num_equal"),
    [
        ("derived/hh_harmless_dev2000.jsonl", 2000, 12, 0),
        ("llamafactory_demo/dpo_en_demo.json", 300, 0, 0),
        ("llamafactory_demo/dpo_zh_demo.json", 300, 0, 0),
        ("llamafactory_demo/v1_dpo_demo.jsonl", 100, 0, 0),
        ("lima_oasst/oaast_rm_zh.json", 775, 0, 3),
    ],
)
def test_published_files_are_read_whole(real_data, name, num_rows, num_bad, num_equal) -> None:
    settings = PreferenceDataSettings(str(real_data / name), on_bad_row="skip")
    splits = load_preferences(settings)
    counted = len(splits.train) + len(splits.eval)
    assert splits.report.num_rows == num_rows
    assert splits.report.num_bad_rows == num_bad
    assert counted == num_rows - num_bad - num_equal
    assert all(row.prompt[-1]["role"] == "user" for row in splits.train)
    assert all(answer[0]["role"] == "assistant" for row in splits.train for answer in row.answers)
