"""Visible pairs, against explicit masks that are counted element by element."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import stagemeter
from stagemeter import CostCounter
from stagemeter.counting.higher_order import flex_attention_on_any_device
from stagemeter.counting.known_values import KnownValues
from stagemeter.counting.visible_pairs import causal_pairs, pairs_of_mask, window_pairs

aten = torch.ops.aten
quick = settings(max_examples=30, deadline=None)
length = st.integers(1, 12)
size = st.one_of(st.none(), st.integers(0, 6))
WIDTH, VALUES = 4, 6


def count(run):
    with torch.no_grad(), CostCounter() as counter:
        run()
    return counter.counts()


def operands(batch, heads, queries, keys, shared=1, device="meta"):
    query = torch.ones(batch, heads * shared, queries, WIDTH, device=device)
    key, value = (torch.ones(batch, heads, keys, width, device=device) for width in (WIDTH, VALUES))
    return query, key, value


@quick
@given(length, length, size, size, st.booleans())
def test_pairs_of_a_window_are_those_of_its_mask(queries, keys, left, right, from_end):
    shift = keys - queries if from_end else 0
    row, column = torch.arange(queries)[:, None] + shift, torch.arange(keys)
    after = torch.ones(queries, keys, dtype=torch.bool) if left is None else column >= row - left
    before = torch.ones(queries, keys, dtype=torch.bool) if right is None else column <= row + right
    assert window_pairs(queries, keys, left, right, shift) == (after & before).sum()


@quick
@given(length, length)
def test_causal_pairs_are_those_of_a_triangle(queries, keys):
    ones = torch.ones(queries, keys)
    assert causal_pairs(queries, keys) == ones.tril().sum()
    assert causal_pairs(queries, keys, from_end=True) == ones.tril(keys - queries).sum()
    assert causal_pairs(keys, keys) == keys * (keys + 1) // 2


@quick
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), length, length)
def test_is_causal_aligns_the_first_query_with_the_first_key(batch, heads, shared, queries, keys):
    """The documentation of ``scaled_dot_product_attention``: ``torch.ones(L, S).tril(diagonal=0)``."""
    query, key, value = operands(batch, heads, queries, keys, shared)
    cost = count(
        lambda: functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    ).of("")
    pairs = int(torch.ones(queries, keys).tril().sum())
    assert cost.macs == batch * heads * shared * queries * keys * (WIDTH + VALUES)
    assert cost.macs_causal == batch * heads * shared * pairs * (WIDTH + VALUES)


@st.composite
def masks(draw):
    """Draw a shape of attention, and a mask that broadcasts to it: boolean, or added to scores."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), length, length))
    mask_shape = [n if draw(st.booleans()) else 1 for n in shape[:2]] + list(shape[2:])
    if draw(st.booleans()):
        mask_shape = mask_shape[2:]
    shown = torch.rand(mask_shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) < 0.5
    hidden = draw(st.sampled_from([None, float("-inf"), torch.finfo(torch.float32).min]))
    mask = shown if hidden is None else torch.where(shown, torch.randn(mask_shape), torch.tensor(hidden))
    return shape, shown, mask


@quick
@given(masks(), st.sampled_from(["cpu", "meta"]))
def test_mask_of_known_values_counts_the_pairs_that_it_shows(drawn, device):
    (batch, heads, queries, keys), shown, mask = drawn
    query, key, value = operands(batch, heads, queries, keys, device=device)
    known, given_mask = KnownValues(), torch.empty_like(mask, device=device)
    if device == "cpu":
        given_mask.copy_(mask)
    else:
        known.give(given_mask, mask)
    with known:
        counts = count(lambda: functional.scaled_dot_product_attention(query, key, value, attn_mask=given_mask))
    pairs = int(shown.expand(batch, heads, queries, keys).sum())
    assert counts.of("").macs_causal == pairs * (WIDTH + VALUES)
    # Most of these masks have no form of which the pairs but for the order of tokens follow.
    assert all("flops include what it hides" in remark for remark in counts.remarks.values())


def test_mask_without_values_is_dense_and_said():
    query, key, value = operands(2, 3, 5, 7)
    counts = count(lambda: functional.scaled_dot_product_attention(query, key, value, query.new_empty(5, 7)))
    assert counts.of("").macs_causal == counts.of("").macs
    assert "all of its pairs count as visible" in counts.remarks["attention mask"]


def test_mask_that_is_written_to_is_counted_anew():
    query, key, value = operands(1, 1, 4, 4, device="cpu")
    mask = torch.zeros(4, 4, dtype=torch.bool)

    def run():
        mask[:] = True
        functional.scaled_dot_product_attention(query, key, value, mask)
        mask[:, 1:] = False
        functional.scaled_dot_product_attention(query, key, value, mask)

    assert count(run).of("").macs_causal == (16 + 4) * (WIDTH + VALUES)


@pytest.mark.parametrize(("make", "diagonal"), [(causal_upper_left, 0), (causal_lower_right, 4)])
def test_causal_biases_of_torch(make, diagonal):
    query, key, value = (torch.ones(2, 3, n, WIDTH) for n in (5, 9, 9))
    bias = make(5, 9)  # torch cannot make one while a mode is on.
    cost = count(lambda: functional.scaled_dot_product_attention(query, key, value, bias)).of("")
    assert cost.macs_causal == 2 * 3 * int(torch.ones(5, 9).tril(diagonal).sum()) * 2 * WIDTH


@quick
@given(st.lists(length, min_size=1, max_size=4), st.booleans())
def test_packed_batch_costs_the_same_by_places_and_by_a_mask(lengths, causal):
    """By ``cu_seqlens``, by a block-diagonal mask, and one by one."""
    total, heads = sum(lengths), 2
    places = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    packed = torch.empty(total, heads, WIDTH, device="meta")
    longest = max(lengths)
    by_places = count(
        lambda: aten._flash_attention_forward(
            packed, packed, packed, places, places, longest, longest, 0.0, causal, False
        )
    ).of("")
    blocks = torch.block_diag(*(torch.ones(n, n).tril() if causal else torch.ones(n, n) for n in lengths)).bool()
    x = torch.ones(1, heads, total, WIDTH)
    by_mask = count(lambda: functional.scaled_dot_product_attention(x, x, x, attn_mask=blocks)).of("")
    alone = [torch.ones(1, heads, n, WIDTH) for n in lengths]
    one_by_one = count(lambda: [functional.scaled_dot_product_attention(x, x, x, is_causal=causal) for x in alone]).of(
        ""
    )
    assert by_places.macs_causal == by_mask.macs_causal == one_by_one.macs_causal
    assert by_places.macs == one_by_one.macs


@quick
@given(length, length, st.sampled_from([0, 1, 2]), st.sampled_from([None, 3]))
def test_types_of_the_efficient_kernel(queries, keys, kind, window):
    """Type 1 is causal from the top left, 2 from the bottom right; a window counts the query itself."""
    q, k = (torch.empty(2, n, 3, WIDTH, device="meta", dtype=torch.float16) for n in (queries, keys))
    window = window if kind else None
    cost = count(
        lambda: aten._efficient_attention_forward(
            q, k, k, None, None, None, None, None, 0.0, kind, False, window_size=window
        )
    ).of("")
    row, column = torch.arange(queries)[:, None] + (keys - queries if kind == 2 else 0), torch.arange(keys)
    shown = (column <= row) if kind else torch.ones(queries, keys, dtype=torch.bool)
    if window:
        shown = shown & (column > row - window)
    assert cost.macs_causal == 2 * 3 * int(shown.sum()) * 2 * WIDTH


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_function_of_a_block_mask_tells_the_pairs(device):
    def window(batch, head, q, k):
        return (q >= k) & (q - k < 40)

    x = torch.ones(2, 3, 150, WIDTH, device=device)
    mask = create_block_mask(window, None, None, 150, 150, device=device)
    with flex_attention_on_any_device(), torch.no_grad(), stagemeter.count() as counted:
        flex_attention(x, x, x, block_mask=mask)
    cost = counted.cost
    assert cost.macs == 2 * 3 * 150 * 40 * 2 * WIDTH
    assert counted.flops_executed == 2 * 2 * 3 * 150 * 150 * 2 * WIDTH
    assert cost.macs_causal == 2 * 3 * window_pairs(150, 150, left=39, right=0) * 2 * WIDTH


class Eager(nn.Module):
    is_causal = True

    def forward(self, query, key, value):
        return (query @ key.mT).softmax(-1) @ value


@quick
@given(st.integers(1, 3), length)
def test_products_of_causal_attention_are_visible_pairs(batch, tokens):
    query, key, value = operands(batch, 2, tokens, tokens)
    cost = count(lambda: Eager()(query, key, value)).of("")
    with CostCounter(model := Eager()) as counter:
        model(query, key, value)
    pairs = batch * 2 * tokens * (tokens + 1) // 2
    assert counter.counts().of("").macs_causal == pairs * (WIDTH + VALUES)
    assert cost.macs_causal == cost.macs  # Without a model nothing says that it is causal.


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nothing_is_known_of_a_mask_that_is_no_plain_tensor():
    assert pairs_of_mask(torch.empty(2, 2, device="meta")) is None
    assert pairs_of_mask(torch.nested.nested_tensor([torch.ones(2, 2)])) is None
