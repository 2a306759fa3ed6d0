"""Pages of a real vLLM server: the work of the known requests lies inside of what is said of it by the pages alone."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagemeter.analysis.analyze import estimate_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.core.workload import Workload
from stagemeter.models.closed_form import evaluate_workload
from stagemeter.models.families import family_named
from stagemeter.models.lookup import describe_model
from stagemeter.profiling.lengths import Bucket, Histogram, RequestLengths
from stagemeter.profiling.readers import read_scrape_files
from stagemeter.utilization.mixed_lengths import LanguageForms, RequestsWork, requests_work

RECORDED = Path(__file__).parent / "recorded"
SCENARIOS = json.loads((RECORDED / "scenarios.json").read_text(encoding="utf-8"))
QUANTITIES = ("flops", "flops_causal")


@cache
def counted(model: str) -> tuple[dict[str, Any], Workload]:
    """The report of a short request, by which all others are evaluated."""
    described = describe_model(model)
    config = AnalysisConfig(model=model, seq_len=2000, new_tokens=4)
    report = estimate_model(described, config)
    return report, plan_request(config, described)


def of_scenario(name: str) -> tuple[dict[str, Any], Workload]:
    return counted(str(RECORDED / f"{SCENARIOS[name]['config']}.config.json"))


def profile(name: str):
    return read_scrape_files(RECORDED / f"{name}.before.txt", RECORDED / f"{name}.after.txt")


def work_by_page(name: str) -> RequestsWork:
    report, workload = of_scenario(name)
    work = requests_work(report, workload, profile(name).lengths)
    assert work is not None
    return work


def one_by_one(report: dict[str, Any], workload: Workload, requests: list[list[int]], quantity: str) -> int:
    """The sum over requests of the closed form of each, of whole prompts."""
    family, whole = family_named(report["metadata"]["family"]), 0
    for prompt, _, new in requests:
        request = replace(workload, prompt_tokens=prompt, new_tokens=new, decode_context=prompt + 1)
        costs = evaluate_workload(report["closed_form"], family, request)
        whole += getattr(costs["prefill"], quantity) + getattr(costs["decode_total"], quantity)
    return whole


@pytest.mark.parametrize("name", SCENARIOS)
def test_lengths_are_those_of_the_requests(name):
    requests, lengths = SCENARIOS[name]["requests"], profile(name).lengths
    assert lengths.requests == len(requests)
    assert lengths.prompt.total == sum(prompt for prompt, _, _ in requests)
    assert lengths.cached == sum(cached for _, cached, _ in requests)
    assert lengths.new.total == sum(new for _, _, new in requests)


@pytest.mark.parametrize("name", [name for name, of in SCENARIOS.items() if of["dense"] is not None])
def test_work_of_the_requests_lies_inside_of_the_bounds(name):
    scenario, work = SCENARIOS[name], work_by_page(name)
    for quantity, recorded in zip(QUANTITIES, ("dense", "causal"), strict=True):
        truth = one_by_one(*of_scenario(name), scenario["requests"], quantity)
        assert scenario[recorded] in (truth, None)
        bounds = work.total(quantity)
        assert bounds.least <= truth <= bounds.most
        assert bounds.least <= bounds.estimate <= bounds.most


@pytest.mark.parametrize("name", ["dense_llama", "chunked_prefill", "qwen2_5_vl", "qwen3_moe", "data_parallel_2"])
def test_visible_pairs_are_those_that_the_mask_shows(name):
    """Of full attention: the dense count less the S(S-1)/2 later keys of each prompt, two products each of head_dim."""
    scenario = SCENARIOS[name]
    sizes = json.loads((RECORDED / f"{scenario['config']}.config.json").read_text(encoding="utf-8"))
    sizes = sizes.get("text_config", sizes)
    width = sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
    pair = 2 * 2 * sizes["num_attention_heads"] * width * sizes["num_hidden_layers"]
    later = sum(prompt * (prompt - 1) // 2 for prompt, _, _ in scenario["requests"])
    assert scenario["causal"] == scenario["dense"] - later * pair


@pytest.mark.parametrize(
    "name", ["mixed_lengths", "dense_llama", "prefix_cache", "qwen2_5_vl", "mistral_window", "data_parallel_2"]
)
def test_estimate_of_the_engine_lies_inside_of_the_bounds(name):
    """It counts as ours does where prompts are computed at once, cached tokens included: they are only attended to."""
    estimate = profile(name).metrics["engine/estimated_flops"]
    assert estimate == SCENARIOS[name]["vllm_estimate"]
    bounds = work_by_page(name).total("flops")
    assert bounds.least <= estimate <= bounds.most


@pytest.mark.parametrize("name", ["prefix_cache", "qwen2_5_vl_prefix_cache", "otlp_traces"])
def test_tokens_from_a_cache_are_not_counted(name):
    scenario, work = SCENARIOS[name], work_by_page(name)
    whole = one_by_one(*of_scenario(name), scenario["requests"], "flops")
    bounds = work.total("flops")
    assert bounds.least <= scenario["vllm_estimate"] <= bounds.most
    assert bounds.estimate < whole
    assert any("came from a cache" in flag for flag in work.flags())


@pytest.mark.parametrize(
    ("kept", "source"),
    [
        (("request_prefill", "prompt_tokens_by_source", "prompt_tokens_cached", "prefix_cache"), "request_prefill_kv"),
        (("prompt_tokens_by_source", "prompt_tokens_cached", "prefix_cache"), "prompt_tokens_by_source_total, local"),
        (("prompt_tokens_cached", "prefix_cache"), "prompt_tokens_cached_total"),
        (("prefix_cache",), "prefix_cache_hits_total"),
        ((), "no counter of cached tokens"),
    ],
)
def test_best_of_the_counters_of_computed_tokens_is_taken(tmp_path, kept, source):
    every = ("request_prefill_kv_computed", "prompt_tokens_by_source", "prompt_tokens_cached", "prefix_cache")
    dropped = tuple(f"vllm:{name}" for name in every if not name.startswith(kept or ("none",)))
    files = []
    for page in ("before", "after"):
        lines = (RECORDED / f"prefix_cache.{page}.txt").read_text().splitlines(keepends=True)
        files.append(tmp_path / page)
        files[-1].write_text("".join(line for line in lines if not line.startswith(dropped)))
    lengths = read_scrape_files(*files).lengths
    assert source in lengths.computed_source
    assert lengths.computed.total == (2699 if kept else 9387)
    report, workload = of_scenario("prefix_cache")
    bounds = requests_work(report, workload, lengths).total("flops")
    if kept:
        assert bounds.least <= SCENARIOS["prefix_cache"]["vllm_estimate"] <= bounds.most


def test_import_says_that_it_is_an_estimate_and_bounds_it():
    notes = profile("mixed_lengths").notes
    said = next(note for note in notes if "estimate from the mean lengths" in note)
    # Sums by hand: 12 x 275 squared; the prompts as equal and as unequal as their buckets let them be.
    assert "275 prompt and 11.25 new tokens" in said
    assert "computed x prompt tokens 907,500 by the means, 1,515,006 to 2,479,920" in said
    flags = work_by_page("mixed_lengths").flags()
    assert flags == [
        "FLOPs are an estimate from the mean lengths of 12 requests: by the engine's histograms, those of the language "
        "model are -0.4 % to +18.7 % off at most"
    ]


def lengths_of(requests: list[tuple[int, int, int]]) -> RequestLengths:
    """What histograms with an end at each power of two say."""

    def histogram(lengths: list[int], shortest: int) -> Histogram:
        powers = [(length - 1).bit_length() if length > 1 else 0 for length in lengths]
        buckets = tuple(
            Bucket(shortest if power == 0 else 2 ** (power - 1) + 1, 2**power, powers.count(power))
            for power in sorted(set(powers))
        )
        return Histogram(sum(lengths), buckets)

    prompts, cached, new = (list(column) for column in zip(*requests, strict=True))
    computed = [whole - part for whole, part in zip(prompts, cached, strict=True)]
    return RequestLengths(histogram(prompts, 1), histogram(new, 1), histogram(computed, 0), "test")


MODELS = (
    "llama-3.1-8b",
    "mistral-7b-v0.1",
    "gpt-oss-20b",
    "llama-4-scout",
    "gemma-3-1b",
    "deepseek-v3",
    "deepseek-v3.2",
    "qwen3-30b-a3b",
    "qwen3-next-80b-a3b",
    "mamba2-default",
    "zamba2-default",
    "minimax-01",
)


@pytest.mark.parametrize("model", MODELS)
@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(1, 20_000), st.just(0), st.integers(1, 2000)), min_size=1, max_size=8))
def test_work_lies_inside_of_the_bounds_for_every_kind_of_layer(model, requests):
    report, workload = counted(model)
    work = requests_work(report, workload, lengths_of(requests))
    for quantity in QUANTITIES:
        bounds = work.total(quantity)
        assert bounds.least <= one_by_one(report, workload, requests, quantity) <= bounds.most


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 20_000), st.floats(0, 1), st.integers(1, 40)), min_size=1, max_size=8),
)
def test_work_over_a_cache_lies_inside_of_the_bounds(requests):
    """Of full attention it is known: a step of one token over a context, for each token that was computed."""
    report, workload = counted("llama-3.1-8b")
    served = [(prompt, int((prompt - 1) * share), new) for prompt, share, new in requests]
    work = requests_work(report, workload, lengths_of(served))
    forms = {quantity: LanguageForms(report, workload, quantity) for quantity in QUANTITIES}
    per_pair = forms["flops"].step(3) - forms["flops"].step(2)
    for quantity in QUANTITIES:
        over_cache = sum((prompt - cached) * cached * per_pair for prompt, cached, _ in served)
        alone = [[prompt - cached, 0, 1] for prompt, cached, _ in served]
        truth = over_cache + one_by_one(report, workload, alone, quantity)
        truth += sum(forms[quantity].step(prompt + step) for prompt, _, new in served for step in range(1, new))
        bounds = work.total(quantity)
        assert bounds.least <= truth <= bounds.most


# Prefills over a cache, by hand

#: DeepSeek-V3, arXiv 2412.19437, section 4.2: layers, heads, and widths of a head and of compressed vectors.
V3_LAYERS, V3_HEADS, V3_PLAIN, V3_ROTARY, V3_VALUE, V3_RANK = 61, 128, 128, 64, 128, 512


def v3_over_cache(alone: int, tokens: int, cached: int, quantity: str) -> int:
    """The cheaper of both ways of latent attention, from a prefill of the new tokens alone, which is expanded."""
    expanded = V3_ROTARY + V3_PLAIN + V3_VALUE
    absorbed = 2 * V3_RANK + V3_ROTARY
    expansion = cached * V3_RANK * (V3_PLAIN + V3_VALUE)

    def ways(own: int) -> tuple[int, int]:
        return expansion + expanded * tokens * cached, absorbed * (own + tokens * cached) - expanded * own

    visible, dense = ways(tokens * (tokens + 1) // 2), ways(tokens**2)
    # Visible pairs decide.
    absorbs = visible[1] < visible[0]
    return alone + 2 * V3_LAYERS * V3_HEADS * (dense if quantity == "flops" else visible)[absorbs]


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize(
    ("tokens", "cached"), [(1, 1), (1, 40_000), (170, 30_000), (171, 30_000), (172, 30_000), (900, 1), (900, 9000)]
)
def test_one_prefill_over_latent_vectors_is_a_single_number(quantity, tokens, cached):
    """With 171 new tokens or more, expanding the context costs less than wider products of each pair."""
    report, workload = counted("deepseek-v3")
    work = requests_work(report, workload, lengths_of([(tokens + cached, cached, 1)]))
    alone = LanguageForms(report, workload, quantity).prefill(tokens)
    by_hand = v3_over_cache(alone, tokens, cached, quantity)
    found = work.parts[quantity]["prefill"]
    assert (found.least, found.estimate, found.most) == (by_hand, by_hand, by_hand)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(2, 60_000), st.floats(0, 1), st.just(1)), min_size=1, max_size=6))
def test_prefills_over_latent_vectors_lie_inside_of_the_bounds(requests):
    report, workload = counted("deepseek-v3")
    served = [(prompt, int((prompt - 1) * share), new) for prompt, share, new in requests]
    work = requests_work(report, workload, lengths_of(served))
    for quantity in QUANTITIES:
        forms = LanguageForms(report, workload, quantity)
        truth = sum(
            v3_over_cache(forms.prefill(prompt - cached), prompt - cached, cached, quantity)
            for prompt, cached, _ in served
        )
        bounds = work.parts[quantity]["prefill"]
        assert bounds.least <= truth <= bounds.most


def test_many_new_tokens_over_latent_vectors_have_narrow_bounds():
    """All expand: only the pairs of new tokens and cached ones are not known from the histograms."""
    report, workload = counted("deepseek-v3")
    work = requests_work(report, workload, lengths_of([(3000 + 10 * number, 2000, 1) for number in range(20)]))
    found = work.parts["flops"]["prefill"]
    assert found.most / found.least < 1.05


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(2, 9000), st.floats(0, 1), st.just(1)), min_size=1, max_size=4))
def test_prefills_over_a_window_lie_inside_of_the_bounds(requests):
    """Each new token sees itself and up to 4,095 tokens before it, new or cached."""
    report, workload = counted("mistral-7b-v0.1")
    served = [(prompt, int((prompt - 1) * share), new) for prompt, share, new in requests]
    work = requests_work(report, workload, lengths_of(served))
    dense = LanguageForms(report, workload, "flops")
    per_pair = dense.step(3) - dense.step(2)
    for quantity in QUANTITIES:
        forms, truth = LanguageForms(report, workload, quantity), 0
        for prompt, cached, _ in served:
            new = prompt - cached
            if quantity == "flops":
                pairs = new * (min(prompt, 4096) - min(new, 4096))
            else:
                pairs = sum(min(cached + place, 4096) - min(place, 4096) for place in range(1, new + 1))
            truth += forms.prefill(new) + per_pair * pairs
        bounds = work.parts[quantity]["prefill"]
        assert bounds.least <= truth <= bounds.most
        if len(served) == 1:
            assert bounds.exact


def test_one_prefill_over_chosen_tokens_is_a_single_number():
    """DeepSeek-V3.2: the indexer scores all tokens; attention sees 2,048 of them, expanded or absorbed."""
    report, workload = counted("deepseek-v3.2")
    forms = LanguageForms(report, workload, "flops")
    for tokens, prompt in ((3, 30_000), (500, 30_000)):
        work = requests_work(report, workload, lengths_of([(prompt, prompt - tokens, 1)]))
        # 64 heads of 128 score a pair, and their weighted sum takes a product more of each.
        scores = 61 * 64 * (128 + 1) * tokens * (prompt - tokens)
        attended, own = tokens * 2048, tokens * tokens
        expanded, absorbed = V3_ROTARY + V3_PLAIN + V3_VALUE, 2 * V3_RANK + V3_ROTARY
        expansion = (prompt - tokens) * V3_RANK * (V3_PLAIN + V3_VALUE)
        attention = min(expansion + expanded * attended, absorbed * attended) - expanded * own
        by_hand = forms.prefill(tokens) + 2 * (scores + V3_LAYERS * V3_HEADS * attention)
        found = work.parts["flops"]["prefill"]
        assert (found.least, found.estimate, found.most) == (by_hand, by_hand, by_hand)
