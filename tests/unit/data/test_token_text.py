"""Tokens as text: nothing lost, nothing garbled, with three kinds of tokenizer."""

import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft_kit.data.rows import IGNORED, Example, Where
from sft_kit.data.token_text import last_tokens, mark_tokens, readable

WORDS = ["hello world", "the play was played well", "今天天气很好", "naïve café"]
any_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40
).filter(lambda text: "<|" not in text)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def make_example(ids, num_ignored=1):
    labels = [IGNORED] * min(num_ignored, len(ids)) + list(ids[num_ignored:])
    return Example(list(ids), labels, False, Where("chat.jsonl", 1))


@pytest.fixture(scope="module")
def byte_fallback_tokenizer():
    """Like Llama 2's: words begin with ▁, unknown characters fall back to <0xE4> pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
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
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    core.train_from_iterator(WORDS[:2], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


@pytest.fixture(scope="module")
def word_piece_tokenizer():
    """Like BERT's: ## continues a word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["[UNK]", "play", "##ed", "##ing", "the", "well", "."]
    ids = {token: index for index, token in enumerate(vocabulary)}
    core = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=any_text, num_ignored=st.integers(0, 10))
def test_byte_level_tokens_join_to_the_text_they_came_from(trained_tokenizer, text, num_ignored):
    prompt, completion = encode(trained_tokenizer, text[:3]), encode(trained_tokenizer, text[3:])
    example = make_example(prompt + completion, len(prompt))
    marked = mark_tokens(example, trained_tokenizer)
    assert "".join(token.text for token in marked) == text
    assert [token.id for token in marked] == example.input_ids
    assert [token.supervised for token in marked] == [label != IGNORED for label in example.labels]


def test_a_character_of_several_tokens_stands_whole_in_its_first_token(tokenizer):
    ids = encode(tokenizer, "龘😀")
    assert len(ids) == len("龘😀".encode())  # one token per byte: both are unknown to the merges
    texts = [token.text for token in mark_tokens(make_example(ids), tokenizer)]
    assert "".join(texts) == "‹E9›‹BE›‹98›😀"  # the first byte is ignored, the others are learnt
    texts = [token.text for token in mark_tokens(make_example(ids, 0), tokenizer)]
    assert texts == ["龘", "", "", "😀", "", "", ""]


@pytest.mark.parametrize("num_kept", [1, 2])
def test_a_character_cut_in_its_middle_is_spelled_in_hex(tokenizer, num_kept):
    ids = encode(tokenizer, "ab龘")[: -3 + num_kept]
    text = "".join(token.text for token in mark_tokens(make_example(ids, 0), tokenizer))
    assert text == "ab" + "".join(f"‹{byte:02X}›" for byte in "龘".encode()[:num_kept])


def test_every_lone_byte_is_spelled_as_itself(tokenizer):
    for character in map(chr, range(0x80, 0x800)):
        ids = encode(tokenizer, character)
        spelled = [mark_tokens(make_example([one], 0), tokenizer)[0].text for one in ids]
        assert spelled == [f"‹{byte:02X}›" for byte in character.encode()]


def test_text_goes_on_normally_behind_bytes_that_form_no_character(tokenizer):
    broken = encode(tokenizer, "龘")[:2] + encode(tokenizer, " dog 水")
    text = "".join(token.text for token in mark_tokens(make_example(broken, 0), tokenizer))
    assert text == "‹E9›‹BE› dog 水"


def test_a_replacement_character_of_the_data_is_named(tokenizer):
    ids = encode(tokenizer, "a\ufffdb")
    text = "".join(readable(token.text) for token in mark_tokens(make_example(ids, 0), tokenizer))
    assert re.fullmatch(r"a(‹EF›‹BF›‹BD›|‹U\+FFFD›)b", text)


def test_special_tokens_are_shown_as_they_are_spelled(tokenizer):
    ids = [*encode(tokenizer, "fox"), tokenizer.eos_token_id]
    assert mark_tokens(make_example(ids), tokenizer)[-1].text == "<|endoftext|>"


@pytest.mark.parametrize("text", ["hello world", "the play 水 was é 😀 well", "played", "a\nb"])
def test_byte_fallback_tokens_keep_spaces_and_characters(byte_fallback_tokenizer, text):
    ids = [*encode(byte_fallback_tokenizer, text), byte_fallback_tokenizer.eos_token_id]
    marked = mark_tokens(make_example(ids, 0), byte_fallback_tokenizer)
    assert "".join(token.text for token in marked) == text + "</s>"


def test_a_cut_byte_fallback_character_is_spelled_in_hex(byte_fallback_tokenizer):
    ids = encode(byte_fallback_tokenizer, "hello 水")[:-1]
    marked = mark_tokens(make_example(ids, 0), byte_fallback_tokenizer)
    assert "".join(token.text for token in marked) == "hello ‹E6›‹B0›"


def test_the_blank_of_a_token_behind_bytes_that_form_no_character_is_kept(byte_fallback_tokenizer):
    tokenizer = byte_fallback_tokenizer
    broken = encode(tokenizer, "hello 水")[:-1]
    behind = [tokenizer.convert_tokens_to_ids(token) for token in ("▁", "w", "<0x0A>")]
    marked = mark_tokens(make_example(broken + behind, 0), tokenizer)
    assert "".join(token.text for token in marked) == "hello ‹E6›‹B0› w\n"


def test_a_replacement_character_that_is_a_token_hides_no_text(train_tokenizer):
    tokenizer = train_tokenizer(
        "prepend", ("\ufffd", "b\ufffd\ufffd", "c\ufffd\ufffd", "yes", "b") * 5
    )
    assert {"▁\ufffd", "\ufffd\ufffd"} <= set(tokenizer.get_vocab())
    ids = tokenizer.convert_tokens_to_ids(["▁yes", "▁\ufffd", "\ufffd\ufffd", "▁b"])
    texts = [readable(token.text) for token in mark_tokens(make_example(ids, 0), tokenizer)]
    assert texts == ["yes", " ‹U+FFFD›", "‹U+FFFD›‹U+FFFD›", " b"]


def test_word_pieces_join_without_their_continuation_signs(word_piece_tokenizer):
    ids = encode(word_piece_tokenizer, "the played playing well.")
    marked = mark_tokens(make_example(ids), word_piece_tokenizer)
    assert [token.text for token in marked] == [
        "the", " play", "ed", " play", "ing", " well", " .",
    ]  # fmt: skip


def test_last_tokens_are_the_last_pieces_of_text(tokenizer):
    ids = [*encode(tokenizer, "dog 龘"), tokenizer.eos_token_id]
    assert last_tokens(make_example(ids, 0), tokenizer, 2) == ["龘", "<|endoftext|>"]
    assert len(last_tokens(make_example(ids, 0), tokenizer)) <= 5


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_real_tokenizers_show_every_token_of_mixed_text(real_data, name):
    from transformers import AutoTokenizer

    folder = real_data / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"no tokenizer in {folder}")
    real = AutoTokenizer.from_pretrained(folder)
    text = (
        "Human: How do I say hello? I don't know." if name == "t5" else "请说 “你好”😀 naïve\n\tx"
    )
    ids = encode(real, text)
    marked = mark_tokens(make_example(ids, 0), real)
    assert "".join(token.text for token in marked) == text


def test_real_chatglm_shows_every_token_blank_and_byte_of_mixed_text(real_data):
    from sft_kit.models.chatglm.tokenization import ChatGLMTokenizer

    folder = real_data / "tokenizers" / "chatglm2"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer in {folder}")
    real = ChatGLMTokenizer.from_pretrained(folder)
    alphabet = [*map(chr, range(32, 127)), *"今天天气很好，。：é\n\t😀𠮷龘\u0301"]
    rng = random.Random(0)
    for _ in range(300):
        text = "你" + "".join(rng.choices(alphabet, k=rng.randint(1, 30)))
        marked = mark_tokens(make_example(real(text)["input_ids"], 0), real)
        assert "".join(token.text for token in marked) == f"[gMASK]<sop> {text}"
    ids = real("你𠮷")["input_ids"]
    texts = [token.text for token in mark_tokens(make_example(ids, 0), real)]
    assert texts == ["[gMASK]", "<sop>", " 你", "𠮷", "", "", ""]
    cut = [*ids[:-1], *encode(real, "a\ufffd好")]
    texts = [readable(token.text) for token in mark_tokens(make_example(cut, 0), real)]
    assert texts[3:] == ["‹F0›", "‹A0›", "‹AE›", " a", "‹U+FFFD›", "好"]


# --- what can't be seen --------------------------------------------------------------------------


def test_line_ends_and_tabs_become_visible():
    assert readable("a\nb\tc\r\n") == "a↵\nb⇥\tc␍↵\n"


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\x9b", "\u202e", "\u200b", "\ufeff"])
def test_control_and_format_characters_are_named_not_sent(character):
    assert readable(f"a{character}b") == f"a‹U+{ord(character):04X}›b"


def test_ordinary_text_in_any_script_is_left_alone():
    text = "Ångström 水 日本語 한국어 עברית 😀 می\u200cخواهم"
    assert readable(text) == text
