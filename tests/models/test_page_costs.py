"""Closed forms of every shipped model that reads pages, at one page: they change only where a change is wanted.

The slow tests hold closed forms to what runs. This golden file shows within a second which stage a change touches.
"""

import json

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.models.closed_form import stage_cost
from stagemeter.models.families import families
from stagemeter.models.lookup import describe_model

PAGE = AnalysisConfig(image_w=1654, image_h=2339, batch_size=2, new_tokens=512)
SHIPPED = [name for family in families().values() if family.reads_pages for name in family.shipped]


def costs(name: str) -> dict[str, list[int]]:
    """Return by stage: parameters, MACs, activations written and read, weights read."""
    model = describe_model(name)
    workload = plan_request(PAGE, model)
    found = {}
    for stage in model.family.stages:
        cost = stage_cost(stage, model.architecture, workload)
        parameters = stage.parameters(model.architecture).total
        numbers = (parameters, cost.macs, cost.activations, cost.activation_reads, cost.weight_reads)
        found[stage.name] = [int(number) for number in numbers]
    return found


def test_costs_of_shipped_models_are_as_before(golden):
    rows = [f'  "{name}": {json.dumps(costs(name))}' for name in SHIPPED]
    golden("page_costs.json", "{\n" + ",\n".join(rows) + "\n}\n")
