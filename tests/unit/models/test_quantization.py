import copy
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from bitsandbytes.nn.modules import has_avx512bf16
from torch import nn

from sft_kit.models.base import load_causal_lm
from sft_kit.models.quantization import freeze, guard_cpu_packing
from sft_kit.settings import ModelSettings

INPUT = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
NEEDS_THE_FAULT = pytest.mark.skipif(
    not has_avx512bf16(), reason="bitsandbytes re-packs 4-bit weights on CPUs with AVX512-BF16 only"
)


def make_layer() -> Linear4bit:
    torch.manual_seed(0)
    layer = Linear4bit(64, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    return layer.to("cpu")


def training_outputs(layer: Linear4bit) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Forward and gradient as in training, and the weights that merging would read."""
    layer.train()
    value = INPUT.clone().requires_grad_()
    output = layer(value)
    output.square().sum().backward()
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return output.detach(), value.grad, weight


def test_training_and_merging_read_the_same_weights_after_an_evaluation():
    layer = make_layer()
    assert guard_cpu_packing(layer) == 1
    expected = training_outputs(layer)
    with torch.no_grad():
        layer.eval()(INPUT)
    for found, before in zip(training_outputs(layer), expected, strict=True):
        assert torch.equal(found, before)


def test_the_guarded_forward_is_the_product_with_the_dequantized_weights():
    layer = make_layer()
    guard_cpu_packing(layer)
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    with torch.no_grad():
        found = layer.eval()(INPUT)
    torch.testing.assert_close(found, INPUT @ weight.T, rtol=1e-4, atol=1e-5)


@NEEDS_THE_FAULT
def test_without_the_guard_bitsandbytes_still_scrambles_the_weights():
    """Fails when upstream is repaired: then `guard_cpu_packing` can go."""
    layer = make_layer()
    _, _, expected = training_outputs(layer)
    with torch.no_grad():
        layer.eval()(INPUT)
    try:
        scrambled = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    except (RuntimeError, ValueError):
        return
    is_same = scrambled.shape == expected.shape and torch.allclose(
        scrambled.float(), expected, atol=1e-3
    )
    assert not is_same


def test_a_loaded_nf4_model_survives_an_evaluation(gpt2_checkpoint: Path):
    model = load_causal_lm(ModelSettings(str(gpt2_checkpoint), quantization="nf4"))
    ids = torch.arange(1, 17).unsqueeze(0)

    def training_loss_and_weights() -> tuple[torch.Tensor, list[torch.Tensor]]:
        weights = [
            dequantize_4bit(module.weight.data, module.weight.quant_state)
            for module in model.modules()
            if isinstance(module, Linear4bit)
        ]
        return model.train()(input_ids=ids, labels=ids).loss, weights

    torch.manual_seed(0)
    loss, weights = training_loss_and_weights()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    torch.manual_seed(0)
    loss_after, weights_after = training_loss_and_weights()
    assert len(weights) == 8
    assert torch.equal(loss, loss_after)
    assert all(map(torch.equal, weights, weights_after))


def test_every_4bit_layer_of_a_model_is_guarded_and_nothing_else():
    model = nn.Sequential(nn.Linear(4, 4), make_layer(), nn.Sequential(make_layer()))
    assert guard_cpu_packing(model) == 2
    assert not model[1].support_avx512bf16_for_cpu
    assert not model[2][0].support_avx512bf16_for_cpu
    assert not hasattr(model[0], "support_avx512bf16_for_cpu")
    assert guard_cpu_packing(nn.Linear(4, 4)) == 0


def test_freezing_stops_every_parameter_and_changes_no_value():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    before = copy.deepcopy(model.state_dict())
    freeze(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
