"""Products in halves are the products, for every number of rows, and into the place that is given.

Expected values are numpy's, in float64.
"""

import numpy as np
import pytest
import torch

from sft_kit.models import row_products
from sft_kit.models.row_products import add_product, multiply

SIZES = [1, 767, 768, 769, 1000, 1535, 1536]
"""Rows about where halves begin and end."""


def make(rows: int, dtype: torch.dtype, outputs: int = 24) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(rows)
    shapes = ((rows, 16), (16, outputs), (outputs,), (rows, outputs))
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def wide(*given: torch.Tensor) -> list[np.ndarray]:
    return [one.double().numpy() for one in given]


def assert_close(found: torch.Tensor, expected: np.ndarray) -> None:
    room = 2**-7 if found.dtype == torch.bfloat16 else 1e-5
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=room, atol=8 * room)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", SIZES)
def test_products_are_those_of_numpy(rows, dtype):
    x, weight, bias, start = make(rows, dtype)
    x_wide, weight_wide, bias_wide, start_wide = wide(x, weight, bias, start)
    product = x_wide @ weight_wide
    assert_close(multiply(x, weight), product)
    assert_close(multiply(x, weight, bias), product + bias_wide)
    assert_close(multiply(x, weight.t().contiguous().t(), bias), product + bias_wide)
    result = add_product(start, x, weight)
    assert result is start
    assert_close(start, product + start_wide)


@pytest.mark.parametrize(
    ("rows", "outputs", "dtype", "pieces"),
    [
        (767, 768, torch.bfloat16, [767]),
        (768, 768, torch.bfloat16, [384, 384]),
        (1535, 1024, torch.bfloat16, [768, 767]),
        (1536, 768, torch.bfloat16, [1536]),
        (1000, 1025, torch.bfloat16, [1000]),
        (1000, 768, torch.float32, [1000]),
    ],
)
def test_only_narrow_16_bit_products_of_so_many_rows_are_cut(rows, outputs, dtype, pieces):
    x = torch.empty(rows, 1, dtype=dtype)
    weight, result = torch.empty(1, outputs, dtype=dtype), torch.empty(rows, outputs, dtype=dtype)
    found = list(row_products._pieces(x, weight, result))
    assert [len(some) for some, _ in found] == pieces
    assert [len(place) for _, place in found] == pieces
