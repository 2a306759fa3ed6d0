"""Pairs that a mask would show but for the order, against the rules of `stagemeter.models.decoder.visibility`."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import stagemeter
from stagemeter import CostCounter
from stagemeter.counting.higher_order import flex_attention_on_any_device
from stagemeter.counting.unordered_pairs import MaskRows, row_blocks, unordered_pairs
from stagemeter.models.decoder.visibility import Limit

aten = torch.ops.aten
quick = settings(max_examples=60, deadline=None)
length = st.integers(1, 24)
WIDTH = 4


@st.composite
def limits(draw):
    """Draw a limit on what a token attends to: none, a window, or chunks."""
    tokens = draw(st.integers(0, 12))
    return Limit(tokens, chunked=bool(tokens) and draw(st.booleans()))


def causal(limit, tokens):
    """Return the mask of a text as the limit is defined, element by element."""
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
    shown = key <= query
    if limit.chunked:
        return shown & (query // limit.tokens == key // limit.tokens)
    return shown & (query - key < limit.tokens) if limit.tokens else shown


def by_blocks(mask, at_once):
    rows = MaskRows(0 if mask.shape[-2] == mask.shape[-1] else None)
    for block in row_blocks(*mask.shape[-2:], len(mask), at_once):
        rows.add(mask[:, block.start : block.stop])
    assert rows.shown == mask.count_nonzero()
    return rows.unordered


@quick
@given(limits(), st.lists(length, min_size=1, max_size=4), st.integers(1, 200))
def test_packed_texts_count_each_by_the_limit(limit, lengths, at_once):
    mask = torch.block_diag(*(causal(limit, tokens).float() for tokens in lengths)).bool()
    expected = sum(limit.pairs(tokens) for tokens in lengths)
    assert unordered_pairs(mask) == unordered_pairs(mask.expand(3, 1, -1, -1)) // 3 == expected
    assert by_blocks(mask[None], at_once) == expected


@quick
@given(limits(), st.lists(length, min_size=1, max_size=4))
def test_texts_of_a_padded_batch_count_with_their_padding(limit, lengths):
    """Padding counts as tokens: behind the text, or before it where the batch shows the window."""
    longest = max(lengths)
    assume(limit.tokens != 1)  # Padding of a window of one token is a text of its own.
    after, before = (torch.zeros(len(lengths), longest, dtype=torch.bool) for _ in range(2))
    for row, tokens in enumerate(lengths):
        after[row, :tokens] = before[row, longest - tokens :] = True
    whole = causal(limit, longest)
    expected = len(lengths) * limit.pairs(longest)
    if not limit.chunked:
        assert unordered_pairs(whole & after[:, None]) == expected
        assert unordered_pairs(whole & before[:, None]) == expected


@quick
@given(limits(), length, st.integers(0, 24))
def test_new_tokens_after_cached_ones(limit, tokens, cached):
    """Each with as many keys as one can have. A window that hides no pair of a step counts as none."""
    mask = causal(limit, cached + tokens)[cached:]
    if limit.chunked or tokens == 1:
        return
    assert unordered_pairs(mask) == tokens * limit.last_keys(cached + tokens, 0)


@quick
@given(length, length)
def test_causal_masks_of_other_lengths_count_all_pairs(queries, keys):
    for diagonal in (0, keys - queries):
        assert unordered_pairs(torch.ones(queries, keys).tril(diagonal).bool()) == queries * keys


@quick
@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 20))
def test_prefix_and_pictures_whose_tokens_see_each_other(before, picture, after):
    tokens = max(1, before + picture + after)
    mask = causal(Limit(), tokens)
    mask[before : before + picture, before : before + picture] = True
    assert unordered_pairs(mask) == tokens**2


@quick
@given(st.integers(0, 12), st.integers(1, 5), st.integers(0, 20), st.integers(5, 12))
def test_pictures_in_a_window_that_is_no_shorter(before, picture, after, window):
    """As Gemma 3 counts them: S min(S, w), or all that the mask shows if that is more."""
    tokens, limit = before + picture + after, Limit(window)
    mask = causal(limit, tokens)
    mask[before : before + picture, before : before + picture] = True
    assert unordered_pairs(mask) == max(limit.pairs(tokens), int(mask.count_nonzero()))


@quick
@given(st.integers(1, 20), st.integers(0, 20), st.randoms())
def test_masks_without_order_hide_all_that_they_hide(tokens, reach, random):
    """Windows to both sides, and regions of tokens in any order, such as those of shifted windows."""
    place = torch.arange(tokens)
    window = (place[:, None] - place).abs() <= reach
    assert unordered_pairs(window) == by_blocks(window[None], 50) == window.count_nonzero()
    region = torch.tensor([random.randrange(4) for _ in range(tokens)])
    regions = region[:, None] == region
    assert unordered_pairs(regions) == regions.count_nonzero()


@pytest.mark.parametrize("kind", ["first tokens stay", "every second", "two windows", "later ones alone"])
def test_masks_of_other_forms_are_named(kind):
    place, tokens = torch.arange(12), 12
    mask = causal(Limit(4), tokens)
    if kind == "first tokens stay":
        mask = mask | ((place < 2) & (place <= place[:, None]))
    elif kind == "every second":
        mask = mask & ((place[:, None] - place) % 2 == 0)
    elif kind == "two windows":
        mask = torch.stack([mask, causal(Limit(5), tokens)])
    else:
        mask = ~causal(Limit(), tokens)
    assert unordered_pairs(mask) is None
    x = torch.ones(1, 2, tokens, WIDTH)
    with stagemeter.count() as counted:
        functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
    assert counted.flops == counted.flops_executed
    assert any("no window, chunk or text" in note for note in counted.notes)


@quick
@given(limits(), st.lists(length, min_size=1, max_size=3), st.booleans())
def test_a_step_costs_three_forward_passes_of_unordered_pairs(limit, lengths, eager):
    """Attention with a mask, fused or as products: the model needs no pair outside of the limit in either pass."""
    mask, tokens = torch.block_diag(*(causal(limit, n).float() for n in lengths)).bool(), sum(lengths)
    x = torch.ones(2, 1, tokens, WIDTH, requires_grad=True)

    class Attends(torch.nn.Module):
        is_causal = True

        def forward(self, x):
            if not eager:
                return functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)
            return (x @ x.mT).masked_fill(~mask, float("-inf")).softmax(-1) @ x

    model = Attends()
    with stagemeter.count(model) as counted:
        model(x).sum().backward()
    pairs, visible = sum(map(limit.pairs, lengths)), int(mask.count_nonzero())
    products = 2 * 2 * 2 * WIDTH
    assert (counted.flops, counted.flops_causal) == (3 * products * pairs, 3 * products * visible)
    assert counted.flops_executed == products * tokens**2 * (3 if eager else 3.5)


@quick
@given(limits(), length)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_function_of_a_block_mask(limit, tokens):
    def shows(batch, head, query, key):
        if limit.chunked:
            return (key <= query) & (query // limit.tokens == key // limit.tokens)
        return (key <= query) & (query - key < limit.tokens) if limit.tokens else key <= query

    x = torch.ones(2, 3, tokens, WIDTH)
    mask = create_block_mask(shows, None, None, tokens, tokens, device="cpu")
    with flex_attention_on_any_device(), torch.no_grad(), stagemeter.count() as counted:
        flex_attention(x, x, x, block_mask=mask)
    assert counted.macs == 2 * 3 * limit.pairs(tokens) * 2 * WIDTH


@quick
@given(length, length, st.integers(0, 8))
def test_windows_of_kernels(queries, keys, left):
    """Flash-attention: with ``causal`` each query has the keys up to `left` before it."""
    query, key = (torch.empty(2, n, 3, WIDTH, device="meta") for n in (queries, keys))
    with torch.no_grad(), CostCounter() as counter:
        aten._flash_attention_forward(
            query, key, key, None, None, queries, keys, 0.0, True, False, window_size_left=left, window_size_right=0
        )
    assert counter.counts().needed_of("").macs == 2 * 3 * queries * min(keys, left + 1) * 2 * WIDTH
    assert counter.counts().of("").macs == 2 * 3 * queries * keys * 2 * WIDTH
