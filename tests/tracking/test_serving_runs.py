"""Runs of a serving engine in a real store: the devices of a utilization, and its bounds."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

RECORDED = Path(__file__).parents[1] / "utilization" / "serving" / "recorded"
LLAMA = RECORDED / "llama.config.json"
SECONDS, PEAK = 20, 989e12


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-12, abs=0)


@pytest.fixture
def served(command, experiment, tmp_path):
    """Import the pages of a recorded scenario, pair them, and return the run and what was printed."""

    def run(
        scenario: str,
        *,
        imported: tuple[object, ...] = (),
        paired: tuple[object, ...] = (),
        pages: tuple[str, str] | None = None,
    ) -> tuple[dict, str, str]:
        files = [RECORDED / f"{scenario}.{page}.txt" for page in ("before", "after")]
        if pages is not None:
            files = [tmp_path / f"{scenario}.{page}.txt" for page in ("before", "after")]
            for file, page in zip(files, pages, strict=True):
                file.write_text(page)
        where = ("--model", LLAMA, "--experiment", experiment)
        code, out, err = command(
            "import-profile", *files, "--interval", SECONDS, "--device", "H100-SXM", *where, *imported
        )
        assert code == 0, err
        run_id = (
            MlflowClient().search_runs([MlflowClient().get_experiment_by_name(experiment).experiment_id])[0].info.run_id
        )
        code, paired_out, err = command("mfu", "--profile-run", run_id, *paired)
        assert code == 0, err
        return MlflowClient().get_run(run_id), out, paired_out

    return run


@pytest.fixture(autouse=True)
def counted(command, experiment, tmp_path):
    """Log a static run of the model at another length."""
    options = ("--estimate", "--model", LLAMA, "--seq-len", 64, "--new-tokens", 4, "--output-dir", tmp_path / "out")
    code, _, err = command("analyze", *options, "--experiment", experiment)
    assert code == 0, err


def artifact(run, name: str) -> dict:
    return json.loads(Path(MlflowClient().download_artifacts(run.info.run_id, name)).read_text())


def test_devices_are_the_engines_of_the_page(served):
    run, imported, paired = served("data_parallel_2")
    assert (run.data.params["devices"], run.data.params["devices_source"]) == (
        "2",
        "one for each engine in the metrics",
    )
    assert run.data.tags["stagemeter.devices"] == "2, one for each engine in the metrics"
    assert "2 devices (one for each engine in the metrics)" in imported
    assert "2 devices, one for each engine in the metrics: rates and utilization are of one" in paired
    assert "MFU of each of 2 devices" in paired
    assert "2 devices, one for each engine" in run.data.tags["mlflow.note.content"]
    pairing = artifact(run, "mfu.json")
    assert pairing["devices"] == {
        "count": 2,
        "engines": 2,
        "source": "one for each engine in the metrics",
        "per_request": 1,
    }
    engine = pairing["engine"]
    assert engine["mfu"] == close(engine["flops"] / (2 * SECONDS * PEAK))
    assert engine["engine_flops"] == 24_157_016_064
    assert engine["engine_mfu"] == close(24_157_016_064 / (2 * SECONDS * PEAK))
    assert run.data.metrics["mfu/engine"] == close(engine["mfu"])
    # A request ran on one device, so that the rows of the table are as if there were no other.
    row = pairing["stages"]["total"]
    assert row["mfu"] == close(row["flops"] / (row["time_ms"] / 1e3 * PEAK))


def test_several_devices_of_an_engine_share_a_request(served):
    alone, _, _ = served("mixed_lengths")
    run, _, paired = served("mixed_lengths", imported=("--devices", 4))
    assert run.data.tags["stagemeter.devices"] == "4, as given to import-profile"
    assert "4 devices, as given to import-profile, 4 on each request: rates and utilization are of one" in paired
    for metric in ("mfu/engine", "mfu/total", "mfu_causal/total", "mbu/total"):
        assert run.data.metrics[metric] == close(alone.data.metrics[metric] / 4)
    rows, rows_alone = (artifact(one, "mfu.json")["stages"] for one in (run, alone))
    assert rows["decode"]["tflops"] == close(rows_alone["decode"]["tflops"] / 4)
    assert rows["forward"]["gbps"] == close(rows_alone["forward"]["gbps"] / 4)
    assert run.data.metrics["roofline_ms/total"] == close(alone.data.metrics["roofline_ms/total"] / 4)
    assert run.data.metrics["roofline_fraction/total"] == close(alone.data.metrics["roofline_fraction/total"] / 4)
    # vLLM counts what one device of an engine does.
    assert artifact(run, "mfu.json")["engine"]["engine_flops"] == 4 * 22_706_479_104
    again, _, _ = served("mixed_lengths", imported=("--devices", 4), paired=("--devices", 2))
    assert again.data.tags["stagemeter.devices"] == "2, as given"
    assert again.data.metrics["mfu/engine"] == close(alone.data.metrics["mfu/engine"] / 2)


def test_two_devices_for_each_of_two_engines(served):
    run, _, _ = served("data_parallel_2", paired=("--devices", 4))
    pairing = artifact(run, "mfu.json")
    assert (pairing["devices"]["count"], pairing["devices"]["per_request"]) == (4, 2)
    row, engine = pairing["stages"]["total"], pairing["engine"]
    assert row["mfu"] == close(row["flops"] / (row["time_ms"] / 1e3 * 2 * PEAK))
    assert engine["mfu"] == close(engine["flops"] / (4 * SECONDS * PEAK))
    assert engine["engine_flops"] == 2 * 24_157_016_064


@pytest.mark.parametrize("devices", [3, 1, 0, -2])
def test_devices_that_engines_cannot_share_are_refused(command, devices):
    pages = [RECORDED / f"data_parallel_2.{page}.txt" for page in ("before", "after")]
    code, out, err = command("import-profile", *pages, "--model", LLAMA, "--devices", devices)
    assert (code, out) == (2, "")
    assert f"--devices: {devices} is impossible. Give a multiple of 2" in err


def test_devices_of_any_other_profile_are_one_unless_told(command, experiment, tmp_path):
    (tmp_path / "times.json").write_text('{"prefill": 30.0, "decode": 8.0}')
    where = ("--model", LLAMA, "--seq-len", 64, "--new-tokens", 4, "--experiment", experiment, "--json")
    pairings = []
    for devices in ((), ("--devices", 2)):
        code, out, err = command("import-profile", "times.json", "--device", "H100-SXM", *where, *devices)
        assert code == 0, err
        code, out, err = command("mfu", "--profile-run", json.loads(out)["run_id"], "--json")
        assert code == 0, err
        pairings.append(json.loads(out))
    one, two = pairings
    assert one["devices"] == {"count": 1, "engines": 1, "source": "assumed, as nothing says more", "per_request": 1}
    assert two["devices"]["source"] == "as given to import-profile"
    for stage in ("prefill", "decode", "total"):
        assert two["stages"][stage]["mfu"] == close(one["stages"][stage]["mfu"] / 2)
        assert two["stages"][stage]["flops"] == one["stages"][stage]["flops"]


def test_bounds_of_mixed_lengths_are_said_and_logged(served):
    run, imported, paired = served("mixed_lengths")
    engine = artifact(run, "mfu.json")["engine"]
    assert engine["flops_least"] <= 22_706_479_104 <= engine["flops_most"]
    assert run.data.metrics["mfu_least/engine"] == close(engine["flops_least"] / (SECONDS * PEAK))
    assert run.data.metrics["mfu_most/engine"] == close(engine["flops_most"] / (SECONDS * PEAK))
    assert engine["mfu_causal_most"] < run.data.metrics["mfu_most/engine"]
    assert "estimate from the mean lengths of requests" in imported
    assert "warning: FLOPs are an estimate from the mean lengths of 12 requests" in paired
    assert "(between" in paired
    assert "no HFU: what vLLM executed is not known" in paired
    assert not any(name.startswith("hfu/") for name in run.data.metrics)
    assert "FLOPs are an estimate from the mean lengths" in run.data.tags["stagemeter.flags"]


def test_tokens_from_a_cache_are_left_out(served):
    run, imported, _ = served("prefix_cache")
    assert "6688 of 9387 prompt tokens came from a cache" in imported
    pairing = artifact(run, "mfu.json")
    engine, row = pairing["engine"], pairing["stages"]["forward"]
    assert engine["flops_least"] <= 21_891_325_952 <= engine["flops_most"]
    assert row["flops"] * 12 < 25e9
    assert row["bytes_least"] < row["bytes"]
    assert any("6688 of 9387 prompt tokens came from a cache" in flag for flag in pairing["flags"])


def test_damaged_lengths_are_named(served, command):
    run, _, _ = served("mixed_lengths")
    MlflowClient().set_tag(run.info.run_id, "stagemeter.request_lengths", '{"prompt": 3}')
    code, out, err = command("mfu", "--profile-run", run.info.run_id)
    assert (code, out) == (2, "")
    assert "its tag stagemeter.request_lengths is damaged" in err


PAGES = Path(__file__).parents[1] / "profiling" / "readers" / "engines" / "pages"


def test_sglang_is_compared_with_visible_pairs(served):
    pages = tuple((PAGES / f"sglang.{page}.txt").read_text() for page in ("before", "after"))
    run, _, paired = served("sglang", pages=pages)
    engine = artifact(run, "mfu.json")["engine"]
    # The exact causal count of these requests, and what SGLang leaves out: 88 rows of the output head.
    assert engine["flops_causal_least"] <= 18_532_270_080 <= engine["flops_causal_most"]
    assert engine["engine_flops"] == 18_532_270_080 - 88 * 2 * 256 * 1024
    assert engine["difference"] == close(engine["engine_flops"] / engine["flops_causal"] - 1)
    assert "against ours by visible pairs" in paired
    assert "without output head, experts' router and vision encoder" in paired
    assert "no HFU: what SGLang executed is not known" in paired


def test_a_page_without_times_of_stages_has_the_utilization_of_the_devices(served):
    page = """
nv_inference_count{{model="llama",version="1"}} {0}
nv_inference_compute_infer_duration_us{{model="llama",version="1"}} {1}
"""
    pages = page.format(1, 5000), page.format(11, 905_000)
    run, imported, paired = served("triton", pages=pages, imported=("--seq-len", 100, "--new-tokens", 20))
    pairing = artifact(run, "mfu.json")
    assert pairing["stages"] == {}
    assert "Triton's page has no number of tokens: lengths are those that the options give" in imported
    assert "wall time of a request 90.0 ms;" in imported
    counts = pairing["counts"]["flops"]
    assert pairing["engine"]["flops"] == 10 * sum(counts.values())
    assert run.data.metrics["mfu/engine"] == close(10 * sum(counts.values()) / (SECONDS * PEAK))
    assert "10 requests in 20 s" in paired


SCENARIOS = json.loads((RECORDED / "scenarios.json").read_text(encoding="utf-8"))


def log_of(path: Path, rows: list[list[int]]) -> Path:
    lines = ["prompt_tokens,cached_tokens,output_tokens", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_log_of_the_requests_makes_it_exact(served, tmp_path):
    log = log_of(tmp_path / "log.csv", SCENARIOS["chunked_prefill"]["requests"])
    run, imported, paired = served("chunked_prefill", imported=("--requests", log))
    assert "estimate from the mean lengths" not in imported + paired
    assert "FLOPs are exact, those of the 6 requests of log.csv" in imported
    assert "(between" not in paired
    engine = artifact(run, "mfu.json")["engine"]
    assert (engine["flops"], engine["flops_causal"]) == (28_363_833_344, 22_588_465_152)
    assert engine["flops_least"] == engine["flops_most"] == 28_363_833_344
    assert engine["parts"] == {
        "output head on each chunk": 5_767_168,
        "chunks without the keys of later ones": -3_931_111_424,
    }
    assert "less ours: output head on each chunk +5.77 MFLOPs, chunks without the keys of later ones -3.93" in paired
    assert artifact(run, "profile.json")["served"]["log"] == "log.csv"


def test_log_can_come_with_the_pairing_and_stays(served, command, tmp_path):
    log = log_of(tmp_path / "log.csv", SCENARIOS["mixed_lengths"]["requests"])
    run, _, paired = served("mixed_lengths", paired=("--requests", log))
    assert "12 requests in 20 s: 22.7 GFLOPs" in paired
    assert "the engine's estimate less ours: no difference" in paired
    assert artifact(run, "mfu.json")["engine"]["flops"] == 22_706_479_104
    code, again, err = command("mfu", "--profile-run", run.info.run_id)
    assert code == 0, err
    assert "already holds this pairing" in err
    assert "the engine's estimate less ours: no difference" in again
    assert MlflowClient().get_run(run.info.run_id).data.tags["stagemeter.served_requests"] == "served_requests.json"
    MlflowClient().log_dict(run.info.run_id, {"log": 3}, "served_requests.json")
    code, out, err = command("mfu", "--profile-run", run.info.run_id)
    assert (code, out) == (2, "")
    assert "its tag stagemeter.served_requests is damaged" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "has 11 requests, and 12 finished between the scrapes: the log is shorter than"),
        (lambda rows: [*rows, rows[0]], "has 13 requests, and 12 finished between the scrapes: the log is longer than"),
        (lambda rows: [[51, 0, 10], *rows[1:]], "has 3,301 prompt tokens, and the page counted 3,300"),
        (lambda rows: [[50, 0, 9], *rows[1:]], "has 134 output tokens, and the page counted 135"),
        (lambda rows: [[50, 8, 10], *rows[1:]], "has 3,292 computed prompt tokens, and the page counted 3,300"),
    ],
)
def test_logs_of_other_requests_are_refused(command, tmp_path, change, message):
    log = log_of(tmp_path / "log.csv", change(SCENARIOS["mixed_lengths"]["requests"]))
    pages = [RECORDED / f"mixed_lengths.{page}.txt" for page in ("before", "after")]
    code, out, err = command("import-profile", *pages, "--model", LLAMA, "--requests", log)
    assert (code, out) == (2, "")
    assert message in err


def test_a_log_goes_with_requests_of_an_engine_alone(command, tmp_path):
    (tmp_path / "times.json").write_text('{"prefill": 30.0, "decode": 8.0}')
    log = log_of(tmp_path / "log.csv", [[9, 0, 2]])
    code, _, err = command("import-profile", tmp_path / "times.json", "--model", LLAMA, "--requests", log)
    assert code == 2
    assert "requests: means nothing with times that are not of a serving engine's requests" in err


def test_a_log_makes_the_work_of_spans_exact(command, experiment):
    """Whole prompts, since spans have no cached tokens. By hand, with S(S + 1)/2 pairs of a prompt: 13,576,818,688."""
    where = ("--model", LLAMA, "--device", "H100-SXM", "--experiment", experiment, "--json")
    code, out, err = command(
        "import-profile", PAGES / "vllm-spans.json", "--requests", PAGES / "vllm-spans.json", *where
    )
    assert code == 0, err
    served = json.loads(out)["served"]
    assert sum(served["flops"].values()) == 16_309_936_128
    assert sum(served["flops_causal"].values()) == 13_576_818_688
    code, out, err = command("mfu", "--profile-run", json.loads(out)["run_id"], "--json")
    assert code == 0, err
    assert json.loads(out)["engine"]["flops"] == 16_309_936_128


def test_a_default_model_with_longer_pages_than_prompts_is_named(command, tmp_path):
    pages = [tmp_path / "before.txt", tmp_path / "after.txt"]
    for page in pages:
        recorded = (RECORDED / f"dense_llama.{page.name}").read_text()
        page.write_text(recorded.replace("./llama", "deepseek-ai/DeepSeek-OCR"))
    code, out, err = command("import-profile", *pages)
    assert (code, out) == (2, "")
    assert "the prompts that were measured have 348 tokens, and a page takes 903 of deepseek-ocr. Give the model" in err
