"""The command line: help, output, and the layers of settings."""

import json
import re
import subprocess
import sys
from importlib.metadata import version

import jsonschema
import pytest

from stagemeter import report_schema
from stagemeter.cli import TASKS

OPTIONS = (
    "--config --model --mode --base-size --tile-size --crop --no-crop --image --page-size --text-tokens --seq-len "
    "--new-tokens --batch-size --dtype --decode-context --output --experiment --run-name --no-track --json "
    "--estimate"
)
FILES = {"static_compute.json", "static_compute.md"}


def test_version(stagemeter):
    assert stagemeter("--version").out.strip().endswith(version("stagemeter"))


def test_help_names_the_command(stagemeter):
    ended = stagemeter("--help")
    assert ended.code == 0
    assert "analyze" in ended.out


@pytest.mark.parametrize("spelling", ["--help", "-h"])
def test_help_names_every_option_and_gives_examples(stagemeter, spelling):
    ended = stagemeter("analyze", spelling)
    assert ended.code == 0
    for option in OPTIONS.split():
        assert re.search(rf"{option}\b", ended.out), option
    examples = re.findall(r"^ +stagemeter (analyze.*?)(?:  |$)", ended.out.split("Examples:")[1], flags=re.MULTILINE)
    assert len(examples) >= 3


@pytest.mark.parametrize("command", [name for names in TASKS.values() for name in names])
def test_help_says_what_a_value_is(stagemeter, command):
    """The names of click's types say less than a word for the value."""
    assert not re.search(r"--[\w-]+ (TEXT|INTEGER|FLOAT|PATH)\b", stagemeter(command, "--help").out)


def test_examples_of_the_help_are_possible(stagemeter, folder, make_pdf):
    """Try the options of each on an estimate."""
    make_pdf(folder / "scan.pdf", (595, 842))
    (folder / "log.csv").write_text("prompt_tokens,output_tokens\n9,2\n", encoding="utf-8")
    text = stagemeter("analyze", "--help").out.split("Examples:")[1]
    for example in re.findall(r"^ +stagemeter (analyze.*?)(?:  |$)", text, flags=re.MULTILINE):
        assert stagemeter(*example.split(), "--estimate", "--no-track").code == 0, example


def test_json_is_alone_on_stdout(stagemeter, folder):
    ended = stagemeter("analyze", "--estimate", "--no-track", "--json")
    report = json.loads(ended.out)
    jsonschema.validate(report, report_schema())
    assert report == json.loads((folder / "stagemeter-report" / "static_compute.json").read_text())
    assert report["total"]["params"] == 3_336_106_240


def test_console_shows_the_table_and_the_files_are_written(stagemeter, folder):
    ended = stagemeter("analyze", "--estimate", "--no-track", "--output", "out")
    assert ended.code == 0
    assert [line.split()[0] for line in ended.out.splitlines()[2:8]] == [
        "sam",
        "clip",
        "projector",
        "prefill",
        "decode",
        "total",
    ]
    assert "page 1654x2339, mode gundam: 1 x 1024 + 6 x 640 (2x3)" in ended.out
    assert not re.search(" $", ended.out, re.MULTILINE)
    assert {path.name for path in (folder / "out").iterdir()} == FILES
    assert {path.name for path in folder.iterdir()} == {"out"}, "no store was made"


def test_switched_off_runs_nothing_and_says_so(stagemeter, folder):
    (folder / "off.yaml").write_text("enabled: false\n")
    ended = stagemeter("analyze", "--config", "off.yaml")
    assert (ended.code, ended.out) == (0, "")
    assert "enabled is false" in ended.err
    assert [path.name for path in folder.iterdir()] == ["off.yaml"]


# Layers


@pytest.mark.parametrize(
    ("arguments", "setting", "value"),
    [
        (["--mode", "tiny"], "base_size", 512),
        (["--base-size", 512], "base_size", 512),
        (["--tile-size", 512], "image_size", 512),
        (["--no-crop"], "local_views", 0),
        (["--crop", "--mode", "base", "--tile-size", 640], "mode", "gundam"),
        (["--page-size", "640x480"], "image_width", 640),
        (["--page-size", "640X480"], "image_height", 480),
        (["--text-tokens", 20], "prompt_tokens", 923),
        (["--seq-len", 512], "prompt_tokens", 512),
        (["--new-tokens", 7], "new_tokens", 7),
        (["--new-tokens", "7.0"], "new_tokens", 7),
        (["--batch-size", 3], "batch_size", 3),
        (["--dtype", "float32"], "dtype", "float32"),
        (["--kv-cache-dtype", "float8_e5m2"], "kv_cache_dtype", "float8_e5m2"),
        (["--kv-cache-dtype", "bfloat16"], "kv_cache_dtype", None),
        (["--decode-context", "auto"], "decode_context", 913 + 256),
        (["--decode-context", "max"], "decode_context", 8192),
        (["--decode-context", 1000], "decode_context", 1000),
        (["--new_tokens", 7], "new_tokens", 7),
    ],
)
def test_option_reaches_the_workload(estimate, arguments, setting, value):
    assert estimate(*arguments)["metadata"]["workload"][setting] == value


def test_adapter_is_counted_apart(stagemeter, estimate, folder):
    settings = {"peft_type": "LORA", "r": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    options = ["--model", "qwen3-8b", "--adapter", "adapter_config.json"]
    report = estimate(*options)
    assert report["metadata"]["config"]["adapter"] == "adapter_config.json"
    assert report["adapter"]["params"] == 15_335_424
    ended = stagemeter("analyze", "--estimate", "--no-track", *options)
    (row,) = [line for line in ended.out.splitlines() if line.startswith("adapter")]
    assert row.split() == ["adapter,", "rank", "16", "15.3", "M", "47.1", "G", "0.2", "%", "18.7", "GB", "apart"]
    markdown = (folder / "stagemeter-report" / "static_compute.md").read_text()
    assert "beside q_proj, k_proj, v_proj, o_proj of the decoder: 15,335,424 parameters" in markdown
    assert "|decode, one step|15,335,424|30,670,848|" in markdown


@pytest.mark.parametrize("command", [["profile"], ["plan", "--pages-per-day", 1000, "--device", "h100-sxm"]])
def test_commands_that_know_no_adapters_say_so(stagemeter, folder, command):
    (folder / "mine.yaml").write_text("adapter: somewhere\n")
    ended = stagemeter(*command, "--config", "mine.yaml")
    assert ended.code == 2
    assert f"adapter somewhere: {command[0]} counts no adapters" in ended.err


def test_adapter_that_is_not_there(stagemeter, folder):
    ended = stagemeter("analyze", "--adapter", "nowhere")
    assert ended.code == 2
    assert "adapter: there is no nowhere. Give an adapter's folder, or its adapter_config.json" in ended.err
    assert not list(folder.iterdir())


def test_option_wins_over_the_file_and_the_file_over_defaults(estimate, folder):
    (folder / "mine.yaml").write_text("mode: base\nbatch_size: 2\nnew_tokens: 8\n")
    workload = estimate("--config", "mine.yaml", "--new-tokens", 9)["metadata"]["workload"]
    assert (workload["mode"], workload["batch_size"], workload["new_tokens"]) == ("base", 2, 9)
    assert estimate("--config", "mine.yaml", "--mode", "tiny")["metadata"]["workload"]["base_size"] == 512


@pytest.mark.parametrize("word", ["none", "None"])
def test_word_for_not_given_leaves_the_file_alone(estimate, folder, word):
    (folder / "mine.yaml").write_text("batch_size: 2\nimage_w: 700\nimage_h: 800\n")
    options = ["--batch-size", word, "--image", word, "--page-size", word, "--mode", word, "--seq-len", word]
    workload = estimate("--config", "mine.yaml", *options)["metadata"]["workload"]
    assert (workload["batch_size"], workload["image_width"], workload["mode"]) == (2, 700, "gundam")


def test_page_size_wins_over_the_picture_of_the_file(estimate, folder):
    (folder / "mine.yaml").write_text("sample_image_path: not-there.png\nuse_synthetic_inputs: false\n")
    assert estimate("--config", "mine.yaml", "--page-size", "300x200")["metadata"]["workload"]["image_width"] == 300


def test_model_folder_needs_its_config_alone(estimate, folder, request):
    small = request.config.rootpath / "tests" / "profiling" / "session" / "small_config.json"
    (folder / "small").mkdir()
    (folder / "small" / "config.json").write_text(small.read_text())
    report = estimate("--model", "small")
    assert report["metadata"]["model"] == "small"
    assert report["closed_form"]["architecture"]["decoder"]["hidden"] == 32


# In processes of their own


def test_estimate_imports_neither_torch_nor_mlflow(folder):
    code = """
import sys
from stagemeter.cli import main
sys.argv = ["stagemeter", "analyze", "--estimate", "--no-track", "--json"]
try:
    main()
finally:
    heavy = {"torch", "transformers", "mlflow", "fvcore", "matplotlib", "numpy", "sympy", "rich"} & set(sys.modules)
    print(sorted(heavy), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert json.loads(done.stdout)["total"]["params"] == 3_336_106_240


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_little(option):
    heavy = ["torch", "transformers", "mlflow", "pydantic", "PIL", "numpy", "pandas", "rich", "yaml", "multiprocessing"]
    code = f"""
import sys
from stagemeter.cli import main
sys.argv = ["stagemeter", {option!r}]
try:
    main()
finally:
    print([name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(("mode", "code"), [("tiny", 0), ("enormous", 2)])
def test_exit_code_of_the_process(folder, mode, code):
    command = [sys.executable, "-m", "stagemeter", "analyze", "--estimate", "--no-track", "--mode", mode]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert ("error: --mode: 'enormous' cannot be used" in done.stderr) == (code == 2)
    assert (folder / "stagemeter-report").exists() == (code == 0)


@pytest.mark.slow
def test_full_analysis_prints_only_json(folder):
    """Without ``--estimate``, torch and transformers run, too, and could print."""
    command = [sys.executable, "-m", "stagemeter", "analyze", "--no-track", "--json", "--mode", "tiny", "--verbose"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["agreement"]["status"] == "equal"
    assert "counting" in done.stderr


def test_notes_that_change_a_number_are_shown_and_the_others_on_demand(stagemeter, estimate, monkeypatch):
    words = ("analyze", "deepseek-ocr", "1920x1080", "--estimate", "--no-track")
    report = estimate("1920x1080")
    (key,) = report["key_notes"]
    assert "--max-tiles 6 counts that" in key
    assert estimate()["key_notes"] == []
    short = stagemeter(*words).out
    assert f"note: {key}\n{len(report['notes']) - 2} more note" in short
    monkeypatch.setattr("logging.Logger.isEnabledFor", lambda self, level: True)
    full = stagemeter(*words, "-v").out
    assert all(f"note: {note}\n" in full for note in report["notes"][1:])
    assert "more note" not in full


@pytest.mark.parametrize("option", ["--output", "--output-dir", "--output_dir", "--out"])
def test_the_folder_has_one_name_and_its_earlier_ones(stagemeter, folder, option):
    ended = stagemeter("analyze", "--estimate", "--no-track", option, "there")
    assert (ended.code, (folder / "there" / "static_compute.json").exists()) == (0, True), ended.err
    shown = stagemeter("analyze", "--help").out
    assert "--output FOLDER" in shown
    assert "--output-dir" not in shown
