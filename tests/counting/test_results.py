"""Results made from shapes equal torch's, and torch raises the errors of operands that do not fit together."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from stagemeter import CostCounter

MODULES = {
    "batch": (lambda: nn.BatchNorm2d(6), (2, 6, 5, 4)),
    "batch, evaluated": (lambda: nn.BatchNorm1d(6).eval(), (2, 6)),
    "batch, plain": (lambda: nn.BatchNorm2d(6, affine=False, track_running_stats=False), (2, 6, 5, 4)),
    "layer": (lambda: nn.LayerNorm((5, 4)), (2, 6, 5, 4)),
    "layer, plain": (lambda: nn.LayerNorm(4, elementwise_affine=False), (2, 3, 4)),
    "group": (lambda: nn.GroupNorm(3, 6), (2, 6, 5, 4)),
    "instance": (lambda: nn.InstanceNorm2d(6, affine=True), (2, 6, 5, 4)),
    "interpolation": (lambda: nn.Upsample(size=7, mode="linear"), (2, 6, 4)),
}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_are_as_torch_makes_them(kind, dtype, layout):
    make, shape = MODULES[kind]
    model = make().to("meta", dtype)
    x = torch.empty(shape, device="meta", dtype=dtype)
    if len(shape) == 4:
        x = x.to(memory_format=layout)
    x.requires_grad_()
    expected = model(x)
    with CostCounter() as counter:
        out = model(x)
        out.sum().backward()
    assert (out.shape, out.dtype, out.stride()) == (expected.shape, expected.dtype, expected.stride())
    assert x.grad.shape == x.shape
    assert not counter.counts().unsupported_of("")


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.BatchNorm2d(6), (2, 5, 4, 4)),
        (nn.BatchNorm2d(6).eval(), (2, 5, 4, 4)),
        (nn.LayerNorm((5, 4)), (2, 5, 5)),
        (nn.GroupNorm(3, 6), (2, 5, 4, 4)),
        (nn.Linear(3, 4), (2, 5)),
    ],
)
def test_what_does_not_fit_is_an_error(model, shape):
    with pytest.raises(RuntimeError), torch.no_grad(), CostCounter():
        model.to("meta")(torch.empty(shape, device="meta"))


@pytest.mark.parametrize(
    ("query", "key", "value"),
    [
        ((1, 2, 5, 4), (1, 2, 6, 3), (1, 2, 6, 4)),
        ((1, 2, 5, 4), (1, 2, 6, 4), (1, 2, 7, 4)),
        ((1, 3, 5, 4), (1, 2, 6, 4), (1, 2, 6, 4)),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_attention_that_does_not_fit_is_an_error(query, key, value, grad):
    operands = [torch.empty(shape, device="meta", requires_grad=grad) for shape in (query, key, value)]
    with pytest.raises(RuntimeError), CostCounter():
        functional.scaled_dot_product_attention(*operands)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products(dtype):
    def run(device):
        left, right = (torch.zeros(s, device=device, dtype=dtype) for s in ((16, 8), (4, 8, 16)))
        offsets = torch.tensor([4, 8, 12, 16], dtype=torch.int32, device=device)
        with CostCounter() as counter:
            outs = [
                torch._grouped_mm(left, right, offs=offsets),
                torch._grouped_mm(left.t(), torch.zeros((16, 16), device=device, dtype=dtype), offs=offsets),
                torch._grouped_mm(torch.zeros((4, 8, 8), device=device, dtype=dtype), right),
            ]
        return [(out.shape, out.dtype) for out in outs], counter.counts().of("").macs

    assert run("meta") == run("cpu")


@pytest.mark.parametrize("put", [(5, 3), (2, 3), (9,)])
def test_gradient_of_what_is_put_by_a_mask_has_its_shape(put):
    source = torch.empty(put, device="meta", requires_grad=True)
    into, mask = torch.empty(4, 3, device="meta"), torch.empty(4, 1, device="meta", dtype=torch.bool)
    with CostCounter() as counter:
        into.masked_scatter(mask, source).sum().backward()
    assert source.grad.shape == put
    assert not counter.counts().unsupported_of("")
