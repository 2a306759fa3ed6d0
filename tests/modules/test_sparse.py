"""Sparse operands: a product costs its stored elements, in every layout of torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Calls
from torch import nn
from torch.nn import functional
from torch.sparse import SparseSemiStructuredTensorCUTLASS

import stagemeter

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|BSR|BSC) tensor support is in beta"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
]

LAYOUTS = {
    "coo": lambda dense: dense.to_sparse(),
    "csr": lambda dense: dense.to_sparse_csr(),
    "csc": lambda dense: dense.to_sparse_csc(),
    "bsr": lambda dense: dense.to_sparse_bsr((2, 2)),
}


class Graph(nn.Module):
    """A layer over a graph: neighbours are added up by a sparse matrix."""

    def __init__(self, adjacency, parameter=False):
        super().__init__()
        if parameter:
            self.adjacency = nn.Parameter(adjacency)
        else:
            self.register_buffer("adjacency", adjacency)
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.adjacency @ self.layer(x)


def adjacency():
    dense = torch.zeros(6, 8)
    dense[0, 1] = dense[2, 3] = dense[5, 7] = 1.0
    return dense


def stored(sparse):
    return (sparse._values() if sparse.layout is torch.sparse_coo else sparse.values()).numel()


def flops(function, *args, **options):
    report = stagemeter.analyze(Calls(function), args, **options)
    assert not report.unsupported
    with stagemeter.count() as counted:
        function(*args)
    assert counted.unsupported == {}
    assert counted.flops == report.total.flops
    return report.total.flops


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parameter", [False, True])
@pytest.mark.parametrize("x", [torch.randn(8, 4), stagemeter.spec(8, 4)], ids=["real", "shapes"])
def test_a_graph_layer(layout, parameter, x):
    sparse = LAYOUTS[layout](adjacency())
    model = Graph(sparse, parameter)
    report = stagemeter.analyze(model, x)
    assert report.total.flops == 2 * 8 * 4 * 4 + 2 * stored(sparse) * 4
    assert report.stages["layer"].flops == 2 * 8 * 4 * 4
    assert not report.unsupported
    assert model.adjacency.layout is sparse.layout


def test_blocks_that_are_stored_count_whole():
    sparse = adjacency().to_sparse_bsr((2, 2))
    assert stored(sparse) == 3 * 4
    assert flops(lambda x: sparse @ x, torch.randn(8, 5)) == 2 * 12 * 5


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99), st.sampled_from(["coo", "csr", "csc"])
)
def test_products_of_any_sparsity(rows, inner, columns, seed, layout):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(rows, inner, generator=generator).round()
    sparse, x = LAYOUTS[layout](dense), torch.randn(inner, columns)
    expected = 2 * int(dense.sum()) * columns
    for operation in (torch.matmul, torch.mm, torch.sparse.mm):
        assert flops(lambda x, operation=operation: operation(sparse, x), x) == expected
    assert flops(lambda x: torch.addmm(torch.zeros(rows, columns), sparse, x), x) == expected
    assert flops(lambda x: sparse @ x, x[:, 0]) == expected // columns
    other = LAYOUTS[layout](torch.rand(inner, columns, generator=generator).round())
    # Each pair of stored elements that meet.
    meetings = sum(int(dense[:, k].sum()) * int(other.to_dense()[k].sum()) for k in range(inner))
    assert flops(lambda: sparse @ other) == 2 * meetings


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_sparse_on_the_right(layout):
    sparse = LAYOUTS[layout](adjacency())
    assert flops(lambda x: x @ sparse, torch.randn(5, 6)) == 2 * 3 * 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layer_with_a_sparse_weight(layout):
    sparse = LAYOUTS[layout](adjacency())
    assert flops(lambda x: functional.linear(x, sparse), torch.randn(5, 8)) == 2 * stored(sparse) * 5
    model = nn.Linear(8, 6, bias=False)
    model.weight = nn.Parameter(sparse)
    report = stagemeter.analyze(model, torch.randn(5, 8))
    assert report.total.flops == 2 * stored(sparse) * 5
    assert report.total.cost.weight_reads == stored(sparse)


def test_sampled_products():
    sparse = adjacency().to_sparse_csr()
    left, right = torch.randn(6, 5), torch.randn(5, 8)
    assert flops(lambda *args: torch.sparse.sampled_addmm(sparse, *args), left, right) == 2 * 3 * 5


def test_batches_of_sparse_matrices():
    sparse = torch.stack([adjacency(), 1 - adjacency()]).to_sparse()
    assert flops(lambda x: torch.bmm(sparse, x), torch.randn(2, 8, 5)) == 2 * 6 * 8 * 5


def test_elements_that_are_stored_twice_count_twice():
    sparse = torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (6, 8))
    assert flops(lambda x: sparse @ x, torch.randn(8, 5)) == 2 * 2 * 5


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_a_graph_layer_trains(layout):
    model = Graph(LAYOUTS[layout](adjacency()))
    report = stagemeter.analyze(model, torch.randn(8, 4), mode="train")
    layer, neighbours = 2 * 8 * 4 * 4, 2 * 3 * 4
    assert report.total.flops_forward == layer + neighbours
    assert report.total.flops_backward == layer + neighbours
    assert not report.unsupported


def test_a_sparse_parameter_trains():
    weight = adjacency().to_sparse_csr().requires_grad_()
    x = torch.randn(8, 4, requires_grad=True)
    with stagemeter.count() as counted:
        torch.sparse.mm(weight, x).sum().backward()
    # Forward, and the gradients of both: of the weight where it is stored alone.
    assert counted.flops == 3 * 2 * 3 * 4
    assert counted.unsupported == {}


def test_embeddings_with_sparse_gradients():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 3))
    report = stagemeter.analyze(model, torch.tensor([1, 2, 1]), mode="train")
    assert report.total.flops_forward == 2 * 3 * 4 * 3
    assert report.total.flops_backward == 2 * 2 * 3 * 4 * 3
    assert not report.unsupported


def test_a_sparse_buffer_is_left_as_it_was():
    class Changing(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("adjacency", adjacency().to_sparse().coalesce())

        def forward(self, x):
            self.adjacency.mul_(2)
            return self.adjacency @ x

    model = Changing()
    assert stagemeter.analyze(model, torch.randn(8, 4)).total.flops == 2 * 3 * 4
    assert torch.equal(model.adjacency.to_dense(), adjacency())


def test_places_that_are_not_there_are_asked_for():
    model = Graph(adjacency().to_sparse()).to("meta")
    with pytest.raises(stagemeter.StagemeterError, match="sparse"):
        stagemeter.analyze(model, stagemeter.spec(8, 4))


def test_stored_elements_without_values_do():
    indices, values = torch.empty(2, 3, dtype=torch.int64, device="meta"), torch.empty(3, device="meta")
    model = Graph(adjacency()).to("meta")
    model.adjacency = torch.sparse_coo_tensor(indices, values, (6, 8), device="meta")
    report = stagemeter.analyze(model, stagemeter.spec(8, 4))
    assert report.total.flops == 2 * 8 * 4 * 4 + 2 * 3 * 4


def test_an_operator_that_is_no_product_of_two_is_listed():
    left = torch.eye(3).to_sparse()

    def outer():
        return torch.smm(left, torch.ones(3, 3))

    with stagemeter.count() as counted:
        outer()
    assert counted.flops == 2 * 3 * 3 or counted.unsupported


def test_semi_structured_weights_count_half():
    """Two of each four elements are stored. On shapes, since kernels are for graphics cards alone."""
    rows, inner = 32, 64
    weight = SparseSemiStructuredTensorCUTLASS(
        torch.Size([rows, inner]),
        packed=torch.empty(rows, inner // 2, dtype=torch.float16, device="meta"),
        meta=torch.empty(rows, inner // 16, dtype=torch.int16, device="meta"),
        packed_t=None,
        meta_t=None,
        compressed_swizzled_bitmask=None,
    )
    x = torch.empty(16, inner, dtype=torch.float16, device="meta")
    with stagemeter.count() as counted:
        functional.linear(x, weight)
    assert counted.flops == 16 * rows * inner
    with stagemeter.count() as counted:
        torch.mm(weight, x.t())
    assert counted.flops == 16 * rows * inner
