"""New tokenizers, against byte-pair merging, longest matches and best cuts written out plainly."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartTokenizer,
    BertTokenizer,
    GPT2Tokenizer,
    T5Config,
    T5Tokenizer,
)

from sft_kit.data.corpus.vocabulary import vocabulary_of
from sft_kit.errors import ConfigError, DataError
from sft_kit.models.new_tokenizer import FAMILIES, train_tokenizer
from sft_kit.models.tokenizer_options import TokenizerOptions
from sft_kit.models.unigram import unigram_pieces, unigram_tokenizer

WORDS = "low lower lowest new newer newest wide wider widest slow slower slowest newly lowly"
TEXTS = (
    " ".join(f"{word} {word[::-1]} {word}" for word in WORDS.split()),
    "the newest widest lowest slowest thing is not the wider one\nthe one is lower",
    "今天天气真好，我们一起出去玩吧。\n\n天气好的时候，我们出去玩。",
    "Ünïcode, naïve café: don't stop! 3.14 is pi.",
)
CLASSES = {"gpt2": GPT2Tokenizer, "bert": BertTokenizer, "t5": T5Tokenizer, "bart": BartTokenizer}
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def trained():
    return {family: train_tokenizer(TEXTS, TokenizerOptions(family)) for family in FAMILIES}


def merged(words, num_tokens, ids, min_count):
    """Merge the most frequent pair, of several the one with the smallest ids, again and again."""
    words = {tuple(symbols): count for symbols, count in words.items()}
    merges = []
    while len(ids) < num_tokens:
        pairs = Counter()
        for symbols, count in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]), default=None)
        if best is None or pairs[best] < min_count:
            break
        joined = best[0] + best[1].removeprefix("##")
        ids.setdefault(joined, len(ids))
        merges.append(best)
        words = {join(symbols, best, joined): count for symbols, count in words.items()}
    return merges


def join(symbols, pair, joined):
    result = []
    for symbol in symbols:
        # A symbol that was joined just now can't be the first of another pair.
        if result and (result[-1], symbol) == pair and not isinstance(result[-1], Joined):
            result[-1] = Joined(joined)
        else:
            result.append(symbol)
    return tuple(map(str, result))


class Joined(str):
    """A symbol that was joined in this round."""

    __slots__ = ()


def longest_matches(word, vocabulary):
    tokens, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        end = next(
            (e for e in range(len(word), start, -1) if prefix + word[start:e] in vocabulary), None
        )
        if end is None:
            return ["[UNK]"]
        tokens.append(prefix + word[start:end])
        start = end
    return tokens


def cuts(word):
    """All ways to cut a word."""
    for marks in range(2 ** (len(word) - 1)):
        places = [i for i in range(1, len(word)) if marks >> (i - 1) & 1]
        yield [word[a:b] for a, b in pairwise([0, *places, len(word)])]


# --- what is learnt ------------------------------------------------------------------------------


@pytest.mark.parametrize("min_count", [1, 4])
def test_byte_merges_are_those_of_plain_byte_pair_encoding(min_count):
    text = f"{WORDS} {TEXTS[0]} aaaa aaaaa aaaaaaa"
    tokenizer = train_tokenizer([text], TokenizerOptions("gpt2", min_count=min_count))
    first, *rest = text.split(" ")
    # The blank before a word is `Ġ`, which comes after the letters in the order of Unicode.
    words = Counter([first, *(f"Ġ{word}" for word in rest)])
    ids = {one: number for number, one in enumerate(sorted(set("".join(words))))}
    ids |= {f"another byte {number}": -1 for number in range(257 - len(ids))}
    expected = merged({tuple(word): count for word, count in words.items()}, 10**6, ids, min_count)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    assert [tuple(pair) for pair in model["merges"]] == expected
    assert len(expected) > 20
    joined = dict.fromkeys(left + right for left, right in expected)
    assert tokenizer.convert_ids_to_tokens(range(257, len(tokenizer))) == list(joined)


def test_word_pieces_are_found_by_merging_and_used_by_longest_match():
    text = f"{WORDS} {TEXTS[0]} {TEXTS[1]}".replace("\n", " ")
    tokenizer = train_tokenizer([text], TokenizerOptions("bert", vocab_size=70))
    letters = sorted(set(text) - {" "})
    first = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{one}" for one in letters),
    ]
    ids = {token: number for number, token in enumerate(first)}
    words = Counter(text.split())
    symbols = {(word[0], *(f"##{one}" for one in word[1:])): n for word, n in words.items()}
    merged(symbols, 70, ids, min_count=2)
    assert tokenizer.get_vocab() == ids
    assert len(ids) == 70
    for word in [*words, "newestly", "wow", "lowewol", "xylophone"]:
        assert tokenizer.tokenize(word) == longest_matches(word, ids)


def test_unigram_scores_are_logs_of_shares_in_the_best_cut():
    texts = ["ab", "ab b"]
    pieces = unigram_pieces(texts, ["a", "b", "▁"], 4)
    # Of the merges `ab` and `▁ab` the second is used: ▁ab ▁ab ▁ b. What is not used counts half.
    expected = {"▁ab": 2 / 4.5, "▁": 1 / 4.5, "b": 1 / 4.5, "a": 0.5 / 4.5}
    assert dict(pieces) == {
        name: pytest.approx(math.log(share)) for name, share in expected.items()
    }


@pytest.mark.parametrize("family", ["gpt2", "bart", "t5"])
@pytest.mark.parametrize("longest", [2, 3, 5, 8])
def test_no_token_is_longer_than_asked_and_some_are_as_long(family, longest):
    texts = ["abc " * 20 + "abcdefghijklmnop " * 9 + "abcde " * 10 + "ab abcdefgh abcdefgh " * 30]
    tokenizer = train_tokenizer(texts, TokenizerOptions(family, max_token_length=longest))
    pieces = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    assert max(map(len, pieces)) == longest


def test_unigram_counts_are_those_of_the_best_cuts():
    alphabet = sorted({*"".join(TEXTS[0].split()), "▁"})
    pieces = unigram_pieces([TEXTS[0]], alphabet, 40)
    assert len(pieces) == 40
    assert set(alphabet) <= {name for name, _ in pieces}
    scores = dict(pieces)
    assert sum(map(math.exp, scores.values())) == pytest.approx(1)
    tokenizer = unigram_tokenizer(pieces)
    for word in {*TEXTS[0].split(), "lowestnew", "wewe"}:
        possible = [cut for cut in cuts(f"▁{word}") if all(piece in scores for piece in cut)]
        best = max(sum(scores[piece] for piece in cut) for cut in possible)
        found = tokenizer.encode(word).tokens
        assert "".join(found) == f"▁{word}"
        assert sum(scores[piece] for piece in found) == pytest.approx(best)


def test_frequent_words_become_pieces_and_no_piece_crosses_punctuation():
    texts = ["天气，天气。天气！天气，天气 weather, weather. weather, weather"] * 3
    tokenizer = train_tokenizer(texts, TokenizerOptions("t5"))
    assert {"天气", "▁weather"} <= set(tokenizer.get_vocab())
    marks = set("，。！,.")
    pieces = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    assert not [piece for piece in pieces if len(piece) > 1 and marks & set(piece)]


def test_chinese_characters_stand_alone_in_word_pieces(trained):
    vocabulary = trained["bert"].get_vocab()
    assert trained["bert"].tokenize("天气好lower。") == [*"天气好", "lower", "。"]
    assert not [token for token in vocabulary if token.startswith("##") and token[2] in "天气，。!"]


def test_min_count_leaves_out_rare_characters_and_pieces():
    texts = ["aaaa bbbb bbbb c"] * 2
    options = {"min_count": 5}
    for family in ("bert", "characters", "t5"):
        tokenizer = train_tokenizer(texts, TokenizerOptions(family, **options))
        vocabulary = set(tokenizer.get_vocab())
        assert {"a", "b"} <= vocabulary
        assert "c" not in vocabulary
        assert tokenizer.unk_token_id in tokenizer("c").input_ids
        assert "aaaa" not in vocabulary


def test_a_smaller_vocabulary_of_characters_keeps_the_most_frequent_ones():
    tokenizer = train_tokenizer(["aaabbc cd\n"], TokenizerOptions("characters", vocab_size=9))
    assert set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens) == {"a", "b", "\n"}


def test_lower_case_applies_to_text_and_vocabulary():
    for family in ("bert", "characters"):
        tokenizer = train_tokenizer(["Apfel APFEL"], TokenizerOptions(family, lowercase=True))
        assert tokenizer.tokenize("APFEL") == tokenizer.tokenize("apfel")
        assert not [token for token in tokenizer.get_vocab() if token.strip("#") in "APFEL"]


# --- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CLASSES)
def test_each_family_loads_as_its_own_class_and_encodes_alike(family, trained, tmp_path):
    trained[family].save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is CLASSES[family]
    assert loaded.is_fast
    for text in (*TEXTS, "unseen: żółw 火车"):
        assert loaded(text, "pair").data == trained[family](text, "pair").data


def test_bert_puts_special_tokens_and_types_around_a_pair(trained):
    tokenizer = trained["bert"]
    assert tokenizer.convert_ids_to_tokens(range(5)) == [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    ]
    pair = tokenizer("好", "天气")
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert tokens == ["[CLS]", "好", "[SEP]", "天", "气", "[SEP]"]
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("num_sentinels", [None, 0, 7])
def test_t5_has_its_ids_and_sentinels_from_the_end(num_sentinels, tmp_path):
    options = TokenizerOptions("t5", num_sentinels=num_sentinels)
    train_tokenizer(TEXTS, options).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    config = T5Config()
    assert tokenizer.pad_token_id == config.pad_token_id
    assert tokenizer.eos_token_id == config.eos_token_id
    assert tokenizer.unk_token_id == 2
    size, number = len(tokenizer), 100 if num_sentinels is None else num_sentinels
    found = [tokenizer.convert_tokens_to_ids(f"<extra_id_{n}>") for n in range(number)]
    assert found == [size - 1 - n for n in range(number)]
    assert tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>") == 2
    assert tokenizer("lower").input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("the  one\nis", add_special_tokens=False).input_ids) == (
        "the one is"
    )


def test_t5_lays_its_ids_out_as_the_published_one(real_data, trained):
    published = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "t5")
    ours = trained["t5"]
    for token in ("<pad>", "</s>", "<unk>"):
        assert ours.convert_tokens_to_ids(token) == published.convert_tokens_to_ids(token)
    for number in (0, 50, 99):
        token = f"<extra_id_{number}>"
        from_end = [one.convert_tokens_to_ids(token) - len(one) for one in (ours, published)]
        assert from_end[0] == from_end[1]


def test_bart_has_its_ids_and_the_mask_token_last(trained):
    tokenizer, config = trained["bart"], BartConfig()
    assert tokenizer.bos_token_id == tokenizer.cls_token_id == config.bos_token_id
    assert tokenizer.pad_token_id == config.pad_token_id
    assert tokenizer.eos_token_id == tokenizer.sep_token_id == config.eos_token_id
    assert tokenizer.unk_token_id == 3
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    ids = tokenizer("lower").input_ids
    assert (ids[0], ids[-1]) == (config.bos_token_id, config.eos_token_id)
    # As published: a mask takes the blank before it, which is part of the word it stands for.
    parts = [tokenizer(part, add_special_tokens=False).input_ids for part in ("lower", " lower")]
    filled = tokenizer("lower <mask> lower", add_special_tokens=False).input_ids
    assert filled == [*parts[0], tokenizer.mask_token_id, *parts[1]]


def test_gpt2_has_one_special_token_with_id_0(trained):
    tokenizer = trained["gpt2"]
    assert tokenizer.all_special_tokens == ["<|endoftext|>"]
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tokenizer.pad_token_id == 0
    assert 0 not in tokenizer("lower").input_ids


def test_characters_have_a_token_for_every_objective_and_nothing_around_a_text(tmp_path):
    options = TokenizerOptions("characters", num_sentinels=3, max_length=32)
    train_tokenizer(TEXTS, options).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EOS]"]
    special += ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    assert tokenizer.convert_ids_to_tokens(range(9)) == special
    assert set(tokenizer.all_special_tokens) == set(special)
    assert tokenizer.bos_token == tokenizer.cls_token
    assert tokenizer.convert_ids_to_tokens(range(9, len(tokenizer))) == sorted(set("".join(TEXTS)))
    assert tokenizer.tokenize("a t\n今X") == ["a", " ", "t", "\n", "今", "[UNK]"]
    assert tokenizer("a t").input_ids == tokenizer.convert_tokens_to_ids(["a", " ", "t"])
    assert tokenizer.model_max_length == 32


@pytest.mark.parametrize(
    ("family", "needs"),
    [("gpt2", "causal"), ("bert", "masked"), ("bert", "prefix"), ("t5", "spans"),
     ("bart", "denoise")],
)  # fmt: skip
def test_each_family_and_characters_serve_an_objective(family, needs, trained):
    assert vocabulary_of(trained[family], needs).size == len(trained[family])
    characters = train_tokenizer(TEXTS, TokenizerOptions("characters", num_sentinels=20))
    found = vocabulary_of(characters, needs)
    assert len(found.sentinels) == 20
    assert len(found.ordinary) == len(set("".join(TEXTS)))
    special = characters.convert_tokens_to_ids(["[PAD]", "[MASK]", "[CLS]"])
    assert [found.pad, found.mask, found.start] == special


def test_words_of_characters_are_numbered_as_words(trained):
    encoded = trained["characters"]("low one, 今天")
    words = {}
    for token, word in zip(encoded.tokens(), encoded.word_ids(), strict=True):
        words[word] = words.get(word, "") + token
    assert list(words.values()) == ["low", " ", "one", ",", " ", "今", "天"]


# --- nothing is lost -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "bart"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANY_TEXT)
def test_any_text_comes_back_from_bytes(family, trained, text):
    ids = trained[family](text).input_ids
    assert trained[family].decode(ids, skip_special_tokens=True) == text


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from(sorted(set("".join(TEXTS)))), max_size=60))
def test_any_text_of_known_characters_comes_back(trained, text):
    tokenizer = trained["characters"]
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    words = " ".join(text.split())
    ids = trained["t5"](words).input_ids
    assert trained["t5"].decode(ids, skip_special_tokens=True) == words


# --- always the same -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_texts_give_the_same_tokenizer(family, trained):
    again = train_tokenizer(TEXTS, TokenizerOptions(family))
    assert again.backend_tokenizer.to_str() == trained[family].backend_tokenizer.to_str()


TRAIN_ALL = """\
import sys
from pathlib import Path

from sft_kit.models.new_tokenizer import FAMILIES, train_tokenizer
from sft_kit.models.tokenizer_options import TokenizerOptions

texts = Path(sys.argv[1]).read_text(encoding="utf-8").split("\\n\\n")
for family in FAMILIES:
    tokenizer = train_tokenizer(texts, TokenizerOptions(family))
    tokenizer.save_pretrained(Path(sys.argv[2]) / family)
"""
LOAD_ALL = """\
import sys
from pathlib import Path

sys.modules["sft_kit"] = None
from transformers import AutoTokenizer

folders = sorted(Path(sys.argv[1]).iterdir())
assert len(folders) == 5
for folder in folders:
    assert AutoTokenizer.from_pretrained(folder)("the one").input_ids
"""


@pytest.mark.slow
def test_processes_and_threads_make_no_difference_and_no_sft_kit_is_needed_to_load(tmp_path):
    root = Path(__file__).resolve().parents[3]
    corpus = tmp_path / "corpus.jsonl"
    maker = [sys.executable, str(root / "data" / "make_corpus.py"), "--output", str(corpus)]
    subprocess.run(maker, check=True)
    lines = corpus.read_text(encoding="utf-8").splitlines()[:600]
    texts = [json.loads(line)["text"] for line in lines]
    (tmp_path / "texts").write_text("\n\n".join(texts), encoding="utf-8")
    written = []
    for seed, threads in (("1", "1"), ("2", "4")):
        folder = tmp_path / seed
        variables = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads,
                     "TOKENIZERS_PARALLELISM": "true"}  # fmt: skip
        environment = os.environ | variables
        arguments = [sys.executable, "-c", TRAIN_ALL, str(tmp_path / "texts"), str(folder)]
        subprocess.run(arguments, check=True, env=environment, cwd=root)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        written.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    assert len(written[0]) == 2 * len(FAMILIES)
    assert written[0] == written[1]
    subprocess.run([sys.executable, "-c", LOAD_ALL, str(tmp_path / "1")], check=True)


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "least"),
    [("gpt2", 257), ("bart", 261), ("bert", 5 + 4 + 2), ("t5", 100 + 3 + 5), ("characters", 7)],
)
def test_the_least_vocabulary_is_named_and_can_be_had(family, least):
    texts = ["ab 好 ba ab!"]
    with pytest.raises(
        ConfigError, match=f"vocab_size: found {least - 1}, accepts {least} or more"
    ):
        train_tokenizer(texts, TokenizerOptions(family, vocab_size=least - 1))
    assert len(train_tokenizer(texts, TokenizerOptions(family, vocab_size=least))) == least


@pytest.mark.parametrize("family", FAMILIES)
def test_the_largest_vocabulary_is_named_and_can_be_had(family):
    with pytest.raises(ConfigError, match="the texts give only") as caught:
        train_tokenizer(TEXTS, TokenizerOptions(family, vocab_size=10_000))
    number = int(caught.value.problems[0].message.split("only ")[1].split(" ")[0].replace(",", ""))
    tokenizer = train_tokenizer(TEXTS, TokenizerOptions(family, vocab_size=number))
    assert len(tokenizer) == number


def test_options_of_another_family_are_refused_all_at_once():
    options = TokenizerOptions("gpt2", lowercase=True, num_sentinels=5)
    with pytest.raises(ConfigError) as caught:
        train_tokenizer(TEXTS, options)
    assert [problem.key for problem in caught.value.problems] == ["lowercase", "num_sentinels"]


@pytest.mark.parametrize("texts", [[], ["", " \n\t"]])
def test_no_text_is_refused(texts):
    with pytest.raises(DataError, match="there is no text"):
        train_tokenizer(texts, TokenizerOptions("characters"))
