"""Which tokens corruption may touch, and which ones it needs."""

import copy

import pytest

from sft_kit.data.corpus.vocabulary import vocabulary_of
from sft_kit.data.corruption.choose import objective_of
from sft_kit.errors import DataError
from sft_kit.settings import PrefixSettings


def test_the_tokens_of_bert_are_found_and_none_of_them_is_ordinary(bert_tokenizer):
    vocabulary = vocabulary_of(bert_tokenizer, "masked")
    assert (vocabulary.pad, vocabulary.start, vocabulary.end, vocabulary.mask) == (0, 2, 3, 4)
    assert vocabulary.sentinels == ()
    assert vocabulary.ordinary.tolist() == list(range(5, vocabulary.size))
    assert vocabulary.size == len(bert_tokenizer)


def test_sentinels_come_in_the_order_of_their_numbers():
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=12)
    vocabulary = vocabulary_of(tokenizer, "spans")
    tokens = tokenizer.convert_ids_to_tokens(list(vocabulary.sentinels))
    assert tokens == [f"<extra_id_{number}>" for number in range(12)]
    assert tokenizer.convert_ids_to_tokens([vocabulary.end, vocabulary.pad]) == ["</s>", "<pad>"]
    ordinary = tokenizer.convert_ids_to_tokens(vocabulary.ordinary.tolist())
    assert sorted(ordinary) == ["b", "▁a"]


def test_a_causal_text_ends_with_the_token_that_models_write(bert_tokenizer):
    tokenizer = copy.deepcopy(bert_tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert vocabulary_of(tokenizer, "causal").end == end
    assert vocabulary_of(tokenizer, "masked").end == tokenizer.sep_token_id


@pytest.mark.parametrize(
    ("needs", "missing", "family"),
    [
        ("masked", ["mask_token", "pad_token"], "bert"),
        ("left_to_right", ["pad_token"], "bert"),
        ("prefix", ["mask_token", "pad_token"], "bert"),
        ("spans", ["<extra_id_0>", "pad_token"], "t5"),
        ("denoise", ["mask_token", "pad_token"], "bart"),
    ],
)
def test_what_a_tokenizer_lacks_is_named_with_what_to_do(tokenizer, needs, missing, family):
    assert vocabulary_of(tokenizer, "causal").mask == -1
    with pytest.raises(DataError) as caught:
        vocabulary_of(tokenizer, needs)
    found = [problem.message for problem in caught.value.problems]
    assert len(found) == len(missing)
    assert all(name in message for name, message in zip(missing, found, strict=True))
    assert f"--family {family}`" in str(caught.value)


def test_one_transformer_that_only_reads_left_to_right_needs_no_mask_token(bert_tokenizer):
    tokenizer = copy.deepcopy(bert_tokenizer)
    tokenizer.mask_token = None
    needs = {
        name: objective_of(PrefixSettings(objective=name), 32).needs
        for name in ("bidirectional", "causal", "prefix", "infill")
    }
    vocabulary = vocabulary_of(tokenizer, needs.pop("causal"))
    assert (vocabulary.pad, vocabulary.start, vocabulary.end, vocabulary.mask) == (0, 2, 3, -1)
    for name in needs.values():
        with pytest.raises(DataError, match="found no mask token"):
            vocabulary_of(tokenizer, name)


@pytest.mark.slow
def test_the_true_tokenizers_have_what_their_families_need(real_data):
    from transformers import AutoTokenizer

    def load(name):
        return AutoTokenizer.from_pretrained(real_data / "tokenizers" / name)

    bert = vocabulary_of(load("bert-base-chinese"), "masked")
    assert (bert.size, bert.pad, bert.start, bert.end, bert.mask) == (21128, 0, 101, 102, 103)
    assert len(bert.ordinary) == 21128 - 5
    gpt2 = vocabulary_of(load("gpt2"), "causal")
    assert (gpt2.size, gpt2.end, len(gpt2.ordinary)) == (50257, 50256, 50256)
    t5 = load("t5")
    t5.add_special_tokens({"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"})
    spans = vocabulary_of(t5, "spans")
    assert spans.sentinels == tuple(range(32099, 31999, -1))
    assert (spans.size, spans.pad, spans.end) == (32100, 0, 1)
    assert spans.ordinary.tolist() == list(range(3, 32000))
