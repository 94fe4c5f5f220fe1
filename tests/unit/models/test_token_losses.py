"""A model that answers losses gives those of its logits, and never makes them all."""

import copy

import pytest
import torch
from peft import LoraConfig
from torch.nn import functional
from transformers import Gemma2Config, Gemma2ForCausalLM

from sft_kit.data.collators import pad_batch
from sft_kit.models.adapters import attach_lora
from sft_kit.models.token_losses import TokenLosses, answer_losses

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]},
    {"input_ids": [4, 3, 2], "labels": [-100, 3, 2]},
]
GEMMA = Gemma2Config(
    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8, hidden_size=16,
    intermediate_size=32, vocab_size=60, final_logit_softcapping=0.1, attn_logit_softcapping=None,
)  # fmt: skip


def batch():
    return pad_batch(ROWS, pad_token_id=0, next_tokens=True)


def expected(model):
    """Losses from all logits, by torch."""
    inputs = batch()
    labels = inputs.pop("labels")
    del inputs["next_tokens"]
    logits = model(**inputs).logits
    nll = torch.zeros(labels.shape)
    for row, column in (labels != -100).nonzero().tolist():
        nll[row, column] = functional.cross_entropy(logits[row, column - 1], labels[row, column])
    return nll


def answered(model):
    inputs = batch()
    del inputs["labels"]
    return model(**inputs)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("adapter", [True, False])
def test_losses_stand_where_the_labels_do(gpt2_model, adapter, fused):
    model = copy.deepcopy(gpt2_model).eval()
    if adapter:
        model = attach_lora(model, LoraConfig(r=2, target_modules="all-linear")).eval()
    truth = expected(model)
    answer_losses(model, fused=fused)
    output = answered(model)
    assert isinstance(output, TokenLosses)
    torch.testing.assert_close(output.nll, truth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(expected(model), truth)  # without `next_tokens` it is the model's


def gradients(model, loss):
    loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("adapter", [True, False])
def test_what_is_learnt_is_the_same(gpt2_model, adapter):
    model = copy.deepcopy(gpt2_model).eval()
    if adapter:
        model = attach_lora(model, LoraConfig(r=2, target_modules="all-linear")).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    truth = gradients(model, expected(model).sum())
    model.zero_grad()
    answer_losses(model)
    for name, found in gradients(model, answered(model).nll.sum()).items():
        torch.testing.assert_close(found, truth[name], atol=1e-5, rtol=1e-4)


def shapes_seen(model):
    """Rows of logits that the output layer makes in one forward."""
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda _head, _args, logits: seen.append(logits.shape[0])
    )
    answered(model)
    hook.remove()
    return seen


def test_a_frozen_output_layer_makes_no_logits_and_one_that_learns_those_of_the_labels(gpt2_model):
    frozen = attach_lora(copy.deepcopy(gpt2_model), LoraConfig(r=2, target_modules="all-linear"))
    answer_losses(frozen)
    assert shapes_seen(frozen) == [0]
    whole = copy.deepcopy(gpt2_model)
    answer_losses(whole)
    assert shapes_seen(whole) == [5]


def test_logits_that_are_capped_behind_the_layer_are_made():
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(GEMMA).eval()
    model.requires_grad_(requires_grad=False)
    truth = expected(model)
    answer_losses(model)
    assert shapes_seen(model) == [5]
    torch.testing.assert_close(answered(model).nll, truth, atol=1e-5, rtol=1e-5)


def test_a_failed_forward_leaves_no_trace(gpt2_model):
    model = copy.deepcopy(gpt2_model).eval()
    answer_losses(model)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.tensor([[10**6]]), next_tokens=torch.tensor([[1]]))
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape[:2] == (1, 2)
