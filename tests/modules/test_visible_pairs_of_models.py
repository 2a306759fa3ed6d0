"""Visible pairs of models of transformers, from shapes and from real tensors, against the masks as documented."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import stagemeter

BATCH, LENGTH, WINDOW, CHUNK = 2, 50, 8, 16
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}
DECODER = {**SIZES, "num_key_value_heads": 2}
CAUSAL = LENGTH * (LENGTH + 1) // 2
WINDOWED = sum(min(query + 1, WINDOW) for query in range(LENGTH))
CHUNKED = sum(query % CHUNK + 1 for query in range(LENGTH))
#: Pairs but for the order of tokens.
IN_WINDOWS = LENGTH * WINDOW
IN_CHUNKS = LENGTH // CHUNK * CHUNK**2 + (LENGTH % CHUNK) ** 2
#: Configuration, class, and the pairs of both layers: visible ones, and those that would be but for the order.
MODELS = {
    "causal": (LlamaConfig(**DECODER), LlamaForCausalLM, 2 * CAUSAL, 2 * LENGTH**2),
    "window": (MistralConfig(**DECODER, sliding_window=WINDOW), MistralForCausalLM, 2 * WINDOWED, 2 * IN_WINDOWS),
    "mixed": (
        Gemma3TextConfig(
            **DECODER, head_dim=8, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
        ),
        Gemma3ForCausalLM,
        WINDOWED + CAUSAL,
        IN_WINDOWS + LENGTH**2,
    ),
    "chunks": (
        Llama4TextConfig(
            **DECODER, head_dim=8, intermediate_size_mlp=48, attention_chunk_size=CHUNK, moe_layers=[],
            layer_types=["chunked_attention", "full_attention"], num_local_experts=2,
        ),
        Llama4ForCausalLM,
        CHUNKED + CAUSAL,
        IN_CHUNKS + LENGTH**2,
    ),
    "bidirectional": (BertConfig(**SIZES), BertForMaskedLM, 2 * LENGTH**2, 2 * LENGTH**2),
}  # fmt: skip


def hidden_pairs(counted, passes=1):
    """Return the pairs of one sequence that attention does not see; each costs two products of the hidden size."""
    return pairs_between(counted.flops_causal, counted.flops, passes)


def pairs_between(fewer, more, passes=1):
    return (more - fewer) // (2 * 2 * BATCH * SIZES["hidden_size"] * passes)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("masked", [False, True])
def test_layers_see_what_their_masks_show(kind, implementation, masked):
    config, make, visible, unordered = MODELS[kind]
    config._attn_implementation = implementation
    model, ids = make(config), torch.randint(0, 64, (BATCH, LENGTH))
    given = {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if masked else {})
    shapes = {name: stagemeter.spec(BATCH, LENGTH, dtype=torch.long) for name in given}
    hidden, outside = unordered - visible, 2 * LENGTH**2 - unordered
    total = stagemeter.analyze(model, kwargs=shapes).total
    assert (hidden_pairs(total), pairs_between(total.flops, total.flops_executed)) == (hidden, outside)
    step = stagemeter.analyze(model, kwargs=shapes, mode="train").total
    assert hidden_pairs(step, passes=3) == hidden
    # The backward pass of fused attention has five products, one of them again.
    ran = pairs_between(step.flops, step.flops_executed)
    assert ran == 3 * outside if implementation == "eager" else 3.5 * outside + unordered / 2
    with torch.no_grad(), stagemeter.count(model.eval()) as counted:
        model(**given)
    assert (hidden_pairs(counted), pairs_between(counted.flops, counted.flops_executed)) == (hidden, outside)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_and_packed_sequences_count_at_what_they_show(implementation):
    config, make, *_ = MODELS["causal"]
    config._attn_implementation = implementation
    model, ids = make(config).eval(), torch.randint(0, 64, (BATCH, LENGTH))
    padded = torch.ones_like(ids)
    padded[:, 40:] = 0
    visible = 40 * 41 // 2 + 10 * 40
    report = stagemeter.analyze(model, kwargs={"input_ids": ids, "attention_mask": padded})
    assert (report.counted_on, hidden_pairs(report.total)) == ("meta", 2 * (LENGTH**2 - visible))
    with torch.no_grad(), stagemeter.count(model) as counted:
        model(input_ids=ids, attention_mask=padded)
    assert hidden_pairs(counted) == 2 * (LENGTH**2 - visible)
    lengths = (20, 30)
    positions = torch.cat([torch.arange(length) for length in lengths]).expand(BATCH, -1)
    with torch.no_grad(), stagemeter.count(model) as counted:
        model(input_ids=ids, position_ids=positions, use_cache=False)
    hidden = 2 * sum(length * (length - 1) // 2 for length in lengths)
    assert hidden_pairs(counted) == hidden
    kwargs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    step = stagemeter.analyze(model, kwargs=kwargs, mode="train")
    assert (step.counted_on, hidden_pairs(step.total, passes=3)) == ("meta", hidden)
    # Pairs of two texts are no work of the model.
    executed = 2 * (LENGTH**2 - sum(length**2 for length in lengths))
    assert pairs_between(counted.flops, counted.flops_executed) == executed


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", [False, True])
def test_sequences_whose_places_have_no_values_are_not_packed(implementation, positions):
    """Without a cache transformers looks for packed sequences in positions, its own ones, too."""
    config, make, visible, _ = MODELS["causal"]
    config._attn_implementation = implementation
    names = ("input_ids", "position_ids") if positions else ("input_ids",)
    shapes = {name: stagemeter.spec(BATCH, LENGTH, dtype=torch.long) for name in names}
    report = stagemeter.analyze(make(config), kwargs=shapes | {"use_cache": False})
    assert hidden_pairs(report.total) == 2 * LENGTH**2 - visible
    assert not report.notes


def test_cached_tokens_are_seen_by_all_new_ones():
    """Three new tokens after a prompt, with a mask: each sees the prompt, and the new ones up to itself."""
    from transformers import DynamicCache

    for implementation in ("sdpa", "eager"):
        config, make, *_ = MODELS["causal"]
        config._attn_implementation = implementation
        model, cache = make(config).eval(), DynamicCache()
        with torch.no_grad():
            model(input_ids=torch.randint(0, 64, (BATCH, 10)), past_key_values=cache)
            with stagemeter.count(model) as counted:
                model(input_ids=torch.randint(0, 64, (BATCH, 3)), past_key_values=cache)
        assert hidden_pairs(counted) == 2 * (3 * 13 - (3 * 10 + 3 * 4 // 2))
