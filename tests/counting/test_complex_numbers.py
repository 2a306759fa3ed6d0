"""Complex numbers: four real multiply-accumulates per product, two real numbers per element."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import stagemeter

quick = settings(max_examples=10, deadline=None)
sizes = st.integers(1, 5)


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def cost_of(function, *args, mode="inference"):
    return stagemeter.analyze(Calls(function), args=args, mode=mode).total


PRODUCTS = {
    "matmul": (lambda a, b: a @ b, (3, 4), (4, 5)),
    "bmm": (torch.bmm, (2, 3, 4), (2, 4, 5)),
    "linear": (functional.linear, (2, 3, 4), (5, 4)),
    "einsum": (lambda a, b: torch.einsum("bij,bjk->bik", a, b), (2, 3, 4), (2, 4, 5)),
    "dot": (torch.dot, (7,), (7,)),
    "vdot": (torch.vdot, (7,), (7,)),
    "mv": (torch.mv, (3, 4), (4,)),
    "conv1d": (functional.conv1d, (2, 3, 8), (4, 3, 3)),
    "conv2d": (functional.conv2d, (2, 3, 8, 7), (4, 3, 3, 2)),
    "conv3d": (functional.conv3d, (1, 2, 4, 5, 6), (3, 2, 2, 2, 2)),
    "conv_transpose2d": (functional.conv_transpose2d, (2, 3, 4, 5), (3, 4, 2, 2)),
    "grouped convolution": (lambda x, w: functional.conv1d(x, w, groups=2), (2, 4, 9), (6, 2, 3)),
}


@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_complex_product_is_four_real_ones(name, mode):
    function, *shapes = PRODUCTS[name]
    train = mode == "train"
    real = [torch.randn(shape, requires_grad=train) for shape in shapes]
    complex_ = [torch.randn(shape, dtype=torch.complex64, requires_grad=train) for shape in shapes]
    as_loss = (lambda *args: torch.view_as_real(function(*args)).sum()) if train else function
    expected = cost_of(function, *real, mode=mode).macs
    assert expected > 0
    assert cost_of(as_loss, *complex_, mode=mode).macs == 4 * expected


@quick
@given(sizes, sizes, sizes)
def test_a_complex_element_is_two_real_numbers(rows, inner, columns):
    with torch.no_grad(), stagemeter.CostCounter() as counter:
        torch.randn(rows, inner, dtype=torch.complex64) @ torch.randn(inner, columns, dtype=torch.complex64)
    cost = counter.counts().of("")
    assert cost.macs == 4 * rows * inner * columns
    assert cost.activations == 2 * rows * columns
    assert cost.activation_reads == 2 * (rows * inner + inner * columns)


def test_a_complex_weight_that_is_read_as_real_numbers_is_read_once():
    layer = nn.Linear(3, 4, bias=False, dtype=torch.complex64)
    with torch.no_grad(), stagemeter.CostCounter(layer) as counter:
        layer(torch.randn(2, 3, dtype=torch.complex64))
        torch.view_as_real(layer.weight).flatten(1) @ torch.randn(6, 5)
    cost = counter.counts().of("")
    assert cost.weight_reads == 2 * (2 * 4 * 3)
    assert cost.macs == 4 * 2 * 3 * 4 + 4 * 6 * 5
