"""Replies against brute force: no cache, no batch, no `generate`."""

import dataclasses
import logging
import random
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.utils import logging as transformers_logging

from sft_kit.data.templates import Template, encode_prompt
from sft_kit.errors import CheckpointError, DataError
from sft_kit.inference.generate import generate, stop_ids, stream
from sft_kit.settings import SampleSettings

WORDS = [
    "what",
    "does",
    "a",
    "cow",
    "eat",
    "name",
    "the",
    "opposite",
    "of",
    "hot",
    "sea",
    "奶牛",
    "吃",
    "什么",
    "blue",
    "boats",
    "night",
    "?",
]


def ask(text):
    return [{"role": "user", "content": text}]


def make_prompts(count, seed=0, longest=12):
    rng = random.Random(seed)
    return [ask(" ".join(rng.choices(WORDS, k=rng.randint(1, longest)))) for _ in range(count)]


@torch.no_grad()
def next_logits(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0, -1].double()


def continue_greedily(model, ids, num_tokens, stop_token_id):
    """Second implementation: read everything again for every token."""
    reply = []
    for _ in range(num_tokens):
        token = int(next_logits(model, ids + reply).argmax())
        if token == stop_token_id:
            return reply, True
        reply.append(token)
    return reply, False


def draw_first_tokens(run, prompt, sampling, num_draws):
    """Count the first token over many seeds."""
    counts = {}
    for seed in range(num_draws):
        settings = dataclasses.replace(sampling, seed=seed, max_new_tokens=1)
        (reply,) = generate(run.model, run.tokenizer, run.template, [prompt], settings)
        token = reply.ids[0] if reply.ids else run.template.stop_token_id
        counts[token] = counts.get(token, 0) + 1
    return counts


def test_greedy_replies_equal_a_loop_without_cache(run):
    prompts = make_prompts(12)
    replies = generate(
        run.model, run.tokenizer, run.template, prompts, SampleSettings(max_new_tokens=24)
    )
    distinct = set()
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = encode_prompt(run.tokenizer, run.template, prompt)
        expected, stopped = continue_greedily(run.model, ids, 24, run.template.stop_token_id)
        assert reply.ids == expected
        assert reply.stopped == stopped
        assert reply.text == run.tokenizer.decode(expected, skip_special_tokens=True).strip()
        distinct.add(tuple(expected))
    assert len(distinct) == 12


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_fifty_prompts_in_batches_get_the_replies_they_get_alone(run, temperature):
    prompts = make_prompts(50, seed=1)
    sampling = SampleSettings(max_new_tokens=10, temperature=temperature, seed=7)
    alone = [
        generate(run.model, run.tokenizer, run.template, [prompt], sampling)[0]
        for prompt in prompts
    ]
    for batch_size in (8, 50):
        batched = generate(
            run.model, run.tokenizer, run.template, prompts, sampling, batch_size=batch_size
        )
        assert batched == alone
    assert len({encode_length(run, prompt) for prompt in prompts}) > 10


def encode_length(run, prompt):
    return len(encode_prompt(run.tokenizer, run.template, prompt))


def test_replies_come_in_the_order_of_the_prompts_and_none_give_none(run):
    long, short = ask("the sea is wide and blue " * 2), ask("hot")
    settings = SampleSettings(max_new_tokens=5)
    together = generate(run.model, run.tokenizer, run.template, [long, short, long], settings)
    swapped = generate(run.model, run.tokenizer, run.template, [short, long], settings)
    assert together == [swapped[1], swapped[0], swapped[1]]
    assert together[0] != together[1]
    assert generate(run.model, run.tokenizer, run.template, [], settings) == []


def test_top_k_draws_exactly_the_k_likeliest_tokens_as_often_as_they_should(run):
    prompt = ask("cow")
    logits = next_logits(run.model, encode_prompt(run.tokenizer, run.template, prompt))
    likeliest = logits.topk(3)
    expected = (likeliest.values / 2.0).softmax(0).tolist()
    counts = draw_first_tokens(run, prompt, SampleSettings(temperature=2.0, top_k=3), 250)
    assert set(counts) == set(likeliest.indices.tolist())
    for token, probability in zip(likeliest.indices.tolist(), expected, strict=True):
        assert counts[token] / 250 == pytest.approx(probability, abs=0.12)


def test_top_p_draws_only_from_the_smallest_set_with_that_probability(run):
    prompt = ask("sea")
    logits = next_logits(run.model, encode_prompt(run.tokenizer, run.template, prompt))
    probabilities = (logits / 3.0).softmax(0)
    nucleus, total = set(), 0.0
    for token in probabilities.argsort(descending=True).tolist():
        if total >= 0.5:
            break
        nucleus.add(token)
        total += float(probabilities[token])
    counts = draw_first_tokens(run, prompt, SampleSettings(temperature=3.0, top_p=0.5), 120)
    assert len(nucleus) > 1
    assert set(counts) <= nucleus
    assert len(counts) > 1
    free = draw_first_tokens(run, prompt, SampleSettings(temperature=3.0), 120)
    assert not set(free) <= nucleus


def test_the_same_seed_gives_the_same_reply_and_another_seed_another(run):
    prompts = make_prompts(4)

    def texts(seed):
        sampling = SampleSettings(max_new_tokens=12, temperature=1.0, seed=seed)
        return generate(run.model, run.tokenizer, run.template, prompts, sampling)

    assert texts(3) == texts(3)
    assert texts(3) != texts(4)


def test_sampling_neither_reads_nor_moves_the_global_random_state(run):
    sampling = SampleSettings(max_new_tokens=8, temperature=1.0)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = generate(run.model, run.tokenizer, run.template, make_prompts(3), sampling)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert generate(run.model, run.tokenizer, run.template, make_prompts(3), sampling) == first


@pytest.mark.parametrize("temperature", [1e-3, 1e-9, 1e-45])
def test_a_temperature_near_zero_is_greedy(run, temperature):
    prompts = make_prompts(5)
    greedy = generate(
        run.model, run.tokenizer, run.template, prompts, SampleSettings(max_new_tokens=8)
    )
    cold = SampleSettings(max_new_tokens=8, temperature=temperature)
    assert generate(run.model, run.tokenizer, run.template, prompts, cold) == greedy


def test_dropout_is_off_while_answering_and_training_mode_comes_back(run):
    expected = generate(
        run.model, run.tokenizer, run.template, make_prompts(3), SampleSettings(max_new_tokens=9)
    )
    run.model.train()
    run.model.transformer.h[1].eval()
    modes = [module.training for module in run.model.modules()]
    replies = generate(
        run.model, run.tokenizer, run.template, make_prompts(3), SampleSettings(max_new_tokens=9)
    )
    assert replies == expected
    assert [module.training for module in run.model.modules()] == modes
    assert True in modes
    assert False in modes


def test_gradient_checkpointing_and_the_cache_setting_stay_as_they_were(run):
    expected = generate(
        run.model, run.tokenizer, run.template, make_prompts(2), SampleSettings(max_new_tokens=9)
    )
    run.model.train()
    run.model.activation_checkpointing_enable()
    run.model.config.use_cache = False
    replies = generate(
        run.model, run.tokenizer, run.template, make_prompts(2), SampleSettings(max_new_tokens=9)
    )
    assert replies == expected
    assert run.model.is_activation_checkpointing
    assert run.model.config.use_cache is False


def test_generation_settings_of_the_checkpoint_take_no_part(run):
    prompts, sampling = make_prompts(4), SampleSettings(max_new_tokens=12)
    expected = generate(run.model, run.tokenizer, run.template, prompts, sampling)
    shipped = run.model.generation_config
    shipped.update(repetition_penalty=50.0, min_new_tokens=3, num_beams=3, max_length=7)
    assert generate(run.model, run.tokenizer, run.template, prompts, sampling) == expected
    assert run.model.generation_config is shipped
    assert shipped.repetition_penalty == 50.0


def test_nothing_is_warned_about(run):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    transformers_logging.warning_once.cache_clear()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for sampling in (SampleSettings(), SampleSettings(temperature=0.8, top_k=5, top_p=0.9)):
                generate(run.model, run.tokenizer, run.template, make_prompts(3), sampling)
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []


def test_a_reply_ends_before_the_stop_token_of_the_template(run):
    prompt = ask("boats")
    ids = encode_prompt(run.tokenizer, run.template, prompt)
    unstopped, _ = continue_greedily(run.model, ids, 20, -1)
    stop = unstopped[6]
    end = unstopped.index(stop)
    template = Template(run.template.name, run.template.source, "stop", stop)
    (reply,) = generate(
        run.model, run.tokenizer, template, [prompt], SampleSettings(max_new_tokens=20)
    )
    assert reply.ids == unstopped[:end]
    assert reply.stopped
    limit = SampleSettings(max_new_tokens=end)
    (cut,) = generate(run.model, run.tokenizer, template, [prompt], limit)
    assert cut.ids == reply.ids
    assert not cut.stopped


def test_a_reply_ends_at_any_stop_token_of_the_template(run):
    prompts = make_prompts(6, seed=4)
    encoded = [encode_prompt(run.tokenizer, run.template, prompt) for prompt in prompts]
    unstopped = [continue_greedily(run.model, ids, 20, -1)[0] for ids in encoded]
    last, earlier = unstopped[0][9], unstopped[0][4]
    template = dataclasses.replace(
        run.template,
        stop_token="last", stop_token_id=last, turn_stop_token="turn", turn_stop_token_id=earlier,
    )  # fmt: skip
    run.model.generation_config.eos_token_id = None
    replies = generate(
        run.model, run.tokenizer, template, prompts, SampleSettings(max_new_tokens=20)
    )
    ends = []
    for ids, reply in zip(unstopped, replies, strict=True):
        positions = [ids.index(stop) for stop in (last, earlier) if stop in ids]
        ends.append(min(positions, default=None))
        assert reply.ids == (ids if ends[-1] is None else ids[: ends[-1]])
        assert reply.stopped == (ends[-1] is not None)
    assert ends[0] <= 4
    assert len(set(ends)) > 1


@pytest.mark.parametrize("as_list", [False, True])
def test_a_reply_also_ends_at_the_end_tokens_that_the_checkpoint_names(run, as_list):
    prompt = ask("boats")
    ids = encode_prompt(run.tokenizer, run.template, prompt)
    unstopped, _ = continue_greedily(run.model, ids, 20, -1)
    named = unstopped[6]
    run.model.generation_config.eos_token_id = [399, named] if as_list else named
    sampling, pieces = SampleSettings(max_new_tokens=20), []
    (reply,) = generate(run.model, run.tokenizer, run.template, [prompt], sampling)
    assert reply.ids == unstopped[: unstopped.index(named)]
    assert reply.stopped
    assert stop_ids(run.model, run.template)[0] == run.template.stop_token_id
    assert set(stop_ids(run.model, run.template)) == {
        run.template.stop_token_id, named, *([399] if as_list else []),
    }  # fmt: skip
    num_steps = []
    run.model.register_forward_pre_hook(lambda *_: num_steps.append(1))
    streamed = stream(run.model, run.tokenizer, run.template, prompt, sampling, pieces.append)
    assert streamed == reply
    assert "".join(pieces) == reply.text
    assert len(num_steps) == len(reply.ids) + 1


def test_a_reply_ends_where_the_context_ends_and_others_in_the_batch_go_on(run):
    context = run.model.config.n_positions
    long, short = ask("hot " * 24), ask("hot")
    room = context - encode_length(run, long)
    assert 0 < room < 40
    stopless = Template(run.template.name, run.template.source, "none", len(run.tokenizer) - 1)
    run.model.lm_head.weight.data[len(run.tokenizer) - 1] = 0.0
    first, second = generate(
        run.model, run.tokenizer, stopless, [long, short], SampleSettings(max_new_tokens=40)
    )
    ids = encode_prompt(run.tokenizer, stopless, long)
    assert first.ids == continue_greedily(run.model, ids, room, -1)[0]
    assert (len(first.ids), len(second.ids)) == (room, 40)


def test_prompts_without_room_for_a_reply_are_all_named_with_numbers(run):
    prompts = [ask("hot " * 90), ask("hot"), ask("sea " * 95)]
    lengths = [encode_length(run, prompt) for prompt in prompts]
    with pytest.raises(DataError) as caught:
        generate(run.model, run.tokenizer, run.template, prompts, SampleSettings())
    assert [problem.where for problem in caught.value.problems] == ["prompt 1", "prompt 3"]
    assert f"{lengths[0]:,} tokens" in str(caught.value)
    assert f"at most {run.model.config.n_positions}" in str(caught.value)


def test_a_prompt_without_tokens_is_refused(run):
    nothing = Template("plain", "{{ '' }}", run.template.stop_token, run.template.stop_token_id)
    run.tokenizer.chat_template = nothing.source
    with pytest.raises(DataError, match="prompt 1: has no token to continue"):
        generate(run.model, run.tokenizer, nothing, [ask("")], SampleSettings())


# PEFT 0.21.2 still asks transformers for the old name of activation checkpointing.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_model_with_an_adapter_answers_with_the_adapter(run):
    prompts, sampling = make_prompts(6), SampleSettings(max_new_tokens=16)
    base = generate(run.model, run.tokenizer, run.template, prompts, sampling)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    adapted = get_peft_model(run.model, config)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.train()
    replies = generate(adapted, run.tokenizer, run.template, prompts, sampling)
    assert adapted.training
    adapted.eval()
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = encode_prompt(run.tokenizer, run.template, prompt)
        assert reply.ids == continue_greedily(adapted, ids, 16, run.template.stop_token_id)[0]
    assert replies != base
    with adapted.disable_adapter():
        assert generate(adapted, run.tokenizer, run.template, prompts, sampling) == base


def test_a_model_with_broken_weights_is_reported_and_left_in_its_mode(run):
    run.model.transformer.ln_f.weight.data[3] = float("nan")
    run.model.train()
    with pytest.raises(CheckpointError, match="not numbers"):
        generate(run.model, run.tokenizer, run.template, make_prompts(1), SampleSettings())
    assert run.model.training


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_streamed_pieces_add_up_to_the_reply_that_generate_gives(run, temperature):
    for prompt in make_prompts(8, seed=5):
        sampling = SampleSettings(max_new_tokens=24, temperature=temperature)
        pieces = []
        reply = stream(run.model, run.tokenizer, run.template, prompt, sampling, pieces.append)
        assert [reply] == generate(run.model, run.tokenizer, run.template, [prompt], sampling)
        assert "".join(pieces) == reply.text
        assert all(pieces)


def test_a_character_of_several_tokens_is_streamed_whole(run, scripted):
    text = "草 🦙 naïve 奶牛\n\n吃草"
    ids = run.tokenizer(f"  {text} \n")["input_ids"]
    prompt = ask("x")
    scripted(ids, encode_length(run, prompt))
    assert "\ufffd" in "".join(run.tokenizer.decode([token]) for token in ids)
    pieces = []
    reply = stream(run.model, run.tokenizer, run.template, prompt, SampleSettings(), pieces.append)
    assert reply.text == "".join(pieces) == text
    assert reply.stopped
    assert reply.ids == ids
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) > 8


def test_a_reply_that_ends_in_half_a_character_shows_it_as_damaged(run, scripted):
    ids = run.tokenizer("ok 🦙")["input_ids"][:-1]
    prompt = ask("x")
    scripted(ids, encode_length(run, prompt))
    pieces = []
    reply = stream(run.model, run.tokenizer, run.template, prompt, SampleSettings(), pieces.append)
    assert reply.text == "".join(pieces) == bytes(" ok 🦙".encode()[1:-1]).decode(errors="replace")


def test_text_is_handed_over_while_the_reply_is_still_being_written(run, scripted):
    ids = run.tokenizer("one two three four")["input_ids"]
    prompt = ask("x")
    scripted(ids, encode_length(run, prompt))
    forward, num_calls, calls_at_piece = run.model.forward, [], []

    def counted(*args, **kwargs):
        num_calls.append(1)
        return forward(*args, **kwargs)

    run.model.forward = counted
    stream(
        run.model,
        run.tokenizer,
        run.template,
        prompt,
        SampleSettings(),
        lambda _: calls_at_piece.append(len(num_calls)),
    )
    assert calls_at_piece == sorted(set(calls_at_piece))
    assert calls_at_piece[0] <= 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_ends_the_generation_and_restores_the_model(run, scripted, error):
    ids = run.tokenizer("one two three four five six seven")["input_ids"]
    prompt = ask("x")
    scripted(ids, encode_length(run, prompt))
    run.model.train()
    shipped, pieces = run.model.generation_config, []

    def interrupt(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            raise error

    with pytest.raises(error):
        stream(run.model, run.tokenizer, run.template, prompt, SampleSettings(), interrupt)
    assert len(pieces) == 3
    assert run.model.training
    assert run.model.generation_config is shipped
