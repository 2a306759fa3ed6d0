"""The counter books each cost at the right module, and leaves no trace in the model."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from stagemeter import CostCounter
from stagemeter.core.cost import total


def count(model, *inputs, **options):
    with torch.no_grad(), CostCounter(model, **options) as counter:
        model(*inputs)
    return counter.counts()


class Parent(nn.Module):
    """Two children and a product of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Sequential(nn.Linear(6, 2), nn.ReLU())

    def forward(self, x):
        y = self.second(self.first(x))
        return y @ y.T


def test_a_parents_count_is_its_childrens_plus_its_own():
    counts = count(Parent(), torch.ones(3, 4))
    own = 3 * 2 * 3
    assert counts.of("first").macs == 3 * 4 * 6
    assert counts.of("second").macs == counts.of("second.0").macs == 3 * 6 * 2
    assert counts.of("").macs == counts.of("first", "second").macs + own
    assert counts.operators("")["mm"].macs == own


def test_a_shared_module_keeps_its_first_name_and_its_calls_add_up():
    shared = nn.Linear(4, 4)
    counts = count(nn.Sequential(shared, nn.ReLU(), shared, shared), torch.ones(2, 4))
    assert counts.of("0").macs == counts.of("").macs == 3 * 2 * 4 * 4
    assert "2" not in counts.by_module


def test_what_runs_outside_of_any_module_is_booked_without_a_name():
    with torch.no_grad(), CostCounter(nn.Linear(2, 2)) as counter:
        torch.ones(2, 3) @ torch.ones(3, 5)
    assert counter.counts().of("").macs == 2 * 3 * 5


def test_modules_that_were_not_called_are_known():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    with torch.no_grad(), CostCounter(model) as counter:
        model["used"](torch.ones(1, 2))
    counts = counter.counts()
    assert counts.called == {"used"}
    assert counts.of("unused") == total([])


class Failing(nn.Module):
    def forward(self, x):
        raise ArithmeticError("as a model may")


class Forgiving(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Failing(), Failing()])
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        for layer in self.layers:
            try:
                layer(x)
            except ArithmeticError:
                x = x + 1
        y = self.last(x)
        return y @ y.T


def test_the_books_are_right_after_an_error_inside_of_a_module():
    counts = count(Forgiving(), torch.ones(2, 4))
    assert counts.of("last").macs == 2 * 4 * 4
    assert counts.of("").macs == 2 * 4 * 4 + 2 * 4 * 2
    assert counts.of("layers").macs == 0


class Stopping(nn.Module):
    """Fails after layers that the counter shares, and after a module with state of its own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2, device="meta"), nn.Linear(2, 2, device="meta")])
        self.norm = nn.BatchNorm1d(2)
        self.failing = Failing()
        self.replaced = None

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        self.norm(torch.ones(2, 2))
        # Not a registered attribute: what the counter has in place while it runs.
        object.__setattr__(self, "replaced", [("forward" in vars(layer)) for layer in self.layers])
        return self.failing(x)


def test_the_model_is_left_as_it_was_found_after_an_error_too():
    model = Stopping().eval()
    before = [dict(vars(module)) for module in model.modules() if module is not model]
    state = {name: tensor.clone() for name, tensor in model.norm.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises(ArithmeticError, match="as a model may"), torch.no_grad(), CostCounter(model):
        model(torch.ones(2, 2, device="meta"))
    assert model.replaced == [True, True]
    assert [dict(vars(module)) for module in model.modules() if module is not model] == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.norm.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_counters_nest():
    model = nn.Linear(3, 3)
    with torch.no_grad(), CostCounter(model) as outer:
        model(torch.ones(1, 3))
        with CostCounter(model) as inner:
            model(torch.ones(2, 3))
    assert inner.counts().of("").macs == 18
    assert outer.counts().of("").macs == 27


@pytest.mark.parametrize("grad", [True, False], ids=["plain", "fast path"])
def test_torchs_own_transformer_layer(grad):
    """In evaluation without gradients torch has a fused path for it, which must not hide its products."""
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True).eval()
    with torch.set_grad_enabled(grad), CostCounter(layer) as counter:
        layer(torch.ones(2, 5, 8))
    counts = counter.counts()
    tokens = 2 * 5
    assert counts.of("").macs == tokens * 8 * 8 * 4 + 2 * tokens * 5 * 8 + 2 * tokens * 8 * 16
    assert not counts.unsupported_of("")


def test_what_a_linear_layer_reads_and_writes():
    cost = count(nn.Linear(3, 5, device="meta"), torch.ones(7, 3, device="meta")).of("")
    assert (cost.weight_reads, cost.activation_reads, cost.activations) == (3 * 5 + 5, 7 * 3, 7 * 5)
    assert (cost.kv_reads, cost.kv_writes) == (0, 0)


def test_a_weight_that_is_converted_first_is_still_a_weight():
    model = nn.Linear(3, 5, bias=False, dtype=torch.bfloat16, device="meta")
    with torch.no_grad(), CostCounter(model) as counter:
        functional.linear(torch.ones(1, 3, device="meta"), model.weight.float())
    assert counter.counts().of("").weight_reads == 15


def test_cached_keys_that_were_expanded_are_not_read_twice():
    query = torch.ones(1, 4, 1, 8, device="meta")
    key, value = torch.ones(1, 2, 6, 8, device="meta"), torch.ones(1, 2, 6, 8, device="meta")
    with torch.no_grad(), CostCounter() as counter:
        counter.record_cache_update(key, value, added=2 * 16)
        expanded = [x[:, :, None].expand(1, 2, 2, 6, 8).reshape(1, 4, 6, 8) for x in (key, value)]
        functional.scaled_dot_product_attention(query, *expanded)
    cost = counter.counts().of("")
    assert (cost.kv_reads, cost.kv_writes) == (2 * 2 * 6 * 8, 32)
    assert cost.activation_reads == 4 * 8


def test_causal_attention_counts_visible_pairs_and_only_where_it_is_causal():
    q = torch.ones(2, 3, 6, 4, device="meta")
    with torch.no_grad(), CostCounter() as counter:
        functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    causal = counter.counts().of("")
    with torch.no_grad(), CostCounter() as counter:
        functional.scaled_dot_product_attention(q, q, q)
        functional.scaled_dot_product_attention(q[:, :, :1], q, q)
    dense = counter.counts().of("")
    assert causal.macs_causal == 2 * 3 * (6 * 7 // 2) * (4 + 4)
    assert dense.macs_causal == dense.macs


class EagerAttention(nn.Module):
    is_causal = True

    def forward(self, x):
        return (x @ x.transpose(1, 2)).softmax(-1) @ x


def test_eager_attention_counts_visible_pairs_in_a_module_that_says_it_is_causal():
    cost = count(EagerAttention(), torch.ones(2, 5, 3)).of("")
    assert (cost.macs, cost.macs_causal) == (2 * 2 * 5 * 5 * 3, 2 * 2 * (5 * 6 // 2) * 3)


def test_values_that_a_model_asserts_are_taken_to_hold_on_meta():
    with CostCounter():
        torch._check_tensor_all(torch.ones(3, device="meta") > 0)
    with pytest.raises(RuntimeError), CostCounter():
        torch._check_tensor_all(torch.zeros(3) > 0)


class Stack(nn.Module):
    """Layers that are alike, which a counter walks once if it is alone."""

    def __init__(self, device):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4, device=device) for _ in range(3)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_counters_that_watch_the_same_pass_see_the_same(device):
    model, x = Stack(device), torch.ones(2, 4, device=device)
    with torch.no_grad(), CostCounter(model) as outer, CostCounter(model) as inner:
        model(x)
    assert outer.counts().by_module == inner.counts().by_module == count(model, x).by_module


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_torchs_counter_may_watch_too(device):
    model, x = Stack(device), torch.ones(2, 4, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as before, CostCounter(model) as counter:
        model(x)
    with torch.no_grad(), CostCounter(model), FlopCounterMode(display=False) as after:
        model(x)
    assert before.get_total_flops() == after.get_total_flops() == counter.counts().of("").flops


def test_inference_mode_changes_nothing():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 9, 5), nn.LayerNorm(5)).eval()
    with torch.inference_mode(), CostCounter(model) as counter:
        model(torch.ones(2, 2, 5, 5))
    assert counter.counts() == count(model, torch.ones(2, 2, 5, 5))


def test_a_restarted_counter_has_forgotten_the_pass_before():
    model = nn.Linear(3, 3)
    with torch.no_grad(), CostCounter(model) as counter:
        model(torch.ones(5, 3))
        counter.restart()
        model(torch.ones(1, 3))
    assert counter.counts().of("").macs == 9


def test_a_module_that_is_not_there_has_no_cost():
    with pytest.raises(KeyError, match="missing"):
        count(nn.Linear(2, 2), torch.ones(1, 2)).of("missing")


def test_gradients_buffers_modes_and_random_numbers_stay():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    model(torch.ones(3, 4)).sum().backward()
    model.eval()
    model[2].train()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    modes = [module.training for module in model.modules()]
    torch.manual_seed(7)
    with torch.no_grad():
        expected = model(torch.ones(3, 4))
    random = torch.get_rng_state()
    torch.manual_seed(7)
    with torch.no_grad(), CostCounter(model):
        out = model(torch.ones(3, 4))
    assert torch.equal(out, expected)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(map(torch.equal, gradients, [parameter.grad for parameter in model.parameters()]))
    assert all(map(torch.equal, buffers, model.buffers()))
    assert modes == [module.training for module in model.modules()]


def test_results_are_those_of_a_model_that_is_not_counted():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = model(x)
        with CostCounter(model):
            assert torch.allclose(model(x), expected, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("weights", [True, False], ids=["with weights", "without weights"])
def test_torchs_own_attention_module(device, weights):
    batch, queries, keys, width = 2, 5, 7, 8
    model = nn.MultiheadAttention(width, 2, kdim=6, vdim=4, batch_first=True, device=device).eval()
    operands = [torch.ones(batch, *shape, device=device) for shape in ((queries, width), (keys, 6), (keys, 4))]
    with torch.no_grad(), CostCounter(model) as counter:
        model(*operands, need_weights=weights)
    projections = batch * (queries * width + keys * 6 + keys * 4 + queries * width) * width
    assert counter.counts().of("").macs == projections + 2 * batch * queries * keys * width
    assert not counter.counts().unsupported_of("")


def test_a_deep_parents_count_is_that_of_its_children():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoder(layer, 3), nn.Sequential(nn.Linear(8, 3), nn.ReLU()))
    counts = count(model, torch.ones(2, 5, 8))
    for name, module in model.named_modules():
        children = [f"{name}.{child}".lstrip(".") for child, _ in module.named_children()]
        if isinstance(module, (nn.Sequential, nn.TransformerEncoder, nn.ModuleList)):
            assert counts.of(name) == counts.of(*children)


def test_reads_of_a_convolution():
    cost = count(nn.Conv2d(3, 4, 3, device="meta"), torch.ones(2, 3, 6, 6, device="meta")).of("")
    assert (cost.weight_reads, cost.activation_reads, cost.activations) == (4 * 3 * 9 + 4, 2 * 3 * 36, 2 * 4 * 16)


def test_a_part_of_a_weight_is_read_in_part():
    model = nn.Linear(3, 6, bias=False, device="meta")
    with torch.no_grad(), CostCounter(model) as counter:
        functional.linear(torch.ones(1, 3, device="meta"), model.weight[:2])
    assert counter.counts().of("").weight_reads == 6


def test_an_activation_that_was_repeated_is_read_once():
    with torch.no_grad(), CostCounter() as counter:
        torch.bmm(torch.ones(1, 2, 3, device="meta").expand(5, 2, 3), torch.ones(5, 3, 4, device="meta"))
    cost = counter.counts().of("")
    assert cost.macs == 5 * 2 * 3 * 4
    assert cost.activation_reads == 2 * 3 + 5 * 3 * 4
