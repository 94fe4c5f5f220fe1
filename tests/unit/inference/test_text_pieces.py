"""Pieces of text while a reply is being written, with tokenizers that spell characters in bytes."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from sft_kit.inference.text_pieces import TextPieces, decode_reply, until_stop
from sft_kit.models.chatglm.tokenization import ChatGLMTokenizer

NUM_REPLIES = 60


@pytest.fixture(scope="module")
def byte_level(trained_tokenizer):
    return trained_tokenizer


@pytest.fixture(scope="module")
def only_bytes():
    """Spells everything but ASCII letters in byte tokens, and decodes as Llama 2's tokenizer."""
    names = ["<unk>", "▁", *map(chr, range(97, 123)), *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {name: number for number, name in enumerate(names)}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


@pytest.fixture(scope="module", params=["chatglm2_tiny_fp16", "chatglm3_tiny_fp16"])
def tiny_chatglm(request, chatglm_fixtures):
    return ChatGLMTokenizer.from_pretrained(chatglm_fixtures / request.param)


@pytest.fixture(scope="module")
def true_chatglm(real_data):
    folder = real_data / "tokenizers" / "chatglm2"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer in {folder}")
    return ChatGLMTokenizer.from_pretrained(folder)


def stream_ids(tokenizer, ids, stop_token_ids=()):
    """Return the pieces that come as ids arrive one by one, and the whole text."""
    pieces = []
    streamed = TextPieces(tokenizer, stop_token_ids, pieces.append)
    for end in range(1, len(ids) + 1):
        streamed.take(ids[:end])
    text = decode_reply(tokenizer, until_stop(ids, stop_token_ids))
    streamed.finish(text)
    return pieces, text


def assert_pieces_are_whole(tokenizer, replies):
    num_pieces = 0
    for ids in replies:
        pieces, text = stream_ids(tokenizer, ids)
        assert "".join(pieces) == text
        assert all(pieces)
        num_pieces += len(pieces)
    assert num_pieces > 3 * len(replies)


def draw_replies(tokenizer, num_bytes, seed):
    """Random ids, half of them byte tokens where the tokenizer has them from id 3 on."""
    rng = random.Random(seed)
    replies = []
    for _ in range(NUM_REPLIES):
        size = rng.randint(1, 30)
        any_id = [rng.randrange(3, tokenizer.vocab_size) for _ in range(size)]
        replies.append(
            [rng.randrange(3, 3 + num_bytes) if rng.random() < 0.5 else i for i in any_id]
        )
    return replies


def test_random_ids_of_a_byte_level_tokenizer_come_in_whole_characters(byte_level):
    assert_pieces_are_whole(byte_level, draw_replies(byte_level, 256, 0))


def test_random_ids_of_a_tokenizer_with_byte_tokens_come_in_whole_characters(tiny_chatglm):
    assert_pieces_are_whole(tiny_chatglm, draw_replies(tiny_chatglm, 256, 1))


def test_random_ids_of_the_true_chatglm_tokenizer_come_in_whole_characters(true_chatglm):
    assert_pieces_are_whole(true_chatglm, draw_replies(true_chatglm, 256, 2))


TEXTS = [
    "你好，世界",
    "草 🦙 naïve 奶牛\n\n吃草",
    "a  b\tc\n d",
    "sophisticated développement 龘龘",
    "🦙🦙",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_streamed_without_half_characters_or_lost_blanks(
    byte_level, only_bytes, tiny_chatglm, text
):
    for tokenizer in (byte_level, only_bytes, tiny_chatglm):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces, whole = stream_ids(tokenizer, ids)
        assert "".join(pieces) == whole == text
        assert "\ufffd" not in "".join(pieces)
        assert len(pieces) > 1


def test_texts_of_the_true_chatglm_tokenizer_are_streamed_whole(true_chatglm):
    for text in TEXTS:
        pieces, whole = stream_ids(
            true_chatglm, true_chatglm(text, add_special_tokens=False)["input_ids"]
        )
        assert "".join(pieces) == whole == text
        assert "\ufffd" not in "".join(pieces)


def test_a_character_of_several_byte_tokens_waits_for_its_last_one(tiny_chatglm):
    ids = tiny_chatglm("x 🦙 y", add_special_tokens=False)["input_ids"]
    assert len(ids) >= 6
    pieces, _ = stream_ids(tiny_chatglm, ids)
    assert [piece for piece in pieces if "🦙" in piece] == [" 🦙"]


def test_a_stop_token_and_what_follows_it_are_no_text(byte_level):
    ids = byte_level("one two")["input_ids"]
    stop = byte_level.eos_token_id
    pieces, text = stream_ids(byte_level, [*ids, 7, *ids], stop_token_ids=(stop, 7))
    assert "".join(pieces) == text == "one two"


def test_only_the_first_stop_token_counts():
    assert until_stop([5, 6, 2, 9, 1], (1, 2)) == [5, 6]
    assert until_stop([5, 6], (1, 2)) == [5, 6]
    assert until_stop([1], (1,)) == []
    assert until_stop([], (1,)) == []
