"""Weights handed to the structure that trains, and back to the model that the recipe built."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sft_kit.errors import TrainingError

from ..conftest import make_model

if TYPE_CHECKING:
    import torch
    from torch import nn


def logits(model: "nn.Module") -> "torch.Tensor":
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[3, 1, 4, 1, 5]])).logits


@pytest.fixture(params=["whole", "adapter"])
def model(request: pytest.FixtureRequest) -> "nn.Module":
    """A tiny GPT-2, whose head is its embedding; with and without an adapter."""
    from peft import LoraConfig

    from sft_kit.models.adapters import attach_lora

    if request.param == "whole":
        return make_model()
    return attach_lora(make_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"]))


def processes(gathered: "nn.Module", *, is_main: bool = True, **changed: Any) -> Any:
    """An accelerator that has gathered the weights of a model, each name by itself."""
    weights = {name: one.clone() for name, one in gathered.state_dict().items()} | changed
    return SimpleNamespace(is_main_process=is_main, get_state_dict=lambda _: weights)


def test_a_copy_takes_the_very_weights_and_leaves_an_empty_model(model: "nn.Module"):
    from sft_kit.training.sharding import take_weights

    expected, before = logits(model), dict(model.named_parameters())
    taken = take_weights(model)
    assert {id(one) for one in taken.parameters()} == {id(one) for one in before.values()}
    assert (logits(taken) == expected).all()
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()  # a tied weight is still one
    for name, one in after.items():
        assert one.is_meta
        assert (one.shape, one.dtype) == (before[name].shape, before[name].dtype)
        assert one.requires_grad == before[name].requires_grad


def test_trained_weights_come_back_and_tied_ones_are_one_again(model: "nn.Module"):
    from sft_kit.training.sharding import give_weights_back, take_weights

    num_parameters, wants = (
        len(list(model.parameters())),
        [p.requires_grad for p in model.parameters()],
    )
    taken = take_weights(model)
    for one in taken.parameters():
        if one.requires_grad:
            one.data += 0.01
    give_weights_back(processes(taken), taken, model)
    assert (logits(model) == logits(taken)).all()
    assert len(list(model.parameters())) == num_parameters
    assert [one.requires_grad for one in model.parameters()] == wants


def test_other_processes_keep_an_empty_model():
    from sft_kit.training.sharding import give_weights_back, take_weights

    model = make_model()
    taken = take_weights(model)
    give_weights_back(processes(taken, is_main=False), taken, model)
    assert all(one.is_meta for one in model.parameters())


def test_weights_that_are_missing_or_foreign_are_named():
    from sft_kit.training.sharding import give_weights_back, take_weights

    model = make_model()
    taken = take_weights(model)
    lost = processes(taken)
    lost.get_state_dict(None).pop("transformer.wpe.weight")
    with pytest.raises(TrainingError, match=r"transformer\.wpe\.weight"):
        give_weights_back(lost, taken, model)
    foreign = processes(taken, stranger=next(taken.parameters()).detach())
    with pytest.raises(TrainingError, match="stranger"):
        give_weights_back(foreign, taken, model)


@pytest.mark.parametrize(
    ("state", "expected", "has_parts"),
    [
        ({}, False, False),
        ({"fsdp_plugin": object()}, True, True),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=2)}, False, True),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, True, True),
        ({"deepspeed_plugin": None, "fsdp_plugin": None}, False, False),
    ],
)
def test_fsdp_and_the_third_stage_of_zero_spread_weights_and_all_of_zero_wants_an_optimizer(
    state: dict[str, Any], expected: bool, has_parts: bool
):
    from sft_kit.training.sharding import needs_optimizer, spreads_weights

    processes: Any = SimpleNamespace(state=SimpleNamespace(**state))
    assert spreads_weights(processes) is expected
    assert needs_optimizer(processes) is has_parts


def test_layers_that_hold_the_input_embedding_are_not_sharded_by_themselves():
    from transformers import BertConfig, BertForSequenceClassification

    from sft_kit.training.sharding import choose_layers

    config = BertConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4
    )
    bert = BertForSequenceClassification(config)
    assert "BertEmbeddings" in bert._no_split_modules  # of which accelerate takes all
    for model, expected in ((bert, ["BertLayer"]), (make_model(), ["GPT2Block"])):
        plugin = SimpleNamespace(transformer_cls_names_to_wrap=None)
        processes: Any = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin))
        choose_layers(processes, model)
        assert plugin.transformer_cls_names_to_wrap == expected
        plugin.transformer_cls_names_to_wrap = ["Named"]
        choose_layers(processes, model)
        assert plugin.transformer_cls_names_to_wrap == ["Named"]
