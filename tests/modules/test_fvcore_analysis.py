"""fvcore's analyses under their own names: equal where fvcore can trace, and available where it cannot."""

from collections import Counter

import fvcore.nn
import pytest
import torch
from fvcore.nn import flop_count_table, jit_analysis
from nets import Attention, Residual, Routed, Transformer
from torch import nn

import stagemeter
from stagemeter.modules.run import asks_for_values

NAMES = ("FlopCountAnalysis", "ActivationCountAnalysis")


class Norms(nn.Module):
    """Every kind of operator that fvcore has a handle for."""

    def __init__(self):
        super().__init__()
        self.conv, self.batch = nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.group, self.instance = nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)
        self.nearest, self.bilinear = nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.up, self.pool = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.AdaptiveAvgPool2d(2)
        self.linear, self.layer = nn.Linear(16, 5), nn.LayerNorm(5)

    def forward(self, x):
        x = self.bilinear(self.nearest(self.instance(self.group(self.batch(self.conv(x)).relu_()))))
        x = self.layer(self.linear(self.pool(self.up(x)).flatten(1)))
        products = torch.einsum("ab,cb->ac", x, x) + torch.matmul(x, x.t())
        grid = torch.zeros(1, 2, 2, 2)
        return (
            products
            + torch.bmm(x[None], x.t()[None])[0]
            + nn.functional.grid_sample(x[None, None], grid, align_corners=False).sum()
        )


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Sequential(self.a, nn.ReLU())
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.b(self.a(x)) @ x.t()


class Aside(nn.Module):
    """Does its work in a method that is not ``forward``."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def work(self, x):
        return self.linear(x)


class Roundabout(nn.Module):
    """Calls a child by another method, and itself again."""

    def __init__(self):
        super().__init__()
        self.first, self.aside = nn.Linear(4, 4), Aside()

    def forward(self, x, again=2):
        return self(self.first(x), again - 1) if again else self.aside.work(x)


class TwoParents(nn.Module):
    """One module below two others, and another under two names."""

    def __init__(self):
        super().__init__()
        shared, twice = nn.Linear(4, 4), nn.Linear(4, 2)
        self.left, self.right = nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared)
        self.one, self.other = twice, twice

    def forward(self, x):
        x = self.left(x) + self.right(x)
        return self.one(x) + self.other(x)


class Deciding(nn.Module):
    """Looks at a value on its way, of which a trace keeps nothing."""

    def __init__(self):
        super().__init__()
        self.gate, self.work = nn.Linear(4, 1), nn.Linear(4, 4)

    def forward(self, x):
        return self.work(x) if self.gate(x).sum().item() < 1e9 else x


CASES = {
    "roundabout": (Roundabout, (torch.randn(3, 4),)),
    "two parents": (TwoParents, (torch.randn(3, 4),)),
    "deciding": (Deciding, (torch.randn(3, 4),)),
    "norms": (Norms, (torch.randn(2, 3, 16, 16),)),
    "evaluated": (lambda: Norms().eval(), (torch.randn(2, 3, 16, 16),)),
    "shared": (Shared, (torch.randn(3, 4),)),
    "residual": (Residual, (torch.randn(2, 3, 24, 24),)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 3, 2, groups=3), nn.GELU()), (torch.randn(1, 3, 9),)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (torch.randn(1, 2, 4, 4, 4),)),
    "lstm": (lambda: nn.LSTM(4, 4), (torch.randn(3, 1, 4),)),
    "attention": (Attention, (torch.randn(2, 5, 16),)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16), (torch.randn(3, 1, 8),)),
    "one tensor": (lambda: nn.Linear(3, 2), torch.randn(4, 3)),
    "wrapped": (lambda: nn.DataParallel(Shared()), (torch.randn(3, 4),)),
}
#: Arithmetic on sizes, which a jit trace records as if it were on tensors.
ON_SIZES = {"aten::mul", "aten::div", "aten::add", "aten::sub", "aten::unflatten"}


def results(analysis):
    return {
        "by module and operator": analysis.by_module_and_operator(),
        "by module": analysis.by_module(),
        "uncalled": analysis.uncalled_modules(),
        "total": analysis.total(),
    }


def unsupported(analysis, without=()):
    modules = analysis.by_module()
    return {m: Counter({k: v for k, v in analysis.unsupported_ops(m).items() if k not in without}) for m in modules}


@pytest.fixture
def untraceable(monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("no trace today")

    monkeypatch.setattr(jit_analysis, "_get_scoped_trace_graph", refuse)


@pytest.mark.parametrize("mode", ["owner", "caller"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_equal_to_fvcore_where_it_can_trace(case, name, mode):
    make, inputs = CASES[case]
    model = make()
    theirs, ours = (getattr(package, name)(model, inputs).ancestor_mode(mode) for package in (fvcore.nn, stagemeter))
    assert results(ours) == results(theirs)
    assert unsupported(ours) == unsupported(theirs)
    assert isinstance(ours, getattr(fvcore.nn, name))


@pytest.mark.parametrize("mode", ["owner", "caller"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", [case for case in CASES if case != "deciding"])
def test_run_shows_what_a_trace_shows(case, name, mode, monkeypatch):
    make, inputs = CASES[case]
    model = make()
    theirs = getattr(fvcore.nn, name)(model, inputs).ancestor_mode(mode)
    expected, lacking = results(theirs), unsupported(theirs, ON_SIZES)

    def refuse(*arguments):
        raise RuntimeError("no trace today")

    monkeypatch.setattr(jit_analysis, "_get_scoped_trace_graph", refuse)
    ours = getattr(stagemeter, name)(model, inputs).ancestor_mode(mode)
    assert results(ours) == expected
    assert unsupported(ours, ON_SIZES) == lacking
    assert sum(map(len, (m._forward_hooks for m in model.modules()))) == 0


@pytest.mark.usefixtures("untraceable")
def test_run_shows_work_that_a_trace_drops():
    """What only Python looks at is no part of a trace's result, and torch.jit removes it."""
    model, x = Deciding(), torch.randn(3, 4)
    analysis = stagemeter.FlopCountAnalysis(model, x)
    assert analysis.by_module() == Counter({"": 3 * (4 + 16), "gate": 3 * 4, "work": 3 * 16})
    assert analysis.uncalled_modules() == set()


@pytest.mark.usefixtures("untraceable")
def test_meta_tensors_are_counted_and_said_once(caplog):
    model = Transformer().to("meta")
    analysis = stagemeter.FlopCountAnalysis(model, torch.empty(2, 5, 16, device="meta"))
    product = 2 * 5 * 16 * 16
    assert analysis.by_operator() == Counter(
        linear=3 * (3 + 1 + 8) * product + 2 * 5 * 16 * 7, matmul=3 * 2 * 5 * 5 * 16
    )
    assert analysis.total("blocks.0") == 12 * product + 2 * 5 * 5 * 16
    assert "blocks.0.attention" in flop_count_table(analysis)
    said = [record.message for record in caplog.records if "cannot trace" in record.message]
    assert len(said) == 1
    assert said[0].startswith("fvcore cannot trace Transformer (")
    assert said[0].endswith("its operators are taken from a run instead")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_values_that_meta_tensors_lack_are_made_up_and_said(caplog):
    analysis = stagemeter.FlopCountAnalysis(Routed().to("meta"), torch.empty(10, 8, device="meta"))
    assert analysis.by_operator()["linear"] == 10 * 8 * (3 + 8)
    assert analysis.by_module()["router"] == 10 * 8 * 3
    assert any("asks for values that meta tensors do not have" in record.message for record in caplog.records)


def test_model_that_fvcore_cannot_trace():
    """A causal model of transformers, by itself and of what it returns alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    for device in ("cpu", "meta"):
        model = LlamaForCausalLM(config).to(device)
        ids = torch.zeros(1, 6, dtype=torch.long, device=device)
        with pytest.raises(Exception, match=r".+"):
            fvcore.nn.FlopCountAnalysis(model, ids).total()
        for module in model.modules():
            module._forward_hooks.clear(), module._forward_pre_hooks.clear()
        analysis = stagemeter.FlopCountAnalysis(model, ids)
        layer = 6 * (4 * 32 * 32 + 3 * 32 * 48)
        assert analysis.by_operator()["linear"] == 2 * layer + 6 * 32 * 64
        assert analysis.total("lm_head") == 6 * 32 * 64


def test_error_of_the_model_is_raised():
    analysis = stagemeter.FlopCountAnalysis(Transformer(), torch.randn(2, 5, 17))
    with pytest.raises(RuntimeError, match="17"):
        analysis.total()


@pytest.mark.usefixtures("untraceable")
def test_handles_of_ones_own():
    model, x = Norms(), torch.randn(2, 3, 16, 16)

    def doubled(inputs, outputs):
        assert inputs[0].isCompleteTensor()
        return Counter({"mine": 2 * outputs[0].type().sizes()[0]})

    analysis = stagemeter.FlopCountAnalysis(model, x).set_op_handle("aten::linear", doubled, "aten::add", None)
    assert analysis.by_operator()["mine"] == 4
    assert "linear" not in analysis.by_operator()
    assert set(analysis.unsupported_ops()) == {"aten::add_", "aten::sum"}
    other = analysis.copy(new_inputs=torch.randn(6, 3, 16, 16))
    assert type(other) is stagemeter.FlopCountAnalysis
    assert other.by_operator()["mine"] == 12
    assert set(other.unsupported_ops()) == {"aten::add_", "aten::sum"}
    with pytest.raises(ValueError, match="Invalid type"):
        analysis.set_op_handle("aten::linear", lambda inputs, outputs: Counter({"mine": "many"})).total()
    assert analysis.clear_op_handles().total() == 0
    assert analysis.unsupported_ops()["aten::linear"] == 1


@pytest.mark.usefixtures("untraceable")
def test_warnings_are_fvcores(caplog):
    analysis = stagemeter.FlopCountAnalysis(Shared(), torch.randn(3, 4))
    analysis.total()
    messages = [record.message for record in caplog.records if record.name == "fvcore.nn.jit_analysis"]
    assert len(messages) == 1
    assert messages[0].endswith("unused")
    caplog.clear()
    analysis.copy().uncalled_modules_warnings(False).unsupported_ops_warnings(False).total()
    assert not [record for record in caplog.records if record.name == "fvcore.nn.jit_analysis"]
    with pytest.raises(KeyError, match="not among the descendants"):
        analysis.total("nobody")
    with pytest.raises(RuntimeError, match="before calling unsupported_ops"):
        stagemeter.FlopCountAnalysis(Shared(), torch.randn(3, 4)).unsupported_ops()


@pytest.mark.usefixtures("untraceable")
def test_model_is_left_as_it_was_found():
    model = Residual().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, random = torch.randn(1, 3, 24, 24), torch.get_rng_state()
    stagemeter.FlopCountAnalysis(model, x).total()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any(parameter.is_inference() for parameter in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_a_models_own_error_is_not_taken_for_missing_values(caplog):
    model = nn.Linear(3, 4, device="meta")
    with pytest.raises(RuntimeError):
        stagemeter.FlopCountAnalysis(model, torch.ones(2, 5, device="meta")).total()
    assert not any("made up" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("error", "asks"),
    [
        (NotImplementedError("aten::nonzero"), True),
        (RuntimeError("Tensor.item() cannot be called on meta tensors"), True),
        (RuntimeError("Cannot copy out of meta tensor; no data!"), True),
        (RuntimeError("the metadata of this batch is wrong"), False),
    ],
)
def test_errors_that_ask_for_values(error, asks):
    assert asks_for_values(error) is asks
