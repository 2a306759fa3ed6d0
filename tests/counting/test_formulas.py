"""Formulas per operator, against torch's own counter and products by hand."""

import itertools
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from stagemeter import CostCounter, register_formula, unregister_formula
from stagemeter.counting.registry import rule_of
from stagemeter.counting.zero_cost import is_zero_cost

aten = torch.ops.aten
quick = settings(max_examples=20, deadline=None)
sizes = st.integers(1, 7)


def count(run, model=None):
    with torch.no_grad(), CostCounter(model) as counter:
        run()
    return counter.counts()


def macs(run):
    return count(run).of("").macs


def torch_macs(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def products_of_convolution(positions, kernel, channels_in, channels_out, groups):
    """Count the products one by one, padding included."""
    loops = (positions, itertools.product(*map(range, kernel)), range(channels_in // groups), range(channels_out))
    return sum(1 for _ in itertools.product(*loops))


@quick
@given(sizes, sizes, st.integers(2, 7), sizes)  # torch makes an elementwise product of an einsum over one element
def test_matrix_products(batch, rows, inner, columns):
    left, right = torch.ones(rows, inner), torch.ones(inner, columns)
    batched_left, batched_right = torch.ones(batch, rows, inner), torch.ones(batch, inner, columns)
    one = sum(1 for _ in itertools.product(range(rows), range(inner), range(columns)))
    assert macs(lambda: left @ right) == one
    assert macs(lambda: torch.addmm(torch.ones(columns), left, right)) == one
    assert macs(lambda: batched_left @ batched_right) == batch * one
    assert macs(lambda: torch.baddbmm(torch.ones(batch, rows, columns), batched_left, batched_right)) == batch * one
    assert macs(lambda: torch.einsum("bij,bjk->bik", batched_left, batched_right)) == batch * one
    assert macs(lambda: left @ torch.ones(inner)) == rows * inner
    assert macs(lambda: torch.dot(torch.ones(inner), torch.ones(inner))) == inner
    assert macs(lambda: torch.addmv(torch.ones(rows), left, torch.ones(inner))) == rows * inner


@quick
@given(st.lists(sizes, min_size=1, max_size=4), sizes, st.booleans(), st.sampled_from(["cpu", "meta"]), st.booleans())
def test_linear_is_one_operator_whatever_it_dispatches_to(shape, outputs, bias, device, transposed):
    x = torch.ones(shape, device=device)
    if transposed and x.dim() > 2:
        x = x.transpose(0, 1)
    weight = torch.ones(outputs, shape[-1], device=device)
    offset = torch.ones(outputs, device=device) if bias else None
    counts = count(lambda: functional.linear(x, weight, offset))
    cost = counts.of("")
    assert set(counts.operators("")) == {"linear"}
    assert cost.macs == prod(shape) * outputs
    assert cost.activations == prod(shape[:-1]) * outputs


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_arguments_may_be_given_by_name(device):
    x, weight, bias = torch.ones(3, 4, device=device), torch.ones(5, 4, device=device), torch.ones(5, device=device)
    q = torch.ones(2, 3, 6, 4, device=device)
    by_name = [
        (lambda: functional.linear(x, weight=weight), lambda: functional.linear(x, weight)),
        (lambda: functional.linear(bias=bias, input=x, weight=weight), lambda: functional.linear(x, weight, bias)),
        (
            lambda: functional.scaled_dot_product_attention(query=q, key=q, value=q, is_causal=True),
            lambda: functional.scaled_dot_product_attention(q, q, q, None, 0.0, True),
        ),
        (
            lambda: functional.scaled_dot_product_attention(q, value=q, key=q),
            lambda: functional.scaled_dot_product_attention(q, q, q),
        ),
        (lambda: torch.mm(input=x, mat2=weight.T), lambda: x @ weight.T),
    ]
    for named, positional in by_name:
        cost = count(named).of("")
        assert cost.macs > 0
        assert cost == count(positional).of("")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_result_may_be_put_into_a_given_tensor(device):
    left, right = torch.ones(2, 3, 4, device=device), torch.ones(2, 4, 5, device=device)
    for function in (torch.bmm, torch.matmul):
        given = count(lambda function=function: function(left, right, out=torch.empty(2, 3, 5, device=device))).of("")
        assert given == count(lambda: left @ right).of("")
        assert given.macs == 2 * 3 * 4 * 5


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_the_weight_of_one_output_may_be_a_vector(device, shape):
    x, weight = torch.ones(shape, device=device), torch.ones(4, device=device)
    assert macs(lambda: functional.linear(x, weight)) == prod(shape)


@pytest.mark.parametrize(
    "equation", ["ij,jk->ik", "bij,bjk->bik", "bhld,bhsd->bhls", "i,i->", "bij,j->bi", "ijk,jkl->il", "bhwc,hkc->bhwk"]
)
def test_einsum_multiplies_once_per_combination_of_its_letters(equation):
    size = {letter: number for number, letter in enumerate(sorted(set(equation) - set(",->")), 2)}
    operands = [torch.ones([size[letter] for letter in names]) for names in equation.split("->")[0].split(",")]
    combinations = itertools.product(*(range(number) for number in size.values()))
    assert macs(lambda: torch.einsum(equation, *operands)) == sum(1 for _ in combinations)


def multiply_one_by_one(length, kernel, stride, padding, dilation):
    """Slide a filter over one padded dimension and count how often a number of it meets one of the input."""
    products, start = 0, -padding
    while start + dilation * (kernel - 1) < length + padding:
        products += sum(1 for _ in range(kernel))
        start += stride
    return products


@quick
@given(st.lists(st.integers(4, 9), min_size=1, max_size=3), st.data())
def test_convolutions_of_any_shape(lengths, data):
    draw = data.draw
    settings_of = [
        (draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 2)), draw(st.integers(1, 2)))
        for _ in lengths
    ]
    kernel, stride, padding, dilation = map(list, zip(*settings_of, strict=True))
    batch, groups, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(4))
    for length, k, p, d in zip(lengths, kernel, padding, dilation, strict=True):
        if d * (k - 1) >= length + 2 * p:
            return
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[len(lengths) - 1]
    x = torch.empty(batch, groups * inputs, *lengths, device="meta")
    weight = torch.empty(groups * outputs, inputs, *kernel, device="meta")
    per_filter = prod(multiply_one_by_one(length, *s) for length, s in zip(lengths, settings_of, strict=True))
    expected = batch * groups * outputs * inputs * per_filter
    cost = count(lambda: function(x, weight, None, stride, padding, dilation, groups)).of("")
    assert cost.macs == expected
    assert cost.activation_reads == x.numel() + weight.numel()


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(("groups", "stride", "dilation", "padding"), [(1, 1, 1, 0), (2, 2, 1, 1), (1, 1, 2, 2)])
def test_convolutions(dimensions, groups, stride, dilation, padding):
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[dimensions - 1]
    x = torch.ones(2, 4, *(7, 6, 5)[:dimensions])
    kernel = (3, 2, 2)[:dimensions]
    weight = torch.ones(6, 4 // groups, *kernel)

    def run():
        return function(x, weight, torch.ones(6), stride, padding, dilation, groups)

    positions = range(2 * prod(run().shape[2:]))
    assert macs(run) == products_of_convolution(positions, kernel, 4, 6, groups) == torch_macs(run)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_transposed_convolutions(dimensions):
    function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[dimensions - 1]
    x = torch.ones(2, 4, *(7, 6, 5)[:dimensions])
    kernel = (3, 2, 2)[:dimensions]
    weight = torch.ones(4, 3, *kernel)
    positions = range(2 * prod(x.shape[2:]))

    def run():
        return function(x, weight, stride=2)

    assert macs(run) == products_of_convolution(positions, kernel, 4, 3, 1) == torch_macs(run)


def forward_and_backward(module, x):
    with CostCounter() as counter:
        module(x.requires_grad_()).sum().backward()
    return counter.counts().of("").macs


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (torch.nn.Linear(5, 3), torch.ones(2, 5)),
        (torch.nn.Conv2d(2, 4, 3, padding=1), torch.ones(2, 2, 6, 6)),
        (torch.nn.ConvTranspose2d(2, 3, 3), torch.ones(2, 2, 6, 6)),
    ],
    ids=["linear", "convolution", "transposed"],
)
def test_a_backward_pass_costs_twice_the_forward_pass(module, x):
    forward = macs(lambda: module(x))
    assert forward_and_backward(module, x) == 3 * forward
    assert torch_macs(lambda: module(x.requires_grad_()).sum().backward()) == 3 * forward


def test_the_backward_pass_of_a_grouped_convolution():
    """torch's own counter leaves the groups out of the filter's gradient: it gives four times the forward pass."""
    module, x = torch.nn.Conv2d(2, 4, 3, groups=2, padding=1), torch.ones(2, 2, 6, 6)
    assert forward_and_backward(module, x) == 3 * macs(lambda: module(x))


def test_attention_backward_counts_its_five_products():
    query, key, value = (torch.ones(2, 3, 8, 4, dtype=torch.float32, requires_grad=True) for _ in range(3))
    with CostCounter() as counter, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        functional.scaled_dot_product_attention(query, key, value).sum().backward()
    one = 2 * 3 * 8 * 8 * 4
    operators = counter.counts().operators("")
    assert operators["scaled_dot_product_attention"].macs == 2 * one
    assert operators["scaled_dot_product_attention_backward"].macs == 5 * one


BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 4, 8, 16, 8
ATTENTION = 2 * BATCH * HEADS * QUERIES * KEYS * WIDTH


def attention_operands(device, key_value_heads=HEADS):
    query = torch.empty(BATCH, HEADS, QUERIES, WIDTH, device=device)
    key, value = (torch.empty(BATCH, key_value_heads, KEYS, WIDTH, device=device) for _ in range(2))
    return query, key, value


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_on_any_backend(device, backend):
    operands = attention_operands(device)
    with sdpa_kernel(backend):
        counts = count(lambda: functional.scaled_dot_product_attention(*operands))
    assert set(counts.operators("")) == {"scaled_dot_product_attention"}
    assert counts.of("").macs == ATTENTION
    assert counts.of("").activations == BATCH * HEADS * QUERIES * WIDTH


def test_attention_under_fake_tensors():
    with FakeTensorMode():
        assert macs(lambda: functional.scaled_dot_product_attention(*attention_operands("cpu"))) == ATTENTION


def test_grouped_query_attention_counts_query_heads():
    operands = attention_operands("meta", key_value_heads=2)
    cost = count(lambda: functional.scaled_dot_product_attention(*operands, enable_gqa=True)).of("")
    assert cost.macs == ATTENTION
    assert cost.activation_reads == BATCH * WIDTH * (HEADS * QUERIES + 2 * 2 * KEYS)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_attention_of_a_device_that_is_not_there(device, dtype):
    with FakeTensorMode():
        operands = [operand.to(dtype) for operand in attention_operands(device)]
        counts = count(lambda: functional.scaled_dot_product_attention(*operands))
    assert {name: cost.macs for name, cost in counts.operators("").items()} == {
        "scaled_dot_product_attention": ATTENTION
    }


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_whose_query_is_repeated_for_every_key(device):
    query, key, value = attention_operands(device)
    cost = count(lambda: functional.scaled_dot_product_attention(query[:1], key, value)).of("")
    assert cost.macs == ATTENTION
    assert cost.activations == BATCH * HEADS * QUERIES * WIDTH


def test_values_of_another_width_than_keys():
    query, key, _ = attention_operands("meta")
    value = torch.empty(BATCH, HEADS, KEYS, 3, device="meta")
    cost = count(lambda: functional.scaled_dot_product_attention(query, key, value)).of("")
    assert cost.macs == BATCH * HEADS * QUERIES * KEYS * (WIDTH + 3)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_attention_backward_as_torch_counts_it(backend):
    def run():
        operands = [operand.requires_grad_() for operand in attention_operands("cpu")]
        functional.scaled_dot_product_attention(*operands).sum().backward()

    with sdpa_kernel(backend), CostCounter() as counter:
        run()
    products = {SDPBackend.MATH: 2 + 4, SDPBackend.FLASH_ATTENTION: 2 + 5}[backend]
    assert counter.counts().of("").macs == products * ATTENTION // 2
    if backend is SDPBackend.MATH:  # The other kernel is unknown to torch's counter.
        with sdpa_kernel(backend):
            assert torch_macs(run) == products * ATTENTION // 2


@pytest.mark.parametrize(
    ("operator", "extra"),
    [
        (aten._scaled_dot_product_flash_attention, ()),
        (aten._scaled_dot_product_flash_attention_for_cpu, ()),
        (aten._scaled_dot_product_efficient_attention, (None, False)),
        (aten._scaled_dot_product_cudnn_attention, (None, False)),
        (aten._scaled_dot_product_fused_attention_overrideable, ()),
    ],
    ids=str,
)
def test_every_kernel_that_attention_dispatches_to(operator, extra):
    """Called directly, as a dispatcher or a compiled graph would, on shapes of tensors that are on no device."""
    operands = attention_operands("meta")
    assert macs(lambda: operator(*operands, *extra)) == ATTENTION


@pytest.mark.parametrize(
    ("operator", "causal"),
    [
        (aten._scaled_dot_product_flash_attention, (0.0, True)),
        (aten._scaled_dot_product_flash_attention_for_cpu, (0.0, True)),
        (aten._scaled_dot_product_efficient_attention, (None, False, 0.0, True)),
        (aten._scaled_dot_product_cudnn_attention, (None, False, 0.0, True)),
        (aten._scaled_dot_product_fused_attention_overrideable, (None, 0.0, True)),
    ],
    ids=str,
)
def test_every_kernel_says_in_its_own_place_that_it_is_causal(operator, causal):
    query = attention_operands("meta")[0]
    cost = count(lambda: operator(query, query, query, *causal)).of("")
    assert cost.macs_causal == BATCH * HEADS * (QUERIES * (QUERIES + 1) // 2) * 2 * WIDTH
    dense = (
        (*causal[:-1], False, True) if operator is aten._scaled_dot_product_flash_attention else (*causal[:-1], False)
    )
    cost = count(lambda: operator(query, query, query, *dense)).of("")
    assert cost.macs_causal == cost.macs


@quick
@given(st.integers(1, 6), st.integers(1, 12))
def test_grouped_products_do_one_row_against_one_expert(experts, rows):
    x = torch.empty(rows, 16, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(experts, 16, 32, dtype=torch.bfloat16, device="meta")
    offsets = torch.empty(experts, dtype=torch.int32, device="meta")
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(weight)
    cost = count(lambda: functional.grouped_mm(x, model.weight, offs=offsets), model).of("")
    assert cost.macs == rows * 16 * 32
    assert cost.weight_reads == min(experts, rows) * 16 * 32
    assert cost.activations == rows * 32


@pytest.fixture
def own_operator():
    library = torch.library.Library("stagemeter_test", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeExplicitAutograd")
    yield torch.ops.stagemeter_test.twice
    if rule_of(torch.ops.stagemeter_test.twice) is not None:
        unregister_formula(torch.ops.stagemeter_test.twice)
    library._destroy()


def test_an_operator_without_a_formula_is_listed_with_its_calls(own_operator):
    def run():
        own_operator(torch.ones(3))
        own_operator(torch.ones(3))

    counts = count(run)
    assert dict(counts.unsupported_of("")) == {"stagemeter_test.twice": 2}
    assert counts.of("").macs == 0


def test_a_registered_formula_is_used_until_it_is_unregistered(own_operator):
    @register_formula(own_operator, name="doubling")
    def doubling(x, *, out):
        return 5 * out[0]

    counts = count(lambda: own_operator(torch.ones(3)))
    assert {name: cost.macs for name, cost in counts.operators("").items()} == {"doubling": 15}
    assert unregister_formula(own_operator).formula is doubling
    assert count(lambda: own_operator(torch.ones(3))).unsupported_of("")


def test_the_registry_refuses_what_it_cannot_use(own_operator):
    with pytest.raises(TypeError, match=r"torch\.ops\.aten\.mm"):
        register_formula(torch.mm)
    with pytest.raises(TypeError, match="OpOverload"):
        register_formula(aten.mm.default)
    with pytest.raises(ValueError, match="already"):
        register_formula(aten.mm)
    with pytest.raises(KeyError, match="no formula"):
        unregister_formula(own_operator)


def test_what_is_free_by_convention_is_neither_counted_nor_listed():
    x = torch.rand(2, 8, 6, 6)
    modules = [
        torch.nn.LayerNorm(6),
        torch.nn.BatchNorm2d(8),
        torch.nn.GroupNorm(2, 8),
        torch.nn.GELU(),
        torch.nn.SiLU(),
    ]
    modules += [
        torch.nn.Softmax(-1),
        torch.nn.MaxPool2d(2),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Upsample(scale_factor=2),
    ]
    modules += [torch.nn.Dropout(), torch.nn.Flatten(), torch.nn.ReLU(inplace=True)]

    def run():
        for module in modules:
            module(x.clone())
        torch.nn.Embedding(5, 3)(torch.tensor([1, 2]))
        x.sort().values.cumsum(0).topk(2).values.mean()
        torch.where(x > 0.5, x, x.exp()).roll(1).repeat(1, 2, 1, 1)[:, ::2].index_select(0, torch.tensor([0]))

    counts = count(run)
    assert counts.of("").macs == 0
    assert not counts.unsupported_of("")


def test_grouped_products_of_other_layouts():
    """Both operands batched, and the gradient of the experts, where each token adds an outer product to one expert."""
    batched = torch.empty(3, 5, 16, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(3, 16, 8, dtype=torch.bfloat16, device="meta")
    assert macs(lambda: functional.grouped_mm(batched, weight)) == 3 * 5 * 16 * 8
    tokens = torch.empty(24, 16, dtype=torch.bfloat16, device="meta")
    gradient = torch.empty(24, 8, dtype=torch.bfloat16, device="meta")
    offsets = torch.empty(3, dtype=torch.int32, device="meta")
    assert macs(lambda: functional.grouped_mm(tokens.t(), gradient, offs=offsets)) == 24 * 16 * 8


def test_the_left_operand_of_a_bilinear_layer_meets_the_right_one():
    layer = torch.nn.Bilinear(3, 4, 5, bias=False)
    assert macs(lambda: layer(torch.ones(2, 3), torch.ones(2, 4))) == 2 * (2 * 5 * 3 * 4)


GATES = {torch.nn.RNN: 1, torch.nn.GRU: 3, torch.nn.LSTM: 4}


@pytest.mark.parametrize("layer", GATES, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_recurrent_layers_are_counted_or_listed(layer, without_gradients, device):
    """torch tags them as random numbers, since they can drop elements; under inference mode they come undivided."""
    batch, length, width, hidden = 2, 5, 4, 3
    model = layer(width, hidden, batch_first=True, device=device)
    with without_gradients(), CostCounter(model) as counter:
        model(torch.ones(batch, length, width, device=device))
    counts = counter.counts()
    if not counts.unsupported_of(""):
        assert counts.of("").macs == batch * length * GATES[layer] * hidden * (width + hidden)
    else:
        assert (layer, device) == (torch.nn.LSTM, "cpu")  # One operator of oneDNN.


def test_nothing_that_torch_counts_is_free():
    packets = [operator for operator in flop_registry if isinstance(operator, torch._ops.OpOverloadPacket)]
    assert aten.mm in packets
    assert not [
        str(packet)
        for packet in packets
        if rule_of(packet) is None and any(is_zero_cost(getattr(packet, name)) for name in packet.overloads())
    ]


def test_products_in_free_libraries_are_not_free():
    prims = torch.ops.prims
    assert is_zero_cost(prims.add.default)
    assert not any(is_zero_cost(operator.default) for operator in (prims.svd, prims.fft_c2c, prims.fft_r2c))


def test_random_numbers_are_free():
    def run():
        x = torch.rand(3, 4).bernoulli().normal_()
        (
            functional.dropout(x),
            torch.randn_like(x),
            torch.randperm(5),
            torch.multinomial(torch.ones(4), 2),
            functional.rrelu(x),
        )

    counts = count(run)
    assert not counts.operators("")
    assert not counts.unsupported_of("")


@pytest.mark.parametrize("tag", [torch.Tag.pointwise, torch.Tag.nondeterministic_seeded, None])
@pytest.mark.parametrize("name", ["products", "add_", "addmm_", "dropout", "relu", "_foreach_products"])
def test_no_operator_of_another_library_is_free_or_known_by_its_name_or_tags(name, tag):
    """Tags say how an operator behaves, and names what its author liked: neither what it multiplies."""
    library = torch.library.Library("stagemeter_tagged", "FRAGMENT")
    try:
        library.define(f"{name}(Tensor x) -> Tensor", tags=[tag] if tag else [])
        library.impl(name, lambda x: x @ x.mT, "CompositeExplicitAutograd")
        counts = count(lambda: getattr(torch.ops.stagemeter_tagged, name)(torch.ones(3, 3)))
        assert dict(counts.unsupported_of("")) == {f"stagemeter_tagged.{name}": 1}
        assert not counts.operators("")
    finally:
        library._destroy()


def test_every_random_operator_of_torch_is_free_or_counted_or_made_of_products():
    """A new one must be looked at: it may be attention with dropout."""
    names = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
    packets = [getattr(aten, name.removeprefix("aten::")) for name in names if hasattr(aten, name[6:])]
    seeded = [p for p in packets if any(torch.Tag.nondeterministic_seeded in getattr(p, o).tags for o in p.overloads())]
    left = {
        str(p)
        for p in seeded
        if rule_of(p) is None and not all(is_zero_cost(getattr(p, overload)) for overload in p.overloads())
    }
    recurrent = {"aten._cudnn_rnn", "aten._lstm_mps", "aten.gru", "aten.lstm", "aten.miopen_rnn"}
    recurrent |= {"aten.rnn_relu", "aten.rnn_tanh"}
    # The others choose a kernel, or work on nested tensors.
    assert left == recurrent | {"aten._fused_sdp_choice"}


BACKWARDS_WITHOUT_PRODUCTS = {
    "ReflectionPad2d": (torch.nn.ReflectionPad2d(1), (2, 3, 6, 6)),
    "ReplicationPad3d": (torch.nn.ReplicationPad3d(1), (1, 3, 4, 4, 4)),
    "MaxPool3d": (torch.nn.MaxPool3d(2), (1, 3, 4, 4, 4)),
    "nearest 3d": (torch.nn.Upsample(scale_factor=2), (1, 3, 4, 4, 4)),
    "trilinear": (torch.nn.Upsample(scale_factor=2, mode="trilinear"), (1, 3, 4, 4, 4)),
    "nearest exact 1d": (torch.nn.Upsample(scale_factor=2, mode="nearest-exact"), (1, 3, 4)),
    "AdaptiveMaxPool2d": (torch.nn.AdaptiveMaxPool2d(2), (2, 3, 6, 6)),
    "AdaptiveMaxPool3d": (torch.nn.AdaptiveMaxPool3d(2), (1, 3, 4, 4, 4)),
    "AdaptiveAvgPool3d": (torch.nn.AdaptiveAvgPool3d(3), (1, 3, 4, 4, 4)),
    "FractionalMaxPool2d": (torch.nn.FractionalMaxPool2d(2, output_size=3), (1, 3, 6, 6)),
    "Hardswish": (torch.nn.Hardswish(), (2, 3, 6)),
    "Softshrink": (torch.nn.Softshrink(), (2, 3, 6)),
    "PReLU": (torch.nn.PReLU(), (2, 3, 6)),
    "RReLU": (torch.nn.RReLU(), (2, 3, 6)),
    "GLU": (torch.nn.GLU(dim=-1), (2, 3, 6)),
}


@pytest.mark.parametrize("name", BACKWARDS_WITHOUT_PRODUCTS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_backward_pass_is_free_where_the_forward_pass_is(name, device):
    module, shape = BACKWARDS_WITHOUT_PRODUCTS[name]
    x = torch.rand(shape, device=device, requires_grad=True)
    module = module.to_empty(device=device) if device == "meta" else module.to(device)
    with CostCounter() as counter:
        module(x).sum().backward()
    counts = counter.counts()
    assert not counts.unsupported_of("")
    assert counts.of("").macs == 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: functional.ctc_loss(
            x.log_softmax(-1), torch.tensor([[1, 2]]), torch.tensor([6]), torch.tensor([2]), reduction="sum"
        ),
        lambda x: functional.huber_loss(x, torch.ones_like(x)),
        lambda x: functional.soft_margin_loss(x, torch.ones_like(x)),
        lambda x: functional.multi_margin_loss(x[:, 0], torch.zeros(6, dtype=torch.long)),
        lambda x: functional.grid_sample(x[None], x.new_zeros(1, 2, 2, 2), align_corners=False).sum(),
        lambda x: functional.embedding_bag(torch.tensor([[0, 1]]), x[:, 0]).sum(),
        lambda x: torch.ones(6, 1, 5).masked_scatter(torch.ones(6, 1, 5) > 0, x).sum(),
        lambda x: torch.nn.utils.weight_norm(torch.nn.Linear(5, 5)).weight_g.sum() * x.sum(),
    ],
)
def test_losses_and_gathers_are_free_in_both_passes(loss):
    x = torch.rand(6, 1, 5, requires_grad=True)
    with CostCounter() as counter:
        loss(x).backward()
    assert not counter.counts().unsupported_of("")
    assert counter.counts().of("").macs == 0


def test_products_in_place_are_counted():
    left, right, batched = torch.ones(3, 4), torch.ones(4, 5), torch.ones(2, 3, 3)
    assert macs(lambda: torch.ones(3, 5).addmm_(left, right)) == 3 * 4 * 5
    assert macs(lambda: torch.ones(2, 3, 3).baddbmm_(batched, batched)) == 2 * 3 * 3 * 3
