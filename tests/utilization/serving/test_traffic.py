"""The least bytes of real servers' passes, against steps that an engine wrote down and weights counted by hand."""

import json

import pytest
from test_recorded_scenarios import RECORDED, SCENARIOS, of_scenario, profile

from stagemeter.profiling.lengths import Bucket, Histogram, RequestLengths
from stagemeter.utilization.traffic import least_bytes

SCHEDULES = json.loads((RECORDED / "schedules.json").read_text(encoding="utf-8"))
#: Several API servers count a step each, and a counter of the page is of none.
SEVERAL_PROCESSES = "data_parallel_2"
#: Steps that compute chunks before a prompt's last alone put out nothing, and are not counted.
SILENT_STEPS = {"chunked_prefill": 11, "otlp_traces": 3}
BFLOAT16 = 2


def lengths_of(prompt: int, new: int) -> RequestLengths:
    whole, made = (Histogram(tokens, (Bucket(tokens, tokens, 1),)) for tokens in (prompt, new))
    return RequestLengths(whole, made, whole, "none")


def weights(scenario: str) -> int:
    """Bytes of the weights that a token passes, by hand: an element for each multiply-accumulate."""
    token, head, *_ = SCENARIOS[scenario]["macs"]
    return BFLOAT16 * (token + head)


@pytest.mark.parametrize("scenario", SCHEDULES)
def test_passes_are_the_steps_that_put_out_something(scenario):
    passes = profile(scenario).metrics.get("engine/passes")
    if scenario == SEVERAL_PROCESSES:
        assert passes is None
    else:
        assert passes == len(SCHEDULES[scenario]) - SILENT_STEPS.get(scenario, 0)


@pytest.mark.parametrize("scenario", ["dense_llama", "qwen3_moe", "mistral_window"])
def test_single_requests_are_exact(scenario):
    report, workload = of_scenario(scenario)
    *_, full, windowed = SCENARIOS[scenario]["macs"]
    config = json.loads((RECORDED / f"{SCENARIOS[scenario]['config']}.config.json").read_text())
    heads, width = config["num_attention_heads"], config["hidden_size"]
    cached = 2 * config["num_key_value_heads"] * (config.get("head_dim") or width // heads) * BFLOAT16
    for prompt, _, new in SCENARIOS[scenario]["requests"]:
        contexts = [prompt + step for step in range(1, new)]
        read = sum(full * context + windowed * min(context, config.get("sliding_window") or 0) for context in contexts)
        written = (full + windowed) * len(contexts)
        expected = new * weights(scenario) + cached * (read + written)
        assert least_bytes(report, workload, lengths_of(prompt, new), new) == expected


@pytest.mark.parametrize("scenario", sorted(SCHEDULES.keys() - {SEVERAL_PROCESSES}))
def test_pages_alone_give_less_than_the_engine_estimates(scenario):
    report, workload = of_scenario(scenario)
    page = profile(scenario)
    passes = page.metrics["engine/passes"]
    least = least_bytes(report, workload, page.lengths, passes)
    a_pass = least_bytes(report, workload, lengths_of(1, 1), 1)
    requests = SCENARIOS[scenario]["requests"]
    cached = sum(least_bytes(report, workload, lengths_of(prompt, new), 1) - a_pass for prompt, _, new in requests)
    assert passes * a_pass < least <= passes * a_pass + cached
    # vLLM adds activations, all experts that the tokens of a step can choose, and steps without a token.
    assert least < page.metrics["engine/estimated_bytes"]


def test_engines_that_may_share_experts_read_none_for_certain():
    config = json.loads((RECORDED / "qwen3_moe.config.json").read_text())
    experts = 3 * config["hidden_size"] * config["moe_intermediate_size"] * config["num_experts_per_tok"]
    report, workload = of_scenario("qwen3_moe")
    alone, together = (least_bytes(report, workload, lengths_of(1, 1), 1, engines) for engines in (1, 2))
    assert together == alone - BFLOAT16 * config["num_hidden_layers"] * experts
    # Each engine of a dense model has all weights.
    report, workload = of_scenario("dense_llama")
    assert len({least_bytes(report, workload, lengths_of(1, 1), 1, engines) for engines in (1, 2)}) == 1


def test_nothing_is_known_without_passes_or_lengths():
    report, workload = of_scenario("dense_llama")
    assert least_bytes(report, workload, lengths_of(10, 2), None) is None
    assert least_bytes(report, workload, None, 3) is None
    assert least_bytes({**report, "closed_form": None}, workload, lengths_of(10, 2), 3) is None
