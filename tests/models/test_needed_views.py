"""What a model needs of pages, against what transformers executes without the rest, and against its own masks."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from few_examples import few
from hypothesis import given, settings
from hypothesis import strategies as st
from small_encoder_decoders import donut, trocr
from small_vision_language_models import KINDS, describe
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.deepseek_ocr2 import modeling_deepseek_ocr2
from transformers.models.donut.modeling_donut_swin import DonutSwinLayer
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.mllama.modeling_mllama import _prepare_aspect_ratio_attention_mask

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import isolated_tier
from stagemeter.models.closed_form import needed_cost, stage_cost

#: Masks of transformers as numbers, zero where a key is visible.
EAGER = {"attn_implementation": "eager"}


@st.composite
def requests(draw, batch=3):
    return AnalysisConfig(
        image_w=draw(st.integers(60, 500)),
        image_h=draw(st.integers(60, 500)),
        text_tokens=draw(st.integers(1, 40)),
        batch_size=draw(st.integers(1, batch)),
    )


def executed(described, workload, config=None, change=lambda model: None, every_layer=False):
    """Return the cost of the encoder that transformers runs, of a model with another configuration or changed."""
    stage = described.family.stages[0]
    model = described.family.build(described.architecture, described.config if config is None else config)
    change(model)
    tier = isolated_tier((stage,), model, described.architecture, workload, every_layer)
    assert not tier.failures
    return tier.stages[stage.name].cost


def needed(described, workload):
    return needed_cost(described.family.stages[0], described.architecture, workload)


def clauses(described, workload):
    return described.family.stages[0].execution(described.architecture, workload)


@pytest.mark.parametrize("kind", ["mistral3", "lighton_ocr"])
@few
@given(st.data())
def test_pages_of_a_batch_need_what_each_executes_alone(kind, data):
    described = describe(data.draw(KINDS[kind]))
    workload = plan_request(data.draw(requests()), described)
    alone = executed(described, replace(workload, batch_size=1))
    assert needed(described, workload).macs == alone.macs * workload.batch_size
    assert bool(clauses(described, workload)) == (workload.batch_size > 1)


@pytest.mark.parametrize(("kind", "unused"), [("llava", 1), ("llava_next", 1), ("llava_onevision", 0)])
@few
@given(st.data())
def test_unused_layers_of_an_encoder_are_not_needed(kind, unused, data):
    described = describe(data.draw(KINDS[kind]))
    workload = plan_request(data.draw(requests()), described)
    vision = described.config["vision_config"]
    fewer = {**described.config, "vision_config": {**vision, "num_hidden_layers": vision["num_hidden_layers"] - unused}}
    assert needed(described, workload) == executed(described, workload, fewer)
    assert len(clauses(described, workload)) == unused


@few
@given(trocr(), requests())
def test_the_pooler_of_trocr_is_not_needed(config, request):
    described = describe(config)
    workload = plan_request(request, described)

    def without_pooler(model):
        model.encoder.pooler = None

    assert needed(described, workload) == executed(described, workload, change=without_pooler)
    assert clauses(described, workload)


@few
@given(donut(), requests())
def test_pairs_in_shifted_windows_are_those_of_their_masks(config, request):
    described = describe(config)
    workload = plan_request(request, described)
    hidden = []
    make = DonutSwinLayer.get_attn_mask

    def noted(self, height, width, dtype, device):
        mask = make(self, height, width, dtype, torch.device("cpu"))
        if mask is not None:
            hidden.append(mask.count_nonzero().item() * self.attention.self.all_head_size)
        return make(self, height, width, dtype, device)

    with mock.patch.object(DonutSwinLayer, "get_attn_mask", noted):
        cost = executed(described, workload, every_layer=True)
    expected = cost.macs - 2 * workload.batch_size * sum(hidden)
    assert needed(described, workload).macs == needed(described, workload).macs_causal == expected
    assert bool(clauses(described, workload)) == bool(sum(hidden))


@few
@given(KINDS["gemma4"], requests())
def test_padding_and_pooling_of_gemma4_are_not_needed(config, request):
    described = describe(config)
    workload = plan_request(request, described)
    sizes = described.architecture
    # No padding, so that pooling is all that is left.
    cost = executed(described, replace(workload, padded_tokens=workload.image_tokens))
    patches = workload.image_tokens * sizes.pooled**2
    pooling = workload.batch_size * workload.image_tokens * patches * sizes.hidden
    assert needed(described, workload).macs == cost.macs - pooling
    assert clauses(described, workload)


@few
@given(KINDS["mllama"], requests())
def test_pairs_of_llama_32s_encoder_are_those_of_its_mask(config, request):
    described = describe(config)
    workload = plan_request(request, described)
    sizes = described.architecture
    used = (torch.arange(sizes.tiles) < workload.global_views).long()[None]
    mask = _prepare_aspect_ratio_attention_mask(used, sizes.patches, sizes.padded, torch.float32)
    stage = described.family.stages[0]
    tokens = sizes.tiles * sizes.padded
    hidden = (mask < 0).sum().item()
    less = 2 * sizes.vit.layers * hidden * sizes.hidden + tokens**2
    expected = stage_cost(stage, sizes, workload).macs - workload.batch_size * less
    assert needed(described, workload).macs == needed(described, workload).macs_causal == expected


@few
@given(KINDS["mllama"], requests())
def test_the_text_of_llama_32_needs_no_padding(config, request):
    """A model with as many tiles as the page has executes what the model needs."""
    described = describe(config)
    workload = plan_request(request, described)
    used = workload.global_views
    fewer = describe({**config, "vision_config": {**config["vision_config"], "max_num_tiles": used}})
    stages = described.family.stages[1:]
    model = fewer.family.build(fewer.architecture, fewer.config)
    tier = isolated_tier(stages, model, fewer.architecture, workload)
    assert not tier.failures
    for stage in stages:
        least, counted = needed_cost(stage, described.architecture, workload), tier.stages[stage.name].cost
        kinds = ("macs", "weight_reads", "kv_reads", "kv_writes")
        assert [getattr(least, kind) for kind in kinds] == [getattr(counted, kind) for kind in kinds]
        assert bool(stage.execution(described.architecture, workload)) == (used < described.architecture.tiles)


@few
@given(KINDS["deepseek_ocr2"], requests())
def test_pairs_of_deepseek_ocr_2s_encoder_are_those_of_its_mask(config, request):
    described = describe(config)
    workload = plan_request(request, described)
    sizes, stage = described.architecture, described.family.stages[1]
    text = AutoConfig.for_model("qwen2", **{**config["vision_config"]["encoder_config"], **EAGER})
    for values in stage.calls(sizes, workload):
        patches = values["quarter_grid"] ** 2
        blocks = torch.full((1, 2 * patches), -1)
        blocks[:, :patches] = 0
        mask = create_causal_mask(text, torch.zeros(1, 2 * patches, 1), None, None, block_sequence_ids=blocks)
        seen = (mask == 0).sum().item()
        cost = stage.cost(sizes, values)
        per_pair = 2 * sizes.encoder.layers * sizes.encoder.hidden * values["views"]
        assert cost.macs - cost.macs_causal == per_pair * (4 * patches**2 - seen)


def on_queries_alone(layer, patches):
    """Return a forward of the encoder's last layer that computes the rows of queries alone."""

    def forward(hidden_states, attention_mask, position_embeddings, **kwargs):
        attention, states = layer.self_attn, layer.input_layernorm(hidden_states)
        batch, tokens = states.shape[:2]
        query, key, value = (
            project(rows).view(batch, rows.shape[1], -1, attention.head_dim).transpose(1, 2)
            for project, rows in (
                (attention.q_proj, states[:, patches:]), (attention.k_proj, states), (attention.v_proj, states),
            )
        )  # fmt: skip
        query = modeling_deepseek_ocr2.apply_rotary_pos_emb(
            query, query, *(turned[:, patches:] for turned in position_embeddings)
        )[0]
        key = modeling_deepseek_ocr2.apply_rotary_pos_emb(key, key, *position_embeddings)[0]
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
        scores = query @ key.mT * attention.scaling + attention_mask[..., patches:, :]
        out = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens - patches, -1)
        out = attention.o_proj(out) + hidden_states[:, patches:]
        out = out + layer.mlp(layer.post_attention_layernorm(out))
        return torch.cat([torch.full_like(hidden_states[:, :patches], float("nan")), out], dim=1)

    return forward


@few
@given(KINDS["deepseek_ocr2"], requests(1), st.integers(1, 4))
def test_the_last_layer_of_deepseek_ocr_2s_encoder_needs_queries_alone(config, request, side):
    described = describe(config)
    sizes, stage = described.architecture, described.family.stages[1]
    torch.manual_seed(0)
    encoder = modeling_deepseek_ocr2.DeepseekOcr2VisionEncoder(
        modeling_deepseek_ocr2.DeepseekOcr2VisionEncoderConfig(**config["vision_config"]["encoder_config"], **EAGER)
    ).eval()
    patches, last = side**2, encoder.layers[-1]
    inputs = {"inputs_embeds": torch.randn(2, 2 * patches, sizes.encoder.hidden), "num_patches": patches}
    with torch.no_grad():
        usual = encoder(**inputs).last_hidden_state[:, patches:]
        reduced = mock.patch.object(last, "forward", on_queries_alone(last, patches))
        with reduced, FlopCounterMode(display=False) as counter:
            alone = encoder(**inputs).last_hidden_state[:, patches:]
    torch.testing.assert_close(alone, usual)
    (values, *_) = stage.calls(sizes, plan_request(request, described))
    assert stage.model.cost(sizes, {**values, "views": 2, "quarter_grid": side}).flops == counter.get_total_flops()


def pairs(masks):
    return {name: (mask == 0).sum().item() for name, mask in masks.items()}


def text_of(config):
    text = dict(config["text_config"])
    return AutoConfig.for_model(text.pop("model_type"), **text, **EAGER)


def pictures(workload, data):
    """Return a row with one for each token of a picture and zeros for text, which lies around each picture."""
    views = workload.global_views + workload.local_views
    tokens, text = workload.image_tokens // views, workload.prompt_tokens - workload.image_tokens
    before = data.draw(st.integers(0, text - views))
    row = [0] * before
    for _ in range(views):
        row += [1] * tokens + [0]
    return torch.tensor([row + [0] * (text - before - views)])


@pytest.mark.parametrize(("kind", "module"), [("gemma3", modeling_gemma3), ("gemma4", modeling_gemma4)])
@settings(few, max_examples=20)
@given(st.data())
def test_visible_pairs_of_gemma_are_those_of_its_masks(kind, module, data):
    config = data.draw(KINDS[kind])
    described = describe(config)
    crops = data.draw(st.integers(0, 3)) if kind == "gemma3" else 0
    workload = plan_request(data.draw(requests()), described)
    # Each crop adds its tokens and one of text.
    tokens, more = (1 + crops) * workload.image_tokens, crops * (workload.image_tokens + 1)
    workload = replace(workload, local_views=crops, image_tokens=tokens, prompt_tokens=workload.prompt_tokens + more)
    row = pictures(workload, data)
    text = text_of(config)
    passed = {
        "config": text,
        "inputs_embeds": torch.zeros(*row.shape, 1),
        "attention_mask": None,
        "past_key_values": None,
        "position_ids": torch.arange(row.shape[1])[None],
    }
    if kind == "gemma3" or text.use_bidirectional_attention == "vision":
        blocks = module.get_block_sequence_ids_for_mask(row, device=row.device)
        masks = module.create_masks_for_vision_model(**passed, block_sequence_ids=blocks)
    else:
        masks = {
            "full_attention": create_causal_mask(**passed),
            "sliding_attention": create_sliding_window_causal_mask(**passed),
        }
    prefill = described.family.stages[-2]
    (values,) = prefill.needed.calls(described.architecture, workload)
    seen = pairs(masks)
    assert values["visible"] == seen["full_attention"]
    if described.architecture.decoder.window:
        assert values["limited_visible"] == seen["sliding_attention"]


@settings(few, max_examples=10)
@given(KINDS["paligemma"], requests())
def test_all_pairs_of_paligemmas_prompt_are_visible(config, request):
    described = describe(config)
    workload = plan_request(request, described)
    tokens, text = workload.prompt_tokens, text_of(config)
    passed = {
        "config": text,
        "inputs_embeds": torch.zeros(1, tokens, 1),
        "attention_mask": None,
        "past_key_values": None,
        "block_sequence_ids": torch.zeros(1, tokens, dtype=torch.long),
    }
    prefill = described.family.stages[-2]
    (values,) = prefill.needed.calls(described.architecture, workload)
    assert values["visible"] == (create_causal_mask(**passed) == 0).sum()
    if described.architecture.decoder.window:
        mask = create_sliding_window_causal_mask(**passed)
        assert values["limited_visible"] == values["limited_pairs"] == (mask == 0).sum()


@pytest.mark.parametrize("kind", ["gemma3", "gemma4"])
@few
@given(st.data())
def test_a_prompt_without_its_page_is_text(kind, data):
    described = describe(data.draw(KINDS[kind]))
    request = data.draw(requests())
    workload = plan_request(request, described)
    tokens = workload.image_tokens - 1
    prefill = described.family.stages[-2]
    (values,) = prefill.needed.calls(described.architecture, replace(workload, prompt_tokens=tokens))
    assert values["visible"] == tokens * (tokens + 1) // 2
