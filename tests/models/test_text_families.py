"""Families that read text alone: three ways of counting, torch's own counter and published parameters, all equal."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from few_examples import few
from hypothesis import given, settings
from hypothesis import strategies as st
from small_text_models import KINDS, SOLVED
from tier_costs import all_steps, costs
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import analytic_tier, extracted_tier, isolated_tier
from stagemeter.core.cost import total
from stagemeter.models.closed_form import coefficients, evaluate_workload, needed_cost, stage_cost
from stagemeter.models.configuration import complete
from stagemeter.models.families import family_of
from stagemeter.models.family import all_parameters
from stagemeter.models.lookup import ModelDescription

PUBLISHED = json.loads((Path(__file__).parent / "published_parameters.json").read_text(encoding="utf-8"))["parameters"]
#: What lightning attention saves, although it follows from the number of a layer.
CONSTANTS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
#: One of each kind of layer: grouped-query, latent, windowed, with sinks, gated delta net, Mamba 2, lightning; experts.
DIFFERENT = ("llama", "deepseek_v3", "gemma3_text", "gpt_oss", "qwen3_next", "mamba2", "minimax", "qwen3_moe")


@st.composite
def requests(draw, kind):
    # Chunks of 64 tokens, more than one of them.
    longest = 200 if kind.startswith(("qwen3_next", "qwen3_5")) else 40
    prompt = draw(st.integers(1, longest))
    # transformers gets a prompt wrong whose beginning lightning attention's cache holds.
    cached = 0 if kind == "minimax" else draw(st.integers(0, prompt - 1))
    # At most four chunks.
    chunk = None if kind == "minimax" else draw(st.none() | st.integers(-(-prompt // 4), prompt))
    return AnalysisConfig(
        seq_len=prompt,
        new_tokens=draw(st.integers(1, 30)),
        batch_size=draw(st.integers(1, 3)),
        cached_tokens=cached or None,
        chunk_tokens=chunk,
    )


def read(config):
    source = "a small configuration"
    settings = complete(config, source)
    family = family_of(settings, source)
    return family, family.architecture_from_config(settings, source)


@pytest.mark.parametrize(
    "kind", [kind if kind in DIFFERENT else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
@few
@given(st.data())
def test_isolated_extracted_and_analytic_are_equal(kind, data):
    config, request = data.draw(KINDS[kind]), data.draw(requests(kind))
    family, decoder = read(config)
    workload = plan_request(request, ModelDescription("small", family, decoder, config, "a test"))
    model = family.build(decoder, config)
    isolated = isolated_tier(family.stages, model, decoder, workload)
    extracted = extracted_tier(family, model, decoder, workload)
    analytic = analytic_tier(family, decoder, workload)
    assert costs(isolated) == costs(extracted) == costs(analytic)
    assert all_steps(isolated) == all_steps(analytic)
    unsupported = [count.unsupported for tier in (isolated, extracted) for count in tier.stages.values()]
    assert set().union(*unsupported) <= ({SOLVED} if kind.startswith(("qwen3_next", "qwen3_5")) else set())
    whole, prefill = extracted.passes["forward"].of(""), extracted.stages["prefill"].cost
    assert replace(whole, macs_causal=prefill.macs_causal) == prefill
    assert costs(isolated_tier(family.stages, model, decoder, workload, walk_every_layer=True)) == costs(isolated)

    # The checkpoint holds what is saved: parameters, and buffers that are no constants of the code.
    saved = {
        id(tensor): tensor.numel()
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not name.endswith(CONSTANTS)
    }
    assert all_parameters(family, decoder) == sum(saved.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@few
@given(st.data())
def test_all_steps_are_the_sum_of_each(kind, data):
    """The sum over a request goes by a few steps; here it is every one of them."""
    config, request = data.draw(KINDS[kind]), data.draw(requests(kind))
    family, decoder = read(config)
    workload = plan_request(request, ModelDescription("small", family, decoder, config, "a test"))
    # What of a prompt is computed changes no step.
    workload = replace(workload, cached_tokens=None, chunk_tokens=None)

    def each_step(cost, request):
        contexts = range(request.prompt_tokens + 1, request.prompt_tokens + request.new_tokens)
        steps = (replace(request, decode_context=context) for context in contexts)
        return total(cost(family.stage("decode"), decoder, step) for step in steps)

    closed_form = json.loads(json.dumps(coefficients(family, decoder)))
    assert evaluate_workload(closed_form, family, workload)["decode_total"] == each_step(needed_cost, workload)
    executed = analytic_tier(family, decoder, workload).stages["decode"].request_cost
    assert executed == each_step(stage_cost, workload)
    # A sweep gives arrays, whose requests reach across borders that the others do not reach.
    others = replace(workload, prompt_tokens=workload.prompt_tokens + 7, new_tokens=workload.new_tokens + 20)
    both = replace(
        workload,
        prompt_tokens=np.array([workload.prompt_tokens, others.prompt_tokens]),
        new_tokens=np.array([workload.new_tokens, others.new_tokens]),
    )
    swept = evaluate_workload(closed_form, family, both)["decode_total"]
    for place, request in enumerate((workload, others)):
        expected = asdict(each_step(needed_cost, request))
        assert {name: int(np.broadcast_to(value, 2)[place]) for name, value in asdict(swept).items()} == expected
    assert family.architecture_from_sizes(closed_form["architecture"]) == decoder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(few, max_examples=2)
@given(st.data())
def test_real_tensors_and_torchs_own_counter(kind, data):
    """``generate`` step by step on real numbers, eager attention and experts one by one, counted by torch."""
    config, request = data.draw(KINDS[kind]), data.draw(requests(kind))
    family, decoder = read(config)
    workload = plan_request(request, ModelDescription("small", family, decoder, config, "a test"))
    model = real_model(config)
    ids = torch.randint(3, max(4, config["vocab_size"]), (workload.batch_size, workload.prompt_tokens))
    ids = ids.clamp(max=config["vocab_size"] - 1)
    expected = analytic_tier(family, decoder, workload).stages
    cache = "cache_params" if kind == "mamba2" else "past_key_values"
    past, held = workload.past_tokens, {}
    with torch.no_grad():
        if past:
            held = {cache: getattr(model(input_ids=ids[:, :past], use_cache=True), cache)}
        with FlopCounterMode(display=False) as prefill:
            for one in workload.prefill_passes:
                part = ids[:, one.past_tokens : one.prompt_tokens]
                out = model(input_ids=part, use_cache=True, logits_to_keep=1, **held)
                held = {cache: getattr(out, cache)}
        assert prefill.get_total_flops() == expected["prefill"].cost.flops
        with FlopCounterMode(display=False) as decode:
            for _ in range(workload.decode_steps):
                following = out.logits[:, -1].argmax(-1, keepdim=True)
                out = model(input_ids=following, use_cache=True, logits_to_keep=1, **{cache: getattr(out, cache)})
        assert decode.get_total_flops() == expected["decode"].request_cost.flops
    held = [tensor for layer in getattr(out, cache).layers for tensor in kept_by(layer)]
    # Lightning attention has a cache of its own, with nothing for other layers.
    held += [state for state in getattr(out[cache], "linear_cache", []) if isinstance(state, torch.Tensor)]
    reached = workload.prompt_tokens + workload.decode_steps
    assert sum(tensor.numel() for tensor in held) == decoder.kv_cache_elements(workload, reached)


def kept_by(layer):
    """What a layer of a cache keeps: keys and values, or states; nothing where they are those of an earlier layer."""
    states = [*layer.conv_states.values(), *layer.recurrent_states.values()] if hasattr(layer, "conv_states") else []
    others = [getattr(layer, name, None) for name in ("keys", "values", "indexer_keys")]
    return [*states, *(tensor for tensor in others if tensor is not None)]


def real_model(config):
    """The model with random weights, every product of it one that torch's counter knows."""
    torch.manual_seed(0)
    plain = {key: value for key, value in config.items() if key != "model_type"}
    settings_of = AutoConfig.for_model(config["model_type"], **plain)
    settings_of._experts_implementation = "eager"
    return AutoModelForCausalLM.from_config(settings_of, attn_implementation="eager").eval()
