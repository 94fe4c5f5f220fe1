from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_kit.models.roles import activate, apply_head, backbone_of
from sft_kit.training.ppo import scoring
from sft_kit.training.ppo.scoring import (
    Precision,
    policy_outputs,
    reference_logprobs,
    reward_scores,
    token_logprobs,
    value_outputs,
)

from .tiny import (
    STOP,
    VOCABULARY,
    atom_of_all,
    episode,
    row_logprobs,
    save_reward_adapter,
    stir,
    tiny_llama,
    tiny_model,
    tiny_roles,
    uneven_episodes,
    unpadded,
)

EPISODES = uneven_episodes()
FAMILIES = pytest.mark.parametrize("family", ["gpt2", "llama"])


def plain_values(roles: Any, one: Any) -> torch.Tensor:
    """Values of a row alone, by the backbone as transformers calls it."""
    activate(roles.value)
    ids = torch.tensor([one.prompt_ids + one.completion_ids])
    hidden = backbone_of(roles.value.model)(input_ids=ids, use_cache=False).last_hidden_state
    return apply_head(roles.value, hidden)[0, len(one.prompt_ids) - 1 : -1]


# --- against transformers, row by row ------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_and_entropies_are_those_of_the_models_own_logits(
    family: str, temperature: float
) -> None:
    roles = stir(tiny_roles("lora adapter", tiny_model(family)))
    atom = atom_of_all(EPISODES)
    with torch.no_grad():
        outputs = policy_outputs(roles, atom, temperature, with_entropy=True)
        references = reference_logprobs(roles, atom, temperature)
        activate(roles.reference)
        expected_references = [
            row_logprobs(roles.policy.model, one, temperature) for one in EPISODES
        ]
        activate(roles.policy)
        expected = [row_logprobs(roles.policy.model, one, temperature) for one in EPISODES]
        entropies = []
        for one in EPISODES:
            ids = torch.tensor([one.prompt_ids + one.completion_ids])
            logits = roles.policy.model(input_ids=ids).logits[0, len(one.prompt_ids) - 1 : -1]
            spread = torch.distributions.Categorical(logits=logits.double() / temperature)
            entropies.append(spread.entropy())
    assert outputs.values is None
    assert outputs.entropies is not None
    for found, wanted in (
        (outputs.logprobs, expected),
        (references, expected_references),
        (outputs.entropies, entropies),
    ):
        for one, other in zip(unpadded(found, EPISODES), wanted, strict=True):
            torch.testing.assert_close(one, other.float(), rtol=0, atol=1e-5)
        assert not found[~atom.mask].any()
    assert not torch.allclose(outputs.logprobs, references, atol=1e-2)


@FAMILIES
@pytest.mark.parametrize("kind", ["lora adapter", "lora shared", "whole model", "whole shared"])
def test_values_stand_before_their_tokens(family: str, kind: str) -> None:
    roles = stir(tiny_roles(kind, tiny_model(family)))
    atom = atom_of_all(EPISODES)
    with torch.no_grad():
        values = policy_outputs(roles, atom, 1.0).values
        if not roles.shares_policy:
            assert values is None
            values = value_outputs(roles, atom)
        expected = [plain_values(roles, one) for one in EPISODES]
    assert values is not None
    for one, other in zip(unpadded(values, EPISODES), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert not values[~atom.mask].any()


def test_the_reward_role_scores_as_the_sequence_classifier_that_it_was(tmp_path: Path) -> None:
    base = tiny_llama()
    model = save_reward_adapter(tmp_path, base)
    roles = tiny_roles("lora adapter", base, reward_folder=tmp_path)
    assert roles.reward is not None
    rows = [4, 0, 3, 2, 1, 5]
    found = reward_scores(roles.reward, EPISODES, rows, STOP)
    for score, row in zip(found, rows, strict=True):
        one = EPISODES[row]
        end = () if one.stopped else (STOP,)  # it is read at a stop token in any case
        ids = torch.tensor([one.prompt_ids + one.completion_ids + end])
        expected = model(input_ids=ids).logits[0, 0]
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-5)
    assert {one.stopped for one in EPISODES} == {True, False}


def test_another_stop_token_is_read_as_the_one_the_reward_role_was_trained_on(
    tmp_path: Path,
) -> None:
    base, other = tiny_llama(), 3
    model = save_reward_adapter(tmp_path, base)
    reward = tiny_roles("lora adapter", base, reward_folder=tmp_path).reward
    assert reward is not None
    ended = replace(episode(0, [5, 6], [7, 8, other]), stopped=True)
    inside = episode(1, [5, 6], [other, 8, STOP])
    found = reward_scores(reward, [ended, inside], [0, 1], STOP)
    for score, ids in zip(found, ([5, 6, 7, 8, STOP], [5, 6, other, 8, STOP]), strict=True):
        expected = model(input_ids=torch.tensor([ids])).logits[0, 0]
        torch.testing.assert_close(score, expected, rtol=0, atol=1e-5)
    assert (ended.completion_ids[-1], ended.prompt_ids) == (other, (5, 6))


def test_the_reward_role_reads_a_pad_token_as_any_other(tmp_path: Path) -> None:
    base = tiny_llama()
    save_reward_adapter(tmp_path, base)
    reward = tiny_roles("lora adapter", base, reward_folder=tmp_path).reward
    assert reward is not None
    batch = [episode(0, [5, 6], [0, 0, 0]), episode(1, [5, 6], [0]), episode(2, [5], [7] * 6)]
    together = reward_scores(reward, batch, [0, 1, 2], STOP)
    alone = torch.cat([reward_scores(reward, batch, [row], STOP) for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert float((together[0] - together[1]).abs()) > 1e-3


# --- padding -------------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("num_pads", [1, 7])
def test_more_padding_on_the_left_changes_nothing(
    family: str, num_pads: int, tmp_path: Path
) -> None:
    base = tiny_model(family)
    folder = None
    if family == "llama":
        folder = tmp_path
        save_reward_adapter(tmp_path, base)
    roles = stir(tiny_roles("lora adapter", base, reward_folder=folder))
    roles.policy.model.train()
    plain, padded = atom_of_all(EPISODES), atom_of_all(EPISODES, num_pads)
    assert padded.num_prompt_tokens == plain.num_prompt_tokens + num_pads
    with torch.no_grad():
        for of in (
            lambda atom: policy_outputs(roles, atom, 1.0).logprobs,
            lambda atom: reference_logprobs(roles, atom, 1.0),
            lambda atom: value_outputs(roles, atom),
        ):
            gap = float((of(plain) - of(padded)).abs().max())
            assert gap < 1e-6
        if roles.reward is not None:
            rows = range(len(EPISODES))
            together = reward_scores(roles.reward, EPISODES, rows, STOP)
            longer = [*EPISODES, episode(9, [5] * 16, [6])]
            beside = reward_scores(roles.reward, longer, range(len(longer)), STOP)
            assert float((together - beside[:-1]).abs().max()) < 1e-6


def test_positions_of_gpt2_are_counted_without_padding() -> None:
    roles = tiny_roles("whole shared", tiny_model("gpt2"))
    seen: list[torch.Tensor] = []
    backbone_of(roles.policy.model).wpe.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    policy_outputs(roles, atom_of_all([episode(0, [5], [6, 7]), episode(1, [5, 6, 7], [8])]), 1.0)
    assert seen[0].tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]


# --- pieces of logits, precision -----------------------------------------------------------------


@pytest.mark.parametrize("with_entropy", [False, True])
def test_logits_in_pieces_give_the_same_numbers_and_gradients(
    with_entropy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = tiny_llama().get_output_embeddings()
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (23,), generator=draw)
    start = torch.randn(23, 16, generator=draw)

    def run() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        sizes: list[int] = []
        hook = layer.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
        hidden = start.clone().requires_grad_()
        layer.weight.grad = None
        logprobs, spread = token_logprobs(hidden, layer, tokens, 0.7, with_entropy=with_entropy)
        told = logprobs if spread is None else torch.cat([logprobs, spread])
        told.square().sum().backward()
        hook.remove()
        assert hidden.grad is not None
        assert layer.weight.grad is not None
        return told.detach(), torch.cat([hidden.grad, layer.weight.grad]), sizes

    whole = run()
    monkeypatch.setattr(scoring, "MAX_LOGITS", 5 * VOCABULARY)
    pieces = run()
    assert whole[2] == [23]
    assert sorted(pieces[2]) == sorted([5, 5, 5, 5, 3] * 2)  # again in the backward
    torch.testing.assert_close(pieces[0], whole[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(pieces[1], whole[1], rtol=1e-5, atol=1e-6)


def test_pieces_without_gradient_are_not_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MAX_LOGITS", 5 * VOCABULARY)
    layer = tiny_llama().get_output_embeddings()
    sizes: list[int] = []
    layer.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    with torch.no_grad():
        token_logprobs(torch.zeros(12, 16), layer, torch.zeros(12, dtype=torch.long), 1.0)
    assert sizes == [5, 5, 2]


def test_the_prompts_logits_are_never_made() -> None:
    roles = tiny_roles("whole shared", tiny_llama())
    atom = atom_of_all(EPISODES)
    shapes: list[tuple[int, ...]] = []
    roles.policy.model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: shapes.append(tuple(out.shape))
    )
    policy_outputs(roles, atom, 1.0)
    assert shapes == [(int(atom.mask.sum()), VOCABULARY)]


def test_autocast_is_bfloat16_inside_and_float32_where_numbers_are_read() -> None:
    roles = stir(tiny_roles("lora shared", tiny_llama()))
    atom = atom_of_all(EPISODES)
    dtypes: list[torch.dtype] = []
    roles.policy.model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: dtypes.append(out.dtype)
    )
    for bf16 in (False, True):
        with Precision("cpu", bf16=bf16).autocast(), torch.no_grad():
            outputs = policy_outputs(roles, atom, 1.0, with_entropy=True)
        assert outputs.values is not None
        assert outputs.entropies is not None
        found = {outputs.logprobs.dtype, outputs.values.dtype, outputs.entropies.dtype}
        assert found == {torch.float32}
    assert dtypes == [torch.float32, torch.bfloat16]


def test_resting_policies_get_no_gradient_from_shared_values() -> None:
    for rests in (True, False):
        roles = stir(tiny_roles("lora shared", tiny_llama()))
        values = policy_outputs(roles, atom_of_all(EPISODES), 1.0, policy_rests=rests).values
        assert values is not None
        values.sum().backward()
        grads = [one.grad for one in roles.policy_parameters().values()]
        assert all((grad is None) is rests for grad in grads)
        assert all(one.grad is not None for one in roles.value_parameters().values())
