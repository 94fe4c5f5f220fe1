"""Shared by the tests of compared answers and prompts."""

import pytest


@pytest.fixture
def bos_tokenizer(llama_tokenizer):
    """Tokenizer that puts `<s>` in front of every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    start = llama_tokenizer.bos_token_id
    llama_tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", start)]
    )
    assert llama_tokenizer("a")["input_ids"][0] == start
    return llama_tokenizer
