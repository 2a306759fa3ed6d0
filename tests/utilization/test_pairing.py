"""Utilization against calculations by hand: every stage, mode and batch, to twelve digits."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagemeter import AnalysisConfig, StagemeterError, estimate_model, estimate_report
from stagemeter.core.cost import CACHE_ITEM_SIZES, ITEM_SIZES
from stagemeter.core.workload import Workload
from stagemeter.hardware.roofline import Peak
from stagemeter.models.closed_form import evaluate_workload
from stagemeter.models.families.deepseek_ocr.family import FAMILY
from stagemeter.models.families.deepseek_ocr.modes import MODES
from stagemeter.models.lookup import describe_model
from stagemeter.profiling.devices import ONE_DEVICE
from stagemeter.profiling.readers.engines.vllm import VLLM
from stagemeter.utilization.pairing import pair
from stagemeter.utilization.serving import engine_section
from stagemeter.utilization.stage_mfu import compute_stage_mfu
from stagemeter.utilization.work import differing_fields, work_at, work_of_report

A100 = Peak("A100", "bfloat16", 312e12, 2039e9, "test")
ARCHITECTURE = describe_model("deepseek-ocr").architecture
#: Milliseconds, one decode step included, that have nothing to do with one another.
TIMES = {"sam": 31.7, "clip": 9.13, "projector": 0.217, "prefill": 27.9, "decode": 7.77}
STAGES = ["sam", "clip", "projector", "prefill"]


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-12, abs=0)


def report_of(**settings) -> dict:
    config = AnalysisConfig(**settings)
    return estimate_report(describe_model(config.model).architecture, config.model, config)


def workload_of(report: dict) -> Workload:
    return Workload.from_dict(report["metadata"]["workload"])


def timed(report: dict) -> dict[str, float]:
    steps = report["stages"]["decode"]["steps"]
    return {**TIMES, "decode_total": TIMES["decode"] * steps} if steps else {s: TIMES[s] for s in STAGES}


def experts_spared(report: dict, stage: str) -> int:
    """Return the bytes of the routed experts that one token does not choose: three matrices each, in every layer."""
    decoder = ARCHITECTURE.decoder
    tokens = {"prefill": workload_of(report).prompt_tokens, "decode": 1}.get(stage)
    if tokens is None:
        return 0
    reached = min(64, 6 * tokens * workload_of(report).batch_size)
    return 11 * (reached - 6) * 3 * decoder.hidden * decoder.expert_intermediate * 2


@pytest.fixture(scope="module")
def gundam() -> dict:
    return report_of()


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("mode", MODES)
def test_utilization_is_what_one_computes_by_hand(mode, batch):
    report = report_of(mode=mode, batch_size=batch)
    rows = pair(report, timed(report), workload_of(report), A100)["stages"]
    assert list(rows) == [*STAGES, "decode", "vision", "total"]
    for stage in STAGES:
        counted, seconds = report["stages"][stage], TIMES[stage] / 1000
        moved = counted["bytes_read"] + counted["bytes_written"]
        assert rows[stage]["mfu"] == close(counted["flops"] / seconds / 312e12)
        assert rows[stage]["mfu_causal"] == close(counted["flops_causal"] / seconds / 312e12)
        assert rows[stage]["mbu"] == close(moved / seconds / 2039e9)
        assert rows[stage]["tflops"] == close(counted["flops"] / seconds / 1e12)
        assert rows[stage]["gbps"] == close(moved / seconds / 1e9)
        # What has to be moved, whichever experts run: those of one token.
        least = moved - experts_spared(report, stage)
        assert (rows[stage]["bytes"], rows[stage]["bytes_least"]) == (moved, least)
        # A kernel may skip the pairs that the mask hides.
        arithmetic = counted["flops_causal"] / 312e12
        bound = max(arithmetic, least / 2039e9)
        assert rows[stage]["roofline_ms"] == close(1000 * bound)
        assert rows[stage]["roofline_fraction"] == close(bound / seconds)
        sets = ["compute" if arithmetic >= size / 2039e9 else "memory" for size in (least, moved)]
        assert rows[stage]["bound_by"] == " or ".join(sorted(set(sets)))


def test_decode_is_the_mean_of_its_steps(gundam):
    row = pair(gundam, timed(gundam), workload_of(gundam), A100)["stages"]["decode"]
    counted = gundam["stages"]["decode"]
    assert row["passes"] == counted["steps"] == 511
    assert row["time_ms"] == close(7.77)
    # 512 new tokens: the context in the middle of them is the mean of all.
    assert row["flops"] == counted["flops"] == counted["flops_total"] / 511
    assert row["mfu"] == close(counted["flops"] / 7.77e-3 / 312e12)
    moved = (counted["bytes_read_total"] + counted["bytes_written_total"]) / 511
    assert row["roofline_ms"] == close(1000 * max(counted["flops"] / 312e12, moved / 2039e9))
    assert row["bytes"] == row["bytes_least"] == moved


def test_sums_are_over_all_work_and_all_time(gundam):
    rows = pair(gundam, timed(gundam), workload_of(gundam), A100)["stages"]
    vision = TIMES["sam"] + TIMES["clip"] + TIMES["projector"]
    flops = sum(gundam["stages"][stage]["flops"] for stage in ("sam", "clip", "projector"))
    assert rows["vision"]["mfu"] == close(flops / (vision / 1000) / 312e12)
    whole = vision + TIMES["prefill"] + 511 * TIMES["decode"]
    assert rows["total"]["time_ms"] == close(whole)
    assert rows["total"]["flops"] == gundam["total"]["flops"]
    assert rows["total"]["mfu"] == close(gundam["total"]["flops"] / (whole / 1000) / 312e12)
    # Stages run one after another: the bound of the whole is the sum of theirs.
    parts = [rows[stage]["roofline_ms"] for stage in STAGES]
    assert rows["total"]["roofline_ms"] == close(sum(parts) + 511 * rows["decode"]["roofline_ms"])


def test_all_steps_may_be_timed_as_one(gundam):
    times = {**{stage: TIMES[stage] for stage in STAGES}, "decode_total": 4000.0}
    row = pair(gundam, times, workload_of(gundam), A100)["stages"]["decode"]
    assert row["time_ms"] == close(4000 / 511)
    assert row["mfu"] == close(gundam["stages"]["decode"]["flops_total"] / 4.0 / 312e12)


def test_without_bandwidth_nothing_is_said_about_memory(gundam):
    peak = replace(A100, bytes_per_second=None)
    rows = pair(gundam, timed(gundam), workload_of(gundam), peak)["stages"]
    assert all(row["mbu"] is row["roofline_ms"] is row["roofline_fraction"] is None for row in rows.values())
    assert all(row["mfu"] > 0 for row in rows.values())


# What is missing


def test_stage_without_time_is_named_and_so_is_every_sum_that_needs_it(gundam):
    pairing = pair(gundam, {"sam": 30.0, "prefill": 20.0}, workload_of(gundam), A100)
    assert list(pairing["stages"]) == ["sam", "prefill"]
    assert pairing["missing"] == {
        "clip": "no time: it was not measured",
        "projector": "no time: it was not measured",
        "decode": "no time: it was not measured",
        "vision": "no time of clip, projector",
        "total": "no time of clip, projector, decode",
    }


def test_stage_without_count_is_named(gundam):
    stages = {**gundam["stages"], "clip": {**gundam["stages"]["clip"], "source": "none"}}
    pairing = pair({**gundam, "stages": stages}, timed(gundam), workload_of(gundam), A100)
    assert "clip" not in pairing["stages"]
    assert "could not count" in pairing["missing"]["clip"]
    assert pairing["missing"]["total"] == "no count of clip"


def test_stages_that_were_timed_as_one_are_summed_and_never_guessed(gundam):
    pairing = pair(gundam, {"vision": 41.0, "prefill": 20.0, "decode": 7.0}, workload_of(gundam), A100)
    assert set(pairing["stages"]) == {"vision", "prefill", "decode", "total"}
    assert pairing["stages"]["total"]["time_ms"] == close(41 + 20 + 7 * 511)
    assert pairing["missing"]["sam"] == "no time of its own: it was timed as part of vision"
    forward = pair(gundam, {"forward": 61.0, "decode_total": 3577.0}, workload_of(gundam), A100)
    assert set(forward["stages"]) == {"forward", "decode", "total"}
    assert forward["stages"]["forward"]["flops"] == gundam["total"]["flops_forward"]
    assert forward["stages"]["total"]["time_ms"] == close(61 + 3577)
    assert forward["missing"]["prefill"] == "no time of its own: it was timed as part of forward"


def test_request_of_one_token_has_no_decode_and_a_total():
    report = report_of(mode="tiny", new_tokens=1)
    pairing = pair(report, timed(report), workload_of(report), A100)
    assert pairing["missing"] == {"decode": "the request has no decode step"}
    assert pairing["stages"]["total"]["flops"] == report["total"]["flops"] == report["total"]["flops_forward"]


def test_more_than_everything_is_flagged_and_not_clipped(gundam):
    pairing = pair(gundam, {**timed(gundam), "sam": 1.0}, workload_of(gundam), A100)
    assert pairing["stages"]["sam"]["mfu"] == close(gundam["stages"]["sam"]["flops"] / 1e-3 / 312e12)
    assert pairing["stages"]["sam"]["mfu"] > 1
    flags = [flag for flag in pairing["flags"] if "above 1" in flag]
    why = "the time, the workload or the peak is not that of this run"
    assert flags[0].startswith("sam: above 1: mfu_causal 9.")
    assert "mbu" in flags[0]
    assert "roofline_fraction" in flags[0]
    assert flags[0].endswith(why)
    assert not [flag for flag in flags if flag.startswith(("clip", "prefill", "decode"))]


def test_kernel_that_skips_hidden_pairs_is_no_faster_than_the_roofline():
    """At the peak, over pairs that the mask shows, dense counts are above 1 and nothing is wrong with them."""
    config = AnalysisConfig(model="llama-3.1-8b", seq_len=100_000, new_tokens=1)
    report = estimate_model(describe_model(config.model), config)
    prefill = report["stages"]["prefill"]
    milliseconds = 1e3 * prefill["flops_causal"] / 312e12
    pairing = pair(report, {"prefill": milliseconds}, workload_of(report), A100)
    row = pairing["stages"]["prefill"]
    assert row["roofline_ms"] == close(milliseconds)
    assert (row["mfu_causal"], row["roofline_fraction"], row["bound_by"]) == (close(1), close(1), "compute")
    assert row["mfu"] == close(prefill["flops"] / prefill["flops_causal"])
    assert row["mfu"] > 1.6
    assert not [flag for flag in pairing["flags"] if "above 1: mfu" in flag]
    # A quarter less time than that is no run of this work.
    faster = pair(report, {"prefill": 0.75 * milliseconds}, workload_of(report), A100)
    assert faster["flags"][0].startswith("prefill: above 1: mfu_causal 1.333, roofline_fraction 1.333")


def test_seconds_for_milliseconds_are_suspected(gundam):
    times = {stage: time / 1000 for stage, time in timed(gundam).items()}
    flags = [flag for flag in pair(gundam, times, workload_of(gundam), A100)["flags"] if "above 1" in flag]
    assert [flag.partition(":")[0] for flag in flags] == [*STAGES, "decode", "vision", "total"]
    assert flags[0].endswith("is its time in milliseconds?")


def test_disagreement_and_uncounted_operators_of_the_report_are_flagged(gundam):
    agreement = {**gundam["agreement"], "differences": ["sam macs: isolated 1, analytic 2"]}
    report = {**gundam, "agreement": agreement, "unsupported_ops": {"clip": {"aten::odd": 3}}}
    flags = pair(report, timed(gundam), workload_of(gundam), A100)["flags"]
    assert "disagree: sam macs: isolated 1, analytic 2" in flags[0]
    assert "clip: the static report leaves out aten::odd" in flags[1]


# Experts


@pytest.mark.parametrize("batch", [1, 4])
def test_bytes_are_of_the_experts_that_ran(batch):
    report = report_of(batch_size=batch)
    ran = {"prefill": 27.5, "decode": 6 + (batch - 1) * 1.25}
    pairing = pair(report, timed(report), workload_of(report), A100, ran)
    decoder = ARCHITECTURE.decoder
    of_one = 3 * decoder.hidden * decoder.expert_intermediate * 2 * 11
    prefill, decode = report["stages"]["prefill"], report["stages"]["decode"]
    row = pairing["stages"]["prefill"]
    assert row["bytes"] == row["bytes_least"]
    assert row["bytes"] == prefill["bytes_read"] + prefill["bytes_written"] - (64 - 27.5) * of_one
    assert row["mbu"] == close(row["bytes"] / TIMES["prefill"] * 1e3 / 2039e9)
    assert row["roofline_ms"] == close(1e3 * max(row["flops_causal"] / 312e12, row["bytes"] / 2039e9))
    row = pairing["stages"]["decode"]
    whole = decode["bytes_read_total"] + decode["bytes_written_total"]
    assert row["bytes"] == close(whole / 511 - (min(64, 6 * batch) - ran["decode"]) * of_one)
    assert pairing["counts"]["experts_read"] == ran
    assert not [flag for flag in pairing["flags"] if "experts" in flag]


def test_bytes_are_bounds_where_it_is_not_known_which_experts_ran(gundam):
    flags = pair(gundam, timed(gundam), workload_of(gundam), A100)["flags"]
    # Decode of one page reads the experts of one token: nothing is unknown about it.
    assert [flag for flag in flags if flag.startswith("prefill, total: the bytes of the experts that ran")]
    batch = report_of(batch_size=2)
    flags = pair(batch, timed(batch), workload_of(batch), A100)["flags"]
    assert [flag for flag in flags if flag.startswith("prefill, decode, total: the bytes of the experts")]


@pytest.mark.parametrize("ran", [{"prefill": 65.0}, {"prefill": 5.9}, {"decode": 7.0}, {"decode": math.nan}])
def test_more_or_fewer_experts_than_can_run_are_refused(gundam, ran):
    with pytest.raises(StagemeterError, match="experts_read/"):
        pair(gundam, timed(gundam), workload_of(gundam), A100, ran)


@given(batch=st.integers(1, 20), share=st.floats(0, 1))
def test_counted_experts_are_between_the_bounds(batch, share):
    report = report_of(mode="tiny", batch_size=batch, new_tokens=20)
    most = min(64, 6 * batch)
    ran = {"prefill": 6 + share * 58, "decode": 6 + share * (most - 6)}
    unknown = pair(report, timed(report), workload_of(report), A100)["stages"]
    known = pair(report, timed(report), workload_of(report), A100, ran)["stages"]
    for stage, row in known.items():
        assert unknown[stage]["bytes_least"] <= row["bytes"] <= unknown[stage]["bytes"]
        assert unknown[stage]["roofline_ms"] <= row["roofline_ms"] * (1 + 1e-12)
        assert row["flops"] == unknown[stage]["flops"]


def test_sum_is_bound_by_what_sets_most_of_its_time(gundam):
    rows = pair(gundam, timed(gundam), workload_of(gundam), A100, {"prefill": 6, "decode": 6})["stages"]
    by = {"compute": 0.0, "memory": 0.0}
    for stage in (*STAGES, "decode"):
        by[rows[stage]["bound_by"]] += rows[stage]["roofline_ms"] * rows[stage]["passes"]
    assert rows["total"]["bound_by"] == max(by, key=by.get) == "memory"
    assert sum(by.values()) == close(rows["total"]["roofline_ms"])


# Measured at another workload


@settings(max_examples=40, deadline=None)
@given(
    prompt=st.integers(500, 8000),
    new=st.integers(1, 3000),
    batch=st.integers(1, 64),
    dtype=st.sampled_from(sorted(ITEM_SIZES)),
    cache=st.none() | st.sampled_from(sorted(CACHE_ITEM_SIZES)),
)
def test_closed_form_at_another_workload_is_the_report_of_that_workload(prompt, new, batch, dtype, cache):
    report = report_of(mode="base")
    asked = {"seq_len": prompt, "new_tokens": new, "batch_size": batch, "dtype": dtype, "kv_cache_dtype": cache}
    other = report_of(mode="base", **asked)
    assert work_at(report, workload_of(other)) == work_of_report(other)


def test_what_differs_is_said(gundam):
    measured = replace(workload_of(gundam), new_tokens=100, batch_size=2)
    pairing = pair(gundam, TIMES, measured, A100)
    assert pairing["counts"]["source"] == "closed form of the static report"
    assert pairing["counts"]["differences"] == {"new_tokens": [512, 100], "batch_size": [1, 2]}
    costs = evaluate_workload(gundam["closed_form"], FAMILY, measured)
    assert pairing["stages"]["prefill"]["flops"] == costs["prefill"].flops
    same = pair(gundam, TIMES, workload_of(gundam), A100)
    assert (same["counts"]["source"], same["counts"]["differences"]) == ("static report", {})


def test_where_it_is_looked_at_is_no_difference(gundam):
    mine = workload_of(gundam)
    assert differing_fields(mine, replace(mine, decode_context=7, image_width=1, mode="custom")) == {}


@pytest.mark.parametrize(("field", "value"), [("kv_cache_dtype", "float8_e4m3fn"), ("view_size", (300, 200))])
def test_field_that_one_workload_lacks_is_a_difference(gundam, field, value):
    """A field that is None is left out of the hash, and so of what was compared: ``mfu`` ended in a KeyError."""
    mine = workload_of(gundam)
    with_field = replace(mine, **{field: value})
    written = list(value) if isinstance(value, tuple) else value
    assert differing_fields(mine, with_field) == {field: [None, written]}
    assert differing_fields(with_field, mine) == {field: [written, None]}


def test_peaks_survive_being_written_down():
    again = Peak.from_dict(A100.to_dict())
    assert Peak.from_dict(again.to_dict()) == again
    assert again.flops_per_second == close(312e12)


# A serving engine


def test_engine_is_held_against_the_work_of_all_requests(gundam):
    pairing = pair(gundam, {"forward": 61.0, "decode_total": 3577.0}, workload_of(gundam), A100)
    metrics = {"engine/seconds": 60.0, "engine/requests": 120.0, "engine/estimated_flops": 1.0e14}
    engine = engine_section(pairing, metrics, ONE_DEVICE, served_by=VLLM)
    assert engine["flops"] == 120 * gundam["total"]["flops"]
    assert engine["mfu"] == close(120 * gundam["total"]["flops"] / 60 / 312e12)
    assert engine["difference"] == close(1e14 / (120 * gundam["total"]["flops"]) - 1)
    language = gundam["stages"]["prefill"]["flops"] + gundam["stages"]["decode"]["flops_total"]
    assert engine["difference_language_only"] == close(1e14 / (120 * language) - 1)
    assert "vision" in engine["explanation"]


def test_without_an_engine_there_is_no_section(gundam):
    assert engine_section(pair(gundam, TIMES, workload_of(gundam), A100), {}, ONE_DEVICE) is None


# compute_stage_mfu


def test_origins_function_takes_the_report(gundam):
    result = compute_stage_mfu(100.0, 4000.0, 50.0, 913, 512, peak_tflops=312.0, static_report=gundam)
    stages = gundam["stages"]
    vision = sum(stages[stage]["flops"] for stage in ("sam", "clip", "projector"))
    assert result.source == "static report"
    assert result.prefill == close(stages["prefill"]["flops"] / 0.1 / 312e12)
    assert result.decode == close(stages["decode"]["flops_total"] / 4.0 / 312e12)
    assert result.vision == close(vision / 0.05 / 312e12)
    assert result.model_level == close(gundam["total"]["flops"] / 4.15 / 312e12)


def test_origins_function_evaluates_the_closed_form_where_the_report_is_of_other_work(gundam):
    result = compute_stage_mfu(100.0, 4000.0, 50.0, 500, 100, peak_tflops=312.0, static_report=gundam, batch_size=2)
    other = report_of(seq_len=500, new_tokens=100, batch_size=2)
    assert result.source == "closed form of the static report"
    assert result.prefill == close(other["stages"]["prefill"]["flops"] / 0.1 / 312e12)
    assert result.model_level == close(other["total"]["flops"] / 4.15 / 312e12)


def test_origins_function_without_a_report_counts_by_closed_forms(gundam):
    decoder = ARCHITECTURE.decoder
    sizes = {
        "n_heads": decoder.heads,
        "n_dense_layers": decoder.dense_layers,
        "n_experts": decoder.experts,
        "n_experts_per_token": decoder.experts_per_token,
        "n_shared_experts": decoder.shared_experts,
        "d_expert": decoder.expert_intermediate,
        "vocabulary": decoder.vocabulary,
    }
    arguments = (913, 512, decoder.hidden, decoder.intermediate, decoder.layers, 312.0)
    result = compute_stage_mfu(100.0, 4000.0, None, *arguments, **sizes)
    reported = compute_stage_mfu(100.0, 4000.0, None, 913, 512, peak_tflops=312.0, static_report=gundam)
    assert result.source == "closed forms"
    assert (result.prefill, result.decode) == (close(reported.prefill), close(reported.decode))
    assert result.vision is reported.vision is None
    assert result.model_level == close(reported.model_level)
    fixed = compute_stage_mfu(100.0, 4000.0, None, *arguments, "fixed", 2000, **sizes)
    assert fixed.decode > result.decode


def test_origins_function_takes_the_batch_of_the_report():
    report = report_of(batch_size=8)
    result = compute_stage_mfu(100.0, 4000.0, 50.0, 913, 512, peak_tflops=312.0, static_report=report)
    assert result.source == "static report"
    assert result.prefill == close(report["stages"]["prefill"]["flops"] / 0.1 / 312e12)


def test_time_without_work_does_not_dilute_the_whole():
    sizes = (913, 512, 1280, 6848, 12, 312.0)
    without = compute_stage_mfu(100.0, 4000.0, None, *sizes)
    assert compute_stage_mfu(100.0, 4000.0, 9000.0, *sizes).model_level == without.model_level


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefill_ms": 0.0, "peak_tflops": 1.0, "static_report": True}, "prefill_ms"),
        ({"prefill_ms": 1.0, "static_report": True}, "peak_tflops"),
        ({"prefill_ms": 1.0, "peak_tflops": 1.0}, "static_report"),
        ({"prefill_ms": 1.0, "peak_tflops": 1.0, "static_report": True, "ctx_len_mode": "max"}, "ctx_len_mode"),
        ({"prefill_ms": 1.0, "peak_tflops": 1.0, "static_report": True, "new_tokens": 0}, "new_tokens"),
        ({"prefill_ms": 1.0, "peak_tflops": 1.0, "static_report": True, "decode_ms": -5.0}, "decode_ms"),
        ({"prefill_ms": 1.0, "peak_tflops": 1.0, "static_report": True, "decode_ms": math.nan}, "decode_ms"),
        ({"prefill_ms": 1.0, "peak_tflops": 1.0, "static_report": True, "vision_ms": math.inf}, "vision_ms"),
        ({"prefill_ms": 1.0, "peak_tflops": 1.0, "static_report": True, "d_model": 8}, "not both"),
    ],
)
def test_origins_function_refuses_what_it_cannot_use(gundam, arguments, message):
    given_arguments = {"decode_ms": 1.0, "vision_ms": 1.0, "prefill_len": 913, "new_tokens": 512, **arguments}
    if given_arguments.get("static_report"):
        given_arguments["static_report"] = gundam
    with pytest.raises(ValueError, match=message):
        compute_stage_mfu(**given_arguments)
