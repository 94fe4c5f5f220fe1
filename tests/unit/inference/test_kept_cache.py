"""Replies with kept states against replies without, and what reaches the model."""

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Int8Params, Linear8bitLt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CpmAntConfig,
    CpmAntForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GlmConfig,
    GlmForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Phi3Config,
    Phi3ForCausalLM,
)
from transformers.utils import logging as transformers_logging

import sft_kit.models.chatglm  # noqa: F401  (registers ChatGLM with transformers)
from sft_kit.inference.generate import continue_ids
from sft_kit.inference.kept_cache import KeptCache, states_can_be_kept
from sft_kit.settings import SampleSettings

CHATGLM = Path(__file__).parents[2] / "fixtures" / "chatglm" / "chatglm3_tiny_fp16"
VOCABULARY = 60
STOP = 1
GREEDY = SampleSettings()
LLAMA_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.4, "bos_token_id": 0, "eos_token_id": STOP, "pad_token_id": 0,
}  # fmt: skip
GPT2_SIZES = {
    "vocab_size": VOCABULARY, "n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 2,
    "initializer_range": 0.4, "bos_token_id": 0, "eos_token_id": STOP,
}  # fmt: skip


def build(kind):
    """Make a random model in float64: what rounds differently can't change a reply then."""
    torch.manual_seed(5)
    model = {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZES)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA_SIZES)),
        "glm": lambda: GlmForCausalLM(GlmConfig(head_dim=8, **LLAMA_SIZES)),
        "chatglm": lambda: AutoModelForCausalLM.from_pretrained(CHATGLM, dtype=torch.float64),
    }[kind]()
    return model.double().eval()


@pytest.fixture(scope="module", params=["gpt2", "llama", "glm", "chatglm"])
def model(request):
    return build(request.param)


@pytest.fixture
def gpt2():
    return build("gpt2")


def add_adapter(model, name="default"):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    if hasattr(model, "peft_config"):
        model.add_adapter(name, config)
    else:
        model = get_peft_model(model, config, adapter_name=name)
    torch.manual_seed(len(name))
    for parameter_name, parameter in model.named_parameters():
        if f"lora_B.{name}." in parameter_name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


def draw_ids(count, seed):
    rng = random.Random(seed)
    return [rng.randrange(2, VOCABULARY) for _ in range(count)]


def reply_to(model, ids, kept=None, sampling=GREEDY, num_tokens=12, on_ids=None):
    return continue_ids(model, ids, num_tokens, (STOP,), sampling, kept, on_ids)


@torch.no_grad()
def brute_force(model, ids, num_tokens=12):
    """Read everything again for every token, without cache and without `generate`."""
    reply = []
    while len(reply) < num_tokens and STOP not in reply:
        reply.append(int(model(input_ids=torch.tensor([ids + reply])).logits[0, -1].argmax()))
    return reply


class Reads:
    """Counts the tokens that each forward pass of a model reads."""

    def __init__(self, model):
        self.counts = []
        self.handle = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _model, _args, kwargs):
        self.counts.append(kwargs["input_ids"].shape[1])

    def __enter__(self):
        return self.counts

    def __exit__(self, *_):
        self.handle.remove()


class Interruption(BaseException):
    """Like Ctrl-C: no exception that a library would catch."""


# --- replies stay what they are ------------------------------------------------------------------

# A turn: the share of the dialogue so far that the next prompt begins with, the ids added to it,
# whether the reply stays in it, and where the reply is interrupted, if it is.
TURNS = st.lists(
    st.tuples(
        st.sampled_from([1.0, 1.0, 0.5, 0.0]),
        st.integers(1, 9),
        st.booleans(),
        st.none() | st.integers(1, 8),
        st.sampled_from([0.0, 1.0]),
    ),
    min_size=2,
    max_size=6,
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(turns=TURNS, seed=st.integers(0, 999))
def test_any_dialogue_gets_the_replies_it_gets_without_kept_states(model, turns, seed):
    kept, said = KeptCache(), []
    for number, (share, num_new, stays, interrupted_at, temperature) in enumerate(turns):
        said = said[: int(len(said) * share)] + draw_ids(num_new, seed + number)
        sampling = SampleSettings(temperature=temperature, seed=seed)
        expected = reply_to(model, said, sampling=sampling, num_tokens=8)
        reply = []

        def interrupt(ids, last=interrupted_at, reply=reply):
            reply[:] = ids
            if len(ids) == last:
                raise Interruption

        if interrupted_at is not None and interrupted_at <= len(expected):
            with pytest.raises(Interruption):
                reply_to(model, said, kept, sampling, 8, interrupt)
            assert reply == expected[:interrupted_at]
        else:
            assert reply_to(model, said, kept, sampling, 8, interrupt) == reply == expected
        assert kept.ids == (said + reply)[:-1]
        said += reply if stays else []


def test_replies_with_kept_states_equal_a_loop_without_any_cache(model):
    kept, said = KeptCache(), []
    for number in range(4):
        said = said + draw_ids(5, number)
        reply = reply_to(model, said, kept)
        assert reply == brute_force(model, said)
        said += reply
    assert len(set(said)) > 10


def test_kept_states_give_the_logits_that_reading_everything_gives(model):
    kept, first, second = KeptCache(), draw_ids(30, 0), draw_ids(9, 1)
    reply_to(model, first, kept)
    prompt = first[:17] + second
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([prompt])).logits[0, 17:]
        with kept.lent(model, prompt, [5]) as cache:
            assert cache.get_seq_length() == 17
            rest = model(input_ids=torch.tensor([second]), past_key_values=cache).logits[0]
    assert (whole - rest).abs().max() < 1e-10
    assert (whole - rest).abs().mean() < 1e-11
    assert kept.ids == prompt


# --- only what is new is read --------------------------------------------------------------------


def test_a_second_turn_feeds_only_what_is_new(model):
    kept, first = KeptCache(), draw_ids(40, 0)
    reply = reply_to(model, first, kept)
    second = [*first, *reply, *draw_ids(7, 1)]
    with Reads(model) as counts:
        answer = reply_to(model, second, kept)
    # The last token of a reply is chosen, never read: the next turn reads it with what is new.
    assert counts == [1 + 7] + [1] * (len(answer) - 1)
    with Reads(model) as counts:
        assert reply_to(model, second) == answer
    assert counts[0] == len(second)


def test_the_same_prompt_again_feeds_its_last_token_only(model):
    kept, prompt = KeptCache(), draw_ids(20, 3)
    reply = reply_to(model, prompt, kept)
    with Reads(model) as counts:
        assert reply_to(model, prompt, kept) == reply
    assert counts[0] == 1
    with Reads(model) as counts:
        shorter = reply_to(model, prompt[:8], kept)
    assert counts[0] == 1
    assert shorter == reply_to(model, prompt[:8])


def test_kept_ids_with_more_ids_go_on_where_the_last_call_stopped(model):
    kept, prompt, more = KeptCache(), draw_ids(12, 4), draw_ids(5, 5)
    reply = reply_to(model, prompt, kept)
    assert kept.ids == prompt + reply[:-1]
    with Reads(model) as counts:
        answer = reply_to(model, [*kept.ids, *more], kept)
    assert counts[0] == len(more)
    assert answer == brute_force(model, prompt + reply[:-1] + more)


def test_a_stop_token_that_is_read_first_is_not_taken_for_padding(gpt2, caplog):
    gpt2.config.pad_token_id = STOP
    kept = KeptCache()
    reply_to(gpt2, draw_ids(12, 4), kept)
    transformers_logging.warning_once.cache_clear()
    transformers_logging.get_logger().addHandler(caplog.handler)
    try:
        with Reads(gpt2) as counts:
            reply_to(gpt2, [*kept.ids, STOP, *draw_ids(5, 5)], kept)
    finally:
        transformers_logging.get_logger().removeHandler(caplog.handler)
    assert counts[0] == 6
    assert caplog.messages == []
    assert gpt2.config.pad_token_id == STOP


# --- nothing stale, nothing half done ------------------------------------------------------------


@pytest.mark.parametrize("where", ["keys of layer 0", "keys of layer 1", "values of layer 1"])
def test_an_interruption_in_a_forward_pass_leaves_only_what_every_layer_holds(gpt2, where):
    kept, prompt = KeptCache(), draw_ids(10, 6)
    what, number = where.split(" of layer ")
    num_tokens = len(prompt) + 3
    concatenate = torch.cat

    def interrupt(tensors, *args, **kwargs):
        result = concatenate(tensors, *args, **kwargs)
        if result.dim() == 4 and result.shape[-2] == num_tokens:
            calls.append(1)
            if len(calls) == 2 * int(number) + (1 if what == "keys" else 2):
                raise Interruption
        return result

    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.cache_utils.torch.cat", interrupt)
        with pytest.raises(Interruption):
            reply_to(gpt2, prompt, kept)
    assert kept.ids == (prompt + reply_to(gpt2, prompt))[: num_tokens - 1]
    following = [*kept.ids, *draw_ids(4, 7)]
    assert reply_to(gpt2, following, kept) == reply_to(gpt2, following)


def test_an_interruption_before_anything_was_read_keeps_nothing(gpt2):
    kept = KeptCache()

    def interrupt(*_args, **_kwargs):
        raise Interruption

    handle = gpt2.transformer.h[0].attn.register_forward_pre_hook(interrupt)
    with pytest.raises(Interruption):
        reply_to(gpt2, draw_ids(4, 0), kept)
    handle.remove()
    assert kept.ids == []
    prompt = draw_ids(9, 1)
    assert reply_to(gpt2, prompt, kept) == reply_to(gpt2, prompt)


def test_nothing_is_kept_while_the_states_are_lent_or_after_they_were_cleared(gpt2):
    kept, prompt = KeptCache(), draw_ids(9, 0)
    reply_to(gpt2, prompt, kept)
    with kept.lent(gpt2, [*prompt, 3], []):
        assert kept.ids == []
    assert kept.ids == prompt
    kept.clear()
    assert kept.ids == []
    with Reads(gpt2) as counts:
        reply_to(gpt2, prompt, kept)
    assert counts[0] == len(prompt)


CHANGES = {
    "another model": lambda model: copy.deepcopy(model),
    "weights loaded": lambda model: model.load_state_dict(
        {name: tensor * 1.5 for name, tensor in model.state_dict().items()}
    ),
    "another adapter": lambda model: model.set_adapter("other"),
    "the adapter scaled": lambda model: [
        module.set_scale("default", 3.0) for module in model.modules() if hasattr(module, "lora_B")
    ],
    "the adapter merged": lambda model: model.merge_adapter(),
    "the adapter's weights changed": lambda model: [
        torch.nn.init.normal_(parameter)
        for name, parameter in model.named_parameters()
        if "lora_B.default" in name
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_states_of_a_model_that_has_changed_are_not_used(gpt2, change):
    adapted = add_adapter(add_adapter(gpt2), "other")
    adapted.set_adapter("default")
    kept, prompt = KeptCache(), draw_ids(15, 8)
    before = reply_to(adapted, prompt, kept)
    result = CHANGES[change](adapted)
    changed = result if isinstance(result, torch.nn.Module) else adapted
    with Reads(changed.get_base_model()) as counts:
        after = reply_to(changed, prompt, kept)
    assert counts[0] == len(prompt)
    assert after == reply_to(changed, prompt)
    if change not in ("another model", "the adapter merged"):
        assert after != before


def test_an_adapter_that_is_switched_off_for_a_reply_gets_no_states_of_it(gpt2):
    adapted = add_adapter(gpt2)
    kept, prompt = KeptCache(), draw_ids(15, 9)
    with_adapter = reply_to(adapted, prompt, kept)
    with adapted.disable_adapter():
        without = reply_to(adapted, prompt, kept)
        assert without == reply_to(adapted, prompt)
    assert without != with_adapter
    assert reply_to(adapted, prompt, kept) == with_adapter
    with Reads(adapted.get_base_model()) as counts:
        reply_to(adapted, prompt, kept)
    assert counts[0] == 1


# --- models that can't --------------------------------------------------------------------------

WITHOUT = {
    "a sliding window": lambda: MistralForCausalLM(MistralConfig(sliding_window=8, **LLAMA_SIZES)),
    "some sliding windows": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            sliding_window=8, head_dim=8, layer_types=["sliding_attention", "full_attention"],
            **LLAMA_SIZES,
        )
    ),
    "a state-space model": lambda: MambaForCausalLM(
        MambaConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, eos_token_id=1
        )
    ),
    "no cache at all": lambda: OpenAIGPTLMHeadModel(
        OpenAIGPTConfig(vocab_size=VOCABULARY, n_positions=256, n_embd=32, n_layer=2, n_head=2)
    ),
    "rotation by the whole length": lambda: LlamaForCausalLM(
        LlamaConfig(
            rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
            **(LLAMA_SIZES | {"max_position_embeddings": 16}),
        )
    ),
    "two rotations": lambda: Phi3ForCausalLM(
        Phi3Config(
            rope_parameters={
                "rope_type": "longrope", "rope_theta": 10000.0,
                "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            },
            original_max_position_embeddings=24,
            **LLAMA_SIZES,
        )
    ),
    "tokens of its own in front": lambda: CpmAntForCausalLM(
        CpmAntConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_attention_heads=2, dim_head=16, dim_ff=48,
            num_hidden_layers=2, prompt_length=1,
        )
    ),
    "a learnt prompt": lambda: get_peft_model(
        build("gpt2"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=1)
    ),
    "a learnt prefix": lambda: get_peft_model(
        build("gpt2"), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=1)
    ),
    "an adapter that is activated by a word": lambda: get_peft_model(
        build("gpt2"),
        LoraConfig(
            task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True,
            alora_invocation_tokens=[7, 8],
        ),
    ),
}  # fmt: skip


# PEFT 0.21.2 drops the positions that transformers 5.23 always makes.
@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
@pytest.mark.parametrize("kind", WITHOUT)
def test_where_states_cannot_be_kept_replies_come_without(kind):
    torch.manual_seed(3)
    model = WITHOUT[kind]().double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    # A rotation by the whole length remembers the longest text so far, from call to call.
    same_model = copy.deepcopy(model)
    kept, first = KeptCache(), draw_ids(20, 0)
    replies = []
    for prompt in (first, [*first[:12], *draw_ids(4, 1)], [*first, *draw_ids(12, 2)]):
        reply = reply_to(model, prompt, kept)
        assert kept.ids == []
        assert reply == reply_to(same_model, prompt)
        replies.append(tuple(reply))
    assert len(set(replies)) == 3


def int8_layer(weight):
    out_features, in_features = weight.shape
    layer = Linear8bitLt(
        in_features, out_features, bias=False, has_fp16_weights=False, threshold=6.0
    )
    layer.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
    return layer.eval()


def test_a_token_with_an_outlier_changes_what_int8_layers_give_other_tokens():
    weight = torch.tensor([[0.0, 1.0], [0.0, -2.0], [0.0, 4.0]])
    first, outlier = torch.tensor([[5.08, 0.01]]), torch.tensor([[0.0, 50.0]])
    layer = int8_layer(weight)
    with torch.no_grad():
        alone, together = layer(first.half()), layer(torch.cat([first, outlier]).half())[:1]
    # In steps of 5.08 / 127 = 0.04, 0.01 is 0; beside an outlier its column isn't rounded.
    assert alone.tolist() == [[0.0, 0.0, 0.0]]
    torch.testing.assert_close(together.float(), 0.01 * weight[:, 1].view(1, 3), rtol=0.01, atol=0)


def test_states_of_int8_layers_are_not_kept():
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA_SIZES)).eval()
    assert states_can_be_kept(model)
    model.model.layers[1].mlp.down_proj = int8_layer(torch.randn(32, 48))
    assert not states_can_be_kept(model)
    kept = KeptCache()
    reply_to(model, draw_ids(9, 0), kept)
    assert kept.ids == []


def test_states_can_be_kept_where_every_layer_attends_to_the_whole_text(model):
    assert states_can_be_kept(model)
    full = MistralForCausalLM(MistralConfig(sliding_window=None, **LLAMA_SIZES))
    assert states_can_be_kept(full)


# --- ChatGLM as its own code streams it ----------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "stops"),
    [
        ("chatglm2_tiny_fp16", (2,)),
        ("chatglm2_tiny_int4", (2,)),
        ("chatglm3_tiny_fp16", (2, 466, 468)),
    ],
)
def test_kept_states_give_the_streams_of_the_original_chatglm(chatglm_fixtures, folder, stops):
    folder = chatglm_fixtures / folder
    recorded = json.loads((folder / "expected_tokenizer.json").read_text(encoding="utf-8"))["chat"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    suppressed = [0, 1, *(i for i in range(460, model.config.vocab_size) if i not in stops)]

    def suppress(_model, _args, output):
        output.logits[..., suppressed] = float("-inf")

    model.register_forward_hook(suppress)
    kept = KeptCache()
    for turn in ("stream0", "stream1"):
        fed, expected = recorded[turn]["input_ids"], recorded[turn]["output_ids"]
        assert recorded[turn]["position_ids"][0] == len(kept.ids)
        with Reads(model) as counts:
            ids = [*kept.ids, *fed]
            new_ids = continue_ids(model, ids, len(expected) - len(fed), stops, GREEDY, kept)
        assert fed + new_ids == expected
        assert counts[0] == len(fed)
        assert kept.ids == (ids + new_ids)[:-1]
