"""Import torchvision beside a CPU build of torch, where the CUDA kernels of its wheels do not load.

No image processor and no model here needs the kernels, but the package does not import without the names of two.
"""

from __future__ import annotations

import contextlib

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_operators() -> None:
    """Declare the operators whose names torchvision needs when it is imported."""
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            torch.library.define(f"torchvision::{name}", _SIGNATURE)
