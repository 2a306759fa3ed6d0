"""Running a model without leaving traces in it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from stagemeter.counting.layouts import elements_of, is_plain


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Restore training flags, gradients, buffers and random states after the block; gradients are None inside of it."""
    # Frozen modules of TorchScript have no flag; one set on them exists only in Python.
    training = {module: getattr(module, "training", None) for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    for parameter in gradients:
        parameter.grad = None
    try:
        with random_numbers_left_alone(model):
            yield
    finally:
        for module, flag in training.items():
            if flag is None:
                vars(module).pop("training", None)
            else:
                module.training = flag
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, name, buffer, found in buffers:
            module._buffers[name] = buffer
            # Only changed buffers are written to: a graph that waits for its backward pass may hold one. Values are
            # compared, since batch norm changes its statistics without a new version.
            if found is not None and buffer is not None and not _equal(buffer, found):
                with torch.no_grad():
                    buffer.copy_(found)


def _equal(buffer: torch.Tensor, found: torch.Tensor) -> bool:
    parts = [_parts(buffer), _parts(found)]
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(*parts, strict=True))


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    if is_plain(tensor):
        return [tensor]
    with torch.no_grad():
        if tensor.layout is torch.sparse_coo:
            return [tensor._indices(), tensor._values()]
        if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
            return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
        if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
            return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
        return [elements_of(tensor)]


@contextmanager
def random_numbers_left_alone(model: nn.Module) -> Iterator[None]:
    """Restore the states of torch's, Python's and NumPy's random numbers."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(sorted(index for index in devices if index is not None)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
