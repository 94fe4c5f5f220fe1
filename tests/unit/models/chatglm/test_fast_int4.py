"""The fast kernel against the dense bfloat16 layer, and where it must not be used."""

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from sft_kit.errors import CheckpointError
from sft_kit.models.chatglm.fast_int4 import use_fast_int4
from sft_kit.models.chatglm.modeling import ChatGLMForCausalLM
from sft_kit.models.chatglm.packed_linear import RowwiseQuantLinear
from sft_kit.models.chatglm.packing import Bits, pack


@pytest.fixture
def model(chatglm_fixtures: Path) -> ChatGLMForCausalLM:
    folder = chatglm_fixtures / "chatglm2_tiny_int4"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def make_layer(in_features: int, out_features: int, bits: Bits = 4) -> nn.Sequential:
    """A packed layer in bfloat16, as a model of one layer."""
    layer = RowwiseQuantLinear(
        in_features, out_features, bits=bits, bias=True, dtype=torch.bfloat16
    )
    packed, scale = pack(torch.randn(out_features, in_features).half(), bits)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    layer.weight_scale = nn.Parameter(scale.float(), requires_grad=False)
    nn.init.normal_(layer.bias)
    return nn.Sequential(layer)


def is_fast(model: nn.Module, x: torch.Tensor) -> bool:
    """Whether torch's kernel ran."""
    with torch.profiler.profile() as run:
        model(x)
    return any("weight_int4pack_mm" in event.key for event in run.key_averages())


@pytest.mark.parametrize(
    ("in_features", "out_features"), [(4096, 256), (13696, 64), (64, 32), (96, 16)]
)
def test_the_error_is_that_of_bfloat16(in_features, out_features):
    model = make_layer(in_features, out_features)
    x = torch.randn(2, 3, in_features, dtype=torch.bfloat16)
    weight, bias = model[0].dequantize(torch.float64), model[0].bias.double()
    exact = x.double() @ weight.T + bias
    dense = x @ weight.bfloat16().T + model[0].bias
    assert use_fast_int4(model) == 1
    with torch.no_grad():
        assert is_fast(model, x)
        fast = model(x)
    assert fast.dtype == torch.bfloat16
    assert fast.shape == exact.shape
    error = {name: ((y.double() - exact).norm() / exact.norm()).item() for name, y in
             (("fast", fast), ("dense", dense))}  # fmt: skip
    assert error["fast"] <= 5e-3
    assert error["fast"] <= 2 * error["dense"]


def test_it_is_off_until_asked_for(model):
    with torch.no_grad():
        assert not is_fast(model, torch.arange(3, 9)[None])


def test_generation_uses_it_and_training_does_not(model):
    ids = torch.arange(3, 9)[None]
    before = model(ids).logits
    assert use_fast_int4(model) == 12
    for mode in (model.train(), model.eval()):
        assert not is_fast(mode, ids)  # gradients are on
        assert torch.equal(model(ids).logits, before)
    with torch.no_grad():
        assert is_fast(model, ids)
        fast = model(ids).logits
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, fast)
    exact = copy.deepcopy(model).float()(ids).logits
    assert (fast - exact).norm() <= 1.5 * (before - exact).norm()


def test_gradients_of_an_adapter_are_not_touched(model):
    ids = torch.arange(3, 9)[None]
    gradients = []
    for switch in (False, True):
        base = copy.deepcopy(model)
        if switch:
            use_fast_int4(base)
        torch.manual_seed(5)
        options = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
        adapted = get_peft_model(base, options)
        with torch.no_grad():
            assert is_fast(adapted, ids) == switch
        adapted(ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in adapted.parameters() if p.requires_grad])
    assert len(gradients[0]) == 8
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_an_adapted_model_is_switched_as_well(model):
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert use_fast_int4(adapted) == 12


def test_other_dtypes_and_changed_weights_fall_back():
    model = make_layer(128, 32)
    use_fast_int4(model)
    x = torch.randn(2, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        assert not is_fast(model, x.float())
        assert not is_fast(model, x[:0])
        assert is_fast(model, x)
        assert is_fast(model, x.T.contiguous().T)
        assert not is_fast(copy.deepcopy(model), x)  # other tensors: it can't know that they agree
        other = make_layer(128, 32)
        model.load_state_dict(other.state_dict())
        assert not is_fast(model, x)
        assert torch.equal(model(x), other(x))
        assert use_fast_int4(model) == 1
        assert is_fast(model, x)


def test_the_state_dict_and_dequantize_know_nothing_of_it(model):
    names = set(model.state_dict())
    use_fast_int4(model)
    assert set(model.state_dict()) == names
    model.dequantize()
    assert not any(isinstance(module, RowwiseQuantLinear) for module in model.modules())


def test_it_takes_the_memory_that_it_says():
    model = make_layer(4096, 256)
    use_fast_int4(model)
    product = model[0].no_grad_product
    taken = product.packed.nbytes + product.scales.nbytes
    assert taken / model[0].num_weights == pytest.approx(0.53, abs=0.005)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_layer(128, 32).float(), "found a model in float32; accepts bfloat16"),
        (lambda: make_layer(128, 32, bits=8), "0: found 8-bit weights; accepts 4 bits"),
        (lambda: make_layer(80, 32), "found 80 input features; accepts a multiple of 32"),
        (lambda: make_layer(128, 40), "found 40 output features; accepts a multiple of 16"),
        (lambda: make_layer(128, 32).to("meta"), "found weights on meta; accepts the CPU"),
        (lambda: nn.Sequential(nn.Linear(128, 32)), "found no packed layers"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    model = make()
    with pytest.raises(CheckpointError, match=message):
        use_fast_int4(model)


def test_one_layer_that_does_not_fit_switches_none():
    model = nn.Sequential(make_layer(128, 32), make_layer(32, 40))
    with pytest.raises(CheckpointError, match=r"1\.0: found 40 output features"):
        use_fast_int4(model)
    assert model[0][0].no_grad_product is None


def test_a_torch_without_the_kernel_is_refused(monkeypatch):
    monkeypatch.setattr("sft_kit.models.chatglm.fast_int4._KERNELS", ("_no_such_kernel",))
    with pytest.raises(CheckpointError, match="lacks the kernel"):
        use_fast_int4(make_layer(128, 32))
