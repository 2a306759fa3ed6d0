"""Arrays of cached tokens: closed forms at arrays equal those at each of their elements."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from small_text_models import KINDS

from stagemeter import AnalysisConfig, StagemeterError, describe_model
from stagemeter.analysis.requests import plan_request
from stagemeter.core.cost import QUANTITIES
from stagemeter.models.closed_form import coefficients, evaluate_both, needed_cost, stage_cost
from stagemeter.models.configuration import complete
from stagemeter.models.families import family_of
from stagemeter.models.lookup import ModelDescription

SOURCE = "a small configuration"
few = settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


@st.composite
def lengths(draw):
    """Prompt, tokens of it that the cache holds, and new tokens, of several requests."""
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        prompt = draw(st.integers(1, 200))
        rows.append((prompt, draw(st.just(0) | st.integers(0, prompt - 1)), draw(st.integers(1, 60))))
    return rows


def equal(family, architecture, workload, rows):
    """Hold that the closed form at arrays of some requests is that at each of them."""
    form = coefficients(family, architecture)

    def at(prompt, past, new):
        asked = {"prompt_tokens": prompt, "cached_tokens": past, "new_tokens": new, "decode_context": prompt + 1}
        return evaluate_both(form, family, replace(workload, **asked))

    arrays = at(*(np.asarray(column, np.int64) for column in zip(*rows, strict=True)))
    for number, row in enumerate(rows):
        for of_arrays, alone in zip(arrays, at(*row), strict=True):
            for stage, cost in alone.items():
                for name in QUANTITIES:
                    value = getattr(of_arrays[stage], name) + np.zeros(len(rows), np.int64)
                    assert value[number] == getattr(cost, name), (stage, name, row)


@pytest.mark.parametrize("kind", KINDS)
@few
@given(st.data())
def test_arrays_of_requests_equal_each_request(kind, data):
    config = complete(data.draw(KINDS[kind]), SOURCE)
    family = family_of(config, SOURCE)
    architecture = family.architecture_from_config(config, SOURCE)
    model = ModelDescription("small", family, architecture, config, "a test")
    equal(family, architecture, plan_request(AnalysisConfig(seq_len=9), model), data.draw(lengths()))


@pytest.mark.parametrize("kind", KINDS)
@few
@given(st.data())
def test_arrays_of_prompts_in_chunks_equal_the_passes_of_each(kind, data):
    """One array holds chunks, batches and cached tokens of all kinds; each pass of each row is evaluated alone."""
    config = complete(data.draw(KINDS[kind]), SOURCE)
    family = family_of(config, SOURCE)
    architecture = family.architecture_from_config(config, SOURCE)
    workload = plan_request(AnalysisConfig(seq_len=9), ModelDescription("small", family, architecture, config, "test"))
    rows = [
        (prompt, past, data.draw(st.integers(1, 60)), data.draw(st.integers(1, 3)))
        for prompt, past, _ in data.draw(lengths())
    ]
    names = ("prompt_tokens", "cached_tokens", "chunk_tokens", "batch_size")
    columns = (np.asarray(column, np.int64) for column in zip(*rows, strict=True))
    form, stage = coefficients(family, architecture), family.stage("prefill")
    arrays = evaluate_both(form, family, replace(workload, **dict(zip(names, columns, strict=True))))
    for number, row in enumerate(rows):
        one = replace(workload, **dict(zip(names, row, strict=True)))
        alone = evaluate_both(form, family, one)
        for place, cost_of in enumerate((needed_cost, stage_cost)):
            expected = cost_of(stage, architecture, one)
            assert alone[place]["prefill"] == expected, row
            for name in QUANTITIES:
                assert getattr(arrays[place]["prefill"], name)[number] == getattr(expected, name), (name, row)


@pytest.mark.parametrize("name", ["gemma-3-4b", "gemma-4-e2b", "qwen2.5-vl-7b", "deepseek-ocr"])
@given(st.data())
@settings(max_examples=3, deadline=None)
def test_arrays_of_requests_with_a_page_equal_each_request(name, data):
    """Tokens of a page that see later ones do so where the page is not cached, and nowhere else."""
    model = describe_model(name)
    workload = plan_request(AnalysisConfig(model=name, image_w=600, image_h=600), model)
    page = workload.image_tokens
    for cached in (False, True):
        rows = [(page + prompt, cached * (page + past), new) for prompt, past, new in data.draw(lengths())]
        equal(model.family, model.architecture, workload, rows)


def test_pages_that_are_cached_do_not_mix_with_others():
    workload = plan_request(AnalysisConfig(model="qwen2.5-vl-7b"), describe_model("qwen2.5-vl-7b"))
    some = np.asarray([0, workload.image_tokens])
    with pytest.raises(ValueError, match="Evaluate the two apart"):
        assert replace(workload, cached_tokens=some).page_cached
    assert replace(workload, cached_tokens=some[1:]).page_cached
    assert not replace(workload, cached_tokens=some[:1]).page_cached


def test_prompts_that_are_read_both_ways_are_refused_as_arrays_too():
    model = describe_model("paligemma-3b")
    workload = plan_request(AnalysisConfig(model="paligemma-3b"), model)
    prefill = model.family.stage("prefill").needed
    with pytest.raises(StagemeterError, match="see one another"):
        prefill.calls(model.architecture, replace(workload, cached_tokens=np.asarray([0, 300])))
    assert prefill.calls(model.architecture, replace(workload, cached_tokens=np.asarray([0, 0])))
