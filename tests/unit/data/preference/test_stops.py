"""Tokens that a user wants completions to end with."""

import pytest

from sft_kit.data.preference.stops import stop_token_ids
from sft_kit.errors import ConfigError


def test_each_token_is_looked_up_as_it_is_spelled(tokenizer):
    vocabulary = tokenizer.get_vocab()
    found = stop_token_ids(tokenizer, ["<|endoftext|>", "a", "\n"])
    assert found == [vocabulary["<|endoftext|>"], vocabulary["a"], vocabulary["Ċ"]]
    assert stop_token_ids(tokenizer, []) == []


def test_no_token_is_added_in_front(bos_tokenizer):
    assert stop_token_ids(bos_tokenizer, ["a"]) == [bos_tokenizer.get_vocab()["a"]]


def test_texts_that_are_not_one_token_are_told_all_at_once(tokenizer):
    with pytest.raises(ConfigError) as caught:
        stop_token_ids(tokenizer, ["zebra!", "a", ""])
    first, second = map(str, caught.value.problems)
    count = len(tokenizer("zebra!")["input_ids"])
    assert first.startswith(f"ppo.stop_tokens: found 'zebra!', which is {count} tokens")
    assert second.startswith("ppo.stop_tokens: found '', which is 0 tokens")
