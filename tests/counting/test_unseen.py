"""Kernels past torch's dispatcher show where an operator reads memory of torch.empty that none wrote."""

import pytest
import torch
from torch import nn

import stagemeter
from stagemeter.counting.unseen import UNSEEN_KERNEL


def hidden_product(x, w, make):
    out = make(x, w)
    out.detach().numpy()[...] = x.detach().numpy() @ w.detach().numpy()
    return out


MAKERS = {
    "empty": lambda x, w: torch.empty(x.shape[0], w.shape[1]),
    "empty_like": lambda x, w: torch.empty_like(x)[:, : w.shape[1]],
    "new_empty": lambda x, w: x.new_empty(x.shape[0], w.shape[1]),
    "empty_strided": lambda x, w: torch.empty_strided((x.shape[0], w.shape[1]), (w.shape[1], 1)),
}
READERS = {
    "a layer": lambda layer, out: layer(out),
    "an elementwise operator": lambda layer, out: out + 1,
    "a product": lambda layer, out: out @ layer.weight,
    "a copy that is read": lambda layer, out: layer(out.clone()),
    "a view": lambda layer, out: out[:2, 1].sum(),
}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("read", READERS)
def test_a_result_that_nobody_was_seen_to_write_is_listed(make, read):
    layer = nn.Linear(8, 8)
    x, w = torch.randn(4, 16), torch.randn(16, 8)
    with torch.no_grad(), stagemeter.count() as counted:
        READERS[read](layer, hidden_product(x, w, MAKERS[make]))
    assert counted.unsupported == {UNSEEN_KERNEL: 1}


def test_an_analysis_names_it_and_strict_refuses():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.w = nn.Linear(8, 8), nn.Parameter(torch.randn(16, 8))

        def forward(self, x):
            return self.layer(hidden_product(x, self.w, MAKERS["empty"]))

    report = stagemeter.analyze(Net(), args=(torch.randn(4, 16),))
    assert report.unsupported == {UNSEEN_KERNEL: 1}
    assert report.total.macs == 4 * 8 * 8
    with pytest.raises(stagemeter.StagemeterError, match="past torch's dispatcher"):
        stagemeter.analyze(Net(), args=(torch.randn(4, 16),), strict=True)


def test_memory_that_operators_write_to_is_not_listed():
    def run():
        nn.Linear(8, 8)(torch.empty(3, 8).normal_())
        out = torch.empty(4, 8)
        torch.mm(torch.ones(4, 3), torch.ones(3, 8), out=out)
        (out + 1).sum()
        torch.empty(4).copy_(torch.ones(4)).exp()
        kept = torch.empty(2, 3)
        kept[0], kept[1] = 1.0, 2.0
        kept.double().relu()
        torch.zeros_like(torch.empty(3)).cos()
        torch.cat([torch.empty(0), torch.ones(3)]).sum()
        torch.tensor([1.0, 2.0]).sin()
        torch.from_numpy(torch.ones(3).numpy()).sin()
        nn.GRU(3, 4)(torch.ones(2, 1, 3))
        torch.nn.functional.scaled_dot_product_attention(*[torch.ones(1, 2, 3, 4)] * 3)

    with stagemeter.count() as counted:
        run()
    assert UNSEEN_KERNEL not in counted.unsupported


def test_memory_that_an_operator_of_another_library_takes_may_be_its_result():
    library = torch.library.Library("stagemeter_writer", "FRAGMENT")
    try:
        library.define("fill(Tensor x) -> ()")
        library.impl("fill", lambda x: [x.fill_(1)].clear(), "CompositeExplicitAutograd")
        with torch.no_grad(), stagemeter.count() as counted:
            out = torch.empty(3)
            torch.ops.stagemeter_writer.fill(out)
            out.exp()
        assert counted.unsupported == {"stagemeter_writer.fill": 1}
    finally:
        library._destroy()
