"""torchvision beside a torch for the CPU: its wheels are built for CUDA, and their kernels do not load there.

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
