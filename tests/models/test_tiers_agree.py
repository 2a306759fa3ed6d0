"""Three ways of counting, and ways that are not ours, on random small models: equal to the integer."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tier_costs import all_steps, costs
from torch.utils.flop_counter import FlopCounterMode

from stagemeter import DeepSeekOCRSession
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import analytic_tier, extracted_tier, isolated_tier
from stagemeter.core.cost import total
from stagemeter.models.closed_form import coefficients, evaluate_workload, needed_cost, stage_cost
from stagemeter.models.families.deepseek_ocr.architecture import (
    ClipArchitecture,
    DecoderArchitecture,
    DeepseekOCRArchitecture,
)
from stagemeter.models.families.deepseek_ocr.configuration import published_architecture
from stagemeter.models.families.deepseek_ocr.family import FAMILY
from stagemeter.models.families.deepseek_ocr.modes import MODES
from stagemeter.models.lookup import ModelDescription, describe_model
from stagemeter.models.vision.sam import SamArchitecture
from stagemeter.utilization.stage_mfu import estimate_decode_flops_per_token, estimate_prefill_flops_total

few = settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@st.composite
def architectures(draw):
    small = st.integers(1, 3)
    heads, width = draw(small), draw(small) * 4
    clip_heads = draw(small)
    clip_hidden = clip_heads * draw(small) * 4
    patch_size = draw(st.sampled_from([8, 12, 16]))
    layers = draw(small)
    key_value_heads = draw(small)
    decoder_heads = key_value_heads * draw(st.integers(1, 2))
    head_width = draw(small) * 2
    decoder_layers = draw(small)
    experts = draw(st.integers(2, 5))
    sam = SamArchitecture(
        hidden=heads * width,
        layers=layers,
        heads=heads,
        intermediate=draw(st.integers(1, 40)),
        patch_size=patch_size,
        window_size=draw(st.integers(2, 5)),
        global_layers=tuple(sorted(draw(st.sets(st.integers(0, layers - 1))))),
        pretrain_size=patch_size * draw(st.integers(2, 9)),
        neck=draw(st.integers(1, 9)),
        downsample_channels=(draw(st.integers(1, 9)), clip_hidden),
    )
    clip = ClipArchitecture(
        hidden=clip_hidden,
        layers=draw(small),
        heads=clip_heads,
        intermediate=draw(st.integers(1, 40)),
        patch_size=14,
        pretrain_size=14 * draw(st.integers(1, 5)),
    )
    decoder = DecoderArchitecture(
        hidden=decoder_heads * head_width,
        layers=decoder_layers,
        heads=decoder_heads,
        key_value_heads=key_value_heads,
        head_width=head_width,
        intermediate=draw(st.integers(1, 40)),
        dense_layers=draw(st.integers(0, decoder_layers)),
        experts=experts,
        experts_per_token=draw(st.integers(1, experts)),
        shared_experts=draw(st.integers(1, 2)),
        # Grouped products want rows of a multiple of 16 bytes.
        expert_intermediate=8 * draw(st.integers(1, 3)),
        vocabulary=draw(st.integers(2, 99)),
        max_positions=4096,
    )
    decoder = replace(decoder, hidden=decoder.hidden * 8, head_width=decoder.head_width * 8)
    return DeepseekOCRArchitecture(sam=sam, clip=clip, decoder=decoder)


@st.composite
def workloads(draw):
    return AnalysisConfig(
        base_size=draw(st.integers(16, 200)),
        image_size=draw(st.integers(16, 120)),
        crop_mode=draw(st.booleans()),
        image_w=draw(st.integers(1, 600)),
        image_h=draw(st.integers(1, 600)),
        text_tokens=draw(st.integers(1, 9)),
        new_tokens=draw(st.integers(1, 6)),
        batch_size=draw(st.integers(1, 3)),
        seq_len=draw(st.none() | st.integers(1, 60)),
    )


def plan(config, architecture):
    model = ModelDescription("small", FAMILY, architecture, {}, "a test")
    return plan_request(config.model_copy(update={"patch_size": architecture.sam.patch_size}), model)


@pytest.mark.slow
@few
@given(architectures(), workloads())
def test_isolated_extracted_and_analytic_are_equal(architecture, config):
    session = DeepSeekOCRSession.from_config(architecture)
    workload = plan(config, architecture)
    isolated = isolated_tier(FAMILY.stages, session.model, architecture, workload)
    extracted = extracted_tier(FAMILY, session.model, architecture, workload)
    analytic = analytic_tier(FAMILY, architecture, workload)
    assert costs(isolated) == costs(extracted) == costs(analytic)
    assert all_steps(isolated) == all_steps(analytic)
    assert not any(count.unsupported for tier in (isolated, extracted) for count in tier.stages.values())
    whole = total(count.cost for name, count in extracted.stages.items() if name != "decode")
    assert replace(extracted.passes["forward"].of(""), macs_causal=whole.macs_causal) == whole

    assert costs(isolated_tier(FAMILY.stages, session.model, architecture, workload, walk_every_layer=True)) == costs(
        isolated
    )
    assert costs(extracted_tier(FAMILY, session.model, architecture, workload, walk_every_layer=True)) == costs(
        extracted
    )


@few
@given(architectures())
def test_parameters_are_those_of_the_modules(architecture):
    model = DeepSeekOCRSession.from_config(architecture).model
    for stage in FAMILY.stages:
        built = sum(p.numel() for module in stage.owns for p in model.get_submodule(module).parameters())
        parameters = stage.parameters(architecture)
        assert parameters.total - parameters.unused == built
    other = sum(FAMILY.other_parameters(architecture).values())
    stages = sum(stage.parameters(architecture).total for stage in FAMILY.stages)
    assert stages + other == sum(p.numel() for p in model.parameters()) + architecture.clip.unused_parameters


@few
@given(architectures(), workloads())
def test_the_reports_closed_form_evaluates_other_workloads_without_the_model(architecture, config):
    closed_form = json.loads(json.dumps(coefficients(FAMILY, architecture)))
    workload = plan(config, architecture)
    evaluated = evaluate_workload(closed_form, FAMILY, workload)
    assert {stage.name: evaluated[stage.name] for stage in FAMILY.stages} == {
        stage.name: needed_cost(stage, architecture, workload) for stage in FAMILY.stages
    }
    decode = FAMILY.stage("decode")
    contexts = range(workload.prompt_tokens + 1, workload.prompt_tokens + workload.decode_steps + 1)
    steps = (needed_cost(decode, architecture, replace(workload, decode_context=context)) for context in contexts)
    assert evaluated["decode_total"] == total(steps)


@pytest.mark.slow
@settings(few, max_examples=6)
@given(architectures(), workloads())
def test_attention_as_separate_products_does_as_many(architecture, config):
    decoder = replace(architecture.decoder, key_value_heads=architecture.decoder.heads)
    architecture = replace(architecture, decoder=decoder)
    workload = plan(config, architecture)
    model = DeepSeekOCRSession.from_config(architecture, use_flash_attn=False).model
    eager, analytic = (
        isolated_tier(FAMILY.stages, model, architecture, workload),
        analytic_tier(FAMILY, architecture, workload),
    )
    for name, cost in costs(eager).items():
        expected = analytic.stages[name].cost
        assert cost.macs == expected.macs
        assert (cost.kv_reads, cost.kv_writes) == (expected.kv_reads, expected.kv_writes)
        assert cost.activations >= expected.activations  # Scores are written.


@few
@given(architectures(), workloads())
def test_all_decode_steps_are_the_sum_of_each(architecture, config):
    workload = plan(config, architecture)
    decode = FAMILY.stage("decode")
    steps = [
        stage_cost(decode, architecture, replace(workload, decode_context=workload.prompt_tokens + step))
        for step in range(1, workload.new_tokens)
    ]
    assert analytic_tier(FAMILY, architecture, workload).stages["decode"].request_cost == total(steps)


@few
@given(architectures(), st.integers(1, 50), st.integers(2, 90), st.integers(1, 3))
def test_estimates_are_the_closed_forms(architecture, tokens, context, batch):
    decoder = architecture.decoder
    sizes = {
        "n_heads": decoder.heads,
        "n_key_value_heads": decoder.key_value_heads,
        "head_width": decoder.head_width,
        "n_dense_layers": decoder.dense_layers,
        "n_experts": decoder.experts,
        "n_experts_per_token": decoder.experts_per_token,
        "n_shared_experts": decoder.shared_experts,
        "d_expert": decoder.expert_intermediate,
        "vocabulary": decoder.vocabulary,
    }
    workload = replace(
        plan_request(
            AnalysisConfig(seq_len=tokens),
            describe_model("deepseek-ocr"),
        ),
        decode_context=context,
    )
    prefill = stage_cost(FAMILY.stage("prefill"), architecture, workload)
    decode = stage_cost(FAMILY.stage("decode"), architecture, workload)
    plain = (decoder.hidden, decoder.intermediate, decoder.layers)
    assert estimate_prefill_flops_total(*plain, tokens, **sizes) == prefill.flops
    assert estimate_prefill_flops_total(*plain, tokens, batch_size=batch, **sizes) == batch * prefill.flops
    assert estimate_decode_flops_per_token(*plain, context, **sizes) == decode.flops


class NoRecorder:
    def record_cache_update(self, key, value, added):
        pass

    def record_state(self, state, added):
        pass


@pytest.mark.slow
@settings(few, max_examples=6)
@given(architectures(), workloads())
def test_real_tensors_and_torchs_own_counter_give_the_same(architecture, config):
    """Nothing of ours: eager attention and experts on CPU tensors, whose operators torch's counter knows."""
    # transformers' eager attention of this model does not know shared key and value heads.
    architecture = replace(
        architecture, decoder=replace(architecture.decoder, key_value_heads=architecture.decoder.heads)
    )
    session = DeepSeekOCRSession.from_config(architecture, device="cpu", dtype="float32", use_flash_attn=False)
    session.model.set_experts_implementation("eager")
    workload = plan(config, architecture)
    for stage in FAMILY.stages:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            stage.run(session.model, session.architecture, workload, NoRecorder())
        assert counter.get_total_flops() == stage_cost(stage, architecture, workload).flops


@pytest.fixture(scope="module")
def published_model():
    return DeepSeekOCRSession.from_config().model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "page", "tiles"),
    [
        *[(mode, (1654, 2339), 0) for mode in MODES if mode != "gundam"],
        ("gundam", (1654, 2339), 6),
        ("gundam", (600, 400), 0),
        ("gundam", (3000, 1000), 3),
    ],
)
def test_full_size_in_every_mode(published_model, mode, page, tiles):
    architecture = published_architecture()
    config = AnalysisConfig(mode=mode, image_w=page[0], image_h=page[1], batch_size=2)
    workload = plan(config, architecture)
    assert workload.local_views == tiles
    isolated = isolated_tier(FAMILY.stages, published_model, architecture, workload)
    extracted = extracted_tier(FAMILY, published_model, architecture, workload)
    assert costs(isolated) == costs(extracted) == costs(analytic_tier(FAMILY, architecture, workload))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_full_size_walking_every_layer(published_model, mode):
    architecture = published_architecture()
    workload = plan(AnalysisConfig(mode=mode), architecture)
    walked = extracted_tier(FAMILY, published_model, architecture, workload, walk_every_layer=True)
    shared = extracted_tier(FAMILY, published_model, architecture, workload)
    assert costs(walked) == costs(analytic_tier(FAMILY, architecture, workload))
    for name in walked.passes:
        assert shared.passes[name].by_module == walked.passes[name].by_module


def test_sizes_that_the_estimates_cannot_use():
    with pytest.raises(TypeError, match="unknown sizes n_head"):
        estimate_prefill_flops_total(64, 128, 2, 10, n_head=4)
    for sizes in ({"n_shared_experts": -2}, {"head_width": -3}, {"vocabulary": 1.5}, {"n_dense_layers": 3}):
        with pytest.raises(ValueError, match=next(iter(sizes)).replace("n_dense_layers", "3 dense layers")):
            estimate_prefill_flops_total(64, 128, 2, 10, **sizes)
    with pytest.raises(ValueError, match=r"seq_len is 10\.5"):
        estimate_prefill_flops_total(64, 128, 2, 10.5)
    with pytest.raises(ValueError, match="n_experts_per_token is 0"):
        estimate_prefill_flops_total(64, 128, 2, 10, n_experts=3, d_expert=7)
