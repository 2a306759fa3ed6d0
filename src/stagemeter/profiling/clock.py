"""Named ranges around stages as they run, and their times: CUDA events on a GPU, a monotonic clock elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from stagemeter.profiling.ranges import TimeRange, own_times

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Opens a range of a name for the length of a ``with`` block.
Scope = Callable[[str], AbstractContextManager[None]]

#: Ranges that are timed to find the cost of timing one.
_TRIALS = 1000


@contextmanager
def annotate(name: str) -> Iterator[None]:
    """Open a range that torch's profiler records as a user annotation and, with CUDA, Nsight Systems as an NVTX one."""
    import torch

    nvtx: Any = torch.cuda.nvtx if torch.cuda.is_available() else None
    with torch.profiler.record_function(name):
        if nvtx is not None:
            nvtx.range_push(name)
        try:
            yield
        finally:
            if nvtx is not None:
                nvtx.range_pop()


@contextmanager
def scoped_modules(modules: Iterable[tuple[str, nn.Module]], scope: Scope) -> Iterator[None]:
    """Open a range around each call of some modules, each module given with the name of its range.

    The hooks go when the block ends, after errors too. No module calls itself.
    """
    opened: dict[nn.Module, AbstractContextManager[None]] = {}

    def enter(module: nn.Module, name: str) -> None:
        opened[module] = scope(name)
        opened[module].__enter__()

    def leave(module: nn.Module) -> None:
        # torch also calls this for a module that failed before the range was opened.
        context = opened.pop(module, None)
        if context is not None:
            context.__exit__(None, None, None)

    with ExitStack() as stack:
        for name, module in modules:
            before = module.register_forward_pre_hook(lambda module, args, name=name: enter(module, name))
            after = module.register_forward_hook(lambda module, args, out: leave(module), always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


class StageClock:
    """A timer of named ranges on one device. The time of a range includes that of nested ranges.

    On CUDA, an event marks each end of a range in the stream, so that the time is the device's own and the host does
    not wait. On other accelerators the host waits for the device at both ends. `on_enter` is called with the name of
    each range before its time begins.
    """

    def __init__(self, device: torch.device, on_enter: Callable[[str], None] | None = None) -> None:
        self._device = device
        self._on_enter = on_enter
        self._marks: list[tuple[str, int, int]] = []
        #: On CUDA, marks are indices into this list, elsewhere times: two events tell only how far apart they are.
        self._events: list[Any] = []

    @property
    def kind(self) -> str:
        """Kind of clock."""
        return "CUDA events" if self._device.type == "cuda" else "monotonic clock"

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a range, which torch's profiler and NVTX record under the same name."""
        if self._on_enter is not None:
            self._on_enter(name)
        with annotate(name):
            start = self._mark()
            try:
                yield
            finally:
                self._marks.append((name, start, self._mark()))

    def take(self) -> list[TimeRange]:
        """Wait for the device, and return the ranges since the last call, in nanoseconds from an arbitrary origin."""
        self.synchronize()
        marks, events = self._marks, self._events
        self._marks, self._events = [], []
        if self._device.type != "cuda":
            return [TimeRange(name, start, end) for name, start, end in marks]
        # From event to event: a difference is a float of 24 bits, which resolves microseconds for a minute only.
        steps = (round(1e6 * before.elapsed_time(after)) for before, after in pairwise(events))
        times = list(accumulate(steps, initial=0))
        return [TimeRange(name, times[start], times[end]) for name, start, end in marks]

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        import torch

        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def _mark(self) -> int:
        if self._device.type == "cuda":
            import torch

            cuda: Any = torch.cuda
            event = cuda.Event(enable_timing=True)
            event.record(cuda.current_stream(self._device))
            self._events.append(event)
            return len(self._events) - 1
        self.synchronize()
        return time.perf_counter_ns()


@dataclass(frozen=True, slots=True)
class RangeCost:
    """Milliseconds that timing a range adds to its own time, `inside`, and to that of the range around it, `around`."""

    inside: float
    around: float


def cost_of_a_range(device: torch.device) -> RangeCost:
    """Measure the cost of timing a range: time an empty one inside of another, many times."""
    clock = StageClock(device)
    with clock("outer"):
        for _ in range(_TRIALS):
            with clock("empty"):
                pass
    times = own_times(clock.take()).times
    return RangeCost(inside=times["empty"] / 1e6 / _TRIALS, around=times["outer"] / 1e6 / _TRIALS)
