"""Encoder-decoders that read pages: three ways of counting, torch's counter on real numbers, sizes that are refused."""

import json

import pytest
import torch
from few_examples import few
from hypothesis import given, settings
from hypothesis import strategies as st
from small_encoder_decoders import KINDS
from tier_costs import all_steps, costs
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, Florence2ForConditionalGeneration, VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput

from stagemeter.analysis.analyze import analyze_model, estimate_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import analytic_tier, extracted_tier, isolated_tier
from stagemeter.core.errors import StagemeterError
from stagemeter.models.family import all_parameters
from stagemeter.models.lookup import describe_model, with_adapter


@st.composite
def requests(draw):
    return AnalysisConfig(
        text_tokens=draw(st.integers(1, 9)), new_tokens=draw(st.integers(1, 9)), batch_size=draw(st.integers(1, 2))
    )


def describe(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("small")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return describe_model(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@few
@given(st.data())
def test_isolated_extracted_and_analytic_are_equal(tmp_path_factory, kind, data):
    model, request = describe(tmp_path_factory, data.draw(KINDS[kind])), data.draw(requests())
    family, sizes, workload = model.family, model.architecture, plan_request(request, model)
    assert family.name == kind
    built = model.build()
    isolated = isolated_tier(family.stages, built, sizes, workload)
    extracted = extracted_tier(family, built, sizes, workload)
    analytic = analytic_tier(family, sizes, workload)
    assert costs(isolated) == costs(extracted) == costs(analytic)
    assert all_steps(isolated) == all_steps(analytic)
    assert not any(count.unsupported for tier in (isolated, extracted) for count in tier.stages.values())
    saved = {id(tensor): tensor.numel() for tensor in built.parameters()}
    assert all_parameters(family, sizes) == sum(saved.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(few, max_examples=3)
@given(st.data())
def test_real_tensors_and_torchs_own_counter(tmp_path_factory, kind, data):
    """Read a page and generate text on real numbers with eager attention; torch counts the same."""
    config = data.draw(KINDS[kind])
    model, request = describe(tmp_path_factory, config), data.draw(requests())
    workload = plan_request(request, model)
    expected = analytic_tier(model.family, model.architecture, workload).stages
    plain = {key: value for key, value in config.items() if key != "model_type"}
    settings_of = AutoConfig.for_model(config["model_type"], **plain)
    kind_of = Florence2ForConditionalGeneration if kind == "florence2" else VisionEncoderDecoderModel
    real = kind_of._from_config(settings_of, attn_implementation="eager").eval()
    batch = workload.batch_size
    width, height = workload.view_size or (workload.base_size, workload.base_size)
    # Text is part of the source of Florence-2.
    text = [[config.get("image_token_id")] * workload.image_tokens + [0] * workload.text_tokens] * batch
    source = {"input_ids": torch.tensor(text)} if kind == "florence2" else {}
    seen = workload.image_tokens + (workload.text_tokens if source else 0)
    with torch.no_grad():
        with FlopCounterMode(display=False) as forward:
            out = real(
                pixel_values=torch.rand(batch, 3, height, width),
                **source,
                decoder_input_ids=torch.zeros(batch, workload.prompt_tokens, dtype=torch.long),
                use_cache=True,
            )
        assert forward.get_total_flops() == sum(
            count.cost.flops for name, count in expected.items() if name != "decode"
        )
        assert out.encoder_last_hidden_state.shape[1] == seen
        with FlopCounterMode(display=False) as decode:
            for _ in range(workload.decode_steps):
                out = real(
                    encoder_outputs=BaseModelOutput(last_hidden_state=out.encoder_last_hidden_state),
                    decoder_input_ids=torch.zeros(batch, 1, dtype=torch.long),
                    past_key_values=out.past_key_values,
                    use_cache=True,
                )
        assert decode.get_total_flops() == expected["decode"].request_cost.flops
    caches = out.past_key_values.self_attention_cache, out.past_key_values.cross_attention_cache
    held = [tensor for cache in caches for layer in cache.layers for tensor in (layer.keys, layer.values)]
    reached = workload.prompt_tokens + workload.decode_steps
    elements = sum(tensor.numel() for tensor in held if tensor is not None)
    assert elements == model.family.decoder(model.architecture).kv_cache_elements(workload, reached)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(few, max_examples=3)
@given(st.data())
def test_adapters_beside_both_attentions(tmp_path_factory, kind, data):
    model = describe(tmp_path_factory, data.draw(KINDS[kind]))
    names = st.lists(st.sampled_from(["q_proj", "v_proj", "out_proj", "fc1", "lm_head"]), unique=True)
    targets = data.draw(st.sampled_from([[*data.draw(names), "k_proj"], "all-linear", r".*encoder_attn\.[kv]_proj"]))
    file = tmp_path_factory.mktemp("adapter") / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "r": data.draw(st.integers(1, 5)), "target_modules": targets}))
    request = data.draw(requests()).model_copy(update={"adapter": str(file)})
    report = analyze_model(model, request)
    assert report["agreement"]["equal"], report["agreement"]
    assert report["adapter"] == estimate_model(model, request)["adapter"]
    assert report["adapter"]["total"]["flops"] > 0


def test_adapter_that_names_nothing_of_the_decoder(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["down_proj"]}')
    with pytest.raises(StagemeterError, match=r"names no linear layer of the decoder. There are decoder\.lm_head"):
        with_adapter(describe_model("donut-base"), str(tmp_path))


def test_a_step_of_trocr_by_hand():
    model = describe_model("trocr-base")
    config = AnalysisConfig(text_tokens=1, new_tokens=3, decode_context=2)
    step = estimate_model(model, config)["stages"]["decode"]
    layer = 6 * 1024**2 + 2 * 1024 * 4096
    # Own tokens and those of the page, 577, each once for scores and once for values.
    attention = 2 * 1024 * (2 + 577)
    assert step["macs"] == 12 * (layer + attention) + 1024 * 50_265
    assert estimate_model(model, config)["metadata"]["workload"]["image_tokens"] == (384 // 16) ** 2 + 1
    # The page's keys and values are made once, in the prefill, and stay.
    assert estimate_model(model, config)["total"]["kv_cache_bytes"] == 2 * 12 * 2 * 1024 * (577 + 3)


def test_a_page_of_donut_by_hand():
    model = describe_model("donut-base")
    config = AnalysisConfig(new_tokens=2)
    report = estimate_model(model, config)
    assert report["metadata"]["workload"]["image_tokens"] == (2560 // 32) * (1920 // 32)
    macs, hidden = 640 * 480 * 3 * 16 * 128, 0
    for group, (depth, columns, rows) in enumerate([(2, 480, 640), (2, 240, 320), (14, 120, 160), (2, 60, 80)]):
        width, patches = 128 * 2**group, columns * rows
        # Windows of 10 x 10 fill each group's patches.
        macs += depth * patches * (12 * width**2 + 2 * 100 * width)
        macs += patches * 2 * width * width if group else 0
        # Half of the layers shift them by 5: the last one along a side has two halves, which see themselves.
        shown = (10 * columns - 50) * (10 * rows - 50)
        hidden += depth // 2 * (100 * patches - shown) * 2 * width
    assert report["stages"]["encode"]["macs_executed"] == macs
    assert report["stages"]["encode"]["macs"] == macs - hidden


@pytest.mark.parametrize(
    ("name", "part", "changes", "said"),
    [
        ("trocr-base", "decoder", {"cross_attention_hidden_size": 512}, "It must be 768, the width of"),
        ("trocr-base", "decoder", {"use_learned_position_embeddings": False}, "only learned positions are counted"),
        ("donut-base", "decoder", {"d_model": 512}, "d_model is 512. It must be 1024, the width of"),
        ("donut-base", "encoder", {"depths": [2, 2, 14]}, "depths has 3 groups of layers, and num_heads 4"),
        ("donut-base", "encoder", {"depths": "many"}, "depths is 'many'. It must be a list of 1 or more entries"),
        ("donut-base", "encoder", {"mlp_ratio": "4"}, "mlp_ratio is '4'. It must be a number above 0"),
        ("donut-base", "encoder", {"window_size": 70}, "window_size is 70. Of 60 x 80 patches, it may be at most 60"),
        ("donut-base", "encoder", {"use_absolute_embeddings": True}, "learned positions of patches are not counted"),
    ],
)  # fmt: skip
def test_sizes_that_contradict_one_another(tmp_path_factory, name, part, changes, said):
    config = describe_model(name).config
    with pytest.raises(StagemeterError) as refused:
        describe(tmp_path_factory, {**config, part: {**config[part], **changes}})
    assert said in str(refused.value)


def test_other_parts_are_for_the_generic_family(tmp_path_factory):
    config = describe_model("trocr-base").config
    encoder = {**config["encoder"], "model_type": "deit", "num_hidden_layers": 1}
    decoder = {**config["decoder"], "decoder_layers": 1}
    model = describe(tmp_path_factory, {**config, "encoder": encoder, "decoder": decoder})
    assert model.family.name == "generic"
    report = analyze_model(model, AnalysisConfig(new_tokens=3))
    assert report["agreement"]["tiers"] == ["isolated", "extracted"]
    assert report["agreement"]["equal"]
