"""Bounds on time and memory: the roofline, closed forms, and what fits."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagemeter import AnalysisConfig, StagemeterError, describe_model, estimate_model, estimate_report
from stagemeter.analysis.requests import plan_request
from stagemeter.core.report import report_fault, request_total
from stagemeter.core.workload import Workload
from stagemeter.hardware.lookup import device_peak, find_device, given_peak
from stagemeter.hardware.roofline import bound
from stagemeter.models.families.deepseek_ocr.configuration import published_architecture
from stagemeter.models.families.deepseek_ocr.family import FAMILY
from stagemeter.utilization.memory import largest_batch, memory_need, roofline_section

ARCHITECTURE = published_architecture()
A100 = device_peak(find_device("A100-SXM-80GB"), "bfloat16")
VISION = ("sam", "clip", "projector")


def report_of(**settings):
    return estimate_report(ARCHITECTURE, "deepseek-ocr", AnalysisConfig(**settings))


def section_of(peak=A100, **settings):
    return roofline_section(report_of(**settings), FAMILY, ARCHITECTURE, peak)


def workload_of(**settings):
    return plan_request(AnalysisConfig(**settings), describe_model("deepseek-ocr"))


# Time


def test_each_stage_is_bound_by_its_own_work():
    report = report_of()
    bounds = roofline_section(report, FAMILY, ARCHITECTURE, A100)["bounds"]
    flops = request_total(report, "flops_causal")
    read, written = request_total(report, "bytes_read"), request_total(report, "bytes_written")
    for stage in (*VISION, "prefill", "decode"):
        most = read[stage] + written[stage]
        # Of 64 experts a token chooses 6, and all tokens of a prompt can choose the same.
        spared = 11 * 58 * 3 * 1280 * 896 * 2 if stage == "prefill" else 0
        expected, every = bound(flops[stage], most - spared, A100), bound(flops[stage], most, A100)
        found = bounds["decode_total" if stage == "decode" else stage]
        assert found == {
            "compute_ms": expected.compute_ms,
            "memory_ms": expected.memory_ms,
            "roofline_ms": expected.ms,
            "bound_by": "compute or memory" if stage == "prefill" else expected.by,
            "memory_ms_every_expert": every.memory_ms,
            "roofline_ms_every_expert": every.ms,
        }
    # The decoder reads its weights for every token, and multiplies them with one.
    assert bounds["decode_total"]["bound_by"] == "memory"
    assert bounds["vision"]["bound_by"] == "compute"


def test_sums_are_of_stages_one_after_another():
    bounds = section_of()["bounds"]
    assert list(bounds) == [*VISION, "vision", "prefill", "forward", "decode", "decode_total", "total"]

    def sum_of(*stages, quantity="roofline_ms"):
        return pytest.approx(sum(bounds[stage][quantity] for stage in stages))

    assert bounds["vision"]["roofline_ms"] == sum_of(*VISION)
    assert bounds["forward"]["roofline_ms"] == sum_of("vision", "prefill")
    assert bounds["total"]["roofline_ms"] == sum_of("forward", "decode_total")
    assert bounds["total"]["compute_ms"] == sum_of("forward", "decode_total", quantity="compute_ms")
    assert bounds["total"]["memory_ms"] == sum_of("forward", "decode_total", quantity="memory_ms")
    assert bounds["decode"]["roofline_ms"] * 511 == pytest.approx(bounds["decode_total"]["roofline_ms"])


def test_throughput_at_the_bound():
    section = section_of(batch_size=4, new_tokens=100)
    bounds, throughput = section["bounds"], section["throughput"]
    total_seconds = bounds["total"]["roofline_ms"] / 1e3
    assert throughput["tokens_per_second"] == pytest.approx(4 * 100 / total_seconds)
    assert throughput["pages_per_hour"] == pytest.approx(4 * 3600 / total_seconds)
    assert throughput["decode_tokens_per_second"] == pytest.approx(4 * 1e3 / bounds["decode"]["roofline_ms"])
    assert throughput["first_token_ms"] == bounds["forward"]["roofline_ms"]


@given(batch=st.integers(1, 64))
def test_nothing_can_be_faster_than_a_bound_whatever_the_experts(batch):
    section = section_of(mode="tiny", batch_size=batch, new_tokens=9)
    for found in section["bounds"].values():
        assert found["roofline_ms"] <= found["roofline_ms_every_expert"]
    decode = section["bounds"]["decode"]
    # One token reads six experts, and a batch as few; what it reads at most grows until all 64 are read.
    assert (decode["roofline_ms"] == decode["roofline_ms_every_expert"]) == (batch == 1)
    assert section["throughput"]["pages_per_hour"] >= section["throughput_every_expert"]["pages_per_hour"]


def test_one_token_needs_no_decode_step():
    section = section_of(new_tokens=1)
    assert not {"decode", "decode_total"} & set(section["bounds"])
    assert section["bounds"]["total"] == section["bounds"]["forward"]
    assert section["throughput"]["decode_tokens_per_second"] is None
    assert section["throughput"]["tokens_per_second"] == pytest.approx(1e3 / section["bounds"]["total"]["roofline_ms"])
    assert "decode" not in section["memory"]["working_set_bytes"]


def test_without_a_bandwidth_nothing_is_said_about_time_as_a_whole():
    section = section_of(given_peak("bfloat16", 100, None))
    for found in section["bounds"].values():
        assert found["compute_ms"] > 0
        assert (found["memory_ms"], found["roofline_ms"], found["bound_by"]) == (None, None, "unknown")
        assert found["memory_ms_every_expert"] is found["roofline_ms_every_expert"] is None
    assert set(section["throughput"].values()) == set(section["throughput_every_expert"].values()) == {None}


def test_a_stage_without_a_count_leaves_no_sum():
    report = report_of()
    report["stages"]["clip"]["source"] = "none"
    section = roofline_section(report, FAMILY, ARCHITECTURE, A100)
    assert set(section["bounds"]) == {"sam", "projector", "prefill", "decode", "decode_total"}
    throughput = section["throughput"]
    assert throughput["decode_tokens_per_second"] > 0
    assert throughput["tokens_per_second"] is throughput["pages_per_hour"] is throughput["first_token_ms"] is None


def test_peak_and_workload_of_different_data_types():
    with pytest.raises(StagemeterError, match=r"that of A100-SXM-80GB is of bfloat16, the workload of float32"):
        section_of(dtype="float32")


def test_the_section_is_plain_data():
    section = section_of()
    assert json.loads(json.dumps(section)) == section
    assert "cannot fit" in section["notes"][1]


# Memory


@pytest.mark.parametrize("settings", [{}, {"mode": "tiny", "batch_size": 3}, {"new_tokens": 1, "dtype": "float32"}])
def test_weights_and_cache_are_those_of_the_report(settings):
    report = report_of(**settings)
    need = memory_need(FAMILY, ARCHITECTURE, workload_of(**settings))
    assert need.kv_cache == report["total"]["kv_cache_bytes"]
    unused = sum(stage["params_unused"] for stage in report["stages"].values())
    item_size = 4 if settings.get("dtype") == "float32" else 2
    assert need.weights == report["total"]["weight_bytes"] - unused * item_size


def test_one_page_needs_most_in_sams_attention():
    need = memory_need(FAMILY, ARCHITECTURE, workload_of())
    assert need.stage == "sam"
    # Before the decoder runs there is no cache yet.
    assert need.needed == need.weights + need.working_sets["sam"]
    assert need.working_sets["sam"] == 2 * (4 * 4096 * 768 + 12 * 4096**2)


def test_long_texts_need_most_in_the_cache():
    need = memory_need(FAMILY, ARCHITECTURE, workload_of(mode="tiny", new_tokens=8000))
    assert need.stage == "decode"
    assert need.needed >= need.weights + need.kv_cache
    # The last step adds its own token to the cache, which may come after its most demanding operator.
    one_token = need.kv_cache // (8000 + 83 - 1)
    assert need.needed <= need.weights + need.kv_cache - one_token + need.working_sets["decode"]


def test_a_prompt_alone_needs_its_cache_or_its_largest_operator():
    need = memory_need(FAMILY, ARCHITECTURE, workload_of(mode="tiny", new_tokens=1, seq_len=8000))
    assert need.stage == "prefill"
    assert need.needed == need.weights + max(need.kv_cache, need.working_sets["prefill"])


@pytest.mark.parametrize("name", ["A100-SXM-80GB", "L4", "H200-SXM"])
def test_the_largest_batch_fits_and_the_next_does_not(name):
    peak = device_peak(find_device(name), "bfloat16")
    memory = section_of(peak)["memory"]
    assert memory["device_bytes"] == peak.memory_bytes
    assert memory["fits"] is True
    largest = memory["largest_batch_size"]
    needed = [
        memory_need(FAMILY, ARCHITECTURE, replace(workload_of(), batch_size=batch)).needed
        for batch in (largest, largest + 1)
    ]
    assert needed[0] <= peak.memory_bytes < needed[1]
    # The batch that was asked for makes no difference to the largest one.
    assert section_of(peak, batch_size=7)["memory"]["largest_batch_size"] == largest


def test_a_device_that_is_too_small():
    memory = section_of(replace(A100, memory_bytes=6 * 10**9))["memory"]
    assert (memory["fits"], memory["largest_batch_size"]) == (False, 0)
    assert memory["needed_bytes"] > 6 * 10**9


def test_a_batch_that_is_too_large():
    memory = section_of(batch_size=1000)["memory"]
    assert memory["fits"] is False
    assert 0 < memory["largest_batch_size"] < 1000


def test_a_device_of_unknown_size():
    memory = section_of(given_peak("bfloat16", 100, 2000))["memory"]
    assert memory["needed_bytes"] > 0
    assert memory["device_bytes"] is memory["fits"] is memory["largest_batch_size"] is None


@settings(deadline=None)
@given(st.sampled_from(["tiny", "base", "gundam"]), st.integers(1, 4000), st.integers(1, 50), st.integers(100, 4000))
def test_need_grows_with_the_batch(mode, new_tokens, batch, side):
    workload = workload_of(mode=mode, new_tokens=new_tokens, image_w=side, image_h=side)
    smaller, larger = (
        memory_need(FAMILY, ARCHITECTURE, replace(workload, batch_size=size)) for size in (batch, batch + 1)
    )
    assert smaller.needed < larger.needed
    assert smaller.weights == larger.weights
    for need in (smaller, larger):
        assert need.needed >= need.weights + max(*need.working_sets.values(), need.kv_cache)


@given(st.integers(0, 100), st.integers(1, 9), st.integers(0, 2000))
def test_largest_batch_is_found(fixed, each, available):
    def needed(batch):
        return fixed + each * batch

    found = largest_batch(needed, available)
    assert found == max(0, (available - fixed) // each)


def of_model(name, **settings):
    described = describe_model(name)
    config = AnalysisConfig(model=name, **settings)
    return described, estimate_model(described, config)


def test_a_model_without_pages_has_bounds_of_its_own_stages():
    described, report = of_model("llama-3.1-8b", seq_len=1024)
    peak = device_peak(find_device("H100-SXM", ""), "bfloat16")
    section = roofline_section(report, described.family, described.architecture, peak)
    assert list(section["bounds"]) == ["prefill", "forward", "decode", "decode_total", "total"]
    assert section["bounds"]["forward"] == section["bounds"]["prefill"]
    assert section["throughput"]["pages_per_hour"] is None
    # Reading 8 billion weights of two bytes at 3,350 GB/s is what a step takes at least.
    weights = report["total"]["params"] - described.architecture.vocabulary * described.architecture.hidden
    assert section["bounds"]["decode"]["memory_ms"] == pytest.approx(1e3 * 2 * weights / 3350e9, rel=0.02)
    report["roofline"] = section
    assert report_fault(json.loads(json.dumps(report))) is None


def test_a_window_limits_what_the_cache_needs():
    """Mistral's cache holds 4,095 tokens for any text, of an eighth of the heads in 32 layers."""
    held = [
        memory_need(described.family, described.architecture, Workload.from_dict(report["metadata"]["workload"]))
        for described, report in (of_model("mistral-7b-v0.1", seq_len=length, new_tokens=2) for length in (8000, 16000))
    ]
    assert held[0].kv_cache == held[1].kv_cache == 2 * 32 * 2 * 8 * 128 * 4095


# The cache in a data type of its own


def test_cache_in_fewer_bits_takes_its_share_and_no_more():
    whole, small = (report_of(mode="tiny", kv_cache_dtype=dtype) for dtype in (None, "float8_e4m3fn"))
    assert small["total"]["flops"] == whole["total"]["flops"]
    assert 2 * small["total"]["kv_cache_bytes"] == whole["total"]["kv_cache_bytes"]
    assert small["total"]["weight_bytes"] == whole["total"]["weight_bytes"]
    for stage in ("prefill", "decode"):
        one, other = small["stages"][stage], whole["stages"][stage]
        for way in ("read", "written"):
            assert 2 * one[f"kv_bytes_{way}"] == other[f"kv_bytes_{way}"] > 0
            assert other[f"bytes_{way}"] - one[f"bytes_{way}"] == one[f"kv_bytes_{way}"]
    for stage in VISION:
        assert small["stages"][stage]["bytes_read"] == whole["stages"][stage]["bytes_read"]
    need, needed = (
        memory_need(FAMILY, ARCHITECTURE, Workload.from_dict(report["metadata"]["workload"]))
        for report in (small, whole)
    )
    assert (need.weights, 2 * need.kv_cache) == (needed.weights, needed.kv_cache)
    assert need.kv_cache == small["total"]["kv_cache_bytes"]


def test_cache_in_the_data_type_of_the_rest_is_the_same_work():
    plain, named, small = (
        workload_of(kv_cache_dtype=dtype) for dtype in (None, "bfloat16", "float8_e5m2")
    )  # fmt: skip
    assert named == plain
    assert small.hash != plain.hash
