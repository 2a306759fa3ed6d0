"""``mlflow run`` runs the project's entry points in a process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from stagemeter import AnalysisConfig
from stagemeter.application.analyze import analyze_page

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path) -> Path:
    """Copy what a project run reads, so that the working tree stays unchanged."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("MLproject", "conda.yaml"):
        shutil.copy(ROOT / name, folder)
    for name in ("conf", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def mlflow_run(project: Path, experiment: str, *arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = [sys.executable, "-m", "mlflow", "run", str(project), "--env-manager", "local"]
    # The experiment of this process is not that of the other.
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_EXPERIMENT_ID"}
    return subprocess.run(
        [*command, "--experiment-name", experiment, *arguments],
        env=environment | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_main_entry_point_with_a_mode(project, experiment, runs):
    done = mlflow_run(project, experiment, "-P", "mode=tiny", "-P", "new_tokens=32")
    assert done.returncode == 0, done.stderr
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "tiny 83+32 tokens, deepseek-ocr"
    declared = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]["main"]["parameters"]
    for name, parameter in declared.items():
        given = {"mode": "tiny", "new_tokens": "32"}.get(name, str(parameter["default"]))
        assert run.data.params[name].removesuffix(".0") == given.removesuffix(".0")
    assert run.data.params["image_width"] == "1654"
    assert run.data.params["prompt_tokens"] == "83"
    assert run.data.tags["stagemeter.agreement"] == "equal"
    assert "page.png" in {artifact.path for artifact in MlflowClient().list_artifacts(run.info.run_id)}
    assert (project / "stagemeter-report" / "static_compute.json").is_file()
    assert "/runs?workflowType=machine_learning&compareRunsMode=CHART" in done.stderr + done.stdout


@pytest.mark.slow
def test_config_entry_point_takes_any_option(project, experiment, runs, small_model):
    (project / "mine.yaml").write_text("mode: base\nbatch_size: 2\n")
    done = mlflow_run(
        project, experiment, "-e", "config", "-P", "config=mine.yaml", "-P", f"model={small_model}", "-P", "seq_len=300"
    )
    assert done.returncode == 0, done.stderr
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "base 300+512 tokens batch 2, small-ocr"
    assert (run.data.params["config"], run.data.params["batch_size"]) == ("mine.yaml", "2")


@pytest.mark.slow
def test_bad_parameter_fails_the_run(project, experiment, runs):
    done = mlflow_run(project, experiment, "-P", "mode=enormous")
    assert done.returncode != 0
    assert "mode: 'enormous' cannot be used" in done.stdout + done.stderr
    assert [run.info.status for run in runs()] == ["FAILED"]
    assert not (project / "stagemeter-report").exists()


@pytest.mark.slow
def test_profile_pairs_with_what_main_counted(project, experiment, runs):
    small = ("-P", "scale=small", "-P", "mode=tiny", "-P", "new_tokens=4")
    done = mlflow_run(project, experiment, *small, "-P", "device=A100-80GB")
    assert done.returncode == 0, done.stderr
    done = mlflow_run(project, experiment, "-e", "profile", *small, "-P", "repeats=2", "-P", "trace=none")
    assert done.returncode == 0, done.stderr
    profile, static = runs()
    assert [run.info.status for run in (profile, static)] == ["FINISHED", "FINISHED"]
    assert static.data.tags["stagemeter.peak"] == "A100-SXM-80GB"
    assert static.data.metrics["roofline_ms/total"] > 0
    assert profile.data.params["repeats"].removesuffix(".0") == "2"
    hashes = {run.data.tags["stagemeter.workload_hash"] for run in (profile, static)}
    assert len(hashes) == 1
    peak = ("-P", "peak_tflops=2", "-P", "peak_gbps=80")
    done = mlflow_run(project, experiment, "-e", "mfu", "-P", f"profile_run={profile.info.run_id}", *peak)
    assert done.returncode == 0, done.stderr
    paired = MlflowClient().get_run(profile.info.run_id).data
    assert paired.tags["stagemeter.static_run_id"] == static.info.run_id
    seconds = paired.metrics["time_ms/sam"] / 1000
    assert paired.metrics["mfu/sam"] == pytest.approx(static.data.metrics["flops/sam"] / seconds / 2e12, rel=1e-12)


@pytest.mark.slow
def test_times_from_elsewhere_are_brought_in(project, experiment, runs):
    (project / "times.csv").write_text("stage,time_ms\nsam,31.7\nprefill,27.9\n")
    options = ("-P", f"file={project / 'times.csv'}", "-P", "mode=tiny", "-P", "batch-size=2")
    done = mlflow_run(project, experiment, "-e", "import_profile", *options)
    assert done.returncode == 0, done.stderr
    (run,) = runs()
    assert run.data.metrics["time_ms/sam"] == 31.7
    assert run.data.tags["stagemeter.kind"] == "profile"


@pytest.mark.slow
def test_two_runs_are_compared_in_a_run_of_its_own(project, experiment, runs, tmp_path):
    for tokens in (16, 32):
        config = AnalysisConfig(mode="tiny", new_tokens=tokens)
        analyze_page(config, tmp_path / "report", estimate=True, experiment=experiment)
    longer, shorter = runs()
    parts = ("-P", f"baseline={shorter.info.run_id}", "-P", f"run={longer.info.run_id}")
    done = mlflow_run(project, experiment, "-e", "compare", *parts)
    assert done.returncode == 0, done.stderr
    (comparison,) = [run for run in runs() if run.data.tags["stagemeter.kind"] == "comparison"]
    totals = [run.data.metrics["flops/total"] for run in (longer, shorter)]
    assert comparison.data.metrics["ratio/flops/total"] == pytest.approx(totals[0] / totals[1], rel=1e-12)
    assert comparison.info.status == "FINISHED"
