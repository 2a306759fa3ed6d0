"""The examples run as written, and log to MLflow what they say; their FLOPs are those of real runs by brute force."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from brute_force import BruteForce, brute_force_macs

EXAMPLES = Path(__file__).parents[2] / "examples" / "training"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]
TRAINING = {"flops/train", "tflops_per_second/train", "mfu/train", "hfu/train", "step_ms/train"}
#: Examples that run by themselves, and metrics that they log.
EXPECTED = {
    "lightning_trainer.py": TRAINING | {"samples_per_second/train"},
    "autolog.py": {"flops/prefill", "flops/decode_total", "mfu/prefill", "mfu/decode", "time_ms/total"},
}
#: Examples whose FLOPs are counted once more, by brute force.
COUNTED = {"loop.py", "qwen_vl_lora.py", "trl_sft.py"}
STAGES = ("vision", "projector", "language_model", "head")


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == COUNTED | set(EXPECTED)


def only_run(address):
    """The metrics of the only run in a store, each as its values in order."""
    client = mlflow.MlflowClient(address)
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return {
        name: [
            metric.value for metric in sorted(client.get_metric_history(run.info.run_id, name), key=lambda m: m.step)
        ]
        for name in run.data.metrics
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name, new_store, tmp_path):
    address = new_store(tmp_path)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment["MLFLOW_TRACKING_URI"] = address
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    metrics = only_run(address)
    assert set(metrics) >= EXPECTED[name]
    assert all(0 < value < 1 for key, values in metrics.items() if key.startswith("mfu/") for value in values)


@pytest.fixture
def run(new_store, tmp_path, monkeypatch):
    """Run an example in here: ``run("loop.py")`` returns its names, and the metrics in MLflow."""
    address = new_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(None)

    def script(name):
        names = runpy.run_path(str(EXAMPLES / name))
        mlflow.end_run()
        mlflow.flush_async_logging()
        return names, only_run(address)

    yield script
    mlflow.end_run()
    mlflow.set_tracking_uri(None)


def step_flops(model, batch):
    """FLOPs of a step on real numbers, product by product."""
    model.train()
    with BruteForce() as counted:
        model(**batch).loss.backward()
    return 2 * counted.macs


def test_plain_loop(run):
    names, metrics = run("loop.py")
    model, batch = names["model"], names["batch"]
    whole = step_flops(model, batch)
    # Frozen: its forward pass alone.
    vision = 2 * brute_force_macs(model.model.vision_tower, batch["pixel_values"])
    # Weights and input have a gradient.
    head = 3 * 2 * batch["input_ids"].numel() * 128 * 512
    assert metrics["flops/total"] == [whole]
    assert metrics["flops/vision"] == [vision]
    assert metrics["flops/head"] == [head]
    assert sum(metrics[f"flops/{stage}"][0] for stage in STAGES) == whole
    for name, part in (("vision", vision), ("head", head)):
        shares = [
            value / of_all for value, of_all in zip(metrics[f"mfu/train/{name}"], metrics["mfu/train"], strict=True)
        ]
        assert shares == pytest.approx([part / whole] * 4, rel=1e-12)


def test_qwen_vl_by_lora_with_a_frozen_tower(run):
    pytest.importorskip("peft", reason="needs peft: pip install peft")
    names, metrics = run("qwen_vl_lora.py")
    model, collate = names["model"], names["collate"]
    # Every page comes once: in two logs of two steps.
    alone = [collate([page]) for page in names["pages"]]
    assert 2 * sum(metrics["flops/train"]) == sum(step_flops(model, batch) for batch in alone)
    visual = model.base_model.model.model.visual
    seen = sum(brute_force_macs(visual, batch["pixel_values"], grid_thw=batch["image_grid_thw"]) for batch in alone)
    assert 2 * sum(metrics["flops/train/vision"] + metrics["flops/train/projector"]) == 2 * seen
    # Frozen: a forward pass, and the gradient that the adapters below need.
    tokens = sum(batch["input_ids"].numel() for batch in alone)
    assert 2 * sum(metrics["flops/train/head"]) == 2 * 2 * tokens * 128 * 512
    for quantity in ("flops", "flops_causal", "mfu", "mfu_causal"):
        parts = [
            sum(values) for values in zip(*(metrics[f"{quantity}/train/{stage}"] for stage in STAGES), strict=True)
        ]
        assert parts == pytest.approx(metrics[f"{quantity}/train"], rel=1e-9)
    assert all(
        0 < causal < dense for causal, dense in zip(metrics["flops_causal/train"], metrics["flops/train"], strict=True)
    )
    for mfu, flops, ms in zip(metrics["mfu/train"], metrics["flops/train"], metrics["step_ms/train"], strict=True):
        assert mfu == pytest.approx(flops / (ms / 1000) / 0.1e12, rel=1e-9)


def test_supervised_fine_tuning_with_trl(run):
    for package in ("trl", "peft"):
        pytest.importorskip(package, reason="needs trl and peft: pip install trl peft")
    names, metrics = run("trl_sft.py")
    trainer, model = names["trainer"], names["trainer"].model
    lengths = [length for row in trainer.train_dataset for length in row["seq_lengths"]]
    assert len(lengths) == len(names["texts"])
    steps = 2 * len(metrics["flops/train"])
    assert steps == trainer.state.global_step
    # TRL's default, with gradients of embeddings that it asks for. Brute force would count both.
    model.gradient_checkpointing_disable()
    model.get_input_embeddings()._forward_hooks.clear()

    def alone(length):
        ids = torch.full((1, length), 5)
        return step_flops(model, {"input_ids": ids, "labels": ids})

    # TRL's head leaves out the last token of a batch, which are texts in one row.
    last = 2 * 2 * 128 * 1024
    assert 2 * sum(metrics["flops/train"]) == sum(map(alone, lengths)) - steps * last
    assert metrics["padding/train"] == [0] * len(metrics["flops/train"])
    tokens = sum(
        2 * rate * ms / 1000
        for rate, ms in zip(metrics["tokens_per_second/train"], metrics["step_ms/train"], strict=True)
    )
    assert tokens == pytest.approx(sum(lengths), rel=1e-9)
