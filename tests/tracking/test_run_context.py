"""The plug-in of MLflow: tags of runs with the accelerator of their machine."""

import importlib.metadata
import json

import mlflow
import pytest

from stagemeter.cli import main
from stagemeter.hardware import machine
from stagemeter.tracking.labels import CONTEXT_DEVICE, CONTEXT_PEAK
from stagemeter.tracking.run_context import AcceleratorContext

TIMES = {"sam": 31.7, "clip": 9.13, "projector": 0.217, "prefill": 27.9, "decode": 7.77}


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """Give the machine GPUs, as NVIDIA's driver describes them: ``gpus("NVIDIA H100 80GB HBM3", ...)``."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("STAGEMETER_RUN_CONTEXT", raising=False)
    folder = tmp_path / "driver"
    monkeypatch.setattr(machine, "_GPUS", folder)

    def put(*models: str) -> None:
        for number, model in enumerate(models):
            place = folder / f"0000:0{number}:00.0"
            place.mkdir(parents=True)
            (place / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 24\nGPU UUID: \t GPU-1\n")

    return put


def tags_of_new_run(experiment) -> dict[str, str]:
    mlflow.set_experiment(experiment)
    with mlflow.start_run() as run:
        pass
    tags = mlflow.get_run(run.info.run_id).data.tags
    return {name: value for name, value in tags.items() if name.startswith("stagemeter.")}


def test_mlflow_knows_it():
    (entry,) = importlib.metadata.entry_points(group="mlflow.run_context_provider", name="stagemeter")
    assert entry.load() is AcceleratorContext


def test_run_carries_accelerator_and_peak(gpus, experiment):
    gpus("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    assert tags_of_new_run(experiment) == {
        CONTEXT_DEVICE: "NVIDIA H100 80GB HBM3",
        CONTEXT_PEAK: "989 TFLOP/s in bfloat16 (H100-SXM)",
    }


@pytest.mark.parametrize(
    ("models", "environment", "expected"),
    [
        ([], {}, {}),
        (["NVIDIA Something New"], {}, {CONTEXT_DEVICE: "NVIDIA Something New"}),
        (["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"], {}, {}),
        (["NVIDIA H100 80GB HBM3"], {"CUDA_VISIBLE_DEVICES": ""}, {}),
        (["NVIDIA H100 80GB HBM3"], {"STAGEMETER_RUN_CONTEXT": "off"}, {}),
        (["NVIDIA H100 80GB HBM3"], {"STAGEMETER_RUN_CONTEXT": "0"}, {}),
    ],
    ids=["none", "unknown", "two kinds", "hidden", "off", "zero"],
)
def test_nothing_is_said_that_is_not_known(models, environment, expected, gpus, experiment, monkeypatch):
    gpus(*models)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tags_of_new_run(experiment) == expected


def test_run_starts_whatever_goes_wrong_and_says_so(gpus, experiment, monkeypatch, capfd):
    class Broken:
        def glob(self, pattern):
            raise OSError("no driver today")

    gpus("NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(machine, "_GPUS", Broken())
    assert tags_of_new_run(experiment) == {}
    assert "no driver today" in capfd.readouterr().err


def test_times_of_such_a_run_need_no_device(gpus, experiment, runs, monkeypatch, capsys):
    gpus("NVIDIA A100-SXM4-80GB")
    mlflow.set_experiment(experiment)
    with mlflow.start_run(run_name="elsewhere"):
        mlflow.log_metrics(TIMES)

    def stagemeter(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["stagemeter", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, capsys.readouterr().err
        return capsys.readouterr().out

    options = ("--mode", "base", "--experiment", experiment)
    stagemeter("analyze", "--estimate", *options)
    imported = json.loads(stagemeter("import-profile", "--from-run", "elsewhere", *options, "--json"))
    paired = json.loads(stagemeter("mfu", "--profile-run", imported["run_id"], "--json"))
    assert paired["peak"]["name"] == "A100-SXM-80GB"
    # Runs of the command line say nothing of this machine: what they are of may have run on another.
    kinds = {run.data.tags.get("stagemeter.kind"): run.data.tags for run in runs()}
    assert CONTEXT_DEVICE not in kinds["profile"]
    assert CONTEXT_DEVICE not in kinds["static"]
    assert CONTEXT_DEVICE in kinds[None]
