"""A plain loop: the counts of a step once, its time from the clock, MFU from both."""

import time

import mlflow
import torch
from torch import nn

import stagemeter

model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 256, batch_first=True), 2)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
batch = torch.randn(8, 64, 64)
report = stagemeter.analyze(model, batch, mode="train")
print(report)
with mlflow.start_run():
    stagemeter.log_static_report(report)
    for step in range(4):
        start = time.perf_counter()
        model(batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - start
        mlflow.log_metric("mfu/train", report.total.flops / seconds / 0.4e12, step=step)
