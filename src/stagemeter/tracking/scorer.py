"""A scorer for `mlflow.genai.evaluate`: what the calls of each row cost, beside their quality."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from operator import mul
from typing import Any

from mlflow.entities import AssessmentError, AssessmentSource, Feedback, Trace
from mlflow.genai.scorers import Scorer, scorer

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.core.stage_names import TOTAL
from stagemeter.tracking.traces import TraceCalls, calls_of
from stagemeter.utilization.calls import FLOPS, CallMeter, Serving

_SOURCE = AssessmentSource(source_type="CODE", source_id="stagemeter")


def cost_scorer(
    model: str,
    *,
    served_as: str | Collection[str] | None = None,
    device: str | None = None,
    peak_tflops: float | None = None,
    devices: int = 1,
    price_per_hour: float | None = None,
    concurrency: float | None = None,
    **settings: Any,
) -> Scorer:
    """Return a scorer that adds FLOPs, share of MFU and cost to the table of `mlflow.genai.evaluate`.

    Parameters
    ----------
    model, served_as, device, peak_tflops, devices, price_per_hour, concurrency, **settings
        See `stagemeter.trace_processor`, whose numbers these are.

    Returns
    -------
    mlflow.genai.scorers.Scorer
        It reads the trace of a row, which holds all calls where `predict_fn` is decorated with `mlflow.trace`, and
        returns:

        - ``flops``: model FLOPs of all calls of the model. The metadata has them by stage, as exact integers; MLflow
          keeps values as floats, which are exact up to 2**53.
        - ``mfu_share``, with a device: the mean over these calls, weighted by their time.
        - ``cost``, with a price.

        If a call cannot be counted, they have an error with the reason instead of a value. MLflow logs the mean over
        the rows that have values, such as ``flops/mean``.

    Raises
    ------
    StagemeterError
        If the model has no closed forms, or a setting cannot be used.

    Examples
    --------
    >>> costs = cost_scorer("qwen2.5-vl-7b", device="H100-SXM", price_per_hour=2.5)
    >>> mlflow.genai.evaluate(data=pages, predict_fn=read_page, scorers=[exact_text, costs])  # doctest: +SKIP
    """
    serving = Serving(served_as, device, peak_tflops, devices, price_per_hour, concurrency)
    meter = CallMeter(AnalysisConfig(model=model, **settings), serving)

    @scorer(name="stagemeter")
    def stagemeter_costs(trace: Trace) -> list[Feedback]:
        return feedback(calls_of(trace, meter), meter)

    return stagemeter_costs


def feedback(calls: TraceCalls, meter: CallMeter) -> list[Feedback]:
    """Return the costs of a trace's calls as assessments."""
    names = ["flops"]
    names += ["mfu_share"] if meter.peak is not None else []
    names += ["cost"] if meter.serving.price_per_hour is not None else []
    costs = [(seen, cost) for seen, _, cost in calls.counted.values() if cost is not None]
    missing = [str(gap) for _, gap in calls.missing]
    if not costs and not missing:
        missing = [f"calls: the trace has none of {meter.model.name}"]
    if missing:
        error = AssessmentError("NOT_COUNTED", "; ".join(dict.fromkeys(missing)))
        return [Feedback(name=name, error=error, source=_SOURCE) for name in names]
    flops = Counter[str]()
    for _, cost in costs:
        flops.update(cost.flops)
    remarks = [str(gap) for _, cost in costs for gap in cost.gaps]
    remarks += [f"calls of {name} are not counted" for name in sorted(calls.others)]
    seconds = [seen.seconds or 0.0 for seen, _ in costs]
    shares = [cost.mfu_share or 0.0 for _, cost in costs]
    values = {
        "flops": flops[TOTAL],
        "mfu_share": sum(map(mul, shares, seconds)) / sum(seconds) if sum(seconds) else None,
        "cost": math.fsum(cost.price or 0.0 for _, cost in costs),
    }
    exact = {f"{FLOPS}.{name}": str(value) for name, value in flops.items()}
    return [_feedback(name, values[name], "; ".join(dict.fromkeys(remarks)), exact) for name in names]


def _feedback(name: str, value: float | None, rationale: str, exact: Mapping[str, str]) -> Feedback:
    metadata = dict(exact) if name == "flops" else None
    return Feedback(name=name, value=value, rationale=rationale or None, metadata=metadata, source=_SOURCE)
