"""A plan of devices on the console, and as Markdown, JSON, CSV and a chart."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stagemeter.core.escape import Marked
from stagemeter.core.notes import key_notes
from stagemeter.core.terminal import Section, note_lines, print_sections
from stagemeter.core.units import milliseconds, rate
from stagemeter.export.charts import Chart, Series, chart_picture, charts_page
from stagemeter.export.json_file import json_text
from stagemeter.export.markdown import Document, unbroken
from stagemeter.utilization.fleet import Choice, Plan, Speed, utilization_in_words

_JSON, _TABLE, PICTURE_FILE, PAGE_FILE = "plan.json", "plan.csv", "plan.png", "plan.html"
#: Shorter words for a table of 80 columns.
_RESOURCES = {"compute or memory": "depends"}


def plan_files(plan: Plan) -> dict[str, str | bytes]:
    """Return the contents of a plan's files by name."""
    files: dict[str, str | bytes] = {_JSON: json_text(plan.to_dict()), _TABLE: _csv(plan)}
    chart = plan_chart(plan)
    if chart is not None:
        files |= {PICTURE_FILE: chart_picture(chart), PAGE_FILE: charts_page({"plan": chart}, headline(plan))}
    return files


def print_plan(plan: Plan) -> None:
    """Print the answer, a row for each device and the notes on stdout."""
    print_sections(plan_sections(plan))


def plan_sections(plan: Plan) -> list[Section]:
    """Return the answer, and a row for each device with the notes."""
    notes = note_lines(plan.notes, key_notes(plan.notes))
    return [Section(lines=[headline(plan)]), Section(plan.request, plan_rows(plan), notes)]


def plan_markdown(plan: Plan) -> str:
    """Return a plan as Markdown: the answer, a row for each device, the notes."""
    document = Document()
    document.paragraph(Marked(f"**{headline(plan)}**"))
    document.table(unbroken(plan_rows(plan)))
    document.items([plan.request, *plan.notes])
    return str(document)


def headline(plan: Plan) -> str:
    """Return the answer in a sentence."""
    first = plan.best[0]
    speed = _speed(first)
    batch = "" if first.batch_size is None else f", batch {first.batch_size:,}"
    at = "MFU" if first.at_mfu is not None else "the roofline, MFU"
    measured = f", measured with {', '.join(first.differences)}" if first.differences else ""
    return (
        f"{'at least ' if first.at_mfu is None else ''}{speed.devices:,} x {first.device} for {plan.per_day:,.0f} "
        f"{plan.unit}s a day{batch}: {speed.per_day_and_device:,.0f} {plan.unit}s a day each at {at} "
        f"{utilization_in_words(speed.mfu, speed.mfu_causal)}{measured}"
    )


def plan_rows(plan: Plan) -> list[list[str]]:
    """Return the best batch size of each device as rows, the header first. A lower bound has a sign before it."""
    given, priced = plan.mfu is not None, any(choice.price_per_hour is not None for choice in plan.best)
    header = ["Device", "Batch", "Devices", *(["At least"] if given else []), "Takes", "Memory, GB"]
    rows = [[*header, *([] if given else ["Bound by"]), *(["Cost/day"] if priced else [])]]
    for choice in plan.best:
        speed, bound, sign = _speed(choice), choice.at_roofline, "≥ " if choice.at_mfu is None else ""
        row = [
            choice.device,
            "–" if choice.batch_size is None else f"{choice.batch_size:,}",
            f"{sign}{speed.devices:,}",
        ]
        row += [] if not given else ["–" if bound is None else f"≥ {bound.devices:,}"]
        row.append("–" if speed.batch_seconds is None else f"{sign}{milliseconds(1e3 * speed.batch_seconds)}")
        row.append(f"{rate(choice.needed_bytes / 1e9, 3)}/{rate(choice.device_bytes / 1e9, 3)}")
        row += [] if given else [f"{choice.mostly_in}, {_RESOURCES.get(choice.bound_by or '', choice.bound_by)}"]
        row += [] if not priced else ["–" if speed.cost_per_day is None else f"{sign}{speed.cost_per_day:,.2f}"]
        rows.append(row)
    return rows


def _speed(choice: Choice) -> Speed:
    assert choice.speed is not None
    return choice.speed


def _csv(plan: Plan) -> str:
    """Return `plan_records` as CSV."""
    rows = plan_records(plan)
    stream = io.StringIO()
    # A device that does not fit has no speed, and a plan at the roofline none at an MFU.
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def plan_records(plan: Plan) -> list[dict[str, Any]]:
    """Return a row for every device at every batch size. Columns of a speed begin with where it comes from."""
    return [_flat(asdict(choice)) for choice in plan.choices]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, (list, tuple)):
            flat[f"{prefix}{name}"] = ", ".join(value)
        elif isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}/")
        elif value is not None or name not in ("at_roofline", "at_mfu"):
            flat[f"{prefix}{name}"] = value
    return flat


def plan_chart(plan: Plan) -> Chart | None:
    """Return cost, or devices, against the time of a batch, for every batch size; None for a log, which has no batch.

    Prices of all devices make it cost. Points on the Pareto front are joined: nothing is both faster and cheaper.
    """
    choices = [choice for choice in plan.choices if choice.speed is not None and choice.batch_size is not None]
    if not choices:
        return None
    priced = all(choice.price_per_hour is not None for choice in choices)
    load = plan.per_day / 1000

    def point(choice: Choice) -> tuple[float, float]:
        speed = _speed(choice)
        cost = (speed.cost_per_thousand or 0.0) * load if priced else plan.per_day / speed.per_day_and_device
        return speed.batch_seconds or 0.0, cost

    series = []
    for device in dict.fromkeys(choice.device for choice in choices):
        mine = [choice for choice in choices if choice.device == device]
        times, costs = zip(*map(point, mine), strict=True)
        series.append(Series(device, times, costs, [f"{device}, batch {choice.batch_size:,}" for choice in mine]))
    fastest, cheapest = zip(*_front([point(choice) for choice in choices]), strict=True)
    where = "at the roofline" if plan.mfu is None else f"at MFU {100 * plan.mfu:.3g} %"
    bound = ", at least" if plan.mfu is None else ""
    return Chart(
        title=f"{plan.model}: {plan.per_day:,.0f} {plan.unit}s a day {where}",
        x_title=f"seconds for a batch{bound}",
        y_title=f"{'cost a day' if priced else 'devices'} before rounding up{bound}",
        kind="lines",
        series=[*series, Series("Pareto front", fastest, cheapest, joined=True)],
        log=True,
    )


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other one is below in both, from left to right."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front
