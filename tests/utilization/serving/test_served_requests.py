"""Requests of real servers by their logs: equal to what the engine's passes come to, and vLLM's estimate explained."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagemeter import AnalysisConfig, describe_model, estimate_model
from stagemeter.conventions.compare import decoder_of
from stagemeter.conventions.sizes import read_sizes
from stagemeter.conventions.vllm import scheduled_passes, scheduled_prefill, scheduled_steps, vllm_flops
from stagemeter.profiling.devices import ONE_DEVICE, Devices
from stagemeter.utilization.engine_estimate import HEADS, LATER, UNEXPLAINED, schedule_parts
from stagemeter.utilization.served import ServedRequests
from stagemeter.utilization.serving import difference_parts

ENGINES = runpy.run_path(str(Path(__file__).parents[3] / "docs" / "engines.py"))
SCENARIOS, SCHEDULES, Scenario = ENGINES["SCENARIOS"], ENGINES["SCHEDULES"], ENGINES["Scenario"]


def sizes_of(name: str):
    model = describe_model(Scenario(name).model)
    return read_sizes(decoder_of(model), model.config)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("quantity", ["flops", "flops_causal"])
def test_work_is_that_of_the_engines_passes(name, quantity):
    scenario = Scenario(name)
    ours = getattr(scenario.by_requests(), quantity)
    assert ours["prefill"] + ours["decode"] == scenario.truth(quantity)
    bounds = scenario.by_page().total(quantity)
    assert bounds.least <= scenario.truth(quantity) <= bounds.most


@pytest.mark.parametrize("name", SCENARIOS)
def test_parts_explain_all_of_the_difference(name):
    scenario = Scenario(name)
    parts = scenario.parts()
    assert UNEXPLAINED not in parts
    assert sum(parts.values()) == SCENARIOS[name]["vllm_estimate"] - sum(scenario.by_requests().flops.values())


@pytest.mark.parametrize("name", SCHEDULES)
def test_chunks_by_the_written_bytes_are_those_of_the_schedule(name):
    sizes, requests = sizes_of(name), SCENARIOS[name]["requests"]
    whole = sum(
        (
            scheduled_prefill(sizes, prompt, cached) + scheduled_steps(sizes, prompt, output)
            for prompt, cached, output in requests[1:]
        ),
        scheduled_prefill(sizes, *requests[0][:2]) + scheduled_steps(sizes, requests[0][0], requests[0][2]),
    )
    scheduled = scheduled_passes(sizes, [one for step in SCHEDULES[name] for one in step[0]])
    parts = Scenario(name).parts()
    assert schedule_parts(sizes, whole, scheduled) == {part: parts[part] for part in (HEADS, LATER) if part in parts}
    assert vllm_flops(sizes, scheduled) == SCENARIOS[name]["vllm_estimate"]


def test_sizes_of_the_parts_by_hand():
    """Layers, widths and tokens of the configurations; 1,971 tokens went through each of the models of experts."""
    assert Scenario("qwen3_moe").parts() == {"router left out": -2 * 128 * 8 * 3 * 1971}
    shared = 2 * 2 * (3 * 128 * 192 + 128) * 1971
    dense = 2 * 2 * (2 * 3 * 128 * 64 - 3 * 128 * 256) * 1971
    assert Scenario("qwen2_moe_shared").parts() == {
        "router left out": -2 * 128 * 8 * 2 * 1971,
        "shared experts left out": -shared,
        "layers without experts counted as ones with": dense,
    }
    pairs = sum(
        prompt + step for prompt, _, output in SCENARIOS["deepseek_v3_mla"]["requests"] for step in range(1, output)
    )
    absorbed = Scenario("deepseek_v3_mla").parts()["latent attention expanded in decode steps"]
    assert absorbed == -2 * 3 * 4 * (1088 - 320) * pairs


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_5_vl_prefix_cache"])
def test_vision_encoder_is_left_out_for_the_pictures_that_the_engine_encoded(name):
    """Six pictures, in the order of the log; two of the eight that were sent came again."""
    model, vision = Scenario(name).model, 0
    for width, height in [(448, 336), (1000, 700), (224, 560), (612, 792), (1654, 2339), (30, 40)]:
        config = AnalysisConfig(model=model, image_w=width, image_h=height, max_pixels=1_003_520)
        stages = estimate_model(describe_model(model), config)["stages"]
        vision += sum(stages[stage]["flops"] for stage in ("vit", "merger"))
    assert sum(encoded for _, encoded, *_ in SCHEDULES[name]) == 6
    assert Scenario(name).parts() == {"vision encoder left out": -vision}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3000), st.floats(0, 1), st.integers(1, 40)), min_size=1, max_size=5))
def test_sums_over_arrays_are_those_of_single_passes(rows):
    served = [(prompt, int((prompt - 1) * share), output) for prompt, share, output in rows]
    sizes = sizes_of("mistral_window")
    prompt, cached, output = (np.asarray(column, np.int64) for column in zip(*served, strict=True))
    passes = [(p - c, p) for p, c, _ in served] + [(1, p + step) for p, _, o in served for step in range(1, o)]
    arrays = scheduled_prefill(sizes, prompt, cached) + scheduled_steps(sizes, prompt, output)
    summed = {window: int(pairs.sum()) for window, pairs in arrays.pairs.items()}
    one_by_one = scheduled_passes(sizes, passes)
    assert (summed, int(arrays.tokens.sum())) == (dict(one_by_one.pairs), one_by_one.tokens)


def test_what_the_bytes_do_not_show_is_not_explained():
    scenario = Scenario("chunked_prefill")
    served, theirs = scenario.by_requests(), SCENARIOS["chunked_prefill"]["vllm_estimate"]
    less = theirs - sum(served.flops.values())
    assert difference_parts(replace(served, parts={}), theirs, ONE_DEVICE) == {UNEXPLAINED: less}
    # The bytes of one of two devices that share the work are not those of a whole engine.
    assert difference_parts(served, theirs, Devices(2, 1)) == {UNEXPLAINED: less}


def test_document_is_read_again_and_damage_is_refused():
    served = Scenario("prefix_cache").by_requests()
    content = json.loads(json.dumps(served.to_dict()))
    assert ServedRequests.from_dict(content) == served
    for damage in ({"requests": 0}, {"flops": [3]}, {"flops": {"prefill": 0.5}}, {"log": None, "requests": "3"}):
        with pytest.raises(ValueError, match="no requests of a log"):
            ServedRequests.from_dict({**content, **damage})
    with pytest.raises(ValueError, match="no requests of a log"):
        ServedRequests.from_dict({"log": "log"})
