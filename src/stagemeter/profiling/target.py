"""Choose the device for a workload, and check it before anything is built on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stagemeter.core.cost import ITEM_SIZES
from stagemeter.core.errors import StagemeterError
from stagemeter.core.units import with_unit
from stagemeter.hardware.machine import torch_device

#: Value of ``--device`` for the first GPU if there is one, else the CPU.
AUTO = "auto"


def choose_device(name: str) -> str:
    """Resolve ``auto``, and refuse a device that is missing or cannot run anything."""
    import torch

    if name == AUTO:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return str(accelerator) if accelerator is not None else "cpu"
    device = torch_device(name)
    if device.type == "meta":
        raise StagemeterError("device: 'meta' holds no values and takes no time. Give cpu, cuda or auto")
    if device.type == "cpu":
        # torch accepts any index, but there is one processor.
        return "cpu"
    try:
        torch.empty(1, device=device)
    except (ImportError, RuntimeError, AssertionError) as error:
        raise StagemeterError(
            f"device: {name!r} cannot be used here ({_first_sentence(error)}). Give cpu, which runs anywhere"
        ) from None
    return str(device)


def require_dtype(device: str, dtype: str) -> None:
    """Refuse a data type in which a device cannot run a model."""
    import torch
    from torch.nn import functional

    kind = getattr(torch, dtype)
    if device.startswith("cuda") and kind is torch.bfloat16:
        # torch asks the current device, which can be another one.
        with torch.cuda.device(device):
            supported = torch.cuda.is_bf16_supported(including_emulation=False)
        if not supported:
            # torch would emulate it many times slower.
            raise StagemeterError(
                f"dtype: {torch.cuda.get_device_name(device)} has no bfloat16 arithmetic. Give float16 or float32"
            )
    try:
        rows = torch.zeros(1, 1, 16, 16, device=device, dtype=kind)
        functional.linear(rows, rows[0, 0])
        functional.conv2d(rows, rows[:, :, :3, :3])
        functional.scaled_dot_product_attention(rows, rows, rows)
    except RuntimeError as error:
        other = " or ".join(name for name in ITEM_SIZES if name != dtype)
        raise StagemeterError(
            f"dtype: device {device!r} cannot compute in {dtype} ({_first_sentence(error)}). Give {other}"
        ) from None


def require_memory(device: str, needed: int, what: str) -> None:
    """Refuse a workload that needs more bytes than are free, before minutes go into filling the memory.

    `needed` is a lower bound in bytes, and `what` their purpose, for the message.
    """
    import torch

    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
    elif device == "cpu":
        import psutil

        free = psutil.virtual_memory().available
    else:
        return
    if needed > free:
        raise StagemeterError(
            f"device: {what} need at least {with_unit(needed, 'B')}, and {device!r} has {with_unit(free, 'B')} free. "
            "Give a smaller --batch-size, a smaller page or prompt, or a --dtype of fewer bytes"
        )


@contextmanager
def true_dtype(dtype: str) -> Iterator[None]:
    """Run float32 products and convolutions in float32; on some devices torch defaults to TF32.

    The peak of TF32 is many times higher than that of float32.
    """
    import torch

    if dtype != "float32":
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; torch has a type for some of these errors only."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    said = "out of memory" in text or "alloc_failed" in text or ("alloc" in text and "memory" in text)
    return isinstance(error, RuntimeError) and said


def _first_sentence(error: Exception) -> str:
    # The rest of torch's message is pages long.
    return str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
