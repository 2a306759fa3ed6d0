"""Any module: counts equal those by brute force, from shapes alone where possible."""

import json
import warnings

import pytest
import torch
from brute_force import brute_force_macs
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Residual, Routed, Transformer
from torch import nn

import stagemeter
from stagemeter import StagemeterError


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3))
def test_transformer_is_exact(batch, length, blocks):
    model, x = Transformer(blocks=blocks), torch.randn(batch, length, 16)
    report = stagemeter.analyze(model, x)
    assert report.counted_on == "meta"
    assert report.total.macs == brute_force_macs(model.eval(), x)
    assert report.total.flops == 2 * report.total.macs
    assert not report.unsupported


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(12, 40), st.integers(12, 40))
def test_convolutions_are_exact(batch, height, width):
    model, x = Residual(), torch.randn(batch, 3, height, width)
    assert stagemeter.analyze(model, x).total.macs == brute_force_macs(model.eval(), x)


def test_shapes_do_for_tensors():
    model = Residual()
    shapes = stagemeter.analyze(model, stagemeter.spec(2, 3, 32, 48))
    tensors = stagemeter.analyze(model, torch.randn(2, 3, 32, 48))
    bare = stagemeter.analyze(Residual().to("meta"), stagemeter.spec(2, 3, 32, 48))
    assert shapes.to_dict() == tensors.to_dict() == bare.to_dict()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: nn.LSTM(6, 5, num_layers=2, bidirectional=True), (torch.randn(4, 2, 6),)),
        (lambda: nn.GRU(6, 5), (torch.randn(4, 2, 6),)),
        (lambda: nn.MultiheadAttention(8, 2), (torch.randn(5, 2, 8),) * 3),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (torch.randn(2, 5, 8),)),
        (lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), (torch.randn(2, 5, 8), torch.randn(2, 7, 8))),
        (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3)), (torch.randint(9, (2, 6)),)),
        (lambda: nn.Conv1d(4, 6, 3, groups=2, dilation=2), (torch.randn(2, 4, 20),)),
        (lambda: nn.Conv3d(2, 3, 3, padding="same"), (torch.randn(1, 2, 5, 6, 7),)),
    ],
    ids=["lstm", "gru", "attention", "encoder", "decoder", "embedding", "conv1d", "conv3d"],
)
def test_torchs_own_layers_are_exact(make, inputs):
    model = make().eval()
    report = stagemeter.analyze(model, inputs)
    with torch.backends.mkldnn.flags(enabled=False):
        assert report.total.macs == brute_force_macs(model, *inputs) > 0
    assert not report.unsupported


def test_stages_their_rest_and_the_total_add_up():
    report = stagemeter.analyze(
        Transformer(), stagemeter.spec(2, 5, 16), stages={"first": "blocks.0", "rest": ["blocks.1", "blocks.2"]}
    )
    first, rest = report.stages["first"], report.stages["rest"]
    assert rest.macs == 2 * first.macs
    assert report.other.macs == 2 * 5 * 16 * 7
    assert report.other.params == 16 * 7
    assert first.macs + rest.macs + report.other.macs == report.total.macs
    assert first.operators["bmm"] == 2 * 2 * 5 * 16 * 5
    assert set(report.other.operators) == {"linear"}
    assert sum(report.other.operators.values()) == report.other.flops
    assert first.bytes_read + first.bytes_written == 4 * sum(
        (first.cost.weight_reads, first.cost.activation_reads, first.cost.activations)
    )


def test_children_are_the_stages_unless_said():
    report = stagemeter.analyze(Residual(), stagemeter.spec(1, 3, 32, 32))
    assert list(report.stages) == ["stem", "body", "up", "head"]
    assert report.stages["stem"].macs == 16 * 16 * 8 * 3 * 49
    leaf = stagemeter.analyze(nn.Linear(3, 4), stagemeter.spec(2, 3))
    assert (dict(leaf.stages), leaf.total.macs) == ({}, 24)


def test_modules_that_are_shared_or_not_called_are_named():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict(
        {"a": nn.Sequential(shared, nn.ReLU()), "b": nn.Sequential(nn.ReLU(), shared), "c": nn.ReLU()}
    )
    model.forward = lambda x: model["b"](model["a"](x))
    report = stagemeter.analyze(model, stagemeter.spec(3, 4))
    assert report.total.macs == report.stages["a"].macs == 2 * 3 * 16
    assert report.total.params == 20
    assert report.stages["b"].params == 20
    assert "stage b shares a.0 with others, and calls of these count under the first name" in report.notes
    assert "these stages were not called: c" in report.notes
    assert "parameters that stages share count in each of them, and once in the total" in report.notes


def test_values_that_decide_are_asked_for_and_said():
    torch.manual_seed(0)
    model, x = Routed(), torch.randn(10, 8)
    report = stagemeter.analyze(model, x)
    assert report.counted_on == "cpu"
    assert report.total.macs == brute_force_macs(model, x) == 10 * 8 * (3 + 8)
    assert report.notes == (
        "the pass ran on real tensors, since aten.nonzero.default in the model itself reads values",
    )
    for weightless in (model, Routed().to("meta")):
        made_up = stagemeter.analyze(weightless, stagemeter.spec(10, 8))
        assert made_up.total.macs == 10 * 8 * (3 + 8)
        assert "are made up, and the count may depend on them" in made_up.notes[0]
    assert "values of the inputs and the weights are made up" in made_up.notes[0]


def test_custom_formula_for_one_count():
    operator = torch.ops.aten.cumsum
    model = nn.Sequential(nn.Linear(4, 4))
    model.forward = lambda x: model[0](x).cumsum(1)
    plain = stagemeter.analyze(model, stagemeter.spec(3, 4))
    formula = {operator: lambda x, *args, out, **kwargs: 1000}
    assert stagemeter.analyze(model, stagemeter.spec(3, 4), formulas=formula).total.macs == plain.total.macs + 1000
    assert stagemeter.analyze(model, stagemeter.spec(3, 4)).total.macs == plain.total.macs


class Distances(nn.Module):
    def forward(self, x):
        return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def test_operators_without_a_formula_are_listed_and_an_error_if_strict():
    x = torch.randn(30, 4)
    report = stagemeter.analyze(Distances(), x)
    assert report.unsupported == {"aten._cdist_forward": 1}
    assert "no number includes operators without a formula: aten._cdist_forward (1 x)" in report.notes
    with pytest.raises(StagemeterError, match=r"aten\._cdist_forward \(1 x\) ran and have no formula"):
        stagemeter.analyze(Distances(), x, strict=True)
    stagemeter.analyze(Transformer(), stagemeter.spec(1, 2, 16), strict=True)


def test_data_types_decide_on_bytes():
    model = Transformer().to(torch.bfloat16)
    half = stagemeter.analyze(model, stagemeter.spec(2, 5, 16, dtype=torch.bfloat16))
    full = stagemeter.analyze(model.float(), stagemeter.spec(2, 5, 16))
    assert (half.dtype, full.dtype) == ("bfloat16", "float32")
    assert 2 * half.total.bytes_read == full.total.bytes_read
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64))
    mixed.forward = lambda x: mixed[1](mixed[0](x).double())
    report = stagemeter.analyze(mixed, stagemeter.spec(1, 2))
    assert report.total.bytes_read is None
    assert "bytes are left out: tensors have different data types" in report.notes


def test_compiled_and_exported_and_wrapped_modules_are_what_they_hold():
    x = torch.randn(2, 5, 16)
    model = Transformer().eval()
    plain = stagemeter.analyze(model, x, stages={"blocks": "blocks", "head": "head"})

    def numbers(report):
        return {name: (stage.macs, stage.params) for name, stage in report.stages.items()}

    inner = Transformer().eval()
    inner.blocks[1] = torch.compile(inner.blocks[1])
    inner.head.compile()
    with warnings.catch_warnings():
        # torch's own, on its own way of making a module of a program.
        warnings.simplefilter("ignore", FutureWarning)
        exported = torch.export.export(model, (x,))
        for other in (torch.compile(model), nn.DataParallel(model), inner, exported):
            report = stagemeter.analyze(other, x, stages={"blocks": "blocks", "head": "head"})
            assert numbers(report) == numbers(plain), type(other)
            assert report.total.macs == plain.total.macs


def test_caches_and_containers_as_inputs():
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(torch.zeros(1, 9, dtype=torch.long), past_key_values=cache)
    keys = cache.layers[0].keys
    kwargs = {"input_ids": torch.zeros(1, 1, dtype=torch.long), "past_key_values": cache}
    report = stagemeter.analyze(model, kwargs=kwargs)
    # What was passed in is as it was: the step that was counted is not in the cache.
    assert cache.get_seq_length() == 9
    assert cache.layers[0].keys is keys
    assert report.total.macs == brute_force_macs(model, **kwargs)
    # Of each layer: scores and mix of one query with ten keys, four heads of eight.
    assert report.total.operators["scaled_dot_product_attention"] == 2 * 2 * (2 * 4 * 10 * 8)


def test_report_as_text_and_as_json(golden):
    report = stagemeter.analyze(
        Residual(), stagemeter.spec(1, 3, 32, 32), stages={"features": ["stem", "body"], "head": "head"}
    )
    golden("residual.txt", str(report) + "\n")
    document = json.loads(json.dumps(report.to_dict()))
    assert document["stages"]["features"]["flops"] == report.stages["features"].flops
    assert document["kind"] == "module"


def test_the_fused_path_of_an_encoder_is_said_to_be_off():
    """Its products are those of the plain path, where there is no padding to leave out."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 8)
    report = stagemeter.analyze(encoder, args=(x,))
    assert any("fused path" in note for note in report.notes)
    projections, attention = 2 * 5 * (4 * 8 * 8 + 2 * 8 * 16), 2 * 2 * 5 * 5 * 8
    assert report.total.macs == 2 * (projections + attention)
    padded = torch.tensor([[False] * 5, [False] * 2 + [True] * 3])
    assert stagemeter.analyze(encoder, args=(x,), kwargs={"src_key_padding_mask": padded}).total.macs == (
        report.total.macs
    )
    assert not any("fused path" in note for note in stagemeter.analyze(encoder, args=(x,), mode="train").notes)


def test_bytes_of_complex_numbers_are_those_of_two_real_ones():
    layer = nn.Linear(3, 4, bias=False, dtype=torch.complex64)
    report = stagemeter.analyze(layer, args=(torch.randn(2, 3, dtype=torch.complex64),))
    assert report.dtype == "complex64"
    assert report.total.forward.bytes_read(4) == 8 * (2 * 3 + 3 * 4)
    assert report.total.item_size == 4
    assert not report.notes
