"""torch.func: work that a transform hides, such as the batch of vmap, counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Calls
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import stagemeter


def torchs(function, *args):
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops()


def flops(function, *args, **options):
    """FLOPs of a function, by all ways of counting it."""
    report = stagemeter.analyze(Calls(function), args, **options)
    assert not report.unsupported
    bare = stagemeter.analyze(Calls(function), tuple(arg.to("meta") for arg in args), **options)
    assert bare.total.flops == report.total.flops
    if not options:
        with stagemeter.count() as counted:
            function(*args)
        assert counted.flops == report.total.flops
        assert counted.unsupported == {}
    return report.total.flops


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_members_of_an_ensemble_count(members, rows, batch):
    weights, x = torch.randn(members, 8, 16), torch.randn(rows, 16)
    assert flops(vmap(lambda w: functional.linear(x.to(w.device), w)), weights) == 2 * members * rows * 16 * 8
    nested = vmap(vmap(functional.linear, (0, None)), (None, 0))
    assert flops(nested, torch.randn(batch, rows, 16), weights) == 2 * members * batch * rows * 16 * 8


@pytest.mark.parametrize("in_dims", [(0, None), (1, None), (None, 2), (0, 2), (-1, -1)])
@pytest.mark.parametrize(
    "operation", [torch.matmul, torch.mm, lambda a, b: a @ b, lambda a, b: functional.linear(a, b.mT)]
)
def test_either_side_of_a_product_may_hide_a_batch(operation, in_dims):
    left = {None: (4, 16), 0: (3, 4, 16), 1: (4, 3, 16), -1: (4, 16, 3)}[in_dims[0]]
    right = {None: (16, 8), 2: (16, 8, 3), -1: (16, 8, 3)}[in_dims[1]]
    mapped = vmap(operation, in_dims)
    assert flops(mapped, torch.randn(left), torch.randn(right)) == 2 * 3 * 4 * 16 * 8


@pytest.mark.parametrize("out_dims", [0, 1, -1])
def test_where_the_batch_comes_out_does_not_matter(out_dims):
    mapped = vmap(lambda x: x @ x.mT, out_dims=out_dims)
    assert flops(mapped, torch.randn(3, 4, 5)) == 2 * 3 * 4 * 5 * 4


@pytest.mark.parametrize("size", [None, 1, 2, 3, 7])
def test_chunks_of_a_batch_add_up(size):
    mapped = vmap(lambda x: x @ x.mT, chunk_size=size)
    assert flops(mapped, torch.randn(7, 4, 5)) == 2 * 7 * 4 * 5 * 4


def test_convolutions_over_a_hidden_batch():
    x, weight = torch.randn(3, 2, 4, 8, 8), torch.randn(3, 6, 4, 3, 3)
    one = 2 * 2 * 6 * 6 * 6 * 4 * 3 * 3
    assert flops(vmap(functional.conv2d), x, weight) == 3 * one
    assert flops(vmap(functional.conv2d, (0, None)), x, weight[0]) == 3 * one
    assert flops(vmap(functional.conv2d, (None, 0)), x[0], weight) == 3 * one


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (1, 1, 1)])
def test_attention_over_a_hidden_batch(in_dims):
    query = torch.randn(3, 3, 4, 5, 8)
    key = query if in_dims[1] is not None else query[0]
    one = 2 * 2 * 3 * 4 * 5 * 5 * 8
    assert flops(vmap(functional.scaled_dot_product_attention, in_dims), query, key, key) == 3 * one


def test_a_module_that_is_mapped():
    layer = nn.Linear(16, 8)

    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return vmap(self.layer)(x)

    report = stagemeter.analyze(Mapped(), stagemeter.spec(4, 5, 16))
    assert report.total.flops == report.stages["layer"].flops == 2 * 20 * 16 * 8


def test_layers_that_are_alike_with_and_without_a_batch():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x):
            first, second, third = self.layers
            return vmap(second)(x) + third(first(x[0]))

    report = stagemeter.analyze(Both(), stagemeter.spec(4, 5, 16))
    assert report.total.flops == 2 * 16 * 16 * (4 * 5 + 2 * 5)


def test_random_numbers_and_training_mode():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 4))

        def forward(self, x):
            return vmap(self.net, randomness="different")(x)

    report = stagemeter.analyze(Dropped(), stagemeter.spec(3, 5, 16), mode="train")
    forward = 2 * 15 * (16 * 8 + 8 * 4)
    assert report.total.flops_forward == forward
    assert report.total.flops_backward == 2 * forward - 2 * 15 * 16 * 8
    assert not report.unsupported


def test_an_ensemble_of_modules():
    members = [nn.Linear(16, 8) for _ in range(3)]
    parameters, buffers = stack_module_state(members)
    bare = nn.Linear(16, 8, device="meta")

    def one(parameters, buffers, x):
        return functional_call(bare, (parameters, buffers), (x,))

    with stagemeter.count() as counted:
        vmap(one, (0, 0, None))(parameters, buffers, torch.randn(4, 16))
    assert (counted.flops, counted.unsupported) == (3 * 2 * 4 * 16 * 8, {})


def test_a_call_with_other_parameters_is_a_call():
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return functional_call(self.model, dict(self.model.named_parameters()), (x,))

    report = stagemeter.analyze(Called(), stagemeter.spec(5, 16))
    assert report.stages["model"].flops == report.total.flops == 2 * 5 * (16 * 8 + 8 * 4)


def quadratic(x, weight):
    return (functional.linear(x, weight) ** 2).sum()


@pytest.mark.parametrize(
    "transformed",
    [
        grad(quadratic),
        grad(quadratic, argnums=1),
        grad(quadratic, argnums=(0, 1)),
        lambda x, w: vjp(lambda x, w: functional.linear(x, w), x, w)[1](torch.ones(5, 8, device=x.device)),
        lambda x, w: jvp(lambda w: functional.linear(x, w), (w,), (w,)),
        jacrev(quadratic),
        jacfwd(quadratic),
        hessian(quadratic),
        vmap(grad(quadratic), (0, None)),
        vmap(grad(quadratic, argnums=1), (0, None)),
        lambda x, w: vmap(jacrev(lambda x: functional.linear(x, w)), chunk_size=2)(x),
        grad(lambda x, w: functional.conv1d(x.mT[None], w[:, :, None]).square().sum()),
    ],
)
def test_derivatives_count_as_torch_counts_them(transformed):
    x, weight = torch.randn(5, 16), torch.randn(8, 16)
    assert flops(transformed, x, weight) == torchs(transformed, x, weight) > 0


def test_gradients_by_hand():
    x, weight = torch.randn(5, 16), torch.randn(8, 16)
    product = 2 * 5 * 16 * 8
    assert flops(grad(quadratic), x, weight) == 2 * product
    assert flops(vmap(grad(quadratic, argnums=1), (0, None)), x, weight) == 2 * product
    assert (
        flops(lambda x, w: jacrev(lambda x: functional.linear(x, w))(x).sum(), x[:1], weight) == (1 + 8) * product // 5
    )


def test_gradients_inside_of_a_model_that_trains():
    """A loss of a gradient, as physics-informed networks have it."""

    class Physical(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return vmap(grad(lambda x: self.layer(x).square().sum()))(x)

    report = stagemeter.analyze(Physical(), torch.randn(5, 4), mode="train")
    product = 2 * 5 * 4 * 4
    # The gradient of x is W (W x) twice; of it, W takes part in both, each as a factor beside what the other made.
    assert report.total.flops_forward == 2 * product
    assert report.total.flops_backward == 3 * product
    assert not report.unsupported


def test_forward_mode_gradients_without_torch_func():
    x, weight = torch.randn(5, 16), torch.randn(8, 16)

    def dual():
        with forward_ad.dual_level():
            functional.linear(x, forward_ad.make_dual(weight, weight))

    with stagemeter.count() as counted:
        dual()
    assert counted.flops == torchs(dual) >= 2 * 2 * 5 * 16 * 8


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_gradients_of_attention(device):
    x = torch.randn(2, 3, 4, 8, device=device)
    pairs = 2 * 2 * 3 * 4 * 4 * 8
    with stagemeter.count() as counted:
        grad(lambda x: functional.scaled_dot_product_attention(x, x, x).sum())(x)
    # Of fused attention five products; where torch takes it apart four.
    assert counted.flops in (7 * pairs, 6 * pairs)
    assert counted.unsupported == {}
