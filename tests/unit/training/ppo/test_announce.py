"""What a PPO run says before its first rollout, and of each."""

from typing import Literal

import pytest
from accelerate import PartialState
from peft import LoraConfig
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from sft_kit.data.preference.report import PromptReport, PromptSplits
from sft_kit.data.preference.rows import Prompt
from sft_kit.data.rows import Where
from sft_kit.models.role_adapters import make_roles
from sft_kit.settings import PpoSettings, PtxSettings, ScoreSettings
from sft_kit.training.ppo.announce import (
    announce_ppo,
    fact_lines,
    ppo_facts,
    ppo_warnings,
    rollout_line,
)

FACTS: dict[str, object] = {
    "trainable_parameters": 1_250,
    "total_parameters": 50_000,
    "trainable_by_role": {"policy": 1_000, "values": 250},
    "roles": {"policy": "new adapter", "reference": "tiny-gpt2"},
    "score_sources": {"reward model": 1.0, "words.py:happy": 0.5},
    "gold": "gold.py:truth",
    "num_prompts": 160,
    "num_eval_prompts": 8,
    "num_processes": 2,
    "num_rollouts": 10,
    "episodes_per_rollout": 32,
    "num_episodes": 320,
    "prompt_passes": 2.0,
    "num_updates": 80,
    "max_drawn_tokens": 16_000,
    "ptx_coefficient": 0.1,
}


@pytest.fixture
def prompt(tokenizer: PreTrainedTokenizerFast) -> Prompt:
    ids = tuple(tokenizer("Human: How [are] you?\nAssistant:")["input_ids"])
    return Prompt(ids, (), "How [are] you?", {}, Where("[red]prompts.jsonl", 7))


def test_roles_scores_and_sizes_are_told_on_stderr(
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
):
    announce_ppo(FACTS, ["device: cpu [2 cores]"], ["top_k [x] is odd"], prompt, tokenizer)
    printed = capsys.readouterr()
    assert printed.out == ""
    expected = [
        "device: cpu [2 cores]",
        "parameters: 1,250 of 50,000 train (2.50%): 1,000 of the policy, 250 of the values",
        "policy: new adapter",
        "reference: tiny-gpt2",
        "score: 1 x reward model + 0.5 x words.py:happy; only watched: gold.py:truth",
        "prompts: 160 to train on (2.0 passes), 8 held out",
        "rollouts: 10 of 32 episodes, 320 episodes in all, 80 updates at most",
        "tokens to draw: 16,000 at most",
        "language beside the reward: PTX with coefficient 0.1",
        "warning: top_k [x] is odd",
        "first prompt ([red]prompts.jsonl:7), which the policy goes on from:",
        "Human: How [are] you?↵",
        "Assistant:",
    ]
    assert printed.err.split() == " ".join(expected).split(), "the same but for line ends"


@pytest.mark.parametrize(("value", "head"), [("adapter", 8192 + 64), ("shared", 64)])
def test_the_size_of_a_run_follows_from_its_settings(
    gpt2_model: GPT2LMHeadModel, prompt: Prompt, value: Literal["adapter", "shared"], head: int
):
    ppo = PpoSettings(
        num_rollouts=10, episodes_per_rollout=32, num_epochs=2, num_minibatches=4,
        max_new_tokens=50, value=value,
    )  # fmt: skip
    num_base = sum(parameter.numel() for parameter in gpt2_model.parameters())
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4)
    roles = make_roles(gpt2_model, lora, ppo)
    assert roles.value.head is not None
    bias = 0 if roles.value.head.bias is None else 1
    facts = ppo_facts(
        ppo,
        ScoreSettings(model="runs/rm", functions={"words.py:happy": 0.5}),
        PtxSettings(),
        roles,
        PromptSplits([prompt] * 160, [prompt] * 8, PromptReport("prompt")),
    )
    # r (in + out) of c_attn, c_proj, c_fc and c_proj, in 2 layers of hidden size 64
    num_lora = 4 * (256 + 128 + 320 + 320) * 2
    assert num_lora == 8192
    assert facts["trainable_by_role"] == {"policy": num_lora, "values": head + bias}
    assert facts["trainable_parameters"] == num_lora + head + bias
    assert facts["total_parameters"] == num_base + num_lora + head + bias
    assert facts["num_episodes"] == 320
    assert facts["prompt_passes"] == 2.0
    assert facts["num_updates"] == 80
    assert facts["max_drawn_tokens"] == 16_000
    assert facts["score_sources"] == {"reward model": 1.0, "words.py:happy": 0.5}
    assert facts.keys() == FACTS.keys()
    plain = (int, float, str, dict, type(None))
    assert all(isinstance(fact, plain) for fact in facts.values()), "the record holds no others"
    assert "PTX" not in "".join(fact_lines(facts))


def test_drawing_from_a_part_of_the_distribution_is_warned_of():
    assert ppo_warnings(PpoSettings()) == []
    (both,) = ppo_warnings(PpoSettings(top_k=5, top_p=0.9))
    assert both.startswith("ppo.top_k=5 and ppo.top_p=0.9: ")
    assert "the ratio and the KL divergence are biased" in both
    (one,) = ppo_warnings(PpoSettings(top_p=0.5))
    assert one.startswith("ppo.top_p=0.5: ")


def test_other_processes_say_nothing(
    prompt: Prompt,
    tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(PartialState, "is_main_process", False)
    announce_ppo(FACTS, ["note"], ["warning"], prompt, tokenizer)
    assert capsys.readouterr() == ("", "")


def test_a_rollout_is_one_line():
    metrics = {
        "score_mean": 0.51249, "kl": 1.2345, "stop_fraction": 0.756,
        "completion_length_mean": 31.25,
    }  # fmt: skip
    assert rollout_line(metrics) == "score 0.512, kl 1.23, stopped 76%, 31.2 tokens"
    more = metrics | {"gold_mean": -1.0, "seconds": 4.56}
    assert rollout_line(more) == (
        "score 0.512, gold -1.000, kl 1.23, stopped 76%, 31.2 tokens, 4.56 s"
    )
