"""The report: what a static analysis found, as plain data with a published schema.

Everything after the analysis (files, MLflow, pairing, comparing) reads the report and never the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from typing import Any

#: Changes with every change of the report's keys or of what they mean.
SCHEMA_VERSION = "1.3"

Report = dict[str, Any]

#: How much of a validator's message is shown: it can hold the whole document.
_LONGEST_FAULT = 150


@dataclass
class StageAnalysisResult:
    """What was found out about one stage.

    Attributes
    ----------
    stage_name : str
        Name of the stage.
    params, params_active, params_unused : int
        Parameters that belong to the stage, those that one token uses, and those that nothing uses.
    macs, flops, flops_causal : int
        Multiply-accumulates; FLOPs, two each; FLOPs with causal self-attention halved. From the tier named in
        `source`.
    flops_isolated, flops_extracted, flops_analytic : int or None
        FLOPs by each of the three tiers; None where a tier did not run or failed, see `notes`.
    source : str
        The tier that the reported numbers are from: isolated, extracted or analytic; ``none`` if none has any.
    activations : int
        Elements written by the counted operators.
    bytes_read, bytes_written : int
        Bytes that the counted operators read and write.
    kv_bytes_read, kv_bytes_written : int
        The part of them that is key-value cache.
    operators : dict of str to int
        FLOPs by operator.
    notes : list of str
        What one should know about the numbers.
    context, steps, flops_total : int or None
        Of ``decode`` only: tokens that the reported step attends to, steps of the request, and FLOPs of all of them.
    macs_total, activations_total, bytes_read_total, bytes_written_total, flops_causal_total : int or None
        Of ``decode`` only: the same quantities over all steps.
    """

    stage_name: str
    params: int = 0
    params_active: int = 0
    params_unused: int = 0
    macs: int = 0
    flops: int = 0
    flops_isolated: int | None = None
    flops_extracted: int | None = None
    flops_analytic: int | None = None
    source: str = "none"
    flops_causal: int = 0
    activations: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    kv_bytes_read: int = 0
    kv_bytes_written: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    context: int | None = None
    steps: int | None = None
    flops_total: int | None = None
    macs_total: int | None = None
    flops_causal_total: int | None = None
    activations_total: int | None = None
    bytes_read_total: int | None = None
    bytes_written_total: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON knows them; those that only ``decode`` has are left out elsewhere."""
        values = asdict(self)
        if self.context is None:
            decode_only = {"context", "steps", *(name for name in values if name.endswith("_total"))}
            values = {name: value for name, value in values.items() if name not in decode_only}
        return values


@cache
def report_schema() -> dict[str, Any]:
    """Return the JSON Schema of the report, as the package publishes it."""
    text = resources.files("stagemeter.core").joinpath("report.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


#: What the total of a report has of each stage.
_SUMMED = ("macs", "flops", "flops_causal", "activations", "bytes_read", "bytes_written")


def report_fault(report: Any) -> str | None:
    """Say where something is not a report of the published schema, or does not add up; None where it is and does."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    fault = best_match(Draft202012Validator(report_schema()).iter_errors(report))
    if fault is None:
        return _sum_fault(report)
    message = fault.message if len(fault.message) <= _LONGEST_FAULT else f"{fault.message[:_LONGEST_FAULT]}..."
    return f"at {fault.json_path}: {message}"


def _sum_fault(report: Mapping[str, Any]) -> str | None:
    """Say where the total is not the sum of the stages: somebody changed a number, or mixed two reports."""
    for quantity in _SUMMED:
        added, said = sum(request_total(report, quantity).values()), report["total"][quantity]
        if added != said:
            return f"at $.total.{quantity}: {said} is not the sum of the stages, {added}"
    return None


def request_total(report: Mapping[str, Any], quantity: str) -> dict[str, int]:
    """A quantity of each stage over the whole request: of ``decode`` all steps, of the others what one pass costs.

    Parameters
    ----------
    report : mapping
        A report.
    quantity : str
        ``flops``, ``macs``, ``flops_causal``, ``activations``, ``bytes_read`` or ``bytes_written``.
    """
    return {
        name: stage[f"{quantity}_total"] if f"{quantity}_total" in stage else stage[quantity]
        for name, stage in report["stages"].items()
    }
