"""Prompts that are computed in parts, over a cache or in chunks: what they come to, and what is refused."""

import pytest

from stagemeter import AnalysisConfig, StagemeterError, describe_model, estimate_model
from stagemeter.analysis.requests import plan_request
from stagemeter.application.profile import ProfileConfig, profile_page
from stagemeter.conventions import compare
from stagemeter.utilization.memory import memory_need


def estimate(model, **settings):
    return estimate_model(describe_model(model), AnalysisConfig(model=model, **settings))


def test_new_tokens_attend_to_those_that_the_cache_holds():
    """Llama 3.1 8B by hand: 32 layers of 32 heads of 128; 14,336 wide networks; a vocabulary of 128,256."""
    prefill = estimate("llama-3.1-8b", seq_len=8192, cached_tokens=8000)["stages"]["prefill"]
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14_336
    rows = 192 * 32 * layer + 4096 * 128_256
    pair = 32 * 32 * 2 * 128
    assert prefill["macs"] == rows + 192 * 8192 * pair
    assert prefill["flops_causal"] == 2 * (rows + (192 * 8000 + 192 * 193 // 2) * pair)


def test_cached_page_is_not_encoded():
    report = estimate("qwen2.5-vl-7b", text_tokens=2000, cached_tokens=5000)
    assert [report["stages"][name]["flops"] for name in ("vit", "merger")] == [0, 0]
    assert any("computes 1,956 of 6,956 tokens" in note and "not encoded" in note for note in report["notes"])


def test_cached_page_needs_no_memory_for_its_encoder():
    model = describe_model("qwen2.5-vl-7b")
    whole, cached = (
        memory_need(model.family, model.architecture, plan_request(AnalysisConfig(**asked, text_tokens=2000), model))
        for asked in ({}, {"cached_tokens": 5000})
    )
    assert whole.working_sets["vit"] > 0 == cached.working_sets["vit"]


@pytest.mark.parametrize(
    ("model", "settings", "reason"),
    [
        ("llama-3.1-8b", {"seq_len": 8, "cached_tokens": 8}, "the last one is always computed. Give at most 7"),
        ("qwen2.5-vl-7b", {"cached_tokens": 4955}, "begins the prompt with 4956 tokens"),
        ("llama-3.2-11b-vision", {"cached_tokens": 4}, "attends to its page besides the prompt"),
        ("trocr-base", {"cached_tokens": 4}, "attends to its page besides the prompt|the last one is always computed"),
        ("paligemma-3b", {"cached_tokens": 260}, "see one another"),
        ("paligemma-3b", {"chunk_tokens": 200}, "see one another"),
        ("gemma-3-4b", {"chunk_tokens": 100}, "a chunk holds the whole page. Give 256 or more"),
        ("llama-3.2-11b-vision", {"chunk_tokens": 4}, "attends to its page besides the prompt"),
        ("granite-docling-default", {"cached_tokens": 4}, "a prompt is run whole"),
    ],
)
def test_what_no_cache_holds_is_refused(model, settings, reason):
    with pytest.raises(StagemeterError, match=reason):
        plan_request(AnalysisConfig(model=model, **settings), describe_model(model))


def test_chunks_read_the_weights_each_and_yield_one_token():
    """Llama 3.1 8B, 1,000 tokens: three passes read its layers, the last one its head."""
    whole, parts = (
        estimate("llama-3.1-8b", seq_len=1000, chunk_tokens=chunk)["stages"]["prefill"] for chunk in (None, 400)
    )
    assert parts["flops_causal"] == whole["flops_causal"]
    layers, kept = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14_336), 2 * 32 * 1024 * 2
    # Chunks of 400, 400 and 200 read the weights, and keys and values of 400, 800 and 1,000 tokens.
    assert parts["bytes_read"] - whole["bytes_read"] == 2 * 2 * layers + (400 + 800) * kept
    assert parts["flops_executed"] - parts["flops"] == 2 * 2 * 4096 * 128_256


def test_other_commands_take_whole_prompts():
    with pytest.raises(StagemeterError, match="cached_tokens 4: profile takes whole prompts"):
        profile_page(ProfileConfig(cached_tokens=4))
    with pytest.raises(StagemeterError, match="chunk_tokens 4: profile takes whole prompts"):
        profile_page(ProfileConfig(chunk_tokens=4))
    with pytest.raises(StagemeterError, match="cached_tokens 4: other projects count whole prompts"):
        compare(estimate("llama-3.1-8b", seq_len=8, cached_tokens=4))


def test_hash_tells_cached_tokens_and_leaves_others_as_they_were():
    model = describe_model("llama-3.1-8b")
    hashes = [plan_request(AnalysisConfig(seq_len=100, cached_tokens=cached), model).hash for cached in (None, 50, 51)]
    assert len(set(hashes)) == 3
    assert "cached_tokens" not in plan_request(AnalysisConfig(seq_len=100), model).hashed_fields()
