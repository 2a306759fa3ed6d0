"""A pairing as Markdown, as a roofline chart, and on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stagemeter.core.cost import differing_factor
from stagemeter.core.escape import Marked, markdown_text
from stagemeter.core.stage_names import TOTAL, stage_label
from stagemeter.core.terminal import Section, is_verbose, print_lines, print_sections, print_table
from stagemeter.core.units import describe_lengths, describe_peak, digits_of, milliseconds, rate, with_unit
from stagemeter.export.charts import chart_picture, charts_page
from stagemeter.export.json_file import json_text
from stagemeter.export.markdown import Document, abreast, unbroken
from stagemeter.export.roofline import roofline_chart
from stagemeter.profiling.devices import ASSUMED, Devices

#: Runs that a shared warning names at most.
_NAMED = 3


JSON_FILE, MARKDOWN_FILE = "mfu.json", "mfu.md"
#: The roofline as a picture and as a page.
FIGURES = PICTURE_FILE, PAGE_FILE = "roofline.png", "roofline.html"


def pairing_files(pairing: Mapping[str, Any], figures: bool = True) -> dict[str, str | bytes]:
    """Return the contents of a pairing's files by name, without figures where there is nothing to draw."""
    files: dict[str, str | bytes] = {JSON_FILE: json_text(pairing), MARKDOWN_FILE: mfu_markdown(pairing)}
    chart = roofline_chart(pairing) if figures else None
    if chart is None:
        return files
    return {**files, PICTURE_FILE: chart_picture(chart), PAGE_FILE: charts_page({"roofline": chart}, "Roofline")}


def mfu_markdown(pairing: Mapping[str, Any]) -> str:
    """Return a pairing as Markdown: the table, what is missing, and the assumptions."""
    document = Document()
    document.header(1, "Utilization by stage")
    document.paragraph(_title(pairing))
    header, *rows = _rows(pairing)
    document.table([header, *unbroken(rows)])
    document.paragraph(
        "Roofline: the least time that the work can take on the device. Of roofline: that time over the measured one.",
    )
    for title, lines in (
        ("Missing", [f"{stage}: {why}" for stage, why in pairing["missing"].items()]),
        ("Executed work", _execution(pairing)),
        ("Warnings", pairing["flags"]),
        ("Serving engine", _engine(pairing)),
        ("Assumptions", [*_facts(pairing), *pairing["assumptions"]]),
    ):
        document.section(title, lines)
    return str(document)


def mfu_description(pairing: Mapping[str, Any], counts: Marked) -> str:
    """Return the short form of a pairing for the description of a run, with a link to its counts."""
    document = Document()
    document.paragraph(_headline(pairing))
    if pairing["stages"]:
        document.table(abreast(unbroken(_rows(pairing, _WIDE))))
    document.paragraph(Marked(f"Peak: {markdown_text(_peak(pairing))}. Counts: {counts}."))
    for line in _devices(pairing["devices"]):
        document.paragraph(f"{line}.")
    lines = [f"missing: {stage}: {why}" for stage, why in pairing["missing"].items()]
    lines += [f"warning: {flag}" for flag in pairing["flags"]]
    lines += _execution(pairing)
    if lines:
        document.items([*lines, *_engine(pairing)])
    return str(document)


def _headline(pairing: Mapping[str, Any]) -> str:
    total, engine = pairing["stages"].get(TOTAL), pairing.get("engine")
    if total is not None:
        return f"**MFU {_percent(total['mfu'])}**{_visible(total)} of the whole request."
    return "MFU by stage." if engine is None else f"**MFU {_percent(engine['mfu'])}** of the serving engine."


def _visible(row: Mapping[str, Any]) -> str:
    """Return the MFU by visible pairs, where it differs."""
    causal = row["mfu_causal"]
    differs = causal is not None and differing_factor(causal, row["mfu"]) is not None
    shown = _percent(causal)
    return f", {shown} by visible pairs," if differs and shown != _percent(row["mfu"]) else ""


def print_pairing(pairing: Mapping[str, Any]) -> None:
    """Print a pairing on stdout."""
    print_sections(pairing_sections(pairing))


def pairing_sections(pairing: Mapping[str, Any]) -> list[Section]:
    """Return the table of stages, wide only with ``-v``, with what is missing and the assumptions."""
    missing = (f"missing: {stage}: {why}" for stage, why in pairing["missing"].items())
    flags = (f"warning: {flag}" for flag in pairing["flags"])
    lines = [*missing, *flags, *_execution(pairing), *_engine(pairing), *_facts(pairing)]
    return [Section(_title(pairing), _rows(pairing, () if is_verbose() else _WIDE), lines)]


def _title(pairing: Mapping[str, Any]) -> str:
    workload = pairing["workload"]
    return f"{pairing['model']}: {describe_lengths(workload)}; {_peak(pairing)}"


def _peak(pairing: Mapping[str, Any]) -> str:
    return f"{pairing['peak']['name']}, {describe_peak(pairing['peak'])}"


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return f"{rate(100 * share, digits=3)} %"


#: Cells of a stage by the title of their column.
_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "Time": lambda row: milliseconds(row["time_ms"]),
    "FLOPs": lambda row: with_unit(round(row["flops"])),
    "TFLOP/s": lambda row: rate(row["tflops"]),
    "MFU": lambda row: _percent(row["mfu"]),
    "MFU causal": lambda row: _percent(row["mfu_causal"]),
    "HFU": lambda row: _percent(row.get("hfu")),
    "GB/s": lambda row: rate(row["gbps"]),
    "MBU": lambda row: _percent(row["mbu"]),
    "Roofline": lambda row: milliseconds(row["roofline_ms"]),
    "Of roofline": lambda row: _percent(row["roofline_fraction"]),
    "Bound by": lambda row: row["bound_by"] if row["mbu"] is not None else "–",
}
#: The column that stands beside them where some stage executes other work, see `differing_factor`.
_HFU = "HFU"
#: Columns that do not fit into a description, and into a terminal without ``-v``.
_WIDE = ("FLOPs", "TFLOP/s", "GB/s")


def _rows(pairing: Mapping[str, Any], left_out: Sequence[str] = ()) -> list[list[str]]:
    """Return the table of stages, the header first."""
    columns = {title: cell for title, cell in _COLUMNS.items() if title not in left_out}
    if not any(_executes_otherwise(row) and row["hfu"] is not None for row in pairing["stages"].values()):
        columns.pop(_HFU)
    stages = pairing["stages"].items()
    return [
        ["Stage", *columns],
        *([stage_label(stage), *(cell(row) for cell in columns.values())] for stage, row in stages),
    ]


def _executes_otherwise(row: Mapping[str, Any]) -> bool:
    """Whether transformers executes notably more or less than the model needs; pairings before 1.2 do not say it."""
    executed = row.get("flops_executed")
    return executed is not None and differing_factor(executed, row["flops"]) is not None


def _execution(pairing: Mapping[str, Any]) -> list[str]:
    """Say of each stage what transformers executes, by how much that differs from the model's, and why; or why no HFU.

    Pairings before 1.2 do not say it.
    """
    reasons, no_hfu = pairing["counts"].get("execution", {}), pairing.get("no_hfu", "")
    verb, end = ("would execute", "") if no_hfu else ("executes", ", which HFU credits")
    lines = []
    for stage, row in pairing["stages"].items():
        if stage in reasons and _executes_otherwise(row):
            executed, flops = (with_unit(round(row[name]), "FLOPs") for name in ("flops_executed", "flops"))
            factor = digits_of(row["flops_executed"] / row["flops"])
            why = f": it {'; '.join(reasons[stage])}" if reasons[stage] else ""
            lines.append(
                f"{stage}: transformers {verb} {executed}, {factor} times the {flops} that the model needs{end}{why}"
            )
    return [*lines, *([f"no HFU: {no_hfu}"] if no_hfu else [])]


def _facts(pairing: Mapping[str, Any]) -> list[str]:
    counts, peak = pairing["counts"], pairing["peak"]
    facts = [f"counts from the {counts['source']}{_run(pairing, 'static_run_id')}"]
    if counts.get("basis") == "executed":
        facts.append(
            "counts are of what transformers executes, not of what the model needs: an implementation that executes "
            "less can be faster than the roofline"
        )
    if counts.get("made_for_pairing"):
        facts.append("no static run had these counts: that run was made for this work")
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
    if "rejected_flops" in engine:
        more = engine["rejected_flops"]
        lines.append(
            f"{engine['rejected_tokens']:,.0f} rejected drafted tokens took about {with_unit(more, 'FLOPs')} more, "
            f"{100 * more / engine['flops']:.1f} %, which MFU does not credit"
        )
    if "mbu_least" in engine:
        estimate = f"; by the engine's own estimate {_percent(engine['engine_mbu'])}" if "engine_mbu" in engine else ""
        lines.append(
            f"at least {with_unit(engine['bytes_least'], 'B')} moved in {engine['passes']:,.0f} passes, MBU of at "
            f"least {_percent(engine['mbu_least'])}{estimate}"
        )
    if "engine_flops" in engine:
        theirs = with_unit(round(engine["engine_flops"]), "FLOPs")
        causal = " by visible pairs" if engine.get("compared_with") == "flops_causal" else ""
        language = f", without our vision stages {100 * engine['difference_language_only']:+.1f} %"
        lines.append(
            f"the engine's own estimate: {theirs}, MFU {_percent(engine['engine_mfu'])}; against ours{causal} "
            f"{100 * engine['difference']:+.1f} %{language if engine['vision_flops'] else ''}. {engine['explanation']}"
        )
        if "parts" in engine:
            parts = (f"{name} {_signed(flops)}" for name, flops in engine["parts"].items())
            lines.append(f"the engine's estimate less ours: {', '.join(parts) or 'no difference'}")
    return lines


def _signed(flops: int) -> str:
    return f"{'+' if flops > 0 else '-'}{with_unit(abs(flops), 'FLOPs')}"


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
