"""Model FLOPs of text families, a second way: torch's counter on models that run no more than the mathematics."""

from dataclasses import replace

import pytest
from few_examples import few
from hypothesis import given
from hypothesis import strategies as st
from least_work import VISIBLE, least_work
from small_text_models import KINDS
from test_least_work import STEPS, run
from test_text_families import read, real_model

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.models.closed_form import needed_cost
from stagemeter.models.lookup import ModelDescription

#: Kinds of layers that are quick to run: chunks and experts, an indexer's choice, windows with sinks.
FAST = ("llama4_text", "deepseek_v32", "gpt_oss")


def least_flops(config, prompt, batch, past=0):
    """FLOPs by visible pairs, then dense, of a prefill and of decode steps, see `least_work`.

    Latent attention runs a prompt the way that is cheaper by visible pairs.
    """
    model = real_model(config)
    ways = []
    for absorb_prompt in (False, True) if "kv_lora_rank" in config else (False,):
        counts = []
        for unordered in (False, True):
            with least_work(absorb_prompt, unordered):
                model.set_attn_implementation(VISIBLE)
                counts.append(run(model, config, prompt, batch, past)[1])
        ways.append(list(zip(*counts, strict=True)))
    return [min(passes) for passes in zip(*ways, strict=True)]


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
@few
@given(st.data())
def test_model_flops_are_those_of_the_least_work(kind, data):
    config, prompt, batch = data.draw(KINDS[kind]), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 3))
    # transformers gets a prompt wrong whose beginning lightning attention's cache holds.
    past = 0 if kind == "minimax" else data.draw(st.integers(0, prompt - 1))
    family, decoder = read(config)
    asked = AnalysisConfig(seq_len=prompt, new_tokens=STEPS + 1, batch_size=batch, cached_tokens=past or None)
    workload = plan_request(asked, ModelDescription("small", family, decoder, config, "a test"))
    steps = [replace(workload, decode_context=prompt + 1 + step) for step in range(STEPS)]
    prefill, decode = family.stage("prefill"), family.stage("decode")
    costs = [needed_cost(prefill, decoder, workload), *(needed_cost(decode, decoder, step) for step in steps)]
    assert [(cost.flops_causal, cost.flops) for cost in costs] == least_flops(config, prompt, batch, past)


@pytest.mark.parametrize("kind", KINDS)
@few
@given(st.data())
def test_chunks_change_no_visible_pair(kind, data):
    """A prompt in chunks has the visible pairs of the whole, and yields once."""
    config, prompt = data.draw(KINDS[kind]), data.draw(st.integers(1, 40))
    # Latent attention expands the context of each chunk anew, or absorbs.
    latent = "kv_lora_rank" in config
    cached = 0 if latent else data.draw(st.integers(0, prompt - 1))
    family, decoder = read(config)
    asked = AnalysisConfig(seq_len=prompt, new_tokens=2, cached_tokens=cached or None)
    whole = plan_request(asked, ModelDescription("small", family, decoder, config, "a test"))
    parts = replace(whole, chunk_tokens=data.draw(st.integers(1, 40)))
    at_once, in_chunks = (needed_cost(family.stage("prefill"), decoder, workload) for workload in (whole, parts))
    if latent:
        assert in_chunks.macs_causal >= at_once.macs_causal
    else:
        assert in_chunks.macs_causal == at_once.macs_causal
        assert in_chunks.macs <= at_once.macs
