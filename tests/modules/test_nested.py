"""Nested tensors, jagged and strided: products within each sequence count, and padding does not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Calls
from torch import nn
from torch.nn import functional

import stagemeter

LAYOUTS = [torch.jagged, torch.strided]
lengths_of_sequences = st.lists(st.integers(1, 9), min_size=1, max_size=4)

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")


class Attention(nn.Module):
    """Attention within each sequence; layouts differ in how heads are split."""

    def __init__(self, heads=4):
        super().__init__()
        self.query, self.key, self.value, self.heads = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32), heads

    def split(self, x):
        if x.layout is torch.jagged:
            return x.unflatten(-1, [self.heads, 32 // self.heads]).transpose(1, 2)
        return x.view(x.size(0), -1, self.heads, 32 // self.heads).transpose(1, 2)

    def forward(self, x):
        return functional.scaled_dot_product_attention(
            self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        ).transpose(1, 2)


def nested(lengths, layout, width=32, requires_grad=False):
    sequences = [torch.randn(length, width) for length in lengths]
    return torch.nested.nested_tensor(sequences, layout=layout, requires_grad=requires_grad)


def flops(model, *args, **options):
    report = stagemeter.analyze(model, args, **options)
    assert not report.unsupported
    return report.total.flops


def flops_in_a_block(function):
    with stagemeter.count() as counted:
        function()
    assert counted.unsupported == {}
    return counted.flops


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=6, deadline=None)
@given(lengths_of_sequences)
def test_linear_layers_over_sequences(layout, lengths):
    model, x = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8, bias=False)), nested(lengths, layout)
    expected = 2 * sum(lengths) * (32 * 64 + 64 * 8)
    assert flops(model, x) == flops_in_a_block(lambda: model(x)) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=6, deadline=None)
@given(lengths_of_sequences)
def test_attention_is_within_each_sequence(layout, lengths):
    model, x = Attention(), nested(lengths, layout)
    expected = 2 * sum(lengths) * 3 * 32 * 32 + 4 * 32 * sum(length**2 for length in lengths)
    assert flops(model, x) == flops_in_a_block(lambda: model(x)) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_sequences(layout):
    lengths = [5, 7]
    x, matrices = nested(lengths, layout), torch.randn(2, 32, 8)
    assert flops(Calls(torch.bmm), x, matrices) == 2 * 12 * 32 * 8
    assert flops_in_a_block(lambda: torch.bmm(x, matrices)) == 2 * 12 * 32 * 8


def test_products_of_jagged_sequences_with_one_matrix():
    x, matrix = nested([5, 7], torch.jagged), torch.randn(32, 8)
    assert flops(Calls(torch.matmul), x, matrix) == flops_in_a_block(lambda: x @ matrix) == 2 * 12 * 32 * 8


@pytest.mark.parametrize("operation", [torch.bmm, torch.matmul])
def test_products_of_strided_sequences_with_each_other(operation):
    x = nested([5, 7], torch.strided)
    expected = 2 * 32 * (25 + 49)
    assert flops(Calls(lambda x: operation(x, x.transpose(1, 2))), x) == expected
    assert flops_in_a_block(lambda: operation(x, x.transpose(1, 2))) == expected


def test_keys_of_other_lengths_than_queries():
    queries, keys = [5, 7], [3, 2]
    query = nested(queries, torch.jagged).unflatten(-1, [4, 8]).transpose(1, 2)
    key = nested(keys, torch.jagged).unflatten(-1, [4, 8]).transpose(1, 2)
    expected = 4 * 32 * (5 * 3 + 7 * 2)
    assert flops_in_a_block(lambda: functional.scaled_dot_product_attention(query, key, key)) == expected


def test_parts_of_padded_rows():
    """A jagged tensor with holes: lengths beside offsets."""
    x = torch.nested.narrow(torch.randn(3, 10, 32), 1, torch.tensor([0, 1, 2]), torch.tensor([3, 5, 2]), torch.jagged)
    assert flops_in_a_block(lambda: nn.Linear(32, 8)(x.contiguous())) == 2 * 10 * 32 * 8


def test_heads_that_lie_across_each_other():
    """Halves of one projection, which torch's kernels do not take: the count does not depend on how they lie."""
    projection = nn.Linear(32, 96)

    def attend(x):
        query, key, value = (part.unflatten(-1, [4, 8]).transpose(1, 2) for part in projection(x).chunk(3, -1))
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    x = nested([5, 7], torch.jagged)
    expected = 2 * 12 * 32 * 96 + 4 * 32 * (25 + 49)
    report = stagemeter.analyze(Calls(attend), x)
    assert report.total.flops == expected
    assert any("copied" in note for note in report.notes)
    with stagemeter.count() as counted:
        attend(x)
    assert counted.flops == expected


def test_causal_attention_within_sequences():
    """Of which torch has no kernel on a CPU."""

    def attend(x):
        heads = x.unflatten(-1, [4, 8]).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        return x + mixed.transpose(1, 2).flatten(-2)

    x = nested([5, 7], torch.jagged)
    report = stagemeter.analyze(Calls(attend), x)
    assert report.total.flops == 4 * 32 * (25 + 49)
    assert report.total.macs_causal == 2 * 32 * (5 * 6 // 2 + 7 * 8 // 2)
    with stagemeter.count() as counted:
        out = attend(x)
    assert counted.flops == report.total.flops
    for sequence, made in zip(x.unbind(), out.unbind(), strict=True):
        heads = sequence.unflatten(-1, [4, 8]).transpose(0, 1)
        mixed = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        torch.testing.assert_close(made, sequence + mixed.transpose(0, 1).flatten(-2))


def test_what_no_way_takes_is_torchs_error():
    query = nested([5, 7], torch.jagged).unflatten(-1, [4, 8]).transpose(1, 2)
    key = nested([5, 7], torch.jagged, width=16).unflatten(-1, [4, 4]).transpose(1, 2)
    with pytest.raises((RuntimeError, ValueError)), stagemeter.count():
        functional.scaled_dot_product_attention(query, key, key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_linear_layers_over_sequences_train(layout):
    model, x = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)), nested([5, 7], layout)
    loss = (
        (lambda out: out.values().sum())
        if layout is torch.jagged
        else (lambda out: out.contiguous().to_padded_tensor(0.0).sum())
    )
    report = stagemeter.analyze(model, x, mode="train", loss=loss)
    first, second = 2 * 12 * 32 * 64, 2 * 12 * 64 * 8
    assert report.total.flops_forward == first + second
    assert report.total.flops_backward == first + 2 * second
    assert not report.unsupported
    assert report.stages["0"].flops == 2 * first
    assert flops_in_a_block(lambda: loss(model(x)).backward()) == report.total.flops


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_within_sequences_trains(layout):
    model, x = Attention(), nested([5, 7], layout, requires_grad=True)
    loss = (
        (lambda out: out.values().sum())
        if layout is torch.jagged
        else (lambda out: out.contiguous().to_padded_tensor(0.0).sum())
    )
    report = stagemeter.analyze(model, x, mode="train", loss=loss)
    weights, product = 2 * 12 * 3 * 32 * 32, 2 * 32 * (25 + 49)
    assert report.total.flops_forward == weights + 2 * product
    # Two for each product of the forward pass, as torch takes it apart on the CPU.
    assert report.total.flops_backward == 2 * weights + 4 * product
    assert not report.unsupported
    assert flops_in_a_block(lambda: loss(model(x)).backward()) == report.total.flops


def test_jagged_rows_from_shapes():
    x = nested([5, 7], torch.jagged).to("meta")
    assert flops(nn.Linear(32, 8), x) == 2 * 12 * 32 * 8


def test_lengths_that_are_not_there_are_asked_for():
    x = nested([5, 7], torch.jagged).to("meta")
    with pytest.raises(stagemeter.StagemeterError, match="length"):
        stagemeter.analyze(Attention(), x)


def test_norms_and_dropout_over_sequences():
    model = nn.Sequential(nn.LayerNorm(32), nn.Dropout(0.5), nn.Linear(32, 8), nn.GELU())
    for layout in LAYOUTS:
        assert flops(model, nested([5, 7], layout)) == 2 * 12 * 32 * 8
