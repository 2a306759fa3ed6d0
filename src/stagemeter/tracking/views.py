"""Views of MLflow's charts: which runs they show, and what comes first.

MLflow sorts sections of charts by name, and shows all runs of an experiment. A view that is saved as a tag of the
experiment says otherwise. Its pages read the tag if the address has ``viewStateShareKey``, and list it in the menu
"Views" (mlflow/server/js/src/experiment-tracking, ``useSharedExperimentViewState.ts`` and ``savedViewEnvelope.ts`` of
3.17). Earlier ones read the state beside the name instead, and need all of its fields.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import mlflow
from mlflow.entities import Run

from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, ENGINE, FORWARD, OTHER, REQUEST, TOTAL, VISION
from stagemeter.tracking.labels import COMPARISON, KIND, LOG, MODULE, PLAN, PROFILE, STATIC, SWEEP

#: Prefix of the tags of views, and the parameter of an address that names one.
TAG_PREFIX, PARAMETER = "mlflow.sharedViewState.", "viewStateShareKey"
#: Names of the views by the kind of run that they show. Menus list the first one first.
NAMES = {
    STATIC: "Costs by stage",
    PROFILE: "Utilization and times by stage",
    MODULE: "Modules",
    COMPARISON: "Comparisons",
    SWEEP: "Sweeps",
    PLAN: "Plans",
    LOG: "Logs of requests",
}
#: Kinds of runs whose metrics are of stages.
_OF_STAGES = (STATIC, PROFILE, MODULE)
#: Quantities whose sections come first, in this order. MLflow puts the others behind them.
FIRST = ("mfu", "time_ms", "flops", "roofline_ms", "bytes", "params", "mbu", "at_roofline", "memory")
#: Quantities with a chart of all stages beside those of each one.
_BY_STAGE = ("mfu", "time_ms", "flops", "roofline_ms", "bytes", "params")
#: The section of these charts.
_TOGETHER = "by stage"
#: Columns of the list of runs, where a run has them.
_COLUMNS = ("mfu/total", "time_ms/total", "flops/total", "at_roofline/pages_per_hour", "params/total")
#: Their width in pixels, for numbers of 15 digits.
_WIDTH = 150
#: Parts that are sums of others, or of other things than stages.
_NO_STAGES = (TOTAL, VISION, FORWARD, REQUEST, ENGINE, OTHER, "active", "adapter")
#: What a view holds of the parts that it shows, for those of a further run to be added.
_PARTS = "stagemeter"


def view_of(run: Run) -> str | None:
    """Save the view of a run's kind in its experiment, where it is not. Return its key; None for another kind of run.

    A view has the stages of all runs that it was saved for.
    """
    kind = run.data.tags.get(KIND)
    if kind not in NAMES:
        return None
    key, client = f"stagemeter-{kind}", mlflow.MlflowClient()
    experiment = client.get_experiment(run.info.experiment_id)
    held = experiment.tags.get(f"{TAG_PREFIX}{key}")
    metrics = run.data.metrics if kind in _OF_STAGES else ()
    view = _view(kind, _together(_parts_of(held), metrics))
    if view != held:
        client.set_experiment_tag(experiment.experiment_id, f"{TAG_PREFIX}{key}", view)
    return key


def _parts_of(view: str | None) -> dict[str, list[str]]:
    """Return the parts that a saved view shows, by quantity; none of a view that is not there or not from here."""
    try:
        return dict(json.loads(view or "{}").get(_PARTS, {}))
    except (ValueError, AttributeError, TypeError):
        return {}


def _together(shown: Mapping[str, list[str]], metrics: Iterable[str]) -> dict[str, list[str]]:
    """Add the parts of a run's metrics to those that a view shows."""
    parts = {quantity: list(shown.get(quantity, [])) for quantity in FIRST}
    for name in metrics:
        quantity, _, part = name.partition("/")
        if quantity in parts and part not in parts[quantity]:
            parts[quantity].append(part)
    return {quantity: found for quantity, found in parts.items() if found}


def _view(kind: str, parts: Mapping[str, list[str]]) -> str:
    """Return a view as MLflow keeps it."""
    state = _state(kind, parts)
    place = len(NAMES) - list(NAMES).index(kind)
    envelope = {"name": f"Stagemeter: {NAMES[kind]}", "createdAt": place, "updatedAt": place}
    return json.dumps({**envelope, "state": _packed(state), **state, _PARTS: parts}, separators=(",", ":"))


def _packed(state: Mapping[str, Any]) -> str:
    """Return a state as MLflow packs it: MLflow before 3.16 takes tags of 5,000 characters."""
    return f"deflate;{base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()}"


def _state(kind: str, parts: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the state of a page: its filter, columns, sections and charts."""
    columns = [
        f"metrics.`{name}`" for name in _COLUMNS if name.partition("/")[2] in parts.get(name.partition("/")[0], ())
    ]
    charts = [_chart(quantity, stages) for quantity in _BY_STAGE if len(stages := _stages(parts.get(quantity, []))) > 1]
    return {
        # A sweep, and the runs of its rows.
        "searchFilter": f"tags.`{KIND}` LIKE '{kind}%'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": dict.fromkeys(columns, _WIDTH),
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": [_section(name) for name in (*([_TOGETHER] if charts else []), *parts)],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _stages(parts: Iterable[str]) -> list[str]:
    """Return the parts that add up to the whole, or stand beside one another."""
    left_out = (*_NO_STAGES, *((DECODE,) if DECODE_TOTAL in parts else ()))
    return [part for part in parts if part not in left_out]


def _section(name: str) -> dict[str, Any]:
    columns = {"columns": 2} if name == _TOGETHER else {}
    return {
        "uuid": f"stagemeter-{name}",
        "name": name,
        "display": True,
        "isReordered": True,
        "deleted": False,
        **columns,
    }


def _chart(quantity: str, stages: Iterable[str]) -> dict[str, Any]:
    """Return a chart with a bar for each stage of each run.

    MLflow makes the charts of single metrics, except of those that a chart names as its own. So it names none.
    """
    return {
        "uuid": f"stagemeter-{quantity}-by-stage",
        "type": "BAR",
        "metricSectionId": f"stagemeter-{_TOGETHER}",
        "metricKey": f"{quantity} by stage",
        "selectedMetricKeys": [f"{quantity}/{stage}" for stage in stages],
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
    }
