"""Counting leaves a model as it was found: from shapes, on real tensors, and after an error."""

import functools
import random
import threading
import types

import numpy as np
import pytest
import torch
from nets import Residual, Routed, Transformer
from torch import nn

import stagemeter
from stagemeter import StagemeterError


class Eventful(nn.Module):
    """Changes all that running a module may change, and asks for a value so that it really runs."""

    def __init__(self, fail=False):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.dropout, self.fail = nn.Dropout(0.5), fail

    def forward(self, x):
        self.calls = self.calls + 1
        self.norm.num_batches_tracked.add_(1)
        random.random(), np.random.random(), torch.rand(1)
        x = self.dropout(self.linear(self.norm(x)))
        if x.sum().item() > 1e9 or self.fail:
            raise ArithmeticError("as a model may")
        return x


def state(model):
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "identities": {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]},
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "training": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()),
        "global hooks": (
            len(torch.nn.modules.module._global_forward_hooks),
            len(torch.nn.modules.module._global_forward_pre_hooks),
        ),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_same(found, left):
    assert found.keys() == left.keys()
    for name, tensor in found["tensors"].items():
        assert torch.equal(tensor, left["tensors"][name]), name
    for name, gradient in found["gradients"].items():
        assert gradient is left["gradients"][name], name
    assert torch.equal(found["random"][2], left["random"][2])
    assert found["random"][:2] == left["random"][:2]
    for key in ("identities", "training", "hooks", "attributes", "global hooks", "grad mode"):
        assert found[key] == left[key], key


@pytest.mark.parametrize("mode", ["inference", "train"])
@pytest.mark.parametrize(
    ("make", "x"),
    [
        (Residual, torch.randn(2, 3, 24, 24)),
        (lambda: Transformer("reentrant"), torch.randn(2, 5, 16, requires_grad=True)),
        (Routed, torch.randn(9, 8)),
        (Eventful, torch.randn(3, 4)),
        (lambda: Eventful(fail=True), torch.randn(3, 4)),
    ],
    ids=["from shapes", "checkpointed", "on real tensors", "eventful", "failing"],
)
def test_model_and_input_are_left_alone(make, x, mode):
    model = make()
    model.train(mode == "inference")
    model(torch.zeros_like(x)).sum().backward() if not getattr(model, "fail", False) else None
    found, values = state(model), x.detach().clone()
    if getattr(model, "fail", False):
        with pytest.raises(ArithmeticError, match="as a model may") as raised:
            stagemeter.analyze(model, x, mode=mode)
        assert raised.value.__notes__ == ["in the model itself"]
    else:
        stagemeter.analyze(model, x, mode=mode)
    assert_same(found, state(model))
    assert torch.equal(x, values)
    assert x.grad is None


def test_attention_on_the_meta_device_is_torchs_own_again():
    query = torch.empty(1, 2, 3, 4, device="meta", requires_grad=True)
    before = nn.functional.scaled_dot_product_attention(query, query, query).grad_fn.name()
    with pytest.raises(RuntimeError):
        stagemeter.analyze(Transformer(), stagemeter.spec(1, 2, 3), mode="train")
    assert nn.functional.scaled_dot_product_attention(query, query, query).grad_fn.name() == before


def test_graph_that_waits_for_its_backward_pass_still_can():
    model, x = Routed(), torch.randn(6, 8)
    waiting = model(x).sum()
    stagemeter.analyze(model, x, mode="train")
    waiting.backward()
    assert model.router.weight.grad is None or torch.isfinite(model.router.weight.grad).all()
    assert any(expert.weight.grad is not None for expert in model.experts)


class Locked(nn.Module):
    """Holds what cannot be copied, as models do that share something with other threads."""

    def __init__(self):
        super().__init__()
        self.lock, self.linear = threading.Lock(), nn.Linear(4, 4)

    def forward(self, x):
        with self.lock:
            return self.linear(x)


def test_model_that_cannot_be_copied_runs_itself():
    model, x = Locked(), torch.randn(3, 4)
    found = state(model)
    for inputs in (x, stagemeter.spec(3, 4)):
        report = stagemeter.analyze(model, inputs)
        assert report.total.macs == 3 * 16
        assert report.notes[0].startswith("the pass ran on real tensors, since it cannot be copied (TypeError: ")
    assert_same(found, state(model))


def test_lazy_modules_are_not_made_by_counting():
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(StagemeterError, match=r"model: 0\.weight of Sequential is lazy.* Run the model once"):
        stagemeter.analyze(model, torch.randn(2, 3))
    assert nn.parameter.is_lazy(model[0].weight)


def by_closure(model):
    original = model.forward

    def forward(*args, **kwargs):
        return original(*args, **kwargs)

    return forward


PATCHES = {
    "closure": by_closure,
    "closure of a closure": lambda model: (lambda inner: lambda x: inner(x))(by_closure(model)),
    "default": lambda model: lambda x, original=model.forward: original(x),
    "partial": lambda model: functools.partial(lambda original, x: original(x), model.forward),
    "method": lambda model: types.MethodType((lambda original: lambda self, x: original(x))(model.forward), model),
}


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
def test_patched_forward_is_counted_from_shapes_on_a_copy(patch):
    """Packages such as MLflow put a function on the model, which holds the model's own method."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 8)))
    expected = stagemeter.analyze(model, torch.ones(2, 4), mode="train").to_dict()
    model.forward = patched = patch(model)
    model[1].forward = patch(model[1])
    report = stagemeter.analyze(model, torch.ones(2, 4), mode="train")
    assert report.counted_on == "meta"
    assert report.to_dict() == expected
    assert model.forward is patched


def test_patched_forward_does_its_own_work():
    """A function of the model's own is run, not replaced by the method of its class."""
    model = nn.Linear(4, 4)
    model.forward = by_closure(model)
    once, twice = model.forward, lambda x: once(once(x))
    model.forward = twice
    assert stagemeter.analyze(model, torch.ones(2, 4)).total.macs == 2 * 2 * 4 * 4
