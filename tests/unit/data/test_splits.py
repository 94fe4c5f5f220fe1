"""Settings -> splits: policy for bad rows, held-out rows, duplicates, overlap."""

import json
import random
import tracemalloc
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sft_kit.data.rows import Conversation, Where
from sft_kit.data.splits import load_conversations, normalised_hash
from sft_kit.errors import MAX_SHOWN_PROBLEMS, DataError, FormatError
from sft_kit.settings import DataSettings


def write_rows(path, pairs):
    rows = (json.dumps({"prompt": p, "completion": c}, ensure_ascii=False) for p, c in pairs)
    path.write_text("\n".join(rows), encoding="utf-8")
    return str(path)


def pairs_of(conversations):
    return [tuple(message["content"] for message in row.messages) for row in conversations]


def simple_key(pair):
    """Say in the plainest way what counts as the same row."""
    return tuple(" ".join(unicodedata.normalize("NFC", text).casefold().split()) for text in pair)


PAIRS = [(f"question {n}", f"answer {n}") for n in range(200)]


def test_held_out_rows_are_the_fraction_asked_for_and_both_sides_keep_the_order(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", PAIRS)
    splits = load_conversations(DataSettings(path=path, eval_fraction=0.1))
    train, held_out = pairs_of(splits.train), pairs_of(splits.eval)
    assert len(held_out) == 20
    assert sorted(train + held_out) == sorted(PAIRS)
    assert train == sorted(train, key=PAIRS.index)
    assert held_out == sorted(held_out, key=PAIRS.index)
    assert splits.report.format == "prompt-completion"
    assert splits.report.num_rows == 200


def test_the_split_depends_on_its_seed_only(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", PAIRS)

    def held_out(seed):
        return pairs_of(load_conversations(DataSettings(path=path, split_seed=seed)).eval)

    random.seed(1)
    first = held_out(3)
    random.seed(2)
    assert held_out(3) == first
    assert held_out(4) != first


@pytest.mark.parametrize(
    ("num_rows", "fraction", "num_eval"),
    [(200, 0.0, 0), (1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (3, 0.99, 2), (200, 0.05, 10)],
)
def test_a_fraction_holds_out_one_row_at_least_and_leaves_one(
    tmp_path, num_rows, fraction, num_eval
):
    path = write_rows(tmp_path / "a.jsonl", PAIRS[:num_rows])
    splits = load_conversations(DataSettings(path=path, eval_fraction=fraction))
    assert len(splits.eval) == num_eval
    assert len(splits.train) == num_rows - num_eval


@pytest.mark.parametrize("seed", range(10))
def test_equal_rows_never_stand_on_both_sides(tmp_path, seed):
    draw = random.Random(seed)
    groups = [(f"Caf\xe9 {n}", f"answer {n}") for n in range(40)]
    disguises = [
        str.upper,
        str.title,
        lambda text: f"  {text}\n",
        lambda text: text.replace(" ", " \t\u3000\n"),
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: text,
    ]
    pairs = list(groups)
    for group in groups:
        for _ in range(draw.randrange(5)):
            disguised = [draw.choice(disguises)(text) for text in group]
            pairs.append(tuple(disguised))
    draw.shuffle(pairs)
    path = write_rows(tmp_path / "a.jsonl", pairs)
    splits = load_conversations(DataSettings(path=path, eval_fraction=0.3, split_seed=seed))
    train = [simple_key(pair) for pair in pairs_of(splits.train)]
    held_out = {simple_key(pair) for pair in pairs_of(splits.eval)}
    assert held_out
    assert not held_out & set(train)
    assert len(splits.train) + len(splits.eval) == len(pairs)
    assert len(splits.eval) <= round(0.3 * len(pairs))
    assert splits.report.num_duplicates == len(train) - len(set(train))


def test_when_every_group_is_large_the_smallest_is_held_out(tmp_path):
    pairs = [PAIRS[0]] * 6 + [PAIRS[1]] * 4
    splits = load_conversations(
        DataSettings(path=write_rows(tmp_path / "a.jsonl", pairs), eval_fraction=0.1)
    )
    assert pairs_of(splits.eval) == [PAIRS[1]] * 4


def test_every_planted_leak_between_two_files_is_found(tmp_path):
    draw = random.Random(0)
    plants = {
        "exact": lambda text: text,
        "case": lambda text: "".join(draw.choice([c.upper(), c.lower()]) for c in text),
        "white space": lambda text: draw.choice(["\n", "", " \t"]) + text.replace(" ", "  \r\n "),
        "composition": lambda text: unicodedata.normalize("NFD", text),
    }
    train = [(f"Na\xefve Question {n}?", f"Une r\xe9ponse {n}.") for n in range(250)]
    eval_pairs, leaks = [], []
    for n in range(200):
        eval_pairs.append((f"new question {n}", f"Une r\xe9ponse {n}."))
        plant = list(plants.values())[n % 4]
        eval_pairs.append(tuple(plant(text) for text in train[n]))
        leaks.append(2 * n + 2)
    splits = load_conversations(
        DataSettings(
            path=write_rows(tmp_path / "train.jsonl", train),
            eval_path=write_rows(tmp_path / "eval.jsonl", eval_pairs),
        )
    )
    assert [where.line for where in splits.report.overlaps] == leaks
    assert splits.report.num_overlaps == 200
    assert {where.file for where in splits.report.overlaps} == {str(tmp_path / "eval.jsonl")}
    assert [row.where.line for row in splits.train] == list(range(201, 251))
    assert len(splits.eval) == 400


def test_an_eval_file_excludes_the_split_by_fraction_and_may_have_another_format(tmp_path):
    (tmp_path / "eval.txt").write_text("a text\n", encoding="utf-8")
    splits = load_conversations(
        DataSettings(
            path=write_rows(tmp_path / "a.jsonl", PAIRS),
            eval_path=str(tmp_path / "eval.txt"),
            eval_fraction=0.5,
            num_rows=50,
        )
    )
    assert pairs_of(splits.train) == PAIRS[:50]
    assert [row.text for row in splits.eval] == ["a text"]
    assert splits.report.fingerprint != splits.report.eval_fingerprint != ""


texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)
shapes = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), texts), min_size=1, max_size=3)


@hypothesis_settings(max_examples=300, deadline=None)
@given(shapes, shapes)
@example([("user", "x\u00b2")], [("user", "x2")])
@example([("user", "a b")], [("user", "ab")])
@example([("user", "a"), ("user", "b")], [("user", "ab")])
def test_rows_hash_alike_exactly_when_their_normalised_turns_are_equal(first, second):
    def hash_of(turns):
        messages = tuple({"role": role, "content": content} for role, content in turns)
        return normalised_hash(Conversation(messages, Where("f", 1)))

    def key(turns):
        return [(role, simple_key((content.replace("\0", ""),))) for role, content in turns]

    first = [(role, content.replace("\0", "")) for role, content in first]
    second = [(role, content.replace("\0", "")) for role, content in second]
    assert (hash_of(first) == hash_of(second)) == (key(first) == key(second))
    shouted = [(role, f" {content.upper().lower()}\n") for role, content in first]
    assert (hash_of(first) == hash_of(shouted)) == (key(first) == key(shouted))


@pytest.mark.parametrize("offset", range(-2, 3))
@pytest.mark.parametrize("middle", [" ", "", " \n ", "\u3000" * 70_000])
def test_long_texts_are_hashed_as_if_in_one_piece(offset, middle):
    def hash_of(text):
        return normalised_hash(Conversation((), Where("f", 1), text=text))

    words = "x" * (65_536 + offset)
    text = f"{words}{middle}{words}{middle}y"
    plain = " ".join(text.split())
    assert hash_of(text) == hash_of(plain)
    assert hash_of(text) != hash_of(plain + " y")
    assert (hash_of(text) == hash_of(f"{words} {words} y")) == (middle != "")


def test_a_text_of_ten_million_characters_is_loaded_in_less_than_four_times_its_file(tmp_path):
    path = tmp_path / "a.jsonl"
    text = ("x" * 99 + " ") * 99_999
    path.write_text(json.dumps({"prompt": "q", "completion": text}))
    size = path.stat().st_size
    del text
    tracemalloc.start()
    splits = load_conversations(DataSettings(path=str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(splits.train) == 1
    assert peak < 4 * size


def test_all_bad_rows_of_both_files_are_reported_at_once(tmp_path):
    good = '{"prompt": "q", "completion": "r"}'
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_text(f'{good}\n{{"prompt": "q"}}\n{good}\noops\n')
    held_out.write_text(f'{good}\n{{"prompt": "q", "completion": 3}}\n')
    settings = DataSettings(path=str(train), eval_path=str(held_out))
    with pytest.raises(FormatError) as caught:
        load_conversations(settings)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{train}: 3 of 6 rows can't be used")
    assert lines[1] == (f"  {train}:2: completion: the field is missing (add it; found 'prompt')")
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [
        f"{train}:2",
        f"{train}:4",
        f"{held_out}:2",
    ]
    settings.on_bad_row = "skip"
    splits = load_conversations(settings)
    # Both good training rows say what the held-out one says, so none is left to train on.
    assert (len(splits.train), len(splits.eval)) == (0, 1)
    assert splits.report.num_overlaps == 1
    assert splits.report.num_bad_rows == 3
    assert [str(problem) for problem in splits.report.bad_rows] == [
        line.strip() for line in lines[1:]
    ]


def test_a_long_report_is_cut_in_the_message_but_not_in_the_problems(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n' * 60)
    with pytest.raises(FormatError, match=r"none of the 60 rows can be used") as caught:
        load_conversations(DataSettings(path=str(path), on_bad_row="skip"))
    lines = str(caught.value).splitlines()
    assert len(caught.value.problems) == 60
    assert len(lines) == MAX_SHOWN_PROBLEMS + 2
    assert lines[-1].strip() == "... and 10 more"


def test_a_file_of_broken_lines_only_names_them_all(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text\n{"text": \n')
    with pytest.raises(FormatError, match=r"none of the 2 rows") as caught:
        load_conversations(DataSettings(path=str(path), on_bad_row="skip"))
    assert [problem.where for problem in caught.value.problems] == [f"{path}:1", f"{path}:2"]


def test_rows_behind_num_rows_are_not_even_looked_at(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\noops\n')
    splits = load_conversations(DataSettings(path=str(path), num_rows=2, eval_fraction=0))
    assert [row.text for row in splits.train] == ["a", "b"]
    assert splits.report.num_rows == 2


def test_unknown_roles_are_counted_by_rows(tmp_path):
    def row(*roles):
        return json.dumps({"items": [{"from": role, "value": "x"} for role in roles]})

    path = tmp_path / "a.jsonl"
    rows = [row("human", "gpt"), row("human", "bing"), row("bing", "bing", "narrator")]
    path.write_text("\n".join(rows))
    splits = load_conversations(DataSettings(path=str(path), on_bad_row="skip"))
    assert splits.report.unknown_roles == {"bing": 2, "narrator": 1}
    assert len(splits.train) == 1


def test_a_named_format_is_taken_at_its_word(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "t", "prompt": "q", "completion": "r"}\n')
    with pytest.raises(FormatError, match="fit several formats: prompt-completion, text"):
        load_conversations(DataSettings(path=str(path)))
    splits = load_conversations(DataSettings(path=str(path), format="text"))
    assert splits.train[0].text == "t"


def test_an_empty_eval_file_is_an_error(tmp_path):
    (tmp_path / "eval.jsonl").touch()
    path = write_rows(tmp_path / "a.jsonl", PAIRS)
    with pytest.raises(DataError, match=r"eval\.jsonl: the file is empty"):
        load_conversations(DataSettings(path=path, eval_path=str(tmp_path / "eval.jsonl")))
