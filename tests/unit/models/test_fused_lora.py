"""A fused LoRA layer is PEFT's, in what it answers, learns and saves."""

import copy

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn
from transformers.pytorch_utils import Conv1D

from sft_kit.models.adapters import attach_lora
from sft_kit.models.fused_lora import (
    FusedLinear,
    FusedLinear4bit,
    FusedLinear8bit,
    use_fused_lora,
)


class Pair(nn.Module):
    """A layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 20)
        self.second = Conv1D(8, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def with_adapter(*, fused, dtype=torch.float32, dropout=0.0, **options):
    torch.manual_seed(0)
    model = Pair()
    nn.init.normal_(model.first.bias)
    model = model.to(dtype)
    config = LoraConfig(r=3, lora_alpha=5, lora_dropout=dropout,
                        target_modules=["first", "second"], **options)  # fmt: skip
    if fused:
        use_fused_lora(config)
    adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return adapted.train()


def learnt(model, x):
    x = x.clone().requires_grad_()
    answer = model(x)
    torch.manual_seed(2)
    (answer.float() * torch.randn(answer.shape)).sum().backward()
    grads = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
    return {"answer": answer.detach(), "x": x.grad} | grads


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12)])
def test_answers_and_gradients_are_those_of_peft(shape):
    x = torch.randn(shape)
    plain, fused = with_adapter(fused=False), with_adapter(fused=True)
    assert isinstance(fused.base_model.model.first, FusedLinear)
    assert isinstance(fused.base_model.model.second, FusedLinear)
    ours, theirs = learnt(fused, x), learnt(plain, x)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
def test_no_rows_at_all_are_answered_as_by_peft():
    assert with_adapter(fused=True, dropout=0.1)(torch.zeros(0, 12)).shape == (0, 8)


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
def test_in_bfloat16_adapters_and_their_gradients_stay_float32_and_near():
    x = torch.randn(64, 12, dtype=torch.bfloat16)
    ours = learnt(with_adapter(fused=True, dtype=torch.bfloat16), x)
    truth = learnt(with_adapter(fused=False), x.float())
    for name, found in ours.items():
        if "lora" in name:
            assert found.dtype == torch.float32
        error = (found.float() - truth[name]).norm() / truth[name].norm()
        assert error < 0.02, name


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
def test_out_of_training_it_is_peft_bit_by_bit():
    x = torch.randn(6, 12, dtype=torch.bfloat16)
    plain, fused = (with_adapter(fused=one, dtype=torch.bfloat16).eval() for one in (False, True))
    assert torch.equal(plain(x), fused(x))


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
@pytest.mark.parametrize("how", ["off", "merged", "dora"])
def test_what_is_not_plain_goes_the_way_of_peft(how, monkeypatch):
    options = {"use_dora": True} if how == "dora" else {}
    model = with_adapter(fused=True, **options)
    taken = []
    original = Linear.forward
    monkeypatch.setattr(Linear, "forward",
                        lambda *args, **kw: taken.append(1) or original(*args, **kw))  # fmt: skip
    x = torch.randn(4, 12)
    if how == "off":
        with model.disable_adapter():
            torch.testing.assert_close(model(x), model.get_base_model()(x))
    elif how == "merged":
        before = copy.deepcopy(model).eval()(x)
        model.merge_adapter()
        torch.testing.assert_close(model(x), before, atol=1e-4, rtol=1e-4)
    else:
        model(x)
    assert taken


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
def test_with_dropout_the_mean_is_that_without_it():
    x = torch.randn(3, 12)
    model, sure = with_adapter(fused=True, dropout=0.3), with_adapter(fused=True)
    layer, expected = model.base_model.model.first, sure.base_model.model.first(x)
    drawn = torch.stack([layer(x) for _ in range(4000)])
    error = drawn.std(0) / 4000**0.5
    assert ((drawn.mean(0) - expected).abs() < 5 * error + 1e-6).all()


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
def test_forward_and_backward_drop_the_same_numbers():
    layer = with_adapter(fused=True, dropout=0.5, dtype=torch.float64).base_model.model.first
    x = torch.randn(4, 12, dtype=torch.float64, requires_grad=True)

    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert down.dtype == up.dtype == torch.float64

    def seeded(rows, *_weights):
        torch.manual_seed(9)
        return layer(rows)

    assert torch.autograd.gradcheck(seeded, (x, down, up), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out")
@pytest.mark.parametrize("count", [700, 1100])
def test_many_rows_in_bfloat16_are_learnt_from_as_by_peft_in_float64(count):
    """Also where their products are cut in halves."""
    mine = with_adapter(fused=True, dtype=torch.bfloat16)
    peft = with_adapter(fused=False, dtype=torch.float64)
    peft.load_state_dict(mine.state_dict())
    x = torch.randn(count, 12).bfloat16()
    found = []
    for model in (mine, peft):
        layer = model.base_model.model.first
        rows = x.detach().to(layer.weight.dtype).clone().requires_grad_()
        result = layer(rows)
        torch.manual_seed(3)
        result.backward(torch.randn(result.shape).bfloat16().to(result.dtype))
        weights = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        found.append([result.detach(), rows.grad, *(one.grad for one in weights)])
    for mine, truth in zip(*found, strict=True):
        assert float((mine.double() - truth).norm() / truth.norm()) < 0.01


def test_torch_restores_dropout_with_its_random_state():
    layer = with_adapter(fused=True, dropout=0.5).base_model.model.first
    x = torch.randn(4, 12)
    state = torch.get_rng_state()
    first = layer(x)
    assert not torch.equal(first, layer(x))
    torch.set_rng_state(state)
    assert torch.equal(first, layer(x))


def test_gpt2_gets_fused_layers_by_default_and_none_where_refused(gpt2_model):
    def kinds(*, fused):
        config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        model = attach_lora(copy.deepcopy(gpt2_model), config, fused=fused)
        return {type(one) for one in model.modules() if isinstance(one, Linear)}

    assert kinds(fused=True) == {FusedLinear}
    assert kinds(fused=False) == {Linear}


def quantized(kind, *, fused):
    """A quantized layer with its LoRA, as a model in training has it."""
    torch.manual_seed(4)
    whole = nn.Linear(64, 128)
    if kind == "nf4":
        layer = bnb.nn.Linear4bit(64, 128, compute_dtype=torch.float32, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(whole.weight.data, quant_type="nf4")
        layer.support_avx512bf16_for_cpu = False
    else:
        layer = bnb.nn.Linear8bitLt(64, 128, has_fp16_weights=False)
        layer.weight = bnb.nn.Int8Params(
            whole.weight.data, requires_grad=False, has_fp16_weights=False
        )
    layer.bias = nn.Parameter(whole.bias.data)
    model = nn.ModuleDict({"first": layer.to("cpu")}).requires_grad_(requires_grad=False)
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind == "nf4", kind == "int8"
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["first"])
    if fused:
        use_fused_lora(config)
    adapted = get_peft_model(model, config).base_model.model["first"]
    torch.manual_seed(1)
    nn.init.normal_(adapted.lora_B["default"].weight)
    return adapted.train()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "cls"), [("nf4", FusedLinear4bit), ("int8", FusedLinear8bit)])
def test_on_quantized_layers_too(kind, cls):
    x = torch.randn(3, 5, 64)
    plain, fused = quantized(kind, fused=False), quantized(kind, fused=True)
    assert type(fused) is cls
    assert type(plain) is not cls
    ours, theirs = learnt(fused, x), learnt(plain, x)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(fused.eval()(x), plain.eval()(x))
