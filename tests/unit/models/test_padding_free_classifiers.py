"""Decoders that classify or score, trained without padding, learn from each row what it teaches."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from sft_kit.models.heads import load_classifier
from sft_kit.models.pooling import padding_of
from sft_kit.models.reward_model import load_reward_model
from sft_kit.settings import ModelSettings

SMALL: dict[str, Any] = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
    "intermediate_size": 48, "vocab_size": 60, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "gpt2": GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=60, n_positions=256, bos_token_id=0,
        eos_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    ),
    "llama": LlamaConfig(**SMALL),
}  # fmt: skip
LENGTHS = (5, 140, 1, 23)


@pytest.fixture(params=CONFIGS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[request.param])).save_pretrained(
        tmp_path
    )
    return tmp_path


def settings(checkpoint: Path, **keys: Any) -> ModelSettings:
    return ModelSettings(str(checkpoint), dtype="float32", attention="blocks", **keys)


def rows() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(1, 60, (length,), generator=generator) for length in LENGTHS]


def padded(side: str) -> dict[str, torch.Tensor]:
    shape = (len(LENGTHS), max(LENGTHS))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for number, row in enumerate(rows()):
        place = slice(0, len(row)) if side == "right" else slice(shape[1] - len(row), shape[1])
        ids[number, place], mask[number, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def seen_shapes(model: Any) -> list[torch.Size]:
    """What the embeddings are given from now on."""
    shapes: list[torch.Size] = []
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    return shapes


@pytest.mark.parametrize("side", ["right", "left"])
def test_scores_and_gradients_are_those_of_every_row_alone(checkpoint: Path, side: str) -> None:
    torch.manual_seed(3)
    model = load_reward_model(settings(checkpoint), pad_token_id=0, device="cpu").train()
    alone = copy.deepcopy(model)
    alone.set_attn_implementation("eager")
    assert padding_of(model).startswith("padding: left out where there is much")
    shapes = seen_shapes(model)
    scores = model(**padded(side)).logits[:, 0]
    assert shapes == [torch.Size([1, sum(LENGTHS) + 7])]  # 169, filled up to 176
    truth = torch.stack([alone(input_ids=row[None]).logits[0, 0] for row in rows()])
    torch.testing.assert_close(scores, truth, atol=1e-5, rtol=1e-5)
    weights = torch.tensor([1.0, -2.0, 3.0, -4.0])
    (scores * weights).sum().backward()
    (truth * weights).sum().backward()
    for (name, mine), theirs in zip(model.named_parameters(), alone.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-3, msg=name)


def test_the_language_that_a_classifier_learns_is_that_of_every_row(tmp_path: Path) -> None:
    torch.manual_seed(1)
    language = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["gpt2"]))
    language.save_pretrained(tmp_path)
    chosen = settings(tmp_path)
    model = load_classifier(chosen, ["a", "b"], lm_weight=0.5, pad_token_id=0, device="cpu").train()
    found = model(**padded("right")).lm_nll
    for nll, row in zip(found, rows(), strict=True):
        if len(row) > 1:
            truth = language(input_ids=row[None], labels=row[None]).loss
            torch.testing.assert_close(nll, truth, atol=1e-4, rtol=1e-4)


def test_padding_stays_where_it_is_asked_for_or_the_model_only_answers(checkpoint: Path) -> None:
    forced = load_reward_model(
        settings(checkpoint, fused=False), pad_token_id=0, device="cpu"
    ).train()
    assert padding_of(forced).startswith("padding: computed, and not read")
    model = load_reward_model(settings(checkpoint), pad_token_id=0, device="cpu")
    batch = padded("right")
    for one in (forced, model.eval()):
        shapes = seen_shapes(one)
        one(**batch)
        assert shapes == [batch["input_ids"].shape]
    states = model.train()(**batch, output_hidden_states=True).hidden_states
    assert states[-1].shape[:2] == batch["input_ids"].shape
