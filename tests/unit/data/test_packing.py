import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from sft_kit.data.packing import pack_documents
from sft_kit.data.rows import Conversation, Where
from sft_kit.errors import DataError

TEXTS = ["The quick brown fox.", "你好，今天怎么样？", "", "Water boils at one hundred degrees."]


def documents(texts: list[str]) -> list[Conversation]:
    return [
        Conversation(messages=(), where=Where("corpus.txt", line), text=text)
        for line, text in enumerate(texts, start=1)
    ]


def expected_stream(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Every document encoded on its own by the tokenizers library, closed by the end token."""
    stream = []
    for text in texts:
        stream += tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        stream.append(tokenizer.convert_tokens_to_ids(tokenizer.eos_token))
    return stream


@pytest.mark.parametrize("window", [2, 5, 16])
def test_windows_are_the_stream_without_loss_or_repetition(
    tokenizer: PreTrainedTokenizerFast, window: int
):
    stream = expected_stream(TEXTS, tokenizer)
    examples = pack_documents(documents(TEXTS), tokenizer, window)
    packed = [token for example in examples for token in example.input_ids]
    assert len(examples) == len(stream) // window
    assert packed == stream[: len(packed)]
    assert len(stream) - len(packed) < window


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.text(alphabet="abc 你。\n", max_size=30), min_size=1, max_size=8),
    window=st.integers(2, 20),
)
def test_any_documents_are_recounted_by_brute_force(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], window: int
):
    stream = expected_stream(texts, tokenizer)
    if len(stream) < window:
        with pytest.raises(DataError, match=f"{len(stream)} tokens"):
            pack_documents(documents(texts), tokenizer, window)
        return
    examples = pack_documents(documents(texts), tokenizer, window)
    for index, example in enumerate(examples):
        assert example.input_ids == stream[index * window : (index + 1) * window]
        assert example.labels == [-100, *example.input_ids[1:]]
    assert sum(label != -100 for example in examples for label in example.labels) == (
        len(stream) // window * (window - 1)
    )


def test_each_document_is_closed_by_the_end_token(tokenizer: PreTrainedTokenizerFast):
    end = tokenizer.eos_token_id
    stream = expected_stream(TEXTS, tokenizer)
    (example,) = pack_documents(documents(TEXTS), tokenizer, len(stream))
    assert example.input_ids.count(end) == len(TEXTS)
    assert example.input_ids[-1] == end
    assert tokenizer.decode(example.input_ids).split("<|endoftext|>")[:-1] == TEXTS


def test_a_document_begins_with_what_the_tokenizer_puts_in_front_of_a_text(
    llama_tokenizer: PreTrainedTokenizerFast,
):
    from tokenizers.processors import TemplateProcessing

    bos = llama_tokenizer.bos_token_id
    llama_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    assert llama_tokenizer("water")["input_ids"][0] == bos
    stream = expected_stream([f"<s>{text}" for text in TEXTS], llama_tokenizer)
    (example,) = pack_documents(documents(TEXTS), llama_tokenizer, len(stream))
    assert example.input_ids == stream
    assert example.input_ids.count(bos) == len(TEXTS)


def test_every_chat_among_the_documents_is_named(tokenizer: PreTrainedTokenizerFast):
    message = {"role": "user", "content": "Hello"}
    chats = [Conversation(messages=(message,), where=Where("chats.json", line)) for line in (3, 8)]
    with pytest.raises(DataError, match=r"data\.format=text") as caught:
        pack_documents([*documents(TEXTS), *chats], tokenizer, 4)
    assert [problem.where for problem in caught.value.problems] == ["chats.json:3", "chats.json:8"]


def test_text_too_short_for_one_window_says_how_short(tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(DataError, match=r"lower data\.max_length"):
        pack_documents(documents(["short"]), tokenizer, 64)


def test_no_documents_give_no_windows(tokenizer: PreTrainedTokenizerFast):
    assert pack_documents([], tokenizer, 8) == []


def test_a_tokenizer_without_end_token_is_refused(tokenizer: PreTrainedTokenizerFast):
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end-of-text token"):
        pack_documents(documents(TEXTS), tokenizer, 8)
