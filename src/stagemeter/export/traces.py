"""The costs of an experiment's traces on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.terminal import print_lines, print_table
from stagemeter.core.units import percentage, rate, with_unit
from stagemeter.export.requests import quantile_line, stage_rows

#: Traces that the console shows.
_SHOWN = 3


def print_traces(document: Mapping[str, Any]) -> None:
    """Print the document of `stagemeter.application.traces.count_traces` on stdout."""
    title = f"{document['experiment']}, traces: {document['traces']:,}, calls: {document['calls']:,}"
    print_table(_groups(document), title=title)
    lines = []
    if document.get("stages"):
        print_table(stage_rows(document), title=f"{document['model']}, {document['dtype']}")
        lines += [quantile_line("FLOPs per call", document["flops_per_call"]), *_utilization(document)]
        lines += [_trace(entry) for entry in document["dearest"][:_SHOWN]]
    lines += [f"missing: {one['first']} ({one['calls']:,} calls). {one['remedy']}" for one in document["missing"]]
    print_lines([*lines, *(f"note: {note}" for note in document["notes"])])


def _groups(document: Mapping[str, Any]) -> list[list[str]]:
    whole = sum(group["flops"] for group in document["groups"])
    rows = [["model", "span", "calls", "counted", "prompt tokens", "cached", "output", "FLOPs", "share"]]
    for group in document["groups"]:
        numbers = (f"{group[name]:,}" for name in ("calls", "counted", *_TOKENS))
        flops = [with_unit(group["flops"]), percentage(group["flops"], whole)] if group["counted"] else ["–", "–"]
        rows.append([group["model"] or "–", group["span"], *numbers, *flops])
    return rows


_TOKENS = ("prompt_tokens", "cached_tokens", "output_tokens")


def _utilization(document: Mapping[str, Any]) -> list[str]:
    lines = []
    if "seconds_with_calls" in document:
        opened = rate(document["mean_concurrency"], digits=3)
        lines.append(f"{rate(document['seconds_with_calls'])} s with calls, {opened} open at a time on average")
    if "mfu" in document:
        devices = f"{document['devices']} x {document['peak']['name']}"
        causal = percentage(document["mfu_causal"], 1)
        lines.append(f"MFU of {devices} in that time: {percentage(document['mfu'], 1)}, {causal} by visible pairs")
    if "cost" in document:
        lines.append(f"cost: {rate(document['cost'])}, {rate(document['cost'] / document['counted'])} a call")
    return lines


def _trace(entry: Mapping[str, Any]) -> str:
    cost = f", cost {rate(entry['cost'])}" if "cost" in entry else ""
    return f"{entry['trace_id']} {entry['name']}: {with_unit(entry['flops'])}, {entry['calls']:,} calls{cost}"
