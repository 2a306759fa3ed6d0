"""Throughput and MFU of a training with Lightning, through its own logger: one line, the callback."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import MLFlowLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stagemeter import LightningStagemeterCallback


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(16 * 30 * 30, 10)

    def training_step(self, batch, index):
        images, labels = batch
        return nn.functional.cross_entropy(self.head(self.encoder(images)), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


data = DataLoader(TensorDataset(torch.randn(64, 3, 32, 32), torch.randint(10, (64,))), batch_size=8)
trainer = pl.Trainer(
    max_steps=8,
    log_every_n_steps=4,
    accelerator="cpu",
    logger=MLFlowLogger("training", tracking_uri="sqlite:///mlflow.db"),
    callbacks=[LightningStagemeterCallback(peak_tflops=0.4)],
    enable_progress_bar=False,
)
trainer.fit(Classifier(), data)
print({name: float(value) for name, value in trainer.logged_metrics.items() if name.endswith("/train")})
