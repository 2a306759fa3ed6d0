"""``count()`` wraps the user's own code: it raises no errors of ours, and lists what it cannot count."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import stagemeter
from stagemeter import register_formula, unregister_formula


@pytest.fixture
def broken_operator():
    library = torch.library.Library("stagemeter_broken", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeExplicitAutograd")
    packet = torch.ops.stagemeter_broken.twice

    @register_formula(packet)
    def formula(x, *, out):
        raise ValueError("no idea")

    yield packet
    unregister_formula(packet)
    library._destroy()


def test_a_formula_that_fails_lists_its_operator(broken_operator):
    with stagemeter.count() as counted:
        out = broken_operator(torch.ones(2))
    assert torch.equal(out, torch.full((2,), 2.0))
    assert counted.flops == 0
    assert counted.unsupported == {"stagemeter_broken.twice": 1}
    assert counted.notes == ["stagemeter_broken.twice: ValueError: no idea"]


def test_a_formula_that_fails_is_an_error_of_an_analysis(broken_operator):
    class Twice(nn.Module):
        def forward(self, x):
            return broken_operator(x)

    with pytest.raises(ValueError, match="no idea"):
        stagemeter.analyze(Twice(), torch.ones(2))


def test_errors_of_the_code_are_its_own():
    with stagemeter.count() as counted:
        torch.ones(2, 3) @ torch.ones(3, 4)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            torch.ones(2, 3) @ torch.ones(4, 5)
    assert counted.flops == 2 * 2 * 3 * 4


def test_lazy_modules_are_made_inside_of_the_block():
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyLinear(4))
    with stagemeter.count(model) as counted:
        model(torch.ones(3, 5))
    assert counted.flops == 2 * 3 * (5 * 8 + 8 * 4)


def test_modules_that_have_no_hash():
    class Compared(nn.Linear):
        __hash__ = None

        def __eq__(self, other):
            return False

    model = Compared(4, 8)
    with stagemeter.count() as counted:
        model(torch.ones(3, 4))
    assert counted.flops == 2 * 3 * 4 * 8


def test_fake_tensors():
    with FakeTensorMode(), stagemeter.count() as counted:
        functional.linear(torch.ones(3, 4), torch.ones(8, 4))
    assert counted.flops == 2 * 3 * 4 * 8


def test_tracing_and_exporting_count_what_runs_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    x = torch.ones(3, 4)
    with stagemeter.count() as counted:
        exported = torch.export.export(model, (x,))
    assert exported.graph_signature is not None
    tracing = counted.flops
    with stagemeter.count() as counted:
        exported.module()(x)
    assert counted.flops == 2 * 3 * 4 * 8
    assert tracing in (0, 2 * 3 * 4 * 8)


def test_another_dispatch_mode_beside_it():
    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Watching(), stagemeter.count() as inner, Watching():
        functional.linear(torch.ones(3, 4), torch.ones(8, 4))
    assert inner.flops == 2 * 3 * 4 * 8


def test_wrapper_subclasses_are_counted_once():
    left, right = torch.ones(3, 4), torch.ones(4, 8)
    with stagemeter.count() as counted:
        TwoTensor(left, left) @ TwoTensor(right, right)
    assert counted.flops == 2 * 3 * 4 * 8
    assert counted.unsupported == {}


def test_encoders_of_torch_with_nested_sequences():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x = torch.nested.nested_tensor([torch.randn(5, 32), torch.randn(7, 32)])
    with torch.no_grad(), stagemeter.count() as counted:
        layer(x)
    expected = 2 * 12 * (4 * 32 * 32 + 2 * 32 * 64) + 4 * 32 * (25 + 49)
    assert (counted.flops, counted.unsupported) == (expected, {})


def test_attention_of_torch_with_nested_sequences():
    layer = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x = torch.nested.nested_tensor([torch.randn(5, 32), torch.randn(7, 32)])
    with torch.no_grad(), stagemeter.count() as counted:
        layer(x, x, x, need_weights=False)
    assert counted.flops == 2 * 12 * 4 * 32 * 32 + 4 * 32 * (25 + 49)


def test_symbolic_traces_and_stand_ins_of_the_users():
    class Attends(nn.Module):
        def forward(self, x):
            return functional.linear(functional.scaled_dot_product_attention(x, x, x), x[0, 0])

    class Stand:
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return "stands"

    x = torch.randn(1, 2, 4, 8)
    with stagemeter.count() as counted:
        traced = torch.fx.symbolic_trace(Attends())
        assert functional.linear(Stand(), torch.ones(2, 2)) == "stands"
        assert counted.flops == 0
        traced(x)
    assert counted.flops == 2 * 2 * 2 * 4 * 4 * 8 + 2 * 2 * 4 * 8 * 4


def test_numbers_are_whole_while_torchscript_traces():
    with stagemeter.count() as counted:
        torch.jit.trace(nn.Linear(4, 8), torch.ones(3, 4), check_trace=False)
    assert type(counted.flops) is int
    assert counted.flops == 2 * 3 * 4 * 8
