"""fvcore's classes on our counts: equal to fvcore's own numbers where it can trace a net."""

import pytest
import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis, flop_count_table, parameter_count
from torch import nn

from stagemeter import CostCounter
from stagemeter.counting.fvcore_view import CountedActivations, CountedFlops, module_table

#: What fvcore counts and torch's convention does not.
NORMS = {"batch_norm", "layer_norm", "group_norm", "adaptive_avg_pool2d"}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.block(self.stem(x))
        return self.head(self.pool(x).flatten(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(6, 18)

    def forward(self, x):
        query, key, value = self.project(x).chunk(3, dim=-1)
        return torch.matmul(torch.matmul(query, key.transpose(1, 2)).softmax(-1), value)


NETS = {
    "convolutions": (Net(), (torch.ones(2, 3, 17, 17),)),
    "perceptron": (nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2)), (torch.ones(3, 4),)),
    "attention": (Attention(), (torch.ones(2, 5, 6),)),
}


@pytest.fixture(params=NETS)
def net(request):
    model, inputs = NETS[request.param]
    model.eval()
    with torch.no_grad(), CostCounter(model) as counter:
        model(*inputs)
    return model, inputs, counter.counts()


def test_flops_are_fvcores_norms_left_out(net):
    model, inputs, counts = net
    theirs = FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    ours = CountedFlops(model, counts)
    norms = sum(value for name, value in theirs.by_operator().items() if name in NORMS)
    assert ours.total() == theirs.total() - norms
    per_module = {
        name: sum(value for operator, value in operators.items() if operator not in NORMS)
        for name, operators in theirs.by_module_and_operator().items()
    }
    assert dict(ours.by_module()) == per_module


def test_activations_are_fvcores(net):
    model, inputs, counts = net
    theirs = ActivationCountAnalysis(model, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    ours = CountedActivations(model, counts)
    assert ours.total() == theirs.total()
    assert dict(ours.by_module()) == dict(theirs.by_module())


def test_all_views_answer():
    model, inputs = NETS["convolutions"]
    with torch.no_grad(), CostCounter(model) as counter:
        model(*inputs)
    flops = CountedFlops(model, counter.counts())
    assert sum(flops.by_operator().values()) == flops.total()
    assert flops.by_module_and_operator()["head"] == {"linear": 2 * 8 * 5}
    assert flops.uncalled_modules() == {"unused"}
    assert not flops.unsupported_ops()
    assert parameter_count(model)["head"] == 45


def test_the_table_is_fvcores_own():
    model, inputs = NETS["convolutions"]
    with torch.no_grad(), CostCounter(model) as counter:
        model(*inputs)
    table = module_table(model, counter.counts())
    assert "#flops" in table
    assert "#activations" in table
    assert "head" in table


class Solver(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(3, 3)

    def forward(self, x):
        return torch.linalg.solve(x, self.project(x))


def test_what_has_no_formula_is_listed_per_module():
    model = nn.ModuleDict({"solver": Solver(), "unused": nn.Linear(2, 2)})
    with torch.no_grad(), CostCounter(model) as counter:
        model["solver"](torch.eye(3))
    flops = CountedFlops(model, counter.counts())
    assert flops.unsupported_ops()["aten._linalg_solve_ex"] == 1
    assert flops.unsupported_ops("solver")["aten._linalg_solve_ex"] == 1
    assert not flops.unsupported_ops("solver.project")
    assert flops.uncalled_modules() == {"", "unused"}
    assert flops.total("solver") == 27


def test_the_tables_of_both_are_the_same_where_there_are_no_norms():
    model, inputs = NETS["perceptron"]
    with torch.no_grad(), CostCounter(model) as counter:
        model(*inputs)
    theirs = FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False)
    activations = ActivationCountAnalysis(model, inputs).unsupported_ops_warnings(False)
    ours = module_table(model, counter.counts())
    assert ours == flop_count_table(theirs, max_depth=4, activations=activations)
