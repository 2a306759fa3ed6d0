"""Forward and backward passes: costs of a training step, with the recomputation of activation checkpointing."""

import pytest
import torch
from brute_force import BruteForce
from nets import Attention, Residual, Transformer
from torch import nn
from torch.utils.checkpoint import checkpoint

import stagemeter
from stagemeter import CostCounter, StagemeterError


class Eager(nn.Module):
    """Attention as two products, as it is without a fused kernel."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        scores = self.query(x) @ self.key(x).mT
        return scores.softmax(-1) @ self.value(x)


@pytest.mark.parametrize(
    ("make", "shape"), [(Residual, (2, 3, 24, 20)), (Eager, (2, 5, 16)), (lambda: nn.Linear(16, 3), (4, 16))]
)
@pytest.mark.parametrize("with_input_gradient", [False, True])
def test_step_is_exact(make, shape, with_input_gradient):
    model, x = make(), torch.randn(shape, requires_grad=with_input_gradient)
    report = stagemeter.analyze(model, x, mode="train")
    with BruteForce() as forward:
        out = model.train()(x).sum()
    with BruteForce() as backward:
        out.backward()
    assert report.counted_on == "meta"
    assert report.total.forward.macs == forward.macs
    assert report.total.backward.macs == backward.macs
    assert report.total.flops == 2 * (forward.macs + backward.macs)
    assert report.total.flops_backward == 2 * backward.macs
    assert report.total.flops_causal == report.total.flops == report.total.flops_executed


@pytest.mark.parametrize("checkpointing", [None, "reentrant", "non-reentrant"])
def test_shapes_alone_and_real_tensors_agree_module_by_module(checkpointing):
    """On the CPU torch has a fused attention, with five products in its backward pass; on the meta device ours."""
    passes = {}
    for device in ("cpu", "meta"):
        model = Transformer(checkpointing).to(device)
        x = torch.randn(2, 5, 16, device=device, requires_grad=True)
        with CostCounter(model) as counter:
            out = model(x).sum()
            forward = counter.counts()
            counter.restart()
            out.backward()
            backward = counter.counts()
        passes[device] = [
            {name: (counts.of(name).macs, counts.of(name).activations) for name in counts.by_module}
            for counts in (forward, backward)
        ]
        assert not backward.unsupported_of("")
    assert passes["cpu"] == passes["meta"]


def test_checkpointing_costs_the_forward_pass_again():
    x = stagemeter.spec(2, 5, 16).requires_grad_()
    stages = {"blocks": "blocks", "head": "head"}
    plain = stagemeter.analyze(Transformer(), x, mode="train", stages=stages)
    reentrant = stagemeter.analyze(Transformer("reentrant"), x, mode="train", stages=stages)
    early = stagemeter.analyze(Transformer("non-reentrant"), x, mode="train", stages=stages)
    scores = 3 * 2 * 5 * 5 * 16  # Fused attention computes them again in any case.
    assert plain.total.flops_recomputed == 2 * scores
    again = reentrant.stages["blocks"].again.macs - scores
    assert again == plain.stages["blocks"].forward.macs
    assert plain.total.flops == reentrant.total.flops == early.total.flops
    assert plain.total.flops_executed == plain.total.flops + 2 * scores
    assert reentrant.total.flops_executed == plain.total.flops_executed + 2 * again
    # torch's newer way stops as soon as it has what is needed: the last product of a block is not.
    last_products = 3 * 2 * 5 * 5 * 16
    assert early.total.flops_executed == reentrant.total.flops_executed - 2 * last_products
    assert reentrant.stages["head"].backward == plain.stages["head"].backward
    evaluated = stagemeter.analyze(Transformer("reentrant"), x)
    assert evaluated.total.macs == plain.total.forward.macs


def test_scores_that_fused_attention_computes_again_are_not_the_models():
    """Five products in its backward pass (torch/utils/flop_counter.py, ``sdpa_backward_flop_count``), of them four."""
    length, width = 5, 16
    report = stagemeter.analyze(Attention(width), stagemeter.spec(2, length, width), mode="train")
    product = 2 * length * length * width
    assert report.total.operators["scaled_dot_product_attention"] == 2 * 2 * product
    assert report.total.operators["scaled_dot_product_attention_backward"] == 2 * 5 * product
    assert sum(report.total.operators.values()) == report.total.flops_executed
    assert report.total.flops_recomputed == 2 * product
    assert report.total.flops_executed == report.total.flops + 2 * product


def test_attention_inside_of_torch_is_fused_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    operators = stagemeter.analyze(layer, stagemeter.spec(2, 5, 8), mode="train").total.operators
    assert operators["scaled_dot_product_attention_backward"] == 2 * 5 * (2 * 5 * 5 * 8)
    assert "bmm" not in operators


def test_mask_with_a_gradient_takes_attention_apart():
    """No fused kernel has a gradient of the mask."""

    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(5, 5))

        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=self.bias)

    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    report = stagemeter.analyze(Biased(), x, mode="train")
    product = 2 * 3 * 5 * 5 * 4
    assert report.total.forward.macs == 2 * product
    assert report.total.backward.macs == 4 * product


def test_what_is_frozen_has_no_gradient():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    x = stagemeter.spec(3, 16)
    product = 3 * 16 * 16
    # The first layer: its weight. The second: its weight and its input.
    assert stagemeter.analyze(model, x, mode="train").total.backward.macs == 3 * product
    model[0].requires_grad_(False)
    report = stagemeter.analyze(model, x, mode="train")
    assert report.total.backward.macs == product
    assert (report.total.params, report.total.params_trainable) == (2 * 272, 272)
    assert report.stages["0"].backward.macs == 0


def test_loss_of_the_output():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(4, 8)

        def forward(self, x):
            return {"first": self.first(x), "second": self.second(x), "loss": None}

    x = stagemeter.spec(3, 4)
    both = stagemeter.analyze(TwoHeads(), x, mode="train")
    one = stagemeter.analyze(TwoHeads(), x, mode="train", loss=lambda out: out["second"].sum())
    assert both.total.backward.macs == 2 * 3 * 4 * 8
    assert one.total.backward.macs == 3 * 4 * 8
    assert one.stages["first"].backward.macs == 0


def test_own_loss_of_a_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    ids = stagemeter.spec(2, 7, dtype=torch.long)
    report = stagemeter.analyze(LlamaForCausalLM(config), kwargs={"input_ids": ids, "labels": ids}, mode="train")
    assert report.counted_on == "meta"
    # Every product twice again; the scores of attention once more.
    attention = report.total.operators["scaled_dot_product_attention"]
    assert report.total.flops == 3 * report.total.flops_forward
    assert report.total.flops_recomputed == attention // 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": lambda out: out}, "loss: it returned no tensor of one element"),
        ({"loss": lambda out: 1.0}, "loss: it returned no tensor of one element"),
    ],
)
def test_loss_that_is_none_is_said(options, message):
    with pytest.raises(StagemeterError, match=message):
        stagemeter.analyze(nn.Linear(2, 2), stagemeter.spec(1, 2), mode="train", **options)


def test_nothing_to_go_back_through_is_said():
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(StagemeterError, match="no output of the model has a gradient"):
        stagemeter.analyze(frozen, stagemeter.spec(1, 2), mode="train")


class RecomputedHead(torch.autograd.Function):
    """Logits that are not kept: the backward pass computes them again, as TRL's and Liger's output heads do."""

    @staticmethod
    def forward(ctx, x, weight, dtype):
        ctx.save_for_backward(x, weight)
        ctx.dtype = dtype
        return torch.mm(x.to(dtype), weight.to(dtype).t()).logsumexp(-1)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = (saved.to(ctx.dtype) for saved in ctx.saved_tensors)
        logits = torch.mm(x, weight.t(), out=x.new_empty(len(x), len(weight)))
        logits = logits.softmax(-1) * gradient[:, None]
        return logits @ weight, (logits.t() @ x if ctx.needs_input_grad[1] else None), None


class RecomputingHead(nn.Linear):
    def __init__(self, dtype):
        super().__init__(16, 16, bias=False)
        self.of_products = dtype

    def forward(self, x):
        return RecomputedHead.apply(x, self.weight, self.of_products)


class WithRecomputedHead(nn.Module):
    """`reentrant` is the kind of activation checkpointing that runs the head again, None for none."""

    def __init__(self, dtype=torch.float32, reentrant=None):
        super().__init__()
        self.body, self.head, self.reentrant = nn.Linear(16, 16), RecomputingHead(dtype), reentrant

    def forward(self, x):
        hidden = self.body(x)
        if self.reentrant is None:
            return self.head(hidden)
        return checkpoint(self.head, hidden, use_reentrant=self.reentrant)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frozen", [False, True])
def test_products_that_a_function_computes_again_are_not_the_models(device, dtype, frozen):
    """All operands are square, so that shapes alone tell no product from another."""
    model = WithRecomputedHead(dtype).to(device)
    model.head.requires_grad_(not frozen)
    report = stagemeter.analyze(model, torch.randn(16, 16, device=device), mode="train")
    product = 16**3
    assert report.total.macs == (2 + 3 - frozen) * product
    assert report.total.again.macs == product
    assert report.total.flops_executed == report.total.flops + 2 * product


@pytest.mark.parametrize("reentrant", [False, True])
def test_function_computes_again_inside_of_checkpointing(reentrant):
    report = stagemeter.analyze(WithRecomputedHead(reentrant=reentrant), stagemeter.spec(16, 16), mode="train")
    assert report.total.macs == (2 + 3) * 16**3
    assert report.total.again.macs == 2 * 16**3


def test_product_of_the_same_shapes_in_a_backward_pass_is_the_models():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(weight)
            return x.double().float() @ weight

        @staticmethod
        def backward(ctx, gradient):
            return gradient.double().float() @ ctx.saved_tensors[0], None

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.eye(16))

        def forward(self, x):
            return Twice.apply(x, self.weight)

    for device in ("cpu", "meta"):
        x = torch.randn(16, 16, device=device, requires_grad=True)
        assert stagemeter.analyze(Plain().to(device), x, mode="train").total.macs == 2 * 16**3


def test_model_that_asks_for_autocast_is_counted_from_shapes():
    class Asking(nn.Linear):
        def forward(self, x):
            return super().forward(x.half() if torch.is_autocast_enabled(x.device.type) else x)

    assert stagemeter.analyze(Asking(4, 5), stagemeter.spec(3, 4)).counted_on == "meta"
    with pytest.raises(RuntimeError, match="autocast"):
        torch.is_autocast_enabled("meta")


def test_gradients_of_embeddings_that_no_weight_needs_are_executed_alone():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=64
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    model.model.layers[1].self_attn.q_proj.requires_grad_(True)
    ids = stagemeter.spec(2, 9, dtype=torch.long)
    given = {"kwargs": {"input_ids": ids, "labels": ids}, "mode": "train"}
    plain = stagemeter.analyze(model, **given).total
    model.enable_input_require_grads()
    asked = stagemeter.analyze(model, **given).total
    assert (asked.flops, asked.flops_causal) == (plain.flops, plain.flops_causal)
    assert asked.flops_executed > plain.flops_executed
