"""What a policy starts from and is scored by: runs that fit, runs that don't, scores of text."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig

from sft_kit.artifacts import load_reward_run
from sft_kit.artifacts.policy_sources import copy_reward_model, open_policy_sources
from sft_kit.artifacts.save import save_model
from sft_kit.artifacts.text_scores import make_text_scorer
from sft_kit.data.preference.rows import Prompt
from sft_kit.data.rows import Conversation, Where
from sft_kit.data.templates import choose_template
from sft_kit.data.tokenization import encode_conversation
from sft_kit.errors import CheckpointError
from sft_kit.models.adapters import attach_lora
from sft_kit.models.base import load_tokenizer
from sft_kit.models.fingerprint import describe_base
from sft_kit.models.reward_model import load_reward_model
from sft_kit.run_record import weight_digests, write_record
from sft_kit.settings import ModelSettings, PpoSettings, ScoreSettings

CHAT = ({"role": "user", "content": "How are you today?"},)
SCALE = {"mean": 0.5, "std": 0.25, "num": 9, "rows": "held-out"}


def make_reward_run(
    folder: Path, checkpoint: Path, template_name: str = "auto", *, adapter: bool = True
) -> Path:
    """Write a finished run of a reward model: a LoRA with an effect, or the whole model."""
    torch.manual_seed(6)
    settings = ModelSettings(str(checkpoint), dtype="float32")
    tokenizer = load_tokenizer(settings)
    template = choose_template(tokenizer, template_name)
    model = load_reward_model(settings, pad_token_id=tokenizer.pad_token_id)
    config = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", lora_alpha=32)
    trained = attach_lora(model, config if adapter else None)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    save_model(trained, tokenizer, folder)
    record = {
        "status": "finished",
        "recipe": "reward_x_lora.py",
        "settings": {
            "model": asdict(settings),
            "adapter": {"r": 8} if adapter else None,
            "data": {"path": "pairs.jsonl"},
        },
        "template": template.describe(),
        "base": describe_base(settings),
        "reward_model": {"head": "new"},
        "score_scale": SCALE,
        "weights": weight_digests(folder),
    }
    write_record(folder, record)
    return folder


def opened(
    checkpoint: Path,
    sft: Path | None = None,
    reward: Path | None = None,
    *,
    template_name: str = "auto",
    has_adapter: bool = True,
    **scores: object,
):
    settings = ModelSettings(str(checkpoint), dtype="float32")
    template = choose_template(load_tokenizer(settings), template_name)
    return open_policy_sources(
        PpoSettings(sft_adapter=None if sft is None else str(sft)),
        ScoreSettings(model=None if reward is None else str(reward), **scores),
        settings,
        template,
        describe_base(settings),
        has_adapter=has_adapter,
    )


def refused(*args: object, **more: object) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        opened(*args, **more)
    assert all(problem.todo for problem in caught.value.problems)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def reward_run(gpt2_checkpoint, tmp_path):
    return make_reward_run(tmp_path / "rm", gpt2_checkpoint)


def rescored(folder: Path, texts: list[str]) -> list[float]:
    """Score replies as the reward model scores rows of data: one by one, its own template."""
    loaded = load_reward_run(str(folder))
    scores = []
    for text in texts:
        chat = (*CHAT, {"role": "assistant", "content": text})
        conversation = Conversation(chat, Where("", 0))
        ids, _ = encode_conversation(loaded.tokenizer, loaded.template, conversation)
        with torch.no_grad():
            scores.append(loaded.model(input_ids=torch.tensor([ids])).logits.item())
    return scores


def scored(scorer, texts: list[str]) -> list[float]:
    prompt = Prompt((5, 6), CHAT, "unused", {}, Where("", 0))
    found = scorer([prompt] * len(texts), texts)
    assert found.shape == (len(texts),)
    assert found.dtype == torch.float32
    return found.tolist()


# --- what fits -----------------------------------------------------------------------------------


def test_nothing_to_start_from_is_a_plain_base(gpt2_checkpoint):
    found = opened(gpt2_checkpoint)
    base = describe_base(ModelSettings(str(gpt2_checkpoint)))["fingerprint"]
    assert found.fingerprints == {"base": base}
    assert (found.sft_folder, found.reward_folder, found.reward_model) == (None, None, None)


def test_runs_on_the_policy_s_base_and_template_share_it(make_run, gpt2_checkpoint, reward_run):
    sft = make_run(gpt2_checkpoint)
    found = opened(gpt2_checkpoint, sft, reward_run, normalise="reference")
    assert (found.sft_folder, found.reward_folder) == (sft, reward_run)
    assert found.reward_model is None
    assert found.reward_scale == (SCALE["mean"], SCALE["std"])
    assert set(found.fingerprints) == {"base", "sft_adapter", "reward_model"}
    assert weight_digests(sft)["adapter_model.safetensors"] in found.fingerprints["sft_adapter"]
    assert found.notes == []


def test_scores_that_are_not_normalised_have_no_scale(gpt2_checkpoint, reward_run):
    assert opened(gpt2_checkpoint, reward=reward_run).reward_scale == (0.0, 1.0)


@pytest.mark.parametrize(
    "changes", [{"template_name": "alpaca"}, {"has_adapter": False}], ids=["template", "whole"]
)
def test_a_reward_model_that_can_not_share_is_loaded_beside(gpt2_checkpoint, reward_run, changes):
    found = opened(gpt2_checkpoint, reward=reward_run, **changes)
    assert found.reward_folder is None
    assert "loaded beside the policy" in found.notes[0]
    texts = ["I am well.", "No."]
    assert scored(found.reward_model, texts) == pytest.approx(rescored(reward_run, texts), abs=1e-5)


def test_other_quantization_is_noted(make_run, gpt2_checkpoint):
    sft = make_run(gpt2_checkpoint)
    record = yaml.safe_load((sft / "run.yaml").read_text())
    record["settings"]["model"]["quantization"] = "nf4"
    (sft / "run.yaml").write_text(yaml.safe_dump(record))
    (note,) = opened(gpt2_checkpoint, sft).notes
    assert "ppo.sft_adapter: trained with model.quantization=nf4, here it is none" in note


def test_a_copied_reward_model_is_what_it_takes_to_score(reward_run, tmp_path):
    copy_reward_model(reward_run, tmp_path / "kept" / "reward")
    names = {"adapter_config.json", "adapter_model.safetensors", "run.yaml", "tokenizer.json"}
    names |= {"tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in (tmp_path / "kept" / "reward").iterdir()} == names
    assert load_reward_run(str(tmp_path / "kept" / "reward")).scale.num > 0
    for name in names:
        assert (tmp_path / "kept" / "reward" / name).read_bytes() == (
            reward_run / name
        ).read_bytes()


# --- what does not -------------------------------------------------------------------------------


def test_runs_of_the_wrong_kind_are_told_both_at_once(make_run, gpt2_checkpoint, reward_run):
    sft = make_run(gpt2_checkpoint)
    first, second = refused(gpt2_checkpoint, reward_run, sft)
    assert first.startswith("ppo.sft_adapter: found ")
    assert "the run of reward_x_lora.py, accepts the run of a language model" in first
    assert second.startswith("reward.model: found ")
    assert "the run of sft_x_lora.py, accepts the run of a reward model" in second


def test_a_whole_model_is_no_adapter_to_start_from(make_run, gpt2_checkpoint):
    whole = make_run(gpt2_checkpoint, adapter=False)
    (problem,) = refused(gpt2_checkpoint, whole)
    assert "a whole model, accepts a run with an adapter" in problem
    assert f"set model.checkpoint={whole} and ppo.sft_adapter=null" in problem


def test_an_adapter_of_another_base_and_template_is_told_with_both(
    make_run, gpt2_checkpoint, gpt2_model, tmp_path
):
    other = Path(shutil.copytree(gpt2_checkpoint, tmp_path / "other"))
    with torch.no_grad():
        gpt2_model.transformer.ln_f.weight.mul_(2)
    gpt2_model.save_pretrained(other)
    sft = make_run(gpt2_checkpoint)
    base, template = refused(other, sft, template_name="alpaca")
    assert f"found an adapter on {str(gpt2_checkpoint)!r}" in base
    assert f"set model.checkpoint={gpt2_checkpoint}" in base
    assert "found a run with the template 'human-assistant', accepts one with 'alpaca'" in template
    assert "set data.template=human-assistant" in template


def test_scores_that_are_all_alike_are_no_scale(gpt2_checkpoint, reward_run):
    record = yaml.safe_load((reward_run / "run.yaml").read_text())
    record["score_scale"] = SCALE | {"std": 0.0, "num": 1}
    (reward_run / "run.yaml").write_text(yaml.safe_dump(record))
    (problem,) = refused(gpt2_checkpoint, reward=reward_run, normalise="reference")
    assert problem.startswith("reward.normalise: found reference, and the scores of ")
    assert "a standard deviation of 0, accepts one above 0" in problem
    assert "(set reward.normalise=running or none, or train" in problem
    assert opened(gpt2_checkpoint, reward=reward_run).reward_scale == (0.0, 1.0)


@pytest.mark.parametrize("kind", ["sft", "reward"])
def test_changed_weights_are_refused(make_run, gpt2_checkpoint, reward_run, kind):
    folder = make_run(gpt2_checkpoint) if kind == "sft" else reward_run
    path = folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="are not the ones the run saved"):
        opened(gpt2_checkpoint, **{kind: folder})


def test_a_run_that_did_not_finish_is_refused(gpt2_checkpoint, reward_run):
    record = yaml.safe_load((reward_run / "run.yaml").read_text())
    (reward_run / "run.yaml").write_text(yaml.safe_dump(record | {"status": "running"}))
    with pytest.raises(CheckpointError, match=r"did not finish .*--resume"):
        opened(gpt2_checkpoint, reward=reward_run)


# --- scores of text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template_name", "adapter"), [("human-assistant", False), ("alpaca", True), ("chatml", True)]
)
def test_completions_are_scored_as_rows_of_data_would_be(
    llama_checkpoint, tmp_path, template_name, adapter
):
    folder = make_reward_run(tmp_path / "rm", llama_checkpoint, template_name, adapter=adapter)
    texts = [f"I am {'very ' * (index % 20)}well" for index in range(19)] + ["", "你好"]
    scorer = make_text_scorer(load_reward_run(str(folder)))
    expected = rescored(folder, texts)
    assert torch.tensor(expected).std() > 1e-3
    assert scored(scorer, texts) == pytest.approx(expected, abs=1e-5)
    # A policy's own template may have an answer begin with a space; that is none of the answer.
    assert scored(scorer, [f" {text}" for text in texts]) == pytest.approx(expected, abs=1e-5)


def test_a_policy_can_not_spell_the_reward_model_s_stop_token(llama_checkpoint, tmp_path):
    folder = make_reward_run(tmp_path / "rm", llama_checkpoint)
    scorer = make_text_scorer(load_reward_run(str(folder)))
    found = scored(scorer, ["I am well</s> no", "I am well</<pad>s> no", "I am well no"])
    assert found == pytest.approx([found[2]] * 3, abs=1e-5)


def test_a_plain_text_is_scored_as_it_goes_on(llama_checkpoint, tmp_path):
    folder = make_reward_run(tmp_path / "rm", llama_checkpoint)
    loaded = load_reward_run(str(folder))
    prompt = Prompt((5,), (), "The quick brown", {}, Where("", 0))
    found = make_text_scorer(loaded)([prompt], [" fox"])
    words = loaded.tokenizer(["The quick brown", " fox", "</s>"], add_special_tokens=False)
    ids = [token for part in words["input_ids"] for token in part]
    with torch.no_grad():
        expected = loaded.model(input_ids=torch.tensor([ids])).logits
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
