"""The table of settings is what options, validation, hashes and params follow."""

import json
from dataclasses import fields, replace

import click
import pytest

from stagemeter import AnalysisConfig, StagemeterError
from stagemeter.analysis.config import ProfileConfig, load_config
from stagemeter.cli import cli
from stagemeter.core.params import report_params, workload_params
from stagemeter.core.setting import table
from stagemeter.core.settings import AnalysisSettings, ProfileSettings, RequestSettings
from stagemeter.core.workload import OWN, TEXT, FurtherPages, PageOfWorkload, Workload

ROWS = table(ProfileSettings)
WORKLOAD = Workload(
    image_width=100,
    image_height=150,
    mode="base",
    base_size=1024,
    image_size=1024,
    global_views=1,
    local_views=0,
    tile_grid=(1, 1),
    image_tokens=273,
    prompt_tokens=283,
    decode_context=300,
)


def options(command: str) -> set[str]:
    found = cli.get_command(click.Context(cli), command)
    return {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("command", ["analyze", "profile", "plan", "import-profile"])
def test_command_has_the_options_of_the_table(command):
    for row in table(AnalysisSettings).values():
        if row.option is not None and command in (row.setting.commands or (command,)):
            assert set(row.option.split("/")) <= options(command), row.name


def test_sweep_has_the_options_that_the_table_sweeps():
    swept = {row.option for row in ROWS.values() if row.setting.swept is not None}
    assert {"--batch-size", "--page-size", "--max-tiles", "--decode-context"} < swept <= options("sweep")


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.bounds.least is not None])
def test_validation_holds_the_bounds_of_the_table(name):
    bounds = ROWS[name].bounds
    # Of a single setting, others may still refuse a value that the bounds allow.
    for value in filter(None, (bounds.least, bounds.most)):
        assert getattr(ProfileConfig(**{name: value}), name) == value
    for value in (bounds.least - 1, *([] if bounds.most is None else [bounds.most + 1])):
        with pytest.raises(StagemeterError, match=f"^{name}: {value} cannot be used. Give "):
            ProfileConfig(**{name: value})


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_help_is_sentences(row):
    assert row.setting.help[-1] in ".:"
    assert max(map(len, (sentence.split() for sentence in row.setting.help.split(". ")))) <= 20


def test_given_settings_replace_those_of_a_file_that_they_contradict(tmp_path, caplog):
    path = tmp_path / "mine.yaml"
    path.write_text("sample_image_path: scan.png\nuse_synthetic_inputs: false\n")
    config = load_config(path, {"image_w": 700, "image_h": 800}, AnalysisConfig)
    assert (config.sample_image_path, config.image_w) == (None, 700)
    assert "sample_image_path: scan.png gives way to image_w" in caplog.text


# Workloads


def test_request_settings_are_fields_of_the_configuration_and_the_workload():
    assert set(table(RequestSettings)) <= set(AnalysisConfig.model_fields) & set(table(Workload))


def test_field_without_a_value_is_no_part_of_the_hash():
    assert "padded_tokens" not in WORKLOAD.hashed_fields()
    assert replace(WORKLOAD, padded_tokens=64).hash != WORKLOAD.hash


@pytest.mark.parametrize("name", ["image_width", "mode", "decode_context", "video_frames"])
def test_field_that_the_table_leaves_out_of_the_hash(name):
    assert not table(Workload)[name].setting.hashed
    assert replace(WORKLOAD, **{name: "tiny" if name == "mode" else 77}).hash == WORKLOAD.hash


@pytest.mark.parametrize("name", ["text_tokens", "new_tokens", "batch_size", "dtype"])
def test_document_without_a_request_setting_is_refused(name):
    document = WORKLOAD.to_dict()
    assert Workload.from_json(json.dumps(document)) == WORKLOAD
    del document[name]
    with pytest.raises(ValueError, match=f"{name}: missing"):
        Workload.from_json(json.dumps(document))


@pytest.mark.parametrize(("name", "value"), [("new_tokens", 0), ("batch_size", -1), ("dtype", "int3")])
def test_document_beyond_the_bounds_of_the_table_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        Workload.from_json(json.dumps({**WORKLOAD.to_dict(), name: value}))


# Params


def test_params_are_those_that_the_table_logs():
    config = AnalysisConfig(mode="base").model_dump()
    params = workload_params(config, WORKLOAD.to_dict())
    assert (params["image"], params["seq_len"], params["tile_grid"]) == ("none", "none", "1x1")
    assert params.keys().isdisjoint({"max_tiles", "video_frames", "enabled", "image_w", "padded_tokens"})
    assert workload_params({**config, "max_tiles": 6}, WORKLOAD.to_dict())["max_tiles"] == "6"


def test_params_of_text_say_nothing_of_pages():
    params = workload_params(AnalysisConfig().model_dump(), {**WORKLOAD.to_dict(), "mode": TEXT})
    assert params["mode"] == TEXT
    assert params.keys().isdisjoint({"base_size", "crop_mode", "image", "image_width", "tile_grid", "image_tokens"})


def test_params_of_a_processors_own_views_are_the_workloads():
    params = workload_params(AnalysisConfig().model_dump(), {**WORKLOAD.to_dict(), "mode": OWN, "view_size": [30, 40]})
    assert (params["mode"], params["view_size"]) == (OWN, "30x40")
    assert params.keys().isdisjoint({"crop_mode", "base_size", "image_size"})


def test_params_tell_how_tokens_are_drafted_and_how_many_pages_there_are():
    page = {field.name: getattr(WORKLOAD, field.name) for field in fields(PageOfWorkload)}
    further = FurtherPages(**page, times=2, tags=0)
    workload = replace(WORKLOAD, further_pages=(further,)).to_dict()
    drafting = {"drafted": 4, "acceptance": 0.7, "draft": "mtp"}
    metadata = {"config": AnalysisConfig().model_dump(), "workload": workload}
    params = report_params({"metadata": metadata, "speculation": drafting})
    assert params["further_pages"].startswith("3 x ")
    assert (params["speculate"], params["acceptance"], params["draft"]) == ("4", "0.7", "mtp")
    assert "speculate" not in report_params({"metadata": metadata})
