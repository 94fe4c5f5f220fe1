"""Twenty mistakes that people make in PPO are planted, one at a time; each must be noticed.

PPO hides its mistakes: training goes on, and the policy is only worse than it could be. So the
checks are checked. `pytest -m slow -rP tests/equivalence/test_ppo_mutants.py` shows which gate
notices what.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .ppo_gates import FAST, small_evidence

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BOUNDS = {1: 0.95, 4: 0.98}
OPTIMUM, OPTIMUM_4 = "optimum", "optimum with 4 minibatches"
Plant = Callable[[pytest.MonkeyPatch], None]


# --- mutants -------------------------------------------------------------------------------------


def part(name: str) -> Any:
    return importlib.import_module(f"sft_kit.training.ppo.{name}")


def with_penalty(change: Callable[[Any], Any]) -> Plant:
    """Put another penalty per token into the reward."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = part("experience").penalised_rewards

        def wrong(final: Any, kl: Any, *rest: Any) -> Any:
            return right(final, change(kl), *rest)

        patch.setattr(part("experience"), "penalised_rewards", wrong)

    return plant


def with_score_at(place: Callable[[Any, Any], Any]) -> Plant:
    """Give the score at other tokens: `place` gets the mask and how many tokens are left."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        import torch

        right = part("experience").penalised_rewards

        def wrong(final: Any, kl: Any, mask: Any, *rest: Any) -> Any:
            rewards = right(torch.zeros_like(final), kl, mask, *rest)
            num_left = mask.long().flip(1).cumsum(1).flip(1)
            return rewards + torch.where(place(mask, num_left), final[:, None], 0.0)

        patch.setattr(part("experience"), "penalised_rewards", wrong)

    return plant


def one_slot_early(mask: Any, num_left: Any) -> Any:
    return mask & ((num_left == 2) | ((num_left == 1) & (mask.sum(1, keepdim=True) == 1)))


def on_the_pad(mask: Any, num_left: Any) -> Any:
    # What stands on a pad is masked and never read: only completions without a pad keep a score.
    return mask.all(dim=1, keepdim=True) & (num_left == 1)


def with_loss(change: Callable[..., Any]) -> Plant:
    """Replace the policy loss; `change` gets the right one and its arguments."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = part("optimization").policy_loss

        def wrong(*args: Any, **settings: Any) -> Any:
            return change(right, *args, **settings)

        patch.setattr(part("optimization"), "policy_loss", wrong)

    return plant


def against_advantages(
    right: Any, new: Any, old: Any, advantages: Any, mask: Any, **how: Any
) -> Any:
    return right(new, old, -advantages, mask, **how)


def smaller_of_both(right: Any, new: Any, old: Any, advantages: Any, mask: Any, **how: Any) -> Any:
    import torch

    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - how["clip_low"], 1 + how["clip_high"])
    terms = torch.minimum(-advantages * ratio, -advantages * clipped)
    terms = torch.where(mask, terms, 0.0).sum() / how["num_tokens"]
    return right(new, old, advantages, mask, **how)._replace(loss=terms)


def with_rollout(change: Callable[[Any], None]) -> Plant:
    """Change a rollout after the roles have read it."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = part("experience")._run_roles

        def wrong(*args: Any) -> Any:
            rollout = right(*args)
            change(rollout)
            return rollout

        patch.setattr(part("experience"), "_run_roles", wrong)

    return plant


def leave_stop_out(rollout: Any) -> None:
    rollout.policy_mask = rollout.policy_mask.clone()
    for row, episode in enumerate(rollout.episodes):
        if episode.stopped:
            rollout.policy_mask[row, len(episode.completion_ids) - 1] = False


def no_mask(patch: pytest.MonkeyPatch) -> None:
    import torch

    def everything(rollout: Any) -> None:
        rollout.mask = torch.ones_like(rollout.mask)
        rollout.policy_mask = rollout.mask

    with_rollout(everything)(patch)
    right = part("experience").make_atom

    def wrong(*args: Any, **settings: Any) -> Any:
        atom = right(*args, **settings)
        return dataclasses.replace(atom, mask=torch.ones_like(atom.mask))

    patch.setattr(part("experience"), "make_atom", wrong)


def values_of_the_next_state(patch: pytest.MonkeyPatch) -> None:
    import torch

    from sft_kit.models.roles import apply_head, hidden_states

    def wrong(roles: Any, atom: Any) -> Any:
        hidden = hidden_states(roles.value, atom.batch)[:, atom.num_prompt_tokens :]
        return torch.where(atom.mask, apply_head(roles.value, hidden), 0.0)

    for name in ("experience", "optimization"):
        patch.setattr(part(name), "value_outputs", wrong)


def with_sampling(function: str, **changes: Any) -> Plant:
    """Draw in another way than the settings say."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = getattr(part("sampling"), function)

        def wrong(*args: Any) -> Any:
            *rest, sampling = args
            return right(*rest, dataclasses.replace(sampling, **changes))

        patch.setattr(part("sampling"), function, wrong)

    return plant


def with_terms(change: Callable[[Any, Any], Any]) -> Plant:
    """Let the policy loss of an atom see another rollout."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = part("optimization")._policy_terms

        def wrong(learner: Any, rollout: Any, atom: Any, *rest: Any) -> Any:
            return right(learner, change(rollout, atom), atom, *rest)

        patch.setattr(part("optimization"), "_policy_terms", wrong)

    return plant


def reference_as_old(rollout: Any, atom: Any) -> Any:
    return dataclasses.replace(rollout, logprobs=rollout.ref_logprobs)


def whitened_in_the_atom(rollout: Any, atom: Any) -> Any:
    rows = list(atom.rows)
    advantages = rollout.advantages.clone()
    chosen = advantages[rows][rollout.policy_mask[rows]]
    spread = chosen.std(correction=0) + 1e-4
    advantages[rows] = (advantages[rows] - chosen.mean()) / spread
    return dataclasses.replace(rollout, advantages=advantages)


def gradients_never_zeroed(patch: pytest.MonkeyPatch) -> None:
    import torch

    patch.setattr(torch.optim.Optimizer, "zero_grad", lambda *_, **__: None)


def no_position_ids(patch: pytest.MonkeyPatch) -> None:
    from transformers import GPT2Model

    right = GPT2Model.forward

    def wrong(self: Any, *args: Any, position_ids: Any = None, **inputs: Any) -> Any:
        return right(self, *args, **inputs)

    patch.setattr(GPT2Model, "forward", wrong)


def with_gae(change: Callable[..., Any]) -> Plant:
    """Replace the estimation of advantages; `change` gets the right one and its arguments."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = part("experience").gae
        patch.setattr(part("experience"), "gae", lambda *args: change(right, *args))

    return plant


def returns_from_whitened(right: Any, rewards: Any, values: Any, mask: Any, *rest: Any) -> Any:
    from sft_kit.objectives.advantages import scale_advantages

    advantages, _ = right(rewards, values, mask, *rest)
    return advantages, scale_advantages(advantages, mask, "std") + values


def half_a_value_after_the_end(right: Any, rewards: Any, values: Any, mask: Any, *rest: Any) -> Any:
    import torch

    is_last = mask & (mask.long().flip(1).cumsum(1).flip(1) == 1)
    return right(rewards + torch.where(is_last, 0.5 * values, 0.0), values, mask, *rest)


def dropout_stays_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(part("loop"), "disable_dropout", lambda _: lambda: None)


def k3(kl: Any) -> Any:
    return (-kl).exp() - 1 + kl


MUTANTS: dict[str, tuple[Plant, tuple[str, ...]]] = {
    "k3 in the reward": (with_penalty(k3), ("advantages by hand", OPTIMUM)),
    "k2 in the reward": (with_penalty(lambda kl: kl**2 / 2), ("advantages by hand", OPTIMUM)),
    "sign of the KL": (with_penalty(lambda kl: -kl), ("advantages by hand", OPTIMUM)),
    "sign of the advantage": (with_loss(against_advantages), ("plain updates", OPTIMUM)),
    "score on all tokens": (
        with_score_at(lambda mask, _: mask),
        ("advantages by hand", OPTIMUM),
    ),
    "no mask": (no_mask, ("sampler gap", "advantages by hand")),
    "value shifted by one": (values_of_the_next_state, (OPTIMUM,)),
    "score one slot early": (with_score_at(one_slot_early), ("advantages by hand", OPTIMUM)),
    "score on the pad": (with_score_at(on_the_pad), ("advantages by hand", OPTIMUM)),
    "top-k 3 in sampling": (with_sampling("_limited", top_k=3), (OPTIMUM,)),
    "old logprobs from the reference": (
        with_terms(reference_as_old),
        ("first ratio", "plain updates", OPTIMUM),
    ),
    "stop token not trained": (with_rollout(leave_stop_out), ("plain updates", OPTIMUM)),
    "gradients never zeroed": (gradients_never_zeroed, ("plain updates",)),
    "no position ids": (no_position_ids, ("left padding",)),
    "smaller instead of larger in the clip": (
        with_loss(smaller_of_both),
        ("plain updates", OPTIMUM_4),
    ),
    "returns from whitened advantages": (
        with_gae(returns_from_whitened),
        ("advantages by hand",),
    ),
    "half a value after the end": (
        with_gae(half_a_value_after_the_end),
        ("advantages by hand",),
    ),
    "temperature 0.7 drawn, 1.0 scored": (
        with_sampling("pick", temperature=0.7),
        ("sampler gap",),
    ),
    "dropout stays on": (dropout_stays_on, ("first ratio", "plain updates")),
    "whitening per micro-batch": (with_terms(whitened_in_the_atom), ("size of atoms",)),
}


# --- tests ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact() -> Iterator[ModuleType]:
    """The benchmark that trains in a world whose best policy is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        benchmark = importlib.import_module("ppo_exact_optimum")
        benchmark.checkpoint(benchmark.world_of(benchmark.Task()).language)  # before any mutant
        right = benchmark.settings_of

        def without_checks(*args: Any) -> Any:
            return dataclasses.replace(right(*args), self_checks=False)

        patch.setattr(benchmark, "settings_of", without_checks)
        yield benchmark


def share_of_optimum(exact: ModuleType, num_minibatches: int) -> float:
    """Train where all completions are listed: 0 is the reference policy, 1 the best one."""
    task = exact.Task(minibatches=num_minibatches)
    return float(exact.judge(exact.train_in_world(task), task.beta).norm)


def test_there_are_twenty_mutants() -> None:
    assert len(MUTANTS) == 20


@pytest.mark.parametrize("gate", FAST)
def test_the_right_code_passes_a_gate(gate: str, tmp_path: Path) -> None:
    found = FAST[gate](small_evidence(tmp_path, 8), small_evidence(tmp_path, 2))
    assert found.passes, found.figure


@pytest.mark.parametrize("num_minibatches", BOUNDS)
def test_the_right_code_comes_close_to_the_best_policy(
    exact: ModuleType, num_minibatches: int
) -> None:
    assert share_of_optimum(exact, num_minibatches) >= BOUNDS[num_minibatches]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_noticed(
    mutant: str, exact: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, gates = MUTANTS[mutant]
    plant(monkeypatch)
    noticed = {}
    evidence = small_evidence(tmp_path, 8), small_evidence(tmp_path, 2)
    for gate in FAST:
        found = FAST[gate](*evidence)
        noticed[gate] = not found.passes
        print(f"{mutant:40} {gate:28} {found.figure:10.2g} {'caught' if noticed[gate] else ''}")
    for gate, num_minibatches in ((OPTIMUM, 1), (OPTIMUM_4, 4)):
        if gate in gates:
            figure = share_of_optimum(exact, num_minibatches)
            noticed[gate] = figure < BOUNDS[num_minibatches]
            print(f"{mutant:40} {gate:28} {figure:10.3f} {'caught' if noticed[gate] else ''}")
    assert [gate for gate in gates if not noticed[gate]] == []
