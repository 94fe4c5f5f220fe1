import copy
import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import nn

from sft_kit.data.rows import IGNORED, Example, Where
from sft_kit.models.roles import Roles, activate, apply_head, backbone_of
from sft_kit.settings import PpoSettings, PtxSettings
from sft_kit.training.ppo.atoms import atom_rows, make_atom
from sft_kit.training.ppo.learner import Learner
from sft_kit.training.ppo.optimization import clip_gradient, optimize
from sft_kit.training.ppo.rollout import Rollout

from .tiny import (
    CPU,
    FULL,
    atom_of_all,
    row_logprobs,
    stir,
    tiny_llama,
    tiny_model,
    tiny_roles,
    tiny_settings,
    uneven_episodes,
)

EPISODES = uneven_episodes(6, seed=4)
Gradients = dict[str, torch.Tensor]
SLOW = pytest.mark.slow


class Recorder(torch.optim.SGD):
    """Gradient descent that keeps what it was given, and every state of the parameters."""

    def __init__(self, roles: Roles, lr: float = 0.0) -> None:
        self.named = roles.policy_parameters() | roles.value_parameters()
        groups = (roles.policy_parameters(), roles.value_parameters())
        super().__init__([{"params": list(group.values())} for group in groups], lr=lr)
        self.gradients: list[dict[str, torch.Tensor | None]] = []
        self.states: list[Gradients] = []

    def step(self, closure: Any = None) -> None:
        self.gradients.append(
            {
                name: None if one.grad is None else one.grad.clone()
                for name, one in self.named.items()
            }
        )
        super().step()
        self.states.append({name: one.detach().clone() for name, one in self.named.items()})


def made_up_rollout(roles: Roles, index: int = 5) -> Rollout:
    """A rollout that the policy has moved away from: ratios, values and advantages of any kind."""
    atom = atom_of_all(EPISODES)
    draw = torch.Generator().manual_seed(9)
    mask = atom.mask

    def noise(scale: float) -> torch.Tensor:
        return torch.where(mask, scale * torch.randn(mask.shape, generator=draw), torch.nan)

    now = torch.zeros(mask.shape)
    activate(roles.policy)
    with torch.no_grad():
        for row, one in enumerate(EPISODES):
            now[row, : len(one.completion_ids)] = row_logprobs(roles.policy.model, one).float()
    logprobs = now + noise(0.3)
    zeros = torch.zeros(len(EPISODES))
    return Rollout(
        index=index, episodes=EPISODES, mask=mask, policy_mask=mask.clone(), logprobs=logprobs,
        ref_logprobs=now + noise(0.3), sampled_logprobs=logprobs + noise(0.1),
        entropies=zeros, values=noise(0.5), scores=zeros, final_scores=zeros, kl_coefficient=0.4,
        advantages=noise(1.0), returns=noise(1.0), return_std=0.7,
    )  # fmt: skip


def learn(
    roles: Roles, rollout: Rollout, settings: PpoSettings, *, optimizer: Any = None, **fields: Any
) -> tuple[Any, Any]:
    """Run the updates in atoms of 3 episodes."""
    optimizer = optimizer or Recorder(roles)
    learner = Learner(roles, optimizer, settings, FULL, 0, **({"max_grad_norm": 0.0} | fields))
    rows = atom_rows(rollout.episodes, 3, settings.num_minibatches)
    watched = optimize(
        learner, rollout, rows, lambda number: make_atom(rollout.episodes, rows[number], CPU)
    )
    return watched, optimizer


def once(**fields: Any) -> PpoSettings:
    return tiny_settings(**({"num_epochs": 1, "num_minibatches": 1} | fields))


# --- the loss, term by term ----------------------------------------------------------------------


@dataclass
class ByHand:
    """The losses of a whole rollout: float64 terms one by one, rows alone and without padding."""

    roles: Roles
    rollout: Rollout
    settings: PpoSettings
    figures: dict[str, float] = field(default_factory=dict)

    def policy(self) -> torch.Tensor:
        s, total = self.settings, torch.zeros((), dtype=torch.float64)
        counted = [
            (row, c)
            for row, one in enumerate(EPISODES)
            for c in range(len(one.completion_ids))
            if self.rollout.policy_mask[row, c]
        ]
        num_rows = len({row for row, _ in counted})
        activate(self.roles.policy)
        rows = {row: row_logprobs(self.roles.policy.model, EPISODES[row]) for row, _ in counted}
        for row, c in counted:
            of = lambda name, row=row, c=c: float(getattr(self.rollout, name)[row, c])  # noqa: E731
            advantage, logprob = of("advantages"), rows[row][c]
            ratio = (logprob - of("logprobs")).exp()
            near = ratio.clamp(1 - s.clip_low, 1 + s.clip_high)
            term = torch.maximum(-advantage * ratio, -advantage * near)
            if s.dual_clip is not None and advantage < 0:
                term = term.clamp(max=-advantage * s.dual_clip)
            if s.sampler_correction is not None:
                gap = math.exp(of("logprobs") - of("sampled_logprobs"))
                term = term * min(gap, s.sampler_correction)
            if s.loss_mean == "completions":
                own = sum(other == row for other, _ in counted)
                term = term / (own * num_rows)
            else:
                term = term / len(counted)
            if s.kl_in == "loss":
                square = (logprob - of("ref_logprobs")) ** 2
                term = term + self.rollout.kl_coefficient * square / 2 / len(counted)
            total = total + term
        if s.entropy_coefficient:
            for row in rows:
                total = total - s.entropy_coefficient * self._entropy(row) / len(counted)
        return total

    def _entropy(self, row: int) -> torch.Tensor:
        one = EPISODES[row]
        ids = torch.tensor([one.prompt_ids + one.completion_ids])
        logits = self.roles.policy.model(input_ids=ids).logits[0, len(one.prompt_ids) - 1 : -1]
        return torch.distributions.Categorical(logits=logits.double()).entropy().sum()

    def value(self) -> torch.Tensor:
        s, total = self.settings, torch.zeros((), dtype=torch.float64)
        activate(self.roles.value)
        for row, one in enumerate(EPISODES):
            ids = torch.tensor([one.prompt_ids + one.completion_ids])
            hidden = backbone_of(self.roles.value.model)(input_ids=ids).last_hidden_state
            values = apply_head(self.roles.value, hidden)[0, len(one.prompt_ids) - 1 : -1].double()
            for c in range(len(one.completion_ids)):
                old, goal = float(self.rollout.values[row, c]), float(self.rollout.returns[row, c])
                term = (values[c] - goal) ** 2
                if s.value_clip is not None:
                    reach = s.value_clip * self.rollout.return_std
                    near = values[c].clamp(old - reach, old + reach)
                    term = torch.maximum(term, (near - goal) ** 2)
                total = total + s.value_coefficient * term / 2
        return total / int(self.rollout.mask.sum())

    def gradients(self, *, extra: Any = None, share: float = 1.0) -> Gradients:
        """Backward of both, one after the other."""
        named = self.roles.policy_parameters() | self.roles.value_parameters()
        for one in named.values():
            one.grad = None
        (share * self.policy()).backward()
        if extra is not None:
            extra(self.roles)
        self.value().backward()
        found = {name: one.grad.clone() for name, one in named.items() if one.grad is not None}
        for one in named.values():
            one.grad = None
        return found


CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "clip_low": {"clip_low": 0.02},
    "clip_high": {"clip_high": 0.02},
    "dual_clip": {"dual_clip": 1.05},
    "kl_in": {"kl_in": "loss"},
    "entropy": {"entropy_coefficient": 0.3},
    "sampler": {"sampler_correction": 1.03},
    "completions": {"loss_mean": "completions"},
    "completions and sampler": {"loss_mean": "completions", "sampler_correction": 1.03},
    "no value_clip": {"value_clip": None},
    "value_clip": {"value_clip": 0.5},
    "value_coefficient": {"value_coefficient": 0.2},
}


def assert_same_gradients(found: dict[str, Any], expected: Gradients) -> None:
    assert {name for name, one in found.items() if one is not None} == set(expected)
    for name, value in expected.items():
        assert bool(value.isfinite().all())
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", [pytest.param("lora adapter", marks=SLOW), "whole shared"])
@pytest.mark.parametrize("case", CASES)
def test_every_setting_of_the_losses_gives_the_gradient_worked_out_by_hand(
    kind: str, case: str
) -> None:
    roles = stir(tiny_roles(kind, tiny_model("gpt2" if "whole" in kind else "llama")))
    rollout = made_up_rollout(roles)
    settings = once(**CASES[case])
    _, optimizer = learn(roles, rollout, settings)
    expected = ByHand(roles, rollout, settings).gradients()
    assert_same_gradients(optimizer.gradients[0], expected)
    if CASES[case]:
        plain = learn(roles, rollout, once())[1].gradients[0]
        assert max(float((plain[name] - expected[name]).abs().max()) for name in plain) > 1e-4


@pytest.mark.parametrize("case", ["as it is", "completions", "kl_in", "entropy"])
def test_masked_completions_teach_the_values_only(case: str) -> None:
    roles = stir(tiny_roles("lora adapter", tiny_llama()))
    rollout = made_up_rollout(roles)
    rollout.policy_mask[[0, 3]] = False
    settings = once(**CASES[case])
    _, optimizer = learn(roles, rollout, settings)
    assert_same_gradients(optimizer.gradients[0], ByHand(roles, rollout, settings).gradients())


@pytest.mark.parametrize("kind", ["lora adapter", "lora shared"])
def test_a_rollout_with_nothing_for_the_policy_gives_it_no_gradient_of_its_own(kind: str) -> None:
    roles = stir(tiny_roles(kind, tiny_llama()))
    rollout = made_up_rollout(roles)
    rollout.policy_mask[:] = False
    watched, optimizer = learn(roles, rollout, once(entropy_coefficient=0.1, kl_in="loss"))
    assert watched.num_skipped_updates == 0
    (gradients,) = optimizer.gradients
    if kind == "lora adapter":
        assert all(gradients.pop(name) is None for name in roles.policy_parameters())
    assert all(bool(one.isfinite().all()) for one in gradients.values())
    assert gradients["value_head.weight"].any()
    figures = watched.metrics()
    assert all(math.isfinite(value) for value in figures.values())


def test_the_figures_of_an_update_are_those_of_its_tokens() -> None:
    roles = stir(tiny_roles("lora adapter", tiny_llama()))
    rollout = made_up_rollout(roles)
    settings = once(value_coefficient=0.5)
    watched, _ = learn(roles, rollout, settings)
    figures, by_hand = watched.metrics(), ByHand(roles, rollout, settings)
    assert figures["policy_loss"] == pytest.approx(by_hand.policy().item(), abs=1e-5)
    # The coefficient weighs the loss in the gradient, and is no part of the figure.
    assert figures["value_loss"] == pytest.approx(by_hand.value().item() / 0.5, abs=1e-5)
    activate(roles.policy)
    low, high, divergence, largest, count = 0, 0, 0.0, 0.0, 0
    for row, one in enumerate(EPISODES):
        now = row_logprobs(roles.policy.model, one).tolist()
        for c, logprob in enumerate(now):
            change = logprob - float(rollout.logprobs[row, c])
            ratio, advantage = math.exp(change), float(rollout.advantages[row, c])
            low += ratio < 0.8 and advantage < 0
            high += ratio > 1.2 and advantage > 0
            divergence += ratio - 1 - change
            largest, count = max(largest, abs(ratio - 1)), count + 1
    assert low > 0
    assert high > 0
    assert figures["clip_low_fraction"] == pytest.approx(low / count)
    assert figures["clip_high_fraction"] == pytest.approx(high / count)
    assert figures["approx_kl"] == pytest.approx(divergence / count, abs=1e-5)
    assert figures["first_ratio_error"] == pytest.approx(largest, abs=1e-5)


# --- language beside the reward ------------------------------------------------------------------

ROWS = [
    Example(ids, labels, False, Where("rows", 1))
    for ids, labels in (
        ((5, 6, 7, 8), (IGNORED, IGNORED, 7, 8)),
        ((9, 10, 11, 12, 13, 3), (IGNORED, 10, 11, 12, 13, 3)),
        ((4, 4), (IGNORED, 4)),
    )
]


@pytest.mark.parametrize(
    ("mix", "kind"),
    [
        ("add", "lora adapter"),
        ("convex", "lora shared"),
        pytest.param("add", "lora shared", marks=SLOW),
        pytest.param("convex", "lora adapter", marks=SLOW),
    ],
)
def test_the_language_loss_is_added_to_the_gradient_as_transformers_counts_it(
    mix: Any, kind: str
) -> None:
    roles = stir(tiny_roles(kind, tiny_llama()))
    rollout, settings = made_up_rollout(roles), once()
    ptx = PtxSettings(coefficient=0.3, mix=mix, path="-", batch_size=3)
    watched, optimizer = learn(roles, rollout, settings, ptx=ptx, ptx_rows=ROWS, micro_batch=2)

    def language(roles: Roles) -> None:
        activate(roles.policy)
        num_labels = 2 + 5 + 1
        for row in ROWS:
            labels = torch.tensor([row.labels])
            counted = int((labels[:, 1:] != IGNORED).sum())
            loss = roles.policy.model(input_ids=torch.tensor([row.input_ids]), labels=labels).loss
            (0.3 * loss * counted / num_labels).backward()

    share = 0.7 if mix == "convex" else 1.0
    expected = ByHand(roles, rollout, settings).gradients(extra=language, share=share)
    assert_same_gradients(optimizer.gradients[0], expected)
    assert watched.metrics()["ptx_grad_norm"] > 0


# --- clipping, steps, and what is not stepped ----------------------------------------------------


def norm(gradients: Gradients, names: Any) -> float:
    return math.sqrt(sum(float(gradients[name].double().square().sum()) for name in names))


def test_clipping_scales_each_group_down_and_reports_the_norm_before() -> None:
    roles = stir(tiny_roles("lora adapter", tiny_llama()))
    rollout, settings = made_up_rollout(roles), once()
    expected = ByHand(roles, rollout, settings).gradients()
    before = {
        name: one.detach().clone()
        for name, one in (roles.policy_parameters() | roles.value_parameters()).items()
    }
    watched, optimizer = learn(
        roles, rollout, settings, optimizer=Recorder(roles, lr=1.0), max_grad_norm=1e-9
    )
    moved = max(float((optimizer.states[0][name] - before[name]).abs().max()) for name in before)
    assert moved < 1e-8
    figures = watched.metrics()
    policy, values = (
        norm(expected, roles.policy_parameters()),
        norm(expected, roles.value_parameters()),
    )
    assert figures["policy_grad_norm"] == pytest.approx(policy, rel=1e-4)
    assert figures["value_grad_norm"] == pytest.approx(values, rel=1e-4)
    # Far above the limit, each group by itself is cut to it.
    roles = stir(tiny_roles("lora adapter", tiny_llama()))
    _, optimizer = learn(roles, rollout, settings, max_grad_norm=0.5 * min(policy, values))
    (given,) = optimizer.gradients
    for group in (roles.policy_parameters(), roles.value_parameters()):
        assert norm(given, group) == pytest.approx(0.5 * min(policy, values), rel=1e-4)


def test_no_limit_leaves_gradients_alone() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([3.0, 4.0, 0.0])
    assert clip_gradient([parameter], 0.0) == pytest.approx(5.0)
    assert parameter.grad.tolist() == [3.0, 4.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_at_a_tiny_learning_rate_moves_nearly_every_weight(dtype: torch.dtype) -> None:
    roles = stir(tiny_roles("whole model", tiny_llama().to(dtype)))
    seen = Recorder(roles)
    learn(copy.deepcopy(roles), made_up_rollout(roles), once())  # a copy trains as well
    learn(roles, made_up_rollout(roles), once(), optimizer=seen)
    before = seen.states[0]
    groups = [list(roles.policy_parameters().values()), list(roles.value_parameters().values())]
    adam = torch.optim.AdamW([{"params": one, "lr": 1e-6} for one in groups], weight_decay=0.0)
    learn(roles, made_up_rollout(roles), once(), optimizer=adam)
    num_moved = num_felt = 0
    for name, one in (roles.policy_parameters() | roles.value_parameters()).items():
        felt = seen.gradients[0][name]
        assert felt is not None
        num_felt += int((felt != 0).sum())
        num_moved += int(((one != before[name]) & (felt != 0)).sum())
    assert num_felt > 5000
    assert num_moved > 0.99 * num_felt


def test_an_update_that_is_no_number_is_left_out() -> None:
    roles = stir(tiny_roles("lora adapter", tiny_llama()))
    rollout = made_up_rollout(roles)
    rollout.advantages = torch.where(rollout.mask, rollout.advantages, 0.0)
    rollout.advantages[0, 0] = torch.inf
    before = [one.detach().clone() for one in roles.policy_parameters().values()]
    watched, optimizer = learn(roles, rollout, once(), optimizer=Recorder(roles, lr=1.0))
    assert (watched.num_updates, watched.num_skipped_updates) == (0, 1)
    assert optimizer.gradients == []
    assert all(map(torch.equal, roles.policy_parameters().values(), before))
    assert all(one.grad is None for one in roles.policy_parameters().values())


@pytest.mark.parametrize("kind", ["lora adapter", "lora shared"])
def test_without_a_token_to_learn_from_momentum_moves_no_policy_of_its_own(kind: str) -> None:
    roles = stir(tiny_roles(kind, tiny_llama()))
    rollout = made_up_rollout(roles)
    groups = [list(roles.policy_parameters().values()), list(roles.value_parameters().values())]
    adam = torch.optim.AdamW([{"params": one, "lr": 1e-2} for one in groups], weight_decay=0.1)
    learn(roles, rollout, once(), optimizer=adam)
    before = [[one.detach().clone() for one in group] for group in groups]
    masked = replace(rollout, policy_mask=torch.zeros_like(rollout.mask))
    watched, _ = learn(roles, masked, once(), optimizer=adam)
    assert watched.num_updates == 1
    policy, values = (
        [torch.equal(one, old) for one, old in zip(group, olds, strict=True)]
        for group, olds in zip(groups, before, strict=True)
    )
    assert not any(values)
    # Values that share the policy's layers have something to teach them.
    assert all(policy) if kind == "lora adapter" else not any(policy)


def test_updates_are_made_in_every_minibatch_of_every_epoch() -> None:
    roles = stir(tiny_roles("lora adapter", tiny_llama()))
    settings = tiny_settings(num_epochs=3, num_minibatches=2)
    watched, optimizer = learn(
        roles, made_up_rollout(roles), settings, optimizer=Recorder(roles, lr=1e-3)
    )
    assert watched.num_updates == len(optimizer.gradients) == 6
    epochs = {name for name in watched.metrics() if name.startswith("approx_kl/")}
    assert epochs == {"approx_kl/epoch_1", "approx_kl/epoch_2", "approx_kl/epoch_3"}


def test_updates_stop_before_the_step_when_the_policy_has_moved_too_far() -> None:
    roles = stir(tiny_roles("lora adapter", tiny_llama()))
    rollout = made_up_rollout(roles)
    watched, _ = learn(roles, rollout, once())
    moved = watched.metrics()["approx_kl"]
    for share, updates in ((1.01, 0), (0.99, 1)):  # of the factor 1.5
        settings = once(kl_stop=moved / 1.5 / share)
        watched, optimizer = learn(roles, rollout, settings, optimizer=Recorder(roles))
        assert watched.stopped_early is (updates == 0)
        assert len(optimizer.gradients) == watched.num_updates == updates
        assert all(one.grad is None for one in roles.policy_parameters().values())


# --- averages and rest ---------------------------------------------------------------------------


def test_the_moving_average_follows_the_policy_update_by_update() -> None:
    roles = stir(tiny_roles("lora adapter", tiny_llama()))
    start = {name: one.detach().clone() for name, one in roles.policy_parameters().items()}
    ema = {name: one.clone() for name, one in start.items()}
    settings = tiny_settings(num_epochs=2, num_minibatches=2, ema_decay=0.9)
    _, optimizer = learn(
        roles, made_up_rollout(roles), settings, optimizer=Recorder(roles, lr=0.1), ema=ema
    )
    assert len(optimizer.states) == 4
    for name, first in start.items():
        expected = first.double()
        for state in optimizer.states:
            expected = 0.9 * expected + 0.1 * state[name].double()
        torch.testing.assert_close(ema[name], expected.float(), rtol=0, atol=1e-6)
        assert not torch.equal(ema[name], optimizer.states[-1][name])


@pytest.mark.parametrize(
    "kind",
    ["lora shared", *(pytest.param(k, marks=SLOW) for k in ("lora adapter", "whole shared"))],
)
def test_the_policy_rests_bit_by_bit_while_the_values_warm_up(kind: str) -> None:
    roles = stir(tiny_roles(kind, tiny_llama()))
    settings = tiny_settings(value_warmup_rollouts=2)
    start = {name: one.detach().clone() for name, one in roles.policy_parameters().items()}
    head = roles.value.head.weight.detach().clone()  # type: ignore[union-attr]
    groups = [list(roles.policy_parameters().values()), list(roles.value_parameters().values())]
    adam = torch.optim.AdamW([{"params": one, "lr": 1e-2} for one in groups], weight_decay=0.1)
    rollout = made_up_rollout(roles)
    for index in (0, 1):
        watched, _ = learn(roles, replace(rollout, index=index), settings, optimizer=adam)
        assert all(torch.equal(one, start[name]) for name, one in roles.policy_parameters().items())
        assert watched.first_ratio_error is None
        assert "policy_grad_norm" not in watched.metrics()
    assert not torch.equal(roles.value.head.weight, head)  # type: ignore[union-attr]
    watched, _ = learn(roles, replace(rollout, index=2), settings, optimizer=adam)
    assert watched.first_ratio_error is not None
    assert not any(torch.equal(one, start[name]) for name, one in roles.policy_parameters().items())


@pytest.mark.parametrize("kind", ["lora adapter", "lora shared"])
def test_a_copy_of_the_policy_brings_it_back_with_its_average_and_a_head_on_it(kind: str) -> None:
    roles = stir(tiny_roles(kind, tiny_llama()))
    policy, values = roles.policy_parameters(), roles.value_parameters()
    ema = {name: one.detach().clone() + 1 for name, one in policy.items()}
    groups = [{"params": list(group.values())} for group in (policy, values)]
    learner = Learner(roles, torch.optim.SGD(groups, lr=0.0), once(), FULL, 0, ema=ema)
    old = [one.detach().clone() for one in (*policy.values(), *ema.values())]
    old_values = [one.detach().clone() for one in values.values()]
    kept = learner.copy_policy()
    assert {one.device for one in kept} == {CPU}
    stir(roles, seed=8)
    for one in ema.values():
        one.zero_()
    learner.put_policy(kept)
    assert all(map(torch.equal, (*policy.values(), *ema.values()), old))
    came_back = list(map(torch.equal, values.values(), old_values))
    assert all(came_back) if kind == "lora shared" else not any(came_back)
