"""Segments have the ids they have within the whole text, whatever a tokenizer puts before a text.

The independent source is the tokenizer itself, given the whole text at once. Borders stand at
special tokens and beside 龘, which falls back to bytes: there no merge crosses them.
"""

import copy
import random
from itertools import chain

import pytest

from sft_kit.data.segments import (
    Segment,
    encode_segments,
    find_special_token,
    has_dummy_prefix,
    leading_special_tokens,
)

KINDS = ("prepend", "metaspace-first", "metaspace-always")
PIECES = (
    "hello",
    " world",
    "  ",
    "\n",
    "\n\n",
    "今天",
    "水",
    "é",
    "🙂",
    "7",
    " the play",
    "[Round 1]",
)
BORDERS = ("<|user|>", "<|assistant|>", "</s>", "<sop>")


def as_row(texts):
    return [Segment(text, is_completion=bool(index % 2)) for index, text in enumerate(texts)]


def bare(tokenizer, text):
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def random_row(rng):
    """Texts of which each ends with a special token or 龘, or the next begins with one."""
    texts = []
    for _ in range(rng.randint(1, 6)):
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 5)))
        border = rng.choice([*BORDERS, "龘"])
        texts.append(rng.choice([text + border, border + text + border]))
    return texts


@pytest.mark.parametrize("kind", KINDS)
def test_segments_have_the_ids_of_the_whole_text(kind, blank_tokenizer):
    tokenizer = blank_tokenizer(kind)
    rng = random.Random(0)
    rows = [random_row(rng) for _ in range(400)]
    encoded = encode_segments(tokenizer, [as_row(row) for row in rows])
    num_wrong_when_bare = 0
    for row, ids in zip(rows, encoded, strict=True):
        assert len(ids) == len(row)
        whole = bare(tokenizer, "".join(row))
        assert list(chain.from_iterable(ids)) == whole
        num_wrong_when_bare += [i for text in row for i in bare(tokenizer, text)] != whole
    assert num_wrong_when_bare > 50


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_behind_text_begins_with_a_blank_only_where_it_has_one(kind, blank_tokenizer):
    tokenizer = blank_tokenizer(kind)
    alone = bare(tokenizer, "Sesame!")
    assert tokenizer.convert_ids_to_tokens(alone[0]).startswith("▁")
    row = as_row(["问：hello\n\n答：", " Sesame!</s>", "", "Sesame!"])
    _, spaced, nothing, unspaced = encode_segments(tokenizer, [row])[0]
    assert spaced == [*alone, tokenizer.eos_token_id]
    assert nothing == []
    texts = tokenizer.convert_ids_to_tokens(unspaced)
    # Behind </s> only Metaspace "first" knows that the text has begun.
    assert "".join(texts) == ("Sesame!" if kind == "metaspace-first" else "▁Sesame!")


def test_a_text_behind_a_role_token_has_the_blank_that_the_tokenizer_puts_there(blank_tokenizer):
    tokenizer = blank_tokenizer("prepend")
    _, answer = encode_segments(tokenizer, [as_row(["<|assistant|>", "\n hello"])])[0]
    tokens = tokenizer.convert_ids_to_tokens(answer)
    assert tokens[:2] == ["▁", "<0x0A>"]
    assert "".join(tokens[2:]) == "▁hello"


def test_a_context_that_merges_into_a_text_is_not_used(train_tokenizer):
    """With a token for two line ends, "\\n" before a text would change the text's first token."""
    words = ("one\n\ntwo\n\nthree\n\nfour",) * 3
    tokenizer = train_tokenizer("prepend", words)
    assert "\n\n" in tokenizer.get_vocab()
    assert has_dummy_prefix(tokenizer)
    first, merging, other = encode_segments(tokenizer, [as_row(["one", "\ntwo", "three"])])[0]
    assert (first, merging) == (bare(tokenizer, "one"), bare(tokenizer, "\ntwo"))
    assert bare(tokenizer, "one\n") + other == bare(tokenizer, "one\nthree")


def qwen_like(tokenizer):
    """Split as Qwen and Llama 3 do: line ends stand alone, a blank belongs to the next word."""
    from tokenizers import Regex, pre_tokenizers

    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def bert_like():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["[UNK]", "[CLS]", "[SEP]", "a", "##a", "play", "##ed", "the"]
    core = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen", "bert"])
def test_tokenizers_that_put_no_blank_before_a_text_encode_each_segment_bare(
    kind, tokenizer, llama_tokenizer
):
    chosen = {"gpt2": tokenizer, "llama3": llama_tokenizer, "qwen": tokenizer}.get(kind)
    chosen = bert_like() if chosen is None else chosen
    if kind == "qwen":
        qwen_like(chosen)
    assert not has_dummy_prefix(chosen)
    rng = random.Random(1)
    rows = [random_row(rng) for _ in range(100)]
    encoded = encode_segments(chosen, [as_row(row) for row in rows])
    assert encoded == [[bare(chosen, text) for text in row] for row in rows]


@pytest.mark.parametrize(("name", "expected"), [("gpt2", False), ("chatglm2", True)])
def test_real_tokenizers_are_told_apart(real_data, name, expected):
    from transformers import AutoTokenizer

    import sft_kit.models.chatglm.tokenization  # noqa: F401  (makes the name known)

    folder = real_data / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"no tokenizer in {folder}")
    assert has_dummy_prefix(AutoTokenizer.from_pretrained(folder)) == expected


def test_no_rows_and_rows_without_text_encode_to_nothing(blank_tokenizer):
    tokenizer = blank_tokenizer("prepend")
    assert encode_segments(tokenizer, []) == []
    assert encode_segments(tokenizer, [[], as_row(["", ""])]) == [[], [[], []]]


@pytest.mark.parametrize("left", ["truncation", "padding", "split special tokens"])
def test_what_an_earlier_call_left_in_a_tokenizer_changes_no_ids(left, blank_tokenizer):
    tokenizer = blank_tokenizer("prepend")
    row = as_row(["</s>hello world</s>", "today</s>"])
    before = encode_segments(tokenizer, [row])
    assert len(before[0][0]) > 3
    if left == "truncation":
        tokenizer.backend_tokenizer.enable_truncation(2)
    elif left == "padding":
        tokenizer.backend_tokenizer.enable_padding(length=64)
    else:
        tokenizer.backend_tokenizer.encode_special_tokens = True
    assert encode_segments(tokenizer, [row]) == before


@pytest.mark.parametrize("name", ["__call__", "_encode_plus"])
def test_a_tokenizer_with_a_way_of_its_own_is_asked_itself(name, blank_tokenizer):
    tokenizer = blank_tokenizer("prepend")
    stock = getattr(type(tokenizer), name)

    def in_capitals(self, text, *args, **options):
        return stock(self, [one.upper() for one in text], *args, **options)

    row, capitals = as_row(["water"]), as_row(["WATER"])
    expected = encode_segments(tokenizer, [capitals])
    assert encode_segments(tokenizer, [row]) != expected
    tokenizer.__class__ = type("Capitals", (type(tokenizer),), {name: in_capitals})
    assert encode_segments(tokenizer, [row]) == expected


def test_a_tokenizer_that_spells_special_tokens_out_does_so(blank_tokenizer):
    tokenizer = blank_tokenizer("prepend")
    text = "hello</s>"
    tokenizer.split_special_tokens = True
    (ids,) = encode_segments(tokenizer, [as_row([text])])[0]
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("</s>") not in ids


# --- tokens in front of a text -------------------------------------------------------------------


def test_leading_tokens_are_those_in_front_only(
    tokenizer, llama_tokenizer, blank_tokenizer, put_tokens_in_front
):
    assert leading_special_tokens(tokenizer) == ""
    assert leading_special_tokens(llama_tokenizer) == ""
    put_tokens_in_front(llama_tokenizer, "<s>")
    assert leading_special_tokens(llama_tokenizer) == "<s>"
    for kind in KINDS:
        assert leading_special_tokens(blank_tokenizer(kind)) == "[gMASK]<sop>"
    bert = bert_like()
    put_tokens_in_front(bert, "[CLS]", behind=("[SEP]",))
    assert leading_special_tokens(bert) == "[CLS]"
    closing = copy.deepcopy(tokenizer)
    put_tokens_in_front(closing, behind=("<|endoftext|>",))
    assert leading_special_tokens(closing) == ""


def test_the_first_special_token_is_found_and_of_two_there_the_longer(blank_tokenizer):
    tokenizer = blank_tokenizer("prepend")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>", "<|user|>>"]})
    text = "<s> a <|user|>> b </s>"
    assert find_special_token(tokenizer, text, 3) == (6, "<|user|>>")
    assert find_special_token(tokenizer, text, 7) == (18, "</s>")
    assert find_special_token(tokenizer, text, 19) is None
