"""Operators that take functions (flex_attention, branches, loops, scans) count as they run, or are listed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Calls
from torch import nn
from torch._higher_order_ops import associative_scan, scan, while_loop
from torch._higher_order_ops import map as mapped
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import stagemeter
from stagemeter.core.errors import StagemeterError
from stagemeter.modules import step_limit

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def causal(batch, head, query, key):
    return query >= key


def relative(score, batch, head, query, key):
    return score + (query - key)


def flops(function, *args, **options):
    report = stagemeter.analyze(Calls(function), args, **options)
    assert not report.unsupported
    return report.total.flops


def flops_in_a_block(function, *args):
    with stagemeter.count() as counted:
        function(*args)
    assert counted.unsupported == {}
    assert counted.notes == []
    return counted.flops


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 2), st.sampled_from([1, 2]), st.integers(1, 20), st.integers(1, 20), st.booleans(), st.booleans())
def test_flex_attention_is_dense(batch, groups, queries, keys, modified, masked):
    query, key = torch.randn(batch, 2 * groups, queries, 8), torch.randn(batch, 2, keys, 8)
    mask = create_block_mask(causal, None, None, queries, keys, device="cpu", BLOCK_SIZE=8) if masked else None

    def attend(query, key):
        return flex_attention(
            query, key, key, score_mod=relative if modified else None, block_mask=mask, enable_gqa=groups > 1
        )

    products = 2 * 2 * batch * 2 * groups * queries * keys * 8
    assert flops(attend, query, key) == flops_in_a_block(attend, query, key) == products


def test_products_of_a_score_function_count_too():
    """A bias that is a product of two vectors for each pair of a query and a key."""
    x, left, right = torch.randn(1, 2, 5, 8), torch.randn(5, 3), torch.randn(5, 3)

    def biased(score, batch, head, query, key):
        return score + torch.dot(left[query], right[key])

    attention = 2 * 2 * 2 * 5 * 5 * 8
    expected = attention + 2 * (5 * 5 * 3)
    assert flops_in_a_block(lambda: flex_attention(x, x, x, score_mod=biased)) in (expected, expected + 2 * 5 * 5 * 3)


def test_flex_attention_trains():
    x = torch.randn(2, 3, 6, 8, requires_grad=True)
    report = stagemeter.analyze(Calls(lambda x: flex_attention(x, x, x, score_mod=relative)), x, mode="train")
    product = 2 * 2 * 3 * 6 * 6 * 8
    assert (report.total.flops_forward, report.total.flops_backward) == (2 * product, 4 * product)
    assert report.total.flops_recomputed == product
    assert not report.unsupported


@pytest.fixture
def llama():
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64,
    )  # fmt: skip
    config._attn_implementation = "flex_attention"
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_llama_with_flex_attention(llama, device):
    tokens = 16
    layer = tokens * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 2 * tokens**2 * 32
    expected = 2 * (2 * layer + tokens * 32 * 64)
    report = stagemeter.analyze(llama.to(device), torch.randint(0, 64, (1, tokens)).to(device))
    assert report.total.flops == expected
    assert not report.unsupported


def test_llama_with_flex_attention_trains(llama):
    tokens = 16
    weights = 2 * tokens * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + tokens * 32 * 64
    attention = 2 * tokens**2 * 32
    report = stagemeter.analyze(llama, torch.randint(0, 64, (1, tokens)), mode="train")
    assert report.total.flops_forward == 2 * (weights + 2 * 2 * attention // 2)
    assert report.total.flops_backward == 2 * report.total.flops_forward
    assert report.total.flops_recomputed == 2 * 2 * attention // 2
    assert not report.unsupported


@pytest.mark.parametrize("reentrant", [True, False])
def test_flex_attention_that_checkpointing_runs_again(llama, reentrant):
    tokens = 16
    report = stagemeter.analyze(llama, torch.randint(0, 64, (1, tokens)), mode="train")
    llama.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again = stagemeter.analyze(llama, torch.randint(0, 64, (1, tokens)), mode="train")
    layer = 2 * (tokens * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 2 * tokens**2 * 32)
    # What nothing needs is not run again: the last product of a layer.
    last = 0 if reentrant else 2 * tokens * 64 * 32
    assert again.total.flops_recomputed - report.total.flops_recomputed == 2 * (layer - last)
    assert again.total.flops == report.total.flops


def test_pairs_outside_of_a_window_are_executed_alone_in_flex_attention():
    config = MistralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, sliding_window=8,
    )  # fmt: skip
    config._attn_implementation = "flex_attention"
    tokens = 16
    weights = tokens * (2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 32 * 64)
    report = stagemeter.analyze(MistralForCausalLM(config), torch.randint(0, 64, (1, tokens)))
    assert report.total.flops == 2 * (weights + 2 * 2 * tokens * 8 * 32)
    assert report.total.flops_executed == 2 * (weights + 2 * 2 * tokens * tokens * 32)
    assert not report.unsupported


def wide(x):
    return x @ x.mT @ x


def narrow(x):
    return x + 1


def choose(x):
    return torch.cond(x.sum() > 0, wide, narrow, (x,))


@pytest.mark.parametrize(("sign", "products"), [(1, 2), (-1, 0)])
def test_the_branch_that_runs_counts(sign, products):
    x = sign * torch.ones(3, 5)
    assert flops_in_a_block(choose, x) == products * 2 * 3 * 5 * 3
    report = stagemeter.analyze(Calls(choose), x)
    assert report.total.flops == products * 2 * 3 * 5 * 3


def test_a_branch_that_made_up_values_choose_is_noted():
    report = stagemeter.analyze(Calls(choose), stagemeter.spec(3, 5))
    assert any("made up" in note for note in report.notes)


def test_branches_that_cost_the_same_need_no_value():
    def either(x):
        return torch.cond(x.sum() > 0, wide, lambda x: (x @ x.mT) @ x + 1, (x,))

    report = stagemeter.analyze(Calls(either), stagemeter.spec(3, 5))
    assert (report.total.flops, report.counted_on) == (2 * 2 * 3 * 5 * 3, "meta")
    assert not report.unsupported


def test_a_branch_in_sight_of_the_dispatcher_alone():
    """As graphs of a compiler call it, with no function of Python to see."""
    x = torch.ones(3, 5)
    for sign, products in ((1, 2), (-1, 0)):
        with stagemeter.count() as counted, torch._C.DisableTorchFunction():
            torch.ops.higher_order.cond((sign * x).sum() > 0, wide, narrow, (sign * x,))
        assert (counted.flops, counted.unsupported) == (products * 2 * 3 * 5 * 3, {})


def test_a_predicate_of_python_decides():
    def on_shape(x):
        return torch.cond(x.shape[0] > 2, wide, narrow, (x,))

    assert flops(on_shape, stagemeter.spec(3, 5)) == 2 * 2 * 3 * 5 * 3
    assert flops(on_shape, stagemeter.spec(2, 5)) == 0


@pytest.mark.parametrize(("sign", "forward", "backward"), [(1, 2, 4), (-1, 0, 0)])
def test_a_branch_trains(sign, forward, backward):
    x = (sign * torch.ones(3, 5)).requires_grad_()
    report = stagemeter.analyze(Calls(choose), x, mode="train")
    product = 2 * 3 * 5 * 3
    assert report.total.flops_forward == forward * product
    assert report.total.flops_backward >= backward * product
    assert not report.unsupported
    total = report.total.flops
    x.grad = None
    assert flops_in_a_block(lambda: choose(x).sum().backward()) == total


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 5))
def test_a_loop_counts_as_often_as_it_runs(steps):
    def loop(x):
        return while_loop(lambda i, x: i < steps, lambda i, x: (i + 1, x @ x), (torch.tensor(0), x))[1]

    x = torch.randn(4, 4)
    assert flops(loop, x) == flops_in_a_block(loop, x) == steps * 2 * 4**3


class Refining(nn.Module):
    """Adds a small step until a sum is large enough, which no sum of made-up values ever is."""

    def __init__(self, loop):
        super().__init__()
        self.step, self.loop = nn.Linear(4, 4), loop

    def forward(self, x):
        return self.loop(self.step, x)


def loop_of_torch(step, x):
    return while_loop(lambda x: x.sum() > -1e9, lambda x: (step(x).clone(),), (x,))


def loop_of_python(step, x):
    while x.sum() > -1e9:
        x = step(x)
    return x


def loop_until_none_is_left(step, x):
    while len((x < 1e9).nonzero()):
        x = step(x)
    return x


def loop_in_sight_of_the_dispatcher_alone(step, x):
    with torch._C.DisableTorchFunction():
        return torch.ops.higher_order.while_loop(lambda x: x.sum() > -1e9, lambda x: (x + 0 * x,), (x,), ())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "loop", [loop_of_torch, loop_of_python, loop_until_none_is_left, loop_in_sight_of_the_dispatcher_alone]
)
def test_a_loop_that_made_up_values_never_end_is_refused(monkeypatch, loop, device):
    monkeypatch.setattr(step_limit, "MOST_READ", 50)
    with pytest.raises(StagemeterError, match=r"more than 50 values .* made up, so a loop .* Pass real inputs"):
        stagemeter.analyze(Refining(loop).to(device), stagemeter.spec(2, 4))


def test_real_values_may_be_read_without_limit(monkeypatch):
    monkeypatch.setattr(step_limit, "MOST_READ", 50)

    def loop(step, x):
        return while_loop(lambda i, x: i < 60, lambda i, x: (i + 1, step(x)), (torch.tensor(0), x))

    report = stagemeter.analyze(Refining(loop), torch.ones(2, 4))
    assert report.total.flops == 60 * 2 * 2 * 4 * 4


def test_the_limit_is_one_of_each_call(monkeypatch):
    monkeypatch.setattr(step_limit, "MOST_READ", 50)

    def few(step, x):
        return step(x) if x.sum() > -1e9 else x

    model = nn.Sequential(*[Refining(few) for _ in range(60)])
    report = stagemeter.analyze(model, stagemeter.spec(2, 4))
    assert report.total.flops == 60 * 2 * 2 * 4 * 4
    assert any("made up" in note for note in report.notes)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 5))
def test_scans_and_maps_count_each_step(steps):
    xs, weight = torch.randn(steps, 4, 4), torch.randn(4, 4)

    def scanned(xs, weight):
        return scan(lambda carry, x: (carry @ x, carry.clone()), weight, xs)[0]

    def each(xs, weight):
        return mapped(lambda x, weight: x @ weight, xs, weight)

    for function in (scanned, each):
        for args in ((xs, weight), (stagemeter.spec(steps, 4, 4), stagemeter.spec(4, 4))):
            assert flops(function, *args) == steps * 2 * 4**3
        assert flops_in_a_block(function, xs, weight) == steps * 2 * 4**3


def test_scans_train():
    xs, weight = torch.randn(3, 4, 4), torch.randn(4, 4, requires_grad=True)

    def scanned(xs, weight):
        return scan(lambda carry, x: (carry @ x, carry.clone()), weight, xs)[0]

    report = stagemeter.analyze(Calls(scanned), (xs, weight), mode="train")
    assert report.total.flops_forward == 3 * 2 * 4**3
    assert report.total.flops_backward >= 3 * 2 * 4**3
    assert not report.unsupported


def test_associative_scans_count_what_they_combine():
    def combined(x):
        return associative_scan(lambda a, b: a @ b, x, 0, combine_mode="generic")

    x = torch.randn(4, 3, 3)
    counted = flops_in_a_block(combined, x)
    assert counted % (2 * 3**3) == 0
    assert counted >= 3 * 2 * 3**3
    assert flops(combined, x) == counted


def test_results_of_any_structure():
    x, xs = torch.randn(4, 4), torch.randn(5, 4, 4)
    with stagemeter.count() as counted:
        assert set(torch.cond(x.sum() > 0, lambda x: {"y": x @ x}, lambda x: {"y": x @ x + 1}, (x,))) == {"y"}
        (out,) = while_loop(
            lambda s: s["i"] < 3, lambda s: ({"i": s["i"] + 1, "x": s["x"] @ x},), ({"i": torch.tensor(0), "x": x},)
        )
        assert set(out) == {"i", "x"}
        carry, made = scan(lambda c, x: ({"c": c["c"] @ x}, {"y": c["c"] + 0, "z": x + 0}), {"c": x}, xs, reverse=True)
        assert (carry["c"].shape, made["y"].shape, set(made)) == (x.shape, xs.shape, {"y", "z"})
        assert mapped(lambda s, w: {"o": s["a"] @ w}, {"a": xs}, x)["o"].shape == xs.shape
    assert counted.flops == (1 + 3 + 5 + 5) * 2 * 4**3
    assert counted.unsupported == {}


def test_what_functions_hold_beside_their_operands_trains():
    weight, x = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4)

    def run():
        torch.cond(x.sum() > 100, lambda x: x, lambda x: x @ weight, (x,)).sum().backward()
        while_loop(lambda i, x: i < 2, lambda i, x: (i + 1, x @ weight), (torch.tensor(0), x))[1].sum().backward()

    with stagemeter.count() as counted:
        run()
    # Three products, the gradient of the weight in each, and of x in the second step of the loop.
    assert counted.flops == (3 + 3 + 1) * 2 * 4**3
    assert weight.grad is not None


def test_modules_inside_of_branches_keep_their_books():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(4, 8)

        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: self.first(x), lambda x: self.second(x), (x,))

    report = stagemeter.analyze(Branching(), torch.ones(3, 4))
    assert report.stages["first"].flops == 2 * 3 * 4 * 8
    assert report.stages["second"].flops == 0


def test_what_is_compiled_runs_as_it_was_written():
    model = torch.compile(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), fullgraph=True)
    assert flops_in_a_block(model, torch.ones(3, 4)) == 2 * 3 * 4 * 8
    attend = torch.compile(flex_attention)
    x = torch.randn(1, 1, 4, 8)
    assert flops_in_a_block(attend, x, x, x) == 2 * 2 * 4 * 4 * 8


def test_functions_of_attention_beside_others():
    x = torch.randn(1, 2, 4, 8)

    def both():
        flex_attention(x, x, x)
        functional.scaled_dot_product_attention(x, x, x)

    assert flops_in_a_block(both) == 2 * 2 * 2 * 2 * 4 * 4 * 8


def squared_or_not(x):
    return torch.cond(x.sum() > 0, lambda x: x @ x, lambda x: x + 1, (x,))


def repeated_product(xs, weight):
    return scan(lambda carry, x: (carry @ x, carry.clone()), weight, xs)[0]


def relative_attention(x):
    return flex_attention(x, x, x, score_mod=relative)


def three_steps(x):
    return while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x @ x), (torch.tensor(0), x))[1]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("function", "shapes", "products"),
    [
        (squared_or_not, [(4, 4)], 2 * 4**3),
        (repeated_product, [(3, 4, 4), (4, 4)], 3 * 2 * 4**3),
        (three_steps, [(4, 4)], 3 * 2 * 4**3),
        (relative_attention, [(1, 2, 8, 4)], 2 * 2 * 2 * 8 * 8 * 4),
    ],
)
def test_exported_programs(function, shapes, products, strict):
    args = tuple(torch.ones(shape) for shape in shapes)
    program = torch.export.export(Calls(function), args, strict=strict)
    module = program.module()
    for model in (program, module):
        report = stagemeter.analyze(model, args)
        assert (report.total.flops, report.unsupported) == (products, {})
    assert flops_in_a_block(module, *args) == products
    with pytest.raises(NotImplementedError):
        module.train()  # Left as it was found.
