"""The report as Markdown, for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdutils.mdutils import MdUtils

from stagemeter.core.escape import markdown_code
from stagemeter.core.report import request_total
from stagemeter.core.units import describe_dtypes, describe_request, percentage, with_unit
from stagemeter.core.writing import write_whole
from stagemeter.export.document import add_header, add_list, add_paragraph, add_table, document_text, new_document
from stagemeter.export.roofline_text import bounds_table, roofline_lines

_TOP_OPERATORS = 3
_TIERS = ("isolated", "extracted", "analytic")


def write_static_compute_markdown(report: Mapping[str, Any], path: Path | str) -> Path:
    """Write the report as Markdown.

    Parameters
    ----------
    report : mapping
        What `DeepseekOCRStaticAnalyzer.generate_report` returned.
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
    return write_whole(path, report_markdown(report))


def report_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown: configuration, totals, stages, details of each, notes."""
    document = new_document()
    add_header(document, 1, f"Static analysis of {report['metadata']['model']}")
    _add_summary(document, report)
    add_header(document, 2, "Configuration")
    add_list(document, _configuration(report))
    add_header(document, 2, "Stages in detail")
    for stage in report["stages"].values():
        _add_stage(document, stage)
    add_header(document, 2, "Notes")
    add_list(document, report["notes"])
    return document_text(document)


def summary_markdown(report: Mapping[str, Any]) -> str:
    """Return the short form: the table of stages and the totals, as the description of a run."""
    document = new_document()
    _add_summary(document, report)
    return document_text(document)


def _add_summary(document: MdUtils, report: Mapping[str, Any]) -> None:
    total, workload = report["total"], report["metadata"]["workload"]
    add_paragraph(
        document,
        f"One request: {describe_request(workload)}, {workload['prompt_tokens']:,} prompt tokens, "
        f"{workload['new_tokens']:,} new tokens, {describe_dtypes(workload)}. "
        f"**{with_unit(total['flops'], 'FLOPs')}** in all, "
        f"{with_unit(total['flops_forward'], 'FLOPs')} of them before the first token.",
    )
    add_table(document, _stage_rows(report))
    add_paragraph(document, _agreement_line(report))
    _add_roofline(document, report)
    _add_adapter(document, report)
    add_header(document, 2, "Totals of the request")
    add_table(
        document,
        [
            ["Quantity", "Value", "Exact"],
            ["Parameters", with_unit(total["params"]), f"{total['params']:,}"],
            ["Parameters that one token uses", with_unit(total["params_active"]), f"{total['params_active']:,}"],
            ["MACs", with_unit(total["macs"]), f"{total['macs']:,}"],
            ["FLOPs", with_unit(total["flops"]), f"{total['flops']:,}"],
            ["FLOPs, causal attention halved", with_unit(total["flops_causal"]), f"{total['flops_causal']:,}"],
            ["FLOPs of one forward pass", with_unit(total["flops_forward"]), f"{total['flops_forward']:,}"],
            ["Activations", with_unit(total["activations"]), f"{total['activations']:,}"],
            ["Bytes read", with_unit(total["bytes_read"], "B"), f"{total['bytes_read']:,}"],
            ["Bytes written", with_unit(total["bytes_written"], "B"), f"{total['bytes_written']:,}"],
            ["Weights", with_unit(total["weight_bytes"], "B"), f"{total['weight_bytes']:,}"],
            ["KV cache at the end", with_unit(total["kv_cache_bytes"], "B"), f"{total['kv_cache_bytes']:,}"],
        ],
        alignment=["left", "right", "right"],
    )


def _add_roofline(document: MdUtils, report: Mapping[str, Any]) -> None:
    roofline = report["roofline"]
    if roofline is None:
        return
    add_header(document, 2, f"At best on {roofline['peak']['name']}")
    add_table(document, bounds_table(roofline))
    add_list(document, [*roofline_lines(roofline), f"peak: {roofline['peak']['source']}", *roofline["notes"]])


def _add_adapter(document: MdUtils, report: Mapping[str, Any]) -> None:
    adapter = report["adapter"]
    if adapter is None:
        return
    add_header(document, 2, "Adapter")
    add_paragraph(
        document,
        f"A low-rank adapter of rank {adapter['rank']:,} beside {', '.join(adapter['targets'])} of the decoder: "
        f"{adapter['params']:,} parameters. It is in no other number of this report.",
    )
    rows = [["Stage", "MACs", "FLOPs", "Activations", "Bytes read", "Bytes written"]]
    for name, numbers in {**adapter["stages"], "request": adapter["total"]}.items():
        quantities = ("macs", "flops", "activations", "bytes_read", "bytes_written")
        label = {"decode": "decode, one step"}.get(name, name)
        rows.append([label, *(f"{numbers[quantity]:,}" for quantity in quantities)])
    add_table(document, rows, alignment=["left", *["right"] * 5])


def _stage_rows(report: Mapping[str, Any]) -> list[list[str]]:
    rows = [["Stage", "Params", "FLOPs", "Share", "Activations", "Bytes moved", "Counts agree"]]
    flops = request_total(report, "flops")
    activations = request_total(report, "activations")
    read, written = request_total(report, "bytes_read"), request_total(report, "bytes_written")
    for name, stage in report["stages"].items():
        rows.append(
            [
                f"decode x {stage['steps']:,}" if name == "decode" else name,
                with_unit(stage["params"]),
                with_unit(flops[name]),
                percentage(flops[name], report["total"]["flops"]),
                with_unit(activations[name]),
                with_unit(read[name] + written[name], "B"),
                stage_agreement(report, name),
            ]
        )
    total = report["total"]
    rows.append(["other", with_unit(sum(report["other_params"].values())), "0", "0.0 %", "0", "0 B", ""])
    rows.append(
        [
            "**total**",
            with_unit(total["params"]),
            with_unit(total["flops"]),
            "100.0 %" if total["flops"] else "–",
            with_unit(total["activations"]),
            with_unit(total["bytes_read"] + total["bytes_written"], "B"),
            report["agreement"]["status"],
        ]
    )
    return rows


def stage_agreement(report: Mapping[str, Any], name: str) -> str:
    """Say whether the tiers that counted a stage give the same FLOPs: ``3 of 3``, ``no``, or ``analytic only``.

    A model without closed forms has two tiers.
    """
    stage = report["stages"][name]
    possible = len(_TIERS) - (report["closed_form"] is None)
    counted = {tier: stage[f"flops_{tier}"] for tier in _TIERS if stage[f"flops_{tier}"] is not None}
    if len(counted) == 1:
        return f"{next(iter(counted))} only"
    if len(set(counted.values())) > 1:
        return "no"
    return f"{len(counted)} of {possible}"


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
    lines += [f"{key}: {value}" for key, value in workload.items() if value is not None]
    lines += [f"workload hash: {metadata['workload_hash']}", f"versions: {versions}"]
    return lines


def _add_stage(document: MdUtils, stage: Mapping[str, Any]) -> None:
    add_header(document, 3, stage["stage_name"])
    rows = [["Quantity", "Exact"], ["parameters", f"{stage['params']:,}"]]
    rows.append(["parameters that one token uses", f"{stage['params_active']:,}"])
    if stage["params_unused"]:
        rows.append(["parameters never used", f"{stage['params_unused']:,}"])
    if "context" in stage:
        rows.append(["context of the step below", f"{stage['context']:,}"])
    rows.append(["MACs", f"{stage['macs']:,}"])
    for tier in _TIERS:
        value = stage[f"flops_{tier}"]
        rows.append([f"FLOPs, {tier}", "not counted" if value is None else f"{value:,}"])
    rows.append(["FLOPs, causal attention halved", f"{stage['flops_causal']:,}"])
    rows.append(["activations", f"{stage['activations']:,}"])
    rows.append(["bytes read", f"{stage['bytes_read']:,}"])
    rows.append(["bytes written", f"{stage['bytes_written']:,}"])
    if "steps" in stage:
        rows.append([f"FLOPs of all {stage['steps']:,} steps", f"{stage['flops_total']:,}"])
    add_table(document, rows, alignment=["left", "right"])
    if stage["operators"]:
        top = sorted(stage["operators"].items(), key=lambda item: -item[1])[:_TOP_OPERATORS]
        rows = [["Operator", "FLOPs", "Share"]]
        rows += [[markdown_code(name), f"{flops:,}", percentage(flops, stage["flops"])] for name, flops in top]
        add_table(document, rows, alignment=["left", "right", "right"])
    add_list(document, stage["notes"])
