"""Runs of PPO: what they leave behind, what comes back from it, and what stops them at the door."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from .conftest import save_checkpoint
from .test_recipes import (
    ADAPTER,
    RECORD,
    TOKENIZER,
    WHOLE_MODEL,
    files_in,
    probe_logits,
    read_log,
    read_record,
)
from .test_run_folders import snapshot

REPOSITORY = Path(__file__).resolve().parents[2]
PPO, REWARD, SFT = "ppo_gpt2_lora", "reward_gpt2_lora", "sft_gpt2_lora"
CURVES = {"learning_rate.png", "score.png", "kl.png", "length.png"}
FILES = TOKENIZER | (RECORD - {"loss.png"}) | CURVES | {"samples.md", "ppo_samples.jsonl"}
STATE = {"state.json", "tensors.safetensors", "optimizer.safetensors", "random.safetensors"}
STATE |= {"manifest.json"}
ADAPTER_AND_HEAD = {*ADAPTER, "head.safetensors"}
JUDGE = {*ADAPTER, "run.yaml", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
LETTERS = "[a, b, c, d, e, f, g, h, i, j, k, l, m, o, p, q, r, s, t, u, v, w, x, z, A, B, C, D]"
FUNCTIONS = '''
def near(prompts, completions, completion_ids, bonus):
    """Short answers are good, and better where the row says so."""
    assert len(prompts) == len(completions) == len(bonus)
    return [10 * more - len(ids) for ids, more in zip(completion_ids, bonus)]


def constant(completions, **_):
    return [0.5] * len(completions)


def per_token(completion_ids, **_):
    return [[-token / 400 for token in ids] for ids in completion_ids]


calls = []


def falling(completions, **_):
    calls.append(None)
    return [-float(len(calls))] * len(completions)


def asks(colour):
    return [0.0] * len(colour)
'''


def below(folder: str, names: set[str]) -> set[str]:
    return {f"{folder}/{name}" for name in names}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """30 compared answers, each row with another column."""
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    rows = [
        {
            "prompt": f"Question {index}:{' why' * (index * 5 % 7)}?",
            "chosen": "Yes, of course.",
            "rejected": "no " * (1 + index % 4) + "!",
            "bonus": index % 3,
        }
        for index in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "rewards.py"
    path.write_text(FUNCTIONS, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def small_reward(checkpoint, pairs):
    return {
        "model.checkpoint": checkpoint,
        "data.path": pairs,
        "adapter.r": 4,
        "train.per_device_train_batch_size": 4,
        "train.max_steps": 2,
        "train.learning_rate": 1e-2,
        "train.eval_strategy": "no",
        "train.save_strategy": "no",
        "train.disable_tqdm": "true",
    }


@pytest.fixture(scope="module")
def reward_run(run_recipe, small_reward, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "reward"
    run_recipe(REWARD, small_reward | {"train.output_dir": folder})
    return folder


@pytest.fixture(scope="module")
def small_ppo(checkpoint, pairs):
    """Three small rollouts without a score; an evaluation every second, a checkpoint after each."""
    return {
        "model.checkpoint": checkpoint,
        "data.path": pairs,
        "adapter.r": 4,
        "ppo.sft_adapter": "null",
        "ppo.num_rollouts": 3,
        "ppo.episodes_per_rollout": 4,
        "ppo.num_minibatches": 2,
        "ppo.num_epochs": 1,
        "ppo.max_new_tokens": 6,
        "ppo.eval_rollouts": 2,
        "ppo.save_rollouts": 1,
        "train.per_device_train_batch_size": 2,
        "train.learning_rate": 1e-2,
        "train.disable_tqdm": "true",
        "sample.prompts": "[Hello]",
        "sample.max_new_tokens": 4,
    }


@pytest.fixture(scope="module")
def with_model(small_ppo, finished_run, reward_run):
    """The same from a fine-tuning, scored by a reward model."""
    return small_ppo | {"ppo.sft_adapter": finished_run, "reward.model": reward_run}


@pytest.fixture(scope="module")
def with_function(small_ppo, functions):
    """The same from the base, scored by a function that gets a column of the data."""
    name = f"{functions}:near"
    return small_ppo | {
        "reward.model": "null",
        "reward.normalise": "none",
        "reward.clip": "null",
        "reward.functions": json.dumps({name: 1.0}),
        "ppo.stop_tokens": LETTERS,
    }


@pytest.fixture(scope="module")
def trained(run_recipe, with_model, tmp_path_factory):
    """Run folder of PPO with a reward model, and the roles it ended with."""
    folder = tmp_path_factory.mktemp("runs") / "ppo"
    kept = {}

    def keep_roles(recipe):
        make = recipe.make_roles

        def make_roles(*args, **more):
            kept["roles"] = make(*args, **more)
            kept["head"] = kept["roles"].value.head.weight.detach().clone()
            return kept["roles"]

        recipe.make_roles = make_roles

    changes = {"ppo.dump_rollouts": "true", "ppo.ema_decay": 0.5, "train.output_dir": folder}
    run_recipe(PPO, with_model | changes, change=keep_roles)
    return folder, kept


@pytest.fixture(scope="module")
def ppo_run(trained):
    """Copy it before changing it."""
    return trained[0]


CLOCK = ("time", "seconds", "tokens_per_second", "peak_memory_bytes", "train_seconds")
"""What no two runs share."""


def without_clock(folder: Path) -> list[dict[str, float]]:
    return [
        {name: of for name, of in line.items() if not name.startswith(CLOCK)}
        for line in read_log(folder)
    ]


def read_samples(folder: Path) -> list[dict]:
    text = (folder / "ppo_samples.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# --- what a run leaves ---------------------------------------------------------------------------


def test_a_run_leaves_exactly_its_files(ppo_run):
    from matplotlib.image import imread

    rollouts = {f"0000{n}.{end}" for n in range(3) for end in ("json", "safetensors")}
    expected = FILES | ADAPTER | below("value", ADAPTER_AND_HEAD) | below("reward", JUDGE)
    expected |= below("rollouts", rollouts) | below("ema", ADAPTER)
    expected |= below("checkpoint-2", STATE) | below("checkpoint-3", STATE)
    assert files_in(ppo_run) == expected
    for name in CURVES:
        assert imread(ppo_run / name)[..., :3].std() > 0.01, f"{name} is blank"


def test_the_record_says_where_the_policy_comes_from(ppo_run, finished_run, reward_run):
    text = (ppo_run / "run.yaml").read_text(encoding="utf-8")
    record = read_record(ppo_run)
    assert record["status"] == "finished"
    assert "&id" not in text, "an anchor is hard to read"
    started = record["ppo"]["started_from"]
    for key, folder in (("sft_adapter", finished_run), ("reward_model", reward_run)):
        assert read_record(folder)["weights"]["adapter_model.safetensors"] in started[key]
    assert started["base"] == record["base"]["fingerprint"]
    assert record["facts"]["roles"]["reference"] == f"the adapter in {finished_run}"
    assert record["facts"]["roles"]["value"] == "a copy of the reward model"


def test_log_and_samples_hold_every_rollout(ppo_run):
    log = read_log(ppo_run)
    assert [line["step"] for line in log if "score_mean" in line] == [1, 2, 3]
    assert [line["step"] for line in log if "eval_score_mean" in line] == [0, 2, 3]
    steps = [line for line in log if "score_mean" in line]
    assert steps[0]["kl"] == 0, "the policy starts as the reference policy"
    assert all(line["kl"] != 0 for line in steps[1:])
    assert steps[0]["first_ratio_error"] == 0
    samples = read_samples(ppo_run)
    assert {row["why"] for row in samples} >= {"best", "worst", "eval greedy", "eval drawn"}
    assert {row["rollout"] for row in samples} == {0, 1, 2, 3}
    metrics = json.loads((ppo_run / "metrics.json").read_text())
    assert (metrics["num_rollouts"], metrics["num_episodes"], metrics["num_updates"]) == (3, 12, 6)
    assert metrics["reload_max_logit_difference"] == 0
    text = (ppo_run / "samples.md").read_text(encoding="utf-8")
    assert text.count("**Before PPO**") == text.count("**Trained model**") == 1


def test_the_adapter_loads_with_peft_alone_and_gives_the_same_logits(
    ppo_run, finished_run, checkpoint
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from sft_kit import load_run

    def plain(folder):
        base = AutoModelForCausalLM.from_pretrained(checkpoint)
        return probe_logits(PeftModel.from_pretrained(base, str(folder)))

    policy = plain(ppo_run)
    assert (policy - probe_logits(load_run(str(ppo_run)).model)).abs().max() == 0
    assert (policy - plain(finished_run)).abs().max() > 1e-3, "the policy has not moved"
    average = plain(ppo_run / "ema")
    assert 1e-4 < (policy - average).abs().max() < 1


def test_the_value_role_is_saved_bit_by_bit(trained):
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder, kept = trained
    roles = kept["roles"]
    head = load_file(folder / "value" / "head.safetensors")
    assert head.keys() == {"weight", "bias"}
    assert torch.equal(head["weight"], roles.value.head.weight)
    assert torch.equal(head["bias"], roles.value.head.bias)
    assert not torch.equal(head["weight"], kept["head"]), "the head has not learnt"

    base = AutoModelForCausalLM.from_pretrained(read_record(folder)["base"]["folder"])
    plain = dict(PeftModel.from_pretrained(base, str(folder / "value")).named_parameters())
    own = {name: one for name, one in roles.value.model.named_parameters() if ".value." in name}
    assert len(own) == 8 * 2
    for name, parameter in own.items():
        assert torch.equal(parameter, plain[name.replace(".value.", ".default.")])


def test_the_kept_reward_model_is_plain_peft_with_the_same_scores(ppo_run, reward_run, checkpoint):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    scores = []
    for folder in (reward_run, ppo_run / "reward"):
        base = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, num_labels=1, pad_token_id=None
        )
        model = PeftModel.from_pretrained(base, str(folder)).eval()
        with torch.no_grad():
            scores.append(model(torch.tensor([[5, 9, 200, 17, 0]])).logits.item())
    assert scores[0] == scores[1] != 0


def test_scores_of_a_shared_base_are_those_of_the_reward_run_alone(ppo_run, reward_run):
    import torch
    from safetensors.torch import load_file

    from sft_kit.artifacts import load_reward_run

    model = load_reward_run(str(reward_run)).model
    for number in range(3):
        found = load_file(ppo_run / "rollouts" / f"{number:05d}.safetensors")["scores"]
        told = json.loads((ppo_run / "rollouts" / f"{number:05d}.json").read_text())
        for episode, score in zip(told["episodes"], found.tolist(), strict=True):
            ids = [*episode["prompt_ids"], *episode["completion_ids"]]
            ids += [] if episode["stopped"] else [0]
            with torch.no_grad():
                alone = model(torch.tensor([ids])).logits.item()
            assert score == pytest.approx(alone, abs=1e-5)


def command(monkeypatch, capsys, *words: object) -> tuple[int, str, str]:
    from sft_kit.cli import main

    monkeypatch.setattr(sys, "argv", ["sft-kit", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    code = end.value.code
    out, err = capsys.readouterr()
    return (0 if code is None else int(code)), out, err


def test_generate_and_merge_take_the_run_folder(ppo_run, tmp_path, monkeypatch, capsys):
    from transformers import AutoModelForCausalLM

    from sft_kit import load_run

    words = ("generate", ppo_run, "--prompt", "Hello", "--max-new-tokens", 4, "--json")
    code, out, _ = command(monkeypatch, capsys, *words)
    assert code == 0
    assert json.loads(out)[0]["num_tokens"] == 4
    code, _, err = command(monkeypatch, capsys, "merge", ppo_run, "--output", tmp_path / "merged")
    assert code == 0, err
    merged = probe_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert (merged - probe_logits(load_run(str(ppo_run)).model)).abs().max() < 1e-5


# --- what gives the score ------------------------------------------------------------------------


def test_a_function_gets_the_columns_of_the_data(run_recipe, with_function, tmp_path):
    folder = tmp_path / "run"
    run_recipe(PPO, with_function | {"train.output_dir": folder})
    weights = ADAPTER | below("value", ADAPTER_AND_HEAD)
    steps = below("checkpoint-2", STATE) | below("checkpoint-3", STATE)
    assert files_in(folder) == FILES | weights | steps
    rows = read_samples(folder)
    assert len({row["score"] for row in rows}) > 3
    assert {row["stopped"] for row in rows} == {True, False}
    for row in rows:
        number = int(row["prompt"].removeprefix("Question ").partition(":")[0])
        assert row["score"] == 10 * (number % 3) - row["num_tokens"]


def test_the_example_of_a_reward_function_judges_words_and_not_their_number(monkeypatch):
    from sft_kit.training.ppo.reward_functions import check_signature, load_reward_function

    monkeypatch.chdir(REPOSITORY)
    happy = load_reward_function("recipes/rewards/stories.py:happy")
    check_signature(happy, ())
    plain = "the cat sat on a mat " * 20
    stories = [
        plain,
        f"Tom laughed. {plain}",
        f"Tom laughed. Tom laughed. {plain}",
        f"Tom cried. {plain}",
        f"Tom laughed and cried. {plain}",
        "",
    ]
    neutral, glad, again, sad, mixed, empty = happy(completions=stories)
    assert neutral == empty == 0
    assert -1 <= sad < mixed < 0 < glad == again <= 1


def test_the_penalties_measure_repetition_and_length():
    from sft_kit.training.ppo.reward_functions import load_reward_function

    measure = {
        name: load_reward_function(f"recipes/rewards/penalties.py:{name}")
        for name in ("repeated", "length")
    }
    # Triples: 1 2 3, 2 3 1, 3 1 2, 1 2 3 -> one of four stands earlier.
    rows = [[1, 2, 3, 1, 2, 3], [7] * 12, [1, 2, 3, 4], [5, 5], []]
    assert measure["repeated"](completion_ids=rows) == pytest.approx([1 / 4, 9 / 10, 0, 0, 0])
    assert measure["length"](completion_ids=rows) == pytest.approx([0.06, 0.12, 0.04, 0.02, 0])


@pytest.mark.slow
def test_a_weighted_sum_has_all_its_parts(run_recipe, with_model, functions, tmp_path):
    folder = tmp_path / "run"
    weights = {f"{functions}:constant": 2.0, f"{functions}:per_token": -1.0}
    run_recipe(
        PPO,
        with_model
        | {"reward.model_weight": 3.0, "reward.functions": json.dumps(weights)}
        | {"reward.gold": f"{functions}:constant", "train.output_dir": folder},
    )
    rows = read_samples(folder)
    weights["reward model"] = 3.0
    for row in rows:
        assert row["score_parts"].keys() == weights.keys()
        total = sum(weight * row["score_parts"][name] for name, weight in weights.items())
        assert row["score"] == pytest.approx(total, abs=1e-5)
        assert row["gold"] == 0.5


@pytest.fixture(scope="module")
def foreign_reward(run_recipe, small_reward, tmp_path_factory, trained_tokenizer):
    """Run of a reward model on another base, with another template."""
    folder = tmp_path_factory.mktemp("runs") / "foreign"
    base = save_checkpoint(tmp_path_factory.mktemp("base") / "other", trained_tokenizer, 0.0)
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"].roll(7, 0)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    changes = {"model.checkpoint": base, "data.template": "alpaca", "train.output_dir": folder}
    run_recipe(REWARD, small_reward | changes)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_a_reward_model_on_another_base_reads_text_with_its_own_template(
    run_recipe, with_model, foreign_reward, tmp_path, whole
):
    from .test_reward import one_by_one

    folder = tmp_path / "run"
    changes = {"reward.model": foreign_reward, "train.output_dir": folder}
    if whole:
        changes |= {"adapter": "null", "ppo.value": "shared", "ppo.sft_adapter": "null"}
    settings = {key: value for key, value in with_model.items() if not whole or key != "adapter.r"}
    run_recipe(PPO, settings | changes)
    assert (folder / "reward" / "adapter_model.safetensors").is_file()
    rows = read_samples(folder)
    chats = [
        [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"].strip()},
        ]
        for row in rows
    ]
    expected = one_by_one(foreign_reward, chats)
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)


# --- other ways to train -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"ptx.coefficient": 0.1, "ptx.mix": "add"},
        {"ppo.value": "shared"},
        {"ppo.value": "model"},
        {"ppo.kl_target": 2.0},
        {"train.activation_checkpointing": "true"},
        {"train.bf16": "true"},
        {"ppo.num_epochs": 2, "ppo.kl_stop": 0.1, "ppo.whiten_rewards": "true"},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_every_way_to_train_ends_in_a_run_that_loads(
    run_recipe, with_model, rows_file, ppo_run, tmp_path, changes
):
    from sft_kit import load_run

    folder = tmp_path / "run"
    if "ptx.coefficient" in changes:
        changes = changes | {"ptx.path": rows_file}
    run_recipe(PPO, with_model | changes | {"train.output_dir": folder})
    moved = probe_logits(load_run(str(folder)).model) - probe_logits(load_run(str(ppo_run)).model)
    differs = moved.abs().max() > 0
    assert differs or "train.activation_checkpointing" in changes
    value = {path.name for path in (folder / "value").iterdir()}
    if "ppo.value" not in changes:
        assert value == ADAPTER_AND_HEAD
    elif changes["ppo.value"] == "shared":
        assert value == {"head.safetensors"}
    else:
        assert value == WHOLE_MODEL | {"head.safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize("value", ["shared", "model"])
def test_without_adapter_the_whole_policy_trains(
    run_recipe, with_function, checkpoint, tmp_path, value
):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from sft_kit import load_run

    folder = tmp_path / "run"
    settings = {key: of for key, of in with_function.items() if key != "adapter.r"}
    settings |= {"adapter": "null", "ppo.value": value, "ppo.ema_decay": 0.9}
    run_recipe(PPO, settings | {"train.output_dir": folder})
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    moved = [name for name, tensor in before.items() if not (tensor == after[name]).all()]
    assert len(moved) == len(before)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert (probe_logits(plain) - probe_logits(load_run(str(folder)).model)).abs().max() == 0
    assert plain.config.resid_pdrop == 0.1, "dropout is off in training only"
    heads = {"head.safetensors"} | (WHOLE_MODEL if value == "model" else set())
    assert {path.name for path in (folder / "value").iterdir()} == heads
    average = load_file(folder / "ema" / "model.safetensors")
    for name, tensor in before.items():  # it comes after the policy, and has gone a part of its way
        assert 0 < (average[name] - tensor).norm() < (after[name] - tensor).norm(), name


@pytest.mark.slow
def test_all_three_stages_run_on_a_base_in_four_bits(
    run_recipe, small_lora, small_reward, small_ppo, tmp_path
):
    from sft_kit import load_run

    four = {"model.quantization": "nf4"}
    folders = {name: tmp_path / name for name in ("sft", "reward", "ppo")}
    run_recipe(SFT, small_lora | four | {"train.output_dir": folders["sft"]})
    run_recipe(REWARD, small_reward | four | {"train.output_dir": folders["reward"]})
    sources = {"ppo.sft_adapter": folders["sft"], "reward.model": folders["reward"]}
    run_recipe(PPO, small_ppo | sources | four | {"train.output_dir": folders["ppo"]})
    log = [line for line in read_log(folders["ppo"]) if "kl" in line]
    assert log[0]["kl"] == 0
    assert log[-1]["kl"] != 0
    assert load_run(str(folders["ppo"])).model is not None


@pytest.mark.slow
def test_a_budget_of_divergence_ends_the_run_and_sets_the_policy_back(
    run_recipe, with_function, tmp_path, capsys
):
    from safetensors.torch import load_file

    folder = tmp_path / "run"
    changes = {"ppo.kl_budget": 1e-3, "ppo.kl_coefficient": 0.0, "train.learning_rate": 0.1}
    run_recipe(PPO, with_function | changes | {"train.output_dir": folder})
    assert "ppo.kl_budget" in "".join(capsys.readouterr())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["num_rollouts"] == 1
    tensors = load_file(folder / "adapter_model.safetensors")
    after_first = [one for name, one in tensors.items() if "lora_B" in name]
    assert not any(one.any() for one in after_first), "the policy before the first update"


@pytest.mark.slow
def test_the_best_policy_on_held_out_prompts_is_the_one_that_is_saved(
    run_recipe, with_function, functions, tmp_path
):
    from safetensors.torch import load_file

    folder = tmp_path / "run"
    changes = {"reward.functions": f"{{{functions}:falling: 1.0}}", "ppo.keep": "best"}
    run_recipe(PPO, with_function | changes | {"train.output_dir": folder})
    scores = [line["eval_score_mean"] for line in read_log(folder) if "eval_score_mean" in line]
    assert scores == sorted(scores, reverse=True)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert not any(one.any() for name, one in tensors.items() if "lora_B" in name)
    last = load_file(folder / "checkpoint-3" / "tensors.safetensors")
    assert any(one.any() for name, one in last.items() if "lora_B.default" in name)


# --- interrupted and resumed ---------------------------------------------------------------------


def stop_after(num_rollouts: int):
    """Press Ctrl-C in the rollout after that many."""

    def change(recipe):
        train = recipe.train_ppo

        def train_ppo(job):
            def note(experience, figures):
                if experience.rollout.index == num_rollouts:
                    raise KeyboardInterrupt

            job.on_rollout = note
            return train(job)

        recipe.train_ppo = train_ppo

    return change


def test_a_resumed_run_ends_bit_identical_to_the_straight_one(
    run_recipe, with_model, ppo_run, reward_run, finished_run, tmp_path, capsys
):
    folder = tmp_path / "run"
    settings = with_model | {"ppo.dump_rollouts": "true", "ppo.ema_decay": 0.5}
    settings |= {"train.output_dir": folder}
    with pytest.raises(KeyboardInterrupt):
        run_recipe(PPO, settings, change=stop_after(2))
    assert read_record(folder)["status"] == "running"
    assert len(without_clock(folder)) > 4, "the rollout that was lost is in the log"
    moved = {"reward.model": reward_run, "ppo.sft_adapter": finished_run}  # the runs it is made of
    settings |= {key: shutil.copytree(of, tmp_path / key) for key, of in moved.items()}
    run_recipe(PPO, settings, "--resume")
    assert f"resuming from {folder / 'checkpoint-2'}" in capsys.readouterr().out
    for name in (
        "adapter_model.safetensors", "value/adapter_model.safetensors", "value/head.safetensors",
        "ema/adapter_model.safetensors", "ppo_samples.jsonl", "samples.md",
    ):  # fmt: skip
        assert (folder / name).read_bytes() == (ppo_run / name).read_bytes(), name
    assert without_clock(folder) == without_clock(ppo_run)
    assert files_in(folder) == files_in(ppo_run)


@pytest.mark.slow
def test_a_run_stopped_while_it_saves_is_brought_to_its_end(
    run_recipe, with_model, ppo_run, tmp_path, monkeypatch
):
    from sft_kit.artifacts import save

    def press_ctrl_c(*_):
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    settings = with_model | {"ppo.dump_rollouts": "true", "ppo.ema_decay": 0.5}
    settings |= {"train.output_dir": folder}
    with monkeypatch.context() as patch:
        patch.setattr(save, "_write_card", press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(PPO, settings)
    assert (folder / ".staging" / "value").is_dir()
    run_recipe(PPO, settings, "--resume")
    assert files_in(folder) == files_in(ppo_run)
    for name in ("adapter_model.safetensors", "value/head.safetensors"):
        assert (folder / name).read_bytes() == (ppo_run / name).read_bytes(), name
    resumed, straight = (json.loads((of / "metrics.json").read_text()) for of in (folder, ppo_run))
    assert {key: of for key, of in resumed.items() if not key.startswith(CLOCK)} == {
        key: of for key, of in straight.items() if not key.startswith(CLOCK)
    }


def test_overwrite_takes_the_place_of_a_run_that_was_stopped(run_recipe, with_function, tmp_path):
    folder = tmp_path / "run"
    settings = with_function | {"train.output_dir": folder, "ppo.eval_rollouts": 0}
    settings |= {"ppo.dump_rollouts": "true"}
    with pytest.raises(KeyboardInterrupt):
        run_recipe(PPO, settings, change=stop_after(1))
    (folder / ".checkpoint-2.part").mkdir()
    settings |= {"ppo.dump_rollouts": "false", "ppo.num_rollouts": 2}
    run_recipe(PPO, settings, "--overwrite")
    assert read_record(folder)["status"] == "finished"
    assert not {name for name in files_in(folder) if "rollouts" in name or ".part" in name}


# --- mistakes ------------------------------------------------------------------------------------


MISTAKES: dict[str, tuple[dict[str, object], list[str]]] = {
    "a fine-tuning that is a reward model": (
        {"ppo.sft_adapter": "REWARD"},
        ["ppo.sft_adapter: found", "accepts the run of a language model", "(train one with"],
    ),
    "a reward model that is a fine-tuning": (
        {"reward.model": "SFT"},
        ["reward.model: found", "accepts the run of a reward model", "(train one with"],
    ),
    "a fine-tuning with another template": (
        {"data.template": "alpaca"},
        ["ppo.sft_adapter: found", "accepts one with 'alpaca'", "(set data.template="],
    ),
    "a fine-tuning on another base": (
        {"model.checkpoint": "OTHER"},
        ["ppo.sft_adapter: found an adapter on", "accepts one on", "(set model.checkpoint="],
    ),
    "nothing that scores": (
        {"reward.model": "null", "reward.normalise": "none"},
        ["reward.model: found neither", "(set reward.model"],
    ),
    "a function in no file": (
        {"reward.functions": "{gone.py:score: 1.0}"},
        ["reward.functions: found 'gone.py:score'", "there is no file gone.py", "(check the path"],
    ),
    "a function that is not there": (
        {"reward.functions": "{FILE:nearr: 1.0}"},
        ["reward.functions: found", "near"],
    ),
    "a function that asks for what no row has": (
        {"reward.functions": "{FILE:asks: 1.0}"},
        ["reward.functions", "colour", "bonus"],
    ),
    "language without a file": (
        {"ptx.coefficient": 0.1},
        ["ptx.coefficient: found 0.1 without ptx.path", "(set ptx.path"],
    ),
    "more minibatches than episodes": (
        {"ppo.num_minibatches": 5},
        ["ppo.num_minibatches: found 5", "(lower it)"],
    ),
    "a stop of two tokens": (
        {"ppo.stop_tokens": '["zebra zebra"]'},
        ["ppo.stop_tokens: found 'zebra zebra'", "accepts single tokens", "(name one"],
    ),
    "prompts that are too long": (
        {"data.max_prompt_length": 3},
        ["all 30 prompts are longer than 3 tokens", "(raise data.max_prompt_length"],
    ),
    "no room for a prompt": (
        {"ppo.max_new_tokens": 300},
        ["ppo.max_new_tokens: found", "context of 256 tokens", "(lower it)"],
    ),
    "values without an adapter": (
        {"adapter": "null", "ppo.sft_adapter": "null"},
        ["ppo.value: found adapter", "(set it to shared or model)"],
    ),
    "a precision that this device lacks": (
        {"train.fp16": "true"},
        ["train.fp16: found fp16", "accepts bf16, float32"],
    ),
    "a folder that is read and written": (
        {"train.output_dir": "REWARD"},
        ["train.output_dir: found", "which reward.model is read from", "(name another folder)"],
    ),
    "a setting that nothing reads": (
        {"train.num_train_epochs": 3},
        ["train.num_train_epochs: ppo_gpt2_lora.py does not read this key"],
    ),
}


@pytest.fixture(scope="module")
def other_base(checkpoint, tmp_path_factory):
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("base") / "other"))
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_before_anything_is_written(
    run_recipe, with_model, finished_run, reward_run, functions, other_base, tmp_path, name, capsys
):
    from sft_kit.config import run_recipe as as_command

    changes, messages = MISTAKES[name]
    places = {"SFT": finished_run, "REWARD": reward_run, "OTHER": other_base}
    settings = dict(with_model)
    if "adapter" in changes:
        del settings["adapter.r"]
    for key, value in changes.items():
        settings[key] = places.get(str(value), str(value).replace("FILE", str(functions)))
    folder = tmp_path / "run"
    before = snapshot(finished_run), snapshot(reward_run)
    with pytest.raises(SystemExit) as end:
        as_command(lambda: run_recipe(PPO, {"train.output_dir": folder, **settings}, "--overwrite"))
    assert end.value.code == 2
    told = capsys.readouterr().err
    for message in messages:
        assert message in told
    assert "Traceback" not in told
    assert not folder.exists()
    assert list(tmp_path.iterdir()) == []
    assert (snapshot(finished_run), snapshot(reward_run)) == before


def test_check_names_the_stage_that_is_missing(monkeypatch, capsys, tmp_path, ppo_run):
    yaml = REPOSITORY / "recipes" / f"{PPO}.yaml"
    monkeypatch.chdir(tmp_path)
    words = ("check", yaml, f"data.path={__file__}")
    code, _, err = command(monkeypatch, capsys, *words)
    assert code == 2
    for stem in (SFT, REWARD):
        assert f"make it first: accelerate launch recipes/{stem}.py" in err
    folders = (f"ppo.sft_adapter={ppo_run}", f"reward.model={ppo_run / 'reward'}")
    code, out, _ = command(monkeypatch, capsys, *words, *folders)
    assert code == 0
    assert ": ok, " in out


def test_inspect_shows_the_prompts(monkeypatch, capsys, pairs, checkpoint, with_function):
    yaml = REPOSITORY / "recipes" / f"{PPO}.yaml"
    words = [f"{key}={value}" for key, value in with_function.items()]
    code, out, _ = command(monkeypatch, capsys, "inspect", yaml, *words)
    assert code == 0
    assert "24 prompts to train on, 6 held out" in " ".join(out.split())
    assert "user: Question " in out
