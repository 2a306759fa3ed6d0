"""Pages of other serving engines than vLLM: what each gives of known requests, and what it lacks."""

import json
from pathlib import Path

import pytest
from pages_of_engines import REQUESTS, decode_seconds, llama_cpp, prefill_seconds, sglang, tensorrt_llm, triton

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.lengths import Bucket
from stagemeter.profiling.readers import read_scrape_files, read_scrapes
from stagemeter.profiling.readers.engines.known import ENGINES
from stagemeter.profiling.readers.live import Server

RECORDED = Path(__file__).parents[3] / "utilization" / "serving" / "recorded"
SERVED = json.loads((RECORDED / "scenarios.json").read_text())["prefix_cache"]["requests"]
EARLIER = [(40, 0, 3)]


def times(requests) -> tuple[float, float]:
    """Mean milliseconds until the first token, and from there to the last."""
    return tuple(1e3 * sum(map(part, requests)) / len(requests) for part in (prefill_seconds, decode_seconds))


def assert_lengths(profile, requests, cached=True):
    prompt, hits, new = (sum(request[part] for request in requests) for part in range(3))
    assert profile.lengths.requests == profile.metrics["engine/requests"] == len(requests)
    assert (profile.lengths.prompt.total, profile.lengths.new.total) == (prompt, new)
    assert profile.lengths.computed.total == prompt - (hits if cached else 0)


def test_sglang_gives_lengths_cached_tokens_and_times():
    profile = read_scrapes(sglang("before"), sglang("after"), seconds=10)
    assert_lengths(profile, SERVED)
    forward, decode = times(SERVED)
    assert profile.times_ms["forward"] == (pytest.approx(forward),)
    assert profile.times_ms["decode_total"] == (pytest.approx(decode),)
    assert profile.source == "SGLang metrics"
    assert profile.hardware["devices"] == "2"
    # Buckets of SGLang's histograms: 300 is in the one that ends there.
    assert profile.lengths.prompt.buckets[0] == Bucket(101, 300, 1)


def test_sglang_estimates_the_exact_work_without_the_output_head():
    """18,532,270,080 is the exact causal count of these requests; each row of the head is 2 x 256 x 1024."""
    profile = read_scrapes(sglang("before"), sglang("after"))
    rows = sum(new for _, _, new in SERVED)
    assert profile.metrics["engine/estimated_flops"] == 18_532_270_080 - rows * 2 * 256 * 1024


def test_sglang_before_its_first_request_has_no_series_yet():
    profile = read_scrapes(sglang("fresh"), sglang("before"))
    assert_lengths(profile, EARLIER)
    with pytest.raises(StagemeterError, match=r"lacks sglang:num_requests_total.*has answered a request"):
        read_scrapes(sglang("fresh"), sglang("fresh"))


def without(page: str, *names: str) -> str:
    return "".join(line for line in page.splitlines(keepends=True) if not any(name in line for name in names))


def test_sglang_without_histograms_of_tokens_counts_cached_ones():
    pages = [without(sglang(page), "_histogram", "per_stage") for page in ("before", "after")]
    profile = read_scrapes(*pages)
    assert_lengths(profile, SERVED)
    assert profile.lengths.computed_source == "sglang:cached_tokens_total"
    # The time to the first token less that in the queue has 2 ms in front of the scheduler.
    assert profile.times_ms["forward"] == (pytest.approx(times(SERVED)[0] + 2),)
    no_hits = read_scrapes(*(without(page, "cached_tokens") for page in pages))
    assert no_hits.lengths.cached == 0


def test_each_rank_of_tensor_parallelism_reports_the_same_requests():
    def twice(page: str) -> str:
        lines = sglang(page).splitlines(keepends=True)
        return "".join([*lines, *(line.replace('tp_rank="0"', 'tp_rank="10"') for line in lines if "tp_rank" in line)])

    one, two = read_scrapes(sglang("before"), sglang("after")), read_scrapes(twice("before"), twice("after"))
    assert two.metrics == one.metrics
    assert two.times_ms == one.times_ms


def test_tensorrt_llm_gives_tokens_cached_ones_and_times():
    profile = read_scrapes(tensorrt_llm(EARLIER), tensorrt_llm(EARLIER + REQUESTS), seconds=10)
    assert_lengths(profile, REQUESTS)
    forward, decode = times(REQUESTS)
    assert profile.times_ms["forward"] == (pytest.approx(forward),)
    # One request ends with its first token, and its time is not observed.
    assert profile.times_ms["decode_total"] == (pytest.approx(decode),)
    assert profile.metrics["engine/prefix_cache_hit_tokens"] == 640
    assert_lengths(read_scrapes(tensorrt_llm([]), tensorrt_llm(REQUESTS)), REQUESTS)


def test_earlier_tensorrt_llm_names_what_it_lacks():
    uncached = [tensorrt_llm(part, cached=False) for part in (EARLIER, EARLIER + REQUESTS)]
    profile = read_scrapes(*uncached)
    assert_lengths(profile, REQUESTS, cached=False)
    assert profile.lengths.computed_source == "no counter of cached tokens: whole prompts"
    pages = [tensorrt_llm(part, tokens=False, cached=False, phases=False) for part in (EARLIER, EARLIER + REQUESTS)]
    profile = read_scrapes(*pages)
    assert profile.lengths is None
    assert profile.measured == {"batch_size": 1}
    assert profile.times_ms == {
        "forward": (pytest.approx(times(REQUESTS)[0]),),
        "decode_total": (pytest.approx(times(REQUESTS)[1]),),
    }
    assert "TensorRT-LLM's page has no number of tokens: lengths are those that the options give" in profile.notes


def test_llama_cpp_needs_the_number_of_requests():
    pages = llama_cpp(EARLIER), llama_cpp(EARLIER + REQUESTS)
    with pytest.raises(StagemeterError, match=r"has no number of requests.*import-profile.*--request-count"):
        read_scrapes(*pages)
    profile = read_scrapes(*pages, request_count=3, seconds=10)
    assert_lengths(profile, REQUESTS)
    forward, decode = times(REQUESTS)
    assert profile.times_ms["forward"] == (pytest.approx(forward),)
    assert profile.times_ms["decode_total"] == (pytest.approx(decode),)
    assert not any("digits" in note for note in profile.notes)
    with pytest.raises(
        StagemeterError, match="--request-count: the page has the number of requests, sglang:num_requests_total"
    ):
        read_scrapes(sglang("before"), sglang("after"), request_count=12)


def test_earlier_llama_cpp_does_not_count_cached_tokens():
    profile = read_scrapes(*(llama_cpp(part, cached=False) for part in (EARLIER, EARLIER + REQUESTS)), request_count=3)
    assert profile.lengths.prompt.total == profile.lengths.computed.total == 1050 - 640
    assert not profile.lengths.computed_known
    assert any("attention over cached ones lacks" in note for note in profile.notes)


def test_llama_cpp_rounds_large_counters_and_the_note_bounds_it():
    requests = [(100_003, 0, 5)] * 12
    profile = read_scrapes(llama_cpp(EARLIER), llama_cpp(EARLIER + requests), request_count=12)
    note = next(note for note in profile.notes if "prints 6 digits" in note)
    assert "their growth is off by up to 10" in note
    assert 0 < abs(profile.lengths.prompt.total - 12 * 100_003) <= 10


def test_triton_gives_requests_and_their_whole_time():
    profile = read_scrapes(triton(EARLIER), triton(EARLIER + REQUESTS), seconds=10)
    assert_lengths(profile, REQUESTS, cached=False)
    assert profile.times_ms == {}
    assert profile.request_ms == (pytest.approx(sum(times(REQUESTS))),)
    assert any("no time of forward and decode" in note for note in profile.notes)
    bare = read_scrapes(triton(EARLIER, tokens=False), triton(EARLIER + REQUESTS, tokens=False))
    assert bare.lengths is None


def test_models_of_a_triton_server_are_named():
    pages = [triton(part, models=("preprocessing", "tensorrt_llm")) for part in (EARLIER, EARLIER + REQUESTS)]
    with pytest.raises(StagemeterError, match=r"several models, preprocessing, tensorrt_llm. Choose one"):
        read_scrapes(*pages)
    assert_lengths(read_scrapes(*pages, engine_model="tensorrt_llm"), REQUESTS, cached=False)


def test_pages_of_two_engines_are_refused():
    with pytest.raises(StagemeterError, match=r"second scrape: the page is of llama.cpp, and first scrape of SGLang"):
        read_scrapes(sglang("before"), llama_cpp(REQUESTS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!DOCTYPE html>\n<html><body>502 Bad Gateway</body></html>\n", "the page is HTML"),
        ('{"error": {"code": 503, "message": "Loading model"}}\n', "has no metrics of vLLM, SGLang, TensorRT-LLM"),
        ("", "the page is empty"),
        (llama_cpp(REQUESTS)[:-3], "ends within a line"),
        ("".join(sglang("after").splitlines(keepends=True)[:-9]), "was cut off, or the server restarted"),
    ],
    ids=["html", "json", "empty", "within a line", "within the page"],
)
def test_pages_that_are_no_whole_page_are_named(tmp_path, text, message):
    first = llama_cpp(EARLIER) if "llamacpp" in text else sglang("before")
    with pytest.raises(StagemeterError, match=message):
        read_scrapes(first, text, request_count=1 if "llamacpp" in text else None)


@pytest.mark.parametrize("make", [sglang, tensorrt_llm, llama_cpp, triton])
def test_counters_that_run_backwards_are_a_restart_or_the_wrong_order(make):
    before, after = (sglang("before"), sglang("after")) if make is sglang else (make(EARLIER), make(EARLIER + REQUESTS))
    with pytest.raises(StagemeterError, match=r"went down since .*give the earlier page first"):
        read_scrapes(after, before, request_count=3 if make is llama_cpp else None)


def vllm(page: str, **more: float) -> str:
    """A recorded page of vLLM, with further counters of its engine."""
    lines = [f'vllm:{name}{{engine="0",model_name="./llama"}} {value}\n' for name, value in more.items()]
    return (RECORDED / f"prefix_cache.{page}.txt").read_text() + "".join(lines)


def test_speculation_names_acceptance_and_what_was_computed_in_vain():
    """A pass of k drafts computes k + 1 tokens and yields the accepted ones and one more."""
    drafts = (
        "spec_decode_num_drafts_total",
        "spec_decode_num_draft_tokens_total",
        "spec_decode_num_accepted_tokens_total",
    )
    pages = (
        vllm(page, **dict(zip(drafts, counts, strict=True)))
        for page, counts in (("before", (5, 15, 10)), ("after", (35, 105, 56)))
    )
    profile = read_scrapes(*pages)
    assert profile.metrics["engine/drafts"] == 30
    assert profile.metrics["engine/draft_acceptance"] == pytest.approx(46 / 90)
    assert profile.metrics["engine/rejected_draft_tokens"] == 44
    assert profile.metrics["engine/tokens_per_draft"] == pytest.approx(76 / 30)
    note = next(note for note in profile.notes if "speculatively (30 drafts)" in note)
    assert "46 of 90 drafted tokens accepted (51.1%), so 44 more tokens were computed" in note
    assert "without the model that drafts" in note


def test_speculation_of_sglang_lacks_the_number_of_drafted_tokens():
    line = 'sglang:spec_verify_calls_total{engine_type="unified",model_name="llama"} 38\n'
    profile = read_scrapes(sglang("before"), sglang("after") + line)
    assert profile.metrics["engine/tokens_per_draft"] == 2
    assert any("no number of drafted tokens" in note for note in profile.notes)


def test_pictures_are_those_that_the_cache_was_asked_for():
    """Of the recorded server: 8 pictures, 2 of them sent again."""
    pages = (RECORDED / f"qwen2_5_vl.{page}.txt" for page in ("before", "after"))
    profile = read_scrape_files(*pages)
    assert (profile.metrics["engine/multimodal_queries"], profile.metrics["engine/multimodal_hits"]) == (8, 2)
    assert any("8 pictures came in, and the multimodal cache had 2 of them" in note for note in profile.notes)


def test_tokens_that_another_server_computed_are_named():
    pages = [vllm(page) for page in ("before", "after")]
    kept = [line for line in pages[1].splitlines() if "request_prefill_kv" not in line]
    moved = [
        line.replace(" 6688.0", " 6088.0")
        if 'source="local_cache_hit"' in line
        else line.replace(" 0.0", " 600.0")
        if 'source="external_kv_transfer"' in line
        else line
        for line in kept
    ]
    first = without(pages[0], "request_prefill_kv")
    profile = read_scrapes(first, "\n".join(moved) + "\n")
    assert profile.metrics["engine/transferred_prompt_tokens"] == 600
    assert any("600 prompt tokens came from another server's KV cache" in note for note in profile.notes)
    assert profile.lengths.computed.total == 2699


def test_every_table_names_metrics_of_its_engine_alone():
    for engine in ENGINES:
        assert all(name.startswith(engine.prefixes) for name in engine.wanted), engine.name
        assert set(engine.required) <= engine.wanted


def test_saved_pages_are_read(tmp_path):
    pages = []
    for name, part in (("before", EARLIER), ("after", EARLIER + REQUESTS)):
        pages.append(tmp_path / name)
        pages[-1].write_text(llama_cpp(part))
    assert_lengths(read_scrape_files(*pages, request_count=3), REQUESTS)


def test_watching_needs_the_number_of_requests_and_waits_for_the_first():
    with pytest.raises(StagemeterError, match="page has no number of requests"):
        Server("http://127.0.0.1:8000/metrics", llama_cpp(REQUESTS))
    assert Server("http://127.0.0.1:8000/metrics", sglang("fresh")).engines == 1
