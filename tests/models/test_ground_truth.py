"""The published model at full size: every number measured on the authors' own code, to the integer, in three ways."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stagemeter import AnalysisConfig, DeepSeekOCRSession
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import analytic_tier, extracted_tier, isolated_tier
from stagemeter.models.blocks import sum_of
from stagemeter.models.decoder.mixer import executed_pass
from stagemeter.models.families.deepseek_ocr.configuration import published_architecture
from stagemeter.models.families.deepseek_ocr.family import FAMILY
from stagemeter.models.lookup import describe_model
from stagemeter.models.vision.sam import ViewGroup

TRUTH = json.loads((Path(__file__).parent / "ground_truth.json").read_text())
ARCHITECTURE = published_architecture()
TIERS = ["isolated", "extracted", "analytic"]


@pytest.fixture(scope="module")
def session():
    return DeepSeekOCRSession.from_config()


@pytest.fixture(scope="module")
def count(session):
    """Counts all stages of a workload by one tier."""

    def run(tier, workload):
        if tier == "isolated":
            return isolated_tier(FAMILY.stages, session.model, session.architecture, workload).stages
        if tier == "extracted":
            return extracted_tier(FAMILY, session.model, session.architecture, workload).stages
        return analytic_tier(FAMILY, ARCHITECTURE, workload).stages

    return run


def workload(**changes):
    base = plan_request(AnalysisConfig(mode="base"), describe_model("deepseek-ocr"))
    return replace(base, **changes)


@pytest.mark.parametrize("tier", TIERS)
def test_one_global_view(count, tier):
    stages = count(tier, workload())
    truth = TRUTH["vision_flops"]["one 1024x1024 view"]
    assert {name: stages[name].cost.flops for name in ("sam", "clip", "projector")} == {
        name: truth[name] for name in ("sam", "clip", "projector")
    }


@pytest.mark.parametrize("tier", TIERS)
def test_six_local_views(count, tier):
    one = count(tier, workload())
    tiled = count(tier, workload(local_views=6, tile_grid=(2, 3), image_size=640, image_tokens=903, prompt_tokens=913))
    truth = TRUTH["vision_flops"]["six 640x640 views"]
    for name in ("sam", "clip", "projector"):
        assert tiled[name].cost.flops - one[name].cost.flops == truth[name]


@pytest.mark.parametrize("tier", TIERS)
def test_prefill_and_decode(count, tier):
    stages = count(tier, workload(prompt_tokens=913, decode_context=914))
    text = TRUTH["text_flops"]
    assert stages["prefill"].cost.flops == text["prefill_layers_913"] + text["lm_head_one_position"]
    assert stages["decode"].cost.flops == text["decode_layers_914"] + text["lm_head_one_position"]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("tokens", [2, 17, 1500])
def test_prefill_and_decode_at_other_lengths(count, tier, tokens):
    stages = count(tier, workload(prompt_tokens=tokens, decode_context=tokens))
    text = TRUTH["text_flops"]
    layers = text["prefill_per_token"] * tokens + text["prefill_per_token_squared"] * tokens**2
    assert stages["prefill"].cost.flops == layers + text["lm_head_one_position"]
    step = text["decode_constant"] + text["decode_per_context"] * tokens
    assert stages["decode"].cost.flops == step + text["lm_head_one_position"]


@pytest.mark.parametrize(("views", "side"), [("one 1024x1024 view", 1024), ("six 640x640 views", 640)])
def test_tokens_per_view(views, side):
    sam = ARCHITECTURE.sam
    group = ViewGroup.of(1, side, sam.patch_size, sam.window_size)
    assert group.quarter_grid**2 == TRUTH["vision_flops"][views]["tokens_per_view"]


@pytest.mark.parametrize("tokens", [1, 17, 913, 8192])
def test_closed_forms_of_the_decoder(tokens):
    text, decoder = TRUTH["text_flops"], ARCHITECTURE.decoder.decoder
    read = decoder.experts_read(tokens).most
    prefill = sum_of(decoder.layer_operators(executed_pass(1, tokens, tokens, read, prefill=True)))
    read = decoder.experts_read(1).most
    decode = sum_of(decoder.layer_operators(executed_pass(1, 1, tokens, read, prefill=False)))
    assert prefill.flops == text["prefill_per_token"] * tokens + text["prefill_per_token_squared"] * tokens**2
    assert decode.flops == text["decode_constant"] + text["decode_per_context"] * tokens


def test_every_parameter_of_the_checkpoint_is_in_exactly_one_stage(session):
    truth = TRUTH["params"]
    stages = {stage.name: stage.parameters(ARCHITECTURE) for stage in FAMILY.stages}
    assert {name: parameters.total for name, parameters in stages.items()} == {
        "sam": truth["sam"],
        "clip": truth["clip"],
        "projector": truth["projector"],
        "prefill": truth["embed_tokens"] + truth["decoder_layers"] + truth["final_norm"],
        "decode": truth["lm_head"],
    }
    other = sum(FAMILY.other_parameters(ARCHITECTURE).values())
    assert other == truth["image_newline_and_view_separator"]
    assert sum(parameters.total for parameters in stages.values()) + other == truth["total"]
    assert stages["clip"].unused == truth["clip_unused_patch_embedding"]
    built = sum(parameter.numel() for parameter in session.model.parameters())
    assert built + truth["clip_unused_patch_embedding"] == truth["total"]


def test_the_published_checkpoint_size_in_bytes():
    """Public transcriptions of the checkpoint's model.safetensors.index.json give a total_size of 6,672,212,480."""
    stages = sum(stage.parameters(ARCHITECTURE).total for stage in FAMILY.stages)
    assert 2 * (stages + sum(FAMILY.other_parameters(ARCHITECTURE).values())) == 6_672_212_480
