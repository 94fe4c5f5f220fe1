"""What an encoder-decoder model writes depends on itself, the source and the settings only."""

import math
import random

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from sft_kit.errors import CheckpointError
from sft_kit.inference.seq2seq import write
from sft_kit.settings import WritingSettings

PAD, END, START, NUM_TOKENS = 0, 1, 2, 14


@pytest.fixture(scope="module")
def letters():
    """Tokenizer with a token a letter."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens = ["<pad>", "</s>", "<s>", *"abcdefghijk"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")


def make_model(family):
    """Random model with large weights, so that it writes something else for every source."""
    torch.manual_seed(8)
    size = {"vocab_size": NUM_TOKENS, "d_model": 16, "pad_token_id": PAD, "eos_token_id": END}
    if family == "t5":
        config = T5Config(
            **size, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.5,
            decoder_start_token_id=PAD,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
    else:
        config = BartConfig(
            **size, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, dropout=0.5,
            max_position_embeddings=20, bos_token_id=START, decoder_start_token_id=END,
            forced_eos_token_id=None,
        )  # fmt: skip
        model = BartForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                scale = 1.5 if parameter.shape[0] == NUM_TOKENS else 0.6
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        if family == "bart":
            model.final_logits_bias[0, END] = 12.0
        else:
            model.get_input_embeddings().weight[END] *= 2.5  # the likeliest token, or the least
    return model.train()


def sources(count, seed=1):
    draw = random.Random(seed)
    return [[*draw.choices(range(3, NUM_TOKENS), k=draw.randint(1, 9)), END] for _ in range(count)]


def log_probability(model, source, ids):
    """Mean log-probability of ids, their end included, behind the start."""
    start = model.config.decoder_start_token_id
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[start, *ids[:-1]]])
        ).logits[0]
    logs = logits.double().log_softmax(-1)
    return logs[torch.arange(len(ids)), torch.tensor(ids)].mean().item()


def argmax_ids(model, source, length):
    ids = [model.config.decoder_start_token_id]
    while len(ids) <= length and (len(ids) == 1 or ids[-1] != END):
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([ids])
            ).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[1:]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_greedy_writing_is_argmax_step_by_step_whatever_shares_the_batch(letters, family):
    model = make_model(family)
    rows = sources(20)
    written = write(model, letters, rows, WritingSettings(max_new_tokens=7), batch_size=6)
    model.eval()
    expected = [argmax_ids(model, row, 7) for row in rows]
    assert [one.ids for one in written] == [[t for t in ids if t != END] for ids in expected]
    assert [one.stopped for one in written] == [ids[-1] == END for ids in expected]
    special = (PAD, END)
    assert [one.text.split() for one in written] == [
        letters.convert_ids_to_tokens([t for t in ids if t not in special]) for ids in expected
    ]
    assert {one.stopped for one in written} == {True, False}
    assert len({one.text for one in written}) > 8


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_beams_find_likelier_texts_than_greed(letters, family):
    model = make_model(family)
    rows = sources(20)
    greedy, beams = (
        write(model, letters, rows, WritingSettings(max_new_tokens=6, num_beams=num))
        for num in (1, 4)
    )
    model.eval()
    gains = []
    for row, *both in zip(rows, greedy, beams, strict=True):
        ids = ([*one.ids, *[END] * one.stopped] for one in both)
        plain, found = (log_probability(model, row, one) for one in ids)
        gains.append(found - plain)
    assert min(gains) > -1e-6
    assert sum(gain > 1e-3 for gain in gains) >= 2


def test_a_checkpoints_own_settings_take_no_part_and_stay_as_they_were(letters):
    from transformers import GenerationConfig

    plain, model = make_model("t5"), make_model("t5")
    shipped = GenerationConfig(
        decoder_start_token_id=PAD, eos_token_id=END, pad_token_id=PAD, no_repeat_ngram_size=1,
        num_beams=3, length_penalty=5.0, do_sample=True, temperature=9.0, min_new_tokens=5,
    )  # fmt: skip
    model.generation_config = shipped
    rows, settings = sources(8), WritingSettings(max_new_tokens=6)
    state = torch.get_rng_state()
    found = write(model, letters, rows, settings)
    assert [one.ids for one in found] == [one.ids for one in write(plain, letters, rows, settings)]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config is shipped
    assert all(module.training for module in model.modules())


def test_a_token_that_must_begin_every_text_does(letters):
    model = make_model("bart")
    model.generation_config.forced_bos_token_id = 5
    written = write(model, letters, sources(6), WritingSettings(max_new_tokens=4))
    assert {one.ids[0] for one in written} == {5}


def test_the_decoders_context_bounds_what_is_written(letters):
    model = make_model("bart")
    with torch.no_grad():
        model.final_logits_bias[0, END] = -math.inf  # never ends by itself
    written = write(model, letters, sources(3), WritingSettings(max_new_tokens=50))
    assert [len(one.ids) for one in written] == [20, 20, 20]
    assert not any(one.stopped for one in written)


def test_no_sources_give_no_texts(letters):
    assert write(make_model("t5"), letters, [], WritingSettings()) == []


def test_a_model_without_a_first_token_is_refused(letters):
    model = make_model("t5")
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(CheckpointError, match="decoder_start_token_id"):
        write(model, letters, sources(1), WritingSettings())
