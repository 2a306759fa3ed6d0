"""Layers that are alike are walked once, and layers that only look alike are not."""

import pytest
import torch
from torch import nn

from stagemeter import CostCounter


class Layer(nn.Module):
    """Counts its own calls, outside of what makes layers alike."""

    calls: list[int] = []  # noqa: RUF012

    def __init__(self, index, width=4, scale=1.0, **factory):
        super().__init__()
        self.layer_idx = index
        self.scale = scale
        self.inner = nn.Linear(width, width, **factory)

    def forward(self, x, cache=None):
        Layer.calls.append(self.layer_idx)
        return self.inner(x) * self.scale


class Model(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, **kwargs):
        for layer in self.layers:
            x = layer(x, **kwargs)
        return x


@pytest.fixture(autouse=True)
def no_calls():
    Layer.calls.clear()


def count(model, x, walk_every_layer=False, **kwargs):
    with torch.no_grad(), CostCounter(model, walk_every_layer) as counter:
        out = model(x, **kwargs)
    return counter.counts(), out


def alike(number=12, **factory):
    return Model([Layer(index, device="meta", **factory) for index in range(number)])


def test_twelve_layers_that_are_alike_are_walked_once():
    model = alike()
    counts, out = count(model, torch.ones(3, 4, device="meta"))
    assert Layer.calls == [0]
    everything, walked_out = count(model, torch.ones(3, 4, device="meta"), walk_every_layer=True)
    assert Layer.calls == [0, *range(12)]
    assert counts.by_module == everything.by_module
    assert counts.called == everything.called
    assert (out.shape, out.dtype, out.stride()) == (walked_out.shape, walked_out.dtype, walked_out.stride())


def test_costs_are_booked_under_each_layers_own_name():
    counts, _ = count(alike(), torch.ones(3, 4, device="meta"))
    assert counts.of("layers.1.inner").macs == counts.of("layers.10.inner").macs == 3 * 4 * 4
    assert counts.of("layers").macs == 12 * 3 * 4 * 4


@pytest.mark.parametrize(
    "other",
    [
        Layer(1, scale=2.0, device="meta"),
        Layer(1, bias=False, device="meta"),
        Layer(1, dtype=torch.float64, device="meta").requires_grad_(False),
        nn.Linear(4, 4, device="meta"),
        Layer(1, device="meta").eval(),
    ],
    ids=["attribute", "parameters", "data type", "class", "mode"],
)
def test_layers_that_differ_are_walked(other):
    model = Model([Layer(0, device="meta"), other])
    x = torch.ones(3, 4, device="meta")
    if isinstance(other, nn.Linear):
        with torch.no_grad(), CostCounter(model) as counter:
            model.layers[1](model.layers[0](x))
        assert counter.counts().of("layers.1").macs == 48
        return
    with torch.no_grad(), CostCounter(model):
        model.layers[0](x)
        model.layers[1](x.to(other.inner.weight.dtype))
    assert Layer.calls == [0, 1]


def test_calls_that_differ_are_walked():
    model = alike(2)
    with torch.no_grad(), CostCounter(model) as counter:
        model.layers[0](torch.ones(3, 4, device="meta"))
        model.layers[1](torch.ones(5, 4, device="meta"))
    assert Layer.calls == [0, 1]
    assert counter.counts().of("layers.1").macs == 5 * 4 * 4


def test_real_tensors_are_walked():
    count(Model([Layer(0), Layer(1)]), torch.ones(3, 4))
    assert Layer.calls == [0, 1]


def test_layers_are_walked_where_gradients_are_kept():
    model = alike(2)
    with CostCounter(model):
        model(torch.ones(3, 4, device="meta"))
    assert Layer.calls == [0, 1]


class Slot:
    def __init__(self, length):
        self.keys = torch.empty(1, length, device="meta")


class Cache:
    def __init__(self, *lengths):
        self.layers = [Slot(length) for length in lengths]


def test_layers_whose_places_in_the_cache_differ_are_walked():
    x = torch.ones(3, 4, device="meta")
    count(alike(3), x, cache=Cache(7, 7, 9))
    assert Layer.calls == [0, 2]


def test_a_forward_that_someone_else_replaced_is_left_alone():
    model = alike(2)
    replaced = model.layers[1].forward
    model.layers[1].forward = lambda x: replaced(x)
    mine = model.layers[1].forward
    count(model, torch.ones(3, 4, device="meta"))
    assert Layer.calls == [0, 1]
    assert model.layers[1].forward is mine
    assert "forward" not in vars(model.layers[0])
