"""The packed layer against nn.Linear with the same weights, gradcheck, and its memory."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sft_kit.errors import CheckpointError
from sft_kit.models.chatglm.packed_linear import RowwiseQuantLinear, rowwise_linear
from sft_kit.models.chatglm.packing import Bits, pack

BITS: tuple[Bits, ...] = (4, 8)


def make_layer(
    in_features: int,
    out_features: int,
    bits: Bits,
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[RowwiseQuantLinear, nn.Linear]:
    """A packed layer with random weights, and the dense one that it stands for."""
    layer = RowwiseQuantLinear(in_features, out_features, bits=bits, bias=bias, dtype=dtype)
    packed, scale = pack(torch.randn(out_features, in_features).half(), bits)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    layer.weight_scale = nn.Parameter(scale.float(), requires_grad=False)
    dense = nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    integers = packed.double()
    if bits == 4:  # nibbles by division, not by our shifts
        unsigned = packed.to(torch.int64) % 256
        pairs = torch.stack([unsigned // 16, unsigned % 16], dim=-1).flatten(1)
        integers = torch.where(pairs > 7, pairs - 16, pairs).double()
    dense.weight = nn.Parameter((integers * scale.double()[:, None]).to(dtype))
    if bias:
        with torch.no_grad():
            layer.bias.copy_(dense.bias)
    return layer, dense


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (0, 6)])
def test_forward_and_input_gradient_are_those_of_the_dense_layer(bits, shape):
    layer, dense = make_layer(6, 9, bits, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    found, expected = layer(x), dense(y)
    weights = torch.randn_like(expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad, rtol=1e-13, atol=1e-13)
    assert layer.weight.grad is None
    assert layer.weight_scale.grad is None


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("block", [None, 1, 12, 20, 1000])
def test_gradcheck_passes_for_every_size_of_block(bits, block):
    # 7 rows and 10 columns in blocks of 1 or 2 rows and of 2 columns, with ragged tails.
    packed, scale = pack(torch.randn(7, 10), bits)
    x = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rowwise_linear(x, packed, scale, bits, block), (x,))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block", [8, 37, 96])
def test_blocks_change_no_result(bits, dtype, block):
    # Small integers and scales that are powers of two: every sum is exact in every dtype.
    integers = torch.randint(-1, 2, (13, 16), dtype=torch.int8)
    scale = torch.full((13,), 0.5)
    packed = integers if bits == 8 else (integers[:, 0::2] << 4) | (integers[:, 1::2] & 15)
    x = torch.randint(-2, 3, (5, 16)).to(dtype).requires_grad_()
    result = rowwise_linear(x, packed, scale, bits, block)
    assert torch.equal(result, x.detach() @ (integers * 0.5).to(dtype).T)
    gradient = torch.randint(-2, 3, (5, 13)).to(dtype)
    result.backward(gradient)
    assert torch.equal(x.grad, gradient @ (integers * 0.5).to(dtype))


@pytest.mark.parametrize("bits", BITS)
def test_an_input_may_lie_anyhow_in_memory(bits):
    layer, dense = make_layer(6, 4, bits)
    x = torch.randn(6, 5).T.requires_grad_()
    assert not x.is_contiguous()
    torch.testing.assert_close(layer(x), dense(x))
    expanded = layer(x).sum(dim=0).expand(5, 4)  # its gradient has strides of 0
    expanded.sum().backward()
    torch.testing.assert_close(x.grad, (5 * dense.weight.sum(0)).expand(5, 6))


def test_the_bias_is_added_to_the_rounded_product():
    layer, dense = make_layer(16, 4, 4, dtype=torch.bfloat16)
    x = torch.randn(8, 16, dtype=torch.bfloat16)
    assert torch.equal(layer(x), x @ dense.weight.T + dense.bias)


def test_nothing_is_kept_for_backward_but_the_packed_weight():
    layer, _ = make_layer(32, 8, 4, bias=False)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        layer(torch.randn(64, 32, requires_grad=True))
    assert {t.data_ptr() for t in kept} == {layer.weight.data_ptr(), layer.weight_scale.data_ptr()}


def test_backward_can_not_be_differentiated_again():
    layer, _ = make_layer(6, 4, 4, bias=False)
    x = torch.randn(2, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_autocast_decides_the_dtype_of_forward_and_backward():
    layer, dense = make_layer(16, 4, 4)
    x = torch.randn(3, 16, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = layer(x), dense(y)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    found.sum().backward()
    expected.sum().backward()
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("cast", "dtype"),
    [
        (lambda layer: layer.half(), torch.float16),
        (lambda layer: layer.bfloat16(), torch.bfloat16),
        (lambda layer: layer.double(), torch.float64),
        (lambda layer: layer.to(torch.bfloat16), torch.bfloat16),
        (lambda layer: layer.to(device="cpu", dtype=torch.float16), torch.float16),
    ],
)
def test_casting_leaves_packed_weights_and_scales_as_they_are(cast, dtype):
    layer, _ = make_layer(6, 4, 4)
    before = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight_scale.copy_(torch.rand(4))  # needs 24 bits
    scale = layer.weight_scale.detach().clone()
    cast(layer)
    assert layer.bias.dtype == dtype
    assert layer.weight.dtype == torch.int8
    assert torch.equal(layer.weight, before.weight)
    assert layer.weight_scale.dtype == torch.float32
    assert torch.equal(layer.weight_scale, scale)
    assert not layer.weight_scale.requires_grad


def test_a_layer_whose_tensors_are_replaced_by_copies_stays_what_it_is():
    # Several processes on one machine share a model's memory this way.
    layer, _ = make_layer(6, 4, 4)
    names, scale = list(layer.state_dict()), layer.weight_scale.clone()
    packed, place = layer.weight.clone(), layer.weight.data_ptr()
    layer._apply(torch.clone)
    assert list(layer.state_dict()) == names
    assert torch.equal(layer.weight, packed)
    assert layer.weight.data_ptr() != place
    assert torch.equal(layer.weight_scale, scale)
    assert not layer.weight.requires_grad
    with pytest.raises(CheckpointError, match="packed weights don't change"):
        layer.weight.data = packed


def test_the_scales_move_with_the_layer():
    layer = RowwiseQuantLinear(6, 4, bits=4, device="meta")
    assert layer.weight_scale.device.type == "meta"
    layer.to_empty(device="cpu")
    assert layer.weight_scale.device.type == layer.weight.device.type == "cpu"
    assert layer.weight_scale.dtype == torch.float32
    assert layer.to("meta").weight_scale.device.type == "meta"


def test_a_state_dict_with_float16_scales_is_loaded_into_float32():
    layer, _ = make_layer(6, 4, 4)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    state["weight_scale"] = state["weight_scale"].half()
    other = RowwiseQuantLinear(6, 4, bits=4, bias=True)
    other.load_state_dict(state)
    assert other.weight_scale.dtype == torch.float32
    x = torch.randn(2, 6)
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("bits", BITS)
def test_peft_finds_the_dense_weight(bits):
    from peft.utils.integrations import dequantize_module_weight

    layer, dense = make_layer(6, 4, bits)
    assert torch.equal(dequantize_module_weight(layer), dense.weight)
    assert layer.W_q is layer.weight
    assert layer.num_weights == dense.weight.numel()


@pytest.mark.parametrize("bits", BITS)
def test_a_copy_gives_the_same_result(bits):
    layer, _ = make_layer(6, 4, bits)
    x = torch.randn(2, 6)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_new_values_for_a_packed_weight_are_refused():
    layer, _ = make_layer(6, 4, 8)
    with pytest.raises(CheckpointError, match="dequantize"):
        layer.weight.data = torch.zeros(4, 6, dtype=torch.int8)


@pytest.mark.parametrize("bits", BITS)
def test_a_pickled_layer_is_the_same_and_still_refuses_new_values(tmp_path, bits):
    layer, _ = make_layer(6, 4, bits)
    torch.save(layer, tmp_path / "layer.pt")
    again = torch.load(tmp_path / "layer.pt", weights_only=False)
    x = torch.randn(2, 6)
    assert list(again.state_dict()) == list(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    assert not again.weight.requires_grad
    with pytest.raises(CheckpointError, match="packed weights don't change"):
        again.weight.data = torch.zeros_like(layer.weight)


def test_inputs_that_do_not_fit_are_refused():
    layer, _ = make_layer(6, 4, 4)
    with pytest.raises(TypeError, match="int64"):
        layer(torch.ones(2, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape \(2, 3\); its last size must be 6"):
        layer(torch.randn(2, 3))
    with pytest.raises(CheckpointError, match="found 7 input features"):
        RowwiseQuantLinear(7, 4, bits=4)


def test_the_layer_prints_its_bits():
    assert "in_features=6, out_features=4, bias=False, bits=8" in repr(
        RowwiseQuantLinear(6, 4, bits=8)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("in_features", "out_features"), [(4096, 27392), (13696, 4096)])
def test_a_layer_of_the_6b_model_takes_64_mb_at_most(in_features, out_features, dtype):
    packed = torch.randint(-128, 128, (out_features, in_features // 2), dtype=torch.int8)
    scale = torch.rand(out_features)
    x = torch.randn(16, in_features).to(dtype).requires_grad_()
    gradient = torch.randn(16, out_features).to(dtype)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
        result = rowwise_linear(x, packed, scale, 4)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
        result.backward(gradient)
    # The buffer of a block is among it, so the figures are not those of an idle profiler.
    assert 2**20 < peak_bytes(forward) <= 64e6
    assert 2**20 < peak_bytes(backward) <= 64e6


def peak_bytes(run: profile) -> int:
    """The most bytes that were held at once of those that torch's allocator gave in the run."""
    events = run.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in changes))
