import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM

from sft_kit.errors import CheckpointError, ConfigError
from sft_kit.models.base import load_causal_lm
from sft_kit.models.dropout import disable_dropout
from sft_kit.models.role_adapters import adapter_roles, make_roles, save_role
from sft_kit.models.roles import (
    Role,
    Roles,
    activate,
    apply_head,
    backbone_of,
    base_of,
    can_merge,
    hidden_states,
    merged,
    output_layer_of,
)
from sft_kit.settings import ModelSettings, PpoSettings

from ..training.ppo.tiny import (
    KINDS,
    atom_of_all,
    lora,
    save_reward_adapter,
    save_sft_adapter,
    stir,
    tiny_gpt2,
    tiny_llama,
    tiny_model,
    tiny_roles,
    uneven_episodes,
)

IDS = torch.tensor([[3, 9, 4, 8, 12, 5]])


def logits(role: Role) -> torch.Tensor:
    activate(role)
    with torch.no_grad():
        return role.model(input_ids=IDS, use_cache=False).logits


def plain_batch() -> dict[str, torch.Tensor]:
    ones = torch.ones_like(IDS)
    return {"input_ids": IDS, "attention_mask": ones, "position_ids": ones.cumsum(1) - 1}


# --- adapters on and off -------------------------------------------------------------------------


def test_every_adapter_speaks_as_it_does_alone_on_its_base(tmp_path: Path) -> None:
    base = tiny_llama()
    alone = copy.deepcopy(base)
    save_sft_adapter(tmp_path / "sft", base)
    reward = save_reward_adapter(tmp_path / "reward", base)
    roles = tiny_roles(
        "lora adapter", base, sft_folder=tmp_path / "sft", reward_folder=tmp_path / "reward",
        reward_scale=(0.4, 2.5),
    )  # fmt: skip
    expected = PeftModel.from_pretrained(copy.deepcopy(alone), tmp_path / "sft")
    with torch.no_grad():
        sft = expected(input_ids=IDS).logits
        score = reward(input_ids=IDS).logits[0, 0]
    assert roles.reward is not None
    for _ in range(2):  # the order of switching is of no matter
        torch.testing.assert_close(logits(roles.policy), sft)
        torch.testing.assert_close(logits(roles.reference), sft)
        with torch.no_grad():
            found = apply_head(roles.reward, hidden_states(roles.reward, plain_batch()))
            values = apply_head(roles.value, hidden_states(roles.value, plain_batch()))
        torch.testing.assert_close(found[0, -1], score)
        torch.testing.assert_close(values, (found - 0.4) / 2.5)
    stir(roles)
    torch.testing.assert_close(logits(roles.reference), sft, rtol=0, atol=0)
    assert not torch.allclose(logits(roles.policy), sft, atol=1e-3)
    with torch.no_grad():
        again = apply_head(roles.reward, hidden_states(roles.reward, plain_batch()))
    assert torch.equal(again, found)
    bare = Role("bare", roles.policy.model, None)
    assert torch.equal(logits(bare), alone(input_ids=IDS, use_cache=False).logits.detach())


def test_switching_changes_no_requires_grad_in_any_order(tmp_path: Path) -> None:
    base = tiny_llama()
    save_reward_adapter(tmp_path, base)
    roles = tiny_roles("lora adapter", base, reward_folder=tmp_path)
    before = {name: one.requires_grad for name, one in roles.policy.model.named_parameters()}
    declared = {id(one) for one in roles.policy_parameters().values()}
    declared |= {id(one) for one in roles.value_parameters().values()}
    named = dict(roles.policy.model.named_parameters())
    assert {id(one) for one in named.values() if one.requires_grad} == declared - {
        id(one)
        for one in roles.value.head.parameters()  # type: ignore[union-attr]
    }
    for role in [*roles.all(), *reversed(roles.all())]:
        activate(role)
        after = {name: one.requires_grad for name, one in roles.policy.model.named_parameters()}
        assert after == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_exactly_what_the_policy_and_the_values_declare_trains(kind: str, family: str) -> None:
    roles = tiny_roles(kind, tiny_model(family))
    policy, values = roles.policy_parameters(), roles.value_parameters()
    assert not {id(one) for one in policy.values()} & {id(one) for one in values.values()}
    trained = {
        id(one) for role in roles.all() for one in role.model.parameters() if one.requires_grad
    }
    heads = {id(one) for one in roles.value.head.parameters()}  # type: ignore[union-attr]
    assert heads <= {id(one) for one in values.values()}
    declared = {id(one) for one in (*policy.values(), *values.values())}
    assert declared == trained | heads
    if kind.startswith("lora"):
        assert all(".lora_" in name and ".default." in name for name in policy)
    assert (set(values) == {"value_head.weight", "value_head.bias"}) is roles.shares_policy


def test_a_value_model_leaves_its_unused_output_layer_alone() -> None:
    roles = tiny_roles("whole model", tiny_llama())
    critic = base_of(roles.value.model)
    assert not critic.lm_head.weight.requires_grad
    assert all(one.requires_grad for one in critic.model.parameters())


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_roles_on_one_base_get_the_gradients_of_two_separate_models(
    family: str, checkpointing: bool, tmp_path: Path
) -> None:
    base = tiny_model(family)
    folder = None
    if family == "llama":
        folder = tmp_path / "reward"
        save_reward_adapter(folder, base)
    roles = stir(tiny_roles("lora adapter", base, reward_folder=folder))
    apart = {name: copy.deepcopy(role) for name, role in (("p", roles.policy), ("v", roles.value))}
    if checkpointing:
        base_of(roles.policy.model).activation_checkpointing_enable({"use_reentrant": False})
    batch = atom_of_all(uneven_episodes()).batch
    weights = torch.randn(batch["input_ids"].shape, generator=torch.Generator().manual_seed(2))

    def backward(role: Role) -> None:
        role.model.train()
        hidden = hidden_states(role, batch)
        told = (
            output_layer_of(role.model)(hidden) if role.head is None else apply_head(role, hidden)
        )
        score = told.log_softmax(-1)[..., 5] if role.head is None else told.square()
        (score * weights).sum().backward()

    backward(roles.policy)
    backward(roles.value)
    for role in apart.values():
        backward(role)
    policy = dict(apart["p"].model.named_parameters())
    values = dict(apart["v"].model.named_parameters())
    values |= {f"value_head.{name}": one for name, one in apart["v"].head.named_parameters()}  # type: ignore[union-attr]
    for found, expected in (
        (roles.policy_parameters(), policy),
        (roles.value_parameters(), values),
    ):
        for name, one in found.items():
            assert one.grad is not None, name
            assert bool(one.grad.isfinite().all())
            assert float(one.grad.abs().max()) > 0, name
            torch.testing.assert_close(one.grad, expected[name].grad, rtol=0, atol=1e-6)
    trained = {id(one) for one in roles.policy_parameters().values()}
    trained |= {id(one) for one in roles.value_parameters().values()}
    others = [one for one in roles.policy.model.parameters() if id(one) not in trained]
    assert len(others) > 20
    assert all(one.grad is None for one in others)


def test_values_move_no_weight_of_the_policy_and_the_policy_none_of_the_values() -> None:
    roles = stir(tiny_roles("lora adapter", tiny_llama()))
    apply_head(roles.value, hidden_states(roles.value, plain_batch())).sum().backward()
    assert all(one.grad is None for one in roles.policy_parameters().values())
    assert all(one.grad is not None for one in roles.value_parameters().values())


# --- merging for decoding ------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_policy_speaks_as_before_and_its_base_comes_back_bit_by_bit(
    family: str, dtype: torch.dtype
) -> None:
    roles = stir(tiny_roles("lora adapter", tiny_model(family).to(dtype)))
    model = roles.policy.model
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    expected = logits(roles.policy).float()
    with merged(roles.policy):
        during = dict(model.named_parameters())
        changed = {name for name in before if not torch.equal(during[name], before[name])}
        with torch.no_grad():
            found = model(input_ids=IDS, use_cache=False).logits.float()
    layers = {name for name in before if name.endswith(".base_layer.weight")}
    assert changed == layers
    assert layers
    limit = 1e-5 if dtype == torch.float32 else 0.1
    assert float((found - expected).abs().max()) < limit
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(logits(roles.policy).float(), expected)


def test_the_base_comes_back_when_decoding_fails() -> None:
    roles = stir(tiny_roles("lora adapter", tiny_llama()))
    before = [one.detach().clone() for one in roles.policy.model.parameters()]

    def fail() -> None:
        with merged(roles.policy):
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        fail()
    assert all(map(torch.equal, roles.policy.model.parameters(), before))


def test_only_plain_lora_on_plain_layers_can_be_merged() -> None:
    assert can_merge(tiny_roles("lora adapter", tiny_llama()).policy)
    assert can_merge(tiny_roles("lora adapter", tiny_gpt2()).policy)
    for fields in ({"use_dora": True}, {"lora_bias": True}):
        roles = tiny_roles("lora adapter", tiny_gpt2(), **fields)
        assert not can_merge(roles.policy)
    assert not can_merge(tiny_roles("whole shared", tiny_llama()).policy)
    assert not can_merge(tiny_roles("lora adapter", tiny_llama()).reference)


def test_an_adapter_on_a_weight_that_two_layers_share_is_not_merged() -> None:
    layers = ["lm_head"]
    with pytest.warns(UserWarning, match="ensure_weight_tying"):
        tied = tiny_roles("lora adapter", tiny_gpt2(), target_modules=layers)
    assert not can_merge(tied.policy)
    assert can_merge(tiny_roles("lora adapter", tiny_llama(), target_modules=layers).policy)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_base_is_not_merged_into(quantization: Any, gpt2_checkpoint: Path) -> None:
    base = load_causal_lm(ModelSettings(str(gpt2_checkpoint), quantization=quantization))
    assert not can_merge(adapter_roles(base, lora(), "adapter").policy)


# --- whole models --------------------------------------------------------------------------------


def test_a_bfloat16_model_that_trains_whole_is_kept_in_float32() -> None:
    roles = tiny_roles("whole model", tiny_llama().to(torch.bfloat16))
    assert {one.dtype for one in roles.policy_parameters().values()} == {torch.float32}
    assert {one.dtype for one in roles.value_parameters().values()} == {torch.float32}


def test_adapters_and_heads_on_a_bfloat16_base_are_float32() -> None:
    roles = tiny_roles("lora adapter", tiny_llama().to(torch.bfloat16))
    assert {one.dtype for one in roles.policy_parameters().values()} == {torch.float32}
    assert {one.dtype for one in roles.value_parameters().values()} == {torch.float32}
    assert base_of(roles.policy.model).dtype == torch.bfloat16


def test_whole_models_are_three_models_and_their_reference_is_frozen() -> None:
    model = tiny_gpt2()
    expected = copy.deepcopy(model)
    roles = stir(tiny_roles("whole model", model))
    assert roles.policy.model is model
    assert len({id(role.model) for role in roles.all()}) == 3
    assert not any(one.requires_grad for one in roles.reference.model.parameters())
    same = map(torch.equal, roles.reference.model.parameters(), expected.parameters())
    assert all(same)


def test_new_values_are_zero_everywhere() -> None:
    for kind in KINDS:
        roles = tiny_roles(kind, tiny_llama())
        with torch.no_grad():
            values = apply_head(roles.value, hidden_states(roles.value, plain_batch()))
        assert values.dtype == torch.float32
        assert not values.any()


# --- loading and saving --------------------------------------------------------------------------


def test_roles_that_do_not_go_together_are_refused_all_at_once(tmp_path: Path) -> None:
    folders = {"sft_folder": tmp_path / "a", "reward_folder": tmp_path / "b"}
    with pytest.raises(ConfigError) as caught:
        make_roles(tiny_llama(), None, PpoSettings(value="adapter"), **folders)
    keys = [
        ".".join(part for part in (found.where, found.key) if part)
        for found in caught.value.problems
    ]
    assert keys == ["ppo.value", "ppo.sft_adapter", "reward.model"]


def test_make_roles_makes_what_the_settings_ask_for() -> None:
    whole = make_roles(tiny_llama(), None, PpoSettings(value="model"))
    adapters = make_roles(tiny_llama(), lora(), PpoSettings(value="shared"))
    assert not isinstance(whole.policy.model, PeftModel)
    assert not whole.shares_policy
    assert isinstance(adapters.policy.model, PeftModel)
    assert adapters.shares_policy


def test_an_adapter_of_another_model_is_refused_with_its_folder(tmp_path: Path) -> None:
    save_sft_adapter(tmp_path, tiny_llama(num_hidden_layers=3))
    base = tiny_llama()
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        tiny_roles("lora adapter", base, sft_folder=tmp_path)


@pytest.mark.parametrize("role", ["sft", "reward"])
def test_an_adapter_of_a_role_is_not_unpickled(
    tmp_path: Path, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_llama()
    save = save_sft_adapter if role == "sft" else save_reward_adapter
    save(tmp_path, base)
    weights = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "adapter_model.bin")
    weights.unlink()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("something was unpickled"))
    folders = {f"{role}_folder": tmp_path}
    with pytest.raises(CheckpointError, match="is a pickle, which is never read"):
        tiny_roles("lora adapter", base, **folders)


def test_a_saved_value_role_is_a_plain_adapter_and_a_head(tmp_path: Path) -> None:
    base = tiny_llama()
    alone = copy.deepcopy(base)
    roles = stir(tiny_roles("lora adapter", base))
    save_role(roles.value, tmp_path / "value")
    names = {path.name for path in (tmp_path / "value").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "head.safetensors"}
    again: Any = PeftModel.from_pretrained(alone, tmp_path / "value")
    head = load_file(tmp_path / "value" / "head.safetensors")
    with torch.no_grad():
        found = apply_head(roles.value, hidden_states(roles.value, plain_batch()))
        hidden = again.get_base_model().model(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(found, (hidden @ head["weight"].T + head["bias"]).squeeze(-1))


def test_a_saved_value_model_is_read_by_transformers(tmp_path: Path) -> None:
    roles = stir(tiny_roles("whole model", tiny_llama()))
    save_role(roles.value, tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    saved, own = again.model.state_dict(), backbone_of(roles.value.model).state_dict()
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in own)
    head = load_file(tmp_path / "head.safetensors")
    assert torch.equal(head["weight"], roles.value.head.weight)  # type: ignore[union-attr]


# --- dropout -------------------------------------------------------------------------------------


def outputs_differ(model: nn.Module) -> bool:
    model.train()
    with torch.no_grad():
        first, second = (model(input_ids=IDS, use_cache=False).logits for _ in range(2))
    return not torch.equal(first, second)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_dropout_is_off_in_training_mode_until_it_is_put_back(family: str, attention: str) -> None:
    model = tiny_model(family, dropout=0.3)
    model.set_attn_implementation(attention)
    assert outputs_differ(model)
    put_back = disable_dropout(model)
    assert not outputs_differ(model)
    put_back()
    assert outputs_differ(model)


def test_dropout_of_adapters_is_off_too_and_comes_back() -> None:
    roles = stir(tiny_roles("lora adapter", tiny_gpt2(), lora_dropout=0.3))
    activate(roles.policy)
    assert outputs_differ(roles.policy.model)
    put_back = disable_dropout(roles.policy.model)
    assert not outputs_differ(roles.policy.model)
    put_back()
    assert outputs_differ(roles.policy.model)


def test_roles_list_what_there_is() -> None:
    roles: Roles = tiny_roles("lora adapter", tiny_llama())
    assert [role.name for role in roles.all()] == ["policy", "reference", "value"]
