"""The ``traces`` command from start to end: read traces, cost their calls, tag the traces, write a log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from stagemeter.analysis.calls import Call
from stagemeter.core.writing import replacing, require_writable
from stagemeter.utilization.call_totals import CallTotals, Seen
from stagemeter.utilization.calls import CallMeter, gap_attributes, trace_tags

if TYPE_CHECKING:
    from mlflow.entities import Trace

#: Names of models in a note.
_NAMED = 5


def count_traces(
    experiment: str,
    meter: CallMeter | None = None,
    since: float | None = None,
    out: Path | None = None,
    tag: bool = True,
) -> dict[str, Any]:
    """Return what the calls in the traces of an experiment cost.

    Parameters
    ----------
    experiment : str
        Name of the experiment.
    meter : CallMeter, optional
        Costs the calls of one model. Without it, calls have their tokens alone.
    since : float, optional
        The earliest beginning of a trace, in seconds since 1970.
    out : Path, optional
        File for the counted calls as a log of requests, in JSON Lines.
    tag : bool
        Whether each trace with calls of the model gets tags, as from `stagemeter.trace_processor`.

    Returns
    -------
    dict
        See `stagemeter.utilization.call_totals.CallTotals.document`; with ``experiment`` and ``notes``.

    Raises
    ------
    StagemeterError
        If there is no such experiment, or the log cannot be written.
    TrackingError
        If the store cannot be reached or refuses.
    """
    if out is None:
        return _count(experiment, meter, since, None, tag)
    require_writable(out.parent, [out.name])
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as log:
        return _count(experiment, meter, since, log, tag)


def _count(
    experiment: str, meter: CallMeter | None, since: float | None, log: TextIO | None, tag: bool
) -> dict[str, Any]:
    from stagemeter.tracking.traces import set_tags, traces_of

    totals, others = CallTotals(meter), set[str]()
    for trace in traces_of(experiment, since):
        tags = _add(trace, totals, others, log)
        if tag and meter is not None:
            set_tags(trace, tags)
    return {"experiment": experiment, **totals.document(), "notes": _notes(meter, others)}


def _add(trace: Trace, totals: CallTotals, others: set[str], log: TextIO | None) -> dict[str, str]:
    """Add the calls of a trace, write them to the log, and return the tags of the trace."""
    from stagemeter.tracking.traces import calls_of

    found = calls_of(trace, totals.meter)
    others |= found.others
    costs, attributes = [], []
    for name, (seen, call, cost) in found.counted.items():
        totals.add(seen, call, cost)
        if cost is not None:
            costs.append(cost)
            attributes.append(cost.attributes())
        if log is not None and (cost is not None or totals.meter is None):
            log.write(f"{json.dumps(_line(trace, name, seen, call))}\n")
    for seen, gap in found.missing:
        totals.miss(seen, gap)
        attributes.append(gap_attributes(gap))
    root = next((span.name for span in trace.data.spans if span.parent_id is None), "")
    totals.add_trace(trace.info.trace_id, root, costs)
    return trace_tags(attributes, [cost.price for cost in costs if cost.price is not None])


def _line(trace: Trace, span_id: str, seen: Seen, call: Call) -> dict[str, Any]:
    """Return a line of a log of requests, see `stagemeter.analysis.request_logs.log`."""
    cached = {} if call.cached_tokens is None else {"cached_tokens": call.cached_tokens}
    return {
        "prompt_tokens": call.prompt_tokens,
        **cached,
        "output_tokens": call.output_tokens,
        "image_sizes": [list(size) for size in call.pictures],
        "trace_id": trace.info.trace_id,
        "span_id": span_id,
        "span": seen.span,
        "model": seen.model,
        "start": seen.start,
        "seconds": seen.seconds,
    }


def _notes(meter: CallMeter | None, others: set[str]) -> list[str]:
    if meter is None:
        return ["no model is given: tokens are added, and no FLOPs are counted"]
    if not others:
        return list(meter.notes)
    named = ", ".join(sorted(others)[:_NAMED])
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return [
        *meter.notes,
        f"calls of {named}{more} are not counted: --served-as names those that are {meter.model.name}",
    ]
