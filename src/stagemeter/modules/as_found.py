"""A model that is run is left as it was found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Put back what running a model changes: training flags, gradients, buffers, states of random numbers.

    Parameters
    ----------
    model : torch.nn.Module
        The model. Gradients are out of its reach inside of the block, and are the same tensors after it.
    """
    training = {module: module.training for module in model.modules()}
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
            module.training = flag
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, name, buffer, found in buffers:
            module._buffers[name] = buffer
            # Written to only if need be: a graph that is waiting for its backward pass may hold it. By value: batch
            # norm changes its statistics without a new version.
            if found is not None and buffer is not None and not torch.equal(buffer, found):
                with torch.no_grad():
                    buffer.copy_(found)


@contextmanager
def random_numbers_left_alone(model: nn.Module) -> Iterator[None]:
    """Put back the states of torch's, Python's and NumPy's random numbers."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(sorted(index for index in devices if index is not None)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
