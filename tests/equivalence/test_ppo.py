"""What must come out the same in PPO, to the last bit or to rounding."""

import copy
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from sft_kit.models.base import load_causal_lm
from sft_kit.models.role_adapters import adapter_roles
from sft_kit.models.roles import Role, Roles, activate, backbone_of, base_of
from sft_kit.settings import ModelSettings
from sft_kit.training.ppo import atoms, experience, optimization, sampling
from sft_kit.training.ppo.experience import Experience
from sft_kit.training.ppo.loop import train_ppo
from sft_kit.training.ppo.order import prompt_batch

from ..unit.training.ppo.tiny import (
    KINDS,
    STOP,
    VOCABULARY,
    lora,
    save_sft_adapter,
    tiny_gpt2,
    tiny_llama,
    tiny_model,
    tiny_prompts,
    tiny_roles,
    tiny_run,
    tiny_scorer,
)
from .ppo_runs import without_clock

Figures = list[dict[str, float]]


def trained(roles: Roles) -> dict[str, torch.Tensor]:
    parameters = roles.policy_parameters() | roles.value_parameters()
    return {name: one.detach().clone() for name, one in parameters.items()}


def logits(role: Role, ids: torch.Tensor) -> torch.Tensor:
    activate(role)
    with torch.no_grad():
        return role.model(input_ids=ids, use_cache=False).logits


def train(
    kind: str, family: str = "llama", *, args: Any = None, model: Any = None, **fields: Any
) -> tuple[Roles, Figures, list[Experience]]:
    """Train, and return what was learnt, what was logged, and every rollout."""
    dropout = fields.pop("dropout", 0.0)
    lora_fields = {} if kind.startswith("whole") else {"lora_dropout": dropout}
    roles = tiny_roles(kind, tiny_model(family) if model is None else model, **lora_fields)
    seen: list[Experience] = []
    run = tiny_run(roles, args=args, on_rollout=lambda one, _: seen.append(one), **fields)
    return roles, train_ppo(run).history, seen


# --- nothing moved: the ratio is 1 and the divergence 0 ------------------------------------------


def assert_ratio_is_exactly_one(kind: str, family: str, *, bf16: bool, checkpointing: bool) -> None:
    model = tiny_model(family, dropout=0.2)
    before = logits(Role("policy", copy.deepcopy(model), None), torch.arange(3, 9)[None])
    roles, history, _ = train(
        kind, model=model, num_rollouts=3, dropout=0.2,
        args={"bf16": bf16, "activation_checkpointing": checkpointing},
    )  # fmt: skip
    assert [figures["first_ratio_error"] for figures in history] == [0.0] * 3
    assert all(figures["approx_kl"] > 0 for figures in history)
    assert history[0]["kl"] == history[0]["kl_k3"] == 0.0
    assert all(abs(figures["kl"]) > 1e-4 for figures in history[1:])
    assert base_of(roles.policy.model).is_activation_checkpointing is checkpointing
    roles.policy.model.eval()
    assert not torch.equal(logits(roles.policy, torch.arange(3, 9)[None]), before)


CASES = [
    (kind, family, bf16, checkpointing)
    for kind in KINDS
    for family in ("gpt2", "llama")
    for bf16 in (False, True)
    for checkpointing in (False, True)
]
QUICK = {
    ("whole shared", "gpt2", False, False),
    ("lora adapter", "llama", True, True),
}


@pytest.mark.parametrize(
    ("kind", "family", "bf16", "checkpointing"),
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_the_first_update_of_every_rollout_finds_a_ratio_of_exactly_one(
    kind: str, family: str, bf16: bool, checkpointing: bool
) -> None:
    assert_ratio_is_exactly_one(kind, family, bf16=bf16, checkpointing=checkpointing)


def test_a_policy_that_starts_from_an_sft_adapter_starts_at_no_divergence(tmp_path: Path) -> None:
    base = tiny_llama()
    save_sft_adapter(tmp_path, base)
    ids = torch.tensor([[3, 9, 4, 8, 12]])
    alone = logits(Role("base", base, None), ids)
    roles = tiny_roles("lora adapter", base, sft_folder=tmp_path)
    before = logits(roles.reference, ids)
    assert not torch.allclose(before, alone, atol=1e-2)
    seen: list[Experience] = []
    run = tiny_run(roles, num_rollouts=5, on_rollout=lambda one, _: seen.append(one))
    history = train_ppo(run).history
    assert history[0]["kl"] == 0.0
    assert torch.equal(seen[0].rollout.logprobs, seen[0].rollout.ref_logprobs)
    assert history[-1]["kl"] > 1e-3
    assert torch.equal(logits(roles.reference, ids), before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole shared", "lora adapter"])
def test_the_reference_policy_is_bit_by_bit_the_same_after_a_run(kind: str) -> None:
    model = tiny_gpt2()
    ids = torch.tensor([[3, 9, 4, 8, 12]])
    before = logits(Role("base", copy.deepcopy(model), None), ids)
    roles, history, seen = train(kind, model=model, num_rollouts=5)
    roles.reference.model.eval()
    assert torch.equal(logits(roles.reference, ids), before)
    assert torch.equal(seen[0].rollout.logprobs, seen[0].rollout.ref_logprobs)
    assert abs(history[-1]["kl"]) > 1e-3


# --- what must have no influence -----------------------------------------------------------------


def assert_same_run(first: Any, second: Any) -> None:
    for name in ("logprobs", "values", "advantages", "returns"):
        for one, other in zip(first[2], second[2], strict=True):
            assert torch.equal(getattr(one.rollout, name), getattr(other.rollout, name)), name
    for one, other in zip(first[2], second[2], strict=True):
        assert one.rollout.episodes == other.rollout.episodes
    for one, other in zip(first[1], second[1], strict=True):
        (ours,), (theirs,) = without_clock([one]), without_clock([other])
        assert ours == theirs
    ours, theirs = trained(first[0]), trained(second[0])
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    ("family", "token"),
    [
        ("gpt2", STOP),
        pytest.param("gpt2", VOCABULARY - 1, marks=pytest.mark.slow),
        pytest.param("llama", STOP, marks=pytest.mark.slow),
        pytest.param("llama", VOCABULARY - 1, marks=pytest.mark.slow),
    ],
)
def test_the_id_in_padded_places_changes_not_a_bit(
    family: str, token: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train("lora adapter", family, num_rollouts=2)
    lengths = [
        len(one.prompt_ids) + len(one.completion_ids) for one in expected[2][0].rollout.episodes
    ]
    assert len(set(lengths)) > 3
    for module in (atoms, sampling):
        monkeypatch.setattr(module, "ANY_TOKEN", token)
    assert_same_run(train("lora adapter", family, num_rollouts=2), expected)


@pytest.mark.slow
def test_a_pad_token_that_is_the_stop_token_changes_not_a_bit() -> None:
    models = [tiny_llama(pad_token_id=pad) for pad in (STOP, 0)]
    models[1].load_state_dict(models[0].state_dict())
    # A row of the embedding that is the padding's is no different but in its gradient.
    assert_same_run(*(train("lora adapter", model=model) for model in models))


def long_and_short(completion_ids: list[list[int]], **_: object) -> list[float]:
    return [0.3 * len(ids) - ids.count(5) for ids in completion_ids]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole model", "lora shared"])
def test_the_size_of_atoms_changes_parameters_by_rounding_only(kind: str) -> None:
    found = []
    for size in (4, 8, 16, 32):
        roles, history, seen = train(
            kind, args={"per_device_train_batch_size": size, "adam_epsilon": 1e-5,
                        "learning_rate": 3e-3},
            num_rollouts=3, num_epochs=4, num_minibatches=1, episodes_per_rollout=32,
            max_new_tokens=12, scorer=tiny_scorer(long_and_short), value_learning_rate=3e-3,
        )  # fmt: skip
        assert sum(figures["num_updates"] for figures in history) == 12
        assert {len(one.rows) for one in seen} == {32 // size}
        found.append((trained(roles), [one.rollout.episodes for one in seen]))
    lengths = [len(one.completion_ids) for one in found[0][1][0]]
    assert min(lengths) <= 2
    assert max(lengths) == 12
    first = found[0][0]
    start = trained(tiny_roles(kind, tiny_model("llama")))
    assert max(float((first[name] - start[name]).abs().max()) for name in first) > 5e-3
    for parameters, _ in found[1:]:
        gaps = [float((parameters[name] - first[name]).abs().max()) for name in first]
        assert max(gaps) <= 1e-5


def test_held_out_prompts_leave_no_trace_in_a_run() -> None:
    expected = train("lora shared", num_rollouts=2)
    watched = train("lora shared", num_rollouts=2, eval_prompts=tiny_prompts(3), eval_rollouts=1)
    evaluations = [figures for figures in watched[1] if "eval_score_mean" in figures]
    assert [figures["step"] for figures in evaluations] == [0, 1, 2]
    rollouts = [figures for figures in watched[1] if "eval_score_mean" not in figures]
    assert_same_run((watched[0], rollouts, watched[2]), expected)


@pytest.mark.slow
def test_the_global_random_state_has_no_part_in_a_run() -> None:
    expected = train("lora adapter")
    seen: list[Experience] = []
    roles = tiny_roles("lora adapter", tiny_model("llama"))
    torch.manual_seed(999)
    history = train_ppo(tiny_run(roles, on_rollout=lambda one, _: seen.append(one))).history
    assert_same_run((roles, history, seen), expected)


# --- the base ------------------------------------------------------------------------------------


def digest(model: Any) -> str:
    sums = hashlib.sha256()
    for name, one in sorted(base_of(model).state_dict().items()):
        if "lora_" not in name:
            sums.update(name.replace(".base_layer", "").encode())
            sums.update(one.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()


@pytest.mark.parametrize("rollouts", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_merging_for_every_rollout_changes_no_bit_of_a_bfloat16_base(rollouts: int) -> None:
    base = tiny_llama().to(torch.bfloat16)
    before = digest(base)
    roles, history, _ = train(
        "lora adapter", model=base, num_rollouts=rollouts, merge_for_generation="always",
        args={"bf16": True}, episodes_per_rollout=6,
    )  # fmt: skip
    assert len(history) == rollouts
    # The merged weights round to bfloat16: what was drawn from is not quite what is trained.
    assert any(figures["sampler_gap_max"] > 0 for figures in history[1:])
    assert base_of(roles.policy.model).dtype == torch.bfloat16
    assert digest(roles.policy.model) == before


@pytest.mark.parametrize(
    ("quantization", "checkpoint"),
    [
        ("nf4", "gpt2_checkpoint"),
        pytest.param("int8", "gpt2_checkpoint", marks=pytest.mark.slow),
        pytest.param("nf4", "llama_checkpoint", marks=pytest.mark.slow),
        pytest.param("int8", "llama_checkpoint", marks=pytest.mark.slow),
    ],
)
def test_roles_on_a_quantized_base_start_at_ratio_one_and_leave_it_alone(
    quantization: Any, checkpoint: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(checkpoint)
    base = load_causal_lm(ModelSettings(str(folder), quantization=quantization))
    before = digest(base)
    seen: list[Experience] = []
    roles = adapter_roles(base, lora(), "adapter")
    ids = torch.tensor([[3, 9, 4, 8, 12]])
    reference = logits(roles.reference, ids)
    run = tiny_run(
        roles, args={"bf16": base.dtype == torch.bfloat16}, merge_for_generation="always",
        on_rollout=lambda one, _: seen.append(one),
    )  # fmt: skip
    history = train_ppo(run).history
    assert history[0]["kl"] == 0.0
    assert abs(history[-1]["kl"]) > 0
    assert [figures["first_ratio_error"] for figures in history] == [0.0] * 3
    assert digest(roles.policy.model) == before
    roles.reference.model.eval()
    assert torch.equal(logits(roles.reference, ids), reference)


# --- memory and counts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "per_atom"),
    [("lora adapter", 2), pytest.param("lora shared", 1, marks=pytest.mark.slow)],
)
def test_forwards_and_updates_of_a_rollout_are_counted_exactly(
    kind: str, per_atom: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()
    where = ["train"]
    roles = tiny_roles(kind, tiny_model("llama"))
    backbones = {id(role.model): backbone_of(role.model) for role in roles.all()}
    for backbone in backbones.values():
        backbone.register_forward_hook(lambda *_: counts.update([where[0]]))

    def counted(module: Any, name: str, phase: str) -> None:
        inner = getattr(module, name)

        def call(*args: Any, **given: Any) -> Any:
            where[0] = phase
            try:
                return inner(*args, **given)
            finally:
                where[0] = "other"

        monkeypatch.setattr(module, name, call)

    counted(experience, "draw_completions", "generate")
    counted(experience, "_run_roles", "score")
    run = tiny_run(
        roles, num_rollouts=2, num_epochs=3, episodes_per_rollout=12, generation_batch_size=64,
        self_checks=False,
    )  # fmt: skip
    longest = []
    atoms_of = []

    def keep(one: Experience, _: object) -> None:
        longest.append(max(len(row.completion_ids) for row in one.rollout.episodes))
        atoms_of.append(len(one.rows))

    run.on_rollout = keep
    inner = optimization.optimize
    monkeypatch.setattr(
        "sft_kit.training.ppo.loop.optimize",
        lambda *args: (where.__setitem__(0, "train"), inner(*args))[1],
    )
    result = train_ppo(run)
    assert counts["generate"] == sum(longest)
    assert atoms_of == [4, 4]  # 12 episodes in fours, cut for two minibatches
    assert counts["score"] == sum(atoms_of) * (1 + per_atom)  # and the reference policy's
    assert counts["train"] == 3 * sum(atoms_of) * per_atom
    assert counts["other"] == 0
    assert result.metrics["num_updates"] == 2 * 3 * 2


@pytest.mark.slow
@pytest.mark.parametrize("num_prompts", [1, 11, 12, 13, 48])
def test_every_prompt_is_seen_equally_often_and_every_update_is_made(num_prompts: int) -> None:
    seen: Counter[int] = Counter()
    rates: list[float] = []

    def keep(one: Experience, figures: dict[str, float]) -> None:
        seen.update(row.prompt for row in one.rollout.episodes)
        rates.append(figures["learning_rate"])

    run = tiny_run(
        tiny_roles("lora shared", tiny_llama()), prompts=tiny_prompts(num_prompts),
        num_rollouts=4, num_epochs=1, max_new_tokens=2, episodes_per_rollout=12, on_rollout=keep,
        args={"lr_scheduler_type": "linear", "learning_rate": 1e-3},
    )  # fmt: skip
    history = train_ppo(run).history
    assert sum(figures["num_updates"] for figures in history) == 4 * 1 * 2
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    counts = [seen[index] for index in range(num_prompts)]
    assert sum(counts) == 48
    assert max(counts) - min(counts) <= 1
    batches = [prompt_batch(num_prompts, 12 * index, 12, 0) for index in range(4)]
    assert Counter(index for batch in batches for index in batch) == seen


class LogitsSeen(TorchDispatchMode):
    """Every tensor that any operation makes, forward or backward, with a vocabulary in its shape.

    Attributes:
        rows: Distributions over the vocabulary in the largest of them.
    """

    def __init__(self, vocabulary: int, weights: set[tuple[int, ...]]) -> None:
        super().__init__()
        self.vocabulary, self.weights, self.rows = vocabulary, weights, 0
        self._storages: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if not isinstance(one, torch.Tensor) or self.vocabulary not in one.shape:
                continue
            if tuple(one.shape) in self.weights:
                continue
            self.rows = max(self.rows, one.numel() // self.vocabulary)
            storage = StorageWeakRef(one.untyped_storage())
            self._storages[storage.cdata] = storage
        return made

    def num_alive(self) -> int:
        """Count those that anything still holds, be it the graph of a backward to come."""
        self._storages = {key: one for key, one in self._storages.items() if not one.expired()}
        return len(self._storages)


def test_no_logits_of_a_prompt_are_made_and_none_outlive_their_backward() -> None:
    vocabulary = 101  # a size that nothing else has
    roles = tiny_roles("lora adapter", tiny_llama(vocab_size=vocabulary))
    shapes = {tuple(one.shape) for one in roles.policy.model.parameters()}
    seen = LogitsSeen(vocabulary, shapes | {shape[::-1] for shape in shapes})
    alive: list[int] = []
    tokens: list[int] = []

    def look(module: torch.nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():  # a forward of an update: the one before it is through
            alive.append(seen.num_alive())

    def keep(one: Experience, _: object) -> None:
        alive.append(seen.num_alive())
        tokens.extend(int(one.atom_of(number).mask.sum()) for number in range(len(one.rows)))

    backbone_of(roles.policy.model).register_forward_pre_hook(look)
    run = tiny_run(roles, num_rollouts=2, on_rollout=keep, self_checks=False)
    with seen:
        train_ppo(run)
    assert len(alive) > 2 * 2 * 2 * 2  # rollouts, epochs, atoms, roles
    assert set(alive) == {0}
    assert seen.rows == max(tokens)
