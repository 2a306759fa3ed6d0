"""What people write: short numbers, data types, devices, Hub ids; names that a shell completes."""

import json

import click
import pytest
from click.shell_completion import ShellComplete

from stagemeter.cli import cli
from stagemeter.cli.types import NUMBER
from stagemeter.models.files import shipped_models
from stagemeter.models.lookup import describe_model
from stagemeter.sweeping.ranges import numbers


def workload(stagemeter, *options):
    ended = stagemeter("analyze", "--estimate", "--no-track", "--json", *options)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)["metadata"]["workload"]


@pytest.mark.parametrize("text", ["2000", "2k", "2K", "2e3", "2,000", "0.002M", "2000.0"])
def test_numbers_are_read_as_people_write_them(text):
    assert NUMBER.convert(text, None, None) == 2000


def test_binary_prefixes_are_powers_of_1024():
    assert NUMBER.convert("128Ki", None, None) == 131_072


@pytest.mark.parametrize("text", ["1,00", "1.5", "2m", "1e999", "k", "1 2", "0x10"])
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(click.BadParameter, match="not a valid integer"):
        NUMBER.convert(text, None, None)


def test_short_forms_are_the_same_request(stagemeter):
    short = workload(
        stagemeter, "--model", "llama-3.1-8b", "--seq-len", "8Ki", "--dtype", "BF16", "--kv-cache-dtype", "fp8"
    )
    full = workload(
        stagemeter,
        *("--model", "llama-3.1-8b", "--seq-len", "8192", "--dtype", "bfloat16", "--kv-cache-dtype", "float8_e4m3fn"),
    )
    assert short == full
    assert full["kv_cache_dtype"] == "float8_e4m3fn"


def test_ranges_of_a_sweep_take_short_numbers():
    assert numbers("1k,2e3,8Ki", "--new-tokens") == [1000, 2000, 8192]


def test_every_hub_id_of_a_shipped_model_needs_no_network(stagemeter, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("stagemeter.models.files.fetch", refuse)
    rows = json.loads(stagemeter("models", "--json").out)
    ids = {row["name"]: row["hub_id"] for row in rows if row["hub_id"] is not None}
    assert ids["qwen2.5-vl-7b"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert ids["deepseek-ocr"] == "deepseek-ai/DeepSeek-OCR"
    for name, hub_id in ids.items():
        described = describe_model(hub_id.lower())
        assert described.architecture == describe_model(name).architecture
        assert f"shipped configuration of {name}" in described.notes[0]


def test_a_shipped_name_is_not_noted():
    assert not any("nothing was fetched" in note for note in describe_model("llama-3.1-8b").notes)


def test_models_and_devices_are_found_by_words(stagemeter):
    found = json.loads(stagemeter("models", "Qwen2.5", "VL", "--json").out)
    assert [row["name"] for row in found] == ["qwen2.5-vl-7b"]
    devices = json.loads(stagemeter("devices", "h100", "--json").out)
    assert [device["name"] for device in devices] == ["H100-SXM", "H100-PCIe", "H100-NVL"]


@pytest.mark.parametrize("command", ["models", "devices"])
def test_words_without_a_match_are_an_error(stagemeter, command):
    ended = stagemeter(command, "nothing-like-it")
    assert (ended.code, ended.out) == (2, "")
    assert f"has nothing-like-it. `stagemeter {command}` lists all" in ended.err


def test_without_a_command_there_is_the_help(stagemeter):
    ended = stagemeter()
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("Usage: stagemeter [OPTIONS] COMMAND")


@pytest.mark.parametrize(
    ("given", "begun", "offered"),
    [
        ([], "to", ["tokens"]),
        (["plan", "--device"], "h100", ["H100-SXM", "H100-PCIe", "H100-NVL"]),
        (["analyze", "--model"], "deepseek-v", ["deepseek-v3", "deepseek-v3.2"]),
        (["analyze", "--model"], "", shipped_models()),
    ],
)
def test_a_shell_completes_commands_models_and_devices(given, begun, offered):
    completion = ShellComplete(cli, {}, "stagemeter", "_STAGEMETER_COMPLETE")
    assert [item.value for item in completion.get_completions(given, begun)] == offered
