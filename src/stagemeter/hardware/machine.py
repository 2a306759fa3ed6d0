"""A description of this machine, to read times by; it does not identify the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError

if TYPE_CHECKING:
    import torch

_PROCESSORS = Path("/proc/cpuinfo")
#: Where NVIDIA's driver describes each GPU (NVIDIA Linux driver README, "The /proc interface").
_GPUS = Path("/proc/driver/nvidia/gpus")
_SECONDS_FOR_DRIVER = 10


def describe_machine(device: str) -> dict[str, str]:
    """Describe a device of this machine, such as ``cuda:1``, and the torch that runs on it.

    ``device`` is its name, ``cores`` the processor cores that this process may use, ``memory_bytes`` the device's
    memory and ``torch_build`` torch's platform. ``driver`` is ``none`` for a CPU. Unknown values are ``unknown``.
    """
    import torch

    place = torch_device(device)
    memory = memory_bytes(place)
    return {
        "device": device_name(place),
        "device_type": place.type,
        "cores": str(usable_cores()),
        "memory_bytes": "unknown" if memory is None else str(memory),
        "driver": _driver(place),
        "torch": str(torch.__version__),
        "torch_build": _build(),
    }


def torch_device(device: str) -> torch.device:
    """Return the torch device of a name, a GPU with its index, or raise StagemeterError."""
    import torch

    try:
        place = torch.device(device)
    except RuntimeError:
        raise StagemeterError(
            f"device: there is no {device!r} in torch. Give cpu, cuda or cuda:N; 'meta' counts without weights"
        ) from None
    if place.type != "cuda":
        return place
    count = torch.cuda.device_count()
    if (place.index or 0) >= count:
        raise StagemeterError(
            f"device: there is no {device!r} here, where torch {torch.__version__} sees {count} GPUs. Give cpu"
        )
    return torch.device("cuda", torch.cuda.current_device() if place.index is None else place.index)


def device_name(place: torch.device) -> str:
    """Return the name of a device by its driver or the operating system."""
    import torch

    if place.type == "cuda":
        return str(torch.cuda.get_device_name(place))
    return _processor_name() if place.type == "cpu" else f"{place.type} device"


def memory_bytes(place: torch.device) -> int | None:
    """Return the size of a device's memory; None if it is unknown."""
    import torch

    if place.type == "cuda":
        return int(torch.cuda.get_device_properties(place).total_memory)
    if place.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def accelerator_name() -> str | None:
    """Return the driver's name of the accelerator that this process uses, found without importing torch.

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


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor_name() -> str:
    try:
        text = _PROCESSORS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(\S.*?)\s*$", text, flags=re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine() or "unknown processor"


def _driver(place: torch.device) -> str:
    if place.type == "cpu":
        return "none"
    if place.type != "cuda":
        return "unknown"
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS_FOR_DRIVER,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    # One line per GPU; they share the driver.
    return answer.stdout.strip().splitlines()[0].strip() if answer.stdout.strip() else "unknown"


def _build() -> str:
    import torch

    if torch.version.hip:
        return f"hip {torch.version.hip}"
    return f"cuda {torch.version.cuda}" if torch.version.cuda else "cpu"
