"""The report's schema: the types generate it, reports of every kind match it, and damaged reports do not."""

import copy
import json
from dataclasses import fields
from pathlib import Path

import jsonschema
import pytest

from stagemeter import AnalysisConfig, StageAnalysisResult, report_schema
from stagemeter.comparing.files import read_report
from stagemeter.core.cost import QUANTITIES
from stagemeter.core.report import SCHEMA_VERSION, generated_schema, report_fault
from stagemeter.core.report_types import DECODE_ONLY
from stagemeter.core.workload import Workload

HERE = Path(__file__).parent
KINDS = [
    "tiled",
    "tiny",
    "large, one token",
    "given length",
    "estimate",
    "stage failed",
    "stage left out",
    "whole model failed",
]
#: Objects of a report whose keys are fixed, as paths.
FIXED = [
    "",
    "metadata",
    "total",
    "stages/sam",
    "stages/decode",
    "agreement",
    "closed_form",
    "closed_form/stages/decode",
    "closed_form/stages/sam/quantities",
    "closed_form/stages/sam/quantities/macs/0",
    "decode_curve/0",
    "modules/0",
]


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(report_schema())


def at(report: dict, path: str):
    """Return the part of a report at a path such as ``stages/sam``."""
    for step in path.split("/") if path else []:
        report = report[int(step)] if isinstance(report, list) else report[step]
    return report


def test_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(report_schema())
    assert report_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert report_schema()["properties"]["schema_version"] == {
        "const": SCHEMA_VERSION,
        "description": "Version of this schema.",
        "type": "string",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_report_holds_to_the_schema(reports, kind):
    validator().validate(reports[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_report_is_the_same_after_it_was_json(reports, kind):
    assert json.loads(json.dumps(reports[kind])) == reports[kind]


def test_kinds_are_those_that_their_names_say(reports):
    status = {kind: report["agreement"]["status"] for kind, report in reports.items()}
    assert status["tiled"] == "equal"
    assert status["estimate"] == "not compared"
    assert status["stage failed"] == status["whole model failed"] == "incomplete"
    assert reports["stage left out"]["stages"]["projector"]["source"] == "none"
    assert reports["estimate"]["modules"] == reports["whole model failed"]["modules"] == []
    assert reports["large, one token"]["stages"]["decode"]["steps"] == 0


@pytest.mark.parametrize("path", FIXED)
def test_every_key_is_required_and_no_other_allowed(report, path):
    check = validator()
    for key in list(at(report, path)):
        lacking = copy.deepcopy(report)
        del at(lacking, path)[key]
        assert not check.is_valid(lacking), f"{path}/{key} may be missing"
        assert report_fault(lacking) is not None
    at(report, path)["unknown_key"] = 1
    assert not check.is_valid(report)
    assert "unknown_key" in report_fault(report)


@pytest.mark.parametrize("path", ["stages", "closed_form/stages"])
@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_every_model_has_prefill_and_decode(report, path, stage):
    del at(report, path)[stage]
    assert not validator().is_valid(report)
    assert report_fault(report) is not None


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ("", "schema_version", "0.9"),
        ("metadata", "workload_hash", "xyz"),
        ("metadata/workload", "tile_grid", [2]),
        ("metadata/workload", "tile_grid", "2x3"),
        ("total", "flops", 1.5),
        ("total", "flops", "4"),
        ("total", "flops", None),
        ("total", "params", -1),
        ("stages/sam", "flops", -2),
        ("stages/sam", "flops_isolated", 0.5),
        ("stages/sam", "source", "guessed"),
        ("stages/sam", "operators", {"convolution": "many"}),
        ("stages/sam", "notes", "one"),
        ("agreement", "status", "roughly"),
        ("agreement", "tiers", ["isolated", "isolated"]),
        ("agreement", "tiers", ["measured"]),
        ("", "unsupported_ops", {"sam": {"aten::mm": 0}}),
        ("", "notes", []),
    ],
)
def test_value_that_cannot_be_is_refused(report, path, key, value):
    at(report, path)[key] = value
    assert not validator().is_valid(report)
    assert report_fault(report) is not None


@pytest.mark.parametrize(
    ("path", "key", "value", "fault"),
    [
        ("stages/sam", "stage_name", "clip", "at $.stages.sam.stage_name: 'clip' is another stage"),
        ("agreement", "incomplete_stages", ["encoder"], "at $.agreement.incomplete_stages: there is no stage encoder"),
        ("", "unsupported_ops", {"encoder": {"aten::mm": 1}}, "at $.unsupported_ops: there is no stage encoder"),
        ("stages", "sam", None, "at $.stages.sam: Input should be an object"),
        ("total", "flops", 1, "at $.total.flops: 1 is not the sum of the stages"),
        ("metadata/workload", "base_size", 0, "at $.metadata.workload.base_size: 0 is less than 1"),
    ],
)
def test_fault_is_named_with_its_place(report, path, key, value, fault):
    at(report, path)[key] = value
    assert report_fault(report).startswith(fault)


def test_schema_is_generated_from_the_types():
    assert report_schema() == generated_schema(), "run python -m stagemeter.core.report"


def test_report_that_an_earlier_version_wrote_is_read(tmp_path):
    assert read_report(HERE / "documents" / "report_1_3.json")["stages"]["sam"]["flops"] > 0


def test_tier_that_did_not_run_is_null_but_never_missing(report):
    stage = report["stages"]["sam"]
    stage["flops_extracted"] = None
    assert validator().is_valid(report)
    del stage["flops_extracted"]
    assert not validator().is_valid(report)


def test_only_decode_has_steps(report):
    report["stages"]["prefill"]["steps"] = 1
    assert not validator().is_valid(report)
    report["stages"]["prefill"] |= dict.fromkeys(DECODE_ONLY, 2)
    assert report_fault(report) == "at $.stages.prefill: context belongs to decode, and to no other stage"


def test_schema_knows_the_fields_of_the_code():
    schema = report_schema()["$defs"]
    assert set(schema["Workload"]["properties"]) == {field.name for field in fields(Workload)}
    assert set(schema["AnalysisSettings"]["properties"]) == set(AnalysisConfig.model_fields)
    assert set(schema["Stage"]["properties"]) == {field.name for field in fields(StageAnalysisResult)}
    assert set(schema["Quantities"]["properties"]) == set(QUANTITIES)


def test_everything_with_keys_is_closed_and_described():
    for name, schema in report_schema()["$defs"].items():
        assert schema["additionalProperties"] is False, name
        if name in ("AnalysisSettings", "Workload"):
            continue
        optional = {"Stage": DECODE_ONLY, "AdapterCost": ["flops_request", "flops_request_executed"]}.get(name, ())
        assert {*schema["required"], *optional} == set(schema["properties"]), name
        for key, value in schema["properties"].items():
            assert value.get("description") or "$ref" in value, f"{name}.{key}"
