import math
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from sft_kit.models.roles import activate, backbone_of
from sft_kit.training.ppo.sampling import Drawn, Sampling, draw_completions, pick, uniforms

from .tiny import STOP, VOCABULARY, episode, row_logprobs, stir, tiny_llama, tiny_model, tiny_roles

PROMPTS = [[5, 6, 7], [9], [4, 4, 8, 3, 10], [11, 12]]
HOSTILE = {
    "repetition_penalty": 1.5, "top_k": 5, "temperature": 0.6, "min_new_tokens": 4,
    "forced_bos_token_id": 3, "forced_eos_token_id": 3, "suppress_tokens": [4, 5, 6],
    "do_sample": True, "no_repeat_ngram_size": 2, "top_p": 0.3,
}  # fmt: skip


def draw(policy: Any, prompts: Any = PROMPTS, batch_size: int = 3, **fields: Any) -> list[Drawn]:
    sampling = Sampling(**({"max_new_tokens": 6, "stop_token_ids": (STOP,)} | fields))
    chances = uniforms(0, 0, len(prompts), sampling.max_new_tokens)
    return draw_completions(policy, prompts, chances, sampling, batch_size=batch_size)


def gaps(policy: Any, drawn: list[Drawn], prompts: Any, temperature: float) -> torch.Tensor:
    """Training's minus the sampler's logprobs, of all tokens in a row."""
    activate(policy)
    with torch.no_grad():
        expected = [
            row_logprobs(policy.model, episode(0, prompt, one.ids), temperature)
            for prompt, one in zip(prompts, drawn, strict=True)
        ]
    found = torch.tensor([value for one in drawn for value in one.logprobs], dtype=torch.float64)
    return torch.cat(expected) - found


# --- the distribution ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("merge", "temperature"), [(False, 1.0), (True, 1.0), (True, 0.7)])
def test_a_hostile_generation_config_has_no_part_in_what_is_drawn(
    family: str, merge: bool, temperature: float
) -> None:
    model = tiny_model(family)
    policy = stir(tiny_roles("lora adapter", model)).policy
    plain = draw(policy, merge=merge, temperature=temperature)
    for name, value in HOSTILE.items():
        setattr(model.generation_config, name, value)
    drawn = draw(policy, merge=merge, temperature=temperature)
    assert drawn == plain
    gap = gaps(policy, drawn, PROMPTS, temperature)
    assert len(gap) > 12
    assert float(gap.abs().max()) <= 1e-5
    assert float(gap.exp().mean()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_first_tokens_are_drawn_as_often_as_softmax_says(temperature: float) -> None:
    model = tiny_llama(initializer_range=0.1)
    policy = stir(tiny_roles("lora adapter", model), spread=0.3).policy
    count, prompt = 4000, [5, 6, 7]
    drawn = draw(
        policy, [prompt] * count, max_new_tokens=1, batch_size=count, temperature=temperature
    )
    activate(policy)
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    expected = (logits / temperature).softmax(-1) * count
    seen = torch.bincount(torch.tensor([one.ids[0] for one in drawn]), minlength=VOCABULARY)
    assert float(expected.min()) > 5  # what the chi-square distribution needs
    assert chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-4


def choices(logits: torch.Tensor, count: int = 2000, **fields: Any) -> tuple[Any, Any]:
    sampling = Sampling(**({"max_new_tokens": 1, "stop_token_ids": (STOP,)} | fields))
    chances = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return pick(logits.expand(count, -1), chances, sampling)


def test_top_k_and_top_p_restrict_what_can_be_drawn_and_leave_logprobs_alone() -> None:
    shares = torch.tensor([[0.05, 0.4, 0.1, 0.3, 0.15]])
    for fields, allowed in (({"top_k": 2}, {1, 3}), ({"top_p": 0.6}, {1, 3}), ({}, set(range(5)))):
        tokens, logprobs = choices(shares.log(), **fields)
        assert set(tokens.tolist()) == allowed
        torch.testing.assert_close(logprobs, shares[0, tokens].log())
        for token in allowed:
            total = sum(float(shares[0, other]) for other in allowed)
            seen = float((tokens == token).float().mean())
            assert seen == pytest.approx(float(shares[0, token]) / total, abs=1e-3)


def test_every_number_below_one_draws_a_token_that_has_a_probability() -> None:
    logits = torch.tensor([[-math.inf, 0.3, -math.inf, 1.0, -math.inf]])
    edges = torch.tensor([0.0, 1e-300, 0.5, 1 - 2**-53], dtype=torch.float64)
    tokens, _ = pick(logits.expand(4, -1), edges, Sampling(1, (STOP,)))
    assert tokens.tolist()[0] == 1
    assert set(tokens.tolist()) == {1, 3}


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits = torch.tensor([[0.1, 2.0, 1.9], [3.0, 0.0, 0.0]])
    tokens, logprobs = pick(logits, torch.tensor([0.99, 0.99]), Sampling(1, (STOP,), 0.0))
    assert tokens.tolist() == [1, 0]
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).max(-1).values)


# --- the same draws whatever the batch -----------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_size_of_decoding_batches_changes_no_token(family: str) -> None:
    policy = tiny_roles("lora adapter", tiny_model(family)).policy
    first, *others = [draw(policy, batch_size=size) for size in (1, 2, 4)]
    for other in others:
        assert [one.ids for one in other] == [one.ids for one in first]
        for one, same in zip(other, first, strict=True):
            assert one.logprobs == pytest.approx(same.logprobs, abs=1e-5)


def test_draws_are_a_function_of_seed_and_rollout_only() -> None:
    torch.manual_seed(1)
    before = uniforms(3, 5, 40, 6)
    state = torch.get_rng_state()
    torch.rand(3)
    assert torch.equal(uniforms(3, 5, 40, 6), before)
    torch.manual_seed(1)
    uniforms(3, 5, 40, 6)
    assert torch.equal(torch.get_rng_state(), state)
    others = [uniforms(seed, rollout, 40, 6) for seed, rollout in ((3, 6), (4, 5), (0, 0))]
    for other in others:
        correlation = torch.corrcoef(torch.stack([before.flatten(), other.flatten()]))[0, 1]
        assert abs(float(correlation)) < 0.3
    assert bool(((before >= 0) & (before < 1)).all())


# --- where a completion ends ---------------------------------------------------------------------


def always(policy: Any, tokens: list[int]) -> None:
    """Make a whole model draw one token after another, whatever came before."""
    layer = policy.model.get_output_embeddings()
    positions = iter(tokens)

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.full((*hidden.shape[:-1], VOCABULARY), -50.0)
        logits[..., next(positions)] = 50.0
        return logits

    layer.forward = forward


@pytest.mark.parametrize(
    ("tokens", "ids", "stopped"),
    [
        ([STOP], (STOP,), True),
        ([5, 6, STOP, 7], (5, 6, STOP), True),
        ([5, 6, 7, 8], (5, 6, 7, 8), False),
        ([5, 6, 7, STOP], (5, 6, 7, STOP), True),
        ([0, 0, 0, 0], (0, 0, 0, 0), False),
    ],
)
def test_a_completion_ends_with_its_first_stop_token_or_with_its_last_place(
    tokens: list[int], ids: tuple[int, ...], stopped: bool
) -> None:
    policy = tiny_roles("whole shared", tiny_llama()).policy
    always(policy, tokens)
    (drawn,) = draw(policy, [[3, 4]], max_new_tokens=4)
    assert (drawn.ids, drawn.stopped) == (ids, stopped)
    assert drawn.logprobs == pytest.approx([0.0] * len(ids), abs=1e-6)


def test_decoding_takes_as_many_steps_as_its_longest_completion_and_drops_ended_rows() -> None:
    policy = tiny_roles("lora adapter", tiny_model("gpt2")).policy
    sizes: list[int] = []
    hook = backbone_of(policy.model).register_forward_pre_hook(
        lambda module, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True
    )
    prompts = [[token] for token in range(3, 15)]
    drawn = draw(policy, prompts, batch_size=12, max_new_tokens=30, stop_token_ids=(2, 3, 4, 5))
    hook.remove()
    lengths = [len(one.ids) for one in drawn]
    assert len(sizes) == max(lengths)
    assert sizes == [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert len(set(lengths)) > 2


def test_drawing_leaves_mode_and_weights_as_they_were() -> None:
    policy = stir(tiny_roles("lora adapter", tiny_llama())).policy
    before = {name: one.detach().clone() for name, one in policy.model.named_parameters()}
    for training in (True, False):
        policy.model.train(training)
        draw(policy, merge=True)
        assert policy.model.training is training
    found = dict(policy.model.named_parameters())
    assert all(torch.equal(found[name], value) for name, value in before.items())


def test_greedy_drawing_agrees_with_generate_of_transformers() -> None:
    policy = stir(tiny_roles("lora adapter", tiny_llama())).policy
    drawn = draw(policy, temperature=0.0, max_new_tokens=8)
    activate(policy)
    for prompt, one in zip(PROMPTS, drawn, strict=True):
        ids = torch.tensor([prompt])
        expected = policy.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8,
            do_sample=False, pad_token_id=0, eos_token_id=STOP,
        )  # fmt: skip
        assert expected[0, len(prompt) :].tolist() == list(one.ids)
