"""Measure the peak rates of this machine, for devices without a datasheet such as CPUs.

Work must not exceed a peak, so the best repetition counts rather than the mean. Products run in several sizes, from
those that fit a cache to those of a model's layers, and attention beside them. Memory is read as well as copied, since
reading can be faster. The trials take turns, so that a burst of other work does not hit only one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.cost import ITEM_SIZES
from stagemeter.core.errors import StagemeterError
from stagemeter.hardware.machine import device_name, memory_bytes, torch_device, usable_cores
from stagemeter.hardware.roofline import Peak

if TYPE_CHECKING:
    import torch

#: Called with a description of the measurement.
Progress = Callable[[str], None]
#: Runs a callable and returns its seconds.
Timer = Callable[[Callable[[], Any]], float]

#: Rows, inputs and outputs of the linear layers of the trials, small ones first.
_CPU_PRODUCTS = (
    (256, 512, 512),
    (512, 512, 512),
    (512, 1024, 512),
    (1024, 1024, 1024),
    (913, 1280, 1280),
    (2048, 2048, 2048),
)
_GPU_PRODUCTS = (
    (1024, 4096, 4096),
    (4096, 4096, 4096),
    (4096, 8192, 4096),
    (8192, 8192, 8192),
    (8192, 16384, 8192),
    (16384, 8192, 16384),
)
#: Heads, tokens and head width.
_CPU_ATTENTION = (12, 1024, 64)
_GPU_ATTENTION = (128, 4096, 128)

_MIB = 2**20
_CPU_BUFFER = 512 * _MIB
_GPU_BUFFER = 2048 * _MIB
#: Size of a buffer in caches, so that almost nothing of it stays in the cache between two passes.
_TIMES_CACHE = 8
#: Largest part of the memory for a buffer, as a divisor; there are two buffers.
_PART_OF_MEMORY = 8
_ROW = 4096

#: Seconds of all turns, of each turn, and of the longest call that is repeated.
_SECONDS = 9.0
_TURN_SECONDS = 0.1
_LONGEST_CALL_SECONDS = 1.0

_PRODUCT, _STREAM = "FLOP", "byte"


@dataclass(frozen=True, slots=True)
class Trial:
    """A timed operation; `amount` is its FLOPs, or bytes read and written, and `unit` says which."""

    name: str
    unit: str
    amount: int
    run: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class MeasuredPeak:
    """A measured peak, and the best rate of each trial by name."""

    peak: Peak
    flops_per_second: dict[str, float]
    bytes_per_second: dict[str, float]


def measure_peak(device: str, dtype: str, progress: Progress | None = None) -> MeasuredPeak:
    """Measure the rates of this machine in about ten seconds, or raise StagemeterError.

    On an idle machine two measurements differ by some percent. Other work at the same time, even in another virtual
    machine on the host, makes the peak too low, and utilization by it too high.
    """
    import torch

    if dtype not in ITEM_SIZES:
        raise StagemeterError(f"dtype: {dtype!r} is unknown. Measure one of {', '.join(ITEM_SIZES)}")
    place = torch_device(device)
    if place.type not in ("cpu", "cuda"):
        raise StagemeterError(f"device: {device!r} cannot be measured, only cpu and cuda. Give --peak-tflops X")
    kind, size = getattr(torch, dtype), _buffer_size(place)
    if progress is not None:
        progress(f"{dtype} products and memory of {device_name(place)}, about {_SECONDS:.0f} seconds")
    with torch.inference_mode():
        rates = best_rates(chain(_products(place, kind), _streams(place, kind, size)), _timer(place), _SECONDS)
    if place.type == "cuda":
        torch.cuda.empty_cache()
    flops = {trial.name: rate for trial, rate in rates.items() if trial.unit == _PRODUCT}
    moved = {trial.name: rate for trial, rate in rates.items() if trial.unit == _STREAM}
    fastest_product, fastest_stream = max(flops, key=lambda name: flops[name]), max(moved, key=lambda name: moved[name])
    peak = Peak(
        name=device_name(place),
        dtype=dtype,
        flops_per_second=flops[fastest_product],
        bytes_per_second=moved[fastest_stream],
        source=f"measured: {fastest_product}, the fastest of {len(flops)} products in {dtype}; {fastest_stream} of "
        f"{size // _MIB:,} MiB, the fastest of {len(moved)} ways through memory; {_conditions(place)}",
        memory_bytes=memory_bytes(place),
    )
    return MeasuredPeak(peak, flops, moved)


def best_rates(trials: Iterable[Trial], timed: Timer, seconds: float) -> dict[Trial, float]:
    """Return the best rate of each trial, per second, from turns of so many seconds after a first run of each.

    Small trials come first: one that would take far too long, by the rates of its unit so far, is left out.
    """
    best: dict[Trial, float] = {}
    for trial in trials:
        known = max((rate for other, rate in best.items() if other.unit == trial.unit), default=math.inf)
        if trial.amount / known < _LONGEST_CALL_SECONDS:
            best[trial] = trial.amount / timed(trial.run)
    again = [trial for trial, rate in best.items() if trial.amount / rate < _LONGEST_CALL_SECONDS]
    deadline = time.perf_counter() + seconds
    while again:
        for trial in again:
            turn_ends = time.perf_counter() + _TURN_SECONDS
            # Run at least once, even if other work took the whole turn.
            while True:
                best[trial] = max(best[trial], trial.amount / timed(trial.run))
                if time.perf_counter() >= turn_ends:
                    break
        if time.perf_counter() >= deadline:
            break
    return best


def _products(place: torch.device, dtype: torch.dtype) -> Iterable[Trial]:
    """Yield linear layers and attention, each made when its turn comes."""
    import torch
    from torch.nn import functional

    # A separate generator leaves the caller's random numbers unchanged.
    generator = torch.Generator(place).manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=place, generator=generator).to(dtype)

    shapes = _CPU_PRODUCTS if place.type == "cpu" else _GPU_PRODUCTS
    for rows, inputs, outputs in shapes:
        yield Trial(
            name=f"linear layer of {rows} x {inputs} to {outputs}",
            unit=_PRODUCT,
            amount=2 * rows * inputs * outputs,
            run=partial(functional.linear, noise(rows, inputs), noise(outputs, inputs)),
        )
    heads, tokens, width = _CPU_ATTENTION if place.type == "cpu" else _GPU_ATTENTION
    query, key, value = (noise(1, heads, tokens, width) for _ in range(3))
    yield Trial(
        name=f"attention of {heads} heads over {tokens} tokens",
        unit=_PRODUCT,
        amount=4 * heads * tokens**2 * width,
        run=partial(functional.scaled_dot_product_attention, query, key, value),
    )


def _streams(place: torch.device, dtype: torch.dtype, size: int) -> Sequence[Trial]:
    """Return ways through memory: read and write, read, and a layer's weights for one token."""
    import torch
    from torch.nn import functional

    # Filled, since the system maps untouched memory to one page of zeros, which stays in the cache.
    source = torch.ones(size // dtype.itemsize, dtype=dtype, device=place)
    target = torch.ones_like(source)
    weight, token = source.view(-1, _ROW), torch.ones(1, _ROW, dtype=dtype, device=place)
    numbers = source.view(torch.float32)
    return (
        Trial("copy", _STREAM, 2 * size, partial(target.copy_, source)),
        Trial("sum", _STREAM, size, numbers.sum),
        Trial("linear layer for one token", _STREAM, size, partial(functional.linear, token, weight)),
    )


def _timer(place: torch.device) -> Timer:
    import torch

    if place.type == "cpu":

        def on_host(run: Callable[[], Any]) -> float:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start

        return on_host

    def on_device(run: Callable[[], Any]) -> float:
        with torch.cuda.device(place):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            # While a first run is at work, the events and the second run are queued: the time leaves out the launch.
            run()
            start.record()
            run()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return on_device


def _buffer_size(place: torch.device) -> int:
    """Return the bytes of a buffer that is far larger than the caches, in whole rows."""
    import torch

    if place.type == "cuda":
        free, _ = torch.cuda.mem_get_info(place)
        wanted = _GPU_BUFFER
    else:
        free = memory_bytes(place) or _PART_OF_MEMORY * _CPU_BUFFER
        wanted = max(_CPU_BUFFER, _TIMES_CACHE * _last_level_cache())
    unit = 8 * _ROW
    return max(unit, min(wanted, free // _PART_OF_MEMORY) // unit * unit)


def _last_level_cache() -> int:
    """Return the bytes of all last-level caches together; 0 if the system does not report them."""
    sizes: dict[int, dict[str, int]] = {}
    for cache in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level = int((cache / "level").read_text())
            shared_by = (cache / "shared_cpu_list").read_text().strip()
            sizes.setdefault(level, {})[shared_by] = int((cache / "size").read_text().strip().removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue
    return sum(sizes[max(sizes)].values()) if sizes else 0


def _conditions(place: torch.device) -> str:
    import torch

    if place.type == "cpu":
        return f"torch {torch.__version__}, {torch.get_num_threads()} threads on {usable_cores()} cores"
    return f"torch {torch.__version__}"
