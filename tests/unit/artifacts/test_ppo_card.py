"""The card of a policy: what it says of the run, and that its code runs as it stands."""

import copy
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast

from sft_kit.artifacts.folder import RunFolder
from sft_kit.artifacts.ppo_card import write_ppo_card
from sft_kit.artifacts.samples import Sample
from sft_kit.artifacts.save import save_run
from sft_kit.models.adapters import attach_lora
from sft_kit.models.base import load_causal_lm, load_tokenizer
from sft_kit.settings import ModelSettings, PpoSettings, PtxSettings, ScoreSettings


@dataclass
class Reply:
    text: str
    stopped: bool


RECORD: dict[str, object] = {
    "recipe": "ppo_gpt2_lora.py",
    "settings": {
        "model": {"checkpoint": "openai-community/gpt2", "quantization": "none"},
        "adapter": {"r": 8, "lora_alpha": 16},
        "data": {"path": "/secret/prompts.jsonl", "template": "human-assistant"},
        "reward": asdict(ScoreSettings(model="/secret/runs/happy-rm")),
        "ppo": asdict(PpoSettings(kl_coefficient=0.125)),
        "ptx": asdict(PtxSettings()),
        "train": {"learning_rate": 5e-5, "output_dir": "/secret/runs/x", "seed": 42},
    },
    "data": {"num_train_prompts": 90, "num_eval_prompts": 10, "fingerprint": "abc"},
    "template": {"stop_token": "<|endoftext|>", "stop_token_id": 0},
    "ppo": {"num_episodes": 3200},
}
METRICS = {"score_mean": 0.75, "eval_score_mean": 0.5, "kl": 3.14159265}
SAMPLES = [
    Sample(f"# prompt {number}", Reply("<b>before</b>\n\nx", False), Reply("![after](x)", True))
    for number in range(5)
]
WriteCard = Callable[..., str]


@pytest.fixture
def card(tmp_path: Path) -> WriteCard:
    """Writes a card, with some settings changed section by section."""

    def write(
        metrics: dict[str, float] = METRICS,
        samples: list[Sample] = SAMPLES,
        **sections: dict[str, object] | None,
    ) -> str:
        record = copy.deepcopy(RECORD)
        for name, values in sections.items():
            record["settings"][name] = values and (record["settings"][name] or {}) | values
        path = tmp_path / "README.md"
        write_ppo_card(path, "my-run", record, metrics, ["score.png", "kl.png"], samples)
        return path.read_text(encoding="utf-8")

    return write


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_the_header_is_what_the_hub_reads(card: WriteCard):
    assert yaml.safe_load(card().split("---\n")[1]) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": "openai-community/gpt2",
        "tags": ["sft_kit", "ppo", "rlhf", "lora"],
    }


def test_what_it_was_rewarded_for_and_kept_close_to_is_told(card: WriteCard):
    text = one_line(card())
    assert "The LoRA adapter of a policy on `openai-community/gpt2`" in text
    assert "a high score from the reward model `happy-rm`, and was held back" in text
    assert "divergence from `openai-community/gpt2` itself, the reference policy" in text
    mixed = {"functions": {"/secret/words.py:happy": 0.5, "rules:short": -1.0}, "model_weight": 2.0}
    text = one_line(card(reward=mixed, ppo={"sft_adapter": "/secret/runs/my-sft"}, adapter=None))
    assert "A policy trained from `openai-community/gpt2`" in text
    functions = "0.5 x the function `words.py:happy` + -1 x the function `rules:short`"
    assert f"2 x the reward model `happy-rm` + {functions}" in text
    assert "`openai-community/gpt2` with the supervised fine-tuning `my-sft`" in text


def test_settings_figures_and_curves_are_told(card: WriteCard):
    lines = card(ptx={"coefficient": 0.25}, reward={"gold": "gold.py:truth"}).splitlines()
    for line in (
        "# my-run",
        "| training prompts | 90 |",
        "| held-out prompts | 10 |",
        "| learning_rate | 5e-05 |",
        "| num_rollouts | 50 |",
        "| kl_coefficient | 0.125 |",
        "| clip_high | 0.2 |",
        "| score clip | 5.0 |",
        "| PTX coefficient | 0.25 |",
        "| watched score | gold.py:truth |",
        "| score | 0.75 |",
        "| divergence from the reference policy | 3.14 nats per answer |",
        "![score.png](score.png)",
        "![kl.png](kl.png)",
    ):
        assert line in lines, line
    whole = {
        **METRICS, "first_score_mean": 0.25, "stop_fraction": 0.756, "num_rollouts": 50.0,
        "completion_length_mean": 31.25, "num_rollouts_kept": 40.0, "clip_low_fraction": 0.125,
    }  # fmt: skip
    table = card(whole).partition("## Figures")[2].partition("![")[0].split("\n")
    assert [line for line in table if line][2:] == [
        "| score | 0.25 → 0.75 |",
        "| held-out score | 0.5 |",
        "| divergence from the reference policy | 3.14 nats per answer |",
        "| answers that end by themselves | 76% |",
        "| length of an answer | 31.2 tokens |",
        "| rollouts | 50, the policy is that after 40 |",
    ], "what matters, and not everything that was logged"
    plain = card()
    for off in ("PTX", "watched score", "kl_target", "no_stop", "training rows"):
        assert off not in plain


def test_folders_of_this_machine_stay_out(card: WriteCard, tmp_path: Path):
    functions = {"functions": {"/secret/words.py:happy": 0.5}, "gold": "/secret/gold.py:truth"}
    text = card(reward=functions, ppo={"sft_adapter": "/secret/runs/my-sft"})
    assert "secret" not in text
    assert str(tmp_path) not in text


def test_answers_before_and_after_are_shown_as_they_are(card: WriteCard):
    before_and_after = card().partition("## Before and after\n")[2].partition("## Limits")[0]
    assert before_and_after.count("Prompt:") == 3
    lines = before_and_after.splitlines()
    assert "    # prompt 0" in lines
    assert "    <b>before</b>↵" in lines
    assert "    x … (did not stop)" in lines
    assert "    ![after](x) ■" in lines
    for line in lines:
        assert not line or line.startswith("    ") or line in ("Prompt:", "Before:", "After:")
    assert "Before and after" not in card(samples=[])


def test_the_limits_are_honest(card: WriteCard):
    limits = one_line(card().partition("## Limits")[2])
    assert "learnt what pleases the reward model `happy-rm`, its mistakes included" in limits
    assert "At the end it was 3.14 nats per answer away" in limits
    assert "nothing here tells whether the score was earned or hacked" in limits
    assert "held-out figures above are from rows of the same data" in limits
    watched = one_line(card({"score_mean": 1.0}, reward={"gold": "g:f"}).partition("## Limits")[2])
    assert "hacked" not in watched
    assert "nats per answer" not in watched
    assert "Nothing was held out" in watched


def test_a_finished_run_has_this_card_and_its_code_gives_the_policys_logits(
    gpt2_checkpoint: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
):
    base = ModelSettings(str(gpt2_checkpoint), dtype="float32")
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    model = attach_lora(load_causal_lm(base), lora).eval()
    run = RunFolder(tmp_path / "run", None, copy.deepcopy(RECORD), 0.0)
    run.record["settings"]["model"]["checkpoint"] = str(gpt2_checkpoint)
    history = [{"step": 1, "score_mean": 0.5, "kl": 1.0}, {"step": 2, "score_mean": 1.0, "kl": 2.0}]
    answers = SAMPLES[:1]
    save_run(run, model, load_tokenizer(base), METRICS, history, base=base, samples=answers)
    names = {path.name for path in run.path.iterdir()}
    assert {"README.md", "score.png", "kl.png", "samples.md", "adapter_config.json"} <= names
    text = (run.path / "README.md").read_text(encoding="utf-8")
    assert "![kl.png](kl.png)" in text
    assert "    # prompt 0" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    code = code.partition("messages = ")[0].replace("path/to/this/folder", str(run.path))
    found: dict[str, object] = {}
    exec(code.replace("path/to/tiny-gpt2", str(gpt2_checkpoint)), found)
    ids = torch.tensor([tokenizer("The quick brown fox")["input_ids"]])
    with torch.no_grad():
        expected, read = model(ids).logits, found["model"].eval()(ids).logits
        with model.disable_adapter():
            untrained = model(ids).logits
    assert (read - expected).abs().max() < 1e-5
    assert (untrained - expected).abs().mean() > 1e-3
