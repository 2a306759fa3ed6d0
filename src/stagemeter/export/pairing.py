"""A pairing as Markdown, as a roofline chart, and on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagemeter.core.escape import Marked, markdown_text
from stagemeter.core.stage_names import stage_label
from stagemeter.core.terminal import print_lines, print_table
from stagemeter.core.units import describe_lengths, describe_peak, milliseconds, rate, with_unit
from stagemeter.export.json_file import json_text
from stagemeter.export.markdown import (
    add_header,
    add_list,
    add_paragraph,
    add_table,
    document_text,
    new_document,
    unbroken,
)
from stagemeter.export.roofline import roofline_page, roofline_picture, roofline_points
from stagemeter.profiling.devices import ASSUMED, Devices

_COLUMNS = (
    "Stage",
    "Time",
    "FLOPs",
    "TFLOP/s",
    "MFU",
    "MFU causal",
    "GB/s",
    "MBU",
    "Roofline",
    "Of roofline",
    "Bound by",
)
#: Columns that fit into a description.
_FEW_COLUMNS = ("Stage", "Time", "MFU", "MFU causal", "MBU", "Roofline", "Of roofline", "Bound by")

#: Runs that a shared warning names at most.
_NAMED = 3


JSON_FILE, MARKDOWN_FILE = "mfu.json", "mfu.md"
#: The roofline as a picture and as a page.
FIGURES = PICTURE_FILE, PAGE_FILE = "roofline.png", "roofline.html"


def pairing_files(pairing: Mapping[str, Any], figures: bool = True) -> dict[str, str | bytes]:
    """Return the contents of a pairing's files by name, without figures where there is nothing to draw."""
    files: dict[str, str | bytes] = {JSON_FILE: json_text(pairing), MARKDOWN_FILE: mfu_markdown(pairing)}
    points = roofline_points(pairing) if figures else None
    return (
        files if points is None else {**files, PICTURE_FILE: roofline_picture(points), PAGE_FILE: roofline_page(points)}
    )


def mfu_markdown(pairing: Mapping[str, Any]) -> str:
    """Return a pairing as Markdown: the table, what is missing, and the assumptions."""
    document = new_document()
    add_header(document, 1, "Utilization by stage")
    add_paragraph(document, _title(pairing))
    add_table(document, [list(_COLUMNS), *unbroken(_rows(pairing))])
    add_paragraph(
        document,
        "Roofline: the least time that the work can take on the device. Of roofline: that time over the measured one.",
    )
    for title, lines in (
        ("Missing", [f"{stage}: {why}" for stage, why in pairing["missing"].items()]),
        ("Warnings", pairing["flags"]),
        ("Serving engine", _engine(pairing)),
        ("Assumptions", [*_facts(pairing), *pairing["assumptions"]]),
    ):
        if lines:
            add_header(document, 2, title)
            add_list(document, lines)
    return document_text(document)


def mfu_description(pairing: Mapping[str, Any], counts: Marked) -> str:
    """Return the short form of a pairing for the description of a run, with a link to its counts."""
    document = new_document()
    total = pairing["stages"].get("total")
    whole = "" if total is None else f"**MFU {_percent(total['mfu'])}** of the whole request. "
    add_paragraph(document, Marked(f"{whole}Peak: {markdown_text(_peak(pairing))}. Counts: {counts}."))
    for line in _devices(pairing["devices"]):
        add_paragraph(document, f"{line}.")
    kept = [_COLUMNS.index(column) for column in _FEW_COLUMNS]
    add_table(document, unbroken([[row[index] for index in kept] for row in [_COLUMNS, *_rows(pairing)]]))
    lines = [f"missing: {stage}: {why}" for stage, why in pairing["missing"].items()]
    lines += [f"warning: {flag}" for flag in pairing["flags"]]
    if lines:
        add_list(document, [*lines, *_engine(pairing)])
    return document_text(document)


def print_pairing(pairing: Mapping[str, Any]) -> None:
    """Print a pairing on stdout."""
    print_table([list(_COLUMNS), *_rows(pairing)], title=_title(pairing))
    missing = (f"missing: {stage}: {why}" for stage, why in pairing["missing"].items())
    flags = (f"warning: {flag}" for flag in pairing["flags"])
    print_lines([*missing, *flags, *_engine(pairing), *_facts(pairing)])


def _title(pairing: Mapping[str, Any]) -> str:
    workload = pairing["workload"]
    return f"{pairing['model']}: {describe_lengths(workload)}; {_peak(pairing)}"


def _peak(pairing: Mapping[str, Any]) -> str:
    return f"{pairing['peak']['name']}, {describe_peak(pairing['peak'])}"


def _rows(pairing: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            stage_label(stage),
            milliseconds(row["time_ms"]),
            with_unit(round(row["flops"])),
            rate(row["tflops"]),
            _percent(row["mfu"]),
            _percent(row["mfu_causal"]),
            rate(row["gbps"]),
            _percent(row["mbu"]),
            milliseconds(row["roofline_ms"]),
            _percent(row["roofline_fraction"]),
            row["bound_by"] if row["mbu"] is not None else "–",
        ]
        for stage, row in pairing["stages"].items()
    ]


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return f"{rate(100 * share, digits=3)} %"


def _facts(pairing: Mapping[str, Any]) -> list[str]:
    counts, peak = pairing["counts"], pairing["peak"]
    facts = [f"counts from the {counts['source']}{_run(pairing, 'static_run_id')}"]
    if counts.get("made_for_pairing"):
        facts.append("no static run counted this work: that run was made by closed form for it")
    facts += [
        f"{name}: counted at {counted}, measured at {measured}: evaluated at the latter"
        for name, (counted, measured) in counts["differences"].items()
    ]
    facts.append(f"peak: {peak['name']}, {peak['dtype']}: {peak['source']}")
    return facts + _devices(pairing["devices"])


def _devices(devices: Mapping[str, Any]) -> list[str]:
    """Say how many devices there were, and how that is known; return nothing where one is assumed."""
    if devices["source"] == ASSUMED:
        return []
    count, engines, together = devices["count"], devices["engines"], devices["per_request"]
    counted = Devices(count, engines, devices["source"]).words
    shared = f", {together} on each request" if together > 1 else ""
    return [f"{counted}{shared}: rates and utilization are of one"]


def _run(pairing: Mapping[str, Any], key: str) -> str:
    return f" of run {pairing[key]}" if key in pairing else ""


def _engine(pairing: Mapping[str, Any]) -> list[str]:
    engine = pairing.get("engine")
    if engine is None:
        return []
    ours = with_unit(round(engine["flops"]), "FLOPs")
    count, between = engine["devices"], ""
    if engine.get("mfu_least", engine["mfu"]) < engine.get("mfu_most", engine["mfu"]):
        between = f" (between {_percent(engine['mfu_least'])} and {_percent(engine['mfu_most'])})"
    lines = [
        f"{engine['requests']:,.0f} requests in {engine['seconds']:,.4g} s: {ours}, MFU of "
        f"{'the device' if count == 1 else f'each of {count} devices'} "
        f"{_percent(engine['mfu'])}{between}, causal {_percent(engine['mfu_causal'])}"
    ]
    if "engine_flops" in engine:
        theirs = with_unit(round(engine["engine_flops"]), "FLOPs")
        lines.append(
            f"the engine's own estimate: {theirs}, MFU {_percent(engine['engine_mfu'])}; against ours "
            f"{100 * engine['difference']:+.1f} %, against ours without the vision stages "
            f"{100 * engine['difference_language_only']:+.1f} %. {engine['explanation']}"
        )
    return lines


def print_pairings(pairings: Sequence[Mapping[str, Any]]) -> None:
    """Print many pairings on stdout, a line each, with the MFU of each stage."""
    stages = list(dict.fromkeys(stage for pairing in pairings for stage in pairing["stages"]))
    rows = [["profiling run", "id", *stages, "peak"]]
    for pairing in pairings:
        found = pairing["stages"]
        shares = [_percent(found[stage]["mfu"]) if stage in found else "–" for stage in stages]
        rows.append([pairing["profile_run_name"], pairing["profile_run_id"], *shares, pairing["peak"]["name"]])
    print_table(rows, title="MFU")
    flagged: dict[str, list[str]] = {}
    for pairing in pairings:
        for flag in pairing["flags"]:
            flagged.setdefault(flag, []).append(pairing["profile_run_name"])
    print_lines(f"warning: {_some(names)}: {flag}" for flag, names in flagged.items())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _NAMED else f"{len(names)} runs"
