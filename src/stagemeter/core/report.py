"""The report of a static analysis: plain data with a published schema.

Files, MLflow, pairing and comparing read the report and never the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from stagemeter.core.stage_names import DECODE, PREFILL
from stagemeter.core.workload import Workload

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from stagemeter.core.report_types import Report as Report
    from stagemeter.core.report_types import Stage
else:
    # pydantic is imported only when a report is checked.
    Report = dict[str, Any]

#: Changes whenever a key of the report or its meaning changes.
SCHEMA_VERSION: Literal["2.0"] = "2.0"

_SCHEMA_FILE = "report.schema.json"
#: Parts of pydantic's schemas that a report does not need: titles made of names, and defaults of settings.
_NOT_PUBLISHED = ("title", "default")
#: Characters of a validator's message to show: it can hold the whole document.
_LONGEST_FAULT = 150
#: Quantities of what transformers executes, as a report has them.
EXECUTED_QUANTITIES = tuple(
    f"{name}_executed" for name in ("macs", "flops", "activations", "bytes_read", "bytes_written")
)
#: Quantities whose total is the sum of the stages.
_NEEDED = ("macs", "flops", "flops_causal", "activations", "bytes_read", "bytes_written")
_SUMMED = (*_NEEDED, *EXECUTED_QUANTITIES)


@dataclass
class StageAnalysisResult:
    """The counts of one stage.

    Attributes
    ----------
    stage_name : str
        Name of the stage.
    params, params_active, params_unused : int
        Parameters that belong to the stage, those that one token uses, and those that nothing uses.
    macs, flops, flops_causal : int
        What the model needs: multiply-accumulates; FLOPs, two each; FLOPs of the pairs that a mask shows.
    activations : int
        Elements written by the operators that the model needs.
    bytes_read, bytes_written, kv_bytes_read, kv_bytes_written : int
        Bytes that these operators read and write, and the part of them that is KV cache.
    macs_executed, flops_executed, activations_executed, bytes_read_executed, bytes_written_executed : int
        What transformers executes, from `source`.
    flops_isolated, flops_extracted, flops_analytic : int or None
        Executed FLOPs by each of the three tiers; None where a tier did not run or failed, see `notes`.
    source : str
        The tier of the executed numbers: isolated, extracted or analytic; ``none`` if no tier has any.
    execution : list of str
        Why transformers executes other work, where it does: clauses after its name.
    operators : dict of str to int
        Executed FLOPs by operator.
    notes : list of str
        Remarks on the numbers.
    context, steps : int or None
        Only of ``decode``: tokens that the reported step attends to, and steps of the request.
    flops_total, macs_total, activations_total, bytes_read_total, bytes_written_total, flops_causal_total : int or None
        Only of ``decode``: the quantities over all steps.
    flops_executed_total, macs_executed_total, activations_executed_total, bytes_read_executed_total, \
bytes_written_executed_total : int or None
        Only of ``decode``: executed quantities over all steps.
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
    macs_executed: int = 0
    flops_executed: int = 0
    activations_executed: int = 0
    bytes_read_executed: int = 0
    bytes_written_executed: int = 0
    execution: list[str] = field(default_factory=list)
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
    macs_executed_total: int | None = None
    flops_executed_total: int | None = None
    activations_executed_total: int | None = None
    bytes_read_executed_total: int | None = None
    bytes_written_executed_total: int | None = None

    def to_dict(self) -> Stage:
        """Return the fields as JSON has them; those of ``decode`` only for that stage."""
        values = asdict(self)
        if self.context is None:
            decode_only = {"context", "steps", *(name for name in values if name.endswith("_total"))}
            values = {name: value for name, value in values.items() if name not in decode_only}
        return cast("Stage", values)


@cache
def report_schema() -> dict[str, Any]:
    """Return the published JSON Schema of the report."""
    schema: dict[str, Any] = json.loads(resources.files("stagemeter.core").joinpath(_SCHEMA_FILE).read_text("utf-8"))
    return schema


def generated_schema() -> dict[str, Any]:
    """Generate the JSON Schema from the types of the report."""
    from stagemeter.core.report_types import DECODE_ONLY

    schema = _plain(_adapter().json_schema())
    # Fields that one stage alone has come together or not at all.
    schema["$defs"]["Stage"]["dependentRequired"] = {
        name: [other for other in DECODE_ONLY if other != name] for name in DECODE_ONLY
    }
    # What a request asks for has defaults where it is asked, and none in a document.
    workload = schema["$defs"]["Workload"]
    workload["required"] = [
        name for name, kind in workload["properties"].items() if {"type": "null"} not in kind.get("anyOf", ())
    ]
    further = schema["$defs"]["FurtherPages"]
    further["required"] = list(further["properties"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:stagemeter:report:{SCHEMA_VERSION}",
        "title": "Stagemeter static report",
        **schema,
    }


def _plain(schema: Any) -> Any:
    """Remove what a document has no use for, and close dictionaries whose keys follow a pattern."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: _plain(part) for key, part in schema.items() if key not in _NOT_PUBLISHED or isinstance(part, dict)}
    return {**parts, "additionalProperties": False} if "patternProperties" in parts else parts


@cache
def _adapter() -> TypeAdapter[Report]:
    from pydantic import TypeAdapter

    from stagemeter.core.report_types import Report

    return TypeAdapter(Report)


def report_fault(report: Any) -> str | None:
    """Say where a document departs from the published schema or contradicts itself; None for a sound report."""
    from pydantic import ValidationError

    # A file's name can hold bytes that are no text.
    text = json.dumps(report, ensure_ascii=False).encode(errors="replace")
    try:
        _adapter().validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in fault["loc"])
        message = fault["msg"] if len(fault["msg"]) <= _LONGEST_FAULT else f"{fault['msg'][:_LONGEST_FAULT]}..."
        return f"at ${path}: {message}"
    try:
        Workload.from_json(json.dumps(report["metadata"]["workload"]))
    except ValueError as error:
        return f"at $.metadata.workload.{error}"
    return _stage_fault(report) or _sum_fault(report)


def _stage_fault(report: Mapping[str, Any]) -> str | None:
    from stagemeter.core.report_types import DECODE_ONLY

    stages = report["stages"]
    for name in (PREFILL, DECODE):
        if name not in stages:
            return f"at $.stages: there is no {name}"
    for name, stage in stages.items():
        if stage["stage_name"] != name:
            return f"at $.stages.{name}.stage_name: {stage['stage_name']!r} is another stage"
        for key in DECODE_ONLY:
            if (key in stage) != (name == DECODE):
                return f"at $.stages.{name}: {key} belongs to {DECODE}, and to no other stage"
    closed_form = report["closed_form"]
    if closed_form is not None and closed_form["stages"].keys() != stages.keys():
        return f"at $.closed_form.stages: {', '.join(closed_form['stages'])} are not the stages of the report"
    agreement = report["agreement"]
    if len(set(agreement["tiers"])) < len(agreement["tiers"]):
        return "at $.agreement.tiers: a tier is there twice"
    named = {
        "agreement.incomplete_stages": agreement["incomplete_stages"],
        "unsupported_ops": report["unsupported_ops"],
    }
    faults = (
        f"at $.{place}: there is no stage {name}" for place in named for name in named[place] if name not in stages
    )
    return next(faults, None)


def _sum_fault(report: Mapping[str, Any]) -> str | None:
    """Say where the total is not the sum of the stages: a number was changed, or two reports were mixed."""
    for quantity in _SUMMED:
        added, stated = sum(request_total(report, quantity).values()), report["total"][quantity]
        if added != stated:
            return f"at $.total.{quantity}: {stated} is not the sum of the stages, {added}"
    return None


def request_total(report: Mapping[str, Any], quantity: str) -> dict[str, int]:
    """Return a quantity of each stage over the whole request: all steps of decode, one pass of the others.

    `quantity` is ``flops``, ``macs``, ``flops_causal``, ``activations``, ``bytes_read`` or ``bytes_written``, or one of
    them but ``flops_causal`` with ``_executed``.
    """
    return {
        name: stage[f"{quantity}_total"] if f"{quantity}_total" in stage else stage[quantity]
        for name, stage in report["stages"].items()
    }


if __name__ == "__main__":
    Path(__file__).with_name(_SCHEMA_FILE).write_text(json.dumps(generated_schema(), indent=2) + "\n")
