"""Fused kernels, against torch's own counter and against sequences counted one by one."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from torch.utils.flop_counter import FlopCounterMode

from stagemeter import CostCounter
from stagemeter.counting.known_values import KnownValues

aten = torch.ops.aten
quick = settings(max_examples=20, deadline=None)
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def count(run):
    with torch.no_grad(), CostCounter() as counter:
        run()
    return counter.counts()


def torch_macs(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def meta(*shape):
    return torch.empty(*shape, dtype=torch.float16, device="meta")


def band(queries, keys, left=-1, right=-1):
    """Return the mask of a window whose last query sees the last key, as flash-attention documents it."""
    row, column = torch.arange(queries)[:, None] + keys - queries, torch.arange(keys)
    return ((left < 0) | (column >= row - left)) & ((right < 0) | (column <= row + right))


def starts(sequences):
    return torch.tensor([0, *accumulate(sequences)], dtype=torch.int32)


def test_flash_and_efficient_attention_equal_torchs_count():
    q, k, v = meta(2, 6, 4, 8), meta(2, 5, 4, 8), meta(2, 5, 4, 8)
    # torch's own formulas take batch, heads, length, width, and are asked with the shapes in that order.
    truth = torch_macs(lambda: aten._scaled_dot_product_flash_attention(*(x.transpose(1, 2) for x in (q, k, v))))
    for run in (
        lambda: aten._flash_attention_forward(q, k, v, None, None, 6, 5, 0.0, False, False),
        lambda: aten._efficient_attention_forward(q, k, v, None, None, None, None, None, 0.0, 0),
    ):
        assert count(run).of("").macs == truth == 2 * 4 * 6 * 5 * (8 + 8)


@quick
@given(lengths, st.booleans())
def test_each_query_meets_the_keys_of_its_own_sequence(sequences, causal):
    heads, width = 3, 8
    q = meta(sum(sequences), heads, width)
    cost = count(
        lambda: aten._flash_attention_forward(
            q, q, q, starts(sequences), starts(sequences), max(sequences), max(sequences), 0.0, causal, False
        )
    ).of("")
    alone = [2 * heads * length * length * width for length in sequences]
    assert cost.macs == sum(alone)
    seen = [2 * heads * length * (length + 1) // 2 * width for length in sequences]
    assert cost.macs_causal == (sum(seen) if causal else cost.macs)
    assert cost.activations == q.numel()
    assert cost.activation_reads == 3 * q.numel()


@quick
@given(lengths, st.sampled_from([(-1, -1), (-1, 0), (4, 0)]))
def test_the_public_function_counts_where_the_places_of_sequences_are_known(sequences, window):
    """torch.nn.attention.varlen, forward and backward, from shapes."""
    q, places = meta(sum(sequences), 2, 8), starts(sequences)
    where = torch.empty_like(places, device="meta")

    def run():
        return varlen_attn(q, q, q, where, where, max(sequences), max(sequences), window_size=window)

    known = KnownValues()
    known.give(where, places)
    with known:
        cost = count(run).of("")
    assert cost.macs == sum(2 * 2 * length * length * 8 for length in sequences)
    assert cost.macs_causal == sum(2 * 2 * int(band(length, length, *window).sum()) * 8 for length in sequences)
    assert dict(count(run).unsupported_of("")) == {"torch_attn._varlen_attn": 1}


def test_pages_of_a_cache_are_listed_since_the_keys_that_are_read_are_others():
    q, pool, places = meta(2, 2, 8), meta(9, 16, 2, 8), torch.tensor([0, 1, 2], dtype=torch.int32)
    used = torch.tensor([20, 3], dtype=torch.int32)
    counts = count(
        lambda: torch.ops.torch_attn._varlen_attn(
            q, pool, pool, places, None, 1, 32, seqused_k=used, block_table=torch.zeros(2, 2, dtype=torch.int32)
        )
    )
    assert dict(counts.unsupported_of("")) == {"torch_attn._varlen_attn": 1}
    assert counts.of("").macs == 0


def test_the_backward_pass_of_packed_sequences_has_five_products_each():
    q, where, sequences = meta(12, 2, 8), starts([5, 7]), (5, 7)
    logsumexp, state = torch.empty(2, 12, device="meta"), torch.empty(2, dtype=torch.uint64, device="meta")
    cost = count(
        lambda: aten._flash_attention_backward(
            q, q, q, q, q, logsumexp, where, where, 7, 7, 0.0, True, state, torch.empty(0, device="meta")
        )
    ).of("")
    assert cost.macs == sum(5 * 2 * length * length * 8 for length in sequences)
    assert cost.macs_causal == sum(5 * 2 * length * (length + 1) // 2 * 8 for length in sequences)


@pytest.fixture
def flash_attention():
    """The operators of the package flash-attn, as its wrapper declares them (flash_attn_interface.py, 2.8)."""
    library = torch.library.Library("flash_attn", "FRAGMENT")
    library.define(
        "_flash_attn_forward(Tensor q, Tensor k, Tensor v, float dropout_p, float softmax_scale, bool causal, "
        "SymInt window_size_left, SymInt window_size_right, float softcap, Tensor? alibi_slopes, bool return_softmax)"
        " -> (Tensor, Tensor, Tensor, Tensor)"
    )
    library.define(
        "_flash_attn_varlen_forward(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
        "SymInt max_seqlen_q, SymInt max_seqlen_k, float dropout_p, float softmax_scale, bool causal, "
        "SymInt window_size_left=-1, SymInt window_size_right=-1, float softcap=0.0, Tensor? alibi_slopes=None, "
        "bool return_softmax=False, Tensor? block_table=None, Tensor? leftpad_k=None, Tensor? seqused_k=None, "
        "bool zero_tensors=False) -> (Tensor, Tensor, Tensor, Tensor)"
    )

    def run(q, *args, **kwargs):
        return torch.empty_like(q), q.new_empty(1), q.new_empty(0), q.new_empty(2)

    for name in ("_flash_attn_forward", "_flash_attn_varlen_forward"):
        library.impl(name, run, "CompositeExplicitAutograd")
    yield torch.ops.flash_attn
    library._destroy()


def test_the_package_flash_attention_is_known_by_name(flash_attention):
    q, k = torch.ones(2, 6, 4, 8), torch.ones(2, 6, 2, 8)
    cost = count(lambda: flash_attention._flash_attn_forward(q, k, k, 0.0, 1.0, True, -1, -1, 0.0, None, False)).of("")
    assert cost.macs == 2 * 4 * 6 * 6 * 16
    assert cost.macs_causal == 2 * 4 * 6 * 7 // 2 * 16
    packed = torch.ones(12, 4, 8)
    cost = count(
        lambda: flash_attention._flash_attn_varlen_forward(
            packed, packed, packed, starts([5, 7]), starts([5, 7]), 7, 7, 0.0, 1.0, False
        )
    ).of("")
    assert cost.macs == 4 * (25 + 49) * 16


def test_products_of_eight_bits_by_both_names():
    a, b = torch.randn(16, 32).to(torch.float8_e4m3fn), torch.randn(64, 32).to(torch.float8_e4m3fn)
    one, plain = torch.ones(()), functional.ScalingType.TensorWise
    private = count(lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)).of("")
    public = count(lambda: functional.scaled_mm(a, b.t(), one, plain, one, plain, output_dtype=torch.bfloat16)).of("")
    assert public == private
    assert public.macs == 16 * 32 * 64


def test_a_list_of_products_and_other_fused_kernels():
    left, right = [torch.ones(2, 3), torch.ones(4, 5)], [torch.ones(3, 6), torch.ones(5, 1)]
    cost = count(lambda: aten._foreach_mm(left, right)).of("")
    assert cost.macs == 2 * 3 * 6 + 4 * 5
    assert cost.activation_reads == 6 + 20 + 18 + 5
    x, weight = torch.ones(9, 2, 3), torch.ones(3, 3, 5)
    assert count(lambda: torch.conv_tbc(x, weight, torch.ones(5), 1)).of("").macs == 9 * 2 * 3 * 3 * 5


def test_two_products_of_the_compiler_in_one_operator():
    a, b, out = torch.ones(2, 3), torch.ones(3, 4), torch.zeros(2, 4)
    cost = count(lambda: torch.ops.inductor._mm_plus_mm(a, b, a, b, out)).of("")
    assert cost.macs == 2 * (2 * 3 * 4)
    assert (cost.activations, cost.activation_reads) == (8, 2 * (6 + 12))


@pytest.mark.parametrize("size", [(2, 1, 4, 5), (2, 1, 3, 4, 5)])
def test_each_place_of_an_affine_grid_meets_a_matrix(size):
    dimensions = len(size) - 2
    theta = torch.ones(2, dimensions, dimensions + 1)
    places = torch.Size(size).numel()
    cost = count(lambda: functional.affine_grid(theta, size, align_corners=False)).of("")
    assert cost.macs == places * (dimensions + 1) * dimensions
