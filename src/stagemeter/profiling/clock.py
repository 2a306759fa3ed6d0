"""Taking the time of stages as they run: CUDA events on a GPU, a monotonic clock elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from stagemeter.profiling.ranges import TimeRange, own_times
from stagemeter.profiling.scopes import annotate

if TYPE_CHECKING:
    import torch

#: Ranges that are opened and closed to find out what that costs.
_TRIALS = 1000


class StageClock:
    """Times named ranges on one device.

    A call opens a range; what runs inside of it, nested ranges included, is timed. `take` hands over what was timed
    since the last time.

    Parameters
    ----------
    device : torch.device
        Where the work runs. On CUDA, events are put into the stream at both ends of a range: the time is the device's
        own, and nothing waits for anything while the work runs. On other accelerators the device is waited for at
        both ends.
    on_enter : callable, optional
        Told the name of each range that is opened, before its time begins.
    """

    def __init__(self, device: torch.device, on_enter: Callable[[str], None] | None = None) -> None:
        self._device = device
        self._on_enter = on_enter
        self._marks: list[tuple[str, int, int]] = []
        #: On CUDA, marks are places in here, and times elsewhere: events tell only how far apart they are.
        self._events: list[Any] = []

    @property
    def kind(self) -> str:
        """What the times are taken with."""
        return "CUDA events" if self._device.type == "cuda" else "monotonic clock"

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a range, which torch's profiler and NVTX see under the same name."""
        if self._on_enter is not None:
            self._on_enter(name)
        with annotate(name):
            start = self._mark()
            try:
                yield
            finally:
                self._marks.append((name, start, self._mark()))

    def take(self) -> list[TimeRange]:
        """Wait for the device, and return what was timed, in nanoseconds from an arbitrary beginning."""
        self.synchronize()
        marks, events = self._marks, self._events
        self._marks, self._events = [], []
        if self._device.type != "cuda":
            return [TimeRange(name, start, end) for name, start, end in marks]
        # From one to the next: what lies between two is a float of 24 bits, which tells microseconds for a minute.
        steps = (round(1e6 * before.elapsed_time(after)) for before, after in pairwise(events))
        times = list(accumulate(steps, initial=0))
        return [TimeRange(name, times[start], times[end]) for name, start, end in marks]

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
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
    """What timing a range costs, in milliseconds.

    Attributes
    ----------
    inside : float
        What of it falls into the time of the range itself.
    around : float
        What of it falls into the time of the range that it is nested in.
    """

    inside: float
    around: float


def cost_of_a_range(device: torch.device) -> RangeCost:
    """Find out what it costs to time a range: an empty one inside of another, many times over."""
    clock = StageClock(device)
    with clock("outer"):
        for _ in range(_TRIALS):
            with clock("empty"):
                pass
    times = own_times(clock.take()).times
    return RangeCost(inside=times["empty"] / 1e6 / _TRIALS, around=times["outer"] / 1e6 / _TRIALS)
