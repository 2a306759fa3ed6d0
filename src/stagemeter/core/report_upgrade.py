"""Read reports of schema 1.x, which count what transformers executes, in the shape of this version.

Their FLOPs keep their meaning, and `basis` says ``executed``. Their
closed form has no ``executed`` part of its own, since its stages are what is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.report import EXECUTED_QUANTITIES, SCHEMA_VERSION

#: The major version that `upgraded_report` reads.
EARLIER_SCHEMA = "1"
_SUFFIX = "_executed"


def is_earlier(version: object) -> bool:
    """Tell whether a report of this schema version counts executed work."""
    return str(version).partition(".")[0] == EARLIER_SCHEMA


def earlier_note(version: object) -> str:
    """Say what the numbers of a report of schema 1.x are."""
    return (
        f"schema {version} counts the FLOPs that transformers executes, with causal self-attention halved in "
        "flops_causal. Analyze again for what the model needs"
    )


def upgraded_report(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report of schema 1.x, or of the first of 2.0, in the shape of this version; else the document as it is.

    What a damaged report lacks stays missing or None, for `stagemeter.core.report.report_fault` to name.
    """
    report, version = dict(document), document.get("schema_version")
    if not is_earlier(version):
        # The first reports of schema 2.0 do not say which notes are key: all are.
        return {"key_notes": report["notes"], **report} if "notes" in report else report
    versions = _part(_part(report.get("metadata")).get("versions"))
    report |= {
        "schema_version": SCHEMA_VERSION,
        "basis": "executed",
        "implementation": {"name": "transformers", "version": versions.get("transformers", "unknown")},
        "total": _with_executed(report.get("total")),
        "stages": {name: _upgraded_stage(stage) for name, stage in _part(report.get("stages")).items()},
        "decode_curve": [
            {**_part(point), "flops_executed": _part(point).get("flops")} for point in _list(report.get("decode_curve"))
        ],
        "notes": [*_list(report.get("notes")), earlier_note(version)],
        "key_notes": [earlier_note(version)],
    }
    if isinstance(report.get("adapter"), dict):
        report["adapter"] = _upgraded_adapter(report["adapter"])
    if isinstance(report.get("closed_form"), dict):
        report["closed_form"] = {**report["closed_form"], "executed": None}
    return report


def _upgraded_stage(stage: Any) -> Any:
    return {**_with_executed(stage), "execution": []} if isinstance(stage, dict) else stage


def _upgraded_adapter(adapter: dict[str, Any]) -> dict[str, Any]:
    stages = {
        name: {**_with_executed(stage), "flops_request_executed": _part(stage).get("flops_request")}
        for name, stage in _part(adapter.get("stages")).items()
    }
    return {**adapter, "stages": stages, "total": _with_executed(adapter.get("total"))}


def _with_executed(part: Any) -> Any:
    """Add the executed quantities of one pass, and of all steps where the part has them."""
    if not isinstance(part, dict):
        return part
    executed = {name: part.get(name.removesuffix(_SUFFIX)) for name in EXECUTED_QUANTITIES}
    of_steps = {f"{name}_total": part.get(f"{name.removesuffix(_SUFFIX)}_total") for name in EXECUTED_QUANTITIES}
    return {**part, **executed, **(of_steps if "flops_total" in part else {})}


def _part(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
