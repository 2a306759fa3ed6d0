"""Errors of `profile`, `import-profile`, `mfu` and `devices`: one line, exit code 2, nothing left behind."""

import gzip
import json
from importlib import resources
from pathlib import Path

import pytest

from stagemeter.hardware.devices import known_devices

TIMES = {"sam": 31.7, "clip": 9.13, "projector": 0.217, "prefill": 27.9, "decode": 7.77}
#: Pages of a real server of vLLM.
RECORDED = Path(__file__).parents[1] / "utilization" / "serving" / "recorded"
PAGES = [RECORDED / f"dense_llama.{page}.txt" for page in ("before", "after")]


@pytest.fixture(autouse=True)
def store(new_store, folder) -> str:
    return new_store(folder)


@pytest.fixture
def refused(stagemeter, folder):
    """Expect a command to end with code 2 and one line, and return the line."""

    def run(*arguments: object) -> str:
        before = sorted(folder.iterdir())
        ended = stagemeter(*arguments)
        assert (ended.code, ended.out) == (2, "")
        (line,) = ended.err.splitlines()
        assert line.startswith("error: ")
        assert "Traceback" not in ended.err
        assert sorted(folder.iterdir()) == before, "something was left behind"
        return line

    return run


@pytest.fixture
def times(folder):
    path = folder / "times.json"
    path.write_text(json.dumps(TIMES))
    return path


# profile


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--device", "cuda:9"], ["device: there is no 'cuda:9'", "cpu"]),
        (["--device", "abacus"], ["device: there is no 'abacus'"]),
        (["--device", "meta"], ["meta", "takes no time"]),
        (["--device", "xpu"], ["xpu", "cpu, which runs anywhere"]),
        (["--repeats", "0"], ["--repeats: 0", "from 1 to 10,000"]),
        (["--warmup", "-1"], ["warmup", "-1"]),
        (["--trace", "maybe"], ["trace: 'maybe'", "'torch' or 'none'"]),
        (["--weights", "nowhere"], ["nowhere"]),
        (["--dtype", "float8"], ["dtype", "float8"]),
        (["--seq-len", "50"], ["--seq-len 50", "73 tokens", "74 or more"]),
        (["--kv-cache-dtype", "float8_e5m2"], ["float8_e5m2 cannot be run here", "import-profile"]),
        (["--scale", "small", "--model", "elsewhere"], ["--scale, --model: small and elsewhere exclude"]),
        (["--scale", "tiny"], ["--scale", "tiny"]),
        (
            ["--batch-size", "20000", "--scale", "full"],
            ["weights, KV cache and the decode stage need at least", "free", "smaller --batch-size"],
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_profile_refuses_what_cannot_be_run(refused, options, parts):
    line = refused("profile", "--mode", "tiny", *options)
    for part in parts:
        assert part in line


def test_profile_refuses_weights_of_another_model(refused, folder):
    model = folder / "model"
    model.mkdir()
    line = refused("profile", "--mode", "tiny", "--weights", model)
    assert "holds no config.json" in line
    small = resources.files("stagemeter.models").joinpath("configs/deepseek_ocr_small.json").read_text()
    (model / "config.json").write_text(small)
    assert "holds no *.safetensors files" in refused("profile", "--mode", "tiny", "--weights", model)


# import-profile


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["empty"]),
        (b"{", ["ends in the middle"]),
        (b'{"sam": -1}', ["sam", "-1"]),
        (b'{"samm": 1.0}', ["samm", "Did you mean 'sam'"]),
        (b'{"sam": NaN}', ["not JSON", "NaN"]),
        (b"stage,time_ms\nsam,fast\n", ["line 2", "fast"]),
        (b"\x00\x01\x02binary" * 100, ["no known format"]),
        (b'{"traceEvents": [', ["ends in the middle", "Profile it again"]),
        (b'{"traceEvents": []}', ["the trace has no events"]),
        (
            gzip.compress(b'{"traceEvents": [{"ph": "X", "name": "a", "ts": 1, "dur": 2}]}', mtime=0)[:-9],
            ["end in the middle"],
        ),
        (b"SQLite format 3\x00" + b"\x00" * 100, ["SQLite"]),
        (b"# HELP vllm:x y\n# TYPE vllm:x counter\nvllm:x 1\n", ["Give two"]),
    ],
    ids=range(12),
)
def test_import_refuses_files_that_hold_no_times(refused, folder, content, parts):
    path = folder / "profile.dat"
    path.write_bytes(content)
    line = refused("import-profile", path)
    for part in [str(path), *parts]:
        assert part in line


def test_import_refuses_what_is_not_there_or_contradicts_itself(refused, times, folder):
    assert "no such file" in refused("import-profile", folder / "nothing.json")
    assert "SOURCE, --from-run: nothing is given" in refused("import-profile")
    assert "SOURCE, --from-run: " in refused("import-profile", times, "--from-run", "abc")
    assert "3 files" in refused("import-profile", times, times, times)
    assert "--interval" in refused("import-profile", "http://127.0.0.1:9/metrics")
    assert "device: 'B9000' is unknown" in refused("import-profile", times, "--device", "B9000")
    assert "no such mapping file" in refused("import-profile", times, "--mapping", "none.yaml")
    assert "no '='" in refused("import-profile", times, "--map", "prefill")
    assert "--seq-len 50: cannot be run: the page alone takes 73" in refused(
        "import-profile", times, "--mode", "tiny", "--seq-len", 50
    )
    assert "one file is given, and the interval is between two" in refused("import-profile", times, "--interval", 60)
    assert "a server, write http://localhost:8000/metrics" in refused("import-profile", "localhost:8000/metrics")
    times.write_text('{"decode": 5, "decode_total": 900}')
    assert "decode_total is 180 times decode, but the workload has 511 steps" in refused("import-profile", times)
    times.write_text('{"request": 5}')
    assert "no time of any stage" in refused("import-profile", times)
    times.write_text(json.dumps(TIMES))
    assert "no decode step" in refused("import-profile", times, "--new-tokens", 1)


@pytest.mark.parametrize(
    ("source", "options", "option"),
    [
        (["{times}"], ["--interval", 5], "--interval"),
        (["{times}"], ["--engine-model", "x"], "--engine-model"),
        (["{times}"], ["--request-count", 3], "--request-count"),
        (["{times}"], ["--prefill-without-vision"], "--prefill-without-vision"),
        (["{times}", "{times}"], ["--map", "prefill=x"], "--map"),
        (["http://127.0.0.1:9/metrics"], ["--mapping", "x.yaml", "--interval", 1], "--mapping"),
        (["--from-run", "abc"], ["--interval", 5], "--interval"),
        (["--from-run", "abc"], ["--mapping", "x.yaml"], "--mapping"),
        (["--from-run", "abc"], ["--prefill-contains-vision"], "--prefill-contains-vision"),
    ],
)
def test_import_refuses_options_that_it_would_not_look_at(refused, times, source, options, option):
    line = refused("import-profile", *(word.format(times=times) for word in source), *options)
    assert option in line
    assert "leave" in line.lower()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("<html>502 Bad Gateway</html>\n", "up 1\n", "the page is HTML"),
        ("llamacpp:prompt_tokens_total 5\n", "\n", "lacks llamacpp:tokens_predicted_total"),
        ("up 1\n", "up 1\n", "no metrics of vLLM, SGLang, TensorRT-LLM, llama.cpp, Triton"),
        ("vllm:x 1\nvllm:x", "vllm:x 1\n", "ends within a line"),
    ],
    ids=["html", "half a page", "no engine", "cut off"],
)
def test_pages_that_are_none_are_one_message(refused, tmp_path, before, after, message):
    files = [tmp_path / "before.txt", tmp_path / "after.txt"]
    for file, text in zip(files, (before, after), strict=True):
        file.write_text(text)
    assert message in refused("import-profile", *files, "--interval", 60)


def test_a_page_of_another_model_than_the_default_one_is_refused(refused):
    line = refused("import-profile", *PAGES, "--interval", 60)
    assert "--model: missing, and " in line
    assert "serves './llama'. Give a name of `stagemeter models`" in line


def test_the_name_of_the_served_model_is_kept(stagemeter):
    ended = stagemeter("import-profile", *PAGES, "--model", RECORDED / "llama.config.json", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["served_model"] == "./llama"


def test_one_repeat_has_no_deciles(stagemeter, times):
    once = stagemeter("import-profile", times).out
    assert "Median" not in once
    assert "p10" not in once
    times.write_text(json.dumps({stage: [time, 2 * time] for stage, time in TIMES.items()}))
    twice = stagemeter("import-profile", times).out
    assert "p10" in twice
    assert "2 repeats" in twice


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--mode", "tiny", "--scale", "small", "--new-tokens", 4],
        ["--mode", "large", "--batch-size", 3, "--dtype", "float32", "--text-tokens", 22],
        ["--page-size", "300x900", "--seq-len", 1200],
        ["--base-size", 768, "--no-crop"],
        ["--base-size", 768, "--tile-size", 512],
    ],
)
def test_mfu_counts_what_was_measured_where_no_run_does(stagemeter, times, options):
    profile = json.loads(stagemeter("import-profile", times, *options, "--json").out)["run_id"]
    ended = stagemeter("mfu", "--profile-run", profile, "--peak-tflops", 1, "--json")
    assert ended.code == 0
    counts = json.loads(ended.out)["counts"]
    assert counts["source"] == "static report"
    # The run that it logged is found from then on.
    again = stagemeter("mfu", "--profile-run", profile, "--peak-tflops", 1, "--json")
    assert json.loads(again.out)["counts"] == counts


# mfu


def test_mfu_refuses_runs_and_peaks_that_are_not_there(stagemeter):
    for arguments, part in (
        ([], "--profile-run, --experiment: nothing is given. Give one of them"),
        (["--profile-run", "a", "--experiment", "b"], "--profile-run, --experiment: a and b exclude each other"),
        (["--experiment", "b", "--static-run", "c"], "--static-run, --experiment: c and b exclude each other"),
        (["--profile-run", "nothing", "--peak-tflops", "1"], "run 'nothing': not in"),
        (["--profile-run", "no'thing", "--peak-tflops", "1"], 'run "no\'thing": not in'),
        (["--profile-run", "no'th\"ing", "--peak-tflops", "1"], "not in the MLflow store"),
        (["--experiment", "nothing", "--peak-tflops", "1"], "experiment 'nothing': not in"),
    ):
        ended = stagemeter("mfu", *arguments)
        assert (ended.code, ended.out) == (2, ""), arguments
        assert ended.err.splitlines()[-1].startswith("error: ")
        assert part in ended.err


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "does not say what it ran on"),
        (["--device", "A100"], "could be any of A100-SXM-40GB"),
        (["--device", "B9000"], "device: 'B9000' is unknown"),
        (["--device", "T4"], "bfloat16"),
        (["--peak-tflops", "0"], "--peak-tflops"),
        (["--peak-tflops", "nan"], "--peak-tflops"),
        (["--peak-tflops", "1", "--peak-gbps", "-2"], "--peak-gbps"),
        (["--peak-gbps", "1"], "needs --peak-tflops"),
        (["--peak-tflops", "1", "--device", "A100-80GB"], "exclude each other"),
    ],
)
def test_mfu_refuses_peaks_that_are_none(stagemeter, times, options, part):
    assert stagemeter("analyze", "--estimate").code == 0
    profile = json.loads(stagemeter("import-profile", times, "--json").out)["run_id"]
    ended = stagemeter("mfu", "--profile-run", profile, *options)
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert part in line


def test_mfu_refuses_a_static_run_as_profile(stagemeter):
    said = stagemeter("analyze", "--estimate").err
    run = said.partition("run ")[2].partition(":")[0]
    ended = stagemeter("mfu", "--profile-run", run, "--peak-tflops", 1)
    assert ended.code == 2
    assert "is a static run" in ended.err


# devices, and analyze --device


def test_devices_are_listed(stagemeter):
    listed = stagemeter("devices")
    assert listed.code == 0
    assert all(device.name in listed.out for device in known_devices())
    assert len(json.loads(stagemeter("devices", "--json").out)) == len(known_devices())


def test_device_adds_bounds_and_whether_it_fits(stagemeter, estimate):
    report = estimate("--device", "A100-80GB")
    roofline = report["roofline"]
    assert roofline["peak"]["name"] == "A100-SXM-80GB"
    for stage in ("sam", "clip", "projector", "prefill"):
        counted = report["stages"][stage]
        moved = counted["bytes_read"] + counted["bytes_written"]
        by_hand = 1000 * max(counted["flops_causal"] / 312e12, moved / 2039e9)
        assert roofline["bounds"][stage]["roofline_ms_every_expert"] == pytest.approx(by_hand, rel=1e-12)
    total = roofline["bounds"]["total"]["roofline_ms"]
    assert roofline["throughput"]["pages_per_hour"] == pytest.approx(3.6e6 / total, rel=1e-12)
    assert roofline["memory"]["fits"] is True
    largest = roofline["memory"]["largest_batch_size"]
    assert estimate("--device", "A100-80GB", "--batch-size", largest)["roofline"]["memory"]["fits"] is True
    assert estimate("--device", "A100-80GB", "--batch-size", largest + 1)["roofline"]["memory"]["fits"] is False
    said = stagemeter("analyze", "--estimate", "--no-track", "--device", "A100-80GB").out
    assert f"up to batch {largest}" in said
    assert "pages/hour" in said


def test_unknown_device_is_refused_before_anything_is_written(refused):
    assert "Did you mean" in refused("analyze", "--estimate", "--device", "H1000-SXM")
    assert "bfloat16" in refused("analyze", "--estimate", "--device", "T4")
