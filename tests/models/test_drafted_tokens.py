"""Passes that verify drafted tokens: several new tokens after others, each of which the output head scores."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from few_examples import few
from hypothesis import given
from hypothesis import strategies as st
from least_work import VISIBLE, begin_pass, least_work
from small_text_models import KINDS
from test_text_families import read, real_model
from torch.utils.flop_counter import FlopCounterMode

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import pass_counter
from stagemeter.core.cost import QUANTITIES
from stagemeter.core.errors import StagemeterError
from stagemeter.models.closed_form import needed_cost
from stagemeter.models.decoder.passes import cache_arguments
from stagemeter.models.family import all_parameters
from stagemeter.models.lookup import ModelDescription, describe_model

#: Chunks and experts, quick to run.
FAST = ("llama4_text",)
#: transformers gets a prompt wrong whose beginning lightning attention's cache holds.
RESUMED = [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "minimax"]


def small(data, kind):
    """A model, a workload, new tokens, and tokens before them: the prompt and others."""
    config = data.draw(KINDS[kind])
    family, decoder = read(config)
    prompt, batch = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 3))
    asked = AnalysisConfig(seq_len=prompt, batch_size=batch)
    workload = plan_request(asked, ModelDescription("small", family, decoder, config, "a test"))
    return config, family, decoder, workload, data.draw(st.integers(2, 7)), prompt + data.draw(st.integers(0, 20))


@pytest.mark.parametrize("kind", RESUMED)
@few
@given(st.data())
def test_executed_verification_is_that_of_a_run(kind, data):
    config, family, decoder, workload, tokens, past = small(data, kind)
    model = family.build(decoder, config)

    def verify(model, decoder, workload, recorder):
        ids = torch.zeros(workload.batch_size, tokens, dtype=torch.long, device=model.device)
        passed = cache_arguments(model, decoder, workload, tokens, past, recorder)
        model(input_ids=ids, logits_to_keep=tokens, **passed)

    with pass_counter(model, decoder) as count:
        ran = count(verify, workload).of("")
    found = family.stage("prefill").generation_pass(decoder, workload, tokens, past, tokens, False)
    assert replace(ran, macs_causal=found.macs_causal) == found


@pytest.mark.parametrize("kind", RESUMED)
@few
@given(st.data())
def test_needed_verification_is_the_least_work(kind, data):
    config, family, decoder, workload, tokens, past = small(data, kind)
    model = real_model(config)
    # The embedding of padding is zero, which the modules of `least_work` take for what fills a short prompt.
    ids = torch.full((workload.batch_size, past + tokens), config["vocab_size"] - 1)
    cache = "cache_params" if config["model_type"] == "mamba2" else "past_key_values"

    def flops(absorbed, unordered):
        with least_work(absorbed, unordered), torch.no_grad():
            model.set_attn_implementation(VISIBLE)
            begin_pass(past, 0)
            held = {cache: getattr(model(input_ids=ids[:, :past], use_cache=True, logits_to_keep=1), cache)}
            begin_pass(tokens, past)
            with FlopCounterMode(display=False) as counter:
                model(input_ids=ids[:, past:], use_cache=True, logits_to_keep=tokens, **held)
            return counter.get_total_flops()

    ways = (False, True) if "kv_lora_rank" in config else (False,)
    least = min((flops(absorbed, False), flops(absorbed, True)) for absorbed in ways)
    found = family.stage("prefill").needed.generation_pass(decoder, workload, tokens, past, tokens, False)
    assert (found.flops_causal, found.flops) == least


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
@few
@given(st.data())
def test_pass_of_one_token_is_a_step_and_arrays_are_passes(kind, data):
    config, family, decoder, workload, tokens, past = small(data, kind)
    form, step = family.stage("prefill").needed.generation_pass, family.stage("decode")
    alone = form(decoder, workload, 1, past, 1, False)
    expected = needed_cost(step, decoder, replace(workload, decode_context=past + 1))
    # A step always absorbs the expansion of latent attention, which sizes as small as these can make dearer.
    if "kv_lora_rank" in config:
        assert alone.macs_causal <= expected.macs_causal
    else:
        assert alone == expected
    contexts = np.arange(past, past + 9)
    arrays = form(decoder, workload, tokens, contexts, tokens, False)
    for number, context in enumerate(contexts.tolist()):
        one = form(decoder, workload, tokens, context, tokens, False)
        for name in QUANTITIES:
            assert (getattr(arrays, name) + 0 * contexts)[number] == getattr(one, name), name


#: Parameters of the published checkpoints by safetensors' metadata, scales of quantized weights left out. Of
#: DeepSeek-V3: 3,918,786,560 in bfloat16, 680,571,043,840 in fp8, and 59 x 256 of the 41,555,600 in float32: those
#: that choose experts.
CHECKPOINTS = {
    "deepseek-v3": 3_918_786_560 + 680_571_043_840 + 59 * 256,
    "deepseek-v3.2": 685_355_329_792,
    "glm-ocr": 1_325_258_240,
    "qwen3-next-80b-a3b": 81_324_862_720,
    "qwen3.5-27b": 27_781_427_952,
}
#: Those that hold embedding and head twice.
COPIES = ("deepseek-v3", "deepseek-v3.2", "glm-ocr")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_module_for_further_tokens_is_the_rest_of_the_checkpoint(name):
    model = describe_model(name)
    predictor, decoder = model.predictor(), model.family.decoder(model.architecture)
    assert predictor.modules == 1
    copies = 2 * decoder.vocabulary * decoder.hidden * (name in COPIES)
    assert all_parameters(model.family, model.architecture) + predictor.parameters() + copies == CHECKPOINTS[name]


#: From a public recount of Qwen3.5-2B's checkpoint, ``mtp.*``: projection, layer with full attention, three norms.
TENSORS = ((2048, 4096), (2048,), (4096, 2048), (512, 2048), (512, 2048), (2048, 2048), (256,), (256,), (2048,),
           (6144, 2048), (6144, 2048), (2048, 6144), (2048,), (2048,), (2048,))  # fmt: skip


def test_module_of_qwen_has_full_attention_and_is_named():
    model = describe_model("qwen3.5-27b")
    small = {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 8, "num_key_value_heads": 2}

    def predictor(**more):
        text = {**model.config["text_config"], **small, **more}
        return replace(model, config={**model.config, "text_config": text}).predictor()

    assert predictor().parameters() == sum(math.prod(shape) for shape in TENSORS)
    assert predictor(mtp_num_hidden_layers=0) is predictor(mtp_num_hidden_layers=None) is None
    for wrong in ({"mtp_num_hidden_layers": 2}, {"mtp_use_dedicated_embeddings": True}):
        with pytest.raises(StagemeterError, match=next(iter(wrong))):
            predictor(**wrong)
    assert describe_model("minimax-m2").predictor() is None


def test_module_for_further_tokens_is_what_the_authors_say():
    """README_WEIGHTS.md of DeepSeek-V3 says 11.5 B parameters of its own, and 1.5 B in use with the head.

    That is its layer: neither the projection nor its norms are among them.
    """
    predictor = describe_model("deepseek-v3").predictor()
    assert predictor.parameters() == 11_507_286_272 + 2 * 7168**2 + 3 * 7168
    (layer,) = predictor.decoder.layers
    assert layer.parameters(7168, active=True) + predictor.decoder.head_parameters() == 1_511_997_696


def test_module_for_further_tokens_by_hand():
    """One token after 99 others: a projection, a layer of the model's that absorbs, and the head."""
    model = describe_model("deepseek-v3")
    workload = plan_request(AnalysisConfig(model="deepseek-v3", seq_len=99), model)
    predictor, stage = model.predictor(), model.family.stage("decode")
    step = needed_cost(stage, model.architecture, replace(workload, decode_context=100))
    dense = replace(model.architecture, layers=model.architecture.layers[:1])
    head, (first, rest) = 7168 * 129_280, model.architecture.layers
    three = needed_cost(stage, dense, replace(workload, decode_context=100)).macs - head
    layer = (step.macs - head - three) // rest.times
    assert (first.times, rest.times) == (3, 58)
    assert predictor.generation_pass(workload, 1, 99, False).macs == layer + head + 2 * 7168**2
