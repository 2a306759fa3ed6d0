"""Model FLOPs of training steps: three times the forward pass, by visible pairs, without recomputation."""

import pytest
import torch
from brute_force import BruteForce
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Calls
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

import stagemeter

WIDTH, HEADS = 16, 2


class Causal(nn.Module):
    """Causal attention: fused, fused with a mask, or as two products."""

    is_causal = True

    def __init__(self, kind, shared=1):
        super().__init__()
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = (nn.Linear(WIDTH, WIDTH // shared) for _ in range(2))
        self.kind = kind

    def forward(self, x):
        query, key, value = (
            of(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for of in (self.query, self.key, self.value)
        )
        if key.shape[1] < HEADS:
            key, value = (part.expand(-1, HEADS, -1, -1) for part in (key, value))
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        if self.kind == "eager":
            scores = (query @ key.mT).masked_fill(hidden, float("-inf"))
            mixed = scores.softmax(-1) @ value
        elif self.kind == "mask":
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=~hidden)
        else:
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Layers(nn.Module):
    def __init__(self, kind, shared=1, checkpointing=None, layers=2):
        super().__init__()
        self.layers = nn.ModuleList(Causal(kind, shared) for _ in range(layers))
        self.mlp = nn.Linear(WIDTH, WIDTH)
        self.checkpointing = checkpointing

    def forward(self, x):
        for layer in self.layers:
            again = self.checkpointing is not None and self.training
            x = x + (checkpoint(layer, x, use_reentrant=self.checkpointing) if again else layer(x))
        return self.mlp(x)


def step(model, x):
    """Return the report of a training step from shapes, after checking that real tensors give the same."""
    on_meta = stagemeter.analyze(model, x, mode="train")
    assert on_meta.counted_on == "meta"
    with stagemeter.count(model.train()) as counted:
        model(x).sum().backward()
    found = (counted.flops, counted.flops_causal, counted.flops_executed)
    assert found == (on_meta.total.flops, on_meta.total.flops_causal, on_meta.total.flops_executed)
    return on_meta.total


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from(["causal", "mask", "eager"]),
    st.sampled_from([1, 2]),
    st.sampled_from([None, True, False]),
)
def test_step_is_three_forward_passes_by_visible_pairs(batch, length, kind, shared, checkpointing):
    model = Layers(kind, shared, checkpointing)
    x = torch.randn(batch, length, WIDTH, requires_grad=True)
    total = step(model, x)
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1) * batch * length
    pairs = length * (length + 1) // 2
    assert total.flops == 3 * 2 * (weights + 2 * 2 * batch * length**2 * WIDTH)
    assert total.flops_causal == 3 * 2 * (weights + 2 * 2 * batch * pairs * WIDTH)
    assert total.flops_recomputed == total.flops_executed - total.flops
    if checkpointing is None:
        assert total.flops_recomputed == (0 if kind == "eager" else 2 * 2 * batch * length**2 * WIDTH)


def test_model_flops_are_the_products_that_no_kernel_computes_again():
    """Brute force sees four products in the backward pass of attention that is taken apart, torch's formula has five.

    torch's counter does not know the kernel of the CPU.
    """
    model, x = Layers("causal"), torch.randn(2, 7, WIDTH, requires_grad=True)
    total = step(model, x)
    with BruteForce() as apart:
        model(x).sum().backward()
    with FlopCounterMode(display=False) as torchs:
        model(x).sum().backward()
    assert total.flops == 2 * apart.macs
    shape = (2, HEADS, 7, WIDTH // HEADS)
    fused = sdpa_flop_count(shape, shape, shape) + sdpa_backward_flop_count(shape, shape, shape, shape)
    assert total.flops_executed == torchs.get_total_flops() + 2 * fused


def test_input_without_a_gradient_spares_its_product():
    model = Layers("causal")
    with_gradient = step(model, torch.randn(2, 7, WIDTH, requires_grad=True))
    without = step(model, torch.randn(2, 7, WIDTH))
    first = 2 * 2 * 7 * 3 * WIDTH * WIDTH  # Query, key and value of the first layer.
    assert with_gradient.flops - without.flops == first
    assert with_gradient.flops_executed - without.flops_executed == first


@pytest.mark.parametrize("kind", ["causal", "eager"])
@pytest.mark.parametrize("trained", ["query", "key", "value", "out"])
def test_attention_costs_what_trained_parts_need(kind, trained):
    """With one projection trained: gradients of the others are not needed, whatever a kernel computes."""
    model = Causal(kind).requires_grad_(False)
    getattr(model, trained).requires_grad_(True)
    batch, length = 2, 6
    total = step(model, torch.randn(batch, length, WIDTH))
    product, pairs = batch * length**2 * WIDTH, batch * length * (length + 1) // 2 * WIDTH
    weights = batch * length * WIDTH * WIDTH
    # Through the softmax: gradients of probabilities and of the operand. The value needs neither.
    needed = {"query": 2, "key": 2, "value": 1, "out": 0}[trained]
    linear = 1 if trained == "out" else 2
    assert total.flops == 2 * (4 * weights + 2 * product + linear * weights + needed * product)
    assert total.flops_causal == 2 * (4 * weights + 2 * pairs + linear * weights + needed * pairs)
    ran = needed if kind == "eager" else 0 if trained == "out" else 5
    assert total.flops_executed == 2 * (4 * weights + 2 * product + linear * weights + ran * product)


def test_adapters_train_a_frozen_model_at_two_forward_passes():
    """Adapters of low rank beside frozen projections: the frozen products have a gradient of the input alone."""

    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base.requires_grad_(False)
            self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    model = Layers("causal").requires_grad_(False)
    for layer in model.layers:
        layer.query, layer.value = Adapted(layer.query), Adapted(layer.value)
    x = torch.randn(2, 7, WIDTH, requires_grad=True)
    total = step(model, x)
    adapters = 2 * (2 * 2) * (2 * 7) * (WIDTH * 2 + 2 * WIDTH)
    plain = stagemeter.analyze(Layers("causal"), x)
    attention = plain.total.operators["scaled_dot_product_attention"]
    weights = plain.total.flops - attention
    assert total.flops == 2 * weights + 3 * attention + 3 * adapters


def test_products_of_a_function_with_its_own_backward_pass_cannot_be_told():
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x @ x.mT) @ x

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return (gradient @ x.mT) @ x

    class Attends(nn.Module):
        is_causal = True

        def forward(self, x):
            return Own.apply(x)

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Attends(), nn.Linear(WIDTH, WIDTH))
    report = stagemeter.analyze(model, torch.randn(2, 5, WIDTH), mode="train")
    assert report.total.flops_causal is None
    assert report.stages["1"].flops_causal is None
    assert report.stages["2"].flops_causal == report.stages["2"].flops
    assert any("flops_causal" in note for note in report.notes)
    assert report.to_dict()["total"]["macs_causal"] is None


def test_attention_inside_of_a_transform_cannot_be_told():
    def attend(x):
        return functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    x = torch.randn(3, 2, 5, 4)
    report = stagemeter.analyze(Calls(torch.func.vmap(attend)), x)
    assert report.total.flops_causal is None
    assert report.total.flops == 2 * 2 * 3 * 2 * 5 * 5 * 4


def test_gradient_of_a_gradient_is_no_recomputation():
    """The penalty on gradients of WGAN-GP (Gulrajani et al. 2017, equation 3), whose backward pass has a graph."""
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    x = torch.randn(3, WIDTH, requires_grad=True)
    with stagemeter.count(layer) as counted, BruteForce() as force:
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
    assert counted.flops == counted.flops_executed == 2 * force.macs > 0


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_whole_models_of_transformers(implementation):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, attn_implementation=implementation,
    )  # fmt: skip
    batch, length = 2, 7
    ids = stagemeter.spec(batch, length, dtype=torch.long)
    total = stagemeter.analyze(LlamaForCausalLM(config), kwargs={"input_ids": ids, "labels": ids}, mode="train").total
    tokens, pairs = batch * length, batch * length * (length + 1) // 2
    weights = 2 * tokens * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + tokens * 32 * 64
    assert total.flops == 3 * 2 * (weights + 2 * 2 * batch * length**2 * 32)
    assert total.flops_causal == 3 * 2 * (weights + 2 * 2 * pairs * 32)
    assert total.flops_recomputed == (0 if implementation == "eager" else 2 * 2 * batch * length**2 * 32)


@pytest.mark.slow
def test_llama_3_8b_at_8192_tokens():
    """FLOPs per token, by hand from the configuration of meta-llama/Meta-Llama-3-8B: 57.91 G, executed 60.06 G."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256,
    )  # fmt: skip
    length = 8192
    ids = stagemeter.spec(1, length, dtype=torch.long)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    total = stagemeter.analyze(model, kwargs={"input_ids": ids, "labels": ids}, mode="train").total
    weights = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 4096 * 128256
    assert total.flops == length * 6 * (weights + 32 * 2 * length * 4096)
    assert total.flops_causal == length * 6 * weights + 6 * 32 * 2 * (length * (length + 1) // 2) * 4096
    assert total.flops_recomputed == length * 2 * 32 * length * 4096
    found = (total.flops, total.flops_executed, total.flops_causal)
    assert [round(flops / length / 1e9, 2) for flops in found] == [57.91, 60.06, 51.47]
