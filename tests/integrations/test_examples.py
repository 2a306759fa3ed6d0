"""The examples run as written, and log to MLflow what they say."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "training"
pytestmark = pytest.mark.slow
TRAINING = {"flops/train", "tflops_per_second/train", "mfu/train", "hfu/train", "step_ms/train"}
EXPECTED = {
    "trainer.py": TRAINING | {"tokens_per_second/train", "padding/train", "loss"},
    "lightning_trainer.py": TRAINING | {"samples_per_second/train"},
    "autolog.py": {"flops/prefill", "flops/decode_total", "mfu/prefill", "mfu/decode", "time_ms/total"},
    "loop.py": {"flops/layers", "flops_backward/total", "mfu/train"},
}


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name, new_store, tmp_path):
    address = new_store(tmp_path)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment["MLFLOW_TRACKING_URI"] = address
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    runs = mlflow.MlflowClient(address).search_runs(
        [experiment.experiment_id for experiment in mlflow.MlflowClient(address).search_experiments()]
    )
    assert len(runs) == 1
    metrics = runs[0].data.metrics
    assert set(metrics) >= EXPECTED[name]
    assert all(0 < value < 1 for key, value in metrics.items() if key.startswith("mfu/"))
