"""The working set by closed form is that of the most demanding operator which the counter saw."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from test_tiers_agree import architectures, plan, workloads

from stagemeter import AnalysisConfig, DeepSeekOCRSession
from stagemeter.counting.counter import CostCounter
from stagemeter.models.families.deepseek_ocr.family import FAMILY

SMALL = json.loads((Path(__file__).parents[1] / "profiling" / "session" / "small_config.json").read_text())

few = settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


def by_counting(model, architecture, workload) -> dict[str, int]:
    found = {}
    for stage in FAMILY.stages:
        with torch.no_grad(), CostCounter(model) as counter:
            stage.run(model, architecture, workload, counter)
        # The public counts are sums; what one operator did is in the counter's log.
        costs = [event.cost for event in counter._events if event.cost is not None]
        found[stage.name] = max(cost.activation_reads + cost.activations for cost in costs)
    return found


def by_closed_form(architecture, workload) -> dict[str, int]:
    return {
        stage.name: max(stage.working_set(architecture, call) for call in stage.calls(architecture, workload))
        for stage in FAMILY.stages
    }


@pytest.fixture(scope="module")
def sessions():
    return {"small": DeepSeekOCRSession.from_config(SMALL), "published": DeepSeekOCRSession.from_config()}


@pytest.mark.parametrize("size", ["small", "published"])
@pytest.mark.parametrize(
    "config", [AnalysisConfig(mode="tiny", batch_size=3), AnalysisConfig(mode="gundam")], ids=lambda config: config.mode
)
def test_closed_form_is_the_counters_largest_operator(sessions, size, config):
    session = sessions[size]
    workload = plan(config, session.architecture)
    assert by_closed_form(session.architecture, workload) == by_counting(session.model, session.architecture, workload)


@pytest.mark.slow
@few
@given(architectures(), workloads())
def test_closed_form_on_random_models(architecture, config):
    model = DeepSeekOCRSession.from_config(architecture).model
    workload = plan(config, architecture)
    assert by_closed_form(architecture, workload) == by_counting(model, architecture, workload)


def test_one_page_of_the_published_model(sessions):
    """SAM's attention over the whole view of 64 x 64 patches: queries, keys, values, result, and a bias per pair."""
    architecture = sessions["published"].architecture
    found = by_closed_form(architecture, plan(AnalysisConfig(mode="base"), architecture))
    assert found["sam"] == 4 * 4096 * 768 + 12 * 4096**2
