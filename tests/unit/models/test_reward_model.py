"""Reward models: where the score is read, what its head is, and what comes back from a folder.

Scores are checked against transformers' own class on unpadded rows.
"""

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification

from sft_kit.errors import CheckpointError, ConfigError
from sft_kit.models.adapters import attach_lora
from sft_kit.models.heads import head_of
from sft_kit.models.reward_model import load_reward_model
from sft_kit.settings import ModelSettings

from .conftest import ARCHITECTURES

LENGTHS = (5, 12, 1, 9)
FAMILIES = ("gpt2", "llama")


@pytest.fixture
def checkpoints(gpt2_checkpoint, llama_checkpoint):
    return {"gpt2": gpt2_checkpoint, "llama": llama_checkpoint}


def load(folder, pad_token_id=None, **settings):
    options = {key: settings.pop(key) for key in ("require_head", "device") if key in settings}
    torch.manual_seed(0)
    chosen = ModelSettings(checkpoint=str(folder), **settings)
    return load_reward_model(chosen, pad_token_id=pad_token_id, **options)


def rows(model, *, end: int | None = None) -> list[torch.Tensor]:
    """Rows of unequal lengths; with `end` each ends with this token."""
    draw = torch.Generator().manual_seed(1)
    high = int(model.config.vocab_size)
    made = [torch.randint(3, high, (length,), generator=draw) for length in LENGTHS]
    return made if end is None else [torch.cat([row, torch.tensor([end])]) for row in made]


def padded(some, pad, side="right", extra=0):
    width = max(map(len, some)) + extra
    ids = torch.full((len(some), width), pad)
    mask = torch.zeros((len(some), width), dtype=torch.long)
    for index, row in enumerate(some):
        start = width - len(row) if side == "left" else 0
        ids[index, start : start + len(row)] = row
        mask[index, start : start + len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def scores(model, batch) -> torch.Tensor:
    return model(**batch).logits[:, 0]


@torch.no_grad()
def alone(model, some) -> torch.Tensor:
    return torch.cat([model(input_ids=row.unsqueeze(0)).logits[:, 0] for row in some])


def assert_close(found, expected, most=1e-6):
    difference = (found - expected).abs()
    assert float(difference.max()) < most
    assert float(difference.mean()) < most
    assert float(expected.std()) > 1e-2, "scores that are all the same show nothing"


# --- where the score is read ---------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("side", "extra"), [("right", 0), ("left", 0), ("right", 7), ("left", 7)])
def test_padding_of_any_kind_does_not_change_a_score(checkpoints, family, side, extra):
    model = load(checkpoints[family])
    end = model.config.eos_token_id
    some = rows(model, end=end)
    expected = alone(model, some)
    for pad in (end, 2, 300):  # the end of text itself, a token of the text's, one beside it
        assert_close(scores(model, padded(some, pad, side, extra)), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_text_is_seen_though_it_is_the_padding_too(checkpoints, family):
    model = load(checkpoints[family])
    end = model.config.eos_token_id
    without, with_end = rows(model), rows(model, end=end)
    difference = scores(model, padded(with_end, end)) - scores(model, padded(without, end))
    assert float(difference.abs().min()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unpadded_row_has_the_score_of_transformers_own_class(checkpoints, family, tmp_path):
    model = load(checkpoints[family])
    model.save_pretrained(tmp_path / "saved")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    end = model.config.eos_token_id
    assert stock.config.pad_token_id != end, "it would take the end of text for padding"
    assert type(stock).__name__ == type(model).__name__
    some = rows(model, end=end)
    assert torch.equal(alone(stock, some), alone(model, some))


def test_a_padding_token_of_its_own_is_named_for_transformers(llama_checkpoint, llama_tokenizer):
    pad = llama_tokenizer.pad_token_id
    assert load(llama_checkpoint, pad).config.pad_token_id == pad
    assert load(llama_checkpoint, llama_tokenizer.eos_token_id).config.pad_token_id is None


# --- the head ------------------------------------------------------------------------------------


def test_a_new_head_is_drawn_small_and_without_bias(gpt2_checkpoint):
    heads = []
    for seed in range(4):
        torch.manual_seed(seed)
        settings = ModelSettings(checkpoint=str(gpt2_checkpoint))
        model = load_reward_model(settings, pad_token_id=None)
        assert model.score.bias is None
        assert model.score.weight.shape == (1, 64)
        heads.append(model.score.weight.detach().flatten())
    drawn = torch.cat(heads)
    assert float(drawn.std()) == pytest.approx(1 / math.sqrt(65), rel=0.15)
    assert abs(float(drawn.mean())) < 0.03
    assert "new (score)" in head_of(model).note


def test_a_head_the_checkpoint_brings_is_kept_whatever_its_label_is_called(
    llama_checkpoint, tmp_path
):
    # As other reward trainers save it: one label, called LABEL_0.
    stock = AutoModelForSequenceClassification.from_pretrained(llama_checkpoint, num_labels=1)
    stock.save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs", require_head=True)
    assert torch.equal(model.score.weight, stock.score.weight)
    assert "the checkpoint's own" in head_of(model).note


def test_a_head_that_is_asked_for_must_be_there(gpt2_checkpoint):
    with pytest.raises(CheckpointError, match="score"):
        load(gpt2_checkpoint, require_head=True)


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_the_head_is_float32_and_trains_over_any_base(gpt2_checkpoint, quantization):
    model = load(gpt2_checkpoint, quantization=quantization, dtype="bfloat16")
    assert model.score.weight.dtype == torch.float32
    found = scores(model, padded(rows(model), 0))
    assert found.dtype == torch.float32
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear")
    adapted = attach_lora(model, config)
    training = {name for name, value in adapted.named_parameters() if value.requires_grad}
    heads = {name for name in training if "score" in name}
    assert len(heads) == 1
    assert all("lora_" in name for name in training - heads)
    assert "score" in (config.modules_to_save or [])


def test_autocast_does_not_round_the_scores(gpt2_checkpoint):
    model = load(gpt2_checkpoint)
    model.score.weight.data.mul_(30)  # scores of some ten
    batch = padded(rows(model), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scores(model, batch)
        with torch.no_grad():
            hidden = model.base_model(**batch).last_hidden_state
    last = hidden[torch.arange(len(LENGTHS)), torch.tensor(LENGTHS) - 1].float()
    expected = (last @ model.score.weight.T)[:, 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(found, found.bfloat16().float())


def test_dropout_is_off_in_training_mode_too(llama_model, llama_tokenizer, tmp_path):
    llama_model.config.attention_dropout = 0.5
    llama_model.save_pretrained(tmp_path / "rough")
    model = load(tmp_path / "rough").train()
    batch = padded(rows(model), 0)
    assert torch.equal(scores(model, batch), scores(model, batch))


# --- what is refused -----------------------------------------------------------------------------


def test_an_encoder_is_refused(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    BertForMaskedLM(BertConfig(**ARCHITECTURES["bert"])).save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match="bert is no decoder"):
        load(tmp_path / "bert")


def test_the_number_of_labels_is_not_the_users_to_set(gpt2_checkpoint):
    with pytest.raises(ConfigError, match=r"config\.num_labels"):
        load(gpt2_checkpoint, config={"num_labels": 3})


# --- saved and loaded ----------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_an_adapter_with_its_head_comes_back_bit_by_bit(gpt2_checkpoint, tmp_path, quantization):
    from sft_kit.artifacts.labels import labels_of
    from sft_kit.artifacts.load import load_model

    settings = ModelSettings(checkpoint=str(gpt2_checkpoint), quantization=quantization)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear")
    model = attach_lora(load_reward_model(settings, pad_token_id=None), config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    batch = padded(rows(model), 0)
    model.save_pretrained(str(tmp_path / "saved"), save_embedding_layers=False)
    again = load_model(tmp_path / "saved", replace(settings), None, labels=labels_of(model))
    assert torch.equal(scores(again, batch), scores(model, batch))
    with again.disable_adapter():
        assert not torch.equal(scores(again, batch), scores(model, batch))


def test_a_whole_model_comes_back_bit_by_bit(llama_checkpoint, tmp_path):
    from sft_kit.artifacts.labels import Labels, labels_of
    from sft_kit.artifacts.load import load_model

    model = load(llama_checkpoint)
    assert labels_of(model) == Labels(("score",), multi_label=False, is_score=True)
    model.save_pretrained(tmp_path / "saved")
    again = load_model(tmp_path / "saved", None, labels=labels_of(model))
    batch = padded(rows(model), 0, "left")
    assert torch.equal(scores(again, batch), scores(model, batch))


def test_a_merged_adapter_scores_alike_and_comes_back_bit_by_bit(gpt2_checkpoint, tmp_path):
    settings = ModelSettings(checkpoint=str(gpt2_checkpoint))
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear")
    adapted = attach_lora(load_reward_model(settings, pad_token_id=None), config).eval()
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    batch = padded(rows(adapted), 0)
    before = scores(adapted, batch)
    merged = adapted.merge_and_unload()
    assert_close(scores(merged, batch), before, most=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = load(tmp_path / "merged", require_head=True)
    assert torch.equal(scores(again, batch), scores(merged, batch))
