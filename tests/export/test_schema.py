"""The report's published schema: reports of every kind hold to it, and it holds them to something."""

import copy
import json
from dataclasses import fields

import jsonschema
import pytest

from stagemeter import AnalysisConfig, StageAnalysisResult, report_schema
from stagemeter.core.cost import QUANTITIES
from stagemeter.core.report import SCHEMA_VERSION
from stagemeter.core.workload import Workload

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
#: What the schema promises by name; whoever reads reports depends on it.
PROMISED = {
    "": "schema_version metadata total stages other_params agreement unsupported_ops closed_form notes",
    "metadata": "model workload workload_hash versions",
    "metadata/workload": "image_width image_height mode base_size image_size global_views local_views tile_grid "
    "image_tokens text_tokens prompt_tokens new_tokens batch_size dtype decode_context",
    "total": "params params_active macs flops flops_causal flops_forward activations weight_bytes kv_cache_bytes",
    "stages": "sam clip projector prefill decode",
    "stages/sam": "stage_name params params_active params_unused macs flops flops_isolated flops_extracted "
    "flops_analytic flops_causal activations bytes_read bytes_written operators notes",
    "stages/decode": "context steps flops_total flops flops_causal",
}
#: Objects of a report whose keys are fixed, as paths.
FIXED = [
    "",
    "metadata",
    "metadata/workload",
    "metadata/config",
    "total",
    "stages",
    "stages/sam",
    "stages/decode",
    "other_params",
    "agreement",
    "closed_form",
    "closed_form/architecture",
    "closed_form/architecture/sam",
    "closed_form/architecture/clip",
    "closed_form/architecture/decoder",
    "closed_form/stages",
    "closed_form/stages/decode",
    "closed_form/stages/sam/quantities",
    "closed_form/stages/sam/quantities/macs/0",
    "decode_curve/0",
    "modules/0",
]


def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(report_schema())


def at(report: dict, path: str):
    """The part of a report at a path such as ``stages/sam``."""
    for step in path.split("/") if path else []:
        report = report[int(step)] if isinstance(report, list) else report[step]
    return report


def sub_schemas(schema: object) -> list[dict]:
    if isinstance(schema, list):
        return [found for item in schema for found in sub_schemas(item)]
    if not isinstance(schema, dict):
        return []
    return [schema, *(found for value in schema.values() for found in sub_schemas(value))]


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


@pytest.mark.parametrize(("path", "keys"), PROMISED.items())
def test_promised_keys_are_there_under_their_names(report, path, keys):
    assert set(keys.split()) <= set(at(report, path))


@pytest.mark.parametrize("path", FIXED)
def test_every_key_is_required_and_no_other_allowed(report, path):
    check = validator()
    for key in list(at(report, path)):
        lacking = copy.deepcopy(report)
        del at(lacking, path)[key]
        assert not check.is_valid(lacking), f"{path}/{key} may be missing"
    at(report, path)["unknown_key"] = 1
    assert not check.is_valid(report)


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ("", "schema_version", "0.9"),
        ("metadata", "workload_hash", "xyz"),
        ("metadata/workload", "mode", "enormous"),
        ("metadata/workload", "dtype", "float64"),
        ("metadata/workload", "tile_grid", [2]),
        ("metadata/workload", "tile_grid", "2x3"),
        ("metadata/workload", "prompt_tokens", 0),
        ("total", "flops", 1.5),
        ("total", "flops", "4"),
        ("total", "flops", None),
        ("total", "params", -1),
        ("stages/sam", "flops", -2),
        ("stages/sam", "flops_isolated", 0.5),
        ("stages/sam", "source", "guessed"),
        ("stages/sam", "stage_name", "clip"),
        ("stages/sam", "operators", {"convolution": "many"}),
        ("stages/sam", "notes", "one"),
        ("agreement", "status", "roughly"),
        ("agreement", "tiers", ["isolated", "isolated"]),
        ("agreement", "tiers", ["measured"]),
        ("agreement", "incomplete_stages", ["encoder"]),
        ("", "unsupported_ops", {"encoder": {"aten::mm": 1}}),
        ("", "unsupported_ops", {"sam": {"aten::mm": 0}}),
        ("", "notes", []),
    ],
)
def test_value_that_cannot_be_is_refused(report, path, key, value):
    at(report, path)[key] = value
    assert not validator().is_valid(report)


def test_tier_that_did_not_run_is_null_but_never_missing(report):
    stage = report["stages"]["sam"]
    stage["flops_extracted"] = None
    assert validator().is_valid(report)
    del stage["flops_extracted"]
    assert not validator().is_valid(report)


def test_only_decode_has_steps(report):
    report["stages"]["prefill"]["steps"] = 1
    assert not validator().is_valid(report)


def test_schema_knows_the_fields_of_the_code():
    schema = report_schema()
    metadata = schema["properties"]["metadata"]["properties"]
    assert set(metadata["config"]["properties"]) == set(AnalysisConfig.model_fields)
    assert set(metadata["workload"]["properties"]) == {field.name for field in fields(Workload)}
    assert set(schema["$defs"]["decode_stage"]["properties"]) == {field.name for field in fields(StageAnalysisResult)}
    quantities = schema["$defs"]["closed_form"]["properties"]["quantities"]
    assert set(quantities["properties"]) == set(QUANTITIES)


def test_everything_with_keys_is_closed_and_described():
    for schema in sub_schemas(report_schema()):
        if schema.get("type") != "object" or not isinstance(schema.get("properties"), dict):
            continue
        # The names of stages are the family's: what others there may be is described, too.
        others = schema["additionalProperties"]
        assert others is False or set(others) == {"$ref"}, schema["description"]
        assert set(schema["required"]) == set(schema["properties"])
        for name, value in schema["properties"].items():
            assert value.get("description") or "$ref" in value, name
