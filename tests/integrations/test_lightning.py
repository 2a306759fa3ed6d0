"""Real short trainings with Lightning's Trainer."""

import logging

import mlflow
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stagemeter
from stagemeter import LightningStagemeterCallback
from stagemeter.modules.throughput import Throughput

lightning = pytest.importorskip("lightning.pytorch", reason="needs the extra lightning")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]
PEAK = 0.4
BATCH = 4


class Classifier(lightning.LightningModule):
    """Calls its children from the training step, as most do."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(8 * 6 * 6, 5)

    def training_step(self, batch, index):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.head(self.encoder(images)), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", nn.functional.cross_entropy(self.head(self.encoder(batch[0])), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


class Whole(Classifier):
    """Calls itself: its children are then part of that call."""

    def forward(self, images):
        return self.head(self.encoder(images))

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Kept(lightning.loggers.Logger):
    """Keeps what is logged."""

    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.entries = []

    def log_metrics(self, metrics, step=None):
        self.entries.append({**metrics, "step": step})

    def log_hyperparams(self, *args, **kwargs):
        pass


def batches(count):
    images = torch.randn(count * BATCH, 3, 8, 8)
    return DataLoader(TensorDataset(images, torch.randint(5, (count * BATCH,))), batch_size=BATCH)


def fit(module, tmp_path, callback, validate=True, **options):
    kept = Kept()
    options = {"max_steps": 4, "log_every_n_steps": 2, "val_check_interval": 2} | options
    trainer = lightning.Trainer(
        accelerator="cpu", logger=kept, callbacks=[callback], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path, num_sanity_val_steps=1, **options,
    )  # fmt: skip
    trainer.fit(module, batches(8), batches(3) if validate else None)
    return kept.entries


def flops_of(model, mode):
    step = nn.Sequential(model.encoder, model.head)
    return stagemeter.analyze(step, stagemeter.spec(BATCH, 3, 8, 8), mode=mode).total.flops


@pytest.mark.parametrize("make", [Classifier, Whole])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_figures_are_those_of_the_batches(make, accumulated, tmp_path):
    model = make()
    entries = fit(
        model, tmp_path, LightningStagemeterCallback(peak_tflops=PEAK), accumulate_grad_batches=accumulated,
        val_check_interval=4,
    )  # fmt: skip
    logged = [entry for entry in entries if "flops/train" in entry]
    assert [entry["step"] for entry in logged] == [1, 3]
    for entry in logged:
        assert entry["flops/train"] == flops_of(model, "train")
        seconds = entry["step_ms/train"] / 1000
        assert entry["mfu/train"] == pytest.approx(entry["flops/train"] / seconds / (PEAK * 1e12), rel=1e-5)
        assert entry["hfu/train"] == pytest.approx(entry["mfu/train"], rel=1e-6)
        assert entry["samples_per_second/train"] == pytest.approx(BATCH / seconds, rel=1e-5)
    evaluations = [entry for entry in entries if "flops/eval" in entry]
    assert len(evaluations) == accumulated
    for entry in evaluations:
        assert 0 < entry["mfu/eval"] < 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_model_that_mlflow_patches_is_counted(new_store, tmp_path, monkeypatch):
    """MLflow's autologging puts a function in place of the model's ``forward`` when a training starts."""
    monkeypatch.setattr(mlflow.pytorch, "log_model", lambda *args, **kwargs: None)  # It resolves requirements.
    mlflow.set_tracking_uri(new_store(tmp_path))
    mlflow.pytorch.autolog()
    try:
        model = Whole()
        entries = fit(model, tmp_path, LightningStagemeterCallback(peak_tflops=PEAK), validate=False)
    finally:
        mlflow.pytorch.autolog(disable=True)
        mlflow.set_tracking_uri(None)
    logged = [entry["flops/train"] for entry in entries if "mfu/train" in entry]
    assert logged == [flops_of(model, "train")] * 2


def test_error_of_ours_never_ends_a_training(tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Throughput, "metrics", fail)
    with caplog.at_level(logging.WARNING):
        entries = fit(Classifier(), tmp_path, LightningStagemeterCallback(peak_tflops=PEAK))
    assert any("loss" in entry for entry in entries)
    assert len([r for r in caplog.records if r.message == "throughput is no longer measured, training goes on"]) == 1
