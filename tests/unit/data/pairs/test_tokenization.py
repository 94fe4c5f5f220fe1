"""Token ids of sources, labels of targets, where both are cut, and what is warned of."""

import pytest

from sft_kit.data.pairs.rows import Pair
from sft_kit.data.pairs.tokenization import (
    check_pairs,
    encode_sources,
    to_pair_dataset,
    tokenize_pairs,
)
from sft_kit.data.rows import IGNORED, Where
from sft_kit.errors import DataError
from sft_kit.settings import PairDataSettings


def pairs_of(*texts):
    return [Pair(*both, Where("rows", number)) for number, both in enumerate(texts, start=1)]


def settings_of(**changes):
    return PairDataSettings("rows", **changes)


TEXTS = (("the cat sat on the mat", "a dog"), ("hat", "the dog ate the hat on the mat"))


def test_both_texts_begin_and_end_as_the_tokenizer_says(t5_tokenizer, bart_tokenizer):
    for tokenizer in (t5_tokenizer, bart_tokenizer):
        examples = tokenize_pairs(pairs_of(*TEXTS), tokenizer, settings_of())
        for example, (source, target) in zip(examples, TEXTS, strict=True):
            assert example.input_ids == tokenizer(source)["input_ids"]
            assert example.labels == tokenizer(target)["input_ids"]
            assert example.labels[-1] == tokenizer.eos_token_id
            assert not example.was_source_cut
            assert not example.was_target_cut


def test_labels_end_even_where_the_tokenizer_adds_no_end(llama_tokenizer):
    (example,) = tokenize_pairs(pairs_of(("read", "write")), llama_tokenizer, settings_of())
    assert example.labels[-1] == llama_tokenizer.eos_token_id
    assert llama_tokenizer.decode(example.labels[:-1]) == "write"
    assert llama_tokenizer.eos_token_id not in example.input_ids


def test_a_prefix_stands_before_every_source_and_no_target(bart_tokenizer):
    settings = settings_of(prefix="say: ")
    (example, _) = tokenize_pairs(pairs_of(*TEXTS), bart_tokenizer, settings)
    assert (
        bart_tokenizer.decode(example.input_ids, skip_special_tokens=True) == f"say: {TEXTS[0][0]}"
    )
    assert bart_tokenizer.decode(example.labels, skip_special_tokens=True) == TEXTS[0][1]
    ids, _ = encode_sources([TEXTS[0][0]], bart_tokenizer, settings)
    assert ids == [example.input_ids]


def test_a_cut_source_keeps_its_special_tokens_and_a_cut_target_does_not_end(bart_tokenizer):
    settings = settings_of(max_source_length=6, max_target_length=7)
    first, second = tokenize_pairs(pairs_of(*TEXTS), bart_tokenizer, settings)
    whole = bart_tokenizer(TEXTS[0][0])["input_ids"]
    assert first.input_ids == [*whole[:5], bart_tokenizer.eos_token_id]
    assert (first.was_source_cut, first.was_target_cut) == (True, False)
    assert second.labels == bart_tokenizer(TEXTS[1][1])["input_ids"][:7]
    assert (second.was_source_cut, second.was_target_cut) == (False, True)
    source, target = check_pairs([first, second], bart_tokenizer, settings)
    assert "1 of 2 sources are cut at 6 tokens (line 1)" in source
    assert "1 of 2 targets are cut at 7 tokens (line 2)" in target
    assert "does not learn to end" in target


def test_a_target_of_exactly_the_length_is_whole_and_ends(bart_tokenizer):
    length = len(bart_tokenizer(TEXTS[1][1])["input_ids"])
    settings = settings_of(max_target_length=length)
    _, example = tokenize_pairs(pairs_of(*TEXTS), bart_tokenizer, settings)
    assert len(example.labels) == length
    assert example.labels[-1] == bart_tokenizer.eos_token_id
    assert check_pairs([example], bart_tokenizer, settings) == []


def test_the_context_bounds_both_lengths(bart_tokenizer, monkeypatch):
    monkeypatch.setattr(bart_tokenizer, "model_max_length", 5)
    examples = tokenize_pairs(pairs_of(*TEXTS), bart_tokenizer, settings_of())
    assert max(len(one.input_ids) for one in examples) == 5
    assert max(len(one.labels) for one in examples) == 5
    warnings = check_pairs(examples, bart_tokenizer, settings_of())
    assert any("data.max_source_length=256 was lowered to 5" in one for one in warnings)
    assert any("data.max_target_length=128 was lowered to 5" in one for one in warnings)


def test_text_that_the_tokenizer_reads_as_a_special_token_is_refused(t5_tokenizer):
    rows = pairs_of(("a cat", "fine"), ("the </s> mat", "a dog"), ("a dog", "the hat</s> a"))
    with pytest.raises(DataError) as caught:
        tokenize_pairs(rows, t5_tokenizer, settings_of())
    found = [(problem.where, problem.key) for problem in caught.value.problems]
    assert found == [("rows:2", "source"), ("rows:3", "target")]
    assert "'</s>'" in str(caught.value)


def test_characters_that_are_read_one_by_one_are_no_special_token(bart_tokenizer):
    text = "the </s> mat"
    (example,) = tokenize_pairs(pairs_of((text, text)), bart_tokenizer, settings_of())
    assert example.labels.count(bart_tokenizer.eos_token_id) == 1
    assert bart_tokenizer.decode(example.labels[1:-1]) == text


def test_unknown_characters_of_targets_are_told(t5_tokenizer):
    rows = pairs_of(*[("a cat", "a dog")] * 5, ("a cat", "Ω dog"))
    examples = tokenize_pairs(rows, t5_tokenizer, settings_of())
    (warning,) = check_pairs(examples, t5_tokenizer, settings_of())
    assert "1 of 6 targets have characters that the tokenizer does not know (line 6)" in warning
    assert check_pairs(examples[:5], t5_tokenizer, settings_of()) == []


def test_a_text_without_any_token_is_refused(llama_tokenizer):
    (example,) = tokenize_pairs(pairs_of(("a", "b")), llama_tokenizer, settings_of())
    example.input_ids.clear()
    with pytest.raises(DataError, match=r"1 source of 1 have no token \(line 1\)"):
        check_pairs([example], llama_tokenizer, settings_of())


def test_a_tokenizer_without_an_end_is_refused(llama_tokenizer):
    llama_tokenizer.eos_token = None
    with pytest.raises(DataError, match="no token that ends a text"):
        tokenize_pairs(pairs_of(("a", "b")), llama_tokenizer, settings_of())


def test_a_pair_in_one_row_learns_the_target_only(t5_tokenizer):
    (example, _) = tokenize_pairs(pairs_of(*TEXTS), t5_tokenizer, settings_of())
    row = example.in_one_row()
    num_read = len(example.input_ids)
    assert row.input_ids == example.input_ids + example.labels
    assert row.labels == [IGNORED] * num_read + example.labels


def test_batches_pad_on_the_right_and_shift_as_transformers_does(t5_tokenizer):
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from sft_kit.data.corpus.collators import pad_corrupted

    examples = tokenize_pairs(pairs_of(*TEXTS), t5_tokenizer, settings_of())
    batch = pad_corrupted(to_pair_dataset(examples), pad_token_id=0, decoder_start_token_id=0)
    for row, example in enumerate(examples):
        num_read, num_written = len(example.input_ids), len(example.labels)
        assert batch["input_ids"][row, :num_read].tolist() == example.input_ids
        assert batch["attention_mask"][row].sum() == num_read
        assert batch["labels"][row, :num_written].tolist() == example.labels
        assert (batch["labels"][row, num_written:] == IGNORED).all()
    config = T5Config(
        vocab_size=len(t5_tokenizer), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    expected = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    assert torch.equal(batch["decoder_input_ids"], expected)
