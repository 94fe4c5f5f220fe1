import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn

from sft_kit.errors import ConfigError, Problem, TrainingError
from sft_kit.models.base import load_causal_lm
from sft_kit.models.role_adapters import make_roles
from sft_kit.models.roles import Roles, base_of
from sft_kit.settings import ModelSettings, PpoSettings, PtxSettings
from sft_kit.training.ppo.checks import check_first_ratio, check_trained_set
from sft_kit.training.ppo.experience import Experience, collect
from sft_kit.training.ppo.learner import Learner
from sft_kit.training.ppo.loop import train_ppo
from sft_kit.training.ppo.optimization import optimize
from sft_kit.training.ppo.phases import Phases
from sft_kit.training.ppo.run import make_collector

from .tiny import (
    FULL,
    STOP,
    VOCABULARY,
    lora,
    share_of_threes,
    stir,
    tiny_collector,
    tiny_llama,
    tiny_model,
    tiny_prompts,
    tiny_roles,
    tiny_run,
    tiny_scorer,
    tiny_settings,
)


def weights(roles: Roles) -> dict[str, torch.Tensor]:
    named = roles.policy_parameters() | roles.value_parameters()
    return {name: one.detach().clone() for name, one in named.items()}


# --- a rollout, worked out again -----------------------------------------------------------------


def rolled_out(roles: Roles | None = None, beta: float = 0.3, **fields: Any) -> Experience:
    roles = roles or stir(tiny_roles("lora adapter", tiny_llama()))
    collector = tiny_collector(roles, **fields)
    return collect(collector, 1, [0, 1, 2, 3, 4, 5], tiny_prompts(6), beta, Phases())


def by_hand(rollout: Any, settings: PpoSettings, beta: float) -> dict[str, list[list[float]]]:
    """Rewards, advantages and returns in plain floats, by double sums over the deltas."""
    rewards, raw, returns = [], [], []
    for row, one in enumerate(rollout.episodes):
        count = len(one.completion_ids)
        of = lambda name, row=row, count=count: getattr(rollout, name)[row, :count].tolist()  # noqa: E731
        kl = [a - b for a, b in zip(of("logprobs"), of("ref_logprobs"), strict=True)]
        penalty = beta if settings.kl_in == "reward" else 0.0
        own = [-penalty * one for one in kl]
        own[-1] += float(rollout.final_scores[row])
        if rollout.token_scores is not None:
            own = [a + b for a, b in zip(own, of("token_scores"), strict=True)]
        rewards.append(own)
    if settings.whiten_rewards:
        flat = [value for own in rewards for value in own]
        mean = sum(flat) / len(flat)
        std = math.sqrt(sum((value - mean) ** 2 for value in flat) / len(flat))
        rewards = [[(value - mean) / std + mean for value in own] for own in rewards]
    for row, own in enumerate(rewards):
        values = [*rollout.values[row, : len(own)].tolist(), 0.0]
        deltas = [own[t] + settings.gamma * values[t + 1] - values[t] for t in range(len(own))]

        def sums(decay: float, deltas: Any = deltas) -> list[float]:
            rate = settings.gamma * decay
            return [
                sum(rate ** (later - t) * deltas[later] for later in range(t, len(deltas)))
                for t in range(len(deltas))
            ]

        raw.append(sums(settings.gae_lambda))
        of_values = settings.gae_lambda if settings.value_lambda is None else settings.value_lambda
        returns.append([a + v for a, v in zip(sums(of_values), values, strict=False)])
    flat = [
        value for row, own in enumerate(raw) for value in own if bool(rollout.policy_mask[row, 0])
    ]
    mean = sum(flat) / max(1, len(flat)) if settings.advantage_scaling != "none" else 0.0
    scale = 1.0
    if settings.advantage_scaling == "std":
        variance = sum((value - mean) ** 2 for value in flat) / max(1, len(flat))
        scale = math.sqrt(variance + settings.advantage_epsilon**2)
    advantages = [
        [(value - mean) / scale * bool(rollout.policy_mask[row, 0]) for value in own]
        for row, own in enumerate(raw)
    ]
    return {"rewards": rewards, "advantages": advantages, "returns": returns}


CASES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "as it is": ({}, set()),
    "gamma": ({"gamma": 0.8}, {"advantages", "returns"}),
    "gae_lambda": ({"gae_lambda": 0.3}, {"advantages", "returns"}),
    "value_lambda": ({"value_lambda": 0.2}, {"returns"}),
    "mean": ({"advantage_scaling": "mean"}, {"advantages"}),
    "none": ({"advantage_scaling": "none"}, {"advantages"}),
    "epsilon": ({"advantage_epsilon": 0.5}, {"advantages"}),
    "whiten_rewards": ({"whiten_rewards": True}, {"rewards", "advantages", "returns"}),
    "kl_in": ({"kl_in": "loss"}, {"rewards", "advantages", "returns"}),
    "mask": ({"no_stop": "mask"}, {"advantages"}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_setting_of_rewards_and_advantages_does_what_it_says(case: str) -> None:
    fields, changed = copy.deepcopy(CASES[case])
    scorer = tiny_scorer(no_stop=fields.pop("no_stop", "none"))
    rollout = rolled_out(scorer=scorer, **fields).rollout
    expected = by_hand(rollout, tiny_settings(**fields), 0.3)
    plain = rolled_out().rollout
    for name, rows in expected.items():
        found = getattr(rollout, name)
        for row, wanted in enumerate(rows):
            assert found[row, : len(wanted)].tolist() == pytest.approx(wanted, abs=1e-5), name
        assert not found[~rollout.mask].any()
        differs = not torch.allclose(found, getattr(plain, name), atol=1e-3)
        assert differs is (name in changed), name
    seen = rollout.returns[rollout.mask].double()
    assert rollout.return_std == pytest.approx(float(seen.std(correction=0)))


def test_scores_per_token_are_rewards_where_they_stand() -> None:
    def dense(completion_ids: list[list[int]], **_: object) -> list[list[float]]:
        return [[token / 10 for token in ids] for ids in completion_ids]

    rollout = rolled_out(scorer=tiny_scorer(dense), beta=0.0).rollout
    assert rollout.token_scores is not None
    for row, one in enumerate(rollout.episodes):
        found = rollout.rewards[row, : len(one.completion_ids)].tolist()
        assert found == pytest.approx([token / 10 for token in one.completion_ids])
    assert not rollout.final_scores.any()


# --- edges ---------------------------------------------------------------------------------------


def forced(roles: Roles, token: int) -> None:
    """Make the policy all but sure of a token, and leave it something to learn."""
    bias = torch.full((VOCABULARY,), -8.0)
    bias[token] = 8.0
    base_of(roles.policy.model).get_output_embeddings().register_forward_hook(
        lambda module, args, output: 0.1 * output + bias
    )


EDGES = {
    "the stop token first": (STOP, "none", 1, True),
    "no stop token at all": (5, "penalise", 4, False),
    "all masked": (5, "mask", 4, False),
    "nothing but padding ids": (0, "none", 4, False),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("count", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_edges_of_completions_give_finite_figures_and_right_masks(edge: str, count: int) -> None:
    token, rule, length, stopped = EDGES[edge]
    roles = stir(tiny_roles("lora adapter", tiny_llama()))
    forced(roles, token)
    before = weights(roles)
    seen: list[Experience] = []
    run = tiny_run(
        roles, num_rollouts=2, episodes_per_rollout=count, max_new_tokens=4, num_minibatches=1,
        prompts=tiny_prompts(count), scorer=tiny_scorer(no_stop=rule), self_checks=False,
        entropy_coefficient=0.01, on_rollout=lambda one, _: seen.append(one),
    )  # fmt: skip
    history = train_ppo(run).history
    for one in seen:
        rollout = one.rollout
        assert {episode.stopped for episode in rollout.episodes} == {stopped}
        assert {len(episode.completion_ids) for episode in rollout.episodes} == {length}
        assert torch.equal(rollout.mask, torch.ones(count, length, dtype=torch.bool))
        assert bool(rollout.policy_mask.any()) is (rule != "mask")
        for name in ("logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns"):
            assert bool(getattr(rollout, name).isfinite().all()), name
    for figures in history:
        assert [name for name, value in figures.items() if not math.isfinite(value)] == []
        assert figures["num_skipped_updates"] == 0
        assert figures["num_updates"] == 2
    assert all(bool(one.isfinite().all()) for one in weights(roles).values())
    values = roles.value_parameters()
    assert any(not torch.equal(values[name], before[name]) for name in values)


# --- the run -------------------------------------------------------------------------------------


def test_a_run_over_its_budget_stops_and_the_policy_is_that_of_the_rollout_before() -> None:
    snapshots: list[dict[str, torch.Tensor]] = []
    roles = tiny_roles("lora adapter", tiny_llama())
    start = {name: one.detach().clone() for name, one in roles.policy_parameters().items()}

    def keep(one: Experience, figures: dict[str, float]) -> None:
        snapshots.append(
            {name: one.detach().clone() for name, one in roles.policy_parameters().items()}
        )

    free = train_ppo(tiny_run(roles, num_rollouts=5, on_rollout=keep))
    divergences = [figures["kl"] for figures in free.history]
    assert free.stopped_by is None
    over = next(index for index, kl in enumerate(divergences) if kl > divergences[1] * 1.01)
    budget = (max(divergences[:over]) + divergences[over]) / 2
    again = tiny_roles("lora adapter", tiny_llama())
    result = train_ppo(tiny_run(again, num_rollouts=5, kl_budget=budget))
    assert result.stopped_by is not None
    assert "ppo.kl_budget" in result.stopped_by
    assert [figures["kl"] for figures in result.history] == divergences[: over + 1]
    assert [figures["step"] for figures in result.history] == list(range(1, over + 2))
    metrics = result.metrics
    assert (metrics["num_rollouts"], metrics["num_rollouts_kept"]) == (over, over - 1)
    if over >= 2:
        assert metrics["kl"] == divergences[over - 2]
    expected = snapshots[over - 2] if over >= 2 else start
    for name, one in again.policy_parameters().items():
        assert torch.equal(one, expected[name])


def test_the_best_policy_is_kept_and_its_figures_are_told() -> None:
    snapshots: list[dict[str, torch.Tensor]] = []
    roles = tiny_roles("lora shared", tiny_llama())
    snapshots.append(weights(roles))
    run = tiny_run(
        roles, num_rollouts=4, keep="best", eval_rollouts=1, eval_prompts=tiny_prompts(3),
        args={"learning_rate": 0.1}, on_rollout=lambda *_: snapshots.append(weights(roles)),
    )  # fmt: skip
    result = train_ppo(run)
    scores = [entry["eval_score_mean"] for entry in result.history if "eval_score_mean" in entry]
    best = scores.index(max(scores))
    assert len(scores) == 5
    assert best != 4  # else nothing would have to be put back
    assert result.metrics["num_rollouts_kept"] == best
    assert result.metrics["eval_score_mean"] == scores[best]
    assert result.metrics["first_eval_score_mean"] == scores[0]
    found = weights(roles)
    assert all(torch.equal(found[name], snapshots[best][name]) for name in found)


def test_without_an_evaluation_the_last_policy_is_the_best_one_known() -> None:
    found = []
    for keep in ("best", "last"):
        roles = tiny_roles("lora shared", tiny_llama())
        result = train_ppo(tiny_run(roles, num_rollouts=2, keep=keep))
        assert result.metrics["num_rollouts_kept"] == 2
        found.append(weights(roles))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_rollout_without_a_single_update_ends_the_run_and_moves_nothing() -> None:
    roles = tiny_roles("lora adapter", tiny_llama())
    one = next(iter(roles.policy_parameters().values()))
    one.register_hook(lambda gradient: gradient * math.inf)
    before = weights(roles)
    with pytest.raises(TrainingError, match=r"rollout 1: no update .* train\.learning_rate"):
        train_ppo(tiny_run(roles))
    assert all(torch.equal(value, before[name]) for name, value in weights(roles).items())


def test_speed_and_memory_are_logged_with_every_rollout() -> None:
    tokens: list[int] = []
    roles = tiny_roles("lora shared", tiny_llama())

    def count(one: Experience, _: object) -> None:
        tokens.append(int(one.rollout.mask.sum()))

    result = train_ppo(tiny_run(roles, num_rollouts=2, on_rollout=count))
    found = [figures["tokens_per_second"] * figures["seconds"] for figures in result.history]
    assert found == pytest.approx(tokens)
    assert all(figures["peak_memory_bytes"] > 0 for figures in result.history)
    assert result.metrics["train_seconds"] == pytest.approx(
        sum(figures["seconds"] for figures in result.history)
    )


def test_the_headline_goes_from_the_first_figures_to_those_of_the_kept_policy() -> None:
    roles = tiny_roles("lora shared", tiny_llama())
    run = tiny_run(roles, num_rollouts=2, eval_rollouts=1, eval_prompts=tiny_prompts(3))
    result = train_ppo(run)
    told = result.headline()
    for name in ("score_mean", "eval_score_mean", "stop_fraction"):
        series = [entry[name] for entry in result.history if name in entry]
        assert (told[f"first_{name}"], told[name]) == (series[0], series[-1]), name
    assert told["num_updates"] == 8
    assert told["kl"] == [entry["kl"] for entry in result.history if "kl" in entry][-1]
    assert told.items() <= result.metrics.items()
    assert not any("/" in name or "loss" in name for name in told)


@pytest.mark.parametrize(
    ("merge", "dtype", "bf16", "expected"),
    [
        ("auto", torch.float32, False, True),
        ("auto", torch.float32, True, False),
        ("auto", torch.bfloat16, True, False),
        ("always", torch.float32, True, True),
        ("never", torch.float32, False, False),
    ],
)
def test_merging_is_chosen_by_itself_in_full_precision_only(
    merge: Any, dtype: torch.dtype, bf16: bool, expected: bool
) -> None:
    roles = tiny_roles("lora adapter", tiny_llama().to(dtype))
    run = tiny_run(roles, merge_for_generation=merge, args={"bf16": bf16})
    assert make_collector(run).sampling.merge is expected


def test_the_coefficient_is_steered_by_the_closed_form_from_rollout_to_rollout() -> None:
    fields: dict[str, Any] = {
        "kl_target": 0.5, "kl_horizon": 100, "kl_coefficient": 0.2, "num_rollouts": 5,
    }  # fmt: skip
    roles = tiny_roles("lora adapter", tiny_llama())
    history = train_ppo(tiny_run(roles, **fields)).history
    beta = 0.2
    for figures in history:
        assert figures["kl_coefficient"] == pytest.approx(beta)
        error = max(-0.2, min(0.2, figures["kl"] / 0.5 - 1))
        beta *= 1 + error * 8 / 100
    assert len({figures["kl_coefficient"] for figures in history}) == 5


def test_updates_that_move_too_far_are_left_out_of_a_run() -> None:
    roles = tiny_roles("lora adapter", tiny_llama())
    run = tiny_run(roles, num_epochs=4, kl_stop=0.01, args={"learning_rate": 0.1})
    history = train_ppo(run).history
    assert any(figures["stopped_early"] for figures in history)
    assert all(
        (figures["num_updates"] < 8) is bool(figures["stopped_early"]) for figures in history
    )


def test_learning_rates_rise_over_the_first_rollouts_and_warm_values_rest_the_policy() -> None:
    roles = tiny_roles("lora adapter", tiny_llama())
    run = tiny_run(
        roles, num_rollouts=4, warmup_rollouts=2, value_warmup_rollouts=2, value_learning_rate=2e-2,
        args={"lr_scheduler_type": "constant_with_warmup", "learning_rate": 1e-2},
    )  # fmt: skip
    history = train_ppo(run).history
    rates = [figures["learning_rate"] for figures in history]
    assert rates == pytest.approx([0.0, 0.5e-2, 1e-2, 1e-2])
    twice = [2 * rate for rate in rates]
    assert [figures["value_learning_rate"] for figures in history] == pytest.approx(twice)
    assert [figures["kl"] for figures in history[:3]] == [0.0] * 3
    assert history[3]["kl"] != 0
    assert ["policy_grad_norm" in figures for figures in history] == [False, False, True, True]
    assert "first_ratio_error" not in history[0]


@pytest.mark.slow
def test_training_raises_the_score() -> None:
    roles = tiny_roles("lora adapter", tiny_llama())
    run = tiny_run(
        roles, num_rollouts=12, episodes_per_rollout=32, kl_coefficient=0.0,
        args={"per_device_train_batch_size": 16, "learning_rate": 2e-2},
    )  # fmt: skip
    scores = [figures["score_mean"] for figures in train_ppo(run).history]
    assert sum(scores[-3:]) / 3 > sum(scores[:2]) / 2 + 0.15


def test_dumped_rollouts_hold_everything_that_the_figures_are_made_of(tmp_path: Path) -> None:
    roles = tiny_roles("lora adapter", tiny_llama())
    run = tiny_run(roles, dump_rollouts=True, folder=tmp_path, num_rollouts=2, save_rollouts=9)
    history = train_ppo(run).history
    for index, figures in enumerate(history):
        dumped = load_file(tmp_path / "rollouts" / f"{index:05d}.safetensors")
        told = json.loads((tmp_path / "rollouts" / f"{index:05d}.json").read_text())
        mask = dumped["mask"]
        kl = torch.where(mask, dumped["logprobs"] - dumped["ref_logprobs"], 0).sum(1).mean()
        assert float(kl) == pytest.approx(figures["kl"], abs=1e-5)
        ids = [one["completion_ids"] for one in told["episodes"]]
        assert mask.sum(1).tolist() == [len(one) for one in ids]
        scores = share_of_threes(ids)
        assert dumped["scores"].tolist() == pytest.approx(scores)
        assert figures["score_mean"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
        entropy = float(dumped["entropies"][mask].mean())
        assert figures["entropy"] == pytest.approx(entropy, abs=1e-5)
        left = (dumped["returns"] - dumped["values"])[mask].var()
        explained = 1 - left / dumped["returns"][mask].var()
        assert figures["explained_variance"] == pytest.approx(float(explained), abs=1e-5)
        expected = by_hand(_Dumped(dumped, ids), run.settings, told["kl_coefficient"])
        for name, rows in expected.items():
            for row, wanted in enumerate(rows):
                found = dumped[name][row, : len(wanted)].tolist()
                assert found == pytest.approx(wanted, abs=1e-5)


class _Dumped:
    """A dump under the names of a rollout."""

    token_scores = None

    def __init__(self, tensors: dict[str, torch.Tensor], ids: list[list[int]]) -> None:
        vars(self).update(tensors)
        self.episodes = [type("Row", (), {"completion_ids": one}) for one in ids]


# --- what is refused -----------------------------------------------------------------------------


def test_a_run_that_cannot_work_is_refused_with_all_its_reasons() -> None:
    roles = tiny_roles("lora shared", tiny_llama())
    run = tiny_run(
        roles, prompts=[], episodes_per_rollout=2, num_minibatches=4, args={"fp16": True},
        ptx=PtxSettings(coefficient=0.1, path="-"),
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        train_ppo(run)
    assert [place(found) for found in caught.value.problems] == [
        "data.path", "ppo.num_minibatches", "train.fp16", "ptx.path",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_a_launch_that_shards_the_model_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(tiny_roles("lora shared", tiny_llama()))
    kind = DistributedType[name]
    monkeypatch.setitem(PartialState()._shared_state, "distributed_type", kind)
    with pytest.raises(ConfigError) as caught:
        train_ppo(run)
    (problem,) = caught.value.problems
    assert f"found {name}, which shards" in problem.message
    assert "torchrun" in str(problem.todo)


def place(found: Problem) -> str:
    return ".".join(part for part in (found.where, found.key) if part)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_base_cannot_be_copied_for_values(
    quantization: Any, llama_checkpoint: Path
) -> None:
    base = load_causal_lm(ModelSettings(str(llama_checkpoint), quantization=quantization))
    with pytest.raises(ConfigError) as caught:
        make_roles(base, lora(), PpoSettings(value="model"))
    assert [place(found) for found in caught.value.problems] == ["ppo.value"]


def test_what_trains_and_should_not_is_named_and_the_other_way_round() -> None:
    roles = tiny_roles("lora adapter", tiny_llama())
    check_trained_set(roles)
    name, frozen = next(
        (name, one) for name, one in roles.policy.model.named_parameters() if not one.requires_grad
    )
    frozen.requires_grad_(True)
    with pytest.raises(TrainingError, match=f"{name} trains"):
        check_trained_set(roles)
    frozen.requires_grad_(False)
    next(iter(roles.value_parameters().values())).requires_grad_(False)
    with pytest.raises(TrainingError, match="does not train"):
        check_trained_set(roles)


def refused(roles: Roles, match: str, **fields: Any) -> None:
    with pytest.raises(TrainingError, match=match):
        train_ppo(tiny_run(roles, num_rollouts=1, **fields))
    train_ppo(tiny_run(roles, num_rollouts=1, self_checks=False, **fields))


def test_a_policy_that_does_not_start_as_the_reference_is_found() -> None:
    refused(stir(tiny_roles("lora adapter", tiny_llama())), "start as the reference policy")


def test_randomness_that_could_not_be_switched_off_is_found() -> None:
    roles = tiny_roles("whole shared", tiny_llama())
    roles.policy.model.model.norm.register_forward_hook(
        lambda module, args, output: nn.functional.dropout(output, 0.2, training=module.training)
    )
    refused(roles, "something random is on")


def test_logits_that_are_more_than_the_output_layer_gives_are_found() -> None:
    model = tiny_llama()
    roles = tiny_roles("whole shared", model)

    def capped(module: Any, args: Any, output: Any) -> Any:
        output.logits = 0.5 * torch.tanh(output.logits / 0.5)
        return output

    model.register_forward_hook(capped)
    refused(roles, "more to its logits")


def test_a_model_that_caps_its_logits_is_found_however_small_they_are() -> None:
    model = tiny_llama()
    model.config.final_logit_softcapping = 1e6
    refused(tiny_roles("whole shared", model), "more to its logits")


def test_a_small_constant_beside_the_output_layer_is_found() -> None:
    model = tiny_llama()

    def moved(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits * 1.001
        return output

    model.register_forward_hook(moved)
    refused(tiny_roles("whole shared", model), "more to its logits")


def test_figures_that_are_no_numbers_pass_no_check() -> None:
    roles = tiny_roles("whole shared", tiny_llama())
    roles.policy.model.model.norm.register_forward_hook(
        lambda module, args, output: output * (math.nan if module.training else 1.0)
    )
    with pytest.raises(TrainingError, match="differ by nan"):
        train_ppo(tiny_run(roles, num_rollouts=1))


def test_a_model_that_counts_padding_as_positions_is_found() -> None:
    roles = tiny_roles("whole shared", tiny_model("gpt2"))
    for role in (roles.policy, roles.reference):

        def counted(module: Any, args: Any) -> Any:
            (positions,) = args
            return (torch.arange(positions.shape[1]).expand_as(positions),)

        role.model.transformer.wpe.register_forward_pre_hook(counted)
    refused(roles, "padding on the left changes logprobs")


def test_a_ratio_that_is_off_one_is_found_in_every_rollout() -> None:
    collector = tiny_collector(tiny_roles("lora shared", tiny_llama()))
    check_first_ratio(None, collector)
    check_first_ratio(0.0, collector)
    for error in (0.01, math.nan):
        with pytest.raises(TrainingError, match="off 1 by"):
            check_first_ratio(error, collector)


def test_a_policy_that_moves_between_scoring_and_learning_is_found() -> None:
    roles = stir(tiny_roles("lora adapter", tiny_llama()))
    collector = tiny_collector(roles)
    experience = rolled_out(roles)
    stir(roles, seed=99, spread=0.01)
    groups = [list(roles.policy_parameters().values()), list(roles.value_parameters().values())]
    learner = Learner(
        roles,
        torch.optim.SGD([{"params": one} for one in groups], lr=0.0),
        tiny_settings(),
        FULL,
        0,
    )
    watched = optimize(learner, experience.rollout, experience.rows, experience.atom_of)
    with pytest.raises(TrainingError, match="off 1 by"):
        check_first_ratio(watched.first_ratio_error, collector)
