"""Requests of several pages: three ways of counting are equal, and each page counts on its own."""

import json
from dataclasses import replace

import pytest
import torch
from few_examples import few
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from small_resolution_models import IMAGE_TOKEN
from small_vision_language_models import KINDS, describe
from test_vision_language_families import page_inputs, real_model
from tier_costs import costs
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import analytic_tier, extracted_tier, isolated_tier
from stagemeter.core.cost import total
from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.closed_form import coefficients, evaluate_both, needed_cost, stage_cost
from stagemeter.models.families import families

FAMILIES = families()
#: Patches of pages at their own resolution.
DIFFERENT = ("qwen2_5_vl",)
#: A page a request.
ALONE = ("mllama",)
sides = st.integers(28, 500)
by_kind = pytest.mark.parametrize(
    "kind",
    [kind if kind in DIFFERENT else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind not in ALONE],
)


@st.composite
def requests(draw):
    """A page and 1 to 3 further ones, some of them equal; maybe some whole pages in the cache."""
    further = draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=2))
    further += draw(st.sampled_from([[], further[-1:]]))
    return AnalysisConfig(
        image_w=draw(sides),
        image_h=draw(sides),
        further_pages=tuple(f"{width}x{height}" for width, height in further),
        text_tokens=draw(st.integers(2, 9)),
        new_tokens=draw(st.integers(1, 4)),
        batch_size=draw(st.integers(1, 2)),
        seq_len=draw(st.none() | st.integers(1, 60)),
    )


def plan(request, described):
    """Plan a request, none of whose pages the model refuses."""
    try:
        return plan_request(request, described)
    except StagemeterError:
        reject()


def maybe_cached(data, workload, described):
    """The workload, or with some whole pages in the cache."""
    if workload.prompt_tokens <= workload.all_image_tokens + workload.tags or described.family.name == "paligemma":
        return workload
    whole = data.draw(st.integers(0, workload.pages))
    return replace(workload, cached_tokens=workload.end_of_page(whole) or None)


@by_kind
@few
@given(st.data())
def test_isolated_extracted_and_analytic_are_equal(kind, data):
    described = describe(data.draw(KINDS[kind]))
    check(described, maybe_cached(data, plan(data.draw(requests()), described), described))


@pytest.mark.slow
@settings(few, max_examples=2)
@given(KINDS["gemma4"])
def test_twelve_pages_of_gemma4_are_counted(config):
    """Their patches and tokens are more than the known values of any mask."""
    request = AnalysisConfig(
        image_w=124, image_h=311, further_pages=("169x111", "320x220"), text_tokens=4, new_tokens=1, batch_size=4
    )
    described = describe(config)
    check(described, plan(request, described))


def check(described, workload):
    """Check that all three counts of a workload are equal, and so are those of its report."""
    family, sizes = described.family, described.architecture
    model = family.build(sizes, described.config)
    isolated = isolated_tier(family.stages, model, sizes, workload)
    extracted = extracted_tier(family, model, sizes, workload)
    analytic = analytic_tier(family, sizes, workload)
    assert costs(isolated) == costs(extracted) == costs(analytic)
    whole = total(count.cost for name, count in extracted.stages.items() if name != "decode")
    assert replace(extracted.passes["forward"].of(""), macs_causal=whole.macs_causal) == whole
    # A report's coefficients give the same, after JSON, too.
    again = Workload.from_json(json.dumps(workload.to_dict()))
    assert again == workload == Workload.from_dict(workload.to_dict())
    needed, executed = evaluate_both(coefficients(family, sizes), family, again)
    for stage in family.stages:
        assert needed[stage.name] == needed_cost(stage, sizes, workload)
        assert executed[stage.name] == stage_cost(stage, sizes, workload)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "internvl", "gemma3", "mistral3", "idefics3", "paddleocr_vl"])
@settings(few, max_examples=2)
@given(st.data())
def test_real_tensors_and_torchs_own_counter(kind, data):
    """Run the pages and a prompt on real numbers, with a token of text behind each page; torch counts the same."""
    described = describe(data.draw(KINDS[kind]))
    request = data.draw(requests()).model_copy(update={"seq_len": None, "text_tokens": 9})
    workload = plan(request, described)
    expected = analytic_tier(described.family, described.architecture, workload).stages
    model = real_model(described.config)
    pages = [one for times, one in workload.of_each_page for _ in range(times)]
    row = [token for one in pages for token in [*[IMAGE_TOKEN] * one.image_tokens, 0]]
    ids = torch.tensor([row + [0] * (workload.prompt_tokens - len(row))] * workload.batch_size)
    inputs = [page_inputs(kind, described, replace(one, batch_size=1), ids) for one in pages]
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        model(input_ids=ids, use_cache=True, logits_to_keep=1, **joined(kind, inputs, workload.batch_size))
    assert forward.get_total_flops() == sum(count.cost.flops for name, count in expected.items() if name != "decode")


def joined(kind, inputs, batch):
    """Return what a processor makes of the pages of a batch: side by side, padded where one tensor holds all."""
    tokens = ("mm_token_type_ids", "token_type_ids")
    found = {name: value for name, value in inputs[0].items() if name in tokens}
    for name in inputs[0].keys() - found.keys():
        parts = [one[name] for one in inputs]
        if kind == "mistral3" and name == "pixel_values":
            height, width = (max(part.shape[side] for part in parts) for side in (2, 3))
            parts = [functional.pad(part, (0, width - part.shape[3], 0, height - part.shape[2])) for part in parts]
        if kind == "idefics3":
            found[name] = torch.cat(parts, dim=1).repeat(batch, 1, 1, 1, 1)
        else:
            found[name] = torch.cat(parts * batch)
    return found
