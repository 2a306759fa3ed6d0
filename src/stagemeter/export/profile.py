"""A profile as Markdown, and on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.escape import Marked
from stagemeter.core.stage_names import stage_label
from stagemeter.core.terminal import print_lines, print_table
from stagemeter.core.units import describe_dtypes, describe_lengths, milliseconds, percentage, rate, with_unit
from stagemeter.export.json_file import json_text
from stagemeter.export.markdown import Document, abreast, unbroken

PROFILE_FILE = "profile.json"
_RATES = {
    "tokens_per_second/prefill": "tokens/s in the prefill",
    "tokens_per_second/decode": "tokens/s in decode",
    "tokens_per_second/request": "new tokens/s of whole requests",
    "pages_per_hour/request": "pages/hour",
}


def profile_files(document: Mapping[str, Any]) -> dict[str, str | bytes]:
    """Return the contents of a profile's files by name."""
    return {PROFILE_FILE: json_text(document), "profile.md": profile_markdown(document)}


def profile_markdown(document: Mapping[str, Any]) -> str:
    """Return a profile as Markdown: the table of times, what it ran on, notes."""
    text = Document()
    text.paragraph(_title(document))
    text.table(unbroken(_rows(document)))
    text.section("Where the times come from", _facts(document))
    text.section("Notes", document["notes"])
    return str(text)


def profile_description(document: Mapping[str, Any], trace: Marked | None = None) -> str:
    """Return the description of a run: the time of a request, the stages side by side, and words.

    `trace` is a link to the file of a trace.
    """
    text = Document()
    whole = document["time_ms"].get("total")
    time = "" if whole is None else f"**{milliseconds(whole)}** a request. "
    text.paragraph(f"{time}{_title(document)}.")
    text.table(abreast(unbroken(_rows(document))))
    if trace is not None:
        text.paragraph(Marked(f"Trace: save {trace}, and open it in [Perfetto](https://ui.perfetto.dev)."))
    text.section("Where the times come from", _facts(document))
    text.section("Notes", document["notes"])
    return str(text)


def print_profile(document: Mapping[str, Any]) -> None:
    """Print a profile on stdout."""
    print_table(_rows(document), title=_title(document))
    print_lines([*_facts(document), *(f"note: {note}" for note in document["notes"])])


def _title(document: Mapping[str, Any]) -> str:
    metadata = document["metadata"]
    workload = metadata["workload"]
    return f"{metadata['model']}: {describe_lengths(workload)}, {describe_dtypes(workload)}"


def _rows(document: Mapping[str, Any]) -> list[list[str]]:
    """Return a header and a row for each stage, without deciles where there is one repeat."""
    times, deciles_of = document["time_ms"], document["spread_ms"]
    repeated = any(len(values) > 1 for values in document["times_ms"].values())
    whole = times.get("total")
    rows = [["Stage", "Median", "p10", "p90", "Share"] if repeated else ["Stage", "Time", "Share"]]
    for stage, time in times.items():
        deciles = deciles_of.get(stage)
        # A sum of other rows has no share of its own.
        counted = stage in deciles_of and stage != "decode"
        rows.append(
            [
                stage_label(stage),
                milliseconds(time),
                *([milliseconds(deciles[name]) if deciles else "" for name in ("p10", "p90")] if repeated else []),
                percentage(time, whole) if whole and counted else "",
            ]
        )
    return rows


def _facts(document: Mapping[str, Any]) -> list[str]:
    repeats = max((len(times) for times in document["times_ms"].values()), default=0)
    facts = [f"from {document['source']}, clock: {document['clock']}, {repeats} repeat{'s' * (repeats != 1)}"]
    hardware = document["hardware"]
    if hardware:
        facts.append("on " + _machine(hardware))
    if document["request_ms"]:
        facts.append(_request(document))
    overhead = _of(document, "harness_overhead")
    if overhead:
        shares = ", ".join(f"{stage} {100 * share:.3f} %" for stage, share in overhead.items())
        facts.append(f"taking the time cost: {shares}")
    experts = _of(document, "experts_read")
    if experts:
        counts = ", ".join(
            f"{count:.4g} in {'a decode step' if stage == 'decode' else f'the {stage}'}"
            for stage, count in experts.items()
        )
        facts.append(f"experts that a layer read: {counts}")
    if "memory/peak" in document["metrics"]:
        facts.append(f"peak memory {with_unit(round(document['metrics']['memory/peak']), 'B')}")
    return facts


def _of(document: Mapping[str, Any], quantity: str) -> dict[str, float]:
    """Return the metrics of one quantity, by stage."""
    prefix = f"{quantity}/"
    return {name.removeprefix(prefix): value for name, value in document["metrics"].items() if name.startswith(prefix)}


def _machine(hardware: Mapping[str, str]) -> str:
    parts = [hardware.get("device", "an unknown device")]
    if "devices" in hardware:
        plural = "" if hardware["devices"] == "1" else "s"
        parts.append(f"{hardware['devices']} device{plural} ({hardware.get('devices_source', 'as given')})")
    if "cores" in hardware and hardware.get("device_type") == "cpu":
        parts.append(f"{hardware['cores']} cores")
    if hardware.get("memory_bytes", "").isdigit():
        parts.append(with_unit(int(hardware["memory_bytes"]), "B"))
    if hardware.get("driver", "none") not in ("none", "unknown"):
        parts.append(f"driver {hardware['driver']}")
    if "torch" in hardware:
        parts.append(f"torch {hardware['torch']}")
    return ", ".join(parts)


def _request(document: Mapping[str, Any]) -> str:
    wall = document["request_median_ms"]
    fact = f"wall time of a request {milliseconds(wall)}"
    if document["stages_of_request"] is not None:
        fact += f", of which the stages are {100 * document['stages_of_request']:.1f} %"
    rates = ", ".join(
        f"{rate(value)} {_RATES[name]}" for name, value in document["throughput"].items() if name in _RATES
    )
    return f"{fact}; {rates}"
