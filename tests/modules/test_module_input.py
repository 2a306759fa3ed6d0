"""Errors name the unusable input and a remedy."""

import pytest
import torch
from nets import Routed, Transformer
from torch import nn

import stagemeter
from stagemeter import StagemeterError
from stagemeter.modules import run

X = stagemeter.spec(2, 5, 16)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": "blockz.0"}, r"stages: 'blockz\.0' of 'a' is no submodule of the model\. Did you mean 'blocks\.0'"),
        ({"a": "model.head"}, r"'model\.head' of 'a' is no submodule of the model\. Did you mean 'head'"),
        ({"a": "zzzzzzzz"}, r"is no submodule of the model\. Give one of its own, such as blocks, blocks\.0"),
        ({"a": "blocks", "b": "blocks.1.mlp"}, r"stages: 'blocks' of 'a' and 'blocks\.1\.mlp' of 'b' overlap"),
        ({"a": ["head", "head"]}, "stages: 'head' of 'a' and 'head' of 'a' overlap"),
        ({"a": []}, "stages: 'a' has no module"),
        ({"a/b": "head"}, "stages: 'a/b' is no name of a stage"),
        ({"total": "head"}, "stages: 'total' is no name of a stage"),
        ({"a": 3}, "stages: 3 of 'a' is no submodule"),
    ],
)
def test_stages(stages, message):
    with pytest.raises(StagemeterError, match=message):
        stagemeter.analyze(Transformer(), X, stages=stages)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "training"}, "mode: 'training' is unknown"),
        ({"loss": torch.sum}, "loss: there is no backward pass without mode='train'"),
    ],
)
def test_options(options, message):
    with pytest.raises(StagemeterError, match=message):
        stagemeter.analyze(Transformer(), X, **options)


def test_what_is_no_module():
    with pytest.raises(StagemeterError, match=r"model: a function is no module\. Give a torch\.nn\.Module"):
        stagemeter.analyze(lambda x: x, X)


def test_formula_of_what_is_no_operator():
    with pytest.raises(
        TypeError, match=r"operator: .* is a builtin_function_or_method\. Give an operator such as torch\.ops\.aten\.mm"
    ):
        stagemeter.analyze(Transformer(), X, formulas={torch.mm: lambda *args, out: 0})


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("mode", ["inference", "train"])
def test_error_of_the_model_is_its_own_and_says_where(device, mode):
    model = Transformer().to(device)
    with pytest.raises(RuntimeError, match=r"10.?x?.?17.* [x\(X]? ?\[?16|same reduction dim") as raised:
        stagemeter.analyze(model, stagemeter.spec(2, 5, 17), mode=mode)
    assert raised.value.__notes__ == ["in module 'blocks.0.attention.qkv'"]


class NeedsDigits(nn.Module):
    """Takes the number of its rows from the values."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        rows = int(x.sum().item())
        return self.inner(x)[: rows - 5].view(7, 1)


def test_values_that_cannot_be_made_up_are_asked_for():
    with pytest.raises(StagemeterError) as raised:
        stagemeter.analyze(NeedsDigits(), stagemeter.spec(3, 2))
    assert str(raised.value) == (
        "args: aten._local_scalar_dense.default in the model itself reads values, which shapes do not have, and fails "
        "on made-up values of the inputs (RuntimeError in the model itself). "
        "Pass real inputs; the model may stay without weights"
    )


def test_model_that_is_too_large_to_be_made_up(monkeypatch):
    class Little:
        available = 10

    monkeypatch.setattr(run.psutil, "virtual_memory", Little)
    with pytest.raises(
        StagemeterError,
        match=r"model: shapes alone .*aten\.nonzero\.default in the model itself reads values, .*are free",
    ):
        stagemeter.analyze(Routed().to("meta"), stagemeter.spec(4, 8))
    # Real weights need no memory of their own.
    assert stagemeter.analyze(Routed(), torch.randn(4, 8)).counted_on == "cpu"
