"""Layers that are alike run once; layers that only look alike all run."""

from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stagemeter import CostCounter


class Layer(nn.Module):
    """Counts its own calls, outside of what makes layers alike."""

    calls: ClassVar[list[int]] = []

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


class Activated(Layer):
    """Holds a function with arguments filled in, made anew for each layer."""

    def __init__(self, index, approximate):
        super().__init__(index, device="meta")
        self.act = partial(nn.functional.gelu, approximate=approximate)


@pytest.mark.parametrize(("others", "walked"), [("tanh", [0]), ("none", [0, 1])])
def test_functions_with_arguments_filled_in_are_compared_by_these(others, walked):
    model = Model([Activated(0, "tanh"), Activated(1, others), Activated(2, "tanh")])
    count(model, torch.ones(3, 4, device="meta"))
    assert Layer.calls == walked


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


class Windowed(Layer):
    """Runs once for each length, and may write to the lengths."""

    def __init__(self, index, writes=False):
        super().__init__(index, device="meta")
        self.writes = writes

    def forward(self, x, lengths):
        for length in lengths.tolist():
            super().forward(x[:length])
        if self.writes:
            lengths += 1
        return x


@pytest.mark.parametrize(("writes", "walked"), [(False, [0, 0]), (True, [0, 0, 1, 1, 2, 2])])
def test_lengths_on_the_cpu_are_compared_by_value(monkeypatch, writes, walked):
    monkeypatch.setattr(Windowed, "__module__", "transformers.models.windowed")
    model = Model([Windowed(index, writes) for index in range(3)])
    counts, _ = count(model, torch.ones(9, 4, device="meta"), lengths=torch.tensor([1, 2]))
    assert Layer.calls == walked
    assert [counts.of(f"layers.{index}").macs // 16 for index in range(3)] == ([3, 5, 7] if writes else [3, 3, 3])
    Layer.calls.clear()
    counts, _ = count(model, torch.ones(9, 4, device="meta"), lengths=torch.tensor([5, 1]))
    assert Layer.calls == walked
    assert counts.of("layers.2").macs == (10 if writes else 6) * 16


class Level(nn.Module):
    """A layer on the CPU whose buffer decides what it returns."""

    def __init__(self, stride):
        super().__init__()
        self.register_buffer("stride", torch.tensor(stride))

    def forward(self, size):
        return (size // self.stride).tolist()


def test_layers_of_other_code_are_walked_where_lengths_decide():
    levels = nn.ModuleList(map(Level, (4, 8, 16)))
    with torch.no_grad(), CostCounter(levels):
        assert [level(torch.tensor([32, 32])) for level in levels] == [[8, 8], [4, 4], [2, 2]]
    model = Model([Windowed(index) for index in range(3)])
    count(model, torch.ones(9, 4, device="meta"), lengths=torch.tensor([1, 2]))
    assert Layer.calls == [0, 0, 1, 1, 2, 2]


def test_tensors_of_inference_mode_are_counted(monkeypatch):
    monkeypatch.setattr(Windowed, "__module__", "transformers.models.windowed")
    model = Model([Windowed(index) for index in range(3)])
    with torch.inference_mode(), CostCounter(model) as counter:
        model(torch.ones(9, 4, device="meta"), lengths=torch.tensor([1, 2]))
    assert counter.counts().of("").macs == 3 * 3 * 16


def test_layers_that_return_values_are_walked():
    class Measuring(Layer):
        def forward(self, x):
            return super().forward(x), torch.tensor(len(x))

    model = Model([Measuring(index, device="meta") for index in range(2)])
    with torch.no_grad(), CostCounter(model):
        sizes = [layer(torch.ones(3, 4, device="meta"))[1].item() for layer in model.layers]
    assert sizes == [3, 3]


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


class Options:
    """Says how often a layer applies itself; not one of the things that calls are compared by."""

    def __init__(self, times):
        self.times = times


class Obedient(Layer):
    def forward(self, x, options):
        for _ in range(options.times):
            x = super().forward(x)
        return x


@pytest.mark.parametrize("fresh", [True, False], ids=["a new object per call", "one object that changes"])
def test_calls_with_objects_that_cannot_be_compared_are_walked(fresh):
    model = Model([Obedient(index, device="meta") for index in range(4)])
    shared = Options(0)
    with torch.no_grad(), CostCounter(model) as counter:
        for times, layer in enumerate(model.layers, 1):
            shared.times = times
            layer(torch.ones(3, 4, device="meta"), Options(times) if fresh else shared)
    assert counter.counts().of("").macs == (1 + 2 + 3 + 4) * 3 * 4 * 4


def test_layers_with_a_hook_inside_are_walked():
    model, extra = alike(4), torch.ones(4, 4, device="meta")
    model.layers[2].inner.register_forward_hook(lambda module, args, out: out + args[0] @ extra)
    counts, _ = count(model, torch.ones(3, 4, device="meta"))
    assert Layer.calls == [0, 2]
    assert counts.of("layers.2").macs == 2 * counts.of("layers.3").macs
    assert counts.by_module == count(model, torch.ones(3, 4, device="meta"), walk_every_layer=True)[0].by_module


def test_all_layers_are_walked_while_someone_else_looks_on():
    with FlopCounterMode(display=False) as flops:
        counts, _ = count(alike(5), torch.ones(3, 4, device="meta"))
    assert Layer.calls == [0, 1, 2, 3, 4]
    assert flops.get_total_flops() == counts.of("").flops


def test_a_layer_that_is_there_thrice_counts_thrice_under_one_name():
    layer = Layer(0, device="meta")
    counts, _ = count(Model([layer, layer, layer]), torch.ones(3, 4, device="meta"))
    assert counts.of("layers.0").macs == counts.of("").macs == 3 * 3 * 4 * 4


def test_lists_of_layers_inside_of_layers():
    model = Model([alike(3) for _ in range(11)])
    counts, _ = count(model, torch.ones(3, 4, device="meta"))
    assert Layer.calls == [0]
    everything, _ = count(model, torch.ones(3, 4, device="meta"), walk_every_layer=True)
    assert counts.by_module == everything.by_module
    assert counts.called == everything.called
    assert counts.of("layers.10.layers.2.inner").macs == 3 * 4 * 4


class Structured(Layer):
    def forward(self, inputs):
        x = super().forward(inputs["x"])
        return {"x": x.transpose(0, 1).contiguous().transpose(0, 1), "kept": (x[:1].half(), None, "name")}


def test_results_of_layers_that_did_not_run_look_like_those_that_did():
    def describe(out):
        half, nothing, name = out["kept"]
        return [(t.shape, t.dtype, t.stride(), t.device.type) for t in (out["x"], half)], nothing, name

    model = Model([Structured(index, device="meta") for index in range(3)])
    with torch.no_grad(), CostCounter(model):
        first, second = (layer({"x": torch.ones(3, 4, device="meta")}) for layer in model.layers[:2])
    assert Layer.calls == [0]
    assert describe(first) == describe(second)
    assert second["x"] is not first["x"]


class Narrow(Layer):
    def forward(self, x):
        return super().forward(x)[:1]


def test_what_is_called_with_other_shapes_after_a_layer_that_was_not_walked():
    counts, out = count(Model([Narrow(index, device="meta") for index in range(4)]), torch.ones(3, 4, device="meta"))
    assert Layer.calls == [0, 1]  # The first takes three rows, the others one.
    assert out.shape == (1, 4)
    assert [counts.of(f"layers.{index}").macs for index in range(4)] == [48, 16, 16, 16]


def test_inputs_of_another_layout_or_type_are_walked():
    model = alike(4)
    with torch.no_grad(), CostCounter(model):
        model.layers[0](torch.ones(4, 4, device="meta"))
        model.layers[1](torch.ones(4, 4, device="meta").t())
        model.layers[2](torch.ones(4, 4, device="meta").contiguous())
        model.layers[3](torch.ones(4, 4, dtype=torch.float64, device="meta").float())
    assert Layer.calls == [0, 1]


class Odd(Layer):
    def forward(self, x):
        return torch.linalg.solve(x.T @ x, super().forward(x).T).T


def test_what_has_no_formula_is_listed_for_every_layer():
    model = Model([Odd(index, device="meta") for index in range(4)])
    counts, _ = count(model, torch.ones(3, 4, device="meta"))
    assert Layer.calls == [0]
    assert counts.unsupported_of("layers.3")["aten._linalg_solve_ex"] == 1
    assert counts.unsupported_of("")["aten._linalg_solve_ex"] == 4


class Breaking(Layer):
    def forward(self, x):
        super().forward(x)
        raise ArithmeticError("after some work")


def test_a_layer_that_failed_is_not_taken_for_one_that_was_walked():
    model = Model([Breaking(index, device="meta") for index in range(3)])
    with torch.no_grad(), CostCounter(model) as counter:
        for layer in model.layers:
            with pytest.raises(ArithmeticError):
                layer(torch.ones(3, 4, device="meta"))
    assert Layer.calls == [0, 1, 2]
    assert counter.counts().of("").macs == 3 * 48
    assert not any("forward" in vars(layer) for layer in model.layers)
