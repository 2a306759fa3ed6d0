"""Profiles in a real store: measured or imported, paired with their counts, and paired again."""

import itertools
import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import requests
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from stagemeter import DeepSeekOCRSession, cli, pair_runs
from stagemeter.analysis.config import ProfileConfig
from stagemeter.application.mfu import pair_experiment
from stagemeter.application.profile import profile_page
from stagemeter.core.errors import StagemeterError
from stagemeter.hardware import measure
from stagemeter.hardware.roofline import Peak
from stagemeter.models.lookup import describe_model
from stagemeter.profiling.running import Session
from stagemeter.tracking import peaks

SMALL = ("--scale", "small", "--mode", "tiny", "--new-tokens", 4)
TIMES = {"sam": 31.7, "clip": 9.13, "projector": 0.217, "prefill": 27.9, "decode": 7.77}
QUANTITIES = ("mfu", "mbu", "roofline_ms")


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-12, abs=0)


@pytest.fixture
def analyzed(command, experiment, tmp_path):
    """Log a static run in the test's experiment, and return its report."""

    def run(*options: object) -> dict:
        arguments = ("--estimate", "--json", "--experiment", experiment, "--output-dir", tmp_path / "out")
        code, out, err = command("analyze", *arguments, *options)
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def imported(command, experiment, tmp_path):
    """Log times as a profiling run in the test's experiment, and return what the command printed."""

    def run(times: dict, *options: object) -> dict:
        file = tmp_path / "times.json"
        file.write_text(json.dumps(times))
        code, out, err = command("import-profile", file, "--json", "--experiment", experiment, *options)
        assert code == 0, err
        return json.loads(out)

    return run


def run_of(run_id: str):
    return MlflowClient().get_run(run_id)


def steps_of(run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient().get_metric_history(run_id, metric)]


# Profiles


@pytest.fixture(scope="module")
def profiled(new_store, tmp_path_factory):
    """Measure a profile of the small model once by the real command; return the store and what was printed."""
    folder = tmp_path_factory.mktemp("profiled")
    uri = new_store(folder)
    done = subprocess.run(
        [sys.executable, "-m", "stagemeter", "profile", *map(str, SMALL), "--repeats", "3", "--json"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return uri, json.loads(done.stdout)


def test_profile_is_logged_with_every_repeat_and_shows_the_median(profiled, monkeypatch):
    uri, printed = profiled
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run = run_of(printed["run_id"])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny 83+4 tokens on cpu, deepseek-ocr-small"
    for stage in (*TIMES, "decode_total"):
        history = steps_of(printed["run_id"], f"time_ms/{stage}")
        repeats = printed["times_ms"][stage]
        assert history == [*enumerate(repeats), (3, sorted(repeats)[1])]
        assert run.data.metrics[f"time_ms/{stage}"] == printed["time_ms"][stage]
        deciles = [printed["spread_ms"][stage][name] for name in ("p10", "p90")]
        assert min(repeats) <= deciles[0] <= printed["time_ms"][stage] <= deciles[1] <= max(repeats)
    assert run.data.metrics["time_ms/total"] == pytest.approx(
        sum(printed["time_ms"][stage] for stage in ("sam", "clip", "projector", "prefill", "decode_total"))
    )
    assert 0 < run.data.metrics["time_share/stages_of_request"] <= 1
    assert run.data.metrics["memory/peak"] > 1e8
    assert run.data.metrics["tokens_per_second/decode"] == pytest.approx(1e3 / printed["time_ms"]["decode"])
    assert all(printed["metrics"][f"harness_overhead/{stage}"] > 0 for stage in TIMES)
    assert next(name for name in run.data.metrics if not name.startswith("system/")) == "time_ms/total"


def test_profile_says_what_was_run_and_on_what(profiled, monkeypatch):
    uri, printed = profiled
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run = run_of(printed["run_id"])
    params = run.data.params
    assert {key: params[key] for key in ("model", "mode", "new_tokens", "prompt_tokens", "repeats", "weights")} == {
        "model": "deepseek-ocr-small",
        "mode": "tiny",
        "new_tokens": "4",
        "prompt_tokens": "83",
        "repeats": "3",
        "weights": "random",
    }
    assert params["device"] == "auto"
    assert params["device_name"] == run.data.tags["stagemeter.hardware.device"] == printed["hardware"]["device"]
    assert run.data.tags["stagemeter.kind"] == "profile"
    assert printed["hardware"]["torch"]
    headline, _, table, *_ = note = run.data.tags["mlflow.note.content"].splitlines()
    assert re.match(r"\*\*[\d.]+ (ms|s)\*\* a request\. deepseek-ocr-small: ", headline)
    assert table.startswith("|Stage")
    assert "|sam" in table
    (trace,) = (line for line in note if line.startswith("Trace: save "))
    assert f"(get-artifact?path=trace.json.gz&run_uuid={printed['run_id']})" in trace
    assert "[Perfetto](https://ui.perfetto.dev)" in trace
    artifacts = {artifact.path for artifact in MlflowClient().list_artifacts(printed["run_id"])}
    assert artifacts == {"profile.json", "profile.md", "trace.json.gz"}
    assert any(name.startswith("system/") for name in run.data.metrics)


def test_own_trace_can_be_brought_in_again(profiled, monkeypatch, command):
    uri, printed = profiled
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    trace = mlflow.artifacts.download_artifacts(run_id=printed["run_id"], artifact_path="trace.json.gz")
    code, out, err = command("import-profile", trace, *SMALL, "--json")
    assert code == 0, err
    again = json.loads(out)
    assert again["metadata"]["workload_hash"] == printed["metadata"]["workload_hash"]
    assert set(again["times_ms"]) == set(printed["times_ms"])
    assert any("prefill contains" in note for note in again["notes"])
    # Not held against the times of the harness: the trace is of one traced generation, on a machine that others use.
    assert all(times and min(times) > 0 for times in again["times_ms"].values())
    assert again["time_ms"]["total"] == pytest.approx(
        sum(again["time_ms"][stage] for stage in ("sam", "clip", "projector", "prefill", "decode_total"))
    )


def test_own_document_can_be_brought_in_again(profiled, monkeypatch, command):
    uri, printed = profiled
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    document = mlflow.artifacts.download_artifacts(run_id=printed["run_id"], artifact_path="profile.json")
    code, out, err = command("import-profile", document, *SMALL, "--json")
    assert code == 0, err
    again = json.loads(out)
    assert (again["times_ms"], again["time_ms"]) == (printed["times_ms"], printed["time_ms"])
    assert again["hardware"] == printed["hardware"]


@pytest.mark.slow
def test_measured_peak_is_kept_with_the_run(profiled, monkeypatch, command, tmp_path):
    uri, printed = profiled
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert command("analyze", "--estimate", *SMALL, "--output-dir", tmp_path / "out")[0] == 0
    first = pair_runs(printed["run_id"], device="measured")
    assert set(first["stages"]) == {*TIMES, "vision", "total"}
    assert all(0 < row["mfu"] < 1 for row in first["stages"].values())
    assert first["peak"]["name"] == printed["hardware"]["device"]
    assert "measured" in first["peak"]["source"]
    # Measured anew it would come out a little different.
    second = pair_runs(printed["run_id"], device="measured")
    assert (first["changed"], second["changed"]) == (True, False)
    assert {**first, "changed": None} == {**second, "changed": None}


def test_what_a_session_ran_has_an_hfu_and_what_others_timed_has_none(profiled, monkeypatch, command, tmp_path):
    uri, printed = profiled
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    measured = pair_runs(printed["run_id"], peak_tflops=1)
    assert measured["no_hfu"] == ""
    for stage, row in measured["stages"].items():
        assert row["hfu"] == row["mfu"], stage
    assert run_of(printed["run_id"]).data.metrics["hfu/total"] == measured["stages"]["total"]["hfu"]
    (tmp_path / "times.json").write_text(json.dumps(TIMES))
    code, out, err = command("import-profile", tmp_path / "times.json", *SMALL, "--json")
    assert code == 0, err
    imported = json.loads(out)["run_id"]
    code, out, err = command("mfu", "--profile-run", imported, "--peak-tflops", 1)
    assert code == 0, err
    assert "no HFU: the source, times in times.json, does not say what ran" in out
    run = run_of(imported)
    assert "no HFU: the source, times in" in run.data.tags["mlflow.note.content"]
    assert not any(name.startswith("hfu/") for name in run.data.metrics)


@pytest.mark.slow
def test_interrupted_profile_is_killed_and_keeps_what_was_measured(experiment, runs, tmp_path):
    arguments = ["profile", *map(str, SMALL), "--repeats", "10000", "-v", "--experiment", experiment]
    process = subprocess.Popen(
        [sys.executable, "-m", "stagemeter", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test session in the background of a shell ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if "repeat 2 of 10000" in line:
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=60)
    err = "".join(said) + rest
    assert process.returncode == cli.INTERRUPTED, err
    assert err.splitlines()[-1] == "error: interrupted"
    (run,) = runs()
    assert run.info.status == "KILLED"
    history = steps_of(run.info.run_id, "time_ms/prefill")
    assert len(history) > 1
    kept = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="profile.json")
    document = json.loads(Path(kept).read_text())
    assert len(document["times_ms"]["prefill"]) == len(history) - 1
    assert any("interrupted" in note for note in document["notes"])


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["gpu", "cpu"],
)
def test_memory_that_runs_out_is_said_and_fails_the_run(command, experiment, runs, monkeypatch, error):
    def no_memory(*args, **kwargs):
        raise error

    monkeypatch.setattr(Session, "run", no_memory)
    code, out, err = command("profile", *SMALL, "--experiment", experiment)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: --device: cpu ran out of memory")
    assert "Traceback" not in err
    assert [run.info.status for run in runs()] == ["FAILED"]


def test_store_that_goes_away_does_not_take_the_times_along(command, experiment, runs, monkeypatch):
    def gone(*args, **kwargs):
        raise MlflowException("connection lost")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", gone)
        options = ("--repeats", 1, "--trace", "none", "--json", "--experiment", experiment)
        code, out, err = command("profile", *SMALL, *options)
    assert code == cli.NO_STORE
    assert json.loads(out)["time_ms"]["total"] > 0
    assert "connection lost" in err.splitlines()[-1]
    assert [run.info.status for run in runs()] == ["FAILED"]


def test_other_errors_are_not_taken_for_want_of_memory(experiment, runs, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Session, "run", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        profile_page(ProfileConfig(model="deepseek-ocr-small", mode="tiny", new_tokens=2), experiment=experiment)
    assert [run.info.status for run in runs()] == ["FAILED"]


# Pairing


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("mode", ["tiny", "gundam"])
def test_given_times_give_the_utilization_one_computes_by_hand(analyzed, imported, command, mode, batch):
    options = ("--mode", mode, "--batch-size", batch)
    report = analyzed(*options)
    profile = imported(TIMES, *options)["run_id"]
    code, out, err = command("mfu", "--profile-run", profile, "--peak-tflops", 312, "--peak-gbps", 2039, "--json")
    assert code == 0, err
    paired = json.loads(out)
    logged = run_of(profile).data.metrics
    for stage in ("sam", "clip", "projector", "prefill", "decode"):
        counted = report["stages"][stage]
        by_hand = counted["flops"] / (TIMES[stage] / 1000) / 312e12
        assert paired["stages"][stage]["mfu"] == close(by_hand)
        assert logged[f"mfu/{stage}"] == close(by_hand)
    for stage, row in paired["stages"].items():
        for quantity in QUANTITIES:
            assert logged[f"{quantity}/{stage}"] == row[quantity]
    assert run_of(paired["static_run_id"]).data.tags["stagemeter.kind"] == "static"
    assert paired["profile_run_id"] == profile


def test_paired_run_shows_table_picture_and_links(analyzed, imported):
    analyzed()
    profile = imported(TIMES)["run_id"]
    paired = pair_runs(profile, peak_tflops=312, peak_gbps=2039)
    run = run_of(profile)
    artifacts = {artifact.path for artifact in MlflowClient().list_artifacts(profile)}
    assert artifacts == {"profile.json", "profile.md", "mfu.json", "mfu.md", "roofline.png", "roofline.html"}
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**MFU ")
    assert note.count("** a request. ") == 1
    assert f"#/experiments/{run.info.experiment_id}/runs/{paired['static_run_id']}" in note
    assert run.data.tags["stagemeter.static_run_id"] == paired["static_run_id"]
    assert run.data.tags["stagemeter.peak"] == paired["peak"]["name"]
    assert run_of(paired["static_run_id"]).data.tags["stagemeter.profile_runs"].split(",") == [profile]
    page = Path(mlflow.artifacts.download_artifacts(run_id=profile, artifact_path="roofline.html")).read_text()
    # Everything that it needs is in it.
    assert '<script src="http' not in page
    assert "projector" in page
    stored = json.loads(Path(mlflow.artifacts.download_artifacts(run_id=profile, artifact_path="mfu.json")).read_text())
    assert stored["stages"] == paired["stages"]


def test_pairing_twice_changes_nothing(analyzed, imported):
    analyzed()
    profile = imported(TIMES)["run_id"]
    first = pair_runs(profile, peak_tflops=312, peak_gbps=2039)
    before = (run_of(profile).data.to_dictionary(), steps_of(profile, "mfu/sam"))
    static_before = run_of(first["static_run_id"]).data.to_dictionary()
    second = pair_runs(profile, peak_tflops=312, peak_gbps=2039)
    assert (run_of(profile).data.to_dictionary(), steps_of(profile, "mfu/sam")) == before
    assert run_of(first["static_run_id"]).data.to_dictionary() == static_before
    assert (first.pop("changed"), second.pop("changed")) == (True, False)
    assert first == second


def test_another_peak_replaces_the_numbers_and_the_description(analyzed, imported):
    analyzed()
    profile = imported(TIMES)["run_id"]
    first = pair_runs(profile, peak_tflops=312, peak_gbps=2039)
    second = pair_runs(profile, peak_tflops=156, peak_gbps=2039)
    run = run_of(profile)
    assert run.data.metrics["mfu/sam"] == close(2 * first["stages"]["sam"]["mfu"])
    assert run.data.metrics["mfu/sam"] == second["stages"]["sam"]["mfu"]
    note = run.data.tags["mlflow.note.content"]
    assert (note.count("**MFU "), note.count("** a request. ")) == (1, 1)


def test_what_a_new_pairing_does_not_know_does_not_stay_beside_it(analyzed, imported):
    analyzed()
    profile = imported(TIMES)["run_id"]
    pair_runs(profile, peak_tflops=312, peak_gbps=2039)
    pair_runs(profile, peak_tflops=312)
    run = run_of(profile)
    assert math.isnan(run.data.metrics["mbu/sam"])
    assert math.isnan(run.data.metrics["roofline_ms/total"])
    assert run.data.metrics["mfu/sam"] > 0
    artifacts = {artifact.path for artifact in MlflowClient().list_artifacts(profile)}
    assert artifacts == {"profile.json", "profile.md", "mfu.json", "mfu.md"}


def test_peak_of_another_device_is_said(analyzed, imported):
    analyzed()
    profile = imported(TIMES, "--device", "A100-SXM-80GB")["run_id"]

    def about_the_device(**options) -> list[str]:
        return [flag for flag in pair_runs(profile, **options)["flags"] if "peak" in flag]

    assert about_the_device() == []
    assert about_the_device(device="A100-80GB") == []
    assert about_the_device(peak_tflops=312) == []
    assert about_the_device(device="H100-SXM") == ["the run names A100-SXM-80GB, and the peak is that of H100-SXM"]


def test_device_is_looked_up_and_remembered_from_the_import(analyzed, imported):
    analyzed()
    profile = imported(TIMES, "--device", "A100-SXM-80GB")["run_id"]
    paired = pair_runs(profile)
    assert (paired["peak"]["name"], paired["peak"]["tflops"]) == ("A100-SXM-80GB", 312.0)
    other = pair_runs(profile, device="H100-SXM")
    assert other["stages"]["sam"]["mfu"] == close(paired["stages"]["sam"]["mfu"] * 312 / 989)


def test_other_length_tokens_and_batch_are_evaluated_by_the_closed_form(analyzed, imported, command, tmp_path):
    analyzed("--mode", "base")
    measured = ("--mode", "base", "--seq-len", 700, "--new-tokens", 100, "--batch-size", 2)
    profile = imported(TIMES, *measured)["run_id"]
    paired = pair_runs(profile, peak_tflops=312)
    assert paired["counts"]["source"] == "closed form of the static report"
    assert paired["counts"]["differences"] == {
        "prompt_tokens": [283, 700],
        "new_tokens": [512, 100],
        "batch_size": [1, 2],
    }
    report = analyzed(*measured)
    assert paired["stages"]["prefill"]["flops"] == report["stages"]["prefill"]["flops"]
    exact = pair_runs(profile, peak_tflops=312)
    assert exact["counts"]["source"] == "static report"
    assert exact["static_run_id"] != paired["static_run_id"]
    assert exact["stages"] == paired["stages"]


def test_newest_of_several_equal_static_runs_is_taken(analyzed, imported, runs):
    analyzed()
    analyzed()
    newest = runs()[0].info.run_id
    assert pair_runs(imported(TIMES)["run_id"], peak_tflops=1)["static_run_id"] == newest


def test_counts_that_are_not_there_are_made_and_logged(imported, analyzed, command, runs):
    counted = analyzed("--mode", "tiny", "--scale", "small")
    profile = imported(TIMES, "--base-size", 832, "--no-crop", "--scale", "small")["run_id"]
    code, out, err = command("mfu", "--profile-run", profile, "--peak-tflops", 1)
    assert code == 0, err
    assert "no static run had these counts: that run was made for this work" in out
    (made,) = [run for run in runs() if "stagemeter.counted_for" in run.data.tags]
    assert made.info.status == "FINISHED"
    assert made.data.tags["stagemeter.counted_for"] == profile
    assert made.data.tags["stagemeter.kind"] == "static"
    assert made.data.tags["stagemeter.profile_runs"] == profile
    report = analyzed("--base-size", 832, "--no-crop", "--scale", "small")
    assert made.data.tags["stagemeter.workload_hash"] == report["metadata"]["workload_hash"]
    assert made.data.metrics["flops/total"] == report["total"]["flops"] != counted["total"]["flops"]
    paired = run_of(profile)
    assert paired.data.tags["stagemeter.static_run_id"] == made.info.run_id
    assert "that run was made for this work" in Path(MlflowClient().download_artifacts(profile, "mfu.md")).read_text()


def test_counts_are_made_once_and_found_again(imported, command, runs):
    profiles = [imported(TIMES, "--scale", "small", "--base-size", 896, "--no-crop")["run_id"] for _ in range(2)]
    pairings = [pair_runs(profile, peak_tflops=1) for profile in profiles]
    assert len({pairing["static_run_id"] for pairing in pairings}) == 1
    assert all(pairing["counts"]["made_for_pairing"] for pairing in pairings)
    assert not pair_runs(profiles[0], peak_tflops=1)["changed"]
    assert len([run for run in runs() if run.data.tags["stagemeter.kind"] == "static"]) == 1


# A vocabulary for each model that disappears: a store is shared, and a run of another test could count its work.
VOCABULARIES = itertools.count(1001)


@pytest.fixture
def orphan(imported, small_model):
    """Log a profiling run of a model that is gone, and that no other test counts."""
    config = json.loads((small_model / "config.json").read_text())
    config["language_config"]["vocab_size"] = next(VOCABULARIES)
    (small_model / "config.json").write_text(json.dumps(config))
    run = imported(TIMES, "--model", small_model, "--mode", "base", "--page-size", "500x500")["run_id"]
    (small_model / "config.json").rename(small_model / "gone.json")
    return run


def test_work_that_cannot_be_counted_is_named_and_the_closest_are(orphan, analyzed, command, small_model, runs):
    (small_model / "gone.json").rename(small_model / "config.json")
    analyzed("--mode", "tiny", "--model", small_model)
    (small_model / "config.json").rename(small_model / "gone.json")
    code, out, err = command("mfu", "--profile-run", orphan, "--peak-tflops", 1)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert "base_size (512, measured 1024)" in line
    assert f"`stagemeter analyze --page-size 500x500 --model {small_model} --mode base`" in line
    assert "it cannot be counted by closed form here" in line
    assert "mfu/sam" not in run_of(orphan).data.metrics
    assert not [run for run in runs() if "stagemeter.counted_for" in run.data.tags]


def test_model_that_has_changed_is_not_counted(orphan, small_model, command):
    config = json.loads((small_model / "gone.json").read_text())
    config["language_config"]["hidden_size"] *= 2
    (small_model / "config.json").write_text(json.dumps(config))
    code, out, err = command("mfu", "--profile-run", orphan, "--peak-tflops", 1)
    assert (code, out) == (2, "")
    assert "its sizes are not those that were measured" in err


def test_static_run_named_by_hand_is_evaluated_whatever_the_page(imported, analyzed, runs):
    analyzed("--mode", "large", "--scale", "small")
    static = runs()[0].info.run_id
    profile = imported(TIMES, "--mode", "tiny", "--scale", "small")["run_id"]
    paired = pair_runs(profile, static, peak_tflops=1)
    report = analyzed("--mode", "tiny", "--scale", "small")
    assert paired["stages"]["sam"]["flops"] == report["stages"]["sam"]["flops"]
    assert paired["counts"]["differences"]["base_size"] == [1280, 512]


def test_static_run_of_another_model_is_refused(imported, analyzed, runs):
    analyzed("--mode", "tiny")
    static = runs()[0].info.run_id
    profile = imported(TIMES, "--mode", "tiny", "--scale", "small")["run_id"]
    with pytest.raises(StagemeterError, match="not a static run of the same model"):
        pair_runs(profile, static, peak_tflops=1)


def test_only_a_static_run_counts(imported):
    first, second = imported(TIMES)["run_id"], imported(TIMES)["run_id"]
    with pytest.raises(StagemeterError, match=r"is a profile run\. Give a run of `stagemeter analyze`"):
        pair_runs(first, second, peak_tflops=1)


def test_checkpoint_is_run_with_its_own_weights(command, experiment, runs, tmp_path):
    session = DeepSeekOCRSession.from_config(describe_model("deepseek-ocr-small").architecture, "cpu")
    folder = tmp_path / "checkpoint"
    session.model.save_pretrained(folder)
    options = ("--repeats", 1, "--trace", "none", "--experiment", experiment)
    code, _, err = command("profile", "--weights", folder, "--mode", "tiny", "--new-tokens", 2, *options)
    assert code == 0, err
    (run,) = runs()
    assert run.data.params["weights"] == run.data.params["model"] == str(folder)
    assert run.data.tags["stagemeter.architecture_hash"] == session.architecture.hash


@pytest.mark.parametrize("kind", ["mixtral", "granitemoe"])
def test_any_model_is_profiled_and_paired_with_counts_that_are_made_for_it(command, experiment, runs, tmp_path, kind):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    rest = {"intermediate_size": 96, "vocab_size": 128, "num_local_experts": 8, "num_experts_per_tok": 2}
    name = {"mixtral": "MixtralForCausalLM", "granitemoe": "GraniteMoeForCausalLM"}[kind]
    config = {"model_type": kind, "architectures": [name], "max_position_embeddings": 256, **sizes, **rest}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = ("--seq-len", 20, "--new-tokens", 3, "--repeats", 1, "--trace", "none", "--experiment", experiment)
    code, out, err = command("profile", "--model", tmp_path, *options, "--json")
    assert code == 0, err
    printed = json.loads(out)
    assert set(printed["time_ms"]) == {"prefill", "decode", "decode_total", "total"}
    assert printed["metadata"]["family"] == {"mixtral": "mixtral", "granitemoe": "generic"}[kind]
    paired = pair_runs(printed["run_id"], peak_tflops=1, peak_gbps=50)
    assert paired["workload_hash"] == printed["metadata"]["workload_hash"]
    assert set(paired["stages"]) == {"prefill", "decode", "total"}
    assert set(paired["counts"]["experts_read"]) == {"prefill", "decode"}


def test_runs_are_found_by_name(imported, analyzed):
    analyzed("--run-name", "counts-by-name")
    imported(TIMES, "--run-name", "times-by-name")
    paired = pair_runs("times-by-name", "counts-by-name", peak_tflops=1)
    assert run_of(paired["static_run_id"]).info.run_name == "counts-by-name"


@pytest.mark.parametrize(
    ("model", "times"),
    [
        ("qwen2.5-vl-7b", {"vit": 30.0, "merger": 2.0, "prefill": 20.0, "decode": 7.0}),
        ("qwen2.5-vl-7b", {"vision": 32.0, "prefill": 20.0, "decode": 7.0}),
        ("florence-2-base", {"forward": 50.0, "decode": 7.0}),
    ],
    ids=["stages", "vision", "forward"],
)
def test_times_of_any_family_are_brought_in_and_paired(imported, analyzed, model, times):
    options = ("--model", model, "--new-tokens", 4)
    analyzed(*options)
    printed = imported(times, *options)
    whole = sum(times.values()) - times["decode"] + 3 * times["decode"]
    assert printed["time_ms"]["total"] == close(whole)
    paired = pair_runs(printed["run_id"], peak_tflops=312, peak_gbps=2039)
    assert set(paired["stages"]) >= {*times, "total"}
    assert paired["stages"]["total"]["time_ms"] == close(whole)


def test_long_workload_is_read_from_the_documents(imported, analyzed, runs):
    pages = [option for number in range(80) for option in ("--page-size", f"{280 + 28 * number}x280")]
    options = ("--model", "qwen2.5-vl-7b", *pages)
    report = analyzed(*options, "--new-tokens", 4)
    (static,) = runs()
    times = {"vision": 32.0, "prefill": 20.0, "decode": 7.0}
    for tokens in (4, 6):
        # The second one is no equal work: its workload is compared with that of each static run.
        profile = imported(times, *options, "--new-tokens", tokens)["run_id"]
        paired = pair_runs(profile, peak_tflops=312)
        assert paired["static_run_id"] == static.info.run_id
        assert paired["counts"]["flops"]["prefill"] == report["stages"]["prefill"]["flops"]
    # Earlier versions named the documents in a tag.
    for run_id, file in ((static.info.run_id, "static_compute.json"), (profile, "profile.json")):
        MlflowClient().set_tag(run_id, "stagemeter.workload", file)
    assert pair_runs(profile, peak_tflops=156)["static_run_id"] == static.info.run_id
    document = MlflowClient().download_artifacts(profile, "profile.json")
    damaged = json.loads(Path(document).read_text())
    damaged["metadata"]["workload"]["new_tokens"] = 7
    MlflowClient().log_dict(profile, damaged, "profile.json")
    with pytest.raises(StagemeterError, match="is not the report that was logged to it"):
        pair_runs(profile, peak_tflops=312)


def test_stage_of_another_family_is_refused(command, tmp_path):
    file = tmp_path / "times.json"
    file.write_text('{"sam": 1.0, "prefill": 2.0}')
    code, _, err = command("import-profile", file, "--model", "qwen2.5-vl-7b")
    assert code == 2
    assert "'sam' is no stage" in err


def test_missing_stage_is_named_and_has_no_metric(imported, analyzed, command):
    analyzed()
    profile = imported({"sam": 30.0, "prefill": 28.0})["run_id"]
    code, out, err = command("mfu", "--profile-run", profile, "--peak-tflops", 312)
    assert code == 0, err
    assert "missing: clip: no time: it was not measured" in out
    assert {name for name in run_of(profile).data.metrics if name.startswith("mfu/")} == {"mfu/sam", "mfu/prefill"}


def test_experts_that_a_profile_counted_are_those_that_are_paired(profiled, monkeypatch, command, tmp_path):
    uri, printed = profiled
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    logged = run_of(printed["run_id"]).data.metrics
    ran = {stage: logged[f"experts_read/{stage}"] for stage in ("prefill", "decode")}
    assert ran["decode"] == 2
    assert 2 < ran["prefill"] <= 8
    assert command("analyze", "--estimate", *SMALL, "--output-dir", tmp_path / "out")[0] == 0
    paired = pair_runs(printed["run_id"], peak_tflops=1, peak_gbps=50)
    assert paired["counts"]["experts_read"] == ran
    assert all(row["bytes"] == row["bytes_least"] for row in paired["stages"].values())
    # The document keeps them, so that the profile can be brought in elsewhere.
    document = mlflow.artifacts.download_artifacts(run_id=printed["run_id"], artifact_path="profile.json")
    code, out, err = command("import-profile", document, *SMALL, "--json")
    assert code == 0, err
    assert pair_runs(json.loads(out)["run_id"], peak_tflops=1, peak_gbps=50)["stages"] == paired["stages"]


def test_what_people_wrote_into_the_description_stays(imported, analyzed):
    analyzed()
    profile = imported(TIMES)["run_id"]
    client, note = MlflowClient(), "mlflow.note.content"
    client.set_tag(profile, note, "Before: fans were off.\n\n" + run_of(profile).data.tags[note] + "\nAfter: again?")
    first = pair_runs(profile, peak_tflops=312)
    client.set_tag(profile, note, "On top: see ticket 7.\n\n" + run_of(profile).data.tags[note])
    pair_runs(profile, peak_tflops=156)
    text = run_of(profile).data.tags[note]
    assert [
        text.count(part) for part in ("Before: fans", "After: again", "On top: see", "**MFU ", "** a request. ")
    ] == [1] * 5
    assert f"{100 * first['stages']['total']['mfu']:.3g}" not in text.partition("** a request. ")[0]
    # Without anything of ours in it, the pairing goes on top.
    client.set_tag(profile, note, "All mine.")
    pair_runs(profile, peak_tflops=78)
    assert run_of(profile).data.tags[note].startswith("**MFU ")
    assert run_of(profile).data.tags[note].endswith("\n\nAll mine.")


# Damaged runs


@pytest.mark.parametrize(
    "value",
    ["", "{}", "nonsense", "[1]", '{"batch_size": 1}'],
    ids=["empty", "no-field", "no-json", "list", "one-field"],
)
def test_damaged_run_is_named_and_stops_no_other(imported, analyzed, experiment, command, value):
    analyzed()
    sound, damaged = imported(TIMES)["run_id"], imported(TIMES)["run_id"]
    MlflowClient().set_tag(damaged, "stagemeter.workload", value)
    code, out, err = command("mfu", "--experiment", experiment, "--peak-tflops", 312, "--json")
    assert code == 0, err
    assert [pairing["profile_run_id"] for pairing in json.loads(out)["pairings"]] == [sound]
    assert f"not paired: run {damaged}: its tag stagemeter.workload is damaged" in err


def test_workload_of_an_odd_data_type_is_named(imported, analyzed, command):
    analyzed()
    damaged = imported(TIMES)["run_id"]
    document = json.loads(Path(MlflowClient().download_artifacts(damaged, "profile.json")).read_text())
    workload = json.dumps(document["metadata"]["workload"]).replace("bfloat16", "int3")
    MlflowClient().set_tag(damaged, "stagemeter.workload", workload)
    code, _, err = command("mfu", "--profile-run", damaged, "--peak-tflops", 312)
    assert code == 2
    assert "its tag stagemeter.workload is damaged (dtype: " in err


def test_run_without_a_model_is_named_and_stops_no_other(imported, analyzed, experiment):
    analyzed()
    sound, damaged = imported(TIMES)["run_id"], imported(TIMES)["run_id"]
    MlflowClient().delete_tag(damaged, "stagemeter.architecture_hash")
    pairings, failures = pair_experiment(experiment, peak_tflops=312)
    assert [pairing["profile_run_id"] for pairing in pairings] == [sound]
    assert "does not say which model" in failures[damaged]


def test_damaged_static_run_is_passed_over(imported, analyzed, runs, caplog):
    options = ("--mode", "base", "--scale", "small", "--page-size", "700x701")
    analyzed(*options)
    sound = runs()[0].info.run_id
    analyzed(*options, "--new-tokens", 9)
    damaged = runs()[0].info.run_id
    MlflowClient().set_tag(damaged, "stagemeter.workload", "{}")
    profile = imported(TIMES, *options, "--new-tokens", 77)["run_id"]
    assert pair_runs(profile, peak_tflops=312)["static_run_id"] == sound
    assert f"run {damaged}" in caplog.text


@pytest.mark.parametrize("lost", ["stages", "closed_form", "agreement"])
def test_damaged_report_is_named(imported, analyzed, runs, tmp_path, lost):
    report = analyzed()
    static = runs()[0].info.run_id
    del report[lost]
    file = tmp_path / "static_compute.json"
    file.write_text(json.dumps(report))
    MlflowClient().log_artifact(static, str(file))
    profile = imported(TIMES)["run_id"]
    with pytest.raises(StagemeterError, match=rf"static_compute.json is damaged \(at \$.{lost}: Field required"):
        pair_runs(profile, static, peak_tflops=312)


# Measured peaks


def test_machine_is_measured_once_for_all_runs(imported, analyzed, experiment, monkeypatch):
    measured = []

    def measure_peak(target: str, dtype: str) -> object:
        measured.append((target, dtype))
        return measure.MeasuredPeak(Peak("here", dtype, 5e11, 4e10, "measured: test"), {}, {})

    monkeypatch.setattr(measure, "measure_peak", measure_peak)
    peaks._measure.cache_clear()
    analyzed()
    for sam in (30.0, 31.0, 32.0):
        imported({**TIMES, "sam": sam})
    pairings, failures = pair_experiment(experiment, device="measured")
    assert (len(pairings), failures, len(measured)) == (3, {}, 1)
    assert all("does not say what it ran on" in "".join(pairing["flags"]) for pairing in pairings)
    # Kept with each run: another process does not measure again.
    peaks._measure.cache_clear()
    again, _ = pair_experiment(experiment, device="measured")
    assert [pairing["changed"] for pairing in again] == [False] * 3
    assert len(measured) == 1


def test_kept_peak_counts_where_the_device_is_not_known(imported, analyzed, tmp_path):
    analyzed()
    profile = imported(
        {"source": "test", "clock": "test", "times_ms": {"sam": [3.0]}, "hardware": {"device": "Abacus 9"}}
    )
    kept = {"name": "Abacus 9", "dtype": "bfloat16", "tflops": 2.0, "gbps": 10.0, "source": "measured: beads"}
    with pytest.raises(StagemeterError, match="ran on Abacus 9, whose peak is not known"):
        pair_runs(profile["run_id"])
    with pytest.raises(StagemeterError, match=r"ran on Abacus 9\. Pair it there"):
        pair_runs(profile["run_id"], device="measured")
    MlflowClient().set_tag(profile["run_id"], "stagemeter.measured_peak", json.dumps(kept))
    paired = pair_runs(profile["run_id"])
    assert paired["peak"] == kept
    assert not [flag for flag in paired["flags"] if "the peak is that of" in flag]
    MlflowClient().set_tag(profile["run_id"], "stagemeter.measured_peak", "{")
    with pytest.raises(StagemeterError, match="measured_peak is damaged"):
        pair_runs(profile["run_id"])


# A whole experiment


def test_experiment_is_paired_at_once_and_those_that_cannot_be_are_named(
    imported, analyzed, experiment, command, orphan
):
    analyzed()
    paired = [imported({**TIMES, "sam": 30.0 + number})["run_id"] for number in range(3)]
    alone = orphan
    told = []
    pairings, failures = pair_experiment(experiment, peak_tflops=312, on_run=lambda *done: told.append(done))
    assert {pairing["profile_run_id"] for pairing in pairings} == set(paired)
    assert list(failures) == [alone]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    static = run_of(pairings[0]["static_run_id"])
    assert set(static.data.tags["stagemeter.profile_runs"].split(",")) == set(paired)
    code, out, err = command("mfu", "--experiment", experiment, "--peak-tflops", 312, "--json")
    assert code == 0
    assert f"not paired: run {alone} (" in err
    assert [pairing["changed"] for pairing in json.loads(out)["pairings"]] == [False] * 3


def test_picture_that_an_experiment_left_out_is_drawn_when_asked_for(imported, analyzed, experiment):
    analyzed()
    profile = imported(TIMES)["run_id"]

    def pictures() -> set[str]:
        return {artifact.path for artifact in MlflowClient().list_artifacts(profile) if "roofline" in artifact.path}

    pair_experiment(experiment, peak_tflops=312, peak_gbps=2039)
    assert pictures() == set()
    assert pair_runs(profile, peak_tflops=312, peak_gbps=2039)["changed"]
    assert pictures() == {"roofline.png", "roofline.html"}
    ((again,), _) = pair_experiment(experiment, peak_tflops=312, peak_gbps=2039)
    assert not again["changed"]
    assert pictures() == {"roofline.png", "roofline.html"}


def test_params_are_those_of_what_was_measured(imported, tmp_path):
    events = [{"ph": "X", "cat": "user_annotation", "name": "prefill", "ts": 0, "dur": 9, "pid": 1, "tid": 1}]
    events += [{**events[0], "name": "decode", "ts": 10 * number, "dur": 5} for number in (1, 2)]
    printed = imported({"traceEvents": events}, "--mode", "tiny")
    assert printed["metadata"]["workload"]["new_tokens"] == 3
    assert run_of(printed["run_id"]).data.params["new_tokens"] == "3"


@pytest.mark.parametrize("value", [-3.0, 0.0, math.nan, math.inf])
def test_times_that_are_none_are_refused(imported, analyzed, value):
    analyzed()
    profile = imported(TIMES)["run_id"]
    MlflowClient().log_metric(profile, "time_ms/prefill", value, step=9)
    with pytest.raises(StagemeterError, match=r"time_ms/prefill is .*, which is no time"):
        pair_runs(profile, peak_tflops=312)


def test_error_in_the_trace_keeps_what_was_measured(experiment, runs, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("stagemeter.profiling.harness.trace", full)
    config = ProfileConfig(model="deepseek-ocr-small", mode="tiny", new_tokens=2, repeats=2)
    with pytest.raises(OSError, match="no space"):
        profile_page(config, experiment=experiment)
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert run.data.metrics["time_ms/prefill"] > 0


def test_each_run_of_an_experiment_takes_few_calls(imported, analyzed, experiment, monkeypatch):
    analyzed()
    for number in range(4):
        imported({**TIMES, "sam": 30.0 + number})
    calls = []

    def counted(name):
        real = getattr(MlflowClient, name)
        return lambda self, *args, **kwargs: (calls.append(name), real(self, *args, **kwargs))[1]

    for name in [name for name in dir(MlflowClient) if not name.startswith("_")]:
        if callable(getattr(MlflowClient, name)):
            monkeypatch.setattr(MlflowClient, name, counted(name))
    pairings, failures = pair_experiment(experiment, peak_tflops=312)
    assert (len(pairings), failures) == (4, {})
    per_run = [name for name in calls if name in ("log_batch", "log_artifacts")]
    assert len(per_run) == 2 * 4
    # Everything else is per experiment, or per static run.
    assert len(calls) - len(per_run) <= 8, calls


@pytest.mark.slow
def test_each_run_of_an_experiment_takes_five_requests_of_a_server(server, imported, analyzed, experiment, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    name = f"served-{experiment}"
    mlflow.set_experiment(name)
    for tokens in (100, 101):
        analyzed("--new-tokens", tokens, "--experiment", name)
    for number in range(6):
        imported({**TIMES, "sam": 30.0 + number}, "--new-tokens", 100 + number % 2, "--experiment", name)
    requested = []
    send = requests.Session.request

    def counted(self, method, url, **options):
        requested.append((method, url))
        return send(self, method, url, **options)

    monkeypatch.setattr(requests.Session, "request", counted)
    needed = []
    for peak in (312, 156, 156):
        requested.clear()
        pairings, failures = pair_experiment(name, peak_tflops=peak, peak_gbps=2039)
        assert (len(pairings), failures) == (6, {})
        # MLflow asks a server once for what it can do.
        needed.append(sum(not url.endswith("server-info") for _, url in requested))
    # Each run is read in two: its workload, and where that lies. Then a table, a document, and all numbers at once are
    # written; of each static run the report is read, and the link back written.
    first, again, unchanged = needed
    assert first - unchanged == 3 * 6 + 2
    assert again - unchanged == 3 * 6
    assert unchanged <= 2 * 6 + 2 * 2 + 8
