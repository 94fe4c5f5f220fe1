"""PPO in small worlds where the best possible policy is known exactly."""

import importlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def on_path() -> Iterator[None]:
    """The benchmarks import one another as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


@pytest.fixture(scope="module")
def worlds(on_path: None) -> ModuleType:
    """The worlds."""
    return importlib.import_module("ppo_worlds")


@pytest.fixture(scope="module")
def optimum(on_path: None) -> ModuleType:
    """This project's PPO in the worlds."""
    return importlib.import_module("ppo_exact_optimum")


@pytest.fixture(scope="module")
def train(worlds: ModuleType, optimum: ModuleType) -> Callable[..., Any]:
    """Train a task, once for all tests that ask for the same."""
    done: dict[Any, Any] = {}

    def trained(*, ptx: float = 0.0, **task: Any) -> Any:
        key = (worlds.Task(**task), ptx)
        if key not in done:
            done[key] = optimum.train_in_world(key[0], ptx_coefficient=ptx)
        return done[key]

    return trained


# --- the worlds themselves -----------------------------------------------------------------------


def random_gpt2(vocabulary: int, seed: int, spread: float = 0.5) -> Any:
    """GPT-2 with weights large enough that its distributions are far from uniform."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=16, n_embd=16, n_layer=2, n_head=2,
        initializer_range=spread, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def listed_one_by_one(
    model: Any, prompt: tuple[int, ...], max_new_tokens: int
) -> dict[tuple[int, ...], float]:
    """Completion -> log-probability: one forward per beginning, token by token."""
    import torch

    found: dict[tuple[int, ...], float] = {}

    def extend(beginning: tuple[int, ...], logprob: float) -> None:
        if len(beginning) == max_new_tokens or beginning[-1:] == (2,):
            found[beginning] = logprob
            return
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + beginning])).logits[0, -1].double()
        for token, value in enumerate(logits.log_softmax(-1).tolist()):
            extend((*beginning, token), logprob + value)

    extend((), 0.0)
    return found


def by_hand(completion: tuple[int, ...], world: Any) -> float:
    bonus = world.stop_bonus * (completion[-1] == 2)
    (wanted,) = world.reward_tokens
    return world.scale * (completion.count(wanted) / world.max_new_tokens + bonus) + world.constant


def test_every_completion_has_the_probability_that_token_by_token_gives_it(
    worlds: ModuleType,
) -> None:
    import torch

    model = random_gpt2(8, seed=1)
    world = worlds.enumerated_world(max_new_tokens=3, scale=2.0, constant=-0.5)
    logprobs = worlds.completion_logprobs(worlds.causal_forward(model), world)
    scores = worlds.completion_scores(world).tolist()
    listed = worlds.every_completion(8, 3)
    rows = [
        tuple(row[:length])
        for row, length in zip(listed.tokens.tolist(), listed.lengths.tolist(), strict=True)
    ]
    assert len(rows) == len(set(rows)) == 1 + 7 + 49 * 8
    torch.testing.assert_close(logprobs.exp().sum(1), torch.ones(2, dtype=torch.float64))
    for place, prompt in enumerate(world.prompts):
        expected = listed_one_by_one(model, prompt, 3)
        assert set(rows) == set(expected)
        for row, logprob in zip(rows, logprobs[place].tolist(), strict=True):
            assert logprob == pytest.approx(expected[row], abs=1e-5)
    assert scores == pytest.approx([by_hand(row, world) for row in rows])


def test_eight_tokens_in_four_places_make_2801_completions(worlds: ModuleType) -> None:
    assert len(worlds.every_completion(8, 4).lengths) == 2801
    assert len(worlds.every_completion(8, 1).lengths) == 8


def test_no_policy_is_better_than_the_optimum(worlds: ModuleType) -> None:
    import torch

    draw = torch.Generator().manual_seed(3)
    ref = torch.randn(2, 40, generator=draw, dtype=torch.float64).log_softmax(1)
    scores = torch.rand(40, generator=draw, dtype=torch.float64)
    for beta in (0.05, 0.3, 2.0):
        optimum = worlds.best_probabilities(ref, scores, beta)
        figures = worlds.exact_figures(optimum.log(), ref, scores, beta)
        # The definition, in plain floats.
        best = [
            beta * math.log(sum(math.exp(a + b / beta) for a, b in zip(row, scores, strict=True)))
            for row in ref.tolist()
        ]
        assert figures.best_j == pytest.approx(sum(best) / 2)
        assert figures.norm == pytest.approx(1.0)
        assert figures.j == pytest.approx(figures.expected_reward - beta * figures.kl)
        assert worlds.exact_figures(ref, ref, scores, beta).norm == pytest.approx(0.0)
        for _ in range(20):
            step = 0.1 * torch.randn(2, 40, generator=draw, dtype=torch.float64)
            other = (optimum.log() + step).log_softmax(1)
            assert worlds.exact_figures(other, ref, scores, beta).j < figures.best_j


def test_means_over_drawn_completions_agree_with_the_exact_ones(worlds: ModuleType) -> None:
    import torch

    policy, reference = random_gpt2(8, seed=1, spread=0.2), random_gpt2(8, seed=2, spread=0.2)
    world = worlds.enumerated_world()
    logprobs, ref_logprobs = (
        worlds.completion_logprobs(worlds.causal_forward(model), world)
        for model in (policy, reference)
    )
    figures = worlds.exact_figures(logprobs, ref_logprobs, worlds.completion_scores(world), 0.1)
    rewards, logratios = [], []
    for prompt in world.prompts:
        ids = torch.tensor([prompt] * 2000)
        drawn = policy.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=True, top_k=0
        )
        rewards += [world.score(row) for row in drawn[:, len(prompt) :].tolist()]
        logratios.append(
            sequence_logprobs(policy, drawn, ids) - sequence_logprobs(reference, drawn, ids)
        )
    for values, exact in (
        (torch.tensor(rewards, dtype=torch.float64), figures.expected_reward),
        (torch.cat(logratios), figures.kl),
    ):
        error = float(values.std()) / math.sqrt(len(values))
        assert error < 0.05
        assert abs(float(values.mean()) - exact) < 4 * error


def sequence_logprobs(model: Any, drawn: Any, prompts: Any) -> Any:
    """Sum over a completion up to its first EOS, as transformers' own loss would count it."""
    import torch

    num_prompt = prompts.shape[1]
    with torch.no_grad():
        logits = model(input_ids=drawn).logits[:, num_prompt - 1 : -1].double()
    tokens = drawn[:, num_prompt:]
    chosen = logits.log_softmax(-1).gather(2, tokens[:, :, None])[:, :, 0]
    before_end = (tokens == 2).long().cumsum(1) - (tokens == 2).long() == 0
    return (chosen * before_end).sum(1)


def test_texts_follow_the_transitions_of_the_language(worlds: ModuleType) -> None:
    import torch

    language = worlds.SMALL
    table = worlds.transitions(language)
    counts = torch.zeros(8, 8)
    for text in worlds.draw_texts(language, 1500, seed=9):
        assert text[0] == worlds.BOS
        assert worlds.EOS not in text[:-1]
        for before, after in itertools.pairwise(text):
            counts[before, after] += 1
    for token in (worlds.BOS, *range(worlds.FIRST_WORD, 8)):
        seen = counts[token].sum()
        error = (table[token] * (1 - table[token]) / seen).sqrt()
        assert seen > 500
        assert bool(((counts[token] / seen - table[token]).abs() <= 4.5 * error).all())


def test_a_checkpoint_is_made_once_and_its_tokenizer_reads_what_is_written(
    worlds: ModuleType, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    language = worlds.Language(vocabulary=8, num_steps=2, num_layers=1, hidden_size=8)
    folder = worlds.checkpoint(language, tmp_path)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert worlds.checkpoint(language, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [1, 4, 0, 7, 2]
    assert tokenizer(worlds.words(ids), add_special_tokens=False)["input_ids"] == ids
    assert tokenizer.decode(ids) == worlds.words(ids)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 8


# --- PPO where the optimum is known ---------------------------------------------------------------


def scores(trained: Any) -> list[float]:
    return [row["score_mean"] for row in trained.result.history]


@pytest.mark.slow
@pytest.mark.parametrize(("minibatches", "least"), [(1, 0.95), (4, 0.98)])
def test_ppo_reaches_the_optimum_of_the_enumerated_world(
    train: Callable[..., Any], optimum: ModuleType, minibatches: int, least: float
) -> None:
    runs = [train(minibatches=minibatches, seed=seed) for seed in range(3)]
    assert all(run.optimizer_steps == 40 * 4 * minibatches for run in runs)
    norms = [optimum.judge(run, 0.1).norm for run in runs]
    assert least <= statistics.median(norms) <= 1.0, norms


@pytest.mark.slow
def test_adapters_on_one_base_reach_the_optimum_and_leave_the_base_alone(
    train: Callable[..., Any], optimum: ModuleType, worlds: ModuleType
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    # An adapter takes a larger step than a whole model; at 1e-3 one minibatch gets to 0.88.
    run = train(value="adapter", lora=True, minibatches=1, learning_rate=2e-3)
    assert optimum.judge(run, 0.1).norm >= 0.90
    start = AutoModelForCausalLM.from_pretrained(worlds.checkpoint(worlds.SMALL))
    left = run.roles.policy.model.get_base_model().state_dict()
    for name, tensor in start.state_dict().items():
        parent, _, leaf = name.rpartition(".")
        kept = left.get(name, left.get(f"{parent}.base_layer.{leaf}"))
        assert torch.equal(tensor, kept), name


@pytest.mark.slow
def test_a_policy_of_one_token_becomes_the_best_distribution(
    train: Callable[..., Any], optimum: ModuleType, worlds: ModuleType
) -> None:
    run = train(max_new_tokens=1, stop_bonus=0.5, beta=0.5, minibatches=4)
    reference = optimum.role_logprobs(run.roles.reference, run.world)
    policy = optimum.role_logprobs(run.roles.policy, run.world).exp()
    # One token is one completion; their order is that of the listing.
    tokens = worlds.every_completion(8, 1).tokens[:, 0].tolist()
    for place in range(2):
        weights = {
            token: math.exp(reference[place, column])
            * math.exp((token == 7) + 0.5 * (token == 2)) ** 2
            for column, token in enumerate(tokens)
        }
        total = sum(weights.values())
        gaps = [
            abs(float(policy[place, column]) - weights[token] / total)
            for column, token in enumerate(tokens)
        ]
        assert sum(gaps) / 2 <= 0.05
        start = sum(
            abs(math.exp(reference[place, c]) - weights[t] / total) for c, t in enumerate(tokens)
        )
        assert start / 2 > 0.15  # it had a way to go


@pytest.mark.slow
def test_scores_and_beta_thirty_times_as_large_change_nothing(
    train: Callable[..., Any], optimum: ModuleType
) -> None:
    plain = optimum.judge(train(minibatches=4), 0.1)
    run = train(scale=30.0, beta=3.0, minibatches=4)
    large = optimum.judge(run, 3.0)
    assert large.best_j == pytest.approx(30 * plain.best_j, rel=1e-5)
    assert abs(large.norm - plain.norm) <= 0.05
    assert run.result.history[-1]["explained_variance"] > 0.5


@pytest.mark.slow
def test_a_constant_score_leaves_the_policy_where_it_is(
    train: Callable[..., Any], optimum: ModuleType
) -> None:
    run = train(scale=0.0, constant=0.7, updates=30)
    assert scores(run) == pytest.approx([0.7] * 30)
    assert optimum.judge(run, 0.1).kl <= 0.03


@pytest.mark.slow
def test_a_reward_model_taught_by_pairs_leads_ppo_to_its_own_optimum(
    optimum: ModuleType, worlds: ModuleType, tmp_path: Path
) -> None:
    import torch

    from sft_kit.training.ppo.rollout import Episode
    from sft_kit.training.ppo.scoring import reward_scores

    task = worlds.Task(lora=True, value="adapter", beta=1.0, minibatches=4)
    world = worlds.world_of(task)
    teach_reward(worlds, optimum, world, tmp_path / "reward")
    run = optimum.train_in_world(task, reward_folder=tmp_path / "reward")
    listed = worlds.every_completion(8, 4)
    rows = []
    for prompt in world.prompts:
        episodes = [
            Episode(number, 0, prompt, tuple(row[:length]), (), row[length - 1] == worlds.EOS)
            for number, (row, length) in enumerate(
                zip(listed.tokens.tolist(), listed.lengths.tolist(), strict=True)
            )
        ]
        with torch.no_grad():
            numbers = range(len(episodes))
            rows.append(reward_scores(run.roles.reward, episodes, numbers, worlds.EOS).double())
    policy = optimum.role_logprobs(run.roles.policy, world)
    reference = optimum.role_logprobs(run.roles.reference, world)
    assert worlds.exact_figures(policy, reference, torch.stack(rows), 1.0).norm >= 0.9
    gold = worlds.exact_figures(policy, reference, worlds.completion_scores(world), 1.0)
    assert gold.expected_reward > gold.reference_j + 0.1


def teach_reward(worlds: ModuleType, optimum: ModuleType, world: Any, folder: Path) -> None:
    """Teach a reward model by pairs; the better answer wins with probability sigmoid(10 dR)."""
    import torch

    from sft_kit.data.preference.collators import pad_answers
    from sft_kit.models.adapters import attach_lora
    from sft_kit.models.reward_model import load_reward_model
    from sft_kit.objectives.preference import pairwise_loss
    from sft_kit.settings import ModelSettings

    torch.manual_seed(0)
    settings = ModelSettings(checkpoint=str(worlds.checkpoint(world.language)), dtype="float32")
    scorer = load_reward_model(settings, pad_token_id=worlds.PAD)
    model = attach_lora(scorer, optimum.lora("SEQ_CLS"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    listed = worlds.every_completion(8, 4)
    worth = worlds.completion_scores(world)
    for step in range(200):
        first, second = torch.randint(len(worth), (2, 64))
        wins = torch.rand(64) < (10 * (worth[first] - worth[second])).sigmoid()
        better, worse = torch.where(wins, first, second), torch.where(wins, second, first)
        prompt = world.prompts[step % 2]

        def answer(row: int, prompt: tuple[int, ...] = prompt) -> list[int]:
            ids = listed.tokens[row, : listed.lengths[row]].tolist()
            return [*prompt, *ids] if ids[-1] == worlds.EOS else [*prompt, *ids, worlds.EOS]

        pairs = [
            {"input_ids": [answer(a), answer(b)], "margin": 0.0}
            for a, b in zip(better.tolist(), worse.tolist(), strict=True)
        ]
        batch = pad_answers(pairs, pad_token_id=worlds.PAD)
        labels = batch.pop("labels")
        pairwise_loss(model(**batch).logits, labels, center_weight=0.01).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


# --- PPO where completions are long ---------------------------------------------------------------

LONG = {"world": "long", "beta": 0.02, "updates": 30}


@pytest.mark.slow
def test_the_score_rises_in_the_long_world(train: Callable[..., Any]) -> None:
    for seed in range(3):
        found = scores(train(**LONG, seed=seed))
        assert found[0] < 0.2
        assert found[14] >= 0.50
        assert found[29] >= 0.60


@pytest.mark.slow
def test_minibatches_learn_more_from_the_same_episodes(train: Callable[..., Any]) -> None:
    assert scores(train(**LONG, minibatches=4))[-1] >= 0.75


@pytest.mark.slow
def test_a_shared_value_head_learns_too(train: Callable[..., Any]) -> None:
    assert scores(train(**LONG, value="shared"))[-1] >= 0.58


def drawn_mean(role: Any, world: Any) -> float:
    """Mean score of 1024 completions that transformers draws itself."""
    import torch

    torch.manual_seed(5)
    role.model.eval()
    found = []
    for prompt in world.prompts:
        ids = torch.tensor([prompt] * (1024 // len(world.prompts)))
        drawn = role.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=world.max_new_tokens,
            do_sample=True, top_k=0,
        )  # fmt: skip
        found += [world.score(row) for row in drawn[:, len(prompt) :].tolist()]
    return statistics.mean(found)


@pytest.mark.slow
def test_a_large_beta_holds_the_policy_and_none_lets_it_go(train: Callable[..., Any]) -> None:
    usual, held, free = (train(**{**LONG, "beta": beta}) for beta in (0.02, 100.0, 0.0))
    kl = {name: run.result.history[-1]["kl"] for name, run in (("usual", usual), ("held", held))}
    start = drawn_mean(held.roles.reference, held.world)
    assert abs(drawn_mean(held.roles.policy, held.world) - start) <= 0.03
    assert abs(kl["held"]) <= 0.1 * kl["usual"]
    assert drawn_mean(free.roles.policy, free.world) >= 0.90


@pytest.mark.slow
def test_language_learnt_beside_the_reward_is_kept(
    train: Callable[..., Any], worlds: ModuleType
) -> None:
    runs = {ptx: train(**LONG, ptx=ptx) for ptx in (0.0, 0.1, 0.5)}
    start = worlds.held_out_loss(runs[0.0].roles.reference.model.eval(), worlds.LARGE)
    rise = {
        ptx: worlds.held_out_loss(run.roles.policy.model.eval(), worlds.LARGE) - start
        for ptx, run in runs.items()
    }
    assert rise[0.0] >= 0.5
    assert rise[0.1] <= 0.60
    assert rise[0.5] <= 0.15
    assert scores(runs[0.5])[-1] >= 0.30
