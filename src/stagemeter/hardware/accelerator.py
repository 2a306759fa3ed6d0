"""The accelerator of this machine, found fast and without torch."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

#: Where NVIDIA's driver describes each GPU (NVIDIA Linux driver README, "The /proc interface").
_GPUS = Path("/proc/driver/nvidia/gpus")


def accelerator_name() -> str | None:
    """Return the driver's name of the accelerator that this process uses.

    None if it uses none, or the machine has several kinds and torch has not chosen one.
    """
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "none", "NoDevFiles"):
        return None
    models = set()
    for description in _GPUS.glob("*/information"):
        match = re.search(r"^Model:\s*(\S.*?)\s*$", description.read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            models.add(match[1])
    return models.pop() if len(models) == 1 else None
