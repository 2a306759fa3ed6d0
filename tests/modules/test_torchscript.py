"""TorchScript: scripted, traced and frozen modules, alone, inside of others, and functions."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import stagemeter
from stagemeter import StagemeterError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.* is (deprecated|not supported):DeprecationWarning")


def plain():
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


def convolutional():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()


KINDS = {
    "script": lambda model, x: torch.jit.script(model),
    "trace": torch.jit.trace,
    "freeze": lambda model, x: torch.jit.freeze(torch.jit.script(model)),
    "freeze a trace": lambda model, x: torch.jit.freeze(torch.jit.trace(model, x)),
    "optimize": lambda model, x: torch.jit.optimize_for_inference(torch.jit.script(model)),
}
PLAIN = 2 * 4 * (32 * 64 + 64 * 8)
CONVOLUTIONAL = 2 * 2 * (6 * 6 * 8 * 3 * 9 + 4 * 4 * 8 * 8 * 9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("runs", [0, 3])
def test_linear_layers(kind, runs):
    x = torch.randn(4, 32)
    model = KINDS[kind](plain(), x)
    for _ in range(runs):  # After a few runs TorchScript makes another plan.
        model(x)
    report = stagemeter.analyze(model, x)
    assert report.total.flops == PLAIN
    assert not report.unsupported
    with stagemeter.count() as counted:
        model(x)
    assert (counted.flops, counted.unsupported) == (PLAIN, {})


@pytest.mark.parametrize("kind", ["script", "trace", "freeze", "freeze a trace"])
def test_convolutions(kind):
    x = torch.randn(2, 3, 8, 8)
    report = stagemeter.analyze(KINDS[kind](convolutional(), x), x)
    assert report.total.flops == CONVOLUTIONAL
    assert not report.unsupported


def test_kernels_past_the_dispatcher_are_listed():
    x = torch.randn(2, 3, 8, 8)
    model = KINDS["optimize"](convolutional(), x)
    report = stagemeter.analyze(model, x)
    hidden = 2 if "prim::mkldnn_convolution" in str(model.graph) else 0
    assert report.unsupported.get("prim.mkldnn_convolution", 0) == hidden
    assert report.total.flops == (0 if hidden else CONVOLUTIONAL)
    with stagemeter.count() as counted:
        model(x)
    assert counted.unsupported.get("prim.mkldnn_convolution", 0) == hidden


class Holder(nn.Module):
    """A module of TorchScript between others."""

    def __init__(self, script):
        super().__init__()
        self.script, self.layer = script, nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(self.script(x))


@pytest.mark.parametrize("kind", KINDS)
def test_inside_of_a_module(kind):
    x = torch.randn(4, 32)
    model = Holder(KINDS[kind](plain(), x))
    report = stagemeter.analyze(model, x)
    assert report.stages["script"].flops == PLAIN
    assert report.stages["layer"].flops == 2 * 4 * 8 * 8
    assert not report.unsupported
    shapes = stagemeter.analyze(model, stagemeter.spec(4, 32))
    assert shapes.total.flops == report.total.flops


@pytest.mark.parametrize("kind", ["script", "trace"])
def test_training(kind):
    x = torch.randn(4, 32)
    model = KINDS[kind](plain(), x)
    report = stagemeter.analyze(model, x, mode="train")
    assert report.total.flops_forward == PLAIN
    assert report.total.flops_backward == 2 * PLAIN - 2 * 4 * 32 * 64
    assert not model.training


def test_frozen_weights_have_no_gradient():
    frozen = KINDS["freeze"](plain(), None)
    with pytest.raises(StagemeterError, match="no output of the model has a gradient"):
        stagemeter.analyze(frozen, torch.randn(4, 32), mode="train")
    assert "training" not in vars(frozen)
    report = stagemeter.analyze(Holder(frozen), torch.randn(4, 32), mode="train")
    assert report.stages["script"].flops == PLAIN
    assert report.total.flops_backward == 2 * 4 * 8 * 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_left_as_it_was(kind):
    x = torch.randn(4, 32)
    model = KINDS[kind](plain(), x)
    flags = {name: getattr(module, "training", None) for name, module in model.named_modules()}
    before = model(x)
    stagemeter.analyze(model, x)
    assert flags == {name: getattr(module, "training", None) for name, module in model.named_modules()}
    assert torch.equal(model(x), before)


def test_modules_inside_of_a_script_have_no_numbers_of_their_own():
    x = torch.randn(4, 32)
    report = stagemeter.analyze(torch.jit.script(plain()), x)
    assert not report.stages
    assert report.other.flops == PLAIN
    held = Holder(torch.jit.script(plain()))
    with pytest.raises(StagemeterError, match="TorchScript"):
        stagemeter.analyze(held, x, stages={"first": "script.0"})
    assert stagemeter.analyze(held, x, stages={"all of it": "script"}).stages["all of it"].flops == PLAIN


def test_a_script_without_weights():
    report = stagemeter.analyze(torch.jit.script(plain().to("meta")), stagemeter.spec(4, 32))
    assert (report.total.flops, report.counted_on) == (PLAIN, "meta")


def test_functions_of_torchscript():
    @torch.jit.script
    def project(x, weight):
        y = x @ weight
        for _ in range(2):
            y = y @ weight
        return y

    x, weight = torch.randn(4, 8), torch.randn(8, 8)
    with stagemeter.count() as counted:
        project(x, weight)
    assert (counted.flops, counted.unsupported) == (3 * 2 * 4 * 8 * 8, {})

    class Projects(nn.Module):
        def forward(self, x, weight):
            return project(x, weight)

    for args in ((x, weight), (stagemeter.spec(4, 8), stagemeter.spec(8, 8))):
        assert stagemeter.analyze(Projects(), args).total.flops == 3 * 2 * 4 * 8 * 8


def test_attention_in_a_script():
    class Attends(nn.Module):
        def forward(self, x):
            return functional.scaled_dot_product_attention(x, x, x)

    x = torch.randn(2, 3, 5, 8)
    for model in (torch.jit.script(Attends()), torch.jit.trace(Attends(), x)):
        report = stagemeter.analyze(model, x)
        assert report.total.flops == 2 * 2 * 2 * 3 * 5 * 5 * 8
        assert not report.unsupported


def test_loops_and_branches_of_a_script_count_as_they_run():
    class Loops(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x, steps: int):
            for _ in range(steps):
                x = self.layer(x)
            return x

    model = torch.jit.script(Loops())
    for steps in (0, 1, 3):
        assert stagemeter.analyze(model, (torch.randn(4, 8), steps)).total.flops == steps * 2 * 4 * 8 * 8
