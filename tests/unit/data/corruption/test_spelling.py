import json
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_kit.data.corpus.rows import Row, Vocabulary
from sft_kit.data.corruption.confusions import Confusions, is_chinese, load_confusions
from sft_kit.data.corruption.draws import generator_of, row_seed
from sft_kit.data.corruption.look_alikes import LOOK_ALIKES
from sft_kit.data.corruption.masking import apply_mask
from sft_kit.data.corruption.spelling import draw_misspellings, misspell
from sft_kit.errors import DataError

LECTURE = ["[CLS]", *"今天天气真好，我们一起出去玩吧", "[SEP]"]
MISSPELT = "[CLS] 令 天 夭 气 真 [M] ， 我 门 一 赴 [M] [M] 玩 把 [SEP]"
LABELS = "- 今 - 天 - - 好 - - 们 - 起 出 去 - 吧 -"
TOKENS = ["[PAD]", "[M]", *dict.fromkeys([*LECTURE, *"令夭门赴把", "ab", "3"])]
NUM_ROWS, NUM_TOKENS = 2000, 500


def vocabulary_of(tokens: list[str]) -> Vocabulary:
    special = [number for number, token in enumerate(tokens) if token.startswith("[")]
    ordinary = np.array([number for number in range(len(tokens)) if number not in special])
    return Vocabulary(
        size=len(tokens), pad=0, mask=1, start=2, end=2, sentinels=(), ordinary=ordinary
    )


def row_of(ids: list[int], tokens: list[str]) -> Row:
    size = len(ids)
    return Row(
        input_ids=np.array(ids, dtype=np.int64),
        is_special=np.array([tokens[number].startswith("[") for number in ids], dtype=bool),
        words=np.arange(size),
        sentences=np.zeros(size, dtype=np.int64),
        documents=np.ones(size, dtype=np.int64),
    )


def show(ids: np.ndarray) -> str:
    return " ".join("-" if number == -100 else TOKENS[number] for number in ids)


def write(folder: Path, content: object) -> str:
    path = folder / "confusions.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return str(path)


def confusable_with(confusions: Confusions, tokens: list[str], character: str) -> set[str]:
    """All that a character can become, found by drawing many times."""
    rng = np.random.default_rng(0)
    ids = np.full(20_000, tokens.index(character))
    picked = confusions.pick_confusable(ids, rng.random(20_000), rng.random(20_000))
    return {tokens[number] for number in picked if number >= 0}


# A vocabulary of real characters: 你 has homophones, look-alikes and near sounds in it.
CHARACTERS = [chr(code) for code in range(0x4E00, 0x5200)]
BIG_TOKENS = ["[PAD]", "[M]", "[CLS]", *CHARACTERS, *(f"word{number}" for number in range(100))]
BIG = vocabulary_of(BIG_TOKENS)


@pytest.fixture(scope="module")
def big_confusions() -> Confusions:
    return load_confusions(BIG_TOKENS)


def test_the_lectures_misspelt_row_learns_what_was_changed():
    row = row_of([TOKENS.index(token) for token in LECTURE], TOKENS)
    chosen = np.array([label != "-" for label in LABELS.split()])
    wrong = np.array([TOKENS.index(token) for token in MISSPELT.split()])[chosen]
    misspelt = apply_mask(row, chosen, wrong)
    assert show(misspelt["input_ids"]) == MISSPELT
    assert show(misspelt["labels"]) == LABELS


def test_the_lectures_misspellings_come_out_of_their_confusions(tmp_path: Path):
    named = {"今": "令", "天": ["夭"], "们": "门", "起": "赴", "吧": "把"}
    confusions = load_confusions(TOKENS, write(tmp_path, named))
    row = row_of([TOKENS.index(token) for token in LECTURE], TOKENS)
    found: dict[str, set[str]] = {}
    for seed in range(200):
        made = misspell(
            row,
            seed,
            vocabulary=vocabulary_of(TOKENS),
            confusions=confusions,
            mask_token_fraction=0.2,
            random_token_fraction=0.0,
        )
        changed = made["labels"] != -100
        labels, inputs = show(made["labels"][changed]), show(made["input_ids"][changed])
        for label, wrong in zip(labels.split(), inputs.split(), strict=True):
            found.setdefault(label, set()).add(wrong)
    for right, wrong in named.items():
        assert found[right] == {"[M]", *wrong}
    assert "，" not in found
    assert found["好"] >= {"[M]", "玩", "令"}


@pytest.mark.parametrize(
    ("fraction", "mask", "random"), [(0.15, 0.1, 0.1), (0.4, 0.3, 0.5), (0.15, 0.0, 0.0)]
)
def test_of_a_million_characters_the_asked_shares_are_changed(
    big_confusions: Confusions, fraction: float, mask: float, random: float
):
    rng = np.random.default_rng(11)
    originals = rng.choice(big_confusions.characters, (NUM_ROWS, NUM_TOKENS))
    corrupt = partial(
        misspell,
        vocabulary=BIG,
        confusions=big_confusions,
        mask_fraction=fraction,
        mask_token_fraction=mask,
        random_token_fraction=random,
    )
    made = [
        corrupt(row_of(ids.tolist(), BIG_TOKENS), row_seed(5, 0, number))
        for number, ids in enumerate(originals)
    ]
    inputs = np.stack([misspelt["input_ids"] for misspelt in made])
    labels = np.stack([misspelt["labels"] for misspelt in made])
    chosen = labels != -100
    assert np.array_equal(chosen, inputs != originals)
    assert np.array_equal(labels[chosen], originals[chosen])
    of_place = chosen.sum(axis=0)
    expected = NUM_ROWS * fraction
    statistic = np.sum((of_place - expected) ** 2) / (expected * (1 - fraction))
    assert abs(statistic - NUM_TOKENS) <= 3 * sqrt(2 * NUM_TOKENS)
    number = int(chosen.sum())
    assert abs(number - originals.size * fraction) <= 3 * sqrt(
        originals.size * fraction * (1 - fraction)
    )
    masked = int(np.sum(inputs[chosen] == BIG.mask))
    assert abs(masked - number * mask) <= 3 * sqrt(number * mask * (1 - mask))


def test_a_random_character_is_any_other_one_and_all_alike(big_confusions: Confusions):
    size, number = 300_000, len(big_confusions.characters)
    rng = np.random.default_rng(2)
    original = rng.choice(big_confusions.characters, size)
    drawn = draw_misspellings(original, generator_of(9), big_confusions, 0.0, 1.0)
    assert (drawn != original).all()
    distance = np.bincount(
        (big_confusions.ranks[drawn] - big_confusions.ranks[original]) % number, minlength=number
    )
    assert distance[0] == 0
    expected = size / (number - 1)
    statistic = float(np.sum((distance[1:] - expected) ** 2) / expected)
    assert abs(statistic - (number - 2)) <= 3 * sqrt(2 * (number - 2))


def test_confusables_of_a_file_are_drawn_alike(tmp_path: Path):
    tokens = ["[PAD]", "[M]", "[CLS]", *"天夭大太犬"]
    confusions = load_confusions(tokens, write(tmp_path, {"天": "夭大太犬"}))
    original = np.full(40_000, tokens.index("天"))
    counts = np.bincount(draw_misspellings(original, generator_of(4), confusions, 0.0, 0.0))[4:]
    assert np.abs(counts - 10_000).max() <= 3 * sqrt(40_000 * 0.25 * 0.75)


def test_sounds_near_sounds_and_looks_are_drawn_by_their_shares():
    # 今 (jin): 金 sounds the same, 京 (jing) nearly, 令 looks like it.
    tokens = ["[PAD]", "[M]", "[CLS]", *"今金京令"]
    confusions = load_confusions(tokens)
    original = np.full(40_000, tokens.index("今"))
    drawn = draw_misspellings(original, generator_of(4), confusions, 0.0, 0.0)
    for other, share in (("金", 0.6), ("京", 0.2), ("令", 0.2)):
        count = int(np.sum(drawn == tokens.index(other)))
        assert abs(count - 40_000 * share) <= 3 * sqrt(40_000 * share * (1 - share))


def test_words_of_an_alphabet_numbers_and_punctuation_are_not_misspelt():
    confusions = load_confusions(TOKENS)
    row = row_of([TOKENS.index(token) for token in ("[CLS]", "ab", "3", "，", "天")], TOKENS)
    made = misspell(
        row, 0, vocabulary=vocabulary_of(TOKENS), confusions=confusions, mask_fraction=1.0
    )
    assert made["labels"].tolist() == [-100, -100, -100, -100, TOKENS.index("天")]


@settings(deadline=None, max_examples=100)
@given(
    ids=st.lists(st.integers(0, len(BIG_TOKENS) - 1), max_size=60),
    seed=st.integers(0, 2**64 - 1),
    fraction=st.floats(0.0, 1.0),
    mask=st.floats(0.0, 0.5),
    random=st.floats(0.0, 0.5),
)
def test_any_row_is_recovered_and_labels_stand_where_it_changed(
    big_confusions: Confusions,
    ids: list[int],
    seed: int,
    fraction: float,
    mask: float,
    random: float,
):
    row = row_of(ids, BIG_TOKENS)
    made, again = (
        misspell(
            row,
            seed,
            vocabulary=BIG,
            confusions=big_confusions,
            mask_fraction=fraction,
            mask_token_fraction=mask,
            random_token_fraction=random,
        )
        for _ in range(2)
    )
    inputs, labels = made["input_ids"], made["labels"]
    assert np.array_equal(inputs, again["input_ids"])
    assert row.input_ids.tolist() == ids
    assert np.array_equal(labels != -100, inputs != row.input_ids)
    assert np.array_equal(np.where(labels != -100, labels, inputs), row.input_ids)
    assert all(is_chinese(BIG_TOKENS[label]) for label in labels[labels != -100])


def test_characters_that_sound_alike_or_nearly_are_confusable_whatever_their_tone():
    tokens = [*"事是四你里林零想", "[M]"]
    confusions = load_confusions(tokens)
    assert confusable_with(confusions, tokens, "事") == {"是", "四"}
    assert confusable_with(confusions, tokens, "你") == {"里"}
    assert confusable_with(confusions, tokens, "林") == {"零"}
    assert confusable_with(confusions, tokens, "想") == set()


def test_each_reading_of_a_character_counts():
    tokens = [*"长常掌东"]
    assert confusable_with(load_confusions(tokens), tokens, "长") == {"常", "掌"}


def test_a_common_character_is_mistaken_for_common_ones_only():
    # 剞 and 玑 (ji) are in no first level; 機 is common in traditional writing only.
    tokens = [*"机鸡剞玑機雞"]
    confusions = load_confusions(tokens)
    assert confusable_with(confusions, tokens, "机") == {"鸡"}
    assert confusable_with(confusions, tokens, "機") == {"雞"}
    assert confusable_with(confusions, tokens, "剞") == {*"机鸡玑機雞"}


def test_the_table_of_look_alikes_holds_groups_of_chinese_characters():
    groups = LOOK_ALIKES.split()
    assert len(groups) > 1000
    assert len({frozenset(group) for group in groups}) == len(groups)
    for group in groups:
        assert len(set(group)) == len(group) >= 2, group
        assert all(map(is_chinese, group)), group
        # Characters of the national standard GB 2312: first byte B0 to F7.
        assert all(0xB0 <= character.encode("gb2312")[0] <= 0xF7 for character in group), group


def test_a_tokenizer_without_chinese_characters_is_refused():
    with pytest.raises(DataError, match="bert-base-chinese"):
        load_confusions(["[PAD]", "[M]", "hello", "a", "b", "##天"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["天"], r"found a JSON list, accepts an object"),
        ({"今天": "天"}, r"'今天': the key has 2 characters, accepts one"),
        ({"天": 3}, r"'天': found 3, accepts a string of characters or a list of them"),
        ({"天": ["夭", "大人"]}, r"'天': found '大人' in the list"),
        ({"天": "夭", "": "大", "人": None}, r"2 entries can't be used"),
        ({"天": "夭天"}, r"'天': the character is among those it is mistaken for"),
        ({"天": ["天"]}, r"'天': the character is among those it is mistaken for"),
        ({"a": "夭"}, r"'a': the key is no Chinese character"),
        ({"天": "夭, 大"}, r"'天': found ',', accepts Chinese characters only"),
        ({"天": 3}, r"1 entry can't be used"),
    ],
)
def test_a_file_of_another_shape_is_refused_with_what_it_should_be(
    tmp_path: Path, content: object, message: str
):
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        load_confusions(TOKENS, path)
    assert path in str(caught.value)


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="can't be read: No such file"):
        load_confusions(TOKENS, str(tmp_path / "absent.json"))
    broken = tmp_path / "broken.json"
    broken.write_bytes('{"天": '.encode("gbk"))
    with pytest.raises(DataError, match="is not JSON in UTF-8"):
        load_confusions(TOKENS, str(broken))


def test_a_file_of_characters_that_the_vocabulary_lacks_is_refused(tmp_path: Path):
    path = write(tmp_path, {"猫": "描"})
    with pytest.raises(DataError, match=r"confusions\.json: the vocabulary has no characters"):
        load_confusions(TOKENS, path)


def test_a_real_vocabulary_covers_the_frequent_characters(real_data: Path):
    from collections import Counter

    text = (real_data / "tnews" / "train.tsv").read_text(encoding="utf-8")
    counts = Counter(character for character in text if is_chinese(character))
    frequent = [character for character, _ in counts.most_common(3000)]
    names = real_data / "tokenizers" / "bert-base-chinese" / "vocab.txt"
    tokens = names.read_text(encoding="utf-8").split("\n")
    confusions = load_confusions(tokens)
    numbers = {token: number for number, token in enumerate(tokens)}
    ids = np.array([numbers[character] for character in frequent if character in numbers])
    assert len(frequent) == 3000
    assert np.sum(confusions.thresholds[ids, -1] == 1.0) > 0.95 * len(frequent)
