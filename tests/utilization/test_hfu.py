"""HFU: executed FLOPs beside the model's, at the report's workload and at others."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from stagemeter import AnalysisConfig
from stagemeter.analysis.analyze import estimate_model
from stagemeter.core.escape import Marked
from stagemeter.core.metrics import pairing_values
from stagemeter.core.report_upgrade import upgraded_report
from stagemeter.core.workload import Workload
from stagemeter.export.pairing import mfu_description, mfu_markdown, print_pairing
from stagemeter.hardware.roofline import Peak
from stagemeter.models.lookup import describe_model
from stagemeter.profiling.lengths import Bucket, Histogram, RequestLengths
from stagemeter.utilization.mixed_lengths import requests_work
from stagemeter.utilization.pairing import pair, why_no_hfu
from stagemeter.utilization.stage_mfu import compute_stage_mfu

PEAK = Peak("device", "bfloat16", 1e15, 1e12, "test")
TIMES = {"prefill": 100.0, "decode": 10.0}
EARLIER = Path(__file__).parent.parent / "export" / "documents" / "report_1_3.json"


def report_of(model: str, **settings) -> dict:
    return estimate_model(describe_model(model), AnalysisConfig(model=model, **settings))


def paired(report: dict, **changes) -> dict:
    workload = replace(Workload.from_dict(report["metadata"]["workload"]), **changes)
    return pair(report, TIMES, workload, PEAK)


@pytest.fixture(scope="module")
def deepseek() -> dict:
    return report_of("deepseek-v3", seq_len=1000, new_tokens=101)


def test_hfu_is_executed_flops_over_time_and_peak(deepseek):
    rows = paired(deepseek)["stages"]
    for stage, passes in (("prefill", 1), ("decode", 100)):
        counted = deepseek["stages"][stage]
        executed = counted.get("flops_executed_total", counted["flops_executed"]) / passes
        assert rows[stage]["flops_executed"] == executed
        assert rows[stage]["hfu"] == pytest.approx(executed / (TIMES[stage] / 1e3 * 1e15), rel=1e-12)
    # Each step expands 1,001 to 1,100 tokens.
    assert rows["decode"]["hfu"] > 10 * rows["decode"]["mfu"]
    both = rows["prefill"]["flops_executed"] + 100 * rows["decode"]["flops_executed"]
    assert rows["total"]["flops_executed"] == both
    assert pairing_values(paired(deepseek))["hfu/decode"] == rows["decode"]["hfu"]


@pytest.mark.parametrize("model", ["deepseek-v3", "mistral-7b-v0.1", "llama-4-scout", "qwen3-next-80b-a3b"])
def test_executed_flops_at_another_workload_are_those_that_are_counted_there(model):
    here = report_of(model, seq_len=1000, new_tokens=101)
    there = report_of(model, seq_len=9001, new_tokens=33, batch_size=2)
    workload = there["metadata"]["workload"]
    elsewhere = pair(here, TIMES, Workload.from_dict(workload), PEAK)
    own = paired(there)
    assert elsewhere["counts"]["source"] == "closed form of the static report"
    for key in ("flops_executed", "flops", "execution"):
        assert elsewhere["counts"][key] == own["counts"][key]
    assert elsewhere["stages"] == own["stages"]


def test_table_shows_hfu_where_it_differs_and_says_why(deepseek, capsys):
    pairing = paired(deepseek)
    print_pairing(pairing)
    shown = capsys.readouterr().out
    assert "HFU" in " ".join(shown.splitlines()[1:3])
    assert (
        "decode: transformers executes 2.23 TFLOPs, 24.4 times the 91.1 GFLOPs that the model needs, which HFU "
        "credits: it expands the compressed vectors of the whole context in each step" in shown
    )
    assert "## Executed work" in mfu_markdown(pairing)
    alike = paired(report_of("llama-3.1-8b", seq_len=1000, new_tokens=101))
    assert alike["stages"]["prefill"]["hfu"] == alike["stages"]["prefill"]["mfu"]
    assert "HFU" not in mfu_markdown(alike).partition("Assumptions")[0]


@pytest.mark.parametrize(
    "model", ["mamba2-default", "minicpm-ocr-default", "qwen3.5-27b", "qwen3-next-80b-a3b", "zamba2-default"]
)
def test_less_is_executed_of_a_recurrence_in_steps_alone_and_the_reason_says_so(model):
    report = report_of(model, text_tokens=1000, new_tokens=101)
    prefill, decode = (report["stages"][stage] for stage in ("prefill", "decode"))
    assert decode["flops_executed"] < decode["flops"]
    assert prefill["flops_executed"] > prefill["flops"]
    (why,) = decode["execution"]
    assert "a step, or part of it, as elementwise work, which counts as zero" in why
    assert prefill["execution"][0].startswith("runs the recurrence of a prompt in chunks")
    assert "prompt" not in why
    assert not any("step" in clause for clause in prefill["execution"])
    line = next(line for line in mfu_markdown(paired(report)).splitlines() if "decode: transformers executes" in line)
    assert ", 0.9" in line.partition(" times ")[0]
    assert why in line


def test_description_begins_with_both_conventions_where_they_differ(deepseek):
    pairing = paired(deepseek)
    total = pairing["stages"]["total"]
    total |= {"mfu": 0.5, "mfu_causal": 0.25}
    begin = "**MFU 50.0 %**, 25.0 % by visible pairs, of the whole request."
    assert mfu_description(pairing, Marked("counts")).startswith(begin)
    total["mfu_causal"] = total["mfu"]
    assert mfu_description(pairing, Marked("counts")).startswith("**MFU 50.0 %** of the whole request.")


def test_pairing_of_an_earlier_version_is_shown(deepseek):
    pairing = copy.deepcopy(paired(deepseek))
    for row in pairing["stages"].values():
        del row["hfu"], row["flops_executed"]
    for key in ("basis", "execution", "flops_executed"):
        del pairing["counts"][key]
    assert "MFU causal" in mfu_markdown(pairing)


@pytest.mark.parametrize("as_it_is", [True, False])
def test_report_of_an_earlier_version_has_no_other_utilization_and_says_so(as_it_is):
    earlier = json.loads(EARLIER.read_text())
    report = earlier if as_it_is else upgraded_report(earlier)
    pairing = paired(report, new_tokens=7)
    row = pairing["stages"]["prefill"]
    assert row["hfu"] == row["mfu"]
    assert any("mfu credits what transformers executes, and mfu_causal" in flag for flag in pairing["flags"])
    assert "counts are of what transformers executes" in mfu_markdown(pairing)


def test_requests_of_mixed_lengths_have_no_hfu(deepseek):
    prompts = Histogram(1500, (Bucket(501, 1000, 2),))
    lengths = RequestLengths(prompts, Histogram(20, (Bucket(10, 10, 2),)), prompts, "test")
    workload = replace(Workload.from_dict(deepseek["metadata"]["workload"]), prompt_tokens=750, new_tokens=10)
    pairing = pair(deepseek, TIMES, workload, PEAK, requests=requests_work(deepseek, workload, lengths))
    rows = pairing["stages"]
    assert {row["hfu"] for row in rows.values()} == {None}
    assert {row["flops_executed"] for row in rows.values()} == {None}
    assert "the requests have many lengths" in pairing["no_hfu"]


def test_function_without_a_store_names_executed_flops(deepseek):
    earlier = json.loads(EARLIER.read_text())
    times = (1.0, 1.0, 1.0)
    for new_tokens, source in ((4, "static report"), (7, "closed form of the static report")):
        mfu = compute_stage_mfu(*times, 26, new_tokens, peak_tflops=1, static_report=earlier)
        assert mfu.source == f"{source}, of executed FLOPs"
    assert mfu.prefill == pytest.approx(earlier["stages"]["prefill"]["flops"] / 1e9, rel=1e-12)
    assert compute_stage_mfu(*times[:2], 0, 1000, 101, peak_tflops=1, static_report=deepseek).source == "static report"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("session", ""),
        ("session, read from profile.json", ""),
        ("vLLM metrics", "what vLLM executed is not known"),
        ("vLLM metrics, read from profile.json", "what vLLM executed is not known"),
        ("torch trace of trace.json", "the source, torch trace of trace.json, does not say what ran"),
        ("", "the run does not say what ran"),
    ],
)
def test_only_what_a_session_ran_has_an_hfu(deepseek, capsys, source, why):
    assert why_no_hfu(source).startswith(why)
    workload = Workload.from_dict(deepseek["metadata"]["workload"])
    pairing = pair(deepseek, TIMES, workload, PEAK, no_hfu=why_no_hfu(source))
    assert all((row["hfu"] is None) == bool(why) for row in pairing["stages"].values())
    assert not any(name.startswith("hfu/") for name in pairing_values(pairing)) or not why
    print_pairing(pairing)
    shown = capsys.readouterr().out
    assert (f"no HFU: {why}" in shown) == bool(why)
    assert ("HFU" in " ".join(shown.splitlines()[1:3])) == (not why)
    # What is known of transformers is said all the same.
    assert ("decode: transformers would execute 2.23 TFLOPs, 24.4 times the" in shown) == bool(why)
