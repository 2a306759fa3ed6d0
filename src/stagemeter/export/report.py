"""A static report as files, and on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.escape import markdown_code
from stagemeter.core.report import request_total
from stagemeter.core.scratch import locked_folder
from stagemeter.core.stage_names import DECODE, REQUEST, TOTAL, stage_label
from stagemeter.core.terminal import Section, note_lines, print_sections
from stagemeter.core.units import (
    describe_dtypes,
    describe_pages,
    describe_peak,
    describe_request,
    describe_views,
    milliseconds,
    page_count_of,
    pages_of,
    percentage,
    with_unit,
)
from stagemeter.core.writing import write_whole
from stagemeter.export.charts import bar_figure, picture
from stagemeter.export.execution import ADAPTER, differing_factors, execution_lines
from stagemeter.export.fvcore_table import fvcore_table
from stagemeter.export.json_file import json_text
from stagemeter.export.markdown import Document, abreast, unbroken
from stagemeter.export.roofline import bounds_table, load_line, load_lines, load_table, roofline_lines
from stagemeter.export.speculation import speculation_lines, speculation_table, speculation_title
from stagemeter.export.stage_rows import (
    ACTIVATIONS,
    EXECUTED,
    TIERS,
    row,
    stage_rows,
    total_row,
    without,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JSON_FILE = "static_compute.json"
MARKDOWN_FILE = "static_compute.md"
FVCORE_FILE = "static_compute_fvcore.md"
#: Files of a report in a folder.
REPORT_FILES = (JSON_FILE, MARKDOWN_FILE, FVCORE_FILE)


def report_files(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the contents of a report's files by name, with fvcore's table where a model was run."""
    files = {JSON_FILE: json_text(report), MARKDOWN_FILE: report_markdown(report)}
    if report["modules"]:
        files[FVCORE_FILE] = fvcore_table(report)
    return files


def write_report_files(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write the files of a report into a folder, which is made if it is missing.

    The files in the folder are of one report, even after an interruption or with other writers.
    """
    try:
        with locked_folder(folder):
            for name in REPORT_FILES[1:]:
                (folder / name).unlink(missing_ok=True)
            return [write_whole(folder / name, content) for name, content in files.items()]
    except OSError as error:
        raise StagemeterError(
            f"{folder}: cannot be written to: {error.strerror or error}. Give another folder"
        ) from error


_TOP_OPERATORS = 3
#: Rows of a request's totals: title, key and unit.
_TOTALS = (
    ("Parameters", "params", ""),
    ("Parameters that one token uses", "params_active", ""),
    ("MACs", "macs", ""),
    ("FLOPs", "flops", ""),
    ("FLOPs, visible pairs", "flops_causal", ""),
    ("FLOPs executed", "flops_executed", ""),
    ("FLOPs of one forward pass", "flops_forward", ""),
    ("Activations", "activations", ""),
    ("Bytes read", "bytes_read", "B"),
    ("Bytes written", "bytes_written", "B"),
    ("Weights", "weight_bytes", "B"),
    ("KV cache at the end", "kv_cache_bytes", "B"),
)
#: Columns of the table of stages as rows of a description: stage, FLOPs, share, params, bytes, and what few ask for.
_ORDER = (0, 2, 4, 1, 6, EXECUTED, ACTIVATIONS, 7)


def write_static_compute_json(report: Mapping[str, Any], path: Path | str) -> Path:
    """Write the report as JSON.

    Parameters
    ----------
    report : mapping
        A static report, see `stagemeter.analyze_model`.
    path : Path or str
        The file.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    StagemeterError
        If the file cannot be written.
    """
    return write_whole(path, json_text(report))


def write_static_compute_markdown(report: Mapping[str, Any], path: Path | str) -> Path:
    """Write the report as Markdown; arguments, result and errors are those of `write_static_compute_json`."""
    return write_whole(path, report_markdown(report))


def report_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown: configuration, totals, stages, details of each, notes."""
    document = Document()
    document.header(1, f"Static analysis of {report['metadata']['model']}")
    _add_summary(document, report)
    document.section("Configuration", _configuration(report))
    document.header(2, "Stages in detail")
    for stage in report["stages"].values():
        _add_stage(document, stage)
    document.section("Notes", report["notes"])
    return str(document)


def flops_chart(report: Mapping[str, Any]) -> bytes:
    """Draw the FLOPs of each stage over the whole request as a PNG picture."""
    return picture(flops_figure(report))


def flops_figure(report: Mapping[str, Any]) -> Figure:
    """Draw the FLOPs of each stage over the whole request."""
    stages, workload = report["stages"], report["metadata"]["workload"]
    flops = {
        stage_label(name, f"{DECODE} x {stages[DECODE]['steps']:,}"): value
        for name, value in request_total(report, "flops").items()
    }
    views = f"{describe_views(workload)}, " if workload["global_views"] else ""
    title = f"{report['metadata']['model']}, {workload['mode']}: {views}{workload['prompt_tokens']:,} prompt tokens"
    return bar_figure(flops, report["total"]["flops"], "FLOPs of one request", title)


def summary_markdown(report: Mapping[str, Any]) -> str:
    """Return the description of a run: a headline, the stages side by side, and words."""
    document = Document()
    document.paragraph(_headline(report))
    # `other` has parameters alone, which the totals have.
    header, *stages, _, whole = _summary_rows(report)
    columns = abreast(unbroken([header, *stages, whole]))
    document.table([columns[place] for place in _ORDER if place not in _hidden(report)])
    document.paragraph(f"{_request(report)}. {_meaning(report)}")
    _add_details(document, report)
    return str(document)


def _headline(report: Mapping[str, Any]) -> str:
    total, roofline = report["total"], report["roofline"]
    whole, forward = (with_unit(total[name], "FLOPs") for name in ("flops", "flops_forward"))
    least = "" if roofline is None else milliseconds(roofline["bounds"][TOTAL]["roofline_ms"])
    device = "" if roofline is None else f", at least {least} on {roofline['peak']['name']}"
    return f"**{whole}** a request, {forward} before the first token{device}."


def _request(report: Mapping[str, Any]) -> str:
    workload = report["metadata"]["workload"]
    return (
        f"One request: {describe_request(workload)}, {workload['prompt_tokens']:,} prompt tokens, "
        f"{workload['new_tokens']:,} new tokens, {describe_dtypes(workload)}"
    )


def _add_summary(document: Document, report: Mapping[str, Any]) -> None:
    total = report["total"]
    document.paragraph(
        f"{_request(report)}. **{with_unit(total['flops'], 'FLOPs')}** in all, "
        f"{with_unit(total['flops_forward'], 'FLOPs')} of them before the first token. {_meaning(report)}",
    )
    document.table(without(_summary_rows(report), _hidden(report)))
    _add_details(document, report)


def _summary_rows(report: Mapping[str, Any]) -> list[list[str]]:
    header = ["Stage", "Params", "FLOPs", "FLOPs executed", "Share", "Activations", "Bytes moved", "Counts agree"]
    nothing = dict.fromkeys(("flops", "flops_executed", "activations", "bytes_read", "bytes_written"), 0)
    other = row("other", {"params": sum(report["other_params"].values()), **nothing, "agreement": ""}, "0.0 %")
    whole = total_row(report, "**total**", "100.0 %" if report["total"]["flops"] else "–")
    return [header, *stage_rows(report), other, whole]


def _hidden(report: Mapping[str, Any]) -> tuple[int, ...]:
    return () if differing_factors(report) else (EXECUTED,)


def _add_details(document: Document, report: Mapping[str, Any]) -> None:
    lines = execution_lines(report)
    if lines:
        document.items(lines)
    document.paragraph(_agreement_line(report))
    _add_roofline(document, report)
    _add_speculation(document, report)
    _add_adapter(document, report)
    total = report["total"]
    document.header(2, "Totals of the request")
    rows = [[title, with_unit(total[name], unit), f"{total[name]:,}"] for title, name, unit in _TOTALS]
    document.table([["Quantity", "Value", "Exact"], *rows])


def _meaning(report: Mapping[str, Any]) -> str:
    """Say what FLOPs without another word are."""
    if report["basis"] == "executed":
        return f"FLOPs are what {report['implementation']['name']} executes."
    return "FLOPs are what the model needs, attention dense. The totals have visible pairs and executed FLOPs, too."


def _add_roofline(document: Document, report: Mapping[str, Any]) -> None:
    roofline = report["roofline"]
    if roofline is None:
        return
    document.header(2, f"At best on {roofline['peak']['name']}, by visible pairs")
    document.table(bounds_table(roofline))
    document.items([*roofline_lines(roofline), f"peak: {roofline['peak']['source']}", *roofline["notes"]])
    load = report.get("load")
    if load is not None:
        document.header(2, f"{load_line(load, roofline['peak']['name'])}")
        document.table(load_table(load))
        document.items(load_lines(load))


def _add_speculation(document: Document, report: Mapping[str, Any]) -> None:
    speculation = report.get("speculation")
    if speculation is not None:
        document.header(2, "Speculative decoding")
        document.paragraph(f"{speculation_title(speculation)}. It is in no other number of this report.")
        document.table(speculation_table(report))
        document.items([*speculation_lines(speculation), *speculation["notes"]])


def _add_adapter(document: Document, report: Mapping[str, Any]) -> None:
    adapter = report["adapter"]
    if adapter is None:
        return
    document.header(2, "Adapter")
    document.paragraph(
        f"A LoRA adapter of rank {adapter['rank']:,} beside {', '.join(adapter['targets'])} of the decoder: "
        f"{adapter['params']:,} parameters. It is in no other number of this report."
    )
    rows = [["Stage", "MACs", "FLOPs", "FLOPs executed", "Activations", "Bytes read", "Bytes written"]]
    for name, numbers in {**adapter["stages"], REQUEST: adapter["total"]}.items():
        quantities = ("macs", "flops", "flops_executed", "activations", "bytes_read", "bytes_written")
        label = stage_label(name, "decode, one step")
        rows.append([label, *(f"{numbers[quantity]:,}" for quantity in quantities)])
    document.table(rows)


def _agreement_line(report: Mapping[str, Any]) -> str:
    agreement = report["agreement"]
    tiers = ", ".join(agreement["tiers"])
    return {
        "equal": f"All tiers ({tiers}) give the same integers, for every quantity of every stage.",
        "different": f"**The tiers ({tiers}) disagree**: " + "; ".join(agreement["differences"]),
        "incomplete": f"The tiers ({tiers}) agree where they counted; some could not count "
        + ", ".join(agreement["incomplete_stages"])
        + ".",
        "not compared": f"Counted in one way only ({tiers}); nothing to compare with.",
    }[agreement["status"]]


def _configuration(report: Mapping[str, Any]) -> list[str]:
    metadata = report["metadata"]
    workload = metadata["workload"]
    versions = ", ".join(f"{package} {version}" for package, version in metadata["versions"].items())
    lines = [f"model: {metadata['model']} (architecture {metadata['architecture_hash']})"]
    shown = {**workload, "further_pages": None}
    if workload.get("further_pages"):
        shown["pages"] = f"{describe_pages(workload)}: {describe_views(workload)}"
    lines += [f"{key}: {value}" for key, value in shown.items() if value is not None]
    lines += [f"workload hash: {metadata['workload_hash']}", f"versions: {versions}"]
    return lines


def _add_stage(document: Document, stage: Mapping[str, Any]) -> None:
    document.header(3, stage["stage_name"])
    counted = {f"FLOPs executed, {tier}": stage[f"flops_{tier}"] for tier in TIERS}
    exact = {
        "parameters": stage["params"],
        "parameters that one token uses": stage["params_active"],
        "parameters never used": stage["params_unused"] or None,
        "context of the step below": stage.get("context"),
        "MACs": stage["macs"],
        "FLOPs": stage["flops"],
        "FLOPs, visible pairs": stage["flops_causal"],
        "FLOPs executed": stage["flops_executed"],
        **{title: "not counted" if value is None else value for title, value in counted.items()},
        "activations": stage["activations"],
        "bytes read": stage["bytes_read"],
        "bytes written": stage["bytes_written"],
    }
    if "steps" in stage:
        exact[f"FLOPs of all {stage['steps']:,} steps"] = stage["flops_total"]
        exact[f"FLOPs executed in all {stage['steps']:,} steps"] = stage["flops_executed_total"]
    rows = [
        [title, f"{value:,}" if isinstance(value, int) else value]
        for title, value in exact.items()
        if value is not None
    ]
    document.table([["Quantity", "Exact"], *rows])
    if stage["operators"]:
        top = sorted(stage["operators"].items(), key=lambda item: -item[1])[:_TOP_OPERATORS]
        rows = [["Operator", "FLOPs executed", "Share"]]
        rows += [[markdown_code(name), f"{flops:,}", percentage(flops, stage["flops_executed"])] for name, flops in top]
        document.table(rows)
    document.items(stage["notes"])


def print_report(report: Mapping[str, Any]) -> None:
    """Print stages with parameters, FLOPs, share and agreement on stdout."""
    print_sections(report_sections(report))


def report_sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the table of stages, and those of the roofline and of speculative decoding where the report has them."""
    rows = [
        ["stage", "params", "FLOPs", "FLOPs executed", "share", "activations", "bytes moved", "counts agree"],
        *stage_rows(report),
        total_row(report, TOTAL, ""),
    ]
    adapter = report["adapter"]
    if adapter is not None:
        numbers = {"params": adapter["params"], **adapter["total"], "agreement": "apart"}
        share = percentage(numbers["flops"], report["total"]["flops"])
        factor = differing_factors(report).get(ADAPTER)
        rows.append(row(f"adapter, rank {adapter['rank']:,}", numbers, share, factor))
    # Activations are in the files: a terminal is narrow.
    hidden = (ACTIVATIONS,) if differing_factors(report) else (EXECUTED, ACTIVATIONS)
    # The first note states the conventions, which stand in the report.
    notes = report["notes"][1:]
    shown = note_lines(notes, report["key_notes"])
    lines = [*execution_lines(report), _page(report["metadata"]["workload"]), *shown]
    sections = [Section(report["metadata"]["model"], without(rows, hidden), lines)]
    roofline = report["roofline"]
    if roofline is not None:
        peak = roofline["peak"]
        title = f"At best on {peak['name']} ({describe_peak(peak)}), by visible pairs"
        sections.append(Section(title, bounds_table(roofline), roofline_lines(roofline)))
        load = report.get("load")
        if load is not None:
            sections.append(Section(load_line(load, peak["name"]), load_table(load), load_lines(load)))
    speculation = report.get("speculation")
    if speculation is not None:
        title = speculation_title(speculation)
        lines = [*speculation_lines(speculation), *note_lines(speculation["notes"])]
        sections.append(Section(title, speculation_table(report), lines))
    return sections


def _page(workload: dict[str, Any]) -> str:
    video = workload.get("video_frames")
    pages = page_count_of(workload)
    what = f"{pages:,} pages of" if pages > 1 else "page" if video is None else f"video of {video:,} frames"
    image = sum(times * page["image_tokens"] for times, page in pages_of(workload))
    tags = sum(page["times"] * page["tags"] for page in workload.get("further_pages") or ())
    page = (
        f"{what} {describe_pages(workload)}, mode {workload['mode']}: {describe_views(workload)}; {image:,} image + "
        f"{f'{tags:,} around them + ' if tags else ''}"
        if workload["global_views"]
        else ""
    )
    return (
        f"{page}{workload['text_tokens']:,} text tokens, "
        f"{workload['new_tokens']:,} new tokens, batch {workload['batch_size']}, {describe_dtypes(workload)}"
    )
